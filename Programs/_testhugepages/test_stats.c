/* Tests of stats.c, over the fake OS layer. */

#define TEST_PREFIX stats
#include "fake_os.h"

/* Whatever the number of different errors, each refusal is counted. */
TEST(stats_errors)
{
    enum { ERRORS = PYMEM_HUGEPAGES_ERRORS + 3 };
    begin_test();
    for (int round = 0; round < 2; round++) {
        for (int error = 1; error <= ERRORS; error++) {
            hugepages_count_refused(HUGEPAGES_THP, error);
        }
    }
    _PyMem_HugePagesStats stats = get_stats();
    const int last = PYMEM_HUGEPAGES_ERRORS - 1;
    for (int i = 0; i < last; i++) {
        CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[i].error, i + 1);
        CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[i].count, 2);
    }
    CHECK(strcmp(stats.tiers[HUGEPAGES_THP].refused[0].name, "FAKE") == 0);
    CHECK(stats.tiers[HUGEPAGES_THP].refused[1].name == NULL);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[last].error, 0);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].refused[last].count,
                2 * (ERRORS - last));
    CHECK_EQUAL(count_refused(&stats.tiers[HUGEPAGES_EXPLICIT]), 0);
}

static void
check_tier_figures(const _PyMem_HugePagesTier *tier, size_t now, size_t peak,
                   size_t ever)
{
    CHECK_EQUAL(tier->now, now);
    CHECK_EQUAL(tier->peak, peak);
    CHECK_EQUAL(tier->ever, ever);
}

TEST(stats_figures)
{
    _PyMem_HugePagesStats stats;
    void *arenas[6];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, 6);
    give_many(arenas, 5);
    stats = get_stats();
    check_tier_figures(&stats.tiers[HUGEPAGES_THP], 3, 6, 6);
    check_tier_figures(&stats.tiers[RETAINED], 2, 2, 2);
    take_many(arenas, 4);
    stats = get_stats();
    check_tier_figures(&stats.tiers[HUGEPAGES_THP], 5, 6, 8);
    check_tier_figures(&stats.tiers[RETAINED], 0, 2, 2);
}
