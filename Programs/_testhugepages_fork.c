/* Tests of fork() with arenas: the core over os_linux.c and os_linux_fork.c,
   with real forks and a real pool.

   Each word of an arena tells where it is and which generation wrote it, so
   every wrong byte is seen, and what comes from before the fork is told from
   what came after. */

#define TEST_PREFIX fork_real
#include "_testhugepages_calls.h"

#include <pthread.h>              // pthread_atfork()
#include <sched.h>                // sched_yield()
#include <signal.h>               // sigaction()
#include <sys/resource.h>         // setrlimit()
#include <sys/time.h>             // setitimer()
#include <sys/wait.h>             // waitpid()
#include <time.h>                 // nanosleep()

// --- arenas ----------------------------------------------------------------

#define MAX_ARENAS 8
#define ARENA_WORDS (ARENA_SIZE / sizeof(uint64_t))

static uint64_t *arenas[MAX_ARENAS];
static int arena_count;

/* What becomes of arenas on explicit pages. */
typedef enum {
    MOVED,              // the only thread moves them to THP
    COPIED,             // the child gets copies on THP
    COPIED_PLAIN,       // the child gets plain copies
    MODES
} fork_mode;

/* Of the whole program, before and after a test. */
static struct {
    address_space space;
    int files;
    long pool;
    /* Nonzero if the address space is not compared: the C library keeps the
       stacks of threads, or unmapping has failed. */
    int any_space;
} before;

static fork_mode mode;

static uint64_t
word(int arena, size_t index, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)arena << 24 | index;
}

static void
fill_arenas(uint32_t generation)
{
    for (int i = 0; i < arena_count; i++) {
        for (size_t j = 0; j < ARENA_WORDS; j++) {
            _Py_atomic_store_uint64_relaxed(&arenas[i][j],
                                            word(i, j, generation));
        }
    }
}

/* Check that every word of the arenas is of a generation from oldest to
   newest, and in its place. */
static void
check_generations(uint32_t oldest, uint32_t newest)
{
    for (int i = 0; i < arena_count; i++) {
        for (size_t j = 0; j < ARENA_WORDS; j++) {
            uint64_t value = _Py_atomic_load_uint64_relaxed(&arenas[i][j]);
            uint32_t generation = (uint32_t)(value >> 32);
            if (value != word(i, j, generation) || generation < oldest
                || generation > newest)
            {
                FAIL("word %zu of arena %d is %llx; generation %u to %u",
                     j, i, (unsigned long long)value, oldest, newest);
                return;
            }
        }
    }
}

static void
check_arenas(uint32_t generation)
{
    check_generations(generation, generation);
}

static void *
alloc_arena(void)
{
    return fork_real_alloc(NULL, ARENA_SIZE);
}

static void
free_arena(void *arena)
{
    fork_real_free(NULL, arena, ARENA_SIZE);
}

/* Count calls from here on, and let all of them succeed. */
static void
rearm(void)
{
    disarm();
    fake.has_threads = mode == COPIED;
}

/* Make exactly so many pages available and put arenas on so many of them.
   Return 0, or -1 after the test was skipped or has failed.  end_test() must
   be called in both cases. */
static int
begin_test(fork_mode new_mode, int count, int pages_left)
{
    mode = new_mode;
    rearm();
    reset_core();
    arena_count = 0;
    if (need_pool(count + pages_left) < 0) {
        return -1;
    }
    before.any_space = 0;
    before.pool = pool_available();
    before.files = count_files();
    before.space = read_address_space();
    fork_real_set_huge_pages(mode == COPIED_PLAIN ? PYMALLOC_HUGEPAGES_HUGETLB
                                                  : PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < count; i++) {
        arenas[i] = (uint64_t *)alloc_arena();
        if (arenas[i] == NULL) {
            FAIL("no memory");
            return -1;
        }
        arena_count++;
        check_hugetlb(arenas[i]);
    }
    CHECK_EQUAL(pool_available(), pages_left);
    fill_arenas(0);
    return test_failed() ? -1 : 0;
}

static void
free_arenas(void)
{
    while (arena_count > 0) {
        free_arena(arenas[--arena_count]);
    }
    (void)hugepages_release_kept();
    CHECK_EQUAL(hugepages_table.count, 0);
}

static void
end_test(void)
{
    if (arena_count > 0) {
        disarm();
        free_arenas();
        if (!before.any_space) {
            check_no_leak(before.space);
        }
        CHECK_EQUAL(count_files(), before.files);
        CHECK_EQUAL(pool_available(), before.pool);
    }
    restore_pool();
}

/* Check that so many of the arenas are on these pages, that the table knows
   which, and the figures. */
static void
check_kinds(int explicit_count, int thp_count, int plain_count)
{
    int counts[HUGEPAGES_KINDS] = {0};
    for (int i = 0; i < arena_count; i++) {
        smaps_entry entry;
        uintptr_t value;
        hugepages_kind kind =
            hugepages_find_entry(arenas[i], &value) == NULL ? HUGEPAGES_PLAIN
            : hugepages_kind_of(value);
        REQUIRE(read_smaps(arenas[i], &entry) == 0);
        if (kind == HUGEPAGES_EXPLICIT) {
            check_hugetlb(arenas[i]);
        }
        else {
            CHECK_EQUAL(entry.kernel_page_kib, sysconf(_SC_PAGESIZE) / 1024);
            CHECK_EQUAL(entry.advised_huge || entry.unadvised,
                        kind == HUGEPAGES_THP);
        }
        counts[kind]++;
    }
    CHECK_EQUAL(counts[HUGEPAGES_EXPLICIT], explicit_count);
    CHECK_EQUAL(counts[HUGEPAGES_THP], thp_count);
    CHECK_EQUAL(counts[HUGEPAGES_PLAIN], plain_count);
    CHECK_EQUAL(hugepages_table.count, explicit_count + thp_count);
    _PyMem_HugePagesStats stats;
    fork_real_get_stats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_EXPLICIT].now, explicit_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, thp_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, plain_count);
}

static void
check_kinds_after_fork(void)
{
    if (getpid() != fake.parent) {
        int is_plain = mode == COPIED_PLAIN;
        check_kinds(0, is_plain ? 0 : arena_count, is_plain ? arena_count : 0);
    }
    else if (mode == MOVED) {
        check_kinds(0, arena_count, 0);
    }
    else {
        check_kinds(arena_count, 0, 0);
    }
}

// --- children --------------------------------------------------------------

/* What a child does: find everything as it was, write, free, map again. */
static void
use_arenas_in_child(void)
{
    check_arenas(0);
    check_kinds_after_fork();
    fill_arenas(1);
    check_arenas(1);
    int count = arena_count;
    free_arenas();
    for (int i = 0; i < count; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        memset(arena, 0xFF, ARENA_SIZE);
        free_arena(arena);
    }
}

static void
check_arenas_in_child(void)
{
    check_arenas(0);
    fill_arenas(1);
    check_arenas(1);
}

/* The child does it, and the parent is as before. */
static void
check_fork(void (*function)(void))
{
    run_in_child(function);
    check_arenas(0);
    check_kinds_after_fork();
}

/* Fork a child that may fail only with a message of fork.c.  Return whether it
   did. */
static int
fork_with_message(void (*function)(void))
{
    char message[1000];
    size_t length = 0;
    int ends[2];
    int saved_stderr = dup(STDERR_FILENO);
    if (saved_stderr < 0 || pipe(ends) != 0) {
        FAIL("no files: %s", strerror(errno));
        return 0;
    }
    (void)fflush(stdout);
    (void)dup2(ends[1], STDERR_FILENO);
    (void)close(ends[1]);
    pid_t child = fork();
    if (child == 0) {
        function();
        (void)fflush(stdout);
        /* 1 is the status of the message. */
        _exit(test_failed() ? 2 : 0);
    }
    (void)dup2(saved_stderr, STDERR_FILENO);
    (void)close(saved_stderr);
    ssize_t got;
    while ((got = read(ends[0], message + length,
                       sizeof(message) - 1 - length)) > 0)
    {
        length += (size_t)got;
    }
    message[length] = '\0';
    (void)close(ends[0]);
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
        FAIL("the child was ended by signal %d", WTERMSIG(status));
        return 0;
    }
    int exit_status = WEXITSTATUS(status);
    const char start[] = "Fatal Python error: a forked process ";
    if (exit_status == 1 && strncmp(message, start, strlen(start)) == 0
        && strchr(message, '\n') == message + length - 1)
    {
        return 1;
    }
    if (exit_status != 0 || length != 0) {
        FAIL("the child ended with status %d and said: %s",
             exit_status, message);
    }
    return 0;
}

// --- tests: the pool -------------------------------------------------------

static void
check_pool(int count, int pages_left)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, count, pages_left) == 0) {
            int freed = i == MOVED ? count : 0;
            for (int round = 0; round < 3; round++) {
                check_fork(use_arenas_in_child);
                CHECK_EQUAL(pool_available(), pages_left + freed);
            }
        }
        end_test();
    }
}

static void
test_empty_pool(void)
{
    check_pool(6, 0);
}

static void
test_enough_pool(void)
{
    check_pool(6, 8);
}

static void
test_small_pool(void)
{
    check_pool(6, 2);
}

/* As before Linux 5.14, which does not know MADV_POPULATE_WRITE. */
static void
test_old_kernel(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, 1) == 0) {
            let_fail(CALL_POPULATE, 1, 0, EINVAL);
            check_fork(use_arenas_in_child);
        }
        end_test();
    }
}

// --- tests: what costs nothing ---------------------------------------------

static void
check_no_calls(void)
{
    for (int i = 0; i < CALL_KINDS; i++) {
        if (fake.calls[i] != 0) {
            FAIL("%d calls of %s", fake.calls[i], call_names[i]);
        }
    }
}

/* Without an arena on huge pages, or when all was done at the last fork. */
static void
test_nothing_to_do(void)
{
    if (begin_test(MOVED, 2, 0) == 0) {
        check_fork(check_arenas_in_child);
        rearm();
        run_in_child(check_no_calls);
        check_no_calls();
    }
    end_test();
    reset_core();
    rearm();
    fork_real_set_huge_pages(PYMALLOC_HUGEPAGES_OFF);
    void *arena = alloc_arena();
    rearm();
    run_in_child(check_no_calls);
    check_no_calls();
    free_arena(arena);
}

/* vfork() shares the memory, and pays nothing. */
static void
test_vfork(void)
{
    if (begin_test(MOVED, 2, 0) == 0) {
        rearm();
        pid_t child = vfork();
        if (child == 0) {
            _exit(0);
        }
        int status = -1;
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
        check_no_calls();
        check_arenas(0);
    }
    end_test();
}

// --- tests: arenas on THP --------------------------------------------------

static void
check_unadvised(int arena, int is_unadvised)
{
    smaps_entry entry;
    REQUIRE(read_smaps(arenas[arena], &entry) == 0);
    CHECK_EQUAL(entry.unadvised, is_unadvised);
    CHECK_EQUAL(entry.advised_huge, !is_unadvised);
}

static void
check_shared_thp(void)
{
    check_arenas(0);
    for (int i = 0; i < arena_count; i++) {
        check_unadvised(i, 1);
    }
    /* What comes later is not shared. */
    REQUIRE((arenas[arena_count] = (uint64_t *)alloc_arena()) != NULL);
    check_unadvised(arena_count, 0);
    free_arena(arenas[arena_count]);
    (void)hugepages_release_kept();
    check_arenas_in_child();
}

static void
test_thp(void)
{
    reset_core();
    mode = MOVED;
    rearm();
    fork_real_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    for (arena_count = 0; arena_count < 6; arena_count++) {
        arenas[arena_count] = (uint64_t *)alloc_arena();
        REQUIRE(arenas[arena_count] != NULL);
        check_unadvised(arena_count, 0);
    }
    fill_arenas(0);
    for (int i = 0; i < 2; i++) {
        run_in_child(check_shared_thp);
        check_shared_thp();
        fill_arenas(0);
    }
    /* As a rule, they are neighbours. */
    CHECK(fake.calls[CALL_UNADVISE] < 6);
    test_note("%d calls for 6 arenas", fake.calls[CALL_UNADVISE]);
    free_arenas();
}

// --- tests: what the program sees ------------------------------------------

static sigset_t expected_mask;

static void
ignore_bus_error(int Py_UNUSED(signal_number))
{
}

static void
check_signals(void)
{
    sigset_t mask;
    struct sigaction action;
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    for (int i = 1; i < 32; i++) {
        CHECK_EQUAL(sigismember(&mask, i), sigismember(&expected_mask, i));
    }
    CHECK_EQUAL(sigaction(SIGBUS, NULL, &action), 0);
    CHECK(action.sa_handler == ignore_bus_error);
    CHECK(action.sa_flags & SA_RESTART);
}

/* errno, the signal mask and the handler of SIGBUS. */
static void
test_state_is_kept(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, i % 2) == 0) {
            struct sigaction action, saved_action;
            sigset_t mask, saved_mask;
            (void)sigemptyset(&mask);
            (void)sigaddset(&mask, SIGUSR2);
            (void)pthread_sigmask(SIG_BLOCK, &mask, &saved_mask);
            (void)pthread_sigmask(SIG_BLOCK, NULL, &expected_mask);
            memset(&action, 0, sizeof(action));
            action.sa_handler = ignore_bus_error;
            action.sa_flags = SA_RESTART;
            (void)sigaction(SIGBUS, &action, &saved_action);
            errno = UNTOUCHED;
            pid_t child = fork();
            check_signals();
            if (child == 0) {
                _exit(test_failed());
            }
            int status = -1;
            CHECK_EQUAL(waitpid(child, &status, 0), child);
            CHECK_EQUAL(status, 0);
            (void)sigaction(SIGBUS, &saved_action, NULL);
            (void)pthread_sigmask(SIG_SETMASK, &saved_mask, NULL);
        }
        end_test();
    }
}

static volatile sig_atomic_t got_signals;

static void
count_signal(int Py_UNUSED(signal_number))
{
    /* By now the arenas are the child's own, and the copies are gone. */
    CHECK(fake.calls[CALL_MUNMAP] > 0);
    check_arenas(0);
    got_signals++;
}

static void
signal_oneself(void)
{
    (void)kill(getpid(), SIGUSR1);
}

static void
check_signal_in_child(void)
{
    CHECK_EQUAL(got_signals, 1);
    check_arenas(0);
}

/* A signal that the child gets before it owns its arenas is handled after. */
static void
test_early_signal(void)
{
    for (int at = 1; at <= 2; at++) {
        if (begin_test(COPIED, 2, 0) == 0) {
            struct sigaction action, saved_action;
            memset(&action, 0, sizeof(action));
            action.sa_handler = count_signal;
            (void)sigaction(SIGUSR1, &action, &saved_action);
            got_signals = 0;
            fake.event.kind = CALL_MREMAP;
            fake.event.at = at;
            fake.event.function = signal_oneself;
            run_in_child(check_signal_in_child);
            (void)sigaction(SIGUSR1, &saved_action, NULL);
        }
        end_test();
    }
}

static volatile int has_returned;

static void *
fork_when_cancelled(void *Py_UNUSED(data))
{
    (void)pthread_cancel(pthread_self());
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    has_returned = 1;
    /* A cancellation point: fork() is none. */
    (void)waitpid(child, NULL, 0);
    return NULL;
}

static void
cancel_thread_that_forks(void)
{
    pthread_t thread;
    void *result = NULL;
    int files = count_files();
    has_returned = 0;
    REQUIRE(pthread_create(&thread, NULL, fork_when_cancelled, NULL) == 0);
    CHECK_EQUAL(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_EQUAL(has_returned, 1);
    CHECK_EQUAL(count_files(), files);
    run_in_child(check_arenas_in_child);
}

static void
test_cancelled_thread(void)
{
    if (begin_test(COPIED, 2, 4) == 0) {
        before.any_space = 1;
        cancel_thread_that_forks();
        check_arenas(0);
    }
    end_test();
}

/* Handlers of others may use arenas, before ours and after. */
static int uses_handlers;
static void *handler_arena;

static void
allocate_in_handler(void)
{
    if (uses_handlers) {
        if (handler_arena != NULL) {
            free_arena(handler_arena);
        }
        handler_arena = alloc_arena();
        REQUIRE(handler_arena != NULL);
        memset(handler_arena, 1, ARENA_SIZE);
        free_arena(alloc_arena());
        check_arenas(0);
    }
}

static void
test_handlers_allocate(void)
{
    static int is_registered;
    if (!is_registered) {
        is_registered = 1;
        CHECK_EQUAL(pthread_atfork(allocate_in_handler, allocate_in_handler,
                                   allocate_in_handler), 0);
    }
    for (int i = 0; i < MODES; i++) {
        for (int pages_left = 0; pages_left < 4; pages_left += 3) {
            if (begin_test((fork_mode)i, 2, pages_left) == 0) {
                handler_arena = NULL;
                uses_handlers = 1;
                run_in_child(check_arenas_in_child);
                run_in_child(check_arenas_in_child);
                uses_handlers = 0;
                check_arenas(0);
                free_arena(handler_arena);
            }
            end_test();
        }
    }
}

// --- tests: the parent's threads -------------------------------------------

static int writers_stop;
static uint32_t writers_generation;

/* Write everywhere, all the time. */
static void *
write_arenas(void *data)
{
    uint32_t random_state = test_seed + (uint32_t)(uintptr_t)data;
    uint32_t generation = 1;
    while (!_Py_atomic_load_int(&writers_stop)) {
        /* Each page in turn, each time at another place. */
        generation = generation < 1000 ? generation + 1 : 1;
        for (int i = 0; i < arena_count; i++) {
            for (size_t j = 0; j < ARENA_WORDS; j += 512) {
                size_t index = j + test_random(&random_state) % 512;
                _Py_atomic_store_uint64_relaxed(&arenas[i][index],
                                                word(i, index, generation));
            }
        }
    }
    return NULL;
}

#define WRITERS 2
static pthread_t writers[WRITERS];

static void
start_writers(void)
{
    _Py_atomic_store_int(&writers_stop, 0);
    writers_generation = 1000;
    for (size_t i = 0; i < WRITERS; i++) {
        CHECK_EQUAL(pthread_create(&writers[i], NULL, write_arenas,
                                   (void *)(i + 1)), 0);
    }
}

static void
stop_writers(void)
{
    _Py_atomic_store_int(&writers_stop, 1);
    for (int i = 0; i < WRITERS; i++) {
        (void)pthread_join(writers[i], NULL);
    }
}

static void
check_written_arenas(void)
{
    check_generations(0, writers_generation);
    fill_arenas(7);
    check_arenas(7);
}

/* They are real threads: nothing is faked. */
static void
test_writing_threads(void)
{
    for (int pages_left = 0; pages_left <= 4; pages_left += 2) {
        if (begin_test(COPIED, 4, pages_left) == 0) {
            fake.has_threads = 0;
            before.any_space = 1;
            start_writers();
            for (int i = 0; i < test_rounds(20) && !test_failed(); i++) {
                run_in_child(check_written_arenas);
            }
            stop_writers();
            check_generations(0, writers_generation);
            check_kinds(4, 0, 0);
        }
        end_test();
    }
}

/* The child, with threads that write, forks. */
static void
fork_again(void)
{
    start_writers();
    for (int i = 0; i < test_rounds(10) && !test_failed(); i++) {
        run_in_child(check_written_arenas);
    }
    stop_writers();
    check_generations(0, writers_generation);
}

static void
test_nested_forks(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 4, 4 - i) == 0) {
            check_fork(fork_again);
        }
        end_test();
    }
}

/* Children of children, each of which writes before and after. */
static int depth;

static void
fork_deep(void)
{
    uint32_t generation = (uint32_t)depth;
    check_arenas(generation);
    depth++;
    fill_arenas(generation + 1);
    if (depth < 5) {
        run_in_child(fork_deep);
        check_arenas(generation + 1);
    }
}

static void
test_deep_forks(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, 2 * i) == 0) {
            depth = 0;
            check_fork(fork_deep);
        }
        end_test();
    }
}

/* All threads fork, while nobody writes. */
static void
fork_in_thread(int Py_UNUSED(thread))
{
    for (int i = 0; i < test_rounds(10); i++) {
        run_in_child(check_arenas_in_child);
    }
}

static void
test_forks_from_threads(void)
{
    if (begin_test(COPIED, 2, 3) == 0) {
        before.any_space = 1;
        test_run_threads(4, fork_in_thread);
        check_arenas(0);
    }
    end_test();
}

// --- tests: a child that does not go on ------------------------------------

static void
stop_oneself(void)
{
    (void)kill(getpid(), SIGSTOP);
}

static void
kill_oneself(void)
{
    (void)kill(getpid(), SIGKILL);
}

/* Whatever the parent does then, and with no page left its writes take pages
   from the child, which does not see that.  Return whether the child came to
   the call. */
static int
check_stopped(int is_killed)
{
    pid_t child = fork();
    if (child == 0) {
        check_arenas(0);
        fill_arenas(2);
        check_arenas(2);
        (void)fflush(stdout);
        _exit(test_failed());
    }
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, WUNTRACED), child);
    int is_reached = WIFSTOPPED(status) || WIFSIGNALED(status);
    fill_arenas(1);
    check_arenas(1);
    if (WIFSTOPPED(status)) {
        CHECK_EQUAL(kill(child, SIGCONT), 0);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        check_arenas(1);
    }
    CHECK_EQUAL(status, is_killed && is_reached ? SIGKILL : 0);
    check_kinds_after_fork();
    return is_reached;
}

/* At each call, until the child does not come that far. */
static void
at_each_call(void (*event)(void))
{
    static const call_kind kinds[] = {CALL_MREMAP, CALL_MUNMAP};
    int points = 0;
    for (int i = 0; i < MODES * 4; i++) {
        int is_reached = 1;
        for (int at = 1; is_reached && !test_failed(); at++) {
            is_reached = 0;
            if (begin_test((fork_mode)(i % MODES), 3, i / MODES % 2 * 3) == 0)
            {
                fake.event.kind = kinds[i / MODES / 2];
                fake.event.at = at;
                fake.event.function = event;
                is_reached = check_stopped(event == kill_oneself);
                points += is_reached;
            }
            end_test();
            if (test_failed()) {
                FAIL("at call %d, case %d", at, i);
            }
        }
    }
    test_note("%d points", points);
}

static void
test_child_is_killed(void)
{
    at_each_call(kill_oneself);
}

static void
test_child_is_stopped(void)
{
    at_each_call(stop_oneself);
}

// --- tests: calls that fail ------------------------------------------------

/* Each call of that kind in turn: it alone, or all from there on.  Return how
   many children have exited with a message. */
static int
check_faults(side where, call_kind kind, int error, int *points)
{
    int exits = 0;
    for (int i = 0; i < 2 * MODES; i++) {
        int has_failed = 1;
        for (int at = 1; has_failed && !test_failed(); at++) {
            has_failed = 0;
            if (begin_test((fork_mode)(i % MODES), 3, i % 2 * 2) == 0) {
                before.any_space = kind == CALL_MUNMAP;
                let_fail(kind, at, i / MODES, error);
                fake.fault[kind].where = where;
                exits += fork_with_message(check_arenas_in_child);
                has_failed = *fake.has_failed;
                *points += has_failed;
                disarm();
                check_arenas(0);
                check_kinds((int)hugepages_stats.kinds[HUGEPAGES_EXPLICIT].now,
                            (int)hugepages_stats.kinds[HUGEPAGES_THP].now,
                            (int)hugepages_stats.kinds[HUGEPAGES_PLAIN].now);
            }
            end_test();
            if (test_failed()) {
                FAIL("%s from number %d on: %s, case %d", call_names[kind],
                     at, strerror(error), i);
            }
        }
    }
    return exits;
}

static void
test_each_call_fails_in_parent(void)
{
    int points = 0;
    /* Where there is no memory for the copies. */
    CHECK(check_faults(IN_PARENT, CALL_MMAP, ENOMEM, &points) > 0);
    CHECK(check_faults(IN_PARENT, CALL_ADVISE, ENOMEM, &points) > 0);
    CHECK_EQUAL(check_faults(IN_PARENT, CALL_MREMAP, ENOMEM, &points), 0);
    /* Before Linux 6.7, aligned memory is cut out of more. */
    (void)check_faults(IN_PARENT, CALL_MUNMAP, ENOMEM, &points);
    CHECK_EQUAL(check_faults(IN_PARENT, CALL_UNADVISE, EINVAL, &points), 0);
    CHECK_EQUAL(check_faults(IN_PARENT, CALL_STAT, EACCES, &points), 0);
    CHECK_EQUAL(check_faults(IN_PARENT, CALL_OPEN, EMFILE, &points), 0);
    test_note("%d points", points);
}

static void
test_each_call_fails_in_child(void)
{
    int points = 0;
    CHECK_EQUAL(check_faults(IN_CHILD, CALL_MREMAP, ENOMEM, &points), 0);
    CHECK_EQUAL(check_faults(IN_CHILD, CALL_MREMAP, EPERM, &points), 0);
    CHECK_EQUAL(check_faults(IN_CHILD, CALL_MUNMAP, ENOMEM, &points), 0);
    test_note("%d points", points);
}

/* Neither can be moved nor copied once more. */
static void
test_child_has_no_memory(void)
{
    for (int i = COPIED; i < MODES; i++) {
        if (begin_test((fork_mode)i, 3, 3) == 0) {
            let_fail(CALL_MREMAP, 2, 0, ENOMEM);
            let_fail(CALL_MMAP, 1, 0, ENOMEM);
            fake.fault[CALL_MREMAP].where = IN_CHILD;
            fake.fault[CALL_MMAP].where = IN_CHILD;
            CHECK_EQUAL(fork_with_message(check_arenas_in_child), 1);
            check_arenas(0);
        }
        end_test();
    }
}

/* fork() itself fails, for a user who may have no process more. */
static void
fork_without_processes(void)
{
    const struct rlimit none = {0, 0};
    REQUIRE(setrlimit(RLIMIT_NPROC, &none) == 0);
    REQUIRE(setgid(65534) == 0 && setuid(65534) == 0);
    check_arenas(0);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &expected_mask);
    int files = count_files();
    address_space space = read_address_space();
    errno = UNTOUCHED;
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    CHECK_EQUAL(child, -1);
    CHECK_EQUAL(errno, EAGAIN);
    CHECK_EQUAL(count_files(), files);
    CHECK_EQUAL(read_address_space().kib, space.kib);
    sigset_t mask;
    (void)pthread_sigmask(SIG_BLOCK, NULL, &mask);
    CHECK_EQUAL(sigismember(&mask, SIGTERM),
                sigismember(&expected_mask, SIGTERM));
    fill_arenas(1);
    check_arenas(1);
}

static void
test_fork_fails(void)
{
    if (begin_test(MOVED, 2, 2) == 0) {
        check_fork(fork_without_processes);
    }
    end_test();
    if (begin_test(COPIED_PLAIN, 2, 2) == 0) {
        check_fork(fork_without_processes);
    }
    end_test();
}

/* No file descriptor is left. */
static void
fork_without_files(void)
{
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = 0;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < 3; i++) {
        run_in_child(check_arenas_in_child);
    }
    check_arenas(0);
}

static void
test_no_files(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, 2) == 0) {
            check_fork(fork_without_files);
        }
        end_test();
    }
}

/* No address space is left, so that nothing can be copied. */
static void
test_no_address_space(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, 2) == 0) {
            struct rlimit limit, saved_limit;
            address_space space = read_address_space();
            (void)getrlimit(RLIMIT_AS, &limit);
            saved_limit = limit;
            limit.rlim_cur = (rlim_t)space.kib * 1024;
            CHECK_EQUAL(setrlimit(RLIMIT_AS, &limit), 0);
            CHECK_EQUAL(fork_with_message(check_arenas_in_child), 1);
            (void)setrlimit(RLIMIT_AS, &saved_limit);
            check_arenas(0);
            check_kinds(2, 0, 0);
        }
        end_test();
    }
}

// --- tests: nothing leaks --------------------------------------------------

/* A look at each base page is enough: what is wrong with the copy is seen in
   the other tests. */
static void
glance_at_arenas(void)
{
    for (int i = 0; i < arena_count; i++) {
        for (size_t j = 0; j < ARENA_WORDS; j += 509) {
            if (arenas[i][j] != word(i, j, 0)) {
                FAIL("word %zu of arena %d is wrong", j, i);
                return;
            }
        }
        arenas[i][0] = 1;
    }
}

static void
test_many_forks(void)
{
    for (int i = 0; i < MODES; i++) {
        if (begin_test((fork_mode)i, 2, i) == 0) {
            int files = count_files();
            run_in_child(glance_at_arenas);
            address_space space = read_address_space();
            for (int j = 0; j < test_rounds(300) && !test_failed(); j++) {
                run_in_child(glance_at_arenas);
            }
            check_arenas(0);
            check_no_leak(space);
            CHECK_EQUAL(count_files(), files);
        }
        end_test();
    }
}

// --- tests: any moment -----------------------------------------------------

/* Each entry of the table is as the contract of table.c says, and in a child
   none is on explicit pages. */
static void
check_table(int is_child_now)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        if (value <= HUGEPAGES_RESERVED) {
            continue;
        }
        CHECK((value & ~HUGEPAGES_FLAGS) != 0);
        CHECK_EQUAL(((value & HUGEPAGES_IS_EXPLICIT) != 0)
                    + ((value & HUGEPAGES_IS_THP) != 0)
                    + ((value & HUGEPAGES_IS_PLAIN) != 0), 1);
        CHECK(!(is_child_now && (value & HUGEPAGES_IS_EXPLICIT)));
    }
}

enum { BUSY_ARENAS = 6 };
/* An arena is here from after it was taken until before it is given. */
static uint64_t *volatile busy[BUSY_ARENAS];
static uint32_t busy_state;

static void
mark_arena(uint64_t *arena, int index)
{
    for (size_t i = 0; i < ARENA_WORDS; i += 512) {
        arena[i] = word(index, i, 3);
    }
}

static void
check_busy_arenas(void)
{
    for (int i = 0; i < BUSY_ARENAS; i++) {
        uint64_t *arena = busy[i];
        for (size_t j = 0; arena != NULL && j < ARENA_WORDS; j += 512) {
            if (arena[j] != word(i, j, 3)) {
                FAIL("word %zu of arena %d is wrong", j, i);
                return;
            }
        }
    }
}

static void
take_or_give(void)
{
    uint32_t number = test_random(&busy_state);
    int i = (int)(number % BUSY_ARENAS);
    /* As if it had never forked. */
    _Py_atomic_store_uint32_relaxed(&hugepages_state.prefers_thp, 0);
    uint64_t *arena = busy[i];
    if (arena != NULL) {
        busy[i] = NULL;
        free_arena(arena);
    }
    else {
        arena = (uint64_t *)alloc_arena();
        REQUIRE(arena != NULL);
        mark_arena(arena, i);
        busy[i] = arena;
    }
}

static void
give_all(void)
{
    for (int i = 0; i < BUSY_ARENAS; i++) {
        uint64_t *arena = busy[i];
        busy[i] = NULL;
        if (arena != NULL) {
            free_arena(arena);
        }
    }
}

/* Of the process that forks. */
static volatile sig_atomic_t forks;
static volatile sig_atomic_t is_child;

static void
set_timer(void)
{
    struct itimerval timer = {{0, 0}, {0, 0}};
    timer.it_value.tv_usec = 50 + (suseconds_t)(forks * 37 % 400);
    (void)setitimer(ITIMER_REAL, &timer, NULL);
}

/* In any moment of the program.  One child in two goes on with what it was
   about. */
static void
fork_in_handler(int Py_UNUSED(signal_number))
{
    int saved_errno = errno;
    if (is_child) {
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        is_child = 1;
        check_table(1);
        check_busy_arenas();
        if (forks % 2 == 0) {
            for (int i = 0; i < 4; i++) {
                void *arena = alloc_arena();
                if (arena != NULL) {
                    memset(arena, 1, ARENA_SIZE);
                    free_arena(arena);
                }
            }
            _exit(test_failed());
        }
        errno = saved_errno;
        return;
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) {
        FAIL("after %d forks a child ended with status %#x", (int)forks,
             (unsigned int)status);
    }
    forks++;
    errno = saved_errno;
    set_timer();
}

static void
fork_at_any_moment(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = fork_in_handler;
    action.sa_flags = SA_RESTART;
    REQUIRE(sigaction(SIGALRM, &action, NULL) == 0);
    forks = 0;
    is_child = 0;
    set_timer();
    while (forks < test_rounds(150) && !is_child && !test_failed()) {
        take_or_give();
    }
    if (is_child) {
        for (int i = 0; i < 20; i++) {
            take_or_give();
            check_busy_arenas();
        }
    }
    (void)signal(SIGALRM, SIG_IGN);
    check_busy_arenas();
    give_all();
    (void)hugepages_release_kept();
    check_table(is_child);
    _exit(test_failed());
}

static void
test_any_moment(void)
{
    for (int i = 0; i < MODES; i++) {
        for (int pages = 0; pages <= 6; pages += 6) {
            if (begin_test((fork_mode)i, pages, 0) == 0) {
                busy_state = test_seed;
                free_arenas();
                run_in_child(fork_at_any_moment);
                CHECK_EQUAL(pool_available(), pages);
            }
            end_test();
        }
    }
}

/* Another thread forks, while these take and give. */
static int churn_stop;

static void
churn_in_child(void)
{
    check_table(1);
    check_arenas_in_child();
    for (int i = 0; i < 8; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        memset(arena, 1, ARENA_SIZE);
        free_arena(arena);
    }
    check_table(1);
}

static void
churn_or_fork(int thread)
{
    if (thread == 0) {
        for (int i = 0; i < test_rounds(100) && !test_failed(); i++) {
            _Py_atomic_store_uint32_relaxed(&hugepages_state.prefers_thp, 0);
            run_in_child(churn_in_child);
        }
        _Py_atomic_store_int(&churn_stop, 1);
        return;
    }
    while (!_Py_atomic_load_int(&churn_stop)) {
        uint64_t *some[3];
        for (int i = 0; i < 3; i++) {
            some[i] = (uint64_t *)alloc_arena();
            REQUIRE(some[i] != NULL);
            some[i][0] = (uint64_t)thread;
            some[i][ARENA_WORDS - 1] = (uint64_t)thread;
        }
        for (int i = 0; i < 3; i++) {
            CHECK_EQUAL(some[i][0], thread);
            CHECK_EQUAL(some[i][ARENA_WORDS - 1], thread);
            free_arena(some[i]);
        }
    }
}

static void
test_churning_threads(void)
{
    for (int pages_left = 0; pages_left <= 8; pages_left += 4) {
        if (begin_test(COPIED, 2, pages_left) == 0) {
            before.any_space = 1;
            _Py_atomic_store_int(&churn_stop, 0);
            test_run_threads(4, churn_or_fork);
            (void)hugepages_release_kept();
            check_arenas(0);
            check_kinds(2, 0, 0);
            CHECK_EQUAL(pool_available(), pages_left);
        }
        end_test();
    }
}

const testhugepages_test testhugepages_fork_tests[] = {
    {"fork_empty_pool", test_empty_pool},
    {"fork_enough_pool", test_enough_pool},
    {"fork_small_pool", test_small_pool},
    {"fork_old_kernel", test_old_kernel},
    {"fork_nothing_to_do", test_nothing_to_do},
    {"fork_vfork", test_vfork},
    {"fork_thp", test_thp},
    {"fork_state_is_kept", test_state_is_kept},
    {"fork_early_signal", test_early_signal},
    {"fork_cancelled_thread", test_cancelled_thread},
    {"fork_handlers_allocate", test_handlers_allocate},
    {"fork_writing_threads", test_writing_threads},
    {"fork_nested", test_nested_forks},
    {"fork_deep", test_deep_forks},
    {"fork_from_threads", test_forks_from_threads},
    {"fork_child_is_killed", test_child_is_killed},
    {"fork_child_is_stopped", test_child_is_stopped},
    {"fork_each_call_fails_in_parent", test_each_call_fails_in_parent},
    {"fork_each_call_fails_in_child", test_each_call_fails_in_child},
    {"fork_child_has_no_memory", test_child_has_no_memory},
    {"fork_fails", test_fork_fails},
    {"fork_no_files", test_no_files},
    {"fork_no_address_space", test_no_address_space},
    {"fork_many", test_many_forks},
    {"fork_any_moment", test_any_moment},
    {"fork_churning_threads", test_churning_threads},
    {NULL, NULL}
};
