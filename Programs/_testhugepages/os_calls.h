/* Calls of an OS layer, and what each must say.  A file of tests includes the
   layer before, and defines IS_UNMAPPED(address) if something tells that
   nothing is mapped there. */

#ifndef Py_TESTHUGEPAGES_OS_CALLS_H
#define Py_TESTHUGEPAGES_OS_CALLS_H

#ifndef IS_UNMAPPED
#  define IS_UNMAPPED(address) 1
#endif

typedef hugepages_result (*map_function)(size_t, void **, int *);

#ifdef _WIN32
#  define LAST_ERROR ((int)GetLastError())
#  define FORGET_ERROR() SetLastError(UNTOUCHED)
#else
#  define LAST_ERROR errno
#  define FORGET_ERROR() (errno = UNTOUCHED)
#endif

/* Check the answer of a call, its error if it refuses, and that it has left
   the error of the system's calls alone. */
static void
check_answer(int line, hugepages_result result, int os_error,
             hugepages_result expected, int expected_error)
{
    if (result != expected) {
        FAIL("line %d: the answer is %d, expected %d", line, (int)result,
             (int)expected);
    }
    if (expected != HUGEPAGES_OK && os_error != expected_error) {
        FAIL("line %d: the error is %d, expected %d", line, os_error,
             expected_error);
    }
    if (LAST_ERROR != UNTOUCHED) {
        FAIL("line %d: the error of the caller is %d now", line, LAST_ERROR);
    }
}

/* Map memory, which must be granted.  Return it, or NULL. */
static void *
check_map(int line, map_function map, size_t size)
{
    void *address = NULL;
    int os_error = 0;
    FORGET_ERROR();
    hugepages_result result = map(size, &address, &os_error);
    check_answer(line, result, os_error, HUGEPAGES_OK, 0);
    return result == HUGEPAGES_OK ? address : NULL;
}

/* Ask for memory, which must be refused.  Return the address that is set all
   the same, or NULL. */
static void *
check_refused(int line, map_function map, size_t size,
              hugepages_result expected, int error)
{
    void *address = NULL;
    int os_error = 0;
    FORGET_ERROR();
    hugepages_result result = map(size, &address, &os_error);
    if (map == hugepages_os_map_plain) {
        /* A caller of pymalloc may look at it, as after malloc(). */
        FORGET_ERROR();
    }
    check_answer(line, result, os_error, expected, error);
    return address;
}

static void
check_advise(int line, void *address, size_t size, hugepages_result expected,
             int error)
{
    int os_error = 0;
    FORGET_ERROR();
    hugepages_result result = hugepages_os_advise(address, size, &os_error);
    check_answer(line, result, os_error, expected, error);
}

static void
check_unmap(int line, void *address, size_t size, hugepages_result expected,
            int error)
{
    int os_error = 0;
    FORGET_ERROR();
    hugepages_result result = hugepages_os_unmap(address, size, &os_error);
    check_answer(line, result, os_error, expected, error);
    if (expected == HUGEPAGES_OK && !IS_UNMAPPED(address)) {
        FAIL("line %d: it is still mapped", line);
    }
}

#define MAP(map, size) check_map(__LINE__, map, size)
#define CHECK_REFUSED(map, size, expected, error) \
    check_refused(__LINE__, map, size, expected, error)
#define CHECK_ADVISE(address, size, expected, error) \
    check_advise(__LINE__, address, size, expected, error)
#define CHECK_UNMAP(address, size) \
    check_unmap(__LINE__, address, size, HUGEPAGES_OK, 0)
#define CHECK_UNMAP_REFUSED(address, size, error) \
    check_unmap(__LINE__, address, size, HUGEPAGES_BUSY, error)

/* Memory that was granted: use it, and give it back. */
static void
use_and_unmap(void *address, size_t size, size_t alignment)
{
    REQUIRE(address != NULL);
    test_use_memory(address, size, alignment);
    CHECK_UNMAP(address, size);
}

#endif /* !Py_TESTHUGEPAGES_OS_CALLS_H */
