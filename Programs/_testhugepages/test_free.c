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
    if (made.arena == NULL) {
        FAIL("no arena");
        exit(1);
    }
    made.pool = (poolp)(made.arena + POOL_SIZE);
    made.block = (char *)made.pool + 64;
    made.next = made.block + 64;
    made.pool->ref.count = used;
    made.pool->freeblock = (pymem_block *)made.next;
    return made;
}

/* Nothing was done to a block or its pool. */
static void
check_left(const some_pool *made, unsigned int used)
{
    char *next = (char *)made->pool->freeblock;
    CHECK_EQUAL(made->pool->ref.count, used);
    CHECK(next == NULL || next == made->next);
    CHECK(*(char **)made->block == NULL);
}

TEST(free_block)
{
    some_pool made = make_pool(3);
    CHECK_EQUAL(hugepages_free_block(made.block), 1);
    CHECK_EQUAL(made.pool->ref.count, 2);
    CHECK(made.pool->freeblock == (pymem_block *)made.block);
    CHECK(*(char **)made.block == made.next);
    free_arena(made.arena);
}

/* The last block of a pool, and one of a full pool, are obmalloc.c's. */
TEST(free_block_of_obmalloc)
{
    for (unsigned int used = 1; used <= 3; used += 2) {
        some_pool made = make_pool(used);
        if (used == 3) {
            made.pool->freeblock = NULL;
        }
        CHECK_EQUAL(hugepages_free_block(made.block), 0);
        check_left(&made, used);
        free_arena(made.arena);
    }
}

/* What is before and behind an arena is not touched, let alone read. */
TEST(free_block_of_others)
{
    some_pool made = make_pool(3);
    char *const others[] = {
        made.arena - 1, made.arena + ARENA_SIZE, NULL, (char *)16,
        (char *)UINTPTR_MAX - 15, (char *)&made
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(others); i++) {
        CHECK_EQUAL(hugepages_free_block(others[i]), 0);
    }
    check_left(&made, 3);
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
