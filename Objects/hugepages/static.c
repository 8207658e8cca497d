/* The whole of Objects/hugepages as one translation unit, included by
   obmalloc.c in place of its own _PyMem_ArenaAlloc() and _PyMem_ArenaFree().
   What obmalloc.c calls besides these two is in slow_paths.c, which it includes
   as well, hugepages_block_realloc() and hugepages_fill_ahead(). */

#include "pycore_hugepages.h"     // _PyMem_SetHugePages()

#include "stats.c"
#include "retain.c"
#include "arena.c"
#include "units.c"
#include "heap.c"
#include "large.c"
#include "blocks.c"

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

void *
_PyMem_ArenaAlloc(void *Py_UNUSED(ctx), size_t size)
{
    return hugepages_alloc(size);
}

void
_PyMem_ArenaFree(void *Py_UNUSED(ctx), void *ptr, size_t size)
{
    hugepages_free(ptr, size);
}
