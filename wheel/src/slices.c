/* Arenas of a stock interpreter, which have 1 MiB: slices, each of which is a
   half of a unit.  A unit is what Objects/hugepages calls an arena: 2 MiB, on
   one huge page if there is one.

   A request for an arena gets the free half of a unit, or else one of a new
   unit.  A unit whose halves are both free goes back to arena.c, which keeps
   some.

   As in table.c there is no lock: a unit is one word, its address with a flag
   for each half that is in use, and each change of it is one atomic operation.
   Interpreters with a GIL of their own, a fork and a signal handler may come
   at any moment.  A thread that is stopped half-way, because it does not exist
   in the child of a fork, leaves no more behind than a word that stays
   reserved, or a half that nobody uses.

   The first unit is plain memory until there is a second one, as the first
   arenas of an interpreter with the option are: before it there are one or two
   of the interpreter's own, from before this extension was loaded.  It is
   never given back, so that pymalloc.c may promote it whatever another
   interpreter does meanwhile. */

#define SLICES_SIZE             (ARENA_SIZE / 2)

/* A word: 0 if it is empty, SLICES_RESERVED, or an address and flags. */
#define SLICES_RESERVED         ((uintptr_t)1)
#define SLICES_LOWER            ((uintptr_t)2)
#define SLICES_UPPER            ((uintptr_t)4)
#define SLICES_BOTH             (SLICES_LOWER | SLICES_UPPER)
/* A unit on plain memory may be aligned to no more than a base page. */
#define SLICES_FLAGS            ((uintptr_t)4095)

/* 128 GiB.  Arenas beyond that are the interpreter's own.  Words that were
   never used cost no memory. */
#define SLICES_MOST_UNITS       ((Py_ssize_t)1 << 16)

static struct {
    uintptr_t units[SLICES_MOST_UNITS];
    /* All words from here on are empty. */
    Py_ssize_t length;
    /* Of slices in use. */
    hugepages_counts counts;
    /* How many requests were for memory of a size that only arenas have, but
       not of SLICES_SIZE. */
    Py_ssize_t foreign;
    /* Nonzero once slices are handed out. */
    int is_on;
    /* Where everything else comes from. */
    wheel_arena_allocator stock;
} slices;

/* In how many calls of fork() this thread is, between our two handlers of
   each.

   Handlers that were registered before ours run there.  What they take must
   not be on explicit pages, as fork.c has dealt with those by then. */
static _Py_thread_local int slices_forks;

static void
slices_before_fork(void)
{
    slices_forks++;
}

static void
slices_after_fork(void)
{
    slices_forks--;
}

/* Return a free half of the units that there are, or NULL. */
static void *
slices_take_half(void)
{
    Py_ssize_t length = _Py_atomic_load_ssize(&slices.length);
    for (Py_ssize_t i = 0; i < length; i++) {
        uintptr_t *unit = &slices.units[i];
        uintptr_t value = _Py_atomic_load_uintptr_relaxed(unit);
        while (value > SLICES_RESERVED
               && (value & SLICES_BOTH) != SLICES_BOTH)
        {
            uintptr_t half = value & SLICES_LOWER ? SLICES_UPPER
                                                  : SLICES_LOWER;
            if (_Py_atomic_compare_exchange_uintptr(unit, &value,
                                                    value | half))
            {
                uintptr_t address = value & ~SLICES_FLAGS;
                return (void *)(half == SLICES_LOWER ? address
                                                     : address + SLICES_SIZE);
            }
        }
    }
    return NULL;
}

/* Return a word for the caller to fill, or NULL if all are in use. */
static uintptr_t *
slices_reserve_unit(void)
{
    for (Py_ssize_t i = 0; i < SLICES_MOST_UNITS; i++) {
        uintptr_t empty = 0;
        if (_Py_atomic_load_uintptr_relaxed(&slices.units[i]) == 0
            && _Py_atomic_compare_exchange_uintptr(&slices.units[i], &empty,
                                                   SLICES_RESERVED))
        {
            Py_ssize_t length = _Py_atomic_load_ssize(&slices.length);
            while (length <= i
                   && !_Py_atomic_compare_exchange_ssize(&slices.length,
                                                         &length, i + 1))
            {
            }
            return &slices.units[i];
        }
    }
    return NULL;
}

/* Return the lower half of a new unit, or NULL if there is no memory for one,
   or if the system gives no huge pages: then the interpreter's own arena is as
   good. */
static void *
slices_take_new(void)
{
    if (hugepages_usable() == 0) {
        return NULL;
    }
    uintptr_t *unit = slices_reserve_unit();
    if (unit == NULL) {
        return NULL;
    }
    void *address = _PyMem_HugePagesAlloc(NULL, ARENA_SIZE);
    if (address == NULL) {
        _Py_atomic_store_uintptr(unit, 0);
        return NULL;
    }
    uintptr_t none = 0;
    (void)_Py_atomic_compare_exchange_uintptr(&arenas[0].address, &none,
                                              (uintptr_t)address);
    (void)HUGEPAGES_ADD(&narenas_currently_allocated, 1);
    _Py_atomic_store_uintptr(unit, (uintptr_t)address | SLICES_LOWER);
    return address;
}

/* Take a slice back.  Return 0 if it is none. */
static int
slices_give(const void *slice)
{
    Py_ssize_t length = _Py_atomic_load_ssize(&slices.length);
    for (Py_ssize_t i = 0; i < length; i++) {
        uintptr_t *unit = &slices.units[i];
        uintptr_t value = _Py_atomic_load_uintptr_relaxed(unit);
        uintptr_t address = value & ~SLICES_FLAGS;
        uintptr_t offset = (uintptr_t)slice - address;
        uintptr_t rest;
        if (address == 0 || offset >= ARENA_SIZE) {
            continue;
        }
        hugepages_count_one_less(&slices.counts);
        do {
            rest = value & ~(offset == 0 ? SLICES_LOWER : SLICES_UPPER);
            if (!(rest & SLICES_BOTH)
                && address != _Py_atomic_load_uintptr(&arenas[0].address))
            {
                rest = 0;
            }
        } while (!_Py_atomic_compare_exchange_uintptr(unit, &value, rest));
        if (rest == 0) {
            (void)HUGEPAGES_ADD(&narenas_currently_allocated, -1);
            _PyMem_HugePagesFree(NULL, (void *)address, ARENA_SIZE);
        }
        return 1;
    }
    return 0;
}

/* Called when a Python that was initialized again has its own arena allocator
   in the place of our hooks (3.12 and later).

   From 3.13 on it still uses the slices that it had, and unmaps each that
   becomes empty: half a unit, where the kernel may map anybody's memory then.
   No word of a unit changes any more, so no unit is given back with such a
   half.  Half of an explicit page the system does not unmap: that memory is
   lost, but the page stays whole, and fork.c may move or copy it.  What is on
   THP must be left alone: fork.c would advise memory that is not ours.

   Not covered: a Python that does not import this extension when it is
   initialized again, and a child that got copies on THP of units on explicit
   pages (fork.c) and forks itself. */
static void
slices_abandon(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        if (value & HUGEPAGES_IS_THP) {
            (void)hugepages_replace_entry(entry, value,
                                          value | HUGEPAGES_IS_SHARED);
        }
    }
}

// --- the hooks -------------------------------------------------------------

/* The least that is an arena of another size, and not the stack of a thread:
   that of an interpreter without pymalloc's radix tree. */
#define SLICES_LEAST_FOREIGN ((size_t)1 << 18)

static void *
slices_hook_alloc(void *ctx, size_t size)
{
    /* Not relaxed: who gets a slice must see both hooks from then on, and give
       it back to ours. */
    if (HUGEPAGES_LOAD(&slices.is_on) && slices_forks == 0) {
        if (size == SLICES_SIZE) {
            void *slice = slices_take_half();
            if (slice == NULL) {
                slice = slices_take_new();
            }
            if (slice != NULL) {
                hugepages_count_one_more(&slices.counts);
                return slice;
            }
        }
        else if (size >= SLICES_LEAST_FOREIGN) {
            (void)_Py_atomic_add_ssize(&slices.foreign, 1);
        }
    }
    return slices.stock.alloc(ctx, size);
}

static void
slices_hook_free(void *ctx, void *address, size_t size)
{
    if (address == NULL || size != SLICES_SIZE || !slices_give(address)) {
        slices.stock.free(ctx, address, size);
    }
}
