/* C tests of Objects/hugepages, without an interpreter.

   usage: _testhugepages [--list] [--seed NUMBER] [TEST...]

   Without a name all tests are run.  The last line of the output is
   "N passed, N failed, N skipped"; the exit status is 0 if none failed, 1 if
   some did, 2 if the command line is wrong.  build-aux/test/ctests.sh compiles
   and runs it in all its variants.

       _testhugepages.c          this file: runs the tests
       _testhugepages_core.h     Objects/hugepages, for one file of tests
       _testhugepages_fake.h     a fake OS layer
       _testhugepages_policy.c   table.c, arena.c and stats.c over it
       _testhugepages_fork_policy.c  fork.c over it, and all interleavings
       _testhugepages_calls.h    Linux's system calls, which can fail
       _testhugepages_linux.c    os_linux.c and pymalloc.c over them
       _testhugepages_fork.c     the same with real forks
       _testhugepages_limits.c   the same where Linux sets limits
       _testhugepages_system.c   what the tests on Linux share
       _testhugepages_windows.c  os_windows.c, with real and with faked calls
       _testhugepages_other.c    os_other.c

   It needs only the C library, so that it can be the only program of a virtual
   machine (build-aux/test/kernels.sh).  As process 1 it mounts /dev, /proc and
   /sys, has the kernel use transparent huge pages where they are advised, runs
   the tests that depend on the kernel and those that need a machine for
   themselves, and switches the machine off when it is done. */

#include "_testhugepages.h"

#include <stdarg.h>               // va_list

#ifdef _WIN32
#  include <malloc.h>             // _aligned_malloc()
#  include <windows.h>
#else
#  include <pthread.h>
#  include <sys/mman.h>           // mmap()
#endif
#ifdef __linux__
#  include "_testhugepages_system.h"
#  include <sys/mount.h>          // mount()
#  include <sys/reboot.h>         // reboot()
#  include <sys/stat.h>           // mkdir()
#  include <unistd.h>             // getpid()
#endif

static const testhugepages_test *const all_tests[] = {
    testhugepages_policy_tests,
    testhugepages_fork_policy_tests,
    testhugepages_other_tests,
#if defined(_WIN32)
    testhugepages_windows_tests,
#elif defined(__linux__)
    testhugepages_linux_tests,
    testhugepages_fork_tests,
    testhugepages_limits_tests,
#endif
    NULL
};

/* Those of process 1: what depends on the kernel, and what needs a machine for
   itself. */
static const testhugepages_test *const machine_tests[] = {
#ifdef __linux__
    testhugepages_linux_tests,
    testhugepages_fork_tests,
    testhugepages_limits_tests,
    testhugepages_machine_tests,
#endif
    NULL
};

int test_owns_machine = 0;

uint32_t test_seed = 1;

/* State of the running test.  Threads of a test change failures. */
static uint32_t failures;
static const char *skip_reason;

void
test_fail(const char *file, int line, const char *format, ...)
{
    /* The first failures tell; a loop may bring thousands. */
    const uint32_t max_printed = 10;
    if (_Py_atomic_add_uint32(&failures, 1) < max_printed) {
        va_list arguments;
        va_start(arguments, format);
        printf("\n  %s:%d: ", file, line);
        (void)vprintf(format, arguments);
        va_end(arguments);
    }
}

int
test_failed(void)
{
    return _Py_atomic_load_uint32_relaxed(&failures) != 0;
}

void
test_skip(const char *reason)
{
    skip_reason = reason;
}

void
test_note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("(");
    (void)vprintf(format, arguments);
    printf(") ");
    va_end(arguments);
}

int
test_rounds(int count)
{
    return test_owns_machine ? (count + 9) / 10 : count;
}

uint32_t
test_random(uint32_t *state)
{
    uint32_t number = *state;
    number ^= number << 13;
    number ^= number >> 17;
    number ^= number << 5;
    *state = number;
    return number;
}

static void
out_of_memory(void)
{
    fprintf(stderr, "out of memory\n");
    exit(1);
}

#ifdef _WIN32

void *
test_alloc_aligned(size_t size, size_t alignment)
{
    void *memory = _aligned_malloc(size, alignment);
    if (memory == NULL) {
        out_of_memory();
    }
    memset(memory, 0, size);
    return memory;
}

void
test_free_aligned(void *memory, size_t Py_UNUSED(size))
{
    _aligned_free(memory);
}

#else

/* The C library would clear much that is never looked at, and not show that
   what was freed is used. */
void *
test_alloc_aligned(size_t size, size_t alignment)
{
    char *memory = mmap(NULL, size + alignment, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        out_of_memory();
    }
    size_t head = (0 - (uintptr_t)memory) & (alignment - 1);
    if (head > 0) {
        (void)munmap(memory, head);
    }
    (void)munmap(memory + head + size, alignment - head);
    return memory + head;
}

void
test_free_aligned(void *memory, size_t size)
{
    (void)munmap(memory, size);
}

#endif

void
test_use_memory(void *address, size_t size, size_t alignment)
{
    unsigned char *bytes = (unsigned char *)address;
    if ((uintptr_t)address % alignment != 0) {
        FAIL("%p is not aligned to %llu", address,
             (unsigned long long)alignment);
        return;
    }
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0) {
            FAIL("byte %llu is not zero", (unsigned long long)i);
            return;
        }
    }
    memset(bytes, 0x5A, size);
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0x5A) {
            FAIL("byte %llu did not keep its value", (unsigned long long)i);
            return;
        }
    }
}

// --- threads ---------------------------------------------------------------

typedef struct {
    void (*function)(int argument);
    int argument;
} thread_call;

#ifdef _WIN32

static SRWLOCK lock = SRWLOCK_INIT;

void
test_lock(void)
{
    AcquireSRWLockExclusive(&lock);
}

void
test_unlock(void)
{
    ReleaseSRWLockExclusive(&lock);
}

static DWORD WINAPI
run_thread(void *data)
{
    const thread_call *call = (const thread_call *)data;
    call->function(call->argument);
    return 0;
}

void
test_run_threads(int count, void (*function)(int argument))
{
    HANDLE threads[TEST_MAX_THREADS];
    thread_call calls[TEST_MAX_THREADS];
    for (int i = 0; i < count; i++) {
        calls[i] = (thread_call){function, i};
        threads[i] = CreateThread(NULL, 0, run_thread, &calls[i], 0, NULL);
        if (threads[i] == NULL) {
            FAIL("CreateThread: error %lu", GetLastError());
        }
    }
    for (int i = 0; i < count; i++) {
        if (threads[i] != NULL) {
            (void)WaitForSingleObject(threads[i], INFINITE);
            (void)CloseHandle(threads[i]);
        }
    }
}

#else

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void
test_lock(void)
{
    (void)pthread_mutex_lock(&lock);
}

void
test_unlock(void)
{
    (void)pthread_mutex_unlock(&lock);
}

static void *
run_thread(void *data)
{
    const thread_call *call = (const thread_call *)data;
    call->function(call->argument);
    return NULL;
}

void
test_run_threads(int count, void (*function)(int argument))
{
    pthread_t threads[TEST_MAX_THREADS];
    thread_call calls[TEST_MAX_THREADS];
    int started = 0;
    while (started < count) {
        calls[started] = (thread_call){function, started};
        int error = pthread_create(&threads[started], NULL, run_thread,
                                   &calls[started]);
        if (error != 0) {
            FAIL("pthread_create: error %d", error);
            break;
        }
        started++;
    }
    for (int i = 0; i < started; i++) {
        (void)pthread_join(threads[i], NULL);
    }
}

#endif

// --- the program -----------------------------------------------------------

static int passed_count, failed_count, skipped_count;

static void
run_test(const testhugepages_test *test)
{
    failures = 0;
    skip_reason = NULL;
    printf("%s ... ", test->name);
    /* Seen even if the test ends in a signal. */
    (void)fflush(stdout);
    test->run();
    if (failures != 0) {
        printf("\n%s FAILED\n", test->name);
        failed_count++;
    }
    else if (skip_reason != NULL) {
        printf("skipped: %s\n", skip_reason);
        skipped_count++;
    }
    else {
        printf("ok\n");
        passed_count++;
    }
}

/* The lists of tests that are run here, which NULL ends. */
static const testhugepages_test *
test_list(int index)
{
    return test_owns_machine ? machine_tests[index] : all_tests[index];
}

static const testhugepages_test *
find_test(const char *name)
{
    for (int i = 0; test_list(i) != NULL; i++) {
        for (const testhugepages_test *test = test_list(i);
             test->name != NULL; test++)
        {
            if (strcmp(test->name, name) == 0) {
                return test;
            }
        }
    }
    return NULL;
}

/* Call function for each test. */
static void
for_all_tests(void (*function)(const testhugepages_test *test))
{
    for (int i = 0; test_list(i) != NULL; i++) {
        for (const testhugepages_test *test = test_list(i);
             test->name != NULL; test++)
        {
            function(test);
        }
    }
}

static void
list_test(const testhugepages_test *test)
{
    printf("%s\n", test->name);
}

/* Return the exit status. */
static int
run_tests(int argc, char **argv)
{
    int named = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            for_all_tests(list_test);
            return 0;
        }
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            char *end;
            unsigned long seed = strtoul(argv[++i], &end, 10);
            if (*end != '\0' || seed == 0 || seed > UINT32_MAX / 2) {
                fprintf(stderr, "%s: --seed %s: not a number from 1 to %lu\n",
                        argv[0], argv[i], (unsigned long)UINT32_MAX / 2);
                return 2;
            }
            test_seed = (uint32_t)seed;
            continue;
        }
        if (find_test(argv[i]) == NULL) {
            fprintf(stderr, "%s: no test is named %s; see --list\n",
                    argv[0], argv[i]);
            return 2;
        }
        /* The names go to the front of argv, and are run when all are known
           to be good. */
        argv[++named] = argv[i];
    }
    if (named == 0) {
        for_all_tests(run_test);
    }
    for (int i = 1; i <= named; i++) {
        run_test(find_test(argv[i]));
    }
    printf("%d passed, %d failed, %d skipped\n",
           passed_count, failed_count, skipped_count);
    return failed_count != 0;
}

int
main(int argc, char **argv)
{
#ifdef __linux__
    if (getpid() == 1) {
        (void)mkdir("/dev", 0755);
        (void)mkdir("/proc", 0755);
        (void)mkdir("/sys", 0755);
        (void)mkdir("/tmp", 01777);
        (void)mount("dev", "/dev", "devtmpfs", 0, NULL);
        (void)mount("proc", "/proc", "proc", 0, NULL);
        (void)mount("sysfs", "/sys", "sysfs", 0, NULL);
        (void)write_file("/sys/kernel/mm/transparent_hugepage/enabled",
                         "madvise");
        test_owns_machine = 1;
        int status = run_tests(argc, argv);
        (void)fflush(stdout);
        sync();
        (void)reboot(RB_POWER_OFF);
        return status;
    }
#endif
    return run_tests(argc, argv);
}
