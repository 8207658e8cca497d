/* free(), as it goes most of the time.

   To tell whether a block is pymalloc's, obmalloc.c looks up its address in a
   tree of three levels.  That and what the rare cases need are 25 of the 44
   instructions of a free().  But nearly all arenas here are aligned to
   ARENA_SIZE, so that an address tells which one it would be in, and a table
   whether there is such an arena.  It is only a first look: obmalloc.c frees
   the blocks that are not found here.

   Each arena has a number, and one place in the table, which has the number if
   the arena is there.  Arenas that are 128 GiB apart have the same place; the
   last one keeps it.  Of the table's 512 KiB, a process touches 4 KiB for each
   GiB of arenas. */

#include "hugepages.h"

#define HUGEPAGES_PLACES ((uintptr_t)1 << 16)

static uintptr_t hugepages_places[HUGEPAGES_PLACES];

/* From 1, so that an empty place is nobody's, not even NULL's. */
static inline uintptr_t
hugepages_number_of(const void *address)
{
    return (uintptr_t)address / ARENA_SIZE + 1;
}

static inline uintptr_t *
hugepages_place_of(uintptr_t number)
{
    return &hugepages_places[number % HUGEPAGES_PLACES];
}

/* Have blocks of an arena found, before it has any. */
static void
hugepages_note_arena(void *arena)
{
    uintptr_t number = hugepages_number_of(arena);
    if ((uintptr_t)arena % ARENA_SIZE == 0) {
        _Py_atomic_store_uintptr(hugepages_place_of(number), number);
    }
}

/* Have them found no more, before anybody else may get its memory.  Not inline:
   that would give _PyObject_Free() a stack frame, six instructions. */
Py_NO_INLINE static void
hugepages_forget_arena(void *arena)
{
    uintptr_t number = hugepages_number_of(arena);
    if ((uintptr_t)arena % ARENA_SIZE == 0) {
        (void)_Py_atomic_compare_exchange_uintptr(hugepages_place_of(number),
                                                  &number, 0);
    }
}

/* Free the block at ptr, and return 1, if its arena is found and its pool is
   not empty after; else do nothing and return 0. */
static inline int
hugepages_free_block(void *ptr)
{
    uintptr_t number = hugepages_number_of(ptr);
    if (_Py_atomic_load_uintptr_relaxed(hugepages_place_of(number)) != number)
    {
        return 0;
    }
    poolp pool = POOL_ADDR(ptr);
    assert(pool->ref.count > 0);
    if (pool->ref.count == 1) {
        return 0;
    }
    int was_full = pool->freeblock == NULL;
    /* The type of freeblock has another name in 3.11. */
    memcpy(ptr, &pool->freeblock, sizeof(pool->freeblock));
    pool->freeblock = ptr;
    pool->ref.count--;
    if (was_full) {
        hugepages_insert_to_usedpool(pool);
    }
    return 1;
}
