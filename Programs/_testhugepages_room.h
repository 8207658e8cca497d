/* Objects/hugepages but for the OS layer, which the file that includes this
   has its own of: a fake, or a real one.  In the order of static.c, with
   stand-ins for what blocks.c takes from obmalloc.c. */

#ifndef Py_TESTHUGEPAGES_ROOM_H
#define Py_TESTHUGEPAGES_ROOM_H

#include "_testhugepages.h"

#include <assert.h>               // assert()

#define SMALL_REQUEST_THRESHOLD 512
#ifndef PyMem_RawMalloc
/* A raw domain that has no memory. */
#  define PyMem_RawMalloc(size) ((void)(size), NULL)
#  define PyMem_RawCalloc(count, size) ((void)(count), (void)(size), NULL)
#  define PyMem_RawRealloc(memory, size) ((void)(memory), (void)(size), NULL)
#  define PyMem_RawFree(memory) ((void)(memory))
#endif

/* No file has tests of all. */
#if defined(__GNUC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include "../Include/internal/pycore_hugepages.h"
#include "../Objects/hugepages/stats.c"
#include "../Objects/hugepages/retain.c"
#include "../Objects/hugepages/arena.c"
#include "../Objects/hugepages/units.c"
#include "../Objects/hugepages/heap.c"
#include "../Objects/hugepages/large.c"
#include "../Objects/hugepages/blocks.c"

/* Go on as if the first arenas were there, which are plain memory for a while
   (_testhugepages_blocks.c has the tests of those): what is tested is how the
   later ones get their pages. */
static void
skip_first_arenas(void)
{
    memcpy(hugepages_state.used, hugepages_first_count,
           sizeof(hugepages_state.used));
}

#ifdef TEST_LATER_ARENAS

/* What a fake OS layer has not where only later arenas are tested: none of
   these is called. */

static hugepages_result
hugepages_os_map_aligned(size_t Py_UNUSED(size), size_t Py_UNUSED(alignment),
                         void **Py_UNUSED(address), int *os_error)
{
    FAIL("map_aligned called");
    *os_error = 1;
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_advise(void *Py_UNUSED(address), size_t Py_UNUSED(size),
                    int *os_error)
{
    FAIL("advise called");
    *os_error = 1;
    return HUGEPAGES_NEVER;
}

#endif  // TEST_LATER_ARENAS

#if defined(TEST_LATER_ARENAS) || defined(TEST_NO_BLOCKS)

/* What is called neither for later arenas nor for freed ones. */

static void
hugepages_os_fill(void *Py_UNUSED(address), size_t Py_UNUSED(size))
{
    FAIL("fill called");
}

static hugepages_result
hugepages_os_resident(const void *Py_UNUSED(address), size_t Py_UNUSED(size),
                      size_t *Py_UNUSED(resident))
{
    FAIL("resident called");
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_resize(void *Py_UNUSED(address), size_t Py_UNUSED(old_size),
                    size_t Py_UNUSED(new_size), size_t Py_UNUSED(alignment),
                    void **Py_UNUSED(new_address), int *os_error)
{
    FAIL("resize called");
    *os_error = 1;
    return HUGEPAGES_BUSY;
}

#endif  // TEST_LATER_ARENAS || TEST_NO_BLOCKS

#if defined(__GNUC__)
#  pragma GCC diagnostic pop
#endif

#endif /* !Py_TESTHUGEPAGES_ROOM_H */
