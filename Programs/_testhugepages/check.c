/* Tests, and what they find out: see check.h. */

#include "check.h"

#include <pthread.h>              // pthread_create()
#include <stdarg.h>               // va_list
#include <unistd.h>               // getpid()

test_case *test_first;
int test_passed_count, test_failed_count, test_skipped_count;
int test_owns_machine;
uint32_t test_seed = 1;

/* State of the running test.  Threads of a test change failures. */
static uint32_t failures;
static char skip_reason[200];
static int test_process;

// --- tests ------------------------------------------------------------------

/* What a test does to a machine of its own may last, such as cgroups of the
   other version: these come last. */
static int
compare_tests(const test_case *one, const test_case *other)
{
    int by_file = strcmp(one->file, other->file);
    return one->place != other->place ? (int)one->place - (int)other->place
           : by_file != 0 ? by_file : one->line - other->line;
}

void
test_add(test_case *test)
{
    test_case **next = &test_first;
    while (*next != NULL && compare_tests(*next, test) < 0) {
        next = &(*next)->next;
    }
    test->next = *next;
    *next = test;
}

void
test_run(const test_case *test)
{
    failures = 0;
    skip_reason[0] = '\0';
    test_process = (int)getpid();
    printf("%s ... ", test->name);
    /* Seen even if the test ends in a signal. */
    (void)fflush(stdout);
    if (test->begin != NULL) {
        test->begin();
    }
    test->run();
    test_end_child();
    if (test->end != NULL) {
        test->end();
    }
    if (failures != 0) {
        printf("\n%s FAILED\n", test->name);
        test_failed_count++;
    }
    else if (skip_reason[0] != '\0') {
        printf("skipped: %s\n", skip_reason);
        test_skipped_count++;
    }
    else {
        printf("ok\n");
        test_passed_count++;
    }
}

int
test_rounds(int count)
{
    return test_owns_machine ? (count + 9) / 10 : count;
}

// --- checks -----------------------------------------------------------------

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
        /* Who fails may be a child that a signal ends. */
        (void)fflush(stdout);
    }
}

int
test_failed(void)
{
    return _Py_atomic_load_uint32_relaxed(&failures) != 0;
}

void
test_skip(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(skip_reason, sizeof(skip_reason), format, arguments);
    va_end(arguments);
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

void
test_end_child(void)
{
    if ((int)getpid() != test_process) {
        (void)fflush(stdout);
        _exit(test_failed());
    }
}

void
test_use_memory(void *address, size_t size, size_t alignment)
{
    unsigned char *bytes = (unsigned char *)address;
    if ((uintptr_t)address % alignment != 0) {
        FAIL("%p is not aligned to %llu", address,
             (unsigned long long)alignment);
        return;
    }
    CHECK(bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0);
    memset(bytes, 0x5A, size);
    CHECK(bytes[0] == 0x5A && memcmp(bytes, bytes + 1, size - 1) == 0);
}

// --- random numbers and threads ---------------------------------------------

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

typedef struct {
    pthread_t thread;
    void (*function)(int argument);
    int argument;
} thread_call;

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
    thread_call calls[TEST_MAX_THREADS];
    int started = 0;
    while (started < count) {
        thread_call *call = &calls[started];
        call->function = function;
        call->argument = started;
        int error = pthread_create(&call->thread, NULL, run_thread, call);
        if (error != 0) {
            FAIL("pthread_create: error %d", error);
            break;
        }
        started++;
    }
    while (started > 0) {
        (void)pthread_join(calls[--started].thread, NULL);
    }
}
