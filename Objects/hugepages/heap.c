/* Medium blocks: those above what pymalloc's pools hold, up to half an arena.
   They live in arenas of their own, which come from arena.c as pymalloc's do,
   so they obey the same switch.

   There are two heaps, with arenas of their own:

       dense    blocks that are smaller than a base page, so that none of its
                pages is without a neighbour who uses it; and blocks that have
                grown, for who lets a block grow fills it
       roomy    other blocks: a buffer for what a socket may send is often 64
                KiB, of which nobody ever touches more than the first few, so
                that huge pages would make memory of what was only addresses

   For the dense heap huge pages are as good as for pymalloc.  The roomy one
   gets them when the program is seen to fill its blocks (see arena.c).

   The method is two-level segregated fit (Masmano, Ripoll, Crespo, Real:
   "TLSF: a new dynamic memory allocator for real-time systems", ECRTS 2004):
   free blocks are kept in lists by size, 16 lists for each power of two, and
   two levels of bitmaps find the first list all of whose blocks are large
   enough.  Before that, other than there, the first few of the list of the very
   size are looked at: a program's blocks often have few sizes, and what is not
   taken from there is cut from memory that may not have been touched before.
   So finding one takes a short time always, and what is too much is split off
   again.

   An arena is filled with blocks without a gap:

       | header | ...block... | header | ...block... | ... | end |

   A header tells its block's size and that of the block before it, so a block
   that is freed finds its neighbours, and is joined with those that are free.
   No two neighbours are ever both free.  The end is a header without a block,
   in use for ever, so that nobody looks beyond it.

   An arena that has become empty is given back, but for the last one, as
   pymalloc does it: otherwise a loop around a single block would map and unmap
   an arena each time.

   Everything here is done with the lock. */

#include "hugepages.h"

/* As large as the alignment of what malloc() returns; sizes of blocks are
   multiples of it. */
#define HUGEPAGES_GRAIN 16

/* All sizes of blocks include the header. */
typedef struct hugepages_block {
    /* Of the block before, 0 if this is the arena's first one. */
    uint32_t size_before;
    /* Of this block, 0 at the arena's end. */
    uint32_t size;
    uint32_t is_free;
    /* So that what follows is aligned to the grain. */
    uint32_t unused;
    /* Of a free block: its neighbours in the list of its size.  Of one in use:
       where the caller's memory begins. */
    struct hugepages_block *next;
    struct hugepages_block **link;
} hugepages_block;

#define HUGEPAGES_HEADER_SIZE offsetof(hugepages_block, next)
#define HUGEPAGES_LEAST_BLOCK sizeof(hugepages_block)
#define HUGEPAGES_WHOLE_ARENA ((uint32_t)(ARENA_SIZE - HUGEPAGES_HEADER_SIZE))

/* The largest medium block that a caller can have, in bytes.  More than half
   an arena would leave the rest of it without much use. */
#define HUGEPAGES_HEAP_MOST (ARENA_SIZE / 2)

/* Lists: the first row has one for each multiple of the grain below 256 bytes;
   each further row divides a power of two, 256 to 511 first, into 16. */
#define HUGEPAGES_COLUMN_BITS 4
#define HUGEPAGES_COLUMNS (1 << HUGEPAGES_COLUMN_BITS)
#define HUGEPAGES_FIRST_ROW_BITS 8
#define HUGEPAGES_ROWS 14

/* How many blocks are looked at whether they happen to be large enough. */
#define HUGEPAGES_LOOK_AT 8

typedef struct {
    hugepages_block *lists[HUGEPAGES_ROWS][HUGEPAGES_COLUMNS];
    /* Bit c of columns[r] is set if lists[r][c] is not empty; bit r of rows,
       if columns[r] is not 0. */
    uint32_t columns[HUGEPAGES_ROWS];
    uint32_t rows;
    size_t arena_count;
    hugepages_use use;
    hugepages_unit unit;
} hugepages_heap;

static hugepages_heap hugepages_dense = {
    .use = HUGEPAGES_FOR_DENSE, .unit = HUGEPAGES_UNIT_DENSE
};
static hugepages_heap hugepages_roomy = {
    .use = HUGEPAGES_FOR_ROOMY, .unit = HUGEPAGES_UNIT_ROOMY
};

/* The heap that a unit belongs to, or NULL. */
static hugepages_heap *
hugepages_heap_of(hugepages_unit unit)
{
    switch (unit) {
    case HUGEPAGES_UNIT_DENSE:
        return &hugepages_dense;
    case HUGEPAGES_UNIT_ROOMY:
        return &hugepages_roomy;
    default:
        return NULL;
    }
}

/* The heap for a new block. */
static hugepages_heap *
hugepages_heap_for(size_t size, int has_grown)
{
    return has_grown || size < hugepages_state.system.base_page_size
           ? &hugepages_dense : &hugepages_roomy;
}

static unsigned int
hugepages_lowest_bit(uint32_t bits)
{
    unsigned int bit = 0;
#if defined(__GNUC__)
    bit = (unsigned int)__builtin_ctz(bits);
#else
    while (!(bits & 1)) {
        bits >>= 1;
        bit++;
    }
#endif
    return bit;
}

static unsigned int
hugepages_highest_bit(uint32_t bits)
{
#if defined(__GNUC__)
    return 31 - (unsigned int)__builtin_clz(bits);
#else
    unsigned int bit = 0;
    while (bits >>= 1) {
        bit++;
    }
    return bit;
#endif
}

/* The list of blocks of a size. */
static void
hugepages_list_of(uint32_t size, unsigned int *row, unsigned int *column)
{
    if (size < 1U << HUGEPAGES_FIRST_ROW_BITS) {
        *row = 0;
        *column = size / HUGEPAGES_GRAIN;
        return;
    }
    unsigned int bit = hugepages_highest_bit(size);
    *row = bit - HUGEPAGES_FIRST_ROW_BITS + 1;
    *column = (size >> (bit - HUGEPAGES_COLUMN_BITS))
              & (HUGEPAGES_COLUMNS - 1);
}

static hugepages_block *
hugepages_block_at(void *address, size_t offset)
{
    return (hugepages_block *)((char *)address + offset);
}

static hugepages_block *
hugepages_block_after(hugepages_block *block)
{
    return hugepages_block_at(block, block->size);
}

static void *
hugepages_memory_of(hugepages_block *block)
{
    return (char *)block + HUGEPAGES_HEADER_SIZE;
}

static hugepages_block *
hugepages_block_of(void *memory)
{
    return (hugepages_block *)((char *)memory - HUGEPAGES_HEADER_SIZE);
}

/* Set a block's size, which its neighbour knows as well. */
static void
hugepages_set_block_size(hugepages_block *block, uint32_t size)
{
    block->size = size;
    hugepages_block_after(block)->size_before = size;
}

static void
hugepages_link_free(hugepages_heap *heap, hugepages_block *block)
{
    unsigned int row, column;
    hugepages_list_of(block->size, &row, &column);
    hugepages_block **list = &heap->lists[row][column];
    block->is_free = 1;
    block->next = *list;
    block->link = list;
    if (*list != NULL) {
        (*list)->link = &block->next;
    }
    *list = block;
    heap->columns[row] |= 1U << column;
    heap->rows |= 1U << row;
}

static void
hugepages_unlink_free(hugepages_heap *heap, hugepages_block *block)
{
    *block->link = block->next;
    block->is_free = 0;
    if (block->next != NULL) {
        block->next->link = block->link;
        return;
    }
    unsigned int row, column;
    hugepages_list_of(block->size, &row, &column);
    if (heap->lists[row][column] == NULL) {
        heap->columns[row] &= ~(1U << column);
        if (heap->columns[row] == 0) {
            heap->rows &= ~(1U << row);
        }
    }
}

/* Find a free block of a size at least, or NULL.  It is still linked. */
static hugepages_block *
hugepages_find_free(const hugepages_heap *heap, uint32_t size)
{
    unsigned int row, column;
    hugepages_list_of(size, &row, &column);
    /* The list of that size may have smaller ones. */
    hugepages_block *block = heap->lists[row][column];
    for (int i = 0; i < HUGEPAGES_LOOK_AT && block != NULL; i++) {
        if (block->size >= size) {
            return block;
        }
        block = block->next;
    }
    /* Each one of the lists after it is large enough. */
    uint32_t columns = heap->columns[row] & (~1U << column);
    if (columns == 0) {
        uint32_t rows = heap->rows & (~1U << row);
        if (rows == 0) {
            return NULL;
        }
        row = hugepages_lowest_bit(rows);
        columns = heap->columns[row];
    }
    return heap->lists[row][hugepages_lowest_bit(columns)];
}

/* Add an arena, as one free block, and return that; NULL if there is none to
   be had. */
static hugepages_block *
hugepages_add_heap_arena(hugepages_heap *heap)
{
    void *arena = hugepages_alloc_arena(heap->use);
    if (arena == NULL) {
        return NULL;
    }
    if (hugepages_set_unit(arena, heap->unit) < 0) {
        hugepages_free_arena(arena, heap->use);
        return NULL;
    }
    heap->arena_count++;
    hugepages_block *block = (hugepages_block *)arena;
    block->size_before = 0;
    hugepages_set_block_size(block, HUGEPAGES_WHOLE_ARENA);
    hugepages_block *end = hugepages_block_after(block);
    end->size = 0;
    end->is_free = 0;
    hugepages_link_free(heap, block);
    return block;
}

/* Make a block in use as small as size, if what is left over can be a block: a
   free one, joined with the block after it if that is free. */
static void
hugepages_trim_block(hugepages_heap *heap, hugepages_block *block,
                     uint32_t size)
{
    uint32_t rest_size = block->size - size;
    if (rest_size < HUGEPAGES_LEAST_BLOCK) {
        return;
    }
    hugepages_block *after = hugepages_block_after(block);
    if (after->is_free) {
        hugepages_unlink_free(heap, after);
        rest_size += after->size;
    }
    hugepages_set_block_size(block, size);
    hugepages_block *rest = hugepages_block_after(block);
    hugepages_set_block_size(rest, rest_size);
    hugepages_link_free(heap, rest);
}

/* The size of a block that holds so many bytes for a caller. */
static uint32_t
hugepages_block_size(size_t size)
{
    size += HUGEPAGES_HEADER_SIZE + HUGEPAGES_GRAIN - 1;
    size -= size % HUGEPAGES_GRAIN;
    return size < HUGEPAGES_LEAST_BLOCK ? HUGEPAGES_LEAST_BLOCK
                                        : (uint32_t)size;
}

/* Return size bytes, at most HUGEPAGES_HEAP_MOST, aligned to HUGEPAGES_GRAIN,
   or NULL if there is no memory.  The content is not specified. */
static void *
hugepages_heap_alloc(hugepages_heap *heap, size_t size)
{
    uint32_t block_size = hugepages_block_size(size);
    hugepages_block *block = hugepages_find_free(heap, block_size);
    if (block == NULL) {
        block = hugepages_add_heap_arena(heap);
        if (block == NULL) {
            return NULL;
        }
    }
    hugepages_unlink_free(heap, block);
    hugepages_trim_block(heap, block, block_size);
    return hugepages_memory_of(block);
}

/* Give back what hugepages_heap_alloc() has returned. */
static void
hugepages_heap_free(hugepages_heap *heap, void *memory)
{
    hugepages_block *block = hugepages_block_of(memory);
    hugepages_block *after = hugepages_block_after(block);
    uint32_t size = block->size;
    assert(!block->is_free);
    if (after->is_free) {
        hugepages_unlink_free(heap, after);
        size += after->size;
    }
    if (block->size_before != 0) {
        hugepages_block *before =
            (hugepages_block *)((char *)block - block->size_before);
        if (before->is_free) {
            hugepages_unlink_free(heap, before);
            size += before->size;
            block = before;
        }
    }
    if (size == HUGEPAGES_WHOLE_ARENA && heap->arena_count > 1) {
        (void)hugepages_set_unit(block, HUGEPAGES_UNIT_FOREIGN);
        heap->arena_count--;
        hugepages_free_arena(block, heap->use);
        return;
    }
    hugepages_set_block_size(block, size);
    hugepages_link_free(heap, block);
}

/* How many bytes the caller of hugepages_heap_alloc() may use. */
static size_t
hugepages_heap_size(void *memory)
{
    return hugepages_block_of(memory)->size - HUGEPAGES_HEADER_SIZE;
}

/* Give a block another size where it is.  Return whether that was possible,
   which it always is if it is not to grow. */
static int
hugepages_heap_resize(hugepages_heap *heap, void *memory, size_t size)
{
    if (size > HUGEPAGES_HEAP_MOST) {
        return 0;
    }
    hugepages_block *block = hugepages_block_of(memory);
    uint32_t block_size = hugepages_block_size(size);
    if (block_size > block->size) {
        hugepages_block *after = hugepages_block_after(block);
        if (!after->is_free || block->size + after->size < block_size) {
            return 0;
        }
        hugepages_unlink_free(heap, after);
        hugepages_set_block_size(block, block->size + after->size);
    }
    hugepages_trim_block(heap, block, block_size);
    return 1;
}
