/* Tests of fork() with arenas on explicit pages: arena.c and fork.c over
   os_linux.c and os_linux_fork.c, with real forks and a real pool.

   Each call of these files to the kernel, and each copy, goes through a
   function of this file.  It can make the call fail, in the parent or in the
   child, or do something in the child at that moment: be killed, be stopped,
   or have a thread of the parent take its pages away.

   Each word of an arena tells where it is and which generation wrote it, so
   every wrong byte is seen, and what comes from before the fork is told from
   what came after. */

#include "_testhugepages.h"
#include "_testhugepages_system.h"

#include <dirent.h>               // opendir()
#include <errno.h>                // errno
#include <fcntl.h>                // fcntl()
#include <poll.h>                 // poll()
#include <pthread.h>              // pthread_atfork()
#include <sched.h>                // sched_yield()
#include <setjmp.h>               // sigsetjmp()
#include <signal.h>               // sigaction()
#include <stdarg.h>               // va_list
#include <sys/mman.h>             // mmap()
#include <sys/prctl.h>            // prctl()
#include <sys/resource.h>         // setrlimit()
#include <sys/syscall.h>          // SYS_rt_sigprocmask
#include <sys/wait.h>             // waitpid()
#include <time.h>                 // nanosleep()
#include <unistd.h>               // fork()

// --- the calls to the kernel -----------------------------------------------

typedef enum {
    CALL_MMAP,
    CALL_MUNMAP,
    CALL_MREMAP,
    CALL_MPROTECT,
    CALL_POPULATE,
    CALL_ADVISE_HUGE,
    CALL_PIPE,
    CALL_COPY,
    CALL_SLEEP,
    CALL_KINDS
} call_kind;

static const char *const call_names[CALL_KINDS] = {
    "mmap", "munmap", "mremap", "mprotect", "MADV_POPULATE_WRITE",
    "MADV_HUGEPAGE", "pipe2", "memcpy", "nanosleep"
};

typedef enum {IN_PARENT, IN_CHILD} side;

/* What both processes see. */
typedef struct {
    /* A call has failed that should. */
    int failed;
    /* The child has come to the call where something is to happen, and may go
       on. */
    int reached;
    int go_on;
} meeting;

static struct {
    pid_t parent;
    /* Calls of this process since arm(), or since the fork. */
    int calls[CALL_KINDS];
    int counts_child;
    /* From this call on, from 1, so many fail (0: all); at 0: none does. */
    struct {
        side side;
        call_kind kind;
        int at;
        int count;
        int error;
    } fault;
    /* At this call of the child: a signal that it sends itself, with that
       code if it is not 0; or signal 0: it lets the parent's thread do what it
       wants; at 0: nothing. */
    struct {
        call_kind kind;
        int at;
        int signal;
        int code;
    } event;
    /* Nonzero: the parent's time is up as soon as the child is stopped. */
    int no_patience;
    int timeouts;
    meeting *meeting;
} fake;

static void
wait_until(const int *flag)
{
    while (!_Py_atomic_load_int(flag)) {
        (void)sched_yield();
    }
}

static void
happen(void)
{
    if (fake.event.code != 0) {
        siginfo_t info;
        memset(&info, 0, sizeof(info));
        info.si_signo = fake.event.signal;
        info.si_code = fake.event.code;
        CHECK_EQUAL(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(),
                            fake.event.signal, &info), 0);
    }
    else if (fake.event.signal != 0) {
        (void)kill(getpid(), fake.event.signal);
    }
    else {
        _Py_atomic_store_int(&fake.meeting->reached, 1);
        wait_until(&fake.meeting->go_on);
    }
}

/* Is this call to fail? */
static int
is_failing(call_kind kind)
{
    side here = getpid() == fake.parent ? IN_PARENT : IN_CHILD;
    if (here == IN_CHILD && !fake.counts_child) {
        memset(fake.calls, 0, sizeof(fake.calls));
        fake.counts_child = 1;
    }
    int number = _Py_atomic_add_int(&fake.calls[kind], 1) + 1;
    if (here == IN_CHILD && fake.event.kind == kind
        && fake.event.at == number)
    {
        happen();
    }
    if (fake.fault.at == 0 || fake.fault.kind != kind
        || fake.fault.side != here || number < fake.fault.at
        || (fake.fault.count != 0
            && number >= fake.fault.at + fake.fault.count))
    {
        return 0;
    }
    _Py_atomic_store_int(&fake.meeting->failed, 1);
    errno = fake.fault.error;
    return 1;
}

static void *
fake_mmap(void *hint, size_t size, int protection, int flags, int fd,
          off_t offset)
{
    return is_failing(CALL_MMAP) ? MAP_FAILED
           : mmap(hint, size, protection, flags, fd, offset);
}

static int
fake_munmap(void *address, size_t size)
{
    return is_failing(CALL_MUNMAP) ? -1 : munmap(address, size);
}

static void *
fake_mremap(void *from, size_t old_size, size_t new_size, int flags, ...)
{
    void *to = NULL;
    if (flags & MREMAP_FIXED) {
        va_list arguments;
        va_start(arguments, flags);
        to = va_arg(arguments, void *);
        va_end(arguments);
    }
    return is_failing(CALL_MREMAP) ? MAP_FAILED
           : mremap(from, old_size, new_size, flags, to);
}

static int
fake_mprotect(void *address, size_t size, int protection)
{
    return is_failing(CALL_MPROTECT) ? -1
           : mprotect(address, size, protection);
}

static int
fake_madvise(void *address, size_t size, int advice)
{
    return is_failing(advice == MADV_HUGEPAGE ? CALL_ADVISE_HUGE
                                              : CALL_POPULATE)
           ? -1 : madvise(address, size, advice);
}

static int
fake_pipe2(int ends[2], int flags)
{
    CHECK(flags & O_CLOEXEC);
    return is_failing(CALL_PIPE) ? -1 : pipe2(ends, flags);
}

static void *
fake_memcpy(void *target, const void *source, size_t size)
{
    (void)is_failing(CALL_COPY);
    return memcpy(target, source, size);
}

static int
fake_nanosleep(const struct timespec *duration, struct timespec *left)
{
    (void)is_failing(CALL_SLEEP);
    return nanosleep(duration, left);
}

static int
is_child_stopped(void)
{
    siginfo_t info;
    info.si_pid = 0;
    return waitid(P_ALL, 0, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0
           && info.si_pid != 0;
}

static int
fake_poll(struct pollfd *line, nfds_t count, int milliseconds)
{
    int ready;
    CHECK(milliseconds > 0);
    if (!fake.no_patience) {
        ready = poll(line, count, milliseconds);
    }
    else {
        do {
            ready = poll(line, count, 1);
        } while (ready == 0 && !is_child_stopped());
    }
    fake.timeouts += (ready == 0);
    return ready;
}

#define mmap fake_mmap
#define munmap fake_munmap
#define mremap fake_mremap
#define mprotect fake_mprotect
#define madvise fake_madvise
#define pipe2 fake_pipe2
#define memcpy fake_memcpy
#define nanosleep fake_nanosleep
#define poll fake_poll
#define _PyMem_SetHugePages fork_set_huge_pages
#define _PyMem_GetHugePagesStats fork_get_stats
#define _PyMem_ReleaseHugePages fork_release
#define _PyMem_HugePagesCollected fork_collected
#include "_testhugepages_room.h"
#include "../Objects/hugepages/fork.c"
#include "../Objects/hugepages/os_linux.c"
#include "../Objects/hugepages/os_linux_fork.c"
#undef mmap
#undef munmap
#undef mremap
#undef mprotect
#undef madvise
#undef pipe2
#undef memcpy
#undef nanosleep
#undef poll

// --- arenas ----------------------------------------------------------------

#define MAX_ARENAS 8
#define ARENA_WORDS (ARENA_SIZE / sizeof(uint64_t))

static uint64_t *arenas[MAX_ARENAS];
static int arena_count;

/* Of the whole program, before and after a test. */
static struct {
    address_space space;
    int files;
    long pool;
    /* Nonzero if the address space is not compared: the C library keeps the
       stacks of threads, or unmapping has failed. */
    int any_space;
} before;

static int
count_files(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL) {
        FAIL("/proc/self/fd: %s", strerror(errno));
        return -1;
    }
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

/* Count calls from here on, and let all of them succeed. */
static void
disarm(void)
{
    meeting *kept = fake.meeting;
    memset(&fake, 0, sizeof(fake));
    fake.parent = getpid();
    fake.meeting = kept;
    memset(kept, 0, sizeof(*kept));
}

static uint64_t
word(int arena, size_t index, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)arena << 24 | index;
}

static void
fill_arena(int arena, uint32_t generation)
{
    for (size_t i = 0; i < ARENA_WORDS; i++) {
        _Py_atomic_store_uint64_relaxed(&arenas[arena][i],
                                        word(arena, i, generation));
    }
}

static void
fill_arenas(uint32_t generation)
{
    for (int i = 0; i < arena_count; i++) {
        fill_arena(i, generation);
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

/* Make exactly so many pages available and put arenas on so many of them.
   Return 0, or -1 after the test was skipped or has failed.  end_test() must
   be called in both cases. */
static int
begin_test(int count, int pages_left)
{
    void *shared = mmap(NULL, sizeof(meeting), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        FAIL("mmap: %s", strerror(errno));
        return -1;
    }
    fake.meeting = (meeting *)shared;
    disarm();
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    skip_first_arenas();
    arena_count = 0;
    if (need_pool(count + pages_left) < 0) {
        return -1;
    }
    before.any_space = 0;
    before.pool = pool_available();
    before.files = count_files();
    before.space = read_address_space();
    fork_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < count; i++) {
        arenas[i] = (uint64_t *)hugepages_alloc(ARENA_SIZE);
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
        hugepages_free(arenas[--arena_count], ARENA_SIZE);
    }
    CHECK_EQUAL(hugepages_explicit->count, 0);
    for (int i = 0; i < HUGEPAGES_PLAIN; i++) {
        hugepages_table *table = &hugepages_state.arenas[i];
        if (table->size > 0) {
            CHECK_EQUAL(munmap(table->addresses, table->size), 0);
            table->addresses = NULL;
            table->size = 0;
        }
    }
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
    (void)munmap(fake.meeting, sizeof(meeting));
}

/* Is the arena on an explicit page, its own? */
static int
is_explicit(const void *arena)
{
    smaps_entry entry;
    if (read_smaps(arena, &entry) < 0) {
        FAIL("%p is not mapped", arena);
        return 0;
    }
    return entry.kernel_page_kib == 2048;
}

/* Check that the table has the arenas which are on explicit pages.  Return
   their number. */
static int
check_table(void)
{
    int count = 0;
    for (int i = 0; i < arena_count; i++) {
        size_t index;
        int found = hugepages_find(arenas[i], &index) == HUGEPAGES_EXPLICIT;
        CHECK_EQUAL(is_explicit(arenas[i]), found);
        if (found) {
            check_hugetlb(arenas[i]);
        }
        CHECK_EQUAL((uintptr_t)arenas[i] % ARENA_SIZE, 0);
        count += found;
    }
    CHECK_EQUAL(hugepages_explicit->count, count);

    _PyMem_HugePagesStats stats;
    fork_get_stats(&stats);
    CHECK_EQUAL(stats.hugetlb.now, count);
    CHECK_EQUAL(stats.thp.now + stats.plain.now, arena_count - count);
    return count;
}

// --- children --------------------------------------------------------------

/* Of the test that is running: how many explicit pages its child gets. */
static int expected_explicit;

/* What a child does: find everything as it was, write, free, map again. */
static void
use_arenas_in_child(void)
{
    check_arenas(0);
    CHECK_EQUAL(check_table(), expected_explicit);
    fill_arenas(1);
    check_arenas(1);
    int count = arena_count;
    long available = pool_available();
    free_arenas();
    CHECK_EQUAL(pool_available(), available + expected_explicit);
    for (int i = 0; i < count; i++) {
        void *arena = hugepages_alloc(ARENA_SIZE);
        REQUIRE(arena != NULL);
        memset(arena, 0xFF, ARENA_SIZE);
        hugepages_free(arena, ARENA_SIZE);
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
    CHECK_EQUAL(check_table(), arena_count);
}

static void
check_pool(int count, int pages_left)
{
    if (begin_test(count, pages_left) == 0) {
        expected_explicit = pages_left < count ? pages_left : count;
        for (int i = 0; i < 3; i++) {
            check_fork(use_arenas_in_child);
            CHECK_EQUAL(pool_available(), pages_left);
        }
        CHECK_EQUAL(fake.timeouts, 0);
    }
    end_test();
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
test_empty_pool(void)
{
    check_pool(6, 0);
}

static void
test_enough_pool(void)
{
    check_pool(6, 6);
    check_pool(6, 8);
}

static void
test_small_pool(void)
{
    check_pool(6, 1);
    check_pool(6, 4);
}

/* As before Linux 5.14, which does not know MADV_POPULATE_WRITE. */
static void
test_old_kernel(void)
{
    for (int pages_left = 0; pages_left <= 4; pages_left += 2) {
        if (begin_test(4, pages_left) == 0) {
            for (int side = IN_PARENT; side <= IN_CHILD; side++) {
                fake.fault.side = side == IN_PARENT ? IN_PARENT : IN_CHILD;
                fake.fault.kind = CALL_POPULATE;
                fake.fault.at = 1;
                fake.fault.error = EINVAL;
                expected_explicit = pages_left;
                check_fork(use_arenas_in_child);
            }
        }
        end_test();
    }
}

/* Without an arena on explicit pages a fork makes no call. */
static void
do_nothing(void)
{
    for (int i = 0; i < CALL_KINDS; i++) {
        CHECK_EQUAL(fake.calls[i], 0);
    }
}

static void
test_no_explicit_arenas(void)
{
    if (begin_test(1, 0) == 0) {
        void *thp = hugepages_alloc(ARENA_SIZE);
        CHECK(thp != NULL);
        hugepages_free(arenas[0], ARENA_SIZE);
        disarm();
        run_in_child(do_nothing);
        do_nothing();
        hugepages_free(thp, ARENA_SIZE);
        arenas[0] = (uint64_t *)hugepages_alloc(ARENA_SIZE);
    }
    end_test();
}

/* vfork() shares the memory, and pays nothing. */
static void
test_vfork(void)
{
    if (begin_test(2, 0) == 0) {
        disarm();
        pid_t child = vfork();
        if (child == 0) {
            _exit(0);
        }
        int status = -1;
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
        do_nothing();
        check_arenas(0);
    }
    end_test();
}

/* In a fork, an arena moves to plain memory if the switch was set to do
   without. */
static void
test_switched_off(void)
{
    if (begin_test(3, 3) == 0) {
        fork_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
        expected_explicit = 0;
        check_fork(check_arenas_in_child);
    }
    end_test();
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

/* errno, the signal mask and the handler of SIGBUS, with pages for the child,
   with none, and with pages that are taken away. */
static void
test_state_is_kept(void)
{
    static const int pages_left[] = {0, 1, 2};
    for (int i = 0; i < 3; i++) {
        if (begin_test(2, pages_left[i]) == 0) {
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
    got_signals++;
}

/* A signal that the child gets before it owns its arenas is handled after. */
static void
check_signal_in_child(void)
{
    CHECK_EQUAL(got_signals, 1);
    check_arenas(0);
}

static void
check_early_signal(int signal_number)
{
    static const call_kind kinds[] = {
        CALL_MMAP, CALL_COPY, CALL_MREMAP, CALL_MUNMAP
    };
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (begin_test(2, 0) == 0) {
            struct sigaction action, saved_action;
            memset(&action, 0, sizeof(action));
            action.sa_handler = count_signal;
            (void)sigaction(signal_number, &action, &saved_action);
            got_signals = 0;
            disarm();
            fake.event.kind = kinds[i];
            fake.event.at = 1;
            fake.event.signal = signal_number;
            run_in_child(check_signal_in_child);
            (void)sigaction(signal_number, &saved_action, NULL);
        }
        end_test();
    }
}

static void
test_early_signal(void)
{
    check_early_signal(SIGUSR1);
    /* Which the child itself catches for some time. */
    check_early_signal(SIGBUS);
}

static void *
fork_when_cancelled(void *Py_UNUSED(data))
{
    (void)pthread_cancel(pthread_self());
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    /* A cancellation point: fork() is none. */
    (void)waitpid(child, NULL, 0);
    return NULL;
}

/* A thread that is ended within fork() would keep the lock. */
static void
cancel_thread_that_forks(void)
{
    pthread_t thread;
    void *result = NULL;
    int files = count_files();
    (void)alarm(60);
    REQUIRE(pthread_create(&thread, NULL, fork_when_cancelled, NULL) == 0);
    CHECK_EQUAL(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_EQUAL(count_files(), files);
    run_in_child(check_arenas_in_child);
}

static void
test_cancelled_thread(void)
{
    if (begin_test(2, 4) == 0) {
        check_fork(cancel_thread_that_forks);
    }
    end_test();
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

static void
test_writing_threads(void)
{
    for (int pages_left = 0; pages_left <= 4; pages_left += 2) {
        if (begin_test(4, pages_left) == 0) {
            before.any_space = 1;
            start_writers();
            for (int i = 0; i < test_rounds(30) && !test_failed(); i++) {
                run_in_child(check_written_arenas);
            }
            stop_writers();
            check_generations(0, writers_generation);
        }
        end_test();
    }
}

/* The child, with threads that write, forks. */
static void
fork_again(void)
{
    CHECK_EQUAL(check_table(), expected_explicit);
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
    for (int pages_left = 0; pages_left <= 8; pages_left += 2) {
        if (begin_test(4, pages_left) == 0) {
            expected_explicit = pages_left < 4 ? pages_left : 4;
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
    for (int pages_left = 0; pages_left <= 6; pages_left += 3) {
        if (begin_test(2, pages_left) == 0) {
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
    if (begin_test(2, 3) == 0) {
        before.any_space = 1;
        test_run_threads(4, fork_in_thread);
        check_arenas(0);
    }
    end_test();
}

/* When the child comes to where it waits, write into each arena at two places:
   with no page left in the pool, each write takes a page from the child. */
static void *
steal_pages(void *Py_UNUSED(data))
{
    wait_until(&fake.meeting->reached);
    for (int i = 0; i < arena_count; i++) {
        for (size_t j = 0; j < ARENA_WORDS; j += ARENA_WORDS / 2) {
            _Py_atomic_store_uint64_relaxed(&arenas[i][j], word(i, j, 1));
        }
    }
    _Py_atomic_store_int(&fake.meeting->go_on, 1);
    return NULL;
}

static void
check_stolen_arenas(void)
{
    check_generations(0, 1);
    fill_arenas(2);
    check_arenas(2);
    for (int i = 0; i < arena_count; i++) {
        CHECK(!is_explicit(arenas[i]));
    }
}

/* Let the pages be taken away at each copy of the child in turn, while a call
   fails, from that number on (0: none does).  The child then ends with a
   message or not. */
static void
check_steal(side where, call_kind kind, int fault_at, int message)
{
    for (int at = 1; at <= 4; at++) {
        if (begin_test(4, 0) == 0) {
            pthread_t thief;
            before.any_space = 1;
            disarm();
            fake.event.kind = CALL_COPY;
            fake.event.at = at;
            fake.fault.side = where;
            fake.fault.kind = kind;
            fake.fault.at = fault_at;
            fake.fault.error = ENOMEM;
            REQUIRE(pthread_create(&thief, NULL, steal_pages, NULL) == 0);
            CHECK_EQUAL(fork_with_message(check_stolen_arenas), message);
            (void)pthread_join(thief, NULL);
            check_generations(0, 1);
            CHECK_EQUAL(check_table(), arena_count);
        }
        end_test();
    }
}

static void
test_stolen_pages(void)
{
    check_steal(IN_PARENT, CALL_PIPE, 0, 0);
    /* Without a pipe they look at shared memory. */
    check_steal(IN_PARENT, CALL_PIPE, 1, 0);
}

/* The parent cannot make the copy that the child needs, or the child cannot
   read it or ask for it: the child ends with a message, not with wrong
   data. */
static void
test_stolen_pages_not_copied(void)
{
    check_steal(IN_PARENT, CALL_MPROTECT, 2, 1);
    check_steal(IN_CHILD, CALL_MPROTECT, 1, 1);
    /* The shared memory for the copies, and for asking. */
    check_steal(IN_PARENT, CALL_MMAP, 2, 1);
    check_steal(IN_PARENT, CALL_MMAP, 1, 1);
}

/* The kernel tells so of memory that the hardware has lost. */
static void
test_broken_memory(void)
{
    for (int at = 1; at <= 3; at++) {
        if (begin_test(3, 0) == 0) {
            disarm();
            fake.event.kind = CALL_COPY;
            fake.event.at = at;
            fake.event.signal = SIGBUS;
            fake.event.code = BUS_MCEERR_AR;
            CHECK_EQUAL(fork_with_message(check_arenas_in_child), 1);
            check_arenas(0);
        }
        end_test();
    }
}

// --- tests: a child that does not go on ------------------------------------

/* At each call of each kind, with and without pages for the child, until the
   child does not come that far. */
static void
at_each_call(void (*check)(int *reached))
{
    static const call_kind kinds[] = {
        CALL_MMAP, CALL_COPY, CALL_MREMAP, CALL_POPULATE, CALL_MUNMAP
    };
    const int count = 3;
    int points = 0;
    for (int pages_left = 0; pages_left <= count; pages_left += count) {
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
            int reached = 1;
            for (int at = 1; reached && !test_failed(); at++) {
                reached = 0;
                if (begin_test(count, pages_left) == 0) {
                    disarm();
                    fake.event.kind = kinds[i];
                    fake.event.at = at;
                    check(&reached);
                    points += reached;
                }
                end_test();
                if (test_failed()) {
                    FAIL("at call %d of %s in the child, with %d pages left",
                         at, call_names[kinds[i]], pages_left);
                }
            }
        }
    }
    test_note("%d points", points);
}

static void
check_killed(int *reached)
{
    fake.event.signal = SIGKILL;
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    CHECK_EQUAL(fake.timeouts, 0);
    fill_arenas(1);
    int status = -1;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    *reached = WIFSIGNALED(status);
    CHECK(*reached ? WTERMSIG(status) == SIGKILL : status == 0);
    check_arenas(1);
    CHECK_EQUAL(check_table(), arena_count);
}

static void
test_child_is_killed(void)
{
    at_each_call(check_killed);
}

/* The parent's fork() returns while the child is stopped.  What the parent
   then writes, and with no page left takes from it, the child does not see. */
static void
check_stopped(int *reached)
{
    fake.event.signal = SIGSTOP;
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
    *reached = WIFSTOPPED(status);
    if (*reached) {
        fill_arenas(1);
        check_arenas(1);
        CHECK_EQUAL(kill(child, SIGCONT), 0);
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        check_arenas(1);
    }
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(check_table(), arena_count);
}

static void
check_stopped_at_once(int *reached)
{
    fake.no_patience = 1;
    check_stopped(reached);
}

static void
test_child_is_stopped(void)
{
    at_each_call(check_stopped_at_once);
}

/* The same with the parent's own patience. */
static void
test_child_is_stopped_for_real(void)
{
    if (begin_test(3, 0) == 0) {
        int reached = 0;
        disarm();
        fake.event.kind = CALL_COPY;
        fake.event.at = 2;
        check_stopped(&reached);
        CHECK(reached);
        CHECK(fake.timeouts > 0);
    }
    end_test();
}

/* While one child is stopped, others come and go. */
static void
test_stopped_child_and_others(void)
{
    if (begin_test(3, 0) == 0) {
        disarm();
        fake.event.kind = CALL_COPY;
        fake.event.at = 2;
        fake.event.signal = SIGSTOP;
        fake.no_patience = 1;
        pid_t stopped = fork();
        if (stopped == 0) {
            check_arenas(0);
            (void)fflush(stdout);
            _exit(test_failed());
        }
        int status = -1;
        CHECK_EQUAL(waitpid(stopped, &status, WUNTRACED), stopped);
        CHECK(WIFSTOPPED(status));
        disarm();
        for (int i = 0; i < 3; i++) {
            run_in_child(check_arenas_in_child);
        }
        fill_arenas(1);
        CHECK_EQUAL(kill(stopped, SIGCONT), 0);
        CHECK_EQUAL(waitpid(stopped, &status, 0), stopped);
        CHECK_EQUAL(status, 0);
        check_arenas(1);
    }
    end_test();
}

// --- tests: calls that fail ------------------------------------------------

static int fault_points;

static void
check_faults(side where, call_kind kind, int error)
{
    int exits = 0;
    int points_before = fault_points;
    for (int i = 0; i < 4; i++) {
        /* With no page for the child, or all; all calls fail from there on, or
           one. */
        const int count = 3;
        int pages_left = i / 2 * count;
        int failed = 1;
        for (int at = 1; failed && !test_failed(); at++) {
            failed = 0;
            if (begin_test(count, pages_left) == 0) {
                before.any_space = kind == CALL_MUNMAP;
                disarm();
                fake.fault.side = where;
                fake.fault.kind = kind;
                fake.fault.at = at;
                fake.fault.count = i % 2;
                fake.fault.error = error;
                exits += fork_with_message(check_arenas_in_child);
                failed = fake.meeting->failed;
                fault_points += failed;
                check_arenas(0);
                CHECK_EQUAL(check_table(), arena_count);
                CHECK_EQUAL(fake.timeouts, 0);
            }
            end_test();
            if (test_failed()) {
                FAIL("%s of the %s from number %d on: %s, %d pages left",
                     call_names[kind],
                     where == IN_PARENT ? "parent" : "child", at,
                     strerror(error), pages_left);
            }
        }
    }
    /* Only memory that cannot be had at all ends a child. */
    CHECK(exits == 0 || (where == IN_CHILD && kind == CALL_MMAP));
    CHECK(fault_points > points_before);
}

static void
test_each_call_fails_in_parent(void)
{
    fault_points = 0;
    check_faults(IN_PARENT, CALL_MMAP, ENOMEM);
    check_faults(IN_PARENT, CALL_MPROTECT, ENOMEM);
    check_faults(IN_PARENT, CALL_PIPE, EMFILE);
    check_faults(IN_PARENT, CALL_MUNMAP, EPERM);
    test_note("%d points", fault_points);
}

static void
test_each_call_fails_in_child(void)
{
    fault_points = 0;
    check_faults(IN_CHILD, CALL_MMAP, ENOMEM);
    check_faults(IN_CHILD, CALL_MMAP, EPERM);
    check_faults(IN_CHILD, CALL_MREMAP, ENOMEM);
    check_faults(IN_CHILD, CALL_MREMAP, EPERM);
    check_faults(IN_CHILD, CALL_POPULATE, EFAULT);
    check_faults(IN_CHILD, CALL_POPULATE, EPERM);
    check_faults(IN_CHILD, CALL_ADVISE_HUGE, EINVAL);
    check_faults(IN_CHILD, CALL_MUNMAP, ENOMEM);
    test_note("%d points", fault_points);
}

/* Where mremap() is forbidden the spare arena must not be left behind. */
static long expected_kib;

static void
check_space_in_child(void)
{
    CHECK_EQUAL(read_address_space().kib, expected_kib);
    check_arenas_in_child();
}

static void
test_no_mremap(void)
{
    if (begin_test(3, 0) == 0) {
        disarm();
        expected_kib = read_address_space().kib;
        check_fork(check_space_in_child);
        fake.fault.side = IN_CHILD;
        fake.fault.kind = CALL_MREMAP;
        fake.fault.at = 1;
        fake.fault.error = EPERM;
        check_fork(check_space_in_child);
    }
    end_test();
}

/* Room for the copies of all arenas must not be in memory before it is
   needed. */
static void
map_shared_locked(void)
{
    enum { ARENAS = 4, MAX_PAGES = ARENAS * 512 };
    unsigned char in_memory[MAX_PAGES];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *shared = NULL;
    int os_error = 0;
    REQUIRE(page * MAX_PAGES >= ARENAS * ARENA_SIZE);
    REQUIRE(mlockall(MCL_FUTURE) == 0);
    REQUIRE(hugepages_os_map_shared(ARENAS * ARENA_SIZE, &shared, &os_error)
            == HUGEPAGES_OK);
    REQUIRE(hugepages_os_open_shared((char *)shared + ARENA_SIZE, ARENA_SIZE,
                                     &os_error) == HUGEPAGES_OK);
    memset((char *)shared + ARENA_SIZE, 1, ARENA_SIZE);
    REQUIRE(mincore(shared, ARENAS * ARENA_SIZE, in_memory) == 0);
    size_t count = 0;
    for (size_t i = 0; i < ARENAS * ARENA_SIZE / page; i++) {
        count += in_memory[i] & 1;
    }
    CHECK_EQUAL(count * page, ARENA_SIZE);
}

static void
test_mlockall(void)
{
    if (begin_test(1, 1) == 0) {
        check_fork(map_shared_locked);
    }
    end_test();
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
    disarm();
    errno = UNTOUCHED;
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    CHECK_EQUAL(child, -1);
    CHECK_EQUAL(errno, EAGAIN);
    /* It did not wait. */
    CHECK_EQUAL(fake.timeouts, 0);
    CHECK_EQUAL(count_files(), files);
    check_no_leak(space);
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
    if (begin_test(2, 2) == 0) {
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
    for (int pages_left = 0; pages_left <= 4; pages_left += 2) {
        if (begin_test(2, pages_left) == 0) {
            check_fork(fork_without_files);
        }
        end_test();
    }
}

/* No address space is left, so that the child cannot map a spare arena. */
static int
fork_without_space(void (*function)(void))
{
    struct rlimit limit, saved_limit;
    address_space space = read_address_space();
    (void)getrlimit(RLIMIT_AS, &limit);
    saved_limit = limit;
    limit.rlim_cur = (rlim_t)space.kib * 1024;
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &limit), 0);
    int exited = fork_with_message(function);
    (void)setrlimit(RLIMIT_AS, &saved_limit);
    return exited;
}

static void
test_no_address_space(void)
{
    if (begin_test(2, 2) == 0) {
        CHECK_EQUAL(fork_without_space(check_arenas_in_child), 1);
        check_arenas(0);
        CHECK_EQUAL(check_table(), arena_count);
    }
    end_test();
}

// --- tests: nothing leaks --------------------------------------------------

#define FORKS 1000

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
    for (int pages_left = 0; pages_left <= 2; pages_left++) {
        if (begin_test(2, pages_left) == 0) {
            address_space space = read_address_space();
            int files = count_files();
            for (int i = 0; i < test_rounds(FORKS / 3 + 1) && !test_failed(); i++) {
                run_in_child(glance_at_arenas);
            }
            check_arenas(0);
            check_no_leak(space);
            CHECK_EQUAL(count_files(), files);
            CHECK_EQUAL(pool_available(), pages_left);
        }
        end_test();
    }
}

#define CYCLING_THREADS 8
#define CYCLES 10000

static void
cycle_or_fork(int thread)
{
    if (thread == 0) {
        for (int i = 0; i < test_rounds(50); i++) {
            run_in_child(check_arenas_in_child);
        }
        return;
    }
    for (int i = 0; i < test_rounds(CYCLES / (CYCLING_THREADS - 1)); i++) {
        uint64_t *arena = (uint64_t *)hugepages_alloc(ARENA_SIZE);
        REQUIRE(arena != NULL);
        arena[0] = (uint64_t)thread;
        arena[ARENA_WORDS - 1] = (uint64_t)thread;
        CHECK_EQUAL(arena[0], thread);
        hugepages_free(arena, ARENA_SIZE);
    }
}

static void
test_cycles_and_forks(void)
{
    if (begin_test(2, 3) == 0) {
        before.any_space = 1;
        test_run_threads(CYCLING_THREADS, cycle_or_fork);
        check_arenas(0);
        CHECK_EQUAL(check_table(), arena_count);
        CHECK_EQUAL(pool_available(), 3);
    }
    end_test();
}

const testhugepages_test testhugepages_fork_tests[] = {
    {"fork_empty_pool", test_empty_pool},
    {"fork_enough_pool", test_enough_pool},
    {"fork_small_pool", test_small_pool},
    {"fork_old_kernel", test_old_kernel},
    {"fork_no_explicit_arenas", test_no_explicit_arenas},
    {"fork_vfork", test_vfork},
    {"fork_switched_off", test_switched_off},
    {"fork_state_is_kept", test_state_is_kept},
    {"fork_early_signal", test_early_signal},
    {"fork_cancelled_thread", test_cancelled_thread},
    {"fork_writing_threads", test_writing_threads},
    {"fork_nested", test_nested_forks},
    {"fork_deep", test_deep_forks},
    {"fork_from_threads", test_forks_from_threads},
    {"fork_stolen_pages", test_stolen_pages},
    {"fork_stolen_pages_not_copied", test_stolen_pages_not_copied},
    {"fork_broken_memory", test_broken_memory},
    {"fork_child_is_killed", test_child_is_killed},
    {"fork_child_is_stopped", test_child_is_stopped},
    {"fork_child_is_stopped_for_real", test_child_is_stopped_for_real},
    {"fork_stopped_child_and_others", test_stopped_child_and_others},
    {"fork_each_call_fails_in_parent", test_each_call_fails_in_parent},
    {"fork_each_call_fails_in_child", test_each_call_fails_in_child},
    {"fork_no_mremap", test_no_mremap},
    {"fork_mlockall", test_mlockall},
    {"fork_fails", test_fork_fails},
    {"fork_no_files", test_no_files},
    {"fork_no_address_space", test_no_address_space},
    {"fork_many", test_many_forks},
    {"fork_cycles", test_cycles_and_forks},
    {NULL, NULL}
};
