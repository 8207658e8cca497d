/* Tests of fork.c over the fake OS layer.

   There is one process.  A test has fork.c do what it does in the parent or in
   the child; the fake then makes of it the one or the other. */

#define TEST_PREFIX fork
#include "fake_os.h"

// --- nothing is to be done --------------------------------------------------

/* Without arenas on huge pages a fork makes no call. */
TEST(fork_no_arenas)
{
    for (int i = 0; i < 2; i++) {
        for (int tiers = 0; tiers < 4; tiers++) {
            begin_with(tiers);
            let_answer("ET", HUGEPAGES_BUSY);
            void *first = take_first();
            (void)take();
            fake.length = 0;
            fork_as[i]();
            fork_as[i]();
            give(first);
            CHECK_LOG("U");
        }
    }
}

// --- arenas on THP ----------------------------------------------------------

/* One call for a run of neighbours, and each arena once. */
TEST(fork_runs)
{
    static const struct {
        /* Arenas of a row of ten that are given back before the fork. */
        const char *given;
        const char *log;
    } cases[] = {
        {"", "R"}, {"0", "R"}, {"9", "R"}, {"5", "RR"}, {"258", "RRRR"},
        {"13579", "RRRRR"}, {"012345678", "R"},
    };
    for (int i = 0; i < 2; i++) {
        for (size_t j = 0; j < Py_ARRAY_LENGTH(cases); j++) {
            void *arenas[10];
            begin_with(PYMALLOC_HUGEPAGES_THP);
            take_many(arenas, 10);
            for (const char *given = cases[j].given; *given != '\0'; given++) {
                give(arenas[*given - '0']);
            }
            (void)hugepages_release_kept();
            int left = held_count;
            fake.length = 0;
            EXPECT(fork_as[i](), cases[j].log);
            if (strlen(cases[j].log) == 1) {
                CHECK_EQUAL(fake.unadvised_size, (size_t)left * ARENA_SIZE);
            }
            fork_as[i]();
            CHECK_LOG("");
            /* What is mapped later is a case for the next fork. */
            (void)take();
            fork_as[i]();
            CHECK_LOG("TR");
            CHECK_EQUAL(fake.unadvised_size, ARENA_SIZE);
        }
    }
}

/* What is shared is of no use to anybody else. */
TEST(fork_shared_is_not_kept)
{
    begin_with_arenas(PYMALLOC_HUGEPAGES_THP, 0, 2);
    fork_as_parent();
    void *arena = take();
    fake.length = 0;
    EXPECT(give(held[0].address), "U");
    EXPECT(give(arena), "");
    /* Nor is what was promoted in time. */
    void *first = take_first();
    CHECK(first == arena);

    begin_with(PYMALLOC_HUGEPAGES_THP);
    first = take_first();
    hugepages_promote(first);
    fork_as_child();
    give(first);
    CHECK_LOG("AVRU");
}

TEST(fork_kept_is_released)
{
    for (int i = 0; i < 2; i++) {
        begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 1, 1);
        EXPECT(give_all(), "");
        EXPECT(fork_as[i](), "UU");
        CHECK_EQUAL(hugepages_state.prefers_thp, 0);
    }
}

// --- arenas on explicit pages -----------------------------------------------

/* The only thread moves them, once, and both processes share them. */
TEST(fork_move)
{
    for (int i = 0; i < 2; i++) {
        begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 1);
        EXPECT(fork_as[i](), "hBOTMTMRD");
        check_kinds(0, 3, 0);
        EXPECT(fork_as[i](), "");
        /* From then on THP comes first. */
        EXPECT(take(), "T");
        /* If there is any. */
        give_number(0);
        fake.answers['T'] = HUGEPAGES_NEVER;
        give(take());
        (void)take();
        CHECK_LOG("UtPUE");
    }
}

/* With other threads the child gets copies, and the parent keeps its pages;
   likewise where there is no THP. */
TEST(fork_copy)
{
    static const struct {
        int tiers, has_threads, thp_is_off;
        const char *log[2];
        int thp;
    } cases[] = {
        {PYMALLOC_HUGEPAGES_ON, 1, 0, {"hBoCTTUUFD", "hBoCTTMMFD"}, 1},
        {PYMALLOC_HUGEPAGES_ON, 0, 1, {"HBCAAUUFD", "HBCAAMMFD"}, 0},
        {PYMALLOC_HUGEPAGES_ON, 1, 1, {"HBCAAUUFD", "HBCAAMMFD"}, 0},
        {PYMALLOC_HUGEPAGES_HUGETLB, 0, 0, {"BCAAUUFD", "BCAAMMFD"}, 0},
    };
    for (int i = 0; i < 2; i++) {
        for (size_t j = 0; j < Py_ARRAY_LENGTH(cases); j++) {
            begin_with_arenas(cases[j].tiers, 2, 0);
            fake.has_threads = cases[j].has_threads;
            fake.thp_is_off = cases[j].thp_is_off;
            for (int round = 0; round < 2; round++) {
                fork_as[i]();
                CHECK_LOG(i == 0 || round == 0 ? cases[j].log[i]
                          : cases[j].thp ? "R" : "");
                if (i == 0) {
                    check_kinds(2, 0, 0);
                }
                else {
                    check_kinds(0, 2 * cases[j].thp, 2 * !cases[j].thp);
                }
            }
            (void)take();
            CHECK_LOG(cases[j].thp ? "T" : "E");
        }
    }
}

/* The child says why, and the parent goes on. */
TEST(fork_no_memory_for_copies)
{
    static const struct {
        int fault;
        const char *log[2];
    } cases[] = {
        {0, {"hBocD", "hBocX"}},
        {1, {"hBoCtFD", "hBoCtFX"}},
        {2, {"hBoCTtUFD", "hBoCTtUFX"}},
        {3, {"hBoCTTtUUFD", "hBoCTTtUUFX"}},
    };
    for (int i = 0; i < 2; i++) {
        for (size_t j = 0; j < Py_ARRAY_LENGTH(cases); j++) {
            begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 3, 0);
            fake.has_threads = 1;
            let_call_answer(3 + cases[j].fault, HUGEPAGES_BUSY);
            CHECK_EQUAL(does_exit(fork_as[i]), i);
            fake.log[fake.length] = '\0';
            CHECK(strcmp(fake.log, cases[j].log[i]) == 0);
            if (i == 0) {
                check_kinds(3, 0, 0);
            }
        }
    }
}

/* What cannot be moved is copied once more. */
TEST(fork_move_refused)
{
    for (int i = 0; i < 2; i++) {
        begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
        fake.answers['M'] = HUGEPAGES_BUSY;
        EXPECT(fork_as[i](), "hBOTmLUTmLUD");
        check_kinds(0, 0, 2);
    }
    begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    fake.has_threads = 1;
    fake.answers['M'] = HUGEPAGES_BUSY;
    EXPECT(fork_as_child(), "hBoCTTmLmLUUFD");
    check_kinds(0, 0, 2);
}

/* Bits. */
enum { AS_CHILD = 1, WITH_THREADS = 2, WITHOUT_THP = 4, CASES = 8 };
static int current_case;

static void
begin_case(void)
{
    begin_with_arenas(current_case & WITHOUT_THP ? PYMALLOC_HUGEPAGES_HUGETLB
                      : PYMALLOC_HUGEPAGES_ON, 3, 2);
    fake.has_threads = (current_case & WITH_THREADS) != 0;
    give_number(4);
}

static void
fork_twice(void)
{
    for (int i = 0; i < 2; i++) {
        fork_as[current_case & AS_CHILD]();
        check_state(0);
    }
    give_all();
}

/* Each call fails in turn: the parent always has everything, and the child has
   or exits. */
TEST(fork_each_single_fault)
{
    int points = 0, exits = 0;
    for (current_case = 0; current_case < CASES; current_case++) {
        points += fail_each_call(begin_case, fork_twice, HUGEPAGES_BUSY,
                                 &exits);
    }
    CHECK(points > 100);
    CHECK(exits > 5);
    test_note("%d failure points, %d exits", points, exits);
}

/* Two refusals at once: nobody can say any more what is at the address.  The
   child exits; the parent goes on, but must not read it. */
TEST(fork_two_faults)
{
    begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    fake.has_threads = 1;
    let_answer("ML", HUGEPAGES_BUSY);
    CHECK(does_exit(fork_as_child));
    begin_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    let_answer("ML", HUGEPAGES_BUSY);
    (void)does_exit(fork_as_parent);
    abandon_test();
}
