/* Tests of table.c, through arena.c and over the fake OS layer. */

#define TEST_PREFIX table
#include "fake_os.h"

/* Whatever the order in which arenas come and go. */
TEST(table_grows)
{
    enum { COUNT = 200 };
    void *arenas[COUNT];
    begin_with(PYMALLOC_HUGEPAGES_THP);
    take_many(arenas, COUNT);
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
    take_many(arenas, COUNT);
    CHECK_EQUAL(count_slots(THP), COUNT);
}

/* An arena that a fork would not find gets other pages. */
TEST(table_cannot_grow)
{
    begin_with(PYMALLOC_HUGEPAGES_ON);
    fake.answers['C'] = HUGEPAGES_BUSY;
    fake.aligns_plain = 1;
    take_many((void *[5]){NULL}, 5);
    void *first = take_first();
    CHECK_LOG("EEEEcPA");
    EXPECT(hugepages_promote(first), "c");
    fake.answers['U'] = HUGEPAGES_BUSY;
    EXPECT(give(first), "uc");
    CHECK_EQUAL(count_slots(PLAIN), 2);
    forget_arena(first, HUGEPAGES_PLAIN);
    fake.answers['C'] = HUGEPAGES_OK;
    (void)take();
    CHECK_LOG("CE");
}
