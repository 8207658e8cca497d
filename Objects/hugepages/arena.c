/* Policy: taking an arena and giving it back.

   A request for an arena gets, of these, the first that there is: an arena
   that was given back a moment ago and kept, or one on the best tier that
   grants it (tiers.c).

   The first arenas of each interpreter are plain memory whatever there is:
   most processes never need more, and do not fill them, so huge pages would
   cost them memory for nothing.  pymalloc.c knows which ones they are, and has
   them promoted when another one is needed: the kernel is advised to put them
   on transparent huge pages, and does so in the background (khugepaged).

   Which arenas are kept?  pymalloc gives an arena back the moment it is empty,
   and a program that builds a structure and drops it in turns pays for mapping
   and clearing the same memory each time.  But what a program has dropped it
   may never want again, and then the memory is wanted for something else, in
   this process or another one.  Nothing in a process runs by itself, so
   nothing could take back later what was kept for too long.  So what is kept
   is a number of arenas that nobody misses, whatever the program does next.
   Two let a program that grows and shrinks by a few arenas take 15 % less
   time.  Loops that build and drop 100 MiB gain nothing that could be measured
   from 8, 5 % from 32, and 8 % from keeping all.

   There is no lock: table.c says why and how.  The rest of the state are words
   that are set one by one. */

#include "hugepages.h"

/* In arenas of 2 MiB. */
#ifndef HUGEPAGES_KEEP_MOST
#  define HUGEPAGES_KEEP_MOST 2
#endif

/* Of this process. */
static struct {
    /* Whether it has forked, or was forked. */
    uint32_t has_forked;
    /* How often it has become a child. */
    uint32_t children;
    /* How many of its threads copy arenas on explicit pages at the moment. */
    Py_ssize_t copying;
} hugepages_process;

/* How many arenas are kept. */
static Py_ssize_t
hugepages_kept(void)
{
    return _Py_atomic_load_ssize_relaxed(&hugepages_stats.retained.now);
}

/* Whether an arena may be kept that has this in the table.  One that a forked
   process shares is of no use to either. */
static int
hugepages_may_keep(uintptr_t value)
{
    hugepages_kind kind = hugepages_kind_of(value);
    return !(value & HUGEPAGES_IS_SHARED)
           && (hugepages_usable() & HUGEPAGES_BIT(kind)) != 0
           && hugepages_kept() < HUGEPAGES_KEEP_MOST;
}

/* Return an arena that was kept, or NULL if there is none. */
static void *
hugepages_take_kept(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    if (hugepages_kept() == 0) {
        return NULL;
    }
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr_relaxed(entry);
        if ((value & HUGEPAGES_IS_FREE)
            && hugepages_replace_entry(entry, value,
                                       value & ~HUGEPAGES_IS_FREE))
        {
            hugepages_count_one_less(&hugepages_stats.retained);
            return hugepages_address_of(value);
        }
    }
    return NULL;
}

/* Give a mapping of ARENA_SIZE back that nobody uses and that is not in the
   table.  Return whether it is gone.  Where the system refuses to take it, the
   next request gets it; but explicit pages are not proved any more, and what
   is not aligned does not fit the table: these are lost, as in stock CPython.
   */
static int
hugepages_unmap_arena(void *address, hugepages_kind kind)
{
    int os_error;
    /* A thread that forks may be copying it: then it is kept. */
    if (kind != HUGEPAGES_EXPLICIT
        || _Py_atomic_load_ssize(&hugepages_process.copying) == 0)
    {
        if (hugepages_os_unmap(address, ARENA_SIZE, &os_error) == HUGEPAGES_OK)
        {
            hugepages_count_unmapped(kind);
            return 1;
        }
        if (kind == HUGEPAGES_EXPLICIT
            || ((uintptr_t)address & HUGEPAGES_FLAGS) != 0)
        {
            return 0;
        }
    }
    uintptr_t *entry = hugepages_reserve_entry();
    if (entry != NULL) {
        hugepages_count_one_more(&hugepages_stats.retained);
        hugepages_fill_entry(entry, address,
                             hugepages_flag(kind) | HUGEPAGES_IS_FREE);
    }
    return 0;
}

/* Give back all that is kept, and return how many arenas the system took. */
static int
hugepages_release_kept(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    int released = 0;
    /* One that the system does not take comes into the table again. */
    Py_ssize_t most = hugepages_kept();
    while (most > 0 && (entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr_relaxed(entry);
        if ((value & HUGEPAGES_IS_FREE)
            && hugepages_empty_entry(entry, value))
        {
            hugepages_kind kind = hugepages_kind_of(value);
            hugepages_count_one_less(&hugepages_stats.retained);
            released += hugepages_unmap_arena(hugepages_address_of(value),
                                              kind);
            most--;
        }
    }
    return released;
}

/* Map an arena on the best huge pages that are granted; NULL if none are. */
static void *
hugepages_map_best(void)
{
    uint32_t usable = hugepages_usable();
    uint32_t children = _Py_atomic_load_uint32_relaxed(
        &hugepages_process.children);
    if (usable == 0) {
        return NULL;
    }
    uintptr_t *entry = hugepages_reserve_entry();
    if (entry == NULL) {
        return NULL;
    }
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        void *address;
        if (!(usable & HUGEPAGES_BIT(kind))
            || !hugepages_map_on_tier(kind, &address))
        {
            continue;
        }
        hugepages_fill_entry(entry, address, hugepages_flag(kind));
        /* If a signal handler has forked, and this is the child, it is the
           parent's, unless fork.c has found it in the table. */
        if (kind == HUGEPAGES_EXPLICIT
            && children != _Py_atomic_load_uint32_relaxed(
                               &hugepages_process.children)
            && hugepages_empty_entry(entry, (uintptr_t)address
                                            | hugepages_flag(kind)))
        {
            (void)hugepages_unmap_arena(address, kind);
            return NULL;
        }
        return address;
    }
    hugepages_drop_entry(entry);
    return NULL;
}

// --- what pymalloc.c calls -------------------------------------------------

/* Return size bytes of plain memory, aligned to a base page, or NULL. */
static void *
hugepages_take_plain(size_t size)
{
    void *address = NULL;
    int os_error;
    /* Where memory is refused, arenas that nobody uses are not to be kept. */
    do {
        if (hugepages_os_map_plain(size, &address, &os_error)
            == HUGEPAGES_OK)
        {
            if (size == ARENA_SIZE) {
                hugepages_count_mapped(HUGEPAGES_PLAIN);
            }
            return address;
        }
    } while (hugepages_release_kept() > 0);
    if (size == ARENA_SIZE) {
        hugepages_count_refused(HUGEPAGES_PLAIN, os_error);
    }
    return NULL;
}

/* Return an arena, on the best pages that there are, or NULL if there is no
   memory.  It is aligned at least to a base page.  Its content is not
   specified.  hugepages_give() takes it back. */
static void *
hugepages_take(void)
{
    void *address = hugepages_take_kept();
    if (address == NULL) {
        address = hugepages_map_best();
    }
    return address != NULL ? address : hugepages_take_plain(ARENA_SIZE);
}

/* The same of one of the first arenas of an interpreter: plain memory that may
   be promoted. */
static void *
hugepages_take_first(void)
{
    void *address = hugepages_take_kept();
    int os_error;
    if (address == NULL && hugepages_usable() != 0
        && hugepages_os_map_aligned(ARENA_SIZE, &address, &os_error)
           == HUGEPAGES_OK)
    {
        hugepages_count_mapped(HUGEPAGES_PLAIN);
        return address;
    }
    return address != NULL ? address : hugepages_take();
}

/* Let an arena that is plain memory have a huge page when it can.  Nothing
   happens if it has one, or is not aligned.  Nor after a fork: it may be
   shared, and the kernel would copy it. */
static void
hugepages_promote(void *address)
{
    uintptr_t value;
    int os_error;
    if (!(hugepages_usable() & HUGEPAGES_BIT(HUGEPAGES_THP))
        || _Py_atomic_load_uint32_relaxed(&hugepages_process.has_forked)
        || ((uintptr_t)address & HUGEPAGES_FLAGS) != 0
        || hugepages_find_entry(address, &value) != NULL)
    {
        return;
    }
    uintptr_t *entry = hugepages_reserve_entry();
    if (entry == NULL) {
        return;
    }
    hugepages_result result = hugepages_os_advise(address, ARENA_SIZE,
                                                  &os_error);
    if (result != HUGEPAGES_OK) {
        hugepages_drop_entry(entry);
        hugepages_note_refused(HUGEPAGES_THP, result, os_error);
        return;
    }
    hugepages_count_mapped(HUGEPAGES_THP);
    hugepages_fill_entry(entry, address, HUGEPAGES_IS_THP);
    hugepages_count_unmapped(HUGEPAGES_PLAIN);
}

/* Take back what one of the functions above returned as an arena. */
static void
hugepages_give(void *address)
{
    uintptr_t value;
    uintptr_t *entry;
    /* Again, if a fork has changed it meanwhile. */
    while ((entry = hugepages_find_entry(address, &value)) != NULL) {
        hugepages_kind kind = hugepages_kind_of(value);
        if (kind != HUGEPAGES_PLAIN && hugepages_may_keep(value)) {
            /* Counted first: another thread may take it at once. */
            hugepages_count_one_more(&hugepages_stats.retained);
            if (hugepages_replace_entry(entry, value,
                                        value | HUGEPAGES_IS_FREE))
            {
                return;
            }
            hugepages_count_one_less(&hugepages_stats.retained);
        }
        else if (hugepages_empty_entry(entry, value)) {
            (void)hugepages_unmap_arena(address, kind);
            return;
        }
    }
    (void)hugepages_unmap_arena(address, HUGEPAGES_PLAIN);
}

void
_PyMem_SetHugePages(int value)
{
    (void)hugepages_release_kept();
    hugepages_set_switch(value);
}
