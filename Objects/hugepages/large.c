/* Large blocks: those above what a medium block may have.  Each is a mapping
   of its own, aligned to a huge page, whose whole huge pages are advised to be
   THP, so that a list of a million items takes four page faults and not two
   thousand.

       | header | ...block... | room to grow |

   The mapping ends at a multiple of ARENA_SIZE.  What is behind the block
   costs addresses and no memory, as long as nobody advises a huge page that
   the block fills in part only.  That is done where the block is growing, for
   then it will soon fill it, or where it leaves little of it empty.

   A block grows within its mapping for nothing, and else by mremap(), which
   moves page tables and no memory.  The explicit pages of a pool are not used:
   a process that is forked must copy each of those, and they cannot be moved
   on all kernels.

   A large block that is freed is kept as arenas are, by the same policy
   (retain.c).

   Everything here is done with the lock. */

#include "hugepages.h"

/* At the begin of the mapping; the block follows. */
typedef struct hugepages_large {
    /* In bytes: the mapping; its begin that was advised; what the program has
       asked for. */
    size_t size;
    size_t advised;
    size_t used;
    /* In the list of those that are kept. */
    struct hugepages_large *next;
} hugepages_large;

/* So that the block begins with a cache line. */
#define HUGEPAGES_LARGE_OFFSET 64

/* A huge page that the block does not fill is advised if what is left empty is
   no more than this part of the block: an eighth, as lists have it anyway. */
#define HUGEPAGES_LARGE_WASTE 8

/* For the list of those that are kept. */
static size_t
hugepages_large_arenas(const hugepages_large *large)
{
    return large->size / ARENA_SIZE;
}

static hugepages_large **
hugepages_large_next(hugepages_large *large)
{
    return &large->next;
}

static hugepages_large *
hugepages_large_of(void *memory)
{
    return (hugepages_large *)((char *)memory - HUGEPAGES_LARGE_OFFSET);
}

/* The size of a mapping for so many bytes.  It cannot overflow: no object has
   more than PY_SSIZE_T_MAX bytes. */
static size_t
hugepages_large_mapping_size(size_t size)
{
    size += HUGEPAGES_LARGE_OFFSET + ARENA_SIZE - 1;
    return size - size % ARENA_SIZE;
}

/* How much of a mapping is to be advised if it serves size bytes. */
static size_t
hugepages_large_to_advise(size_t mapping_size, size_t size, int is_growing)
{
    size_t end = size + HUGEPAGES_LARGE_OFFSET;
    size_t empty = mapping_size - end;
    if (is_growing || empty <= size / HUGEPAGES_LARGE_WASTE) {
        return mapping_size;
    }
    return end - end % ARENA_SIZE;
}

/* Advise the first bytes of a mapping, so many.  Return 0, or -1 if the kernel
   refuses. */
static int
hugepages_advise_large(void *mapping, size_t size)
{
    int os_error;
    if (size == 0) {
        return 0;
    }
    hugepages_result result = hugepages_os_advise(mapping, size, &os_error);
    if (result != HUGEPAGES_OK) {
        hugepages_note_refused(PYMALLOC_HUGEPAGES_THP, result, os_error);
        return -1;
    }
    return 0;
}

/* Give a mapping back, or keep it as a stray, which is an arena if it is as
   large as one. */
static void
hugepages_drop_large_mapping(void *mapping, size_t size)
{
    if (!hugepages_unmap_or_stray(mapping, size) && size == ARENA_SIZE) {
        hugepages_count_mapped(HUGEPAGES_PLAIN, 1);
    }
}

/* Return a mapping of this size that the system would not take back, or NULL.
   One of ARENA_SIZE serves as an arena; others may not be aligned. */
static void *
hugepages_pop_large_stray(size_t mapping_size)
{
    void *stray = NULL;
    if (mapping_size > ARENA_SIZE) {
        stray = hugepages_pop_stray(mapping_size);
        if (stray != NULL && !hugepages_is_aligned(stray)) {
            hugepages_push_stray(stray, mapping_size);
            stray = NULL;
        }
    }
    return stray;
}

/* Write to the end of a mapping, which is not to be advised, so that the kernel
   can make one mapping of it and the advised begin again when both are: see
   hugepages_os_resize().  The block reaches there, so the page is not wasted.
   */
static void
hugepages_touch_rest(void *mapping, size_t advised)
{
    *((volatile char *)mapping + advised) = 0;
}

/* Map a large block, and count it; say whether it is zeroed. */
static hugepages_large *
hugepages_map_large(size_t mapping_size, size_t size, int has_grown,
                    int *is_zeroed)
{
    void *mapping = hugepages_pop_large_stray(mapping_size);
    int os_error;
    /* Nobody knows how much of a stray was advised. */
    size_t advised = mapping_size;
    *is_zeroed = mapping == NULL;
    if (mapping == NULL) {
        if (hugepages_os_map_aligned(mapping_size, ARENA_SIZE, &mapping,
                                     &os_error) != HUGEPAGES_OK)
        {
            return NULL;
        }
        advised = hugepages_large_to_advise(mapping_size, size, has_grown);
        if (advised > 0 && advised < mapping_size) {
            hugepages_touch_rest(mapping, advised);
        }
    }
    /* Before anything is written there, which would put a base page there. */
    if (hugepages_advise_large(mapping, advised) < 0
        || hugepages_set_unit(mapping, HUGEPAGES_UNIT_LARGE) < 0)
    {
        hugepages_drop_large_mapping(mapping, mapping_size);
        return NULL;
    }
    hugepages_large *large = (hugepages_large *)mapping;
    large->size = mapping_size;
    large->advised = advised;
    hugepages_count_mapped(HUGEPAGES_LARGE, mapping_size / ARENA_SIZE);
    return large;
}

/* Give the mapping of a large block back that nobody uses. */
static void
hugepages_unmap_large(hugepages_large *large)
{
    size_t size = large->size;
    (void)hugepages_set_unit(large, HUGEPAGES_UNIT_FOREIGN);
    hugepages_count_unmapped(HUGEPAGES_LARGE, size / ARENA_SIZE);
    hugepages_drop_large_mapping(large, size);
}

/* Give the end of a mapping back, if the system takes it.  An end that was not
   advised stays if it is no more than a huge page of memory: without it a block
   that is made too large, then cut, as binascii makes its results, would be too
   small for the next one when it is kept. */
static void
hugepages_shrink_large(hugepages_large *large, size_t new_size)
{
    void *same;
    int os_error;
    size_t old_size = large->size;
    if (large->advised <= new_size
        && old_size - large->advised <= ARENA_SIZE)
    {
        return;
    }
    if (hugepages_os_resize(large, old_size, new_size, ARENA_SIZE, &same,
                            &os_error) == HUGEPAGES_OK)
    {
        large->size = new_size;
        if (large->advised > new_size) {
            large->advised = new_size;
        }
        hugepages_count_unmapped(HUGEPAGES_LARGE,
                                 (old_size - new_size) / ARENA_SIZE);
    }
}

/* Return size bytes, more than HUGEPAGES_HEAP_MOST, or NULL if there are none;
   say whether they are zeroed.  has_grown says whether they are for a block
   that has been smaller. */
static void *
hugepages_large_alloc(size_t size, int has_grown, int *is_zeroed)
{
    size_t mapping_size = hugepages_large_mapping_size(size);
    hugepages_look_at_clock();
    hugepages_large *large = hugepages_take_retained_large(
        mapping_size / ARENA_SIZE);
    *is_zeroed = 0;
    if (large != NULL && mapping_size < large->size) {
        hugepages_shrink_large(large, mapping_size);
    }
    if (large == NULL) {
        hugepages_note_missed(mapping_size / ARENA_SIZE);
        large = hugepages_map_large(mapping_size, size, has_grown, is_zeroed);
        if (large == NULL && hugepages_release_all() > 0) {
            large = hugepages_map_large(mapping_size, size, has_grown,
                                        is_zeroed);
        }
        if (large == NULL) {
            return NULL;
        }
    }
    large->used = size;
    return (char *)large + HUGEPAGES_LARGE_OFFSET;
}

/* Give back what hugepages_large_alloc() has returned. */
static void
hugepages_large_free(void *memory)
{
    hugepages_large *large = hugepages_large_of(memory);
    hugepages_look_at_clock();
    if (!hugepages_is_keepable(large, HUGEPAGES_THP)
        || !hugepages_retain_large(large))
    {
        hugepages_unmap_large(large);
    }
}

/* How many bytes the caller of hugepages_large_alloc() has asked for.  Who
   copies more touches what nobody has used. */
static size_t
hugepages_large_size(void *memory)
{
    return hugepages_large_of(memory)->used;
}

/* Let a mapping grow, and move if it must.  Return where it is then, or NULL,
   and then nothing has changed. */
static hugepages_large *
hugepages_grow_large(hugepages_large *large, size_t new_size)
{
    size_t old_size = large->size;
    void *moved = NULL;
    int os_error;
    /* mremap() takes one mapping, and the kernel has made two of it if only a
       part was advised. */
    if (large->advised > 0 && large->advised < old_size) {
        if (hugepages_advise_large(large, old_size) < 0) {
            return NULL;
        }
        large->advised = old_size;
    }
    if (hugepages_reserve_leaf() < 0) {
        return NULL;
    }
    /* If it moves, then the C library may get the old place at once. */
    (void)hugepages_set_unit(large, HUGEPAGES_UNIT_FOREIGN);
    hugepages_result result = hugepages_os_resize(
        large, old_size, new_size, ARENA_SIZE, &moved, &os_error);
    if (result != HUGEPAGES_OK) {
        moved = large;
    }
    (void)hugepages_set_unit(moved, HUGEPAGES_UNIT_LARGE);
    if (result != HUGEPAGES_OK) {
        return NULL;
    }
    large = (hugepages_large *)moved;
    large->size = new_size;
    hugepages_count_mapped(HUGEPAGES_LARGE,
                           (new_size - old_size) / ARENA_SIZE);
    return large;
}

/* Give a large block another size, more than HUGEPAGES_HEAP_MOST.  Return
   where it is then, or NULL, and then nothing has changed; which cannot be if
   it is not to grow. */
static void *
hugepages_large_resize(void *memory, size_t size)
{
    hugepages_large *large = hugepages_large_of(memory);
    size_t new_size = hugepages_large_mapping_size(size);
    int is_growing = size > large->used;
    if (new_size > large->size) {
        large = hugepages_grow_large(large, new_size);
        if (large == NULL) {
            return NULL;
        }
    }
    else if (new_size < large->size) {
        hugepages_shrink_large(large, new_size);
    }
    large->used = size;
    /* If this fails, then what was added is on base pages. */
    if (is_growing && large->advised < large->size
        && (hugepages_tiers() & PYMALLOC_HUGEPAGES_THP)
        && hugepages_advise_large(large, large->size) == 0)
    {
        large->advised = large->size;
    }
    return (char *)large + HUGEPAGES_LARGE_OFFSET;
}
