/* Tests, and what they find out. */

#ifndef Py_TESTHUGEPAGES_CHECK_H
#define Py_TESTHUGEPAGES_CHECK_H

#include "stand_in.h"

// --- tests ------------------------------------------------------------------

/* Where a test is run. */
typedef enum {
    ANYWHERE,           // the system does not matter
    ON_EACH_KERNEL,     // also where the tests have a machine for themselves
    OWN_MACHINE         // only there
} test_place;

typedef struct test_case {
    const char *name;
    const char *file;
    int line;
    test_place place;
    /* Called before and after; may be NULL. */
    void (*begin)(void);
    void (*run)(void);
    void (*end)(void);
    struct test_case *next;
} test_case;

/* All tests, by place, file and line. */
extern test_case *test_first;

extern void test_add(test_case *test);

/* Define a test; its body follows.  It is known to the program without being
   in a list. */
#define TEST_CASE(name, place, begin, end) \
    static void test_ ## name(void); \
    static test_case case_ ## name = { \
        #name, __FILE__, __LINE__, place, begin, test_ ## name, end, NULL \
    }; \
    __attribute__((constructor)) static void \
    add_ ## name(void) \
    { \
        test_add(&case_ ## name); \
    } \
    static void \
    test_ ## name(void)

/* A test that is one call. */
#define TEST_CALL(name, call) \
    TEST(name) \
    { \
        call; \
    }

/* Run a test and print what came of it. */
extern void test_run(const test_case *test);

extern int test_passed_count, test_failed_count, test_skipped_count;

/* Nonzero if this process is the only program of a machine. */
extern int test_owns_machine;

/* How often to repeat what a test repeats count times: fewer times in such a
   machine, which is slow: its processor is emulated. */
extern int test_rounds(int count);

// --- checks -----------------------------------------------------------------

#define PRINTF_LIKE(number, first) \
    __attribute__((format(__printf__, number, first)))

/* Count a failure of the running test and print it.  The test goes on, and
   should return soon.  Any thread may call. */
PRINTF_LIKE(3, 4)
extern void test_fail(const char *file, int line, const char *format, ...);

/* Has the running test failed? */
extern int test_failed(void);

/* Say why the running test cannot be run here; the test then returns. */
PRINTF_LIKE(1, 2)
extern void test_skip(const char *format, ...);

/* Print a fact that the running test has found. */
PRINTF_LIKE(1, 2)
extern void test_note(const char *format, ...);

/* End this process, with the outcome as its status, if it is a child of the
   one that runs the tests. */
extern void test_end_child(void);

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            FAIL("false: %s", #condition); \
        } \
    } while (0)

/* Compare integers of any type. */
#define CHECK_EQUAL(value, expected) \
    do { \
        long long value_ = (long long)(value); \
        long long expected_ = (long long)(expected); \
        if (value_ != expected_) { \
            FAIL("%s is %lld, expected %lld (%s)", \
                 #value, value_, expected_, #expected); \
        } \
    } while (0)

/* The same, and leave the function, or end the child: what follows makes no
   sense otherwise. */
#define REQUIRE(condition) \
    do { \
        if (!(condition)) { \
            FAIL("false: %s", #condition); \
            test_end_child(); \
            return; \
        } \
    } while (0)

/* A value of errno, or of GetLastError(), that no call sets: it must still be
   there after a call that is silent. */
#define UNTOUCHED 0x20001234

/* Check that memory is aligned, zeroed and writable throughout. */
extern void test_use_memory(void *address, size_t size, size_t alignment);

// --- random numbers and threads ---------------------------------------------

/* Pseudo-random numbers (xorshift): the same everywhere for the same seed,
   which is any number but 0. */
extern uint32_t test_random(uint32_t *state);

/* First seed of the random tests, as given by --seed. */
extern uint32_t test_seed;

/* Run function(argument) in count threads, argument going from 0 to count - 1,
   and wait for all of them. */
#define TEST_MAX_THREADS 16
extern void test_run_threads(int count, void (*function)(int argument));

#endif /* !Py_TESTHUGEPAGES_CHECK_H */
