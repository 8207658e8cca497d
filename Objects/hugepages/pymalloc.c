/* What pymalloc calls, and the whole of Objects/hugepages as one translation
   unit, included by obmalloc.c.  See hugepages.h. */

#include "pycore_hugepages.h"     // _PyMem_HugePagesAlloc()

#include "compat.h"
#include "hugepages.h"
#include "stats.c"
#include "table.c"
#include "tiers.c"
#include "arena.c"

#if defined(MS_WINDOWS)
#  include "os_windows.c"
#elif defined(__linux__)
#  include "fork.c"
#  include "os_linux.c"
#  include "os_linux_fork.c"
#else
#  include "os_other.c"
#endif

#include "report.c"

#ifdef POOL_ADDR
#  include "free.c"
#else
/* The wheel has no pools. */
#  define hugepages_note_arena(arena)   ((void)0)
#  define hugepages_forget_arena(arena) ((void)0)
#endif

/* How many arenas of an interpreter are plain memory at first: an interpreter
   that has just started needs two.  Each more would cost every larger program
   512 page faults. */
#define HUGEPAGES_FIRST_ARENAS 2

/* Let the kernel put the first arenas of an interpreter on huge pages. */
static void
hugepages_promote_first(const struct _obmalloc_mgmt *mgmt)
{
    for (unsigned int i = 0; i < mgmt->maxarenas; i++) {
        if (mgmt->arenas[i].address != 0) {
            hugepages_promote((void *)mgmt->arenas[i].address);
        }
    }
}

static void *
hugepages_take_for_pymalloc(size_t size)
{
    if (size != ARENA_SIZE) {
        /* The data stack of a thread, 16 KiB: a huge page for each would cost
           a thousand threads 2 GiB. */
        return hugepages_take_plain(size);
    }
    const struct _obmalloc_mgmt *mgmt = hugepages_current_arenas();
    if (mgmt != NULL) {
        size_t count = mgmt->narenas_currently_allocated;
        if (count < HUGEPAGES_FIRST_ARENAS) {
            return hugepages_take_first();
        }
        if (count == HUGEPAGES_FIRST_ARENAS) {
            hugepages_promote_first(mgmt);
        }
    }
    return hugepages_take();
}

void *
_PyMem_HugePagesAlloc(void *Py_UNUSED(ctx), size_t size)
{
    void *ptr = hugepages_take_for_pymalloc(size);
    if (ptr != NULL) {
        if (size == ARENA_SIZE) {
            hugepages_note_arena(ptr);
        }
        (void)_PyAnnotateMemoryMap(ptr, size, "cpython:pymalloc");
    }
    return ptr;
}

void
_PyMem_HugePagesFree(void *Py_UNUSED(ctx), void *ptr, size_t size)
{
    int os_error;
    if (ptr == NULL) {
        return;
    }
    if (size == ARENA_SIZE) {
        hugepages_forget_arena(ptr);
        hugepages_give(ptr);
    }
    else {
        (void)hugepages_os_unmap(ptr, size, &os_error);
    }
}

void
_PyMem_FiniHugePages(void)
{
    hugepages_write_stats();
    (void)hugepages_release_kept();
}
