/* Policy: which pages an arena gets.

   A request goes down a list of tiers until one grants it:

       explicit huge pages    proved by the OS layer to be there, so that
                              neither a cgroup limit nor an empty pool can end
                              in SIGBUS later
       THP                    memory aligned to its size, so that the kernel
                              can use huge pages for all of it
       plain memory           what stock CPython asks for

   Only a request of exactly ARENA_SIZE goes through all of them.  Any other
   (each thread's 16 KiB data-stack chunks come through the same functions) is
   plain memory: a huge page for each would cost a thousand threads 2 GiB.

   A tier that the system has said it will never serve is dropped for the rest
   of the process; one that is busy is asked again for the next arena.  Asking
   costs one failing system call, about a microsecond, against the hundred or
   so that clearing the arena's memory takes.

   Invariants:

   - Whatever hugepages_alloc() returned is one mapping of the OS layer, of the
     size asked for; hugepages_free() gives back that same mapping.
   - A mapping that the system refuses to take back is not forgotten: it goes
     on the list of strays, and the next request of its size gets it.  The
     list lives in the strays' own memory, so keeping it cannot fail.
   - Every mapping on explicit pages, strays included, is in the table of
     explicit arenas from before anybody uses it until it is unmapped: a fork
     must find them all.  Where the table cannot grow, the arena gets other
     pages.

   Interpreters with a GIL of their own call in here at the same time.  One
   lock is held over each operation, system calls included, so that a fork,
   which takes the lock as well, never sees half of one.  That costs little:
   what takes long, clearing the pages, is bounded by the memory's speed for
   all threads together. */

#include "hugepages.h"

/* A mapping that the system would not take back, seen as a list node. */
typedef struct hugepages_stray {
    struct hugepages_stray *next;
    size_t size;
} hugepages_stray;

/* All of it is guarded by hugepages_os_lock(). */
static struct {
    /* PyMalloc_HugePages bits: the tiers that the switch allows, and those
       that the system has refused for good. */
    uint32_t allowed;
    uint32_t refused;
    /* Nonzero once system is filled. */
    int scanned;
    /* Nonzero once hugepages_os_enable_explicit() was called. */
    int enabled_explicit;
    hugepages_system system;
    hugepages_stray *strays;
    /* The arenas on explicit pages, in no order: explicit_count addresses in
       plain memory of explicit_table_size bytes. */
    void **explicit_arenas;
    size_t explicit_count;
    size_t explicit_table_size;
} hugepages_state;

/* The tiers that cannot work on this system, whatever is asked of them. */
static uint32_t
hugepages_impossible_tiers(const hugepages_system *system)
{
    uint32_t tiers = 0;
    if (system->explicit_page_size == 0
        || ARENA_SIZE % system->explicit_page_size != 0)
    {
        tiers |= PYMALLOC_HUGEPAGES_HUGETLB;
    }
    if (system->thp_size == 0
        || ARENA_SIZE % system->thp_size != 0
        || system->thp_disabled)
    {
        tiers |= PYMALLOC_HUGEPAGES_THP;
    }
    return tiers;
}

static uint32_t
hugepages_tiers(void)
{
    return hugepages_state.allowed & ~hugepages_state.refused;
}

static void
hugepages_set_tiers(uint32_t tiers)
{
    hugepages_state.allowed = tiers;
    if (tiers == PYMALLOC_HUGEPAGES_OFF) {
        return;
    }
    if (!hugepages_state.scanned) {
        hugepages_os_scan(&hugepages_state.system);
        hugepages_state.refused |=
            hugepages_impossible_tiers(&hugepages_state.system);
        hugepages_state.scanned = 1;
    }
    if ((hugepages_tiers() & PYMALLOC_HUGEPAGES_HUGETLB)
        && !hugepages_state.enabled_explicit)
    {
        int os_error;
        if (hugepages_os_enable_explicit(&os_error) != HUGEPAGES_OK) {
            hugepages_state.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
        }
        hugepages_state.enabled_explicit = 1;
    }
}

void
_PyMem_SetHugePages(int tiers)
{
    int os_error;
    hugepages_result watched = hugepages_os_watch_fork(&os_error);
    hugepages_os_lock();
    if (watched != HUGEPAGES_OK) {
        hugepages_state.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
    }
    hugepages_set_tiers((uint32_t)tiers);
    hugepages_os_unlock();
}

static void
hugepages_push_stray(void *address, size_t size)
{
    hugepages_stray *stray = (hugepages_stray *)address;
    stray->size = size;
    stray->next = hugepages_state.strays;
    hugepages_state.strays = stray;
}

/* Take a stray of this size off the list; NULL if there is none. */
static void *
hugepages_pop_stray(size_t size)
{
    hugepages_stray **link = &hugepages_state.strays;
    while (*link != NULL && (*link)->size != size) {
        link = &(*link)->next;
    }
    hugepages_stray *found = *link;
    if (found != NULL) {
        *link = found->next;
    }
    return found;
}

static void
hugepages_unmap(void *address, size_t size)
{
    int os_error;
    if (hugepages_os_unmap(address, size, &os_error) != HUGEPAGES_OK) {
        hugepages_push_stray(address, size);
    }
}

/* Have room for one more address in the table of explicit arenas.  Return 0,
   or -1 if there is no memory. */
static int
hugepages_grow_explicit(void)
{
    size_t used = hugepages_state.explicit_count * sizeof(void *);
    size_t old_size = hugepages_state.explicit_table_size;
    if (used < old_size) {
        return 0;
    }
    size_t new_size = old_size > 0 ? 2 * old_size
                                   : hugepages_state.system.base_page_size;
    void *table = NULL;
    int os_error;
    if (hugepages_os_map_plain(new_size, &table, &os_error) != HUGEPAGES_OK) {
        return -1;
    }
    if (old_size > 0) {
        memcpy(table, hugepages_state.explicit_arenas, used);
        hugepages_unmap(hugepages_state.explicit_arenas, old_size);
    }
    hugepages_state.explicit_arenas = (void **)table;
    hugepages_state.explicit_table_size = new_size;
    return 0;
}

/* Remove an entry of the table; the last one takes its place. */
static void
hugepages_remove_explicit(size_t index)
{
    hugepages_state.explicit_count--;
    hugepages_state.explicit_arenas[index] =
        hugepages_state.explicit_arenas[hugepages_state.explicit_count];
}

/* Return the index of an address in the table, or explicit_count if it is not
   there.  Among ten thousand arenas (20 GiB) the search takes 3 us at
   most, where mapping, clearing and unmapping an arena takes 190; and what was
   mapped last, which is often unmapped first, is found first. */
static size_t
hugepages_find_explicit(const void *address)
{
    size_t index = hugepages_state.explicit_count;
    while (index-- > 0) {
        if (hugepages_state.explicit_arenas[index] == address) {
            return index;
        }
    }
    return hugepages_state.explicit_count;
}

/* Map an arena on the pages that the first tier grants which is among tiers.
   Return NULL if none of them does.  A tier that says never is dropped. */
static void *
hugepages_map_huge(uint32_t tiers)
{
    void *address = NULL;
    int os_error;
    hugepages_result result;

    tiers &= hugepages_tiers();
    if ((tiers & PYMALLOC_HUGEPAGES_HUGETLB)
        && hugepages_grow_explicit() == 0)
    {
        result = hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error);
        if (result == HUGEPAGES_OK) {
            size_t index = hugepages_state.explicit_count++;
            hugepages_state.explicit_arenas[index] = address;
            return address;
        }
        if (result == HUGEPAGES_NEVER) {
            hugepages_state.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
        }
    }
    if (tiers & PYMALLOC_HUGEPAGES_THP) {
        result = hugepages_os_map_thp(ARENA_SIZE, &address, &os_error);
        if (result == HUGEPAGES_OK) {
            return address;
        }
        if (result == HUGEPAGES_NEVER) {
            hugepages_state.refused |= PYMALLOC_HUGEPAGES_THP;
        }
    }
    return NULL;
}

/* Map size bytes, an arena on pages of one of these tiers if it can be had.
   Return NULL if there is no memory. */
static void *
hugepages_map(size_t size, uint32_t tiers)
{
    void *address = NULL;
    int os_error;
    if (size == ARENA_SIZE) {
        address = hugepages_map_huge(tiers);
    }
    if (address == NULL
        && hugepages_os_map_plain(size, &address, &os_error) != HUGEPAGES_OK)
    {
        return NULL;
    }
    return address;
}

/* Return size bytes that nobody else uses, aligned at least to a base page, or
   NULL.  The content is not specified. */
static void *
hugepages_alloc(size_t size)
{
    hugepages_os_lock();
    void *address = hugepages_pop_stray(size);
    if (address == NULL) {
        address = hugepages_map(size, PYMALLOC_HUGEPAGES_ON);
    }
    hugepages_os_unlock();
    return address;
}

/* Give back what hugepages_alloc(size) returned.  NULL is accepted. */
static void
hugepages_free(void *address, size_t size)
{
    int os_error;
    if (address == NULL) {
        return;
    }
    hugepages_os_lock();
    size_t index = hugepages_find_explicit(address);
    if (hugepages_os_unmap(address, size, &os_error) != HUGEPAGES_OK) {
        hugepages_push_stray(address, size);
    }
    else if (index < hugepages_state.explicit_count) {
        hugepages_remove_explicit(index);
    }
    hugepages_os_unlock();
}
