/* Policy: the tiers, which are the kinds of pages that an arena may get, and
   which of them this process asks.  No system call.

   Best first:

       explicit huge pages    proved by the OS layer to be there, so that
                              neither a cgroup limit nor an empty pool can end
                              in SIGBUS later
       THP                    memory aligned to its size, so that the kernel
                              can use huge pages for all of it
       plain memory           what stock CPython asks for

   A tier that the system has said it will never serve is dropped for the rest
   of the process; one that is busy is asked again for the next arena.  Asking
   costs one failing system call, about a microsecond, against the hundred or
   so that clearing the arena's memory takes. */

#include "hugepages.h"

static const char *
hugepages_why_no_explicit(const hugepages_system *system)
{
    return system->explicit_page_size == 0
           || ARENA_SIZE % system->explicit_page_size != 0
           ? "this system has no huge page that fits an arena" : NULL;
}

static const char *
hugepages_why_no_thp(const hugepages_system *system)
{
    return system->thp_size == 0
           ? "this system has no transparent huge pages"
           : ARENA_SIZE % system->thp_size != 0
           ? "a transparent huge page of this system does not fit an arena"
           : system->thp_disabled
           ? "transparent huge pages are disabled for this process" : NULL;
}

/* Plain memory has no more than names: every system has it, whatever the
   switch says, and arena.c asks for it last. */
static const struct {
    /* The key in the statistics, and what they call it for people. */
    const char *name;
    const char *title;
    hugepages_result (*map)(size_t size, void **address, int *os_error);
    /* Why a system cannot have arenas on such pages, or NULL. */
    const char *(*why_impossible)(const hugepages_system *system);
} hugepages_tiers[HUGEPAGES_KINDS] = {
    [HUGEPAGES_EXPLICIT] = {"hugetlb", "hugetlb", hugepages_os_map_explicit,
                            hugepages_why_no_explicit},
    [HUGEPAGES_THP] = {"thp", "THP-advised", hugepages_os_map_thp,
                       hugepages_why_no_thp},
    [HUGEPAGES_PLAIN] = {"plain", "plain", NULL, NULL},
};

/* A set of tiers has a bit for each but plain memory. */
#define HUGEPAGES_BIT(kind) ((uint32_t)1 << (kind))

/* What each value of the switch allows. */
static const struct {
    const char *name;
    uint32_t tiers;
} hugepages_switch[] = {
    [PYMALLOC_HUGEPAGES_OFF] = {"off", 0},
    [PYMALLOC_HUGEPAGES_ON] = {"on", HUGEPAGES_BIT(HUGEPAGES_EXPLICIT)
                                     | HUGEPAGES_BIT(HUGEPAGES_THP)},
    [PYMALLOC_HUGEPAGES_THP] = {"thp", HUGEPAGES_BIT(HUGEPAGES_THP)},
    [PYMALLOC_HUGEPAGES_HUGETLB] = {"hugetlb",
                                    HUGEPAGES_BIT(HUGEPAGES_EXPLICIT)},
};

static struct {
    /* A PyMalloc_HugePages value. */
    int switch_value;
    /* The tiers that the system has refused for good. */
    uint32_t refused;
    /* Whether this process has forked with explicit pages, or is the child of
       such a fork, and there are THP. */
    uint32_t prefers_thp;
    /* Of hugepages_set_switch() alone: nonzero once system is filled, and once
       hugepages_os_enable_explicit() was called. */
    int scanned;
    int enabled_explicit;
    hugepages_system system;
} hugepages_state;

static uint32_t
hugepages_allowed(void)
{
    int value = _Py_atomic_load_int_relaxed(&hugepages_state.switch_value);
    return hugepages_switch[value].tiers;
}

/* The tiers to ask.  A process that had to copy explicit pages at a fork asks
   for no more of them where it can have THP. */
static uint32_t
hugepages_usable(void)
{
    uint32_t usable =
        hugepages_allowed()
        & ~_Py_atomic_load_uint32_relaxed(&hugepages_state.refused);
    if ((usable & HUGEPAGES_BIT(HUGEPAGES_THP))
        && _Py_atomic_load_uint32_relaxed(&hugepages_state.prefers_thp))
    {
        usable &= ~HUGEPAGES_BIT(HUGEPAGES_EXPLICIT);
    }
    return usable;
}

/* Why a tier is not asked, or NULL. */
static const char *
hugepages_why_unusable(hugepages_kind kind)
{
    if (kind == HUGEPAGES_PLAIN) {
        return NULL;
    }
    if (!(hugepages_allowed() & HUGEPAGES_BIT(kind))) {
        return "the switch leaves it out";
    }
    if (_Py_atomic_load_uint32_relaxed(&hugepages_state.refused)
        & HUGEPAGES_BIT(kind))
    {
        const char *why =
            hugepages_tiers[kind].why_impossible(&hugepages_state.system);
        return why != NULL ? why : "the system has refused it for good";
    }
    return NULL;
}

static void
hugepages_refuse_for_good(hugepages_kind kind)
{
    (void)_Py_atomic_or_uint32(&hugepages_state.refused, HUGEPAGES_BIT(kind));
}

/* Take note that the system has refused a tier. */
static void
hugepages_note_refused(hugepages_kind kind, hugepages_result result,
                       int os_error)
{
    hugepages_count_refused(kind, os_error);
    if (result == HUGEPAGES_NEVER) {
        hugepages_refuse_for_good(kind);
    }
}

/* Map an arena on a tier.  Return whether the system has granted it; *address
   is set then, and it is counted. */
static int
hugepages_map_on_tier(hugepages_kind kind, void **address)
{
    int os_error;
    hugepages_result result =
        hugepages_tiers[kind].map(ARENA_SIZE, address, &os_error);
    if (result != HUGEPAGES_OK) {
        hugepages_note_refused(kind, result, os_error);
        return 0;
    }
    hugepages_count_mapped(kind);
    return 1;
}

static void
hugepages_scan(void)
{
    hugepages_os_scan(&hugepages_state.system);
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        if (hugepages_tiers[kind].why_impossible(&hugepages_state.system)
            != NULL)
        {
            hugepages_refuse_for_good(kind);
        }
    }
    hugepages_state.scanned = 1;
}

/* See _PyMem_SetHugePages(). */
static void
hugepages_set_switch(int value)
{
    int os_error;
    uint32_t wanted = hugepages_switch[value].tiers;
    if (wanted != 0 && !hugepages_state.scanned) {
        hugepages_scan();
    }
    uint32_t usable =
        wanted & ~_Py_atomic_load_uint32_relaxed(&hugepages_state.refused);
    if ((usable & HUGEPAGES_BIT(HUGEPAGES_EXPLICIT))
        && !hugepages_state.enabled_explicit)
    {
        hugepages_state.enabled_explicit = 1;
        if (hugepages_os_enable_explicit(&os_error) != HUGEPAGES_OK) {
            hugepages_note_refused(HUGEPAGES_EXPLICIT, HUGEPAGES_NEVER,
                                   os_error);
        }
    }
    _Py_atomic_store_int_relaxed(&hugepages_state.switch_value, value);
}

void
_PyMem_GetHugePagesStats(_PyMem_HugePagesStats *stats)
{
    int value = _Py_atomic_load_int_relaxed(&hugepages_state.switch_value);
    stats->switch_value = hugepages_switch[value].name;
    stats->arena_size = ARENA_SIZE;
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KINDS; kind++) {
        _PyMem_HugePagesTier *tier = &stats->tiers[kind];
        hugepages_copy_counts(&hugepages_stats.kinds[kind], tier);
        tier->name = hugepages_tiers[kind].name;
        tier->title = hugepages_tiers[kind].title;
        tier->unusable = hugepages_why_unusable(kind);
    }
    _PyMem_HugePagesTier *retained = &stats->tiers[HUGEPAGES_KINDS];
    hugepages_copy_counts(&hugepages_stats.retained, retained);
    retained->name = "retained";
    retained->title = "retained of these";
}
