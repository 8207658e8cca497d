/* Policy: which pages an arena gets.

   A request goes down a list of tiers until one grants it:

       a retained arena       one that was given back a moment ago (retain.c)
       the first arenas       plain memory for now, see below
       explicit huge pages    proved by the OS layer to be there, so that
                              neither a cgroup limit nor an empty pool can end
                              in SIGBUS later
       THP                    memory aligned to its size, so that the kernel
                              can use huge pages for all of it
       plain memory           what stock CPython asks for

   The first arenas of pymalloc, and those of medium blocks (heap.c), are plain
   memory whatever there is: most processes never need more, and do not fill
   them, so huge pages would cost them memory and time for nothing.  When
   another one is needed, the first ones are full, and the kernel is advised to
   put them on transparent huge pages; it does so in the background
   (khugepaged), which takes seconds, so serves those that run for long.  The
   roomy heap, whose blocks a program may not fill, goes on with plain memory
   as long as much of what it has was never touched.

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
   - Every mapping on explicit pages, retained ones and strays included, is in
     a table from before anybody uses it until it is unmapped: a fork must find
     them all.
     Arenas on THP are in another one, so that they are known as such when they
     are freed.  Where a table cannot grow, the arena gets other pages.

   Interpreters with a GIL of their own call in here at the same time.  One
   lock is held over each operation, system calls included, so that a fork,
   which takes the lock as well, never sees half of one.  That costs little:
   what takes long, clearing the pages, is bounded by the memory's speed for
   all threads together. */

#include "hugepages.h"

/* The arenas on one kind of page, in no order.  Most programs need no more
   than the first entries; a larger table is plain memory of size bytes.  The C
   tests have fewer. */
#ifndef HUGEPAGES_FIRST_ENTRIES
#  define HUGEPAGES_FIRST_ENTRIES 64
#endif

typedef struct {
    void **addresses;
    size_t count;
    /* 0: addresses is first_entries. */
    size_t size;
    void *first_entries[HUGEPAGES_FIRST_ENTRIES];
} hugepages_table;

/* A mapping that the system would not take back, seen as a list node. */
typedef struct hugepages_stray {
    struct hugepages_stray *next;
    size_t size;
} hugepages_stray;

/* Who asks for arenas: pymalloc; heap.c for its two heaps. */
typedef enum {
    HUGEPAGES_FOR_POOLS,
    HUGEPAGES_FOR_DENSE,
    HUGEPAGES_FOR_ROOMY,
    HUGEPAGES_USES
} hugepages_use;

/* How many arenas of each use are plain memory at first.  An interpreter that
   has imported a handful of modules has 2 to 4 MiB of small objects, and less
   than 1 MiB of medium ones; a server with a thousand threads that each wait
   with two buffers of 8 KiB has 8 MiB of small objects and 16 MiB of buffers.
   */
#define HUGEPAGES_MOST_FIRST 8
static const size_t hugepages_first_count[HUGEPAGES_USES] = {
    [HUGEPAGES_FOR_POOLS] = 4,
    [HUGEPAGES_FOR_DENSE] = 1,
    [HUGEPAGES_FOR_ROOMY] = HUGEPAGES_MOST_FIRST,
};

/* The plain memory of pymalloc from the third arena on is faulted in ahead, so
   many bytes at once: a program that has come so far soon needs them, and a
   page that comes with others is cheaper. */
#define HUGEPAGES_FILLED_FROM 2
#define HUGEPAGES_FILLED_AT_ONCE ((size_t)128 * 1024)

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
    /* Of the kinds before HUGEPAGES_PLAIN. */
    hugepages_table arenas[HUGEPAGES_PLAIN];
    /* How many arenas each use has; those of them that are plain memory for
       now, in no order, else NULL. */
    size_t used[HUGEPAGES_USES];
    void *first[HUGEPAGES_USES][HUGEPAGES_MOST_FIRST];
} hugepages_state;

static hugepages_table *const hugepages_explicit =
    &hugepages_state.arenas[HUGEPAGES_EXPLICIT];

/* Why explicit pages cannot work on this system, whatever is asked of it, or
   NULL. */
static const char *
hugepages_no_explicit(const hugepages_system *system)
{
    if (system->explicit_page_size == 0
        || ARENA_SIZE % system->explicit_page_size != 0)
    {
        return "this system has no huge page that fits an arena";
    }
    return NULL;
}

/* The same of THP. */
static const char *
hugepages_no_thp(const hugepages_system *system)
{
    if (system->thp_size == 0) {
        return "this system has no transparent huge pages";
    }
    if (ARENA_SIZE % system->thp_size != 0) {
        return "a transparent huge page of this system does not fit an arena";
    }
    if (system->thp_disabled) {
        return "transparent huge pages are disabled for this process";
    }
    return NULL;
}

static uint32_t
hugepages_tiers(void)
{
    return hugepages_state.allowed & ~hugepages_state.refused;
}

/* Take note that the system has refused a tier. */
static void
hugepages_note_refused(uint32_t tier, hugepages_result result, int os_error)
{
    hugepages_count_refused(tier == PYMALLOC_HUGEPAGES_HUGETLB
                            ? HUGEPAGES_EXPLICIT : HUGEPAGES_THP, os_error);
    if (result == HUGEPAGES_NEVER) {
        hugepages_state.refused |= tier;
    }
}

static void
hugepages_set_tiers(uint32_t tiers)
{
    hugepages_state.allowed = tiers;
    (void)hugepages_release_all();
    if (tiers == PYMALLOC_HUGEPAGES_OFF) {
        return;
    }
    if (!hugepages_state.scanned) {
        hugepages_os_scan(&hugepages_state.system);
        if (hugepages_no_explicit(&hugepages_state.system) != NULL) {
            hugepages_state.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
        }
        if (hugepages_no_thp(&hugepages_state.system) != NULL) {
            hugepages_state.refused |= PYMALLOC_HUGEPAGES_THP;
        }
        hugepages_state.scanned = 1;
    }
    if ((hugepages_tiers() & PYMALLOC_HUGEPAGES_HUGETLB)
        && !hugepages_state.enabled_explicit)
    {
        int os_error;
        if (hugepages_os_enable_explicit(&os_error) != HUGEPAGES_OK) {
            hugepages_note_refused(PYMALLOC_HUGEPAGES_HUGETLB,
                                   HUGEPAGES_NEVER, os_error);
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
        hugepages_note_refused(PYMALLOC_HUGEPAGES_HUGETLB, HUGEPAGES_NEVER,
                               os_error);
    }
    hugepages_set_tiers((uint32_t)tiers);
    hugepages_os_unlock();
}

static const char *
hugepages_switch_value(uint32_t tiers)
{
    switch (tiers) {
    case PYMALLOC_HUGEPAGES_OFF:
        return "off";
    case PYMALLOC_HUGEPAGES_THP:
        return "thp";
    case PYMALLOC_HUGEPAGES_HUGETLB:
        return "hugetlb";
    default:
        return "on";
    }
}

/* Why a tier is not asked for, or NULL; impossible is why it cannot be. */
static const char *
hugepages_why_unusable(uint32_t tier, const char *impossible)
{
    if (!(hugepages_state.allowed & tier)) {
        return "the switch leaves it out";
    }
    if (hugepages_state.refused & tier) {
        return impossible != NULL ? impossible
                                  : "the system has refused it for good";
    }
    return NULL;
}

static void
hugepages_copy_stats(hugepages_kind kind, const char *unusable,
                     _PyMem_HugePagesTier *copy)
{
    *copy = hugepages_stats[kind];
    for (size_t i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        copy->refused[i].name =
            hugepages_os_error_name(copy->refused[i].error);
    }
    copy->unusable = unusable;
}

void
_PyMem_GetHugePagesStats(_PyMem_HugePagesStats *stats)
{
    const hugepages_system *system = &hugepages_state.system;
    hugepages_os_lock();
    stats->switch_value = hugepages_switch_value(hugepages_state.allowed);
    hugepages_copy_stats(
        HUGEPAGES_EXPLICIT,
        hugepages_why_unusable(PYMALLOC_HUGEPAGES_HUGETLB,
                               hugepages_no_explicit(system)),
        &stats->hugetlb);
    hugepages_copy_stats(
        HUGEPAGES_THP,
        hugepages_why_unusable(PYMALLOC_HUGEPAGES_THP,
                               hugepages_no_thp(system)),
        &stats->thp);
    hugepages_copy_stats(HUGEPAGES_PLAIN, NULL, &stats->plain);
    /* Large blocks have THP or nothing. */
    hugepages_copy_stats(HUGEPAGES_LARGE, stats->thp.unusable, &stats->large);
    hugepages_copy_stats(HUGEPAGES_RETAINED, NULL, &stats->retained);
    hugepages_os_unlock();
}

static void
hugepages_push_stray(void *address, size_t size)
{
    hugepages_stray *stray = (hugepages_stray *)address;
    stray->size = size;
    stray->next = hugepages_state.strays;
    hugepages_state.strays = stray;
    if (size == ARENA_SIZE) {
        hugepages_count_mapped(HUGEPAGES_RETAINED, 1);
    }
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
        if (size == ARENA_SIZE) {
            hugepages_count_unmapped(HUGEPAGES_RETAINED, 1);
        }
    }
    return found;
}

/* Have room for one more address in a table.  Return 0, or -1 if there is no
   memory. */
static int
hugepages_grow_table(hugepages_table *table)
{
    size_t old_size = table->size;
    size_t room = old_size > 0 ? old_size / sizeof(void *)
                               : HUGEPAGES_FIRST_ENTRIES;
    if (table->addresses == NULL) {
        table->addresses = table->first_entries;
    }
    if (table->count < room) {
        return 0;
    }
    size_t new_size = 2 * old_size;
    if (old_size == 0) {
        /* As many base pages as hold more than the first entries. */
        size_t page_size = hugepages_state.system.base_page_size;
        new_size = (sizeof(table->first_entries) / page_size + 1) * page_size;
    }
    void *addresses = NULL;
    int os_error;
    if (hugepages_os_map_plain(new_size, &addresses, &os_error)
        != HUGEPAGES_OK)
    {
        return -1;
    }
    memcpy(addresses, table->addresses, table->count * sizeof(void *));
    if (old_size > 0
        && hugepages_os_unmap(table->addresses, old_size, &os_error)
           != HUGEPAGES_OK)
    {
        hugepages_push_stray(table->addresses, old_size);
        if (old_size == ARENA_SIZE) {
            /* From now on it serves as one. */
            hugepages_count_mapped(HUGEPAGES_PLAIN, 1);
        }
    }
    table->addresses = (void **)addresses;
    table->size = new_size;
    return 0;
}

/* Return what an arena sits on, and set *index to its place in the table of
   its kind, if that has one.  Among ten thousand arenas (20 GiB) the search
   takes 3 us at most, where mapping, clearing and unmapping an arena takes
   190; and what was mapped last, which is often unmapped first, is found
   first. */
static hugepages_kind
hugepages_find(const void *address, size_t *index)
{
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        const hugepages_table *table = &hugepages_state.arenas[kind];
        *index = table->count;
        while ((*index)-- > 0) {
            if (table->addresses[*index] == address) {
                return kind;
            }
        }
    }
    return HUGEPAGES_PLAIN;
}

/* Take note of what an arena sits on, in the table of its kind, which has room
   for it since it was mapped, and in the statistics. */
static void
hugepages_register(void *address, hugepages_kind kind)
{
    if (kind < HUGEPAGES_PLAIN) {
        hugepages_table *table = &hugepages_state.arenas[kind];
        table->addresses[table->count] = address;
        table->count++;
    }
    hugepages_count_mapped(kind, 1);
}

/* The opposite, with what hugepages_find() has found.  The last entry of the
   table takes its place. */
static void
hugepages_unregister(hugepages_kind kind, size_t index)
{
    if (kind < HUGEPAGES_PLAIN) {
        hugepages_table *table = &hugepages_state.arenas[kind];
        table->count--;
        table->addresses[index] = table->addresses[table->count];
    }
    hugepages_count_unmapped(kind, 1);
}

/* Ask for an arena on one kind of huge pages, with room for it in their table.
   Return NULL if it is refused; a tier that says never is dropped. */
static void *
hugepages_map_huge(uint32_t tier)
{
    hugepages_kind kind = tier == PYMALLOC_HUGEPAGES_HUGETLB
                          ? HUGEPAGES_EXPLICIT : HUGEPAGES_THP;
    void *address = NULL;
    int os_error;
    if (!(hugepages_tiers() & tier)
        || hugepages_grow_table(&hugepages_state.arenas[kind]) < 0)
    {
        return NULL;
    }
    hugepages_result result =
        kind == HUGEPAGES_EXPLICIT
        ? hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error)
        : hugepages_os_map_thp(ARENA_SIZE, &address, &os_error);
    if (result == HUGEPAGES_OK) {
        return address;
    }
    hugepages_note_refused(tier, result, os_error);
    return NULL;
}

/* Map an arena on the best pages that are granted, of those of tiers or plain
   ones, and set *kind to what it got.  Return NULL if there is no memory.  The
   caller registers it. */
static void *
hugepages_map_arena(uint32_t tiers, hugepages_kind *kind)
{
    void *address = NULL;
    int os_error;

    *kind = HUGEPAGES_EXPLICIT;
    if (tiers & PYMALLOC_HUGEPAGES_HUGETLB) {
        address = hugepages_map_huge(PYMALLOC_HUGEPAGES_HUGETLB);
    }
    if (address == NULL && (tiers & PYMALLOC_HUGEPAGES_THP)) {
        *kind = HUGEPAGES_THP;
        address = hugepages_map_huge(PYMALLOC_HUGEPAGES_THP);
    }
    if (address == NULL) {
        *kind = HUGEPAGES_PLAIN;
        if (hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            != HUGEPAGES_OK)
        {
            hugepages_count_refused(HUGEPAGES_PLAIN, os_error);
            return NULL;
        }
    }
    return address;
}

/* Replace an address among the first arenas of a use: NULL by one that is
   plain memory, or such a one by NULL. */
static void
hugepages_replace_first(hugepages_use use, const void *old, void *new)
{
    for (size_t i = 0; i < hugepages_first_count[use]; i++) {
        if (hugepages_state.first[use][i] == old) {
            hugepages_state.first[use][i] = new;
            return;
        }
    }
}

/* Map an arena of plain memory that may be promoted later; NULL if there is
   none to be had. */
static void *
hugepages_map_promotable(void)
{
    void *address = NULL;
    int os_error;
    if (hugepages_os_map_aligned(ARENA_SIZE, ARENA_SIZE, &address, &os_error)
        != HUGEPAGES_OK)
    {
        return NULL;
    }
    hugepages_register(address, HUGEPAGES_PLAIN);
    return address;
}

/* Let an arena that is plain memory have a huge page when it can. */
static void
hugepages_promote(void *address)
{
    int os_error;
    if (!(hugepages_tiers() & PYMALLOC_HUGEPAGES_THP)
        || hugepages_grow_table(&hugepages_state.arenas[HUGEPAGES_THP]) < 0)
    {
        return;
    }
    hugepages_result result = hugepages_os_advise(address, ARENA_SIZE,
                                                  &os_error);
    if (result == HUGEPAGES_OK) {
        hugepages_count_unmapped(HUGEPAGES_PLAIN, 1);
        hugepages_register(address, HUGEPAGES_THP);
    }
    else {
        hugepages_note_refused(PYMALLOC_HUGEPAGES_THP, result, os_error);
    }
}

/* Whether the program fills the blocks of the roomy heap: whether three
   quarters of its first arenas are in memory.  A system that does not tell is
   taken to say yes. */
static int
hugepages_is_roomy_filled(void)
{
    size_t resident = 0;
    size_t total = 0;
    for (size_t i = 0; i < HUGEPAGES_MOST_FIRST; i++) {
        const void *address = hugepages_state.first[HUGEPAGES_FOR_ROOMY][i];
        if (address != NULL) {
            size_t size = ARENA_SIZE;
            (void)hugepages_os_resident(address, ARENA_SIZE, &size);
            resident += size;
            total += ARENA_SIZE;
        }
    }
    return resident >= total / 4 * 3;
}

/* Whether a further arena of a use is to be plain memory, as its first ones. */
static int
hugepages_wants_plain(hugepages_use use)
{
    if (hugepages_tiers() == PYMALLOC_HUGEPAGES_OFF) {
        return 0;
    }
    if (hugepages_state.used[use] < hugepages_first_count[use]) {
        return 1;
    }
    return use == HUGEPAGES_FOR_ROOMY && !hugepages_is_roomy_filled();
}

/* Promote the first arenas of a use. */
static void
hugepages_promote_first(hugepages_use use)
{
    for (size_t i = 0; i < hugepages_first_count[use]; i++) {
        void *address = hugepages_state.first[use][i];
        if (address != NULL) {
            hugepages_state.first[use][i] = NULL;
            hugepages_promote(address);
        }
    }
}

/* Whether an arena is aligned: where no aligned memory was to be had, it has
   what stock CPython asks for, which can neither be promoted nor be a heap's.
   */
static int
hugepages_is_aligned(const void *address)
{
    return ((uintptr_t)address & (ARENA_SIZE - 1)) == 0;
}

/* Map and register an arena, or return NULL if there is no memory.  One of a
   heap is aligned even if it is plain memory, where the system can: the heaps
   have no use for another one (see units.c). */
static void *
hugepages_new_arena(hugepages_use use, int is_plain)
{
    hugepages_kind kind;
    void *address = is_plain ? hugepages_map_promotable() : NULL;
    if (address != NULL) {
        return address;
    }
    address = hugepages_map_arena(PYMALLOC_HUGEPAGES_ON, &kind);
    if (address == NULL) {
        return NULL;
    }
    hugepages_register(address, kind);
    if (use != HUGEPAGES_FOR_POOLS && !hugepages_is_aligned(address)) {
        void *aligned = hugepages_map_promotable();
        if (aligned != NULL) {
            hugepages_unmap_arena(address);
            address = aligned;
        }
    }
    return address;
}

/* Return an arena: one that was kept, or a new one; NULL if there is none. */
static void *
hugepages_alloc_arena(hugepages_use use)
{
    size_t index;
    int is_plain = hugepages_wants_plain(use);
    hugepages_look_at_clock();
    void *address = hugepages_take_retained(is_plain ? HUGEPAGES_PLAIN
                                                     : HUGEPAGES_THP);
    if (address == NULL) {
        address = hugepages_pop_stray(ARENA_SIZE);
    }
    if (address == NULL) {
        hugepages_note_missed(1);
        address = hugepages_new_arena(use, is_plain);
        /* What is kept may be large blocks, or plain memory. */
        if (address == NULL && hugepages_release_all() > 0) {
            address = hugepages_new_arena(use, is_plain);
        }
    }
    if (address == NULL) {
        return NULL;
    }
    if (!is_plain) {
        hugepages_promote_first(use);
    }
    else if (hugepages_find(address, &index) == HUGEPAGES_PLAIN
             && hugepages_is_aligned(address)
             && hugepages_state.used[use] < hugepages_first_count[use])
    {
        hugepages_replace_first(use, NULL, address);
    }
    hugepages_state.used[use]++;
    return address;
}

/* Called with each pool that pymalloc is about to use for the first time. */
static void
hugepages_fill_ahead(void *pool)
{
    if (((uintptr_t)pool & (HUGEPAGES_FILLED_AT_ONCE - 1)) != 0) {
        return;
    }
    void *arena = (void *)((uintptr_t)pool & ~(uintptr_t)(ARENA_SIZE - 1));
    void **first = hugepages_state.first[HUGEPAGES_FOR_POOLS];
    hugepages_os_lock();
    for (size_t i = HUGEPAGES_FILLED_FROM;
         i < hugepages_first_count[HUGEPAGES_FOR_POOLS]; i++)
    {
        if (first[i] == arena) {
            hugepages_os_fill(pool, HUGEPAGES_FILLED_AT_ONCE);
        }
    }
    hugepages_os_unlock();
}

/* Return plain memory of any other size, or NULL.  Where it is refused, arenas
   that nobody uses are not to be kept. */
static void *
hugepages_alloc_plain(size_t size)
{
    int os_error;
    void *address = hugepages_pop_stray(size);
    if (address != NULL
        || hugepages_os_map_plain(size, &address, &os_error) == HUGEPAGES_OK)
    {
        return address;
    }
    if (hugepages_release_all() > 0
        && hugepages_os_map_plain(size, &address, &os_error) == HUGEPAGES_OK)
    {
        return address;
    }
    return NULL;
}

/* Return size bytes that nobody else uses, aligned at least to a base page, or
   NULL.  The content is not specified. */
static void *
hugepages_alloc(size_t size)
{
    hugepages_os_lock();
    void *address = size == ARENA_SIZE
                    ? hugepages_alloc_arena(HUGEPAGES_FOR_POOLS)
                    : hugepages_alloc_plain(size);
    hugepages_os_unlock();
    return address;
}

/* Give a mapping back, or keep it as a stray.  Return whether it is gone. */
static int
hugepages_unmap_or_stray(void *address, size_t size)
{
    int os_error;
    if (hugepages_os_unmap(address, size, &os_error) != HUGEPAGES_OK) {
        hugepages_push_stray(address, size);
        return 0;
    }
    return 1;
}

/* Give an arena back with what hugepages_find() has found. */
static void
hugepages_unmap_found(void *address, hugepages_kind kind, size_t index)
{
    if (hugepages_unmap_or_stray(address, ARENA_SIZE)) {
        hugepages_unregister(kind, index);
    }
}

static void
hugepages_unmap_arena(void *address)
{
    size_t index;
    hugepages_kind kind = hugepages_find(address, &index);
    hugepages_unmap_found(address, kind, index);
}

/* Whether an arena may be kept, and be used for anything later: the switch may
   have changed since it was mapped.  Plain memory may if it is aligned, as
   that which hugepages_map_promotable() maps is. */
static int
hugepages_is_keepable(const void *address, hugepages_kind kind)
{
    switch (kind) {
    case HUGEPAGES_EXPLICIT:
        return (hugepages_state.allowed & PYMALLOC_HUGEPAGES_HUGETLB) != 0;
    case HUGEPAGES_THP:
        return (hugepages_state.allowed & PYMALLOC_HUGEPAGES_THP) != 0;
    default:
        return (hugepages_tiers() & PYMALLOC_HUGEPAGES_THP) != 0
               && hugepages_is_aligned(address);
    }
}

/* Give back what hugepages_alloc_arena(use) returned. */
static void
hugepages_free_arena(void *address, hugepages_use use)
{
    size_t index;
    hugepages_look_at_clock();
    hugepages_state.used[use]--;
    hugepages_replace_first(use, address, NULL);
    hugepages_kind kind = hugepages_find(address, &index);
    if (!hugepages_is_keepable(address, kind)
        || !hugepages_retain(address, kind))
    {
        hugepages_unmap_found(address, kind, index);
    }
}

/* Give back what hugepages_alloc(size) returned.  NULL is accepted. */
static void
hugepages_free(void *address, size_t size)
{
    if (address == NULL) {
        return;
    }
    hugepages_os_lock();
    if (size != ARENA_SIZE) {
        (void)hugepages_unmap_or_stray(address, size);
    }
    else {
        hugepages_free_arena(address, HUGEPAGES_FOR_POOLS);
    }
    hugepages_os_unlock();
}
