/* Arenas with content.

   Each word tells where it is and which generation wrote it, so every wrong
   byte is seen, and what comes from before a fork is told from what came
   after. */

#ifndef Py_TESTHUGEPAGES_ARENAS_H
#define Py_TESTHUGEPAGES_ARENAS_H

#define MAX_ARENAS 128
#define ARENA_WORDS (ARENA_SIZE / sizeof(uint64_t))
/* One word of this many is written and looked at: all, or one of a cache line
   where there are many arenas. */
#ifndef ARENA_STRIDE
#  define ARENA_STRIDE 1
#endif

static uint64_t *arenas[MAX_ARENAS];
static int arena_count;

static uint64_t
word(int arena, size_t index, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)arena << 24 | index;
}

static void
fill_arena(int i, uint32_t generation)
{
    for (size_t j = 0; j < ARENA_WORDS; j += ARENA_STRIDE) {
        _Py_atomic_store_uint64_relaxed(&arenas[i][j], word(i, j, generation));
    }
}

static void
fill_arenas(uint32_t generation)
{
    for (int i = 0; i < arena_count; i++) {
        fill_arena(i, generation);
    }
}

/* Check that every word of the arenas is of a generation from oldest to
   newest, and in its place. */
static void
check_generations(uint32_t oldest, uint32_t newest)
{
    for (int i = 0; i < arena_count; i++) {
        for (size_t j = 0; j < ARENA_WORDS; j += ARENA_STRIDE) {
            uint64_t value = _Py_atomic_load_uint64_relaxed(&arenas[i][j]);
            uint32_t generation = (uint32_t)(value >> 32);
            if (value != word(i, j, generation) || generation < oldest
                || generation > newest)
            {
                FAIL("word %zu of arena %d is %llx; generation %u to %u",
                     j, i, (unsigned long long)value, oldest, newest);
                return;
            }
        }
    }
}

static void
check_arenas(uint32_t generation)
{
    check_generations(generation, generation);
}

/* Allocate this many arenas more, or as many as the system grants, and write
   generation 0 to each.  Return how many it granted. */
static int
add_arenas(int count)
{
    for (int i = 0; i < count && arena_count < MAX_ARENAS; i++) {
        uint64_t *arena = (uint64_t *)alloc_arena();
        if (arena == NULL) {
            return i;
        }
        arenas[arena_count] = arena;
        fill_arena(arena_count++, 0);
    }
    return count;
}

static void
free_arenas(void)
{
    while (arena_count > 0) {
        free_arena(arenas[--arena_count]);
    }
}

/* Take new arenas and give them back, one after another. */
static void
use_new_arenas(int count)
{
    for (int i = 0; i < count; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        memset(arena, 0xFF, ARENA_SIZE);
        free_arena(arena);
    }
}

#endif /* !Py_TESTHUGEPAGES_ARENAS_H */
