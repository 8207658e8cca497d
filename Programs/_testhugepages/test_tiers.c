/* Tests of which pages an arena gets, over the fake OS layer. */

#define TEST_PREFIX tiers
#include "fake_os.h"

// --- the switch -------------------------------------------------------------

TEST(tiers_before_switch)
{
    begin_test();
    (void)take();
    (void)take_first();
    CHECK_LOG("PP");
}

/* Python may be initialized again, with another value; what was taken under
   one is given back under another. */
TEST(tiers_switch_again)
{
    static const struct {
        int tiers;
        const char *log;
    } cases[] = {
        {PYMALLOC_HUGEPAGES_OFF, "P"},
        {PYMALLOC_HUGEPAGES_THP, "ST"},
        {PYMALLOC_HUGEPAGES_ON, "NE"},
        {PYMALLOC_HUGEPAGES_OFF, "P"},
        {PYMALLOC_HUGEPAGES_HUGETLB, "E"},
    };
    begin_test();
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        _PyMem_SetHugePages(cases[i].tiers);
        (void)take();
        CHECK_LOG(cases[i].log);
    }
}

TEST(tiers_enable_refused)
{
    begin_test();
    fake.answers['N'] = HUGEPAGES_NEVER;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    (void)take();
    CHECK_LOG("SnT");
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)take();
    CHECK_LOG("P");
    _PyMem_HugePagesStats stats = get_stats();
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 1);
}

/* Check why a tier is not asked; NULL: it is. */
static void
check_reason(const char *reason, const char *expected)
{
    CHECK((reason == NULL) == (expected == NULL));
    CHECK(reason == NULL || expected == NULL
          || strstr(reason, expected) != NULL);
}

/* What the system has, what then is asked for, and why not, in words. */
TEST(tiers_reasons)
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
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        begin_test();
        fake.system = cases[i].system;
        let_answer("ET", HUGEPAGES_BUSY);
        _PyMem_SetHugePages(cases[i].tiers);
        (void)take();
        CHECK_LOG(cases[i].log);
        stats = get_stats();
        CHECK(strcmp(stats.switch_value, cases[i].name) == 0);
        check_reason(stats.tiers[HUGEPAGES_EXPLICIT].unusable,
                     cases[i].hugetlb);
        check_reason(stats.tiers[HUGEPAGES_THP].unusable, cases[i].thp);
    }
    begin_with(PYMALLOC_HUGEPAGES_ON);
    fake.answers['E'] = HUGEPAGES_NEVER;
    (void)take();
    stats = get_stats();
    check_reason(stats.tiers[HUGEPAGES_EXPLICIT].unusable,
                 "refused it for good");
    check_reason(stats.tiers[HUGEPAGES_THP].unusable, NULL);
}

// --- which pages an arena gets ----------------------------------------------

/* Every answer of every tier. */
TEST(tiers_fallback)
{
    static const char *const first[3][3] = {
        {"E", "E", "E"}, {"eT", "etP", "etP"}, {"eT", "etP", "etP"},
    };
    static const char *const second[3][3] = {
        {"E", "E", "E"}, {"eT", "etP", "eP"}, {"T", "tP", "P"},
    };
    for (int explicit_answer = 0; explicit_answer < 3; explicit_answer++) {
        for (int thp_answer = 0; thp_answer < 3; thp_answer++) {
            begin_with(PYMALLOC_HUGEPAGES_ON);
            fake.answers['E'] = (hugepages_result)explicit_answer;
            fake.answers['T'] = (hugepages_result)thp_answer;
            EXPECT(take(), first[explicit_answer][thp_answer]);
            EXPECT(take(), second[explicit_answer][thp_answer]);
            /* What is for good is so under each value of the switch. */
            _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_OFF);
            _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
            (void)take();
            CHECK_LOG(second[explicit_answer][thp_answer]);
        }
    }
}

TEST(tiers_busy_is_asked_again)
{
    begin_with(PYMALLOC_HUGEPAGES_ON);
    let_answer("ET", HUGEPAGES_BUSY);
    (void)take();
    fake.answers['T'] = HUGEPAGES_OK;
    (void)take();
    fake.answers['E'] = HUGEPAGES_OK;
    (void)take();
    CHECK_LOG("etPeTE");
}

/* A huge page for a data-stack chunk would waste nearly all of it. */
TEST(tiers_other_sizes)
{
    static const size_t sizes[] = {
        1, 1000, ARENA_SIZE / 2, ARENA_SIZE - 1, ARENA_SIZE + 1,
        2 * ARENA_SIZE,
    };
    begin_with(PYMALLOC_HUGEPAGES_ON);
    give(take());
    fake.length = 0;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sizes); i++) {
        void *chunk = hugepages_take_plain(sizes[i]);
        REQUIRE(chunk != NULL);
        CHECK_EQUAL(hugepages_os_unmap(chunk, sizes[i], &(int){0}),
                    HUGEPAGES_OK);
        CHECK_LOG("CF");
    }
}

TEST(tiers_no_memory)
{
    begin_with(PYMALLOC_HUGEPAGES_ON);
    let_answer("ETAPC", HUGEPAGES_BUSY);
    CHECK(hugepages_take() == NULL);
    CHECK(hugepages_take_plain(1000) == NULL);
    CHECK(hugepages_take_first() == NULL);
    CHECK_LOG("etpcaetp");
    _PyMem_HugePagesStats stats = get_stats();
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 2);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_THP]), 2);
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_PLAIN]), 2);
    fake.answers['P'] = HUGEPAGES_OK;
    CHECK(take() != NULL);
    CHECK_LOG("etP");
}
