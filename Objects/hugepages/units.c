/* Which memory of ours an address belongs to, for what pymalloc does not
   manage itself: medium blocks (heap.c) and large ones (large.c).

   Both own their memory in units of ARENA_SIZE, aligned to it, so one byte for
   each unit of the address space tells.  It is a tree of two levels, whose
   root is as large as 48 bits of address need, and whose leaves are mapped
   when they are needed and never given back: each stands for 32 GiB of
   addresses and takes 16 KiB.

   Changed with the lock, read without it: a block that is asked about is in
   use, so its unit does not change meanwhile; and a unit where nothing of ours
   is has no block that anybody could ask about. */

#include "hugepages.h"

typedef enum {
    HUGEPAGES_UNIT_FOREIGN,     // pymalloc's, the C library's, nobody's
    HUGEPAGES_UNIT_DENSE,       // an arena of medium blocks
    HUGEPAGES_UNIT_ROOMY,       // an arena of other medium blocks
    HUGEPAGES_UNIT_LARGE,       // the first unit of a large block
} hugepages_unit;

/* In bits: an address; an offset in a unit, which is as large as an arena; the
   number of a unit in its leaf. */
#define HUGEPAGES_ADDRESS_BITS 48
#define HUGEPAGES_UNIT_BITS 21
#define HUGEPAGES_LEAF_BITS 14
#define HUGEPAGES_LEAF_LENGTH ((size_t)1 << HUGEPAGES_LEAF_BITS)
#define HUGEPAGES_ROOT_LENGTH \
    ((size_t)1 << (HUGEPAGES_ADDRESS_BITS - HUGEPAGES_UNIT_BITS \
                   - HUGEPAGES_LEAF_BITS))

static void *hugepages_units[HUGEPAGES_ROOT_LENGTH];

/* Where the leaf that has an address is noted, or NULL for one that is beyond
   what the tree knows. */
static void **
hugepages_find_leaf(const void *address)
{
    size_t index = (size_t)((uintptr_t)address
                            >> (HUGEPAGES_UNIT_BITS + HUGEPAGES_LEAF_BITS));
    return index < HUGEPAGES_ROOT_LENGTH ? &hugepages_units[index] : NULL;
}

static size_t
hugepages_leaf_index(const void *address)
{
    return (size_t)((uintptr_t)address >> HUGEPAGES_UNIT_BITS)
           & (HUGEPAGES_LEAF_LENGTH - 1);
}

/* What an address belongs to. */
static inline hugepages_unit
hugepages_unit_of(const void *address)
{
    void **leaf = hugepages_find_leaf(address);
    const uint8_t *units = NULL;
    if (leaf != NULL) {
        units = (const uint8_t *)_Py_atomic_load_ptr_acquire(leaf);
    }
    if (units == NULL) {
        return HUGEPAGES_UNIT_FOREIGN;
    }
    return (hugepages_unit)_Py_atomic_load_uint8_relaxed(
        &units[hugepages_leaf_index(address)]);
}

/* A leaf that is not in the tree yet, or NULL. */
static void *hugepages_spare_leaf;

/* See to it that the next hugepages_set_unit() does not fail for want of
   memory.  Return 0, or -1 if there is none. */
static int
hugepages_reserve_leaf(void)
{
    int os_error;
    if (hugepages_spare_leaf != NULL) {
        return 0;
    }
    return hugepages_os_map_plain(HUGEPAGES_LEAF_LENGTH, &hugepages_spare_leaf,
                                  &os_error) == HUGEPAGES_OK ? 0 : -1;
}

/* Say what the unit that begins at an address is.  Return 0, or -1 if the
   address is not aligned, or is beyond what the tree knows, or there is no
   memory for it.  A unit that is something else already can always become
   HUGEPAGES_UNIT_FOREIGN. */
static int
hugepages_set_unit(const void *address, hugepages_unit unit)
{
    void **leaf = hugepages_find_leaf(address);
    if (leaf == NULL || ((uintptr_t)address & (ARENA_SIZE - 1)) != 0) {
        return -1;
    }
    if (*leaf == NULL) {
        if (hugepages_reserve_leaf() < 0) {
            return -1;
        }
        _Py_atomic_store_ptr_release(leaf, hugepages_spare_leaf);
        hugepages_spare_leaf = NULL;
    }
    uint8_t *units = (uint8_t *)*leaf;
    _Py_atomic_store_uint8_relaxed(&units[hugepages_leaf_index(address)],
                                   (uint8_t)unit);
    return 0;
}
