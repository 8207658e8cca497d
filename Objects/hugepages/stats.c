/* What arenas sit on, how much large blocks have, and how often a kind of page
   was refused.

   Guarded by the lock, as the state of arena.c is.  Of requests through
   _PyMem_ArenaAlloc() only those of exactly ARENA_SIZE are counted.  Large
   blocks are counted by the number of arenas that would fit their mappings.

   now counts mappings, whether an arena uses them or they are kept or strays,
   so that it agrees with what the system tells of this process; retained says
   how many of them are kept or strays. */

#include "hugepages.h"

typedef enum {
    HUGEPAGES_EXPLICIT,
    HUGEPAGES_THP,
    HUGEPAGES_PLAIN,
    HUGEPAGES_LARGE,
    HUGEPAGES_RETAINED,
    HUGEPAGES_KINDS
} hugepages_kind;

static _PyMem_HugePagesTier hugepages_stats[HUGEPAGES_KINDS];

static void
hugepages_count_mapped(hugepages_kind kind, size_t count)
{
    _PyMem_HugePagesTier *stats = &hugepages_stats[kind];
    stats->ever += count;
    stats->now += count;
    if (stats->now > stats->peak) {
        stats->peak = stats->now;
    }
}

static void
hugepages_count_unmapped(hugepages_kind kind, size_t count)
{
    hugepages_stats[kind].now -= count;
}

static void
hugepages_count_refused(hugepages_kind kind, int os_error)
{
    _PyMem_HugePagesTier *stats = &hugepages_stats[kind];
    size_t last = PYMEM_HUGEPAGES_ERRORS - 1;
    size_t i = 0;
    while (i < last && stats->refused[i].count > 0
           && stats->refused[i].error != os_error)
    {
        i++;
    }
    /* The last entry is for all that have none of their own. */
    stats->refused[i].error = i < last ? os_error : 0;
    stats->refused[i].count++;
}
