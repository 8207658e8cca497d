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

   Interpreters with a GIL of their own call in here at the same time, so all
   shared state is atomic.  There is no lock, hence none to be found held in
   the child of a fork. */

#include "hugepages.h"

/* A mapping that the system would not take back, seen as a list node. */
typedef struct hugepages_stray {
    struct hugepages_stray *next;
    size_t size;
} hugepages_stray;

static struct {
    /* PyMalloc_HugePages bits: the tiers that the switch allows, and those
       that the system has refused for good.  Read and written atomically. */
    uint32_t allowed;
    uint32_t refused;
    /* Nonzero once system is filled. */
    int scanned;
    /* Nonzero once hugepages_os_enable_explicit() was called. */
    int enabled_explicit;
    hugepages_system system;
    /* hugepages_stray *: head of the list of strays.  Only ever pushed to or
       taken whole, which makes it safe without a lock (no ABA problem). */
    void *strays;
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
    return _Py_atomic_load_uint32_relaxed(&hugepages_state.allowed)
           & ~_Py_atomic_load_uint32_relaxed(&hugepages_state.refused);
}

static void
hugepages_refuse(uint32_t tier)
{
    _Py_atomic_or_uint32(&hugepages_state.refused, tier);
}

void
_PyMem_SetHugePages(int tiers)
{
    _Py_atomic_store_uint32_relaxed(&hugepages_state.allowed,
                                    (uint32_t)tiers);
    if (tiers == PYMALLOC_HUGEPAGES_OFF) {
        return;
    }
    if (!hugepages_state.scanned) {
        hugepages_os_scan(&hugepages_state.system);
        hugepages_refuse(hugepages_impossible_tiers(&hugepages_state.system));
        hugepages_state.scanned = 1;
    }
    if ((hugepages_tiers() & PYMALLOC_HUGEPAGES_HUGETLB)
        && !hugepages_state.enabled_explicit)
    {
        int os_error;
        if (hugepages_os_enable_explicit(&os_error) != HUGEPAGES_OK) {
            hugepages_refuse(PYMALLOC_HUGEPAGES_HUGETLB);
        }
        hugepages_state.enabled_explicit = 1;
    }
}

/* Put the list first..last in front of the strays. */
static void
hugepages_push_strays(hugepages_stray *first, hugepages_stray *last)
{
    void *head = _Py_atomic_load_ptr_relaxed(&hugepages_state.strays);
    do {
        last->next = (hugepages_stray *)head;
    } while (!_Py_atomic_compare_exchange_ptr(&hugepages_state.strays,
                                              &head, first));
}

/* Take a stray of this size off the list; NULL if there is none.  A thread
   that looks while another has the list in its hands sees none and maps
   memory, which is merely a chance missed. */
static void *
hugepages_pop_stray(size_t size)
{
    if (_Py_atomic_load_ptr_relaxed(&hugepages_state.strays) == NULL) {
        return NULL;
    }
    hugepages_stray *list = (hugepages_stray *)
        _Py_atomic_exchange_ptr(&hugepages_state.strays, NULL);
    hugepages_stray *found = NULL, *last = NULL;
    for (hugepages_stray **link = &list; *link != NULL; ) {
        if (found == NULL && (*link)->size == size) {
            found = *link;
            *link = found->next;
        }
        else {
            last = *link;
            link = &last->next;
        }
    }
    if (last != NULL) {
        hugepages_push_strays(list, last);
    }
    return found;
}

/* Return size bytes that nobody else uses, aligned at least to a base page, or
   NULL.  The content is not specified. */
static void *
hugepages_alloc(size_t size)
{
    void *address;
    int os_error;

    address = hugepages_pop_stray(size);
    if (address != NULL) {
        return address;
    }
    if (size == ARENA_SIZE) {
        uint32_t tiers = hugepages_tiers();
        hugepages_result result;
        if (tiers & PYMALLOC_HUGEPAGES_HUGETLB) {
            result = hugepages_os_map_explicit(size, &address, &os_error);
            if (result == HUGEPAGES_OK) {
                return address;
            }
            if (result == HUGEPAGES_NEVER) {
                hugepages_refuse(PYMALLOC_HUGEPAGES_HUGETLB);
            }
        }
        if (tiers & PYMALLOC_HUGEPAGES_THP) {
            result = hugepages_os_map_thp(size, &address, &os_error);
            if (result == HUGEPAGES_OK) {
                return address;
            }
            if (result == HUGEPAGES_NEVER) {
                hugepages_refuse(PYMALLOC_HUGEPAGES_THP);
            }
        }
    }
    if (hugepages_os_map_plain(size, &address, &os_error) == HUGEPAGES_OK) {
        return address;
    }
    return NULL;
}

/* Give back what hugepages_alloc(size) returned.  NULL is accepted. */
static void
hugepages_free(void *address, size_t size)
{
    int os_error;
    if (address == NULL) {
        return;
    }
    if (hugepages_os_unmap(address, size, &os_error) != HUGEPAGES_OK) {
        hugepages_stray *stray = (hugepages_stray *)address;
        stray->size = size;
        hugepages_push_strays(stray, stray);
    }
}
