/* malloc() and the like for what is too large for pymalloc's pools: slow_paths.c
   and obmalloc.c call these where stock CPython calls PyMem_RawMalloc() and its
   siblings for the mem and object domains.

   A block gets the first of these that there is:

       size in bytes                       from
       up to SMALL_REQUEST_THRESHOLD       the raw domain: pymalloc has no memory
       up to HUGEPAGES_HEAP_MOST           an arena (heap.c)
       above                               a mapping of its own (large.c), if THP
                                           may be used
       any                                 the raw domain, that is malloc()

   With the switch off all are the raw domain's.  Where a block is can be told
   from its address, so the switch may change while there are blocks.

   Other than with pymalloc's pools, a block may be freed by a thread of any
   interpreter. */

#include "hugepages.h"

/* Return size bytes from a heap or of a large block, or NULL if they are to
   come from elsewhere; say whether they are zeroed.  has_grown says whether it
   is for a block that has been smaller. */
static void *
hugepages_alloc_block(size_t size, int has_grown, int *is_zeroed)
{
    void *memory = NULL;
    *is_zeroed = 0;
    if (size <= SMALL_REQUEST_THRESHOLD) {
        return NULL;
    }
    hugepages_os_lock();
    if (size > HUGEPAGES_HEAP_MOST) {
        if (hugepages_tiers() & PYMALLOC_HUGEPAGES_THP) {
            memory = hugepages_large_alloc(size, has_grown, is_zeroed);
        }
    }
    else if (hugepages_tiers() != PYMALLOC_HUGEPAGES_OFF) {
        memory = hugepages_heap_alloc(hugepages_heap_for(size, has_grown),
                                      size);
    }
    hugepages_os_unlock();
    return memory;
}

/* As PyMem_RawMalloc(). */
static void *
hugepages_block_malloc(size_t size)
{
    int is_zeroed;
    void *memory = hugepages_alloc_block(size, 0, &is_zeroed);
    return memory != NULL ? memory : PyMem_RawMalloc(size);
}

/* As PyMem_RawCalloc(); count * size does not overflow. */
static void *
hugepages_block_calloc(size_t count, size_t size)
{
    int is_zeroed;
    void *memory = hugepages_alloc_block(count * size, 0, &is_zeroed);
    if (memory == NULL) {
        return PyMem_RawCalloc(count, size);
    }
    if (!is_zeroed) {
        memset(memory, 0, count * size);
    }
    return memory;
}

/* Give back a block of a unit that is not foreign. */
static void
hugepages_free_block(void *memory, hugepages_unit unit)
{
    hugepages_heap *heap = hugepages_heap_of(unit);
    hugepages_os_lock();
    if (heap != NULL) {
        hugepages_heap_free(heap, memory);
    }
    else {
        hugepages_large_free(memory);
    }
    hugepages_os_unlock();
}

/* As PyMem_RawFree(), for blocks of the functions here. */
static void
hugepages_block_free(void *memory)
{
    hugepages_unit unit = hugepages_unit_of(memory);
    if (unit == HUGEPAGES_UNIT_FOREIGN) {
        PyMem_RawFree(memory);
    }
    else {
        hugepages_free_block(memory, unit);
    }
}

/* Give a block of a unit that is not foreign another size without copying it.
   Return where it is then, or NULL if it cannot be; set *old_size to what is to
   be copied then. */
static void *
hugepages_resize_block(void *memory, hugepages_unit unit, size_t size,
                       size_t *old_size)
{
    void *resized = NULL;
    hugepages_heap *heap = hugepages_heap_of(unit);
    hugepages_os_lock();
    if (heap != NULL) {
        *old_size = hugepages_heap_size(memory);
        if (hugepages_heap_resize(heap, memory, size)) {
            resized = memory;
        }
    }
    else {
        *old_size = hugepages_large_size(memory);
        if (size > HUGEPAGES_HEAP_MOST) {
            resized = hugepages_large_resize(memory, size);
        }
    }
    hugepages_os_unlock();
    return resized;
}

/* As PyMem_RawRealloc(), for blocks of the functions here.  Not inlined, so that
   obmalloc.c saves no registers for it where it resizes a small block. */
static Py_NO_INLINE void *
hugepages_block_realloc(void *memory, size_t size)
{
    hugepages_unit unit = hugepages_unit_of(memory);
    if (unit == HUGEPAGES_UNIT_FOREIGN) {
        return PyMem_RawRealloc(memory, size);
    }
    size_t old_size;
    void *resized = hugepages_resize_block(memory, unit, size, &old_size);
    if (resized != NULL) {
        return resized;
    }
    int is_zeroed;
    resized = hugepages_alloc_block(size, size > old_size, &is_zeroed);
    if (resized == NULL) {
        resized = PyMem_RawMalloc(size);
    }
    if (resized == NULL) {
        /* A block that is not to grow can stay what it is. */
        return size <= old_size ? memory : NULL;
    }
    memcpy(resized, memory, size < old_size ? size : old_size);
    hugepages_free_block(memory, unit);
    return resized;
}
