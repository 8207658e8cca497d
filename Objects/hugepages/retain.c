/* Policy: which arenas that nobody uses any more are kept for the next
   requests, how many, and how long; and the same of large blocks, which count
   as the arenas that would fit their mappings.

   pymalloc gives an arena back the moment it is empty.  A program that builds
   a structure and drops it, again and again, then pays for mapping, clearing
   and unmapping the same memory each time.  An arena that is kept costs
   nothing to have again.  But who drops a structure may also never want that
   memory again, and another process may: so arenas are kept only as far as
   this program's own recent past says that they will be wanted.

   The bound, a number of arenas, starts at HUGEPAGES_KEEP_LEAST.

   - It rises by one for each arena that had to be mapped although one was given
     back a moment before, in this epoch or the one before it, because the
     bound was too low.  So what is dropped for the first time is given back
     but for the least, and what is dropped and built in a loop is kept from
     the second time on.
   - It falls, at the end of an epoch, by the number of arenas that nobody
     wanted since the epoch began.  These are given back.
   - Where none of those kept was wanted in the epoch it falls by an eighth at
     least: what a program has done long ago says little.

   Nothing in a process runs by itself, so an epoch ends at the first request
   after its time, or at the first moment at which pymalloc needs a pool or the
   garbage collector runs.  A program that works has such moments all the time,
   and has given back what it does not want after two epochs.  One that sleeps
   keeps what it has, which is why there is an upper limit too; that of
   explicit pages, which other processes can have in no other way, is smaller.

   All is given back by a full collection that the program asks for
   (gc.collect()), before a fork(), which would have to copy it, when the
   interpreter is finalized, and when the system refuses other memory.

   Plain memory that is on its way to huge pages (see arena.c) is kept as THP
   is; with the switch off, or where there are no huge pages, nothing is kept.
   */

#include "hugepages.h"

/* In arenas of 2 MiB.  The least is what a process that dropped everything
   once may hold of it for nothing.  The most is what it may hold if it has
   done so in a loop, and then stops to work. */
#define HUGEPAGES_KEEP_LEAST 2
#ifndef HUGEPAGES_KEEP_MOST_EXPLICIT
#  define HUGEPAGES_KEEP_MOST_EXPLICIT 64
#endif
#ifndef HUGEPAGES_KEEP_MOST_THP
#  define HUGEPAGES_KEEP_MOST_THP 512
#endif

/* In milliseconds.  An arena takes 0.1 to 0.2 ms to be mapped and cleared, so
   one that was not wanted for longer than this is not worth keeping. */
#define HUGEPAGES_EPOCH 250

/* A large block that is kept serves a request of half its size at least. */
#define HUGEPAGES_LARGE_FIT 2

/* What is kept of kinds from explicit pages to plain memory. */
#define HUGEPAGES_KEPT_KINDS (HUGEPAGES_PLAIN + 1)

static const size_t hugepages_keep_most[HUGEPAGES_KEPT_KINDS] = {
    [HUGEPAGES_EXPLICIT] = HUGEPAGES_KEEP_MOST_EXPLICIT,
    [HUGEPAGES_THP] = HUGEPAGES_KEEP_MOST_THP,
    [HUGEPAGES_PLAIN] = HUGEPAGES_KEEP_MOST_THP,
};

/* An arena that is kept, seen as a list node. */
typedef struct hugepages_kept {
    struct hugepages_kept *next;
} hugepages_kept;

/* Guarded by the lock, but for epoch_end. */
static struct {
    /* The arenas kept, by kind, last in first out. */
    hugepages_kept *arenas[HUGEPAGES_KEPT_KINDS];
    size_t count[HUGEPAGES_KEPT_KINDS];
    /* The large blocks kept, last in first out, and how many arenas that is. */
    struct hugepages_large *large;
    size_t large_count;
    /* How many arenas may be kept, beyond the least.  No larger than what any
       kind may have. */
    size_t bound;

    /* Of this epoch: the fewest that were kept at any moment; whether any was
       wanted; how many were given back because the bound was too low, and how
       many in the epoch before, less those that were missed. */
    size_t unwanted[HUGEPAGES_KEPT_KINDS];
    size_t unwanted_large;
    int any_wanted;
    size_t given_back;
    size_t given_back_before;

    /* When the epoch ends, in the time of hugepages_os_now().  Read without
       the lock. */
    uint64_t epoch_end;
} hugepages_retained;

/* How many arenas are kept, of all kinds; read without the lock. */
static Py_ssize_t hugepages_retained_count;

/* Implemented by arena.c: give an arena back to the system.  With the lock. */
static void hugepages_unmap_arena(void *address);

/* Implemented by large.c: the same of a large block; how many arenas would fit
   its mapping; where it keeps what comes after it in the list. */
static void hugepages_unmap_large(struct hugepages_large *large);
static size_t hugepages_large_arenas(const struct hugepages_large *large);
static struct hugepages_large **hugepages_large_next(
    struct hugepages_large *large);

static void
hugepages_set_retained_count(void)
{
    size_t count = hugepages_retained.count[HUGEPAGES_EXPLICIT]
                   + hugepages_retained.count[HUGEPAGES_THP]
                   + hugepages_retained.count[HUGEPAGES_PLAIN]
                   + hugepages_retained.large_count;
    _Py_atomic_store_ssize_relaxed(&hugepages_retained_count,
                                   (Py_ssize_t)count);
}

static void *
hugepages_pop_retained(hugepages_kind kind)
{
    hugepages_kept *arena = hugepages_retained.arenas[kind];
    hugepages_retained.arenas[kind] = arena->next;
    size_t count = --hugepages_retained.count[kind];
    if (hugepages_retained.unwanted[kind] > count) {
        hugepages_retained.unwanted[kind] = count;
    }
    hugepages_set_retained_count();
    hugepages_count_unmapped(HUGEPAGES_RETAINED, 1);
    return arena;
}

/* Give back so many arenas of a kind. */
static void
hugepages_release(hugepages_kind kind, size_t count)
{
    while (count-- > 0) {
        hugepages_unmap_arena(hugepages_pop_retained(kind));
    }
}

/* Take a large block out of the list, where link is what leads to it. */
static struct hugepages_large *
hugepages_unlink_large(struct hugepages_large **link)
{
    struct hugepages_large *large = *link;
    *link = *hugepages_large_next(large);
    size_t arenas = hugepages_large_arenas(large);
    hugepages_retained.large_count -= arenas;
    if (hugepages_retained.unwanted_large > hugepages_retained.large_count) {
        hugepages_retained.unwanted_large = hugepages_retained.large_count;
    }
    hugepages_set_retained_count();
    hugepages_count_unmapped(HUGEPAGES_RETAINED, arenas);
    return large;
}

/* Give back large blocks of so many arenas at most, the oldest first; return
   how many arenas that were. */
static size_t
hugepages_release_large(size_t count)
{
    struct hugepages_large **link = &hugepages_retained.large;
    size_t kept = 0;
    size_t may_keep = hugepages_retained.large_count - count;
    size_t released = 0;
    while (*link != NULL) {
        size_t arenas = hugepages_large_arenas(*link);
        if (kept < may_keep) {
            kept += arenas;
            link = hugepages_large_next(*link);
        }
        else {
            released += arenas;
            hugepages_unmap_large(hugepages_unlink_large(link));
        }
    }
    return released;
}

/* Give all back, and return how many arenas that were. */
static size_t
hugepages_release_all(void)
{
    size_t released = hugepages_release_large(hugepages_retained.large_count);
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KEPT_KINDS; kind++) {
        released += hugepages_retained.count[kind];
        hugepages_release(kind, hugepages_retained.count[kind]);
    }
    return released;
}

static void
hugepages_end_epoch(uint64_t now)
{
    size_t fall = 0;
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KEPT_KINDS; kind++) {
        size_t unwanted = hugepages_retained.unwanted[kind];
        hugepages_release(kind, unwanted);
        hugepages_retained.unwanted[kind] = hugepages_retained.count[kind];
        fall += unwanted;
    }
    fall += hugepages_release_large(hugepages_retained.unwanted_large);
    hugepages_retained.unwanted_large = hugepages_retained.large_count;
    size_t bound = hugepages_retained.bound;
    if (!hugepages_retained.any_wanted && fall < (bound + 7) / 8) {
        fall = (bound + 7) / 8;
    }
    hugepages_retained.bound = bound > fall ? bound - fall : 0;
    hugepages_retained.any_wanted = 0;

    /* After a pause, the epoch before is not the one that has just ended. */
    hugepages_retained.given_back_before = 0;
    if (now < hugepages_retained.epoch_end + HUGEPAGES_EPOCH) {
        hugepages_retained.given_back_before = hugepages_retained.given_back;
    }
    hugepages_retained.given_back = 0;
    _Py_atomic_store_uint64_relaxed(&hugepages_retained.epoch_end,
                                    now + HUGEPAGES_EPOCH);
}

/* End the epoch if its time has come. */
static void
hugepages_look_at_clock(void)
{
    uint64_t now = hugepages_os_now();
    if (now >= hugepages_retained.epoch_end) {
        hugepages_end_epoch(now);
    }
}

/* Whether so many more arenas of a kind may be kept. */
static int
hugepages_may_keep(hugepages_kind kind, size_t count)
{
    size_t of_kind = hugepages_retained.count[kind];
    if (kind == HUGEPAGES_THP) {
        of_kind += hugepages_retained.large_count;
    }
    if (of_kind + count > hugepages_keep_most[kind]) {
        return 0;
    }
    if ((size_t)hugepages_retained_count + count
        > HUGEPAGES_KEEP_LEAST + hugepages_retained.bound)
    {
        hugepages_retained.given_back += count;
        return 0;
    }
    return 1;
}

/* Keep an arena that is given back, if the policy says so.  Return whether it
   does. */
static int
hugepages_retain(void *address, hugepages_kind kind)
{
    if (!hugepages_may_keep(kind, 1)) {
        return 0;
    }
    hugepages_kept *arena = (hugepages_kept *)address;
    arena->next = hugepages_retained.arenas[kind];
    hugepages_retained.arenas[kind] = arena;
    hugepages_retained.count[kind]++;
    hugepages_set_retained_count();
    hugepages_count_mapped(HUGEPAGES_RETAINED, 1);
    return 1;
}

/* The same of a large block. */
static int
hugepages_retain_large(struct hugepages_large *large)
{
    size_t arenas = hugepages_large_arenas(large);
    if (!hugepages_may_keep(HUGEPAGES_THP, arenas)) {
        return 0;
    }
    *hugepages_large_next(large) = hugepages_retained.large;
    hugepages_retained.large = large;
    hugepages_retained.large_count += arenas;
    hugepages_set_retained_count();
    hugepages_count_mapped(HUGEPAGES_RETAINED, arenas);
    return 1;
}

/* Return a large block that was kept, of so many arenas or somewhat more, or
   NULL if there is none. */
static struct hugepages_large *
hugepages_take_retained_large(size_t arenas)
{
    struct hugepages_large **link = &hugepages_retained.large;
    while (*link != NULL) {
        size_t found = hugepages_large_arenas(*link);
        if (found >= arenas && found <= HUGEPAGES_LARGE_FIT * arenas) {
            hugepages_retained.any_wanted = 1;
            return hugepages_unlink_large(link);
        }
        link = hugepages_large_next(*link);
    }
    return NULL;
}

/* Return an arena that was kept, on the best pages that there are, but none of
   a kind after the last one that will do; NULL if there is none. */
static void *
hugepages_take_retained(hugepages_kind last)
{
    for (hugepages_kind kind = 0; kind <= last; kind++) {
        if (hugepages_retained.count[kind] > 0) {
            hugepages_retained.any_wanted = 1;
            return hugepages_pop_retained(kind);
        }
    }
    return NULL;
}

/* Take note that so many arenas had to be mapped. */
static void
hugepages_note_missed(size_t count)
{
    size_t *given_back = hugepages_retained.given_back > 0
                         ? &hugepages_retained.given_back
                         : &hugepages_retained.given_back_before;
    if (count > *given_back) {
        count = *given_back;
    }
    *given_back -= count;
    hugepages_retained.bound += count;
    if (hugepages_retained.bound > hugepages_keep_most[HUGEPAGES_THP]) {
        hugepages_retained.bound = hugepages_keep_most[HUGEPAGES_THP];
    }
}

/* Called where the program is seen to work, without the lock: cheap as long as
   no arena is kept, and the price of a look at the clock until the epoch
   ends. */
static inline void
hugepages_work_goes_on(void)
{
    if (_Py_atomic_load_ssize_relaxed(&hugepages_retained_count) > 0
        && hugepages_os_now()
           >= _Py_atomic_load_uint64_relaxed(&hugepages_retained.epoch_end))
    {
        hugepages_os_lock();
        hugepages_look_at_clock();
        hugepages_os_unlock();
    }
}

void
_PyMem_ReleaseHugePages(void)
{
    hugepages_os_lock();
    (void)hugepages_release_all();
    hugepages_os_unlock();
}

void
_PyMem_HugePagesCollected(int release)
{
    if (release) {
        _PyMem_ReleaseHugePages();
    }
    else {
        hugepages_work_goes_on();
    }
}
