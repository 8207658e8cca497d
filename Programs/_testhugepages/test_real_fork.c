/* Tests of fork() with arenas: the core over os_linux.c and os_linux_fork.c,
   with real forks and a real pool. */

#define TEST_PREFIX real_fork
#include "linux_calls.h"
#include "arenas.h"

#include <pthread.h>              // pthread_atfork()
#include <signal.h>               // sigaction()
#include <sys/time.h>             // setitimer()
#include <sys/wait.h>             // waitpid()

/* What becomes of arenas on explicit pages. */
typedef enum {
    MOVED,              // the only thread moves them to THP
    COPIED,             // the child gets copies on THP
    COPIED_PLAIN,       // the child gets plain copies
    MODES
} fork_mode;

/* Of the whole program, before and after a test. */
static struct {
    int is_begun;
    address_space space;
    int files;
    long pool;
    /* Nonzero if the address space is not compared: the C library keeps the
       stacks of threads, or unmapping has failed. */
    int any_space;
} before;

static fork_mode mode;

/* Count calls from here on, and let all of them succeed. */
static void
rearm(void)
{
    disarm();
    fake.has_threads = mode == COPIED;
}

static void
free_all(void)
{
    free_arenas();
    (void)hugepages_release_kept();
    CHECK_EQUAL(hugepages_table.count, 0);
}

/* Free what a test has, and see that nothing is left. */
static void
end_forks(void)
{
    if (before.is_begun) {
        before.is_begun = 0;
        disarm();
        free_all();
        if (!before.any_space) {
            check_no_leak(before.space);
        }
        CHECK_EQUAL(count_files(), before.files);
        CHECK_EQUAL(pool_available(), before.pool);
    }
}

static void
end_test(void)
{
    end_forks();
    restore_machine();
}

#undef TEST
#define TEST(name) TEST_CASE(name, ON_EACH_KERNEL, NULL, end_test)

/* End what was begun before, make exactly this many pages available and put
   arenas on this many of them.  Return 0, or -1 after the test was skipped or
   has failed. */
static int
begin_forks(fork_mode new_mode, int count, int pages_left)
{
    end_forks();
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
    before.is_begun = 1;
    _PyMem_SetHugePages(mode == COPIED_PLAIN ? PYMALLOC_HUGEPAGES_HUGETLB
                                             : PYMALLOC_HUGEPAGES_ON);
    CHECK_EQUAL(add_arenas(count), count);
    for (int i = 0; i < arena_count; i++) {
        check_hugetlb(arenas[i]);
    }
    CHECK_EQUAL(pool_available(), pages_left);
    return test_failed() ? -1 : 0;
}

/* The same, and leave the test if that cannot be. */
#define BEGIN(mode, count, pages_left) \
    do { \
        if (begin_forks(mode, count, pages_left) < 0) { \
            return; \
        } \
    } while (0)

/* A test in each mode, which BEGIN() begins; pages_left may depend on i, the
   mode. */
#define TEST_MODES(name, count, pages_left) \
    static void run_ ## name(void); \
    TEST(name) \
    { \
        for (fork_mode i = 0; i < MODES; i++) { \
            BEGIN(i, count, pages_left); \
            run_ ## name(); \
        } \
    } \
    static void \
    run_ ## name(void)

/* Check that this many of the arenas are on these pages, that the table knows
   which, and the figures. */
static void
check_kinds(int explicit_count, int thp_count, int plain_count)
{
    int counts[HUGEPAGES_KINDS] = {0};
    for (int i = 0; i < arena_count; i++) {
        smaps_entry entry = need_smaps(arenas[i]);
        uintptr_t value;
        hugepages_kind kind =
            hugepages_find_entry(arenas[i], &value) == NULL ? HUGEPAGES_PLAIN
            : hugepages_kind_of(value);
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
    check_figures(explicit_count, thp_count, plain_count);
}

static void
check_kinds_after_fork(void)
{
    if (getpid() == fake.parent && mode != MOVED) {
        check_kinds(arena_count, 0, 0);
    }
    else if (mode == COPIED_PLAIN) {
        check_kinds(0, 0, arena_count);
    }
    else {
        check_kinds(0, arena_count, 0);
    }
}

// --- children ---------------------------------------------------------------

/* What a child does: find everything as it was, write, free, map again. */
static void
use_arenas_in_child(void)
{
    check_arenas(0);
    check_kinds_after_fork();
    fill_arenas(1);
    check_arenas(1);
    int count = arena_count;
    free_all();
    use_new_arenas(count);
}

static void
check_arenas_in_child(void)
{
    check_arenas(0);
    fill_arenas(1);
    check_arenas(1);
}

/* The parent is as before. */
static void
check_parent(void)
{
    check_arenas(0);
    check_kinds_after_fork();
}

/* The child does it, and the parent is as before. */
static void
check_fork(void (*function)(void))
{
    run_in_child(function);
    check_parent();
}

/* Fork a child that may fail only with a message of fork.c.  Return whether it
   did. */
static int
fork_with_message(void (*function)(void))
{
    char message[1000];
    int saved_stderr = dup(STDERR_FILENO);
    int said = memfd_create("stderr", 0);
    if (saved_stderr < 0 || said < 0) {
        FAIL("no files: %s", strerror(errno));
        return 0;
    }
    (void)fflush(stdout);
    (void)dup2(said, STDERR_FILENO);
    pid_t child = fork();
    if (child == 0) {
        function();
        (void)fflush(stdout);
        /* 1 is the status of the message. */
        _exit(test_failed() ? 2 : 0);
    }
    (void)dup2(saved_stderr, STDERR_FILENO);
    (void)close(saved_stderr);
    int status = wait_for(child);
    ssize_t got = pread(said, message, sizeof(message) - 1, 0);
    size_t length = got > 0 ? (size_t)got : 0;
    message[length] = '\0';
    (void)close(said);
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

// --- the pool ---------------------------------------------------------------

static void
check_pool(int count, int pages_left)
{
    for (fork_mode i = 0; i < MODES; i++) {
        BEGIN(i, count, pages_left);
        int freed = i == MOVED ? count : 0;
        for (int round = 0; round < 3; round++) {
            check_fork(use_arenas_in_child);
            CHECK_EQUAL(pool_available(), pages_left + freed);
        }
    }
}

TEST_CALL(real_fork_empty_pool, check_pool(6, 0))
TEST_CALL(real_fork_enough_pool, check_pool(6, 8))
TEST_CALL(real_fork_small_pool, check_pool(6, 2))

/* As before Linux 5.14, which does not know MADV_POPULATE_WRITE. */
TEST_MODES(real_fork_old_kernel, 2, 1)
{
    let_fail(CALL_POPULATE, 1, 0, EINVAL);
    check_fork(use_arenas_in_child);
}

// --- what costs nothing -----------------------------------------------------

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
TEST(real_fork_nothing_to_do)
{
    BEGIN(MOVED, 2, 0);
    check_fork(check_arenas_in_child);
    rearm();
    run_in_child(check_no_calls);
    check_no_calls();
    end_forks();

    reset_core();
    rearm();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    void *arena = alloc_arena();
    rearm();
    run_in_child(check_no_calls);
    check_no_calls();
    free_arena(arena);
}

/* vfork() shares the memory, and pays nothing. */
TEST(real_fork_vfork)
{
    BEGIN(MOVED, 2, 0);
    rearm();
    pid_t child = vfork();
    if (child == 0) {
        _exit(0);
    }
    CHECK_EQUAL(wait_for(child), 0);
    check_no_calls();
    check_arenas(0);
}

// --- arenas on THP ----------------------------------------------------------

static void
check_unadvised(int arena, int is_unadvised)
{
    smaps_entry entry = need_smaps(arenas[arena]);
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

TEST(real_fork_thp)
{
    reset_core();
    mode = MOVED;
    rearm();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    CHECK_EQUAL(add_arenas(6), 6);
    for (int i = 0; i < arena_count; i++) {
        check_unadvised(i, 0);
    }
    for (int i = 0; i < 2; i++) {
        run_in_child(check_shared_thp);
        check_shared_thp();
        fill_arenas(0);
    }
    /* As a rule, they are neighbours. */
    CHECK(fake.calls[CALL_UNADVISE] < 6);
    test_note("%d calls for 6 arenas", fake.calls[CALL_UNADVISE]);
    free_all();
}

// --- what the program sees --------------------------------------------------

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
TEST_MODES(real_fork_state_is_kept, 2, i % 2)
{
    struct sigaction saved_action;
    sigset_t mask, saved_mask;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGUSR2);
    (void)pthread_sigmask(SIG_BLOCK, &mask, &saved_mask);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &expected_mask);
    set_handler(SIGBUS, ignore_bus_error, &saved_action);
    errno = UNTOUCHED;
    pid_t child = fork();
    check_signals();
    test_end_child();
    CHECK_EQUAL(wait_for(child), 0);
    (void)sigaction(SIGBUS, &saved_action, NULL);
    (void)pthread_sigmask(SIG_SETMASK, &saved_mask, NULL);
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

static int own_signal;

static void
signal_oneself(void)
{
    (void)kill(getpid(), own_signal);
}

/* A signal that the child gets before it owns its arenas is handled after. */
TEST(real_fork_early_signal)
{
    for (int at = 1; at <= 2; at++) {
        struct sigaction saved_action;
        BEGIN(COPIED, 2, 0);
        set_handler(SIGUSR1, count_signal, &saved_action);
        got_signals = 0;
        own_signal = SIGUSR1;
        let_happen(CALL_MREMAP, at, signal_oneself);
        IN_CHILD {
            CHECK_EQUAL(got_signals, 1);
            check_arenas(0);
        }
        (void)sigaction(SIGUSR1, &saved_action, NULL);
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

TEST(real_fork_cancelled_thread)
{
    BEGIN(COPIED, 2, 4);
    before.any_space = 1;
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
    check_arenas(0);
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

TEST(real_fork_handlers_allocate)
{
    static int is_registered;
    if (!is_registered) {
        is_registered = 1;
        CHECK_EQUAL(pthread_atfork(allocate_in_handler, allocate_in_handler,
                                   allocate_in_handler), 0);
    }
    for (int i = 0; i < 2 * MODES; i++) {
        BEGIN((fork_mode)(i % MODES), 2, i / MODES * 3);
        handler_arena = NULL;
        uses_handlers = 1;
        run_in_child(check_arenas_in_child);
        run_in_child(check_arenas_in_child);
        uses_handlers = 0;
        check_arenas(0);
        free_arena(handler_arena);
    }
}

// --- the parent's threads ---------------------------------------------------

enum { WRITERS = 2, LAST_GENERATION = 1000 };
static int writers_stop;

/* Write everywhere, all the time. */
static void *
write_arenas(void *data)
{
    uint32_t random_state = test_seed + (uint32_t)(uintptr_t)data;
    uint32_t generation = 1;
    while (!_Py_atomic_load_int(&writers_stop)) {
        /* Each page in turn, each time at another place. */
        generation = generation < LAST_GENERATION ? generation + 1 : 1;
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

static void
check_written_arenas(void)
{
    check_generations(0, LAST_GENERATION);
    fill_arenas(7);
    check_arenas(7);
}

/* Fork while they write. */
static void
fork_with_writers(int count)
{
    pthread_t writers[WRITERS];
    _Py_atomic_store_int(&writers_stop, 0);
    for (size_t i = 0; i < WRITERS; i++) {
        CHECK_EQUAL(pthread_create(&writers[i], NULL, write_arenas,
                                   (void *)(i + 1)), 0);
    }
    for (int i = 0; i < test_rounds(count) && !test_failed(); i++) {
        run_in_child(check_written_arenas);
    }
    _Py_atomic_store_int(&writers_stop, 1);
    for (int i = 0; i < WRITERS; i++) {
        (void)pthread_join(writers[i], NULL);
    }
    check_generations(0, LAST_GENERATION);
}

/* They are real threads: nothing is faked. */
TEST(real_fork_writing_threads)
{
    for (int pages_left = 0; pages_left <= 4; pages_left += 2) {
        BEGIN(COPIED, 4, pages_left);
        fake.has_threads = 0;
        before.any_space = 1;
        fork_with_writers(20);
        check_kinds(4, 0, 0);
    }
}

/* The child, with threads that write, forks. */
TEST_MODES(real_fork_nested, 4, 4 - (int)i)
{
    IN_CHILD {
        fork_with_writers(10);
    }
    check_parent();
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

TEST_MODES(real_fork_deep, 2, 2 * (int)i)
{
    depth = 0;
    check_fork(fork_deep);
}

/* All threads fork, while nobody writes. */
static void
fork_in_thread(int Py_UNUSED(thread))
{
    for (int i = 0; i < test_rounds(10); i++) {
        run_in_child(check_arenas_in_child);
    }
}

TEST(real_fork_from_threads)
{
    BEGIN(COPIED, 2, 3);
    before.any_space = 1;
    test_run_threads(4, fork_in_thread);
    check_arenas(0);
}

// --- a child that does not go on --------------------------------------------

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
        test_end_child();
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

/* At each call, until the child makes no such call any more. */
static void
at_each_call(int signal_number)
{
    static const call_kind kinds[] = {CALL_MREMAP, CALL_MUNMAP};
    int points = 0;
    for (int i = 0; i < MODES * 4; i++) {
        int is_reached = 1;
        for (int at = 1; is_reached; at++) {
            BEGIN((fork_mode)(i % MODES), 3, i / MODES % 2 * 3);
            own_signal = signal_number;
            let_happen(kinds[i / MODES / 2], at, signal_oneself);
            is_reached = check_stopped(signal_number == SIGKILL);
            points += is_reached;
            end_forks();
            if (test_failed()) {
                FAIL("at call %d, case %d", at, i);
                return;
            }
        }
    }
    test_note("%d points", points);
}

TEST_CALL(real_fork_child_is_killed, at_each_call(SIGKILL))
TEST_CALL(real_fork_child_is_stopped, at_each_call(SIGSTOP))

// --- calls that fail --------------------------------------------------------

/* Each call of that kind in turn: it alone, or all from there on.  Return how
   many children have exited with a message. */
static int
check_faults(side where, call_kind kind, int error, int *points)
{
    int exits = 0;
    for (int i = 0; i < 2 * MODES; i++) {
        int has_failed = 1;
        for (int at = 1; has_failed; at++) {
            if (begin_forks((fork_mode)(i % MODES), 3, i % 2 * 2) < 0) {
                return exits;
            }
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
            end_forks();
            if (test_failed()) {
                FAIL("%s from number %d on: %s, case %d", call_names[kind],
                     at, strerror(error), i);
                return exits;
            }
        }
    }
    return exits;
}

TEST(real_fork_each_call_fails_in_parent)
{
    int points = 0;
    /* Where there is no memory for the copies. */
    CHECK(check_faults(THE_PARENT, CALL_MMAP, ENOMEM, &points) > 0);
    CHECK(check_faults(THE_PARENT, CALL_ADVISE, ENOMEM, &points) > 0);
    CHECK_EQUAL(check_faults(THE_PARENT, CALL_MREMAP, ENOMEM, &points), 0);
    /* Before Linux 6.7, aligned memory is cut out of more. */
    (void)check_faults(THE_PARENT, CALL_MUNMAP, ENOMEM, &points);
    CHECK_EQUAL(check_faults(THE_PARENT, CALL_UNADVISE, EINVAL, &points), 0);
    CHECK_EQUAL(check_faults(THE_PARENT, CALL_STAT, EACCES, &points), 0);
    CHECK_EQUAL(check_faults(THE_PARENT, CALL_OPEN, EMFILE, &points), 0);
    test_note("%d points", points);
}

TEST(real_fork_each_call_fails_in_child)
{
    int points = 0;
    CHECK_EQUAL(check_faults(THE_CHILD, CALL_MREMAP, ENOMEM, &points), 0);
    CHECK_EQUAL(check_faults(THE_CHILD, CALL_MREMAP, EPERM, &points), 0);
    CHECK_EQUAL(check_faults(THE_CHILD, CALL_MUNMAP, ENOMEM, &points), 0);
    test_note("%d points", points);
}

/* Neither can be moved nor copied once more. */
TEST(real_fork_child_has_no_memory)
{
    for (fork_mode i = COPIED; i < MODES; i++) {
        BEGIN(i, 3, 3);
        let_fail(CALL_MREMAP, 2, 0, ENOMEM);
        let_fail(CALL_MMAP, 1, 0, ENOMEM);
        fake.fault[CALL_MREMAP].where = THE_CHILD;
        fake.fault[CALL_MMAP].where = THE_CHILD;
        CHECK_EQUAL(fork_with_message(check_arenas_in_child), 1);
        check_arenas(0);
    }
}

/* fork() itself fails, for a user whose processes are at the limit. */
static void
fork_without_processes(void)
{
    (void)set_limit(RLIMIT_NPROC, 0);
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

TEST(real_fork_fails)
{
    BEGIN(MOVED, 2, 2);
    check_fork(fork_without_processes);
    BEGIN(COPIED_PLAIN, 2, 2);
    check_fork(fork_without_processes);
}

/* No file descriptor is left. */
TEST_MODES(real_fork_no_files, 2, 2)
{
    IN_CHILD {
        (void)set_limit(RLIMIT_NOFILE, 0);
        for (int j = 0; j < 3; j++) {
            run_in_child(check_arenas_in_child);
        }
        check_arenas(0);
    }
    check_parent();
}

/* No address space is left, so that nothing can be copied. */
TEST_MODES(real_fork_no_address_space, 2, 2)
{
    rlim_t size = (rlim_t)read_address_space().kib * 1024;
    rlim_t saved_limit = set_limit(RLIMIT_AS, size);
    CHECK_EQUAL(fork_with_message(check_arenas_in_child), 1);
    (void)set_limit(RLIMIT_AS, saved_limit);
    check_arenas(0);
    check_kinds(2, 0, 0);
}

// --- nothing leaks ----------------------------------------------------------

TEST_MODES(real_fork_many, 2, (int)i)
{
    int files = count_files();
    run_in_child(check_arenas_in_child);
    address_space space = read_address_space();
    for (int j = 0; j < test_rounds(300) && !test_failed(); j++) {
        run_in_child(check_arenas_in_child);
    }
    check_arenas(0);
    check_no_leak(space);
    CHECK_EQUAL(count_files(), files);
}

// --- any moment -------------------------------------------------------------

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
        for (size_t j = 0; j < ARENA_WORDS; j += 512) {
            arena[j] = word(i, j, 3);
        }
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
            use_new_arenas(4);
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
    set_handler(SIGALRM, fork_in_handler, NULL);
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

TEST(real_fork_any_moment)
{
    for (fork_mode i = 0; i < MODES; i++) {
        for (int pages = 0; pages <= 6; pages += 6) {
            BEGIN(i, pages, 0);
            busy_state = test_seed;
            free_all();
            run_in_child(fork_at_any_moment);
            CHECK_EQUAL(pool_available(), pages);
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
    use_new_arenas(8);
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

TEST(real_fork_churning_threads)
{
    for (int pages_left = 0; pages_left <= 8; pages_left += 4) {
        BEGIN(COPIED, 2, pages_left);
        before.any_space = 1;
        _Py_atomic_store_int(&churn_stop, 0);
        test_run_threads(4, churn_or_fork);
        (void)hugepages_release_kept();
        check_arenas(0);
        check_kinds(2, 0, 0);
        CHECK_EQUAL(pool_available(), pages_left);
    }
}
