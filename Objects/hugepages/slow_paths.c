/* What becomes of a request that no pool in use can serve, and of a block that
   is in no pool.  Included by obmalloc.c once more of it is known than where
   static.c is.

   These are functions of their own, called last and with nothing left to do
   after them, so that _PyObject_Malloc() and _PyObject_Free() need neither a
   stack frame nor saved registers in the calls that get by without them, which
   nearly all do.  That is also why the two functions that put a pool into
   another list are not to be inlined.  Together with the shortcut in
   arena_map_is_used() it takes 18 of the 77 instructions away that a block
   costs to be had and freed again (GCC 12, x86-64). */

static Py_NO_INLINE void insert_to_usedpool(OMState *state, poolp pool);
static Py_NO_INLINE void insert_to_freepool(OMState *state, poolp pool);

/* A block of a new pool, or NULL: the request is not for pymalloc, or there is
   no memory. */
static void *
hugepages_alloc_from_new_pool(OMState *state, size_t size)
{
    if (size - 1 >= SMALL_REQUEST_THRESHOLD) {
        return NULL;
    }
#ifdef WITH_VALGRIND
    if (running_on_valgrind) {
        return NULL;
    }
#endif
    hugepages_work_goes_on();
    return allocate_from_new_pool(state,
                                  (uint)(size - 1) >> ALIGNMENT_SHIFT);
}

/* The rest of _PyObject_Malloc(). */
static Py_NO_INLINE void *
hugepages_malloc_slowly(OMState *state, size_t size)
{
    void *memory = hugepages_alloc_from_new_pool(state, size);
    if (memory == NULL) {
        memory = hugepages_block_malloc(size);
        if (memory != NULL) {
            raw_allocated_blocks++;
        }
    }
    return memory;
}

/* The rest of _PyObject_Calloc(). */
static Py_NO_INLINE void *
hugepages_calloc_slowly(OMState *state, size_t count, size_t size)
{
    void *memory = hugepages_alloc_from_new_pool(state, count * size);
    if (memory != NULL) {
        return memset(memory, 0, count * size);
    }
    memory = hugepages_block_calloc(count, size);
    if (memory != NULL) {
        raw_allocated_blocks++;
    }
    return memory;
}

/* The rest of _PyObject_Free(). */
static Py_NO_INLINE void
hugepages_free_slowly(OMState *state, void *memory)
{
    hugepages_block_free(memory);
    raw_allocated_blocks--;
}
