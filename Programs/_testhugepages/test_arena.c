/* Tests of arena.c over the fake OS layer: which arenas are kept, what the
   system takes back, and the first arenas; and everything at random. */

#define TEST_PREFIX arena
#include "fake_os.h"

// --- kept arenas ------------------------------------------------------------

static void
check_kept(size_t now, size_t ever)
{
    _PyMem_HugePagesStats stats = get_stats();
    CHECK_EQUAL(stats.tiers[RETAINED].now, now);
    CHECK_EQUAL(stats.tiers[RETAINED].ever, ever);
}

TEST(arena_kept)
{
    void *arenas[5];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 5);
    fake.length = 0;
    give_many(arenas, 2);
    check_kept(2, 2);
    CHECK_LOG("");
    EXPECT(give(arenas[2]), "U");
    for (int i = 0; i < 2; i++) {
        CHECK(fake.slots[slot_of(take())] == THP);
    }
    (void)take_first();
    CHECK_LOG("A");
    check_kept(0, 2);

    /* Also by one of the first arenas. */
    begin_with(PYMALLOC_HUGEPAGES_THP);
    void *arena = take();
    give(arena);
    CHECK(take_first() == arena);
    CHECK_LOG("T");
}

TEST(arena_kept_kinds)
{
    void *arenas[7];
    begin_with(PYMALLOC_HUGEPAGES_ON);
    take_many(arenas, 4);
    fake.answers['E'] = HUGEPAGES_BUSY;
    take_many(arenas + 4, 3);
    fake.length = 0;
    give(arenas[0]);
    give(arenas[4]);
    CHECK_LOG("");
    give(arenas[1]);
    give(arenas[5]);
    CHECK_LOG("UU");
    CHECK_EQUAL(fake.slots[slot_of(take())], EXPLICIT);
    CHECK_EQUAL(fake.slots[slot_of(take())], THP);
}

/* Plain memory is not kept, nor what was plain when it was taken. */
TEST(arena_kept_plain)
{
    begin_with(PYMALLOC_HUGEPAGES_THP);
    fake.answers['T'] = HUGEPAGES_BUSY;
    give(take());
    give(take_first());
    CHECK_LOG("tPUAU");
    void *first = take_first();
    hugepages_promote(first);
    give(first);
    CHECK_LOG("AV");
}

/* What the switch or the system leaves out is not kept. */
TEST(arena_kept_is_released)
{
    void *arenas[3];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 3);
    give_many(arenas, 2);
    fake.length = 0;
    EXPECT(_PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP), "UU");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    give(arenas[2]);
    CHECK_LOG("U");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    void *arena = take();
    fake.answers['T'] = HUGEPAGES_NEVER;
    (void)take();
    give(arena);
    CHECK_LOG("TtPU");
}

/* Where memory is refused, nothing is kept that nobody uses. */
TEST(arena_kept_is_released_for_memory)
{
    void *arenas[3];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 3);
    give_many(arenas, 3);
    fake.length = 0;
    let_call_answer(0, HUGEPAGES_BUSY);
    void *chunk = hugepages_take_plain(1000);
    CHECK(chunk != NULL);
    CHECK_LOG("cUUC");
    hugepages_os_unmap(chunk, 1000, &(int){0});
    /* Not for ever, if the system takes none back either. */
    take_many(arenas, 2);
    give_many(arenas, 2);
    let_answer("CU", HUGEPAGES_BUSY);
    CHECK(hugepages_take_plain(1000) == NULL);
    check_state(0);
    fake.answers['U'] = HUGEPAGES_OK;
    CHECK_EQUAL(hugepages_kept(), 2);
}

// --- the system takes nothing back ------------------------------------------

TEST(arena_unmap_refused)
{
    void *arenas[6];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 6);
    fake.answers['U'] = HUGEPAGES_BUSY;
    fake.length = 0;
    EXPECT(give_many(arenas, 6), "uuuu");
    check_kept(6, 6);
    EXPECT(take_many(arenas, 6), "");
    /* And may be given back as any other. */
    fake.answers['U'] = HUGEPAGES_OK;
    EXPECT(give_many(arenas, 6), "UUUU");
}

/* Plain memory, too, if it is aligned; and it stays plain. */
TEST(arena_unmap_refused_plain)
{
    begin_with(PYMALLOC_HUGEPAGES_THP);
    void *arena = take_first();
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK_LOG("Au");
    CHECK(take() == arena);
    CHECK_LOG("");
    EXPECT(hugepages_promote(arena), "");
    fake.answers['U'] = HUGEPAGES_OK;
    EXPECT(give(arena), "U");

    begin_with(PYMALLOC_HUGEPAGES_OFF);
    arena = take();
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK(take() != arena);
    CHECK_LOG("PuP");
    forget_arena(arena, HUGEPAGES_PLAIN);
}

/* Explicit pages are not proved any more: nobody gets them. */
TEST(arena_unmap_refused_explicit)
{
    begin_with(PYMALLOC_HUGEPAGES_HUGETLB);
    void *arena = take();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK_LOG("Eu");
    CHECK(take() != arena);
    CHECK_LOG("P");
    CHECK_EQUAL(count_slots(EXPLICIT), 1);
    forget_arena(arena, HUGEPAGES_EXPLICIT);
}

// --- the first arenas -------------------------------------------------------

TEST(arena_first_arenas)
{
    begin_with(PYMALLOC_HUGEPAGES_ON);
    void *first = take_first();
    void *second = take_first();
    CHECK_LOG("AA");
    hugepages_promote(first);
    hugepages_promote(second);
    CHECK_LOG("VV");
    check_figures(0, 2, 0);
    CHECK_EQUAL(get_stats().tiers[HUGEPAGES_PLAIN].peak, 2);
    /* Once, and not what has huge pages anyway. */
    hugepages_promote(first);
    hugepages_promote(take());
    fake.answers['E'] = HUGEPAGES_BUSY;
    hugepages_promote(take());
    CHECK_LOG("EeT");
}

TEST(arena_promotion_refused)
{
    begin_with(PYMALLOC_HUGEPAGES_THP);
    void *first = take_first();
    fake.answers['V'] = HUGEPAGES_BUSY;
    hugepages_promote(first);
    fake.answers['V'] = HUGEPAGES_NEVER;
    hugepages_promote(first);
    hugepages_promote(first);
    /* It is as final as any answer to a request for THP. */
    (void)take();
    CHECK_LOG("AvvP");
    _PyMem_HugePagesStats stats = get_stats();
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_THP]), 2);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, 2);
}

/* Where nothing can be promoted, or nobody wants it. */
TEST(arena_no_promotion)
{
    begin_with(PYMALLOC_HUGEPAGES_THP);
    void *first = take_first();
    fork_as_parent();
    hugepages_promote(first);
    CHECK_LOG("A");

    begin_with(PYMALLOC_HUGEPAGES_THP);
    fake.answers['A'] = HUGEPAGES_NEVER;
    fake.answers['T'] = HUGEPAGES_BUSY;
    EXPECT(hugepages_promote(take_first()), "atP");

    begin_with(PYMALLOC_HUGEPAGES_HUGETLB);
    EXPECT(hugepages_promote(take_first()), "A");

    begin_with(PYMALLOC_HUGEPAGES_OFF);
    EXPECT(hugepages_promote(take_first()), "P");
}

// --- faults and random sequences --------------------------------------------

/* Take memory that is no arena, if there is any, and give it back. */
static void
use_chunk(void)
{
    void *chunk = hugepages_take_plain(1000);
    if (chunk != NULL) {
        (void)hugepages_os_unmap(chunk, 1000, &(int){0});
    }
}

/* Everything that arena.c does, once.  What the system refuses cannot be given
   back. */
static void
run_scenario(void)
{
    static const int values[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_THP,
        PYMALLOC_HUGEPAGES_HUGETLB, PYMALLOC_HUGEPAGES_OFF,
        PYMALLOC_HUGEPAGES_ON,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(values); i++) {
        _PyMem_SetHugePages(values[i]);
        void *first = take_first();
        use_chunk();
        (void)take();
        if (first != NULL) {
            hugepages_promote(first);
            give(first);
        }
        (void)take();
        (void)take();
        check_state(0);
    }
    while (held_count > 0) {
        give_number(held_count - 1);
        check_state(0);
    }
}

TEST(arena_each_single_fault)
{
    int exits = 0;
    int points = fail_each_call(begin_test, run_scenario, HUGEPAGES_BUSY,
                                &exits)
                 + fail_each_call(begin_test, run_scenario, HUGEPAGES_NEVER,
                                  &exits);
    CHECK(points > 50);
    CHECK_EQUAL(exits, 0);
    test_note("%d failure points", points);
}

/* The next number decides. */
static uint32_t next_number;

static void
do_something(void)
{
    uint32_t choice = next_number % 100;
    uint32_t number = next_number / 100;
    if (choice < 3) {
        _PyMem_SetHugePages((int)(number % 4));
    }
    else if (choice < 6) {
        fake.has_threads = (int)number % 2;
        fake.thp_is_off = number % 16 == 0;
        fork_as[(number & 0x20) == 0]();
    }
    else if (choice < 12) {
        use_chunk();
        for (int i = 0; i < MAX_CHUNKS; i++) {
            /* What was not taken back is of no further interest. */
            if (fake.chunks[i].size == 1000) {
                free(fake.chunks[i].address);
                fake.chunks[i].address = NULL;
                fake.chunks[i].size = 0;
            }
        }
    }
    else if (choice < 20) {
        void *first = take_first();
        if (first != NULL) {
            hugepages_promote(first);
        }
    }
    else if (held_count == 0 || (choice < 58 && held_count < 60)) {
        (void)take();
    }
    else {
        give_number((int)(number % (uint32_t)held_count));
    }
}

/* A process and its children, each of which goes on as the child; if there is
   no memory for one, as a new process. */
TEST(arena_random_sequences)
{
    const int sequences = 100, operations = 500;
    int exits = 0;
    for (int i = 0; i < sequences; i++) {
        uint32_t seed = test_seed + (uint32_t)i;
        uint32_t random_state = seed;
        begin_test();
        fake.random_state = ~seed;
        for (int j = 0; j < operations; j++) {
            next_number = test_random(&random_state);
            if (does_exit(do_something)) {
                exits++;
                begin_test();
                fake.random_state = ~next_number | 1;
            }
            check_state(0);
            if (test_failed()) {
                FAIL("in operation %d; run again with --seed %u", j, seed);
                return;
            }
        }
        abandon_test();
    }
    test_note("%d sequences of %d operations, %d exits, seeds from %u",
              sequences, operations, exits, test_seed);
}

// --- threads ----------------------------------------------------------------

/* Each thread checks that nobody else writes into its arenas. */
static void
stress(int thread)
{
    static const int tiers[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_THP,
    };
    enum { MOST = 8, OPERATIONS = 10000 };
    unsigned char *arenas[MOST];
    uint32_t count = 0;
    uint32_t random_state = test_seed + (uint32_t)thread;
    for (int i = 0; i < OPERATIONS; i++) {
        uint32_t number = test_random(&random_state);
        if (thread == 0 && i % 64 == 0) {
            _PyMem_SetHugePages(tiers[number % 2]);
        }
        else if (count < MOST && number & 0x10000) {
            unsigned char *arena = number & 0x20000 ? hugepages_take()
                                                    : hugepages_take_first();
            if (arena != NULL) {
                arenas[count++] = arena;
                memset(arena, thread + 1, 64);
                if (number & 0x40000) {
                    hugepages_promote(arena);
                }
            }
        }
        else if (count > 0) {
            uint32_t index = number % count;
            for (int j = 0; j < 64; j++) {
                if (arenas[index][j] != thread + 1) {
                    FAIL("byte %d of an arena in use was overwritten", j);
                    break;
                }
            }
            hugepages_give(arenas[index]);
            arenas[index] = arenas[--count];
        }
    }
    while (count > 0) {
        hugepages_give(arenas[--count]);
    }
}

static void
run_stress(uint32_t random_state)
{
    begin_test();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    fake.random_state = random_state;
    fake.aligns_plain = 1;
    test_run_threads(8, stress);
    fake.random_state = 0;
    CHECK_EQUAL(fake.log[0], 'S');
    check_state(0);
}

TEST(arena_threads)
{
    /* With no refusal, too: then nothing may be left. */
    run_stress(0);
    run_stress(~test_seed);
    abandon_test();
}
