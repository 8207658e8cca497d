/* Tests of free.c. */

#define TEST_PREFIX free
#include "linux_calls.h"

/* An arena whose second pool has some blocks of 64 bytes in use, and one that
   is free. */
typedef struct {
    char *arena;
    poolp pool;
    char *block;
    char *next;
} some_pool;

static some_pool
make_pool(unsigned int used)
{
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    some_pool made = {alloc_arena(), NULL, NULL, NULL};
    assert(made.arena != NULL);
    made.pool = (poolp)(made.arena + POOL_SIZE);
    made.block = (char *)made.pool + 64;
    made.next = made.block + 64;
    made.pool->ref.count = used;
    made.pool->freeblock = (pymem_block *)made.next;
    test_inserted = NULL;
    return made;
}

/* Nothing was done to a block or its pool. */
static void
check_left(const some_pool *made, unsigned int used)
{
    CHECK_EQUAL(made->pool->ref.count, used);
    CHECK((char *)made->pool->freeblock == made->next);
    CHECK(test_inserted == NULL);
    CHECK(*(char **)made->block == NULL);
}

/* One of a full pool, too: then the pool has blocks for requests again. */
TEST(free_block)
{
    for (int full = 0; full <= 1; full++) {
        some_pool made = make_pool(3);
        char *next = full ? NULL : made.next;
        made.pool->freeblock = (pymem_block *)next;
        CHECK_EQUAL(hugepages_free_block(made.block), 1);
        CHECK_EQUAL(made.pool->ref.count, 2);
        CHECK(made.pool->freeblock == (pymem_block *)made.block);
        CHECK(*(char **)made.block == next);
        CHECK(test_inserted == (full ? made.pool : NULL));
        free_arena(made.arena);
    }
}

/* What is before and behind an arena is not touched, let alone read.  The last
   block of a pool is obmalloc.c's. */
TEST(free_block_of_others)
{
    some_pool made = make_pool(1);
    char *const others[] = {
        made.arena - 1, made.arena + ARENA_SIZE, NULL, (char *)16,
        (char *)UINTPTR_MAX - 15, (char *)&made, made.block
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(others); i++) {
        CHECK_EQUAL(hugepages_free_block(others[i]), 0);
    }
    check_left(&made, 1);
    free_arena(made.arena);
}

/* It may be malloc()'s next, which has no pools. */
TEST(free_block_of_former_arena)
{
    some_pool made = make_pool(3);
    free_arena(made.arena);
    /* Forgotten, whether it is kept or unmapped. */
    CHECK_EQUAL(hugepages_free_block(made.block), 0);
}

/* As stock CPython's may be, and those of PyObject_SetArenaAllocator(). */
TEST(free_block_of_unaligned_arena)
{
    char *memory = malloc(2 * ARENA_SIZE);
    REQUIRE(memory != NULL);
    char *arena = memory + (ARENA_SIZE - (uintptr_t)memory % ARENA_SIZE) / 2
                  / POOL_SIZE * POOL_SIZE;
    REQUIRE((uintptr_t)arena % ARENA_SIZE != 0);
    hugepages_note_arena(arena);
    CHECK_EQUAL(hugepages_free_block(arena), 0);
    CHECK_EQUAL(hugepages_free_block(arena + ARENA_SIZE - 1), 0);
    hugepages_forget_arena(arena);
    free(memory);
}

/* Two with one place: the last one has it, and only that one loses it. */
TEST(free_block_of_same_place)
{
    some_pool made = make_pool(9);
    char *other = made.arena + HUGEPAGES_PLACES * ARENA_SIZE;
    hugepages_note_arena(other);
    CHECK_EQUAL(hugepages_free_block(made.block), 0);
    check_left(&made, 9);
    hugepages_note_arena(made.arena);
    CHECK_EQUAL(hugepages_free_block(other), 0);
    hugepages_forget_arena(other);
    CHECK_EQUAL(hugepages_free_block(made.block), 1);
    free_arena(made.arena);
}
