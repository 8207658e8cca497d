/* Policy: which arenas that pymalloc has given back are kept for its next
   requests, how many, and how long.

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

   Plain memory is never kept: it is what stock CPython has. */

#include "hugepages.h"

/* In arenas of 2 MiB.  The least is what a process that dropped everything once
   may hold of it for nothing.  The most is what it may hold if it has done so
   in a loop, and then stops to work. */
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

static const size_t hugepages_keep_most[HUGEPAGES_PLAIN] = {
    [HUGEPAGES_EXPLICIT] = HUGEPAGES_KEEP_MOST_EXPLICIT,
    [HUGEPAGES_THP] = HUGEPAGES_KEEP_MOST_THP,
};

/* An arena that is kept, seen as a list node. */
typedef struct hugepages_kept {
    struct hugepages_kept *next;
} hugepages_kept;

/* Guarded by the lock, but for epoch_end. */
static struct {
    /* The arenas kept, by kind, last in first out. */
    hugepages_kept *arenas[HUGEPAGES_PLAIN];
    size_t count[HUGEPAGES_PLAIN];
    /* How many may be kept, beyond the least.  No larger than what any kind
       may have. */
    size_t bound;

    /* Of this epoch: the fewest that were kept at any moment; whether any was
       wanted; how many were given back because the bound was too low, and how
       many in the epoch before, less those that were missed. */
    size_t unwanted[HUGEPAGES_PLAIN];
    int any_wanted;
    size_t given_back;
    size_t given_back_before;

    /* When the epoch ends, in the time of hugepages_os_now().  Read without
       the lock. */
    uint64_t epoch_end;
} hugepages_retained;

/* How many are kept, of all kinds; read without the lock. */
static Py_ssize_t hugepages_retained_count;

/* Implemented by arena.c: give an arena back to the system.  With the lock. */
static void hugepages_unmap_arena(void *address);

static void
hugepages_set_retained_count(void)
{
    size_t count = hugepages_retained.count[HUGEPAGES_EXPLICIT]
                   + hugepages_retained.count[HUGEPAGES_THP];
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
    hugepages_count_unmapped(HUGEPAGES_RETAINED);
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

/* Give all back, and return how many that were. */
static size_t
hugepages_release_all(void)
{
    size_t released = 0;
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        released += hugepages_retained.count[kind];
        hugepages_release(kind, hugepages_retained.count[kind]);
    }
    return released;
}

static void
hugepages_end_epoch(uint64_t now)
{
    size_t fall = 0;
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        size_t unwanted = hugepages_retained.unwanted[kind];
        hugepages_release(kind, unwanted);
        hugepages_retained.unwanted[kind] = hugepages_retained.count[kind];
        fall += unwanted;
    }
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

/* Keep an arena that pymalloc gives back, if the policy says so.  Return
   whether it does. */
static int
hugepages_retain(void *address, hugepages_kind kind)
{
    if (kind == HUGEPAGES_PLAIN
        || hugepages_retained.count[kind] >= hugepages_keep_most[kind])
    {
        return 0;
    }
    if ((size_t)hugepages_retained_count
        >= HUGEPAGES_KEEP_LEAST + hugepages_retained.bound)
    {
        hugepages_retained.given_back++;
        return 0;
    }
    hugepages_kept *arena = (hugepages_kept *)address;
    arena->next = hugepages_retained.arenas[kind];
    hugepages_retained.arenas[kind] = arena;
    hugepages_retained.count[kind]++;
    hugepages_set_retained_count();
    hugepages_count_mapped(HUGEPAGES_RETAINED);
    return 1;
}

/* Return an arena that was kept, on explicit pages if there is one, or NULL if
   there is none. */
static void *
hugepages_take_retained(void)
{
    for (hugepages_kind kind = 0; kind < HUGEPAGES_PLAIN; kind++) {
        if (hugepages_retained.count[kind] > 0) {
            hugepages_retained.any_wanted = 1;
            return hugepages_pop_retained(kind);
        }
    }
    return NULL;
}

/* Take note that an arena had to be mapped. */
static void
hugepages_note_missed(void)
{
    size_t *given_back = hugepages_retained.given_back > 0
                         ? &hugepages_retained.given_back
                         : &hugepages_retained.given_back_before;
    if (*given_back > 0) {
        (*given_back)--;
        if (hugepages_retained.bound < hugepages_keep_most[HUGEPAGES_THP]) {
            hugepages_retained.bound++;
        }
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
