/* What the C tests of Objects/hugepages share: the stand-in for Python.h that
   lets the core compile without libpython, and the test functions.

   Each source file of the tests is a translation unit with a copy of what it
   tests, because the functions under test are static. */

#ifndef Py_TESTHUGEPAGES_H
#define Py_TESTHUGEPAGES_H

#ifndef _WIN32
#  define _GNU_SOURCE 1
#endif
#include <stddef.h>               // size_t
#include <stdint.h>               // uint32_t, uintptr_t
#include <stdio.h>                // printf()
#include <stdlib.h>               // malloc()
#include <string.h>               // memset()
#include <sys/types.h>            // ssize_t

// --- in place of Python.h --------------------------------------------------

typedef ssize_t Py_ssize_t;
#ifdef _WIN32
#  define MS_WINDOWS 1
#  define SIZEOF_LONG 4
#else
#  define SIZEOF_LONG __SIZEOF_LONG__
#endif
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define Py_BUILD_CORE 1
#define PYMALLOC_USE_HUGEPAGES 1
#define ARENA_SIZE ((size_t)1 << 21)
#ifndef _Py_thread_local
#  define _Py_thread_local _Thread_local
#endif

#include "pymacro.h"              // Py_UNUSED()
#include "pyatomic.h"             // _Py_atomic_load_ptr_relaxed()
#include "cpython/pymalloc_hugepages.h"

// --- tests -----------------------------------------------------------------

typedef struct {
    const char *name;
    void (*run)(void);
} testhugepages_test;

/* The tests of one source file; a NULL name ends each list. */
extern const testhugepages_test testhugepages_policy_tests[];
extern const testhugepages_test testhugepages_fork_policy_tests[];
extern const testhugepages_test testhugepages_other_tests[];
#if defined(_WIN32)
extern const testhugepages_test testhugepages_windows_tests[];
#elif defined(__linux__)
extern const testhugepages_test testhugepages_linux_tests[];
extern const testhugepages_test testhugepages_fork_tests[];
extern const testhugepages_test testhugepages_limits_tests[];
/* Those that need a machine for themselves. */
extern const testhugepages_test testhugepages_machine_tests[];
#endif

/* Nonzero if this process is the only program of a machine. */
extern int test_owns_machine;

/* How often to do what is done so many times: less often in such a machine,
   which is slow for want of acceleration. */
extern int test_rounds(int count);

/* Count a failure of the running test and print it.  The test goes on, and
   should return soon.  Any thread may call. */
#if defined(__GNUC__)
__attribute__((format(__printf__, 3, 4)))
#endif
extern void test_fail(const char *file, int line, const char *format, ...);

/* Has the running test failed? */
extern int test_failed(void);

/* Say why the running test cannot be run here; the test then returns.
   reason must be a string that outlives the test. */
extern void test_skip(const char *reason);

/* Print a fact that the running test has found. */
#if defined(__GNUC__)
__attribute__((format(__printf__, 1, 2)))
#endif
extern void test_note(const char *format, ...);

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

/* The same, and leave the test: what follows makes no sense otherwise. */
#define REQUIRE(condition) \
    do { \
        if (!(condition)) { \
            FAIL("false: %s", #condition); \
            return; \
        } \
    } while (0)

/* Pseudo-random numbers (xorshift): the same everywhere for the same seed,
   which is any number but 0. */
extern uint32_t test_random(uint32_t *state);

/* First seed of the random tests, as given by --seed. */
extern uint32_t test_seed;

/* Run function(argument) in count threads, argument going from 0 to count - 1,
   and wait for all of them. */
#define TEST_MAX_THREADS 16
extern void test_run_threads(int count, void (*function)(int argument));

/* One lock for whoever needs it. */
extern void test_lock(void);
extern void test_unlock(void);

/* Return memory that is zeroed, and aligned to a power of two. */
extern void *test_alloc_aligned(size_t size, size_t alignment);
extern void test_free_aligned(void *memory, size_t size);

/* Check that memory is aligned, zeroed and writable throughout. */
extern void test_use_memory(void *address, size_t size, size_t alignment);

#endif /* !Py_TESTHUGEPAGES_H */
