/* Tests of table.c, arena.c and stats.c over a fake OS layer. */

#define TEST_PREFIX policy
#include "_testhugepages_fake.h"

// --- tests: the switch -----------------------------------------------------

static void
test_before_switch(void)
{
    begin_test();
    (void)take();
    (void)take_first();
    CHECK_LOG("PP");
    end_test();
}

/* Python may be initialized again, with another value; what was taken under
   one is given back under another. */
static void
test_switch_again(void)
{
    begin_test();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    (void)take();
    CHECK_LOG("P");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    (void)take();
    CHECK_LOG("ST");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    (void)take();
    CHECK_LOG("NE");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    (void)take();
    CHECK_LOG("P");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)take();
    CHECK_LOG("E");
    end_test();
}

static void
test_enable_refused(void)
{
    begin_test();
    fake.answers['N'] = HUGEPAGES_NEVER;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    (void)take();
    CHECK_LOG("SnT");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)take();
    CHECK_LOG("P");
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 1);
    end_test();
}

/* What the system has, what then is asked for, and why not, in words. */
static void
test_reasons(void)
{
    const size_t arena = ARENA_SIZE;
    const struct {
        int tiers;
        hugepages_system system;
        const char *log, *name, *hugetlb, *thp;
    } cases[] = {
        {PYMALLOC_HUGEPAGES_ON, {arena, arena, 0}, "SNetP", "on", NULL, NULL},
        {PYMALLOC_HUGEPAGES_ON, {arena / 2, arena / 2, 0}, "SNetP", "on",
         NULL, NULL},
        {PYMALLOC_HUGEPAGES_THP, {arena, arena, 0}, "StP", "thp",
         "switch", NULL},
        {PYMALLOC_HUGEPAGES_HUGETLB, {arena, arena, 0}, "SNeP", "hugetlb",
         NULL, "switch"},
        {PYMALLOC_HUGEPAGES_OFF, {arena, arena, 0}, "P", "off",
         "switch", "switch"},
        {PYMALLOC_HUGEPAGES_ON, {0, 0, 0}, "SP", "on",
         "no huge page that fits", "no transparent huge pages"},
        {PYMALLOC_HUGEPAGES_ON, {2 * arena, 2 * arena, 0}, "SP", "on",
         "no huge page that fits", "does not fit an arena"},
        {PYMALLOC_HUGEPAGES_ON, {arena, 256 * arena, 0}, "SNeP", "on",
         NULL, "does not fit an arena"},
        {PYMALLOC_HUGEPAGES_ON, {arena, arena, 1}, "SNeP", "on",
         NULL, "disabled for this process"},
    };
    _PyMem_HugePagesStats stats;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin_test();
        fake.system = cases[i].system;
        fake.answers['E'] = HUGEPAGES_BUSY;
        fake.answers['T'] = HUGEPAGES_BUSY;
        _PyMem_SetHugePages(cases[i].tiers);
        (void)take();
        CHECK_LOG(cases[i].log);
        _PyMem_GetHugePagesStats(&stats);
        CHECK(strcmp(stats.switch_value, cases[i].name) == 0);
        CHECK(cases[i].hugetlb == NULL
              ? stats.tiers[HUGEPAGES_EXPLICIT].unusable == NULL
              : strstr(stats.tiers[HUGEPAGES_EXPLICIT].unusable, cases[i].hugetlb) != NULL);
        CHECK(cases[i].thp == NULL
              ? stats.tiers[HUGEPAGES_THP].unusable == NULL
              : strstr(stats.tiers[HUGEPAGES_THP].unusable, cases[i].thp) != NULL);
        end_test();
    }
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    fake.answers['E'] = HUGEPAGES_NEVER;
    (void)take();
    _PyMem_GetHugePagesStats(&stats);
    CHECK(strstr(stats.tiers[HUGEPAGES_EXPLICIT].unusable, "refused it for good") != NULL);
    CHECK(stats.tiers[HUGEPAGES_THP].unusable == NULL);
    end_test();
}

// --- tests: which pages an arena gets --------------------------------------

/* Every answer of every tier. */
static void
test_fallback(void)
{
    static const char *const first[3][3] = {
        {"E", "E", "E"}, {"eT", "etP", "etP"}, {"eT", "etP", "etP"},
    };
    static const char *const second[3][3] = {
        {"E", "E", "E"}, {"eT", "etP", "eP"}, {"T", "tP", "P"},
    };
    for (int explicit_answer = 0; explicit_answer < 3; explicit_answer++) {
        for (int thp_answer = 0; thp_answer < 3; thp_answer++) {
            begin_test_with(PYMALLOC_HUGEPAGES_ON);
            fake.answers['E'] = (hugepages_result)explicit_answer;
            fake.answers['T'] = (hugepages_result)thp_answer;
            (void)take();
            CHECK_LOG(first[explicit_answer][thp_answer]);
            (void)take();
            CHECK_LOG(second[explicit_answer][thp_answer]);
            /* What is for good is so under each value of the switch. */
            _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
            _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
            (void)take();
            CHECK_LOG(second[explicit_answer][thp_answer]);
            end_test();
        }
    }
}

static void
test_busy_is_asked_again(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    fake.answers['E'] = HUGEPAGES_BUSY;
    fake.answers['T'] = HUGEPAGES_BUSY;
    (void)take();
    fake.answers['T'] = HUGEPAGES_OK;
    (void)take();
    fake.answers['E'] = HUGEPAGES_OK;
    (void)take();
    CHECK_LOG("etPeTE");
    end_test();
}

/* A huge page for a data-stack chunk would waste nearly all of it. */
static void
test_other_sizes(void)
{
    static const size_t sizes[] = {
        1, 1000, ARENA_SIZE / 2, ARENA_SIZE - 1, ARENA_SIZE + 1,
        2 * ARENA_SIZE,
    };
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    give(take());
    fake.length = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        int os_error;
        void *chunk = hugepages_take_plain(sizes[i]);
        REQUIRE(chunk != NULL);
        CHECK_EQUAL(hugepages_os_unmap(chunk, sizes[i], &os_error),
                    HUGEPAGES_OK);
        CHECK_LOG("CF");
    }
    end_test();
}

static void
test_no_memory(void)
{
    _PyMem_HugePagesStats stats;
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    for (const char *letter = "ETAPC"; *letter != '\0'; letter++) {
        fake.answers[(int)*letter] = HUGEPAGES_BUSY;
    }
    CHECK(hugepages_take() == NULL);
    CHECK(hugepages_take_plain(1000) == NULL);
    CHECK(hugepages_take_first() == NULL);
    CHECK_LOG("etpcaetp");
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 2);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_THP]), 2);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_PLAIN]), 2);
    fake.answers['P'] = HUGEPAGES_OK;
    CHECK(take() != NULL);
    CHECK_LOG("etP");
    end_test();
}

// --- tests: the table ------------------------------------------------------

/* Whatever the order in which arenas come and go. */
static void
test_table_grows(void)
{
    enum { COUNT = 200 };
    void *arenas[COUNT];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = take();
    }
    /* 4 entries and 8, 16, 32, 64, 128. */
    int pieces = 0;
    for (int i = 0; i < HUGEPAGES_PIECES - 1; i++) {
        pieces += hugepages_table.pieces[i] != NULL;
    }
    CHECK_EQUAL(pieces, 5);
    for (int i = 0; i < COUNT; i++) {
        /* 7 and COUNT have no common divisor. */
        give(arenas[i * 7 % COUNT]);
    }
    check_state(0);
    fake.answers['C'] = HUGEPAGES_BUSY;
    for (int i = 0; i < COUNT; i++) {
        (void)take();
    }
    CHECK_EQUAL(count_slots(THP), COUNT);
    end_test();
}

/* An arena that a fork would not find gets other pages. */
static void
test_table_cannot_grow(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    fake.answers['C'] = HUGEPAGES_BUSY;
    fake.aligns_plain = 1;
    for (int i = 0; i < 5; i++) {
        (void)take();
    }
    void *first = take_first();
    CHECK_LOG("EEEEcPA");
    hugepages_promote(first);
    CHECK_LOG("c");
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(first);
    CHECK_LOG("uc");
    CHECK_EQUAL(count_slots(PLAIN), 2);
    fake.slots[slot_of(first)] = NOTHING;
    hugepages_count_unmapped(HUGEPAGES_PLAIN);
    fake.answers['C'] = HUGEPAGES_OK;
    (void)take();
    CHECK_LOG("CE");
    end_test();
}

// --- tests: kept arenas ----------------------------------------------------

static void
check_kept(size_t now, size_t ever)
{
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_KINDS].now, now);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_KINDS].ever, ever);
}

static void
take_many(void **arenas, int count)
{
    for (int i = 0; i < count; i++) {
        arenas[i] = take();
    }
}

static void
test_kept(void)
{
    void *arenas[5];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 5);
    fake.length = 0;
    for (int i = 0; i < 2; i++) {
        give(arenas[i]);
    }
    check_kept(2, 2);
    CHECK_LOG("");
    give(arenas[2]);
    CHECK_LOG("U");
    for (int i = 0; i < 2; i++) {
        CHECK(fake.slots[slot_of(take())] == THP);
    }
    (void)take_first();
    CHECK_LOG("A");
    check_kept(0, 2);
    end_test();

    /* Also by one of the first arenas. */
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    void *arena = take();
    give(arena);
    CHECK(take_first() == arena);
    CHECK_LOG("T");
    end_test();
}

static void
test_kept_kinds(void)
{
    void *arenas[7];
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
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
    end_test();
}

/* Plain memory is not kept, nor what was plain when it was taken. */
static void
test_kept_plain(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    fake.answers['T'] = HUGEPAGES_BUSY;
    give(take());
    give(take_first());
    CHECK_LOG("tPUAU");
    void *first = take_first();
    hugepages_promote(first);
    give(first);
    CHECK_LOG("AV");
    end_test();
}

/* What the switch or the system leaves out is not kept. */
static void
test_kept_is_released(void)
{
    void *arenas[3];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 3);
    give(arenas[0]);
    give(arenas[1]);
    fake.length = 0;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    CHECK_LOG("UU");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    give(arenas[2]);
    CHECK_LOG("U");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    void *arena = take();
    fake.answers['T'] = HUGEPAGES_NEVER;
    (void)take();
    give(arena);
    CHECK_LOG("TtPU");
    end_test();
}

/* Where memory is refused, nothing is kept that nobody uses. */
static void
test_kept_is_released_for_memory(void)
{
    void *arenas[3];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 3);
    for (int i = 0; i < 3; i++) {
        give(arenas[i]);
    }
    fake.length = 0;
    fake.fault_at = fake.calls;
    fake.fault_answer = HUGEPAGES_BUSY;
    void *chunk = hugepages_take_plain(1000);
    CHECK(chunk != NULL);
    CHECK_LOG("cUUC");
    hugepages_os_unmap(chunk, 1000, &(int){0});
    /* Not for ever, if the system takes none back either. */
    take_many(arenas, 2);
    give(arenas[0]);
    give(arenas[1]);
    fake.answers['C'] = HUGEPAGES_BUSY;
    fake.answers['U'] = HUGEPAGES_BUSY;
    CHECK(hugepages_take_plain(1000) == NULL);
    check_state(0);
    fake.answers['U'] = HUGEPAGES_OK;
    CHECK_EQUAL(hugepages_kept(), 2);
    end_test();
}

// --- tests: the system takes nothing back ----------------------------------

static void
test_unmap_refused(void)
{
    void *arenas[6];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 6);
    fake.answers['U'] = HUGEPAGES_BUSY;
    fake.length = 0;
    for (int i = 0; i < 6; i++) {
        give(arenas[i]);
    }
    CHECK_LOG("uuuu");
    check_kept(6, 6);
    take_many(arenas, 6);
    CHECK_LOG("");
    /* And may be given back as any other. */
    fake.answers['U'] = HUGEPAGES_OK;
    for (int i = 0; i < 6; i++) {
        give(arenas[i]);
    }
    CHECK_LOG("UUUU");
    end_test();
}

/* Plain memory, too, if it is aligned; and it stays plain. */
static void
test_unmap_refused_plain(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    void *arena = take_first();
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK_LOG("Au");
    CHECK(take() == arena);
    CHECK_LOG("");
    hugepages_promote(arena);
    CHECK_LOG("");
    fake.answers['U'] = HUGEPAGES_OK;
    give(arena);
    CHECK_LOG("U");
    end_test();

    begin_test_with(PYMALLOC_HUGEPAGES_OFF);
    arena = take();
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK(take() != arena);
    CHECK_LOG("PuP");
    fake.slots[slot_of(arena)] = fake.slots[slot_of(arena) + 1] = NOTHING;
    hugepages_count_unmapped(HUGEPAGES_PLAIN);
    end_test();
}

/* Explicit pages are not proved any more: nobody gets them. */
static void
test_unmap_refused_explicit(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_HUGETLB);
    void *arena = take();
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
    fake.answers['U'] = HUGEPAGES_BUSY;
    give(arena);
    CHECK_LOG("Eu");
    CHECK(take() != arena);
    CHECK_LOG("P");
    CHECK_EQUAL(count_slots(EXPLICIT), 1);
    fake.slots[slot_of(arena)] = NOTHING;
    hugepages_count_unmapped(HUGEPAGES_EXPLICIT);
    end_test();
}

// --- tests: the first arenas -----------------------------------------------

static void
test_first_arenas(void)
{
    _PyMem_HugePagesStats stats;
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    void *first = take_first();
    void *second = take_first();
    CHECK_LOG("AA");
    hugepages_promote(first);
    hugepages_promote(second);
    CHECK_LOG("VV");
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, 2);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, 0);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].peak, 2);
    /* Once, and not what has huge pages anyway. */
    hugepages_promote(first);
    hugepages_promote(take());
    fake.answers['E'] = HUGEPAGES_BUSY;
    hugepages_promote(take());
    CHECK_LOG("EeT");
    end_test();
}

static void
test_promotion_refused(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    void *first = take_first();
    fake.answers['V'] = HUGEPAGES_BUSY;
    hugepages_promote(first);
    fake.answers['V'] = HUGEPAGES_NEVER;
    hugepages_promote(first);
    hugepages_promote(first);
    /* It is as final as any answer to a request for THP. */
    (void)take();
    CHECK_LOG("AvvP");
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_THP]), 2);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, 2);
    end_test();
}

/* Where nothing can be promoted, or nobody wants it. */
static void
test_no_promotion(void)
{
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    void *first = take_first();
    fork_as_parent();
    hugepages_promote(first);
    CHECK_LOG("A");
    end_test();

    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    fake.answers['A'] = HUGEPAGES_NEVER;
    fake.answers['T'] = HUGEPAGES_BUSY;
    hugepages_promote(take_first());
    CHECK_LOG("atP");
    end_test();

    begin_test_with(PYMALLOC_HUGEPAGES_HUGETLB);
    hugepages_promote(take_first());
    CHECK_LOG("A");
    end_test();

    begin_test_with(PYMALLOC_HUGEPAGES_OFF);
    hugepages_promote(take_first());
    CHECK_LOG("P");
    end_test();
}

// --- tests: the statistics -------------------------------------------------

/* Whatever the number of different errors, each refusal is counted. */
static void
test_errors(void)
{
    enum { ERRORS = PYMEM_HUGEPAGES_ERRORS + 3 };
    begin_test();
    for (int round = 0; round < 2; round++) {
        for (int error = 1; error <= ERRORS; error++) {
            hugepages_count_refused(HUGEPAGES_THP, error);
        }
    }
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    const int last = PYMEM_HUGEPAGES_ERRORS - 1;
    for (int i = 0; i < last; i++) {
        CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[i].error, i + 1);
        CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[i].count, 2);
    }
    CHECK(strcmp(stats.tiers[HUGEPAGES_THP].refused[0].name, "FAKE") == 0);
    CHECK(stats.tiers[HUGEPAGES_THP].refused[1].name == NULL);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[last].error, 0);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[last].count, 2 * (ERRORS - last));
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 0);
}

static void
test_figures(void)
{
    _PyMem_HugePagesStats stats;
    void *arenas[6];
    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 6);
    for (int i = 0; i < 5; i++) {
        give(arenas[i]);
    }
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, 3);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].peak, 6);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].ever, 6);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_KINDS].now, 2);
    take_many(arenas, 4);
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, 5);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].peak, 6);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].ever, 8);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_KINDS].now, 0);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_KINDS].peak, 2);
    end_test();
}

// --- tests: faults and random sequences ------------------------------------

/* Everything that arena.c does, once.  Memory that cannot be had is not there
   to be given back. */
static void
run_scenario(void)
{
    static const int values[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_THP,
        PYMALLOC_HUGEPAGES_HUGETLB, PYMALLOC_HUGEPAGES_OFF,
        PYMALLOC_HUGEPAGES_ON,
    };
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        int os_error;
        _PyMem_SetHugePages(values[i]);
        void *first = take_first();
        void *chunk = hugepages_take_plain(1000);
        (void)take();
        if (first != NULL) {
            hugepages_promote(first);
            give(first);
        }
        if (chunk != NULL) {
            (void)hugepages_os_unmap(chunk, 1000, &os_error);
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

static void
test_each_single_fault(void)
{
    static const hugepages_result faults[] = {HUGEPAGES_BUSY, HUGEPAGES_NEVER};
    int points = 0;
    for (int i = 0; i < 2; i++) {
        int fault_at = 0, calls;
        do {
            begin_test();
            fake.fault_at = fault_at;
            fake.fault_answer = faults[i];
            run_scenario();
            calls = fake.calls;
            if (test_failed()) {
                FAIL("with call %d failing", fault_at);
                return;
            }
        } while (++fault_at < calls);
        points += fault_at;
    }
    CHECK(points > 50);
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
        if (number & 0x20) {
            fork_as_parent();
        }
        else {
            fork_as_child();
        }
    }
    else if (choice < 12) {
        void *chunk = hugepages_take_plain(1000);
        if (chunk != NULL) {
            (void)hugepages_os_unmap(chunk, 1000, &(int){0});
        }
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
static void
test_random_sequences(void)
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
    }
    test_note("%d sequences of %d operations, %d exits, seeds from %u",
              sequences, operations, exits, test_seed);
}

// --- tests: threads --------------------------------------------------------

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

static void
test_threads(void)
{
    /* With no refusal, too: then nothing may be left. */
    run_stress(0);
    end_test();
    run_stress(~test_seed);
}

const testhugepages_test testhugepages_policy_tests[] = {
    {"policy_before_switch", test_before_switch},
    {"policy_switch_again", test_switch_again},
    {"policy_enable_refused", test_enable_refused},
    {"policy_reasons", test_reasons},
    {"policy_fallback", test_fallback},
    {"policy_busy_is_asked_again", test_busy_is_asked_again},
    {"policy_other_sizes", test_other_sizes},
    {"policy_no_memory", test_no_memory},
    {"policy_table_grows", test_table_grows},
    {"policy_table_cannot_grow", test_table_cannot_grow},
    {"policy_kept", test_kept},
    {"policy_kept_kinds", test_kept_kinds},
    {"policy_kept_plain", test_kept_plain},
    {"policy_kept_is_released", test_kept_is_released},
    {"policy_kept_is_released_for_memory", test_kept_is_released_for_memory},
    {"policy_unmap_refused", test_unmap_refused},
    {"policy_unmap_refused_plain", test_unmap_refused_plain},
    {"policy_unmap_refused_explicit", test_unmap_refused_explicit},
    {"policy_first_arenas", test_first_arenas},
    {"policy_promotion_refused", test_promotion_refused},
    {"policy_no_promotion", test_no_promotion},
    {"policy_errors", test_errors},
    {"policy_figures", test_figures},
    {"policy_each_single_fault", test_each_single_fault},
    {"policy_random_sequences", test_random_sequences},
    {"policy_threads", test_threads},
    {NULL, NULL}
};
