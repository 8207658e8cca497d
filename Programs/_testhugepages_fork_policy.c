/* Tests of fork.c over a fake OS layer, and of all moments at which a fork, a
   signal handler or another thread can find the core.

   There is one process.  A test has fork.c do what it does in the parent or in
   the child; the fake then makes of it the one or the other. */

#define TEST_PREFIX fork_policy
#include "_testhugepages_fake.h"

typedef void (*fork_function)(void);
static const fork_function fork_as[] = {fork_as_parent, fork_as_child};

/* So many arenas on explicit pages, then so many on THP. */
static void
begin_test_with_arenas(int tiers, int explicit_count, int thp_count)
{
    begin_test_with(tiers);
    for (int i = 0; i < explicit_count + thp_count; i++) {
        fake.answers['E'] = i < explicit_count ? HUGEPAGES_OK : HUGEPAGES_BUSY;
        REQUIRE(take() != NULL);
    }
    fake.answers['E'] = HUGEPAGES_OK;
    check_state(0);
    fake.length = 0;
}

static void
check_kinds(int explicit_count, int thp_count, int plain_count)
{
    CHECK_EQUAL(count_slots(EXPLICIT), explicit_count);
    CHECK_EQUAL(count_slots(THP), thp_count);
    CHECK_EQUAL(count_slots(PLAIN), plain_count);
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_EXPLICIT].now, explicit_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, thp_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, plain_count);
}

// --- tests: nothing is to be done ------------------------------------------

/* Without arenas on huge pages a fork makes no call. */
static void
test_no_arenas(void)
{
    for (int i = 0; i < 2; i++) {
        for (int tiers = 0; tiers < 4; tiers++) {
            begin_test_with(tiers);
            fake.answers['E'] = fake.answers['T'] = HUGEPAGES_BUSY;
            void *first = take_first();
            (void)take();
            fake.length = 0;
            fork_as[i]();
            fork_as[i]();
            give(first);
            CHECK_LOG("U");
            end_test();
        }
    }
}

// --- tests: arenas on THP --------------------------------------------------

/* One call for a run of neighbours, and each arena once. */
static void
test_runs(void)
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
        for (size_t j = 0; j < sizeof(cases) / sizeof(cases[0]); j++) {
            void *arenas[10];
            begin_test_with(PYMALLOC_HUGEPAGES_THP);
            for (int k = 0; k < 10; k++) {
                arenas[k] = take();
            }
            for (const char *given = cases[j].given; *given != '\0'; given++) {
                give(arenas[*given - '0']);
            }
            (void)hugepages_release_kept();
            int left = held_count;
            fake.length = 0;
            fork_as[i]();
            CHECK_LOG(cases[j].log);
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
            end_test();
        }
    }
}

/* What is shared is of no use to anybody else. */
static void
test_shared_is_not_kept(void)
{
    begin_test_with_arenas(PYMALLOC_HUGEPAGES_THP, 0, 2);
    fork_as_parent();
    void *arena = take();
    fake.length = 0;
    give(held[0].address);
    CHECK_LOG("U");
    give(arena);
    CHECK_LOG("");
    /* Nor is what was promoted in time. */
    void *first = take_first();
    CHECK(first == arena);
    end_test();

    begin_test_with(PYMALLOC_HUGEPAGES_THP);
    first = take_first();
    hugepages_promote(first);
    fork_as_child();
    give(first);
    CHECK_LOG("AVRU");
    end_test();
}

static void
test_kept_is_released(void)
{
    for (int i = 0; i < 2; i++) {
        begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 1, 1);
        while (held_count > 0) {
            give_number(0);
        }
        CHECK_LOG("");
        fork_as[i]();
        CHECK_LOG("UU");
        CHECK_EQUAL(hugepages_state.prefers_thp, 0);
        end_test();
    }
}

// --- tests: arenas on explicit pages ---------------------------------------

/* The only thread moves them, once, and both processes share them. */
static void
test_move(void)
{
    for (int i = 0; i < 2; i++) {
        begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 1);
        fork_as[i]();
        CHECK_LOG("hBOTMTMRD");
        check_kinds(0, 3, 0);
        fork_as[i]();
        CHECK_LOG("");
        /* From then on THP comes first. */
        (void)take();
        CHECK_LOG("T");
        /* If there is any. */
        give_number(0);
        fake.answers['T'] = HUGEPAGES_NEVER;
        give(take());
        (void)take();
        CHECK_LOG("UtPUE");
        end_test();
    }
}

/* With other threads the child gets copies, and the parent keeps its pages;
   likewise where there is no THP. */
static void
test_copy(void)
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
        for (size_t j = 0; j < sizeof(cases) / sizeof(cases[0]); j++) {
            begin_test_with_arenas(cases[j].tiers, 2, 0);
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
            end_test();
        }
    }
}

/* The child says why, and the parent goes on. */
static void
test_no_memory_for_copies(void)
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
        for (size_t j = 0; j < sizeof(cases) / sizeof(cases[0]); j++) {
            begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 3, 0);
            fake.has_threads = 1;
            fake.fault_at = fake.calls + 3 + cases[j].fault;
            fake.fault_answer = HUGEPAGES_BUSY;
            CHECK_EQUAL(does_exit(fork_as[i]), i);
            fake.log[fake.length] = '\0';
            CHECK(strcmp(fake.log, cases[j].log[i]) == 0);
            if (i == 0) {
                check_kinds(3, 0, 0);
                end_test();
            }
        }
    }
}

/* What cannot be moved is copied once more. */
static void
test_move_refused(void)
{
    for (int i = 0; i < 2; i++) {
        begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
        fake.answers['M'] = HUGEPAGES_BUSY;
        fork_as[i]();
        CHECK_LOG("hBOTmLUTmLUD");
        check_kinds(0, 0, 2);
        end_test();
    }
    begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    fake.has_threads = 1;
    fake.answers['M'] = HUGEPAGES_BUSY;
    fork_as_child();
    CHECK_LOG("hBoCTTmLmLUUFD");
    check_kinds(0, 0, 2);
    end_test();
}

static void
fork_twice(int in_child)
{
    for (int i = 0; i < 2; i++) {
        fork_as[in_child]();
        check_state(0);
    }
    while (held_count > 0) {
        give_number(0);
    }
}

static void
fork_twice_as_parent(void)
{
    fork_twice(0);
}

static void
fork_twice_as_child(void)
{
    fork_twice(1);
}

/* Each call fails in turn: the parent always has everything, and the child has
   or exits. */
static void
test_each_single_fault(void)
{
    int points = 0, exits = 0;
    for (int i = 0; i < 8; i++) {
        int fault_at = 0;
        do {
            begin_test_with_arenas(i & 4 ? PYMALLOC_HUGEPAGES_HUGETLB
                                   : PYMALLOC_HUGEPAGES_ON, 3, 2);
            fake.has_threads = (i & 2) != 0;
            give_number(4);
            fake.fault_at = fake.calls + fault_at;
            fake.fault_answer = HUGEPAGES_BUSY;
            if (does_exit(i & 1 ? fork_twice_as_child
                          : fork_twice_as_parent))
            {
                CHECK(fake.is_child);
                exits++;
            }
            if (test_failed()) {
                FAIL("with call %d failing, case %d", fault_at, i);
                return;
            }
            fault_at++;
        } while (fake.fault_at < fake.calls);
        points += fault_at;
    }
    CHECK(points > 100);
    CHECK(exits > 5);
    test_note("%d failure points, %d exits", points, exits);
}

/* Two refusals at once: nobody can say any more what is at the address.  The
   child exits; the parent goes on, but must not read it. */
static void
test_two_faults(void)
{
    begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    fake.has_threads = 1;
    fake.answers['M'] = fake.answers['L'] = HUGEPAGES_BUSY;
    CHECK(does_exit(fork_as_child));
    begin_test_with_arenas(PYMALLOC_HUGEPAGES_ON, 2, 0);
    fake.answers['M'] = fake.answers['L'] = HUGEPAGES_BUSY;
    (void)does_exit(fork_as_parent);
}

// --- tests: any moment -----------------------------------------------------

/* What is done when something else happens. */
typedef enum {
    DO_TAKE,
    DO_GIVE,
    DO_FIRST,
    DO_RELEASE,
    DO_FORK_PARENT,
    DO_FORK_CHILD,
    DO_KINDS
} main_action;

/* What happens. */
typedef enum {
    HANDLER_PARENT,     // a signal handler forks, and this is the parent
    HANDLER_CHILD,      // the same; the child returns from the handler
    THREAD_PARENT,      // another thread forks, and this is the parent
    THREAD_CHILD,       // the same in the child, which has not this thread
    THREAD_TAKE,
    THREAD_GIVE,
    THREAD_GIVE_TAKE,
    EVENT_KINDS
} event;

static const char *const main_names[DO_KINDS] = {
    "take", "give", "first arenas", "release", "fork, parent", "fork, child"
};
static const char *const event_names[EVENT_KINDS] = {
    "a handler forks, parent", "a handler forks, child",
    "a thread forks, parent", "a thread forks, child", "a thread takes",
    "a thread gives", "a thread gives and takes"
};

static event current_event;
static int has_happened;
static main_action current_action;
/* Where the test goes on if the thread that does it is gone. */
static jmp_buf abandoned;

/* Of the arenas that the test holds, the first is another thread's. */
static void
thread_gives(void)
{
    for (int i = 0; i < held_count; i++) {
        if (held[i].of_thread) {
            give_number(i);
            return;
        }
    }
}

static void
happen(void)
{
    has_happened = 1;
    if (current_event <= HANDLER_CHILD) {
        if (!fake.blocked) {
            fork_as[current_event - HANDLER_PARENT]();
        }
        return;
    }
    if (fake.is_child) {
        /* It has no other thread. */
        return;
    }
    /* A thread has a mask of its own, and may fork at the same time. */
    int saved_blocked = fake.blocked;
    char saved_fork[sizeof(hugepages_fork)];
    memcpy(saved_fork, &hugepages_fork, sizeof(hugepages_fork));
    memset(&hugepages_fork, 0, sizeof(hugepages_fork));
    fake.blocked = 0;
    switch (current_event) {
    case THREAD_PARENT:
        fork_as_parent();
        break;
    case THREAD_CHILD:
        fork_as_child();
        longjmp(abandoned, 1);
    case THREAD_TAKE:
        hold(hugepages_take(), 1);
        break;
    case THREAD_GIVE_TAKE:
        thread_gives();
        hold(hugepages_take(), 1);
        break;
    default:
        thread_gives();
        break;
    }
    memcpy(&hugepages_fork, saved_fork, sizeof(hugepages_fork));
    fake.blocked = saved_blocked;
}

/* Return whether the thread that does it is gone. */
static int
is_abandoned(void)
{
    if (setjmp(abandoned) != 0) {
        return 1;
    }
    switch (current_action) {
    case DO_TAKE:
        (void)take();
        break;
    case DO_GIVE:
        give_number(held_count - 1);
        break;
    case DO_FIRST:
        hugepages_promote(take_first());
        break;
    case DO_RELEASE:
        (void)hugepages_release_kept();
        break;
    default:
        fork_as[current_action - DO_FORK_PARENT]();
        break;
    }
    moments_left = -1;
    return 0;
}

/* What there is before: bits. */
enum {
    NO_EXPLICIT = 1,
    SOME_KEPT = 2,
    WITHOUT_THP = 4,
    WITH_THREADS = 8,
    NO_MOVE = 16,
    SITUATIONS = 32
};

/* Return whether the event has happened. */
static int
check_moment(int situation, main_action action, event what, int at)
{
    begin_test_with(PYMALLOC_HUGEPAGES_ON);
    if (situation & NO_EXPLICIT) {
        fake.answers['E'] = HUGEPAGES_BUSY;
    }
    for (int i = 0; i < 4; i++) {
        (void)take();
    }
    if (situation & SOME_KEPT) {
        give_number(0);
        give_number(0);
    }
    held[0].of_thread = what >= THREAD_PARENT;
    fake.thp_is_off = (situation & WITHOUT_THP) != 0;
    fake.has_threads = (situation & WITH_THREADS) || what >= THREAD_PARENT;
    if (situation & NO_MOVE) {
        fake.answers['M'] = HUGEPAGES_BUSY;
    }
    check_state(0);

    current_action = action;
    current_event = what;
    moment_action = happen;
    has_happened = 0;
    moments_left = at;
    /* What a thread was busy with that is gone may be lost. */
    int slack = is_abandoned()
                || (what >= THREAD_TAKE && action == DO_FORK_CHILD)
                || (what < THREAD_TAKE && action <= DO_FIRST && fake.is_child);
    check_state(slack);
    if (slack == 0) {
        check_chunks();
    }

    /* It can go on, and fork again. */
    int happened = has_happened;
    fake.answers['M'] = HUGEPAGES_OK;
    (void)take();
    check_state(slack);
    fork_as_child();
    check_state(slack);
    give_number(held_count - 1);
    (void)take();
    while (held_count > 0) {
        give_number(0);
        check_state(slack);
    }
    return happened;
}

static void
check_moments(main_action first, main_action last, event from, event to)
{
    int moments = 0;
    for (main_action action = first; action <= last; action++) {
        for (event what = from; what <= to; what++) {
            for (int situation = 0; situation < SITUATIONS; situation++) {
                int at = 0;
                while (check_moment(situation, action, what, at)) {
                    at++;
                    moments++;
                    if (test_failed()) {
                        printf("\n  %s; at moment %d %s; situation %d",
                               main_names[action], at - 1, event_names[what],
                               situation);
                        return;
                    }
                }
            }
        }
    }
    test_note("%d moments", moments);
}

static void
test_handler_forks(void)
{
    check_moments(DO_TAKE, DO_RELEASE, HANDLER_PARENT, HANDLER_PARENT);
}

static void
test_handler_forks_child(void)
{
    check_moments(DO_TAKE, DO_RELEASE, HANDLER_CHILD, HANDLER_CHILD);
}

static void
test_handler_forks_in_fork(void)
{
    check_moments(DO_FORK_PARENT, DO_FORK_CHILD, HANDLER_PARENT,
                  HANDLER_CHILD);
}

static void
test_thread_forks(void)
{
    check_moments(DO_TAKE, DO_RELEASE, THREAD_PARENT, THREAD_CHILD);
}

static void
test_thread_forks_in_fork(void)
{
    check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_PARENT, THREAD_CHILD);
}

static void
test_thread_takes(void)
{
    check_moments(DO_TAKE, DO_RELEASE, THREAD_TAKE, THREAD_GIVE_TAKE);
}

static void
test_thread_takes_in_fork(void)
{
    check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_TAKE, THREAD_TAKE);
}

static void
test_thread_gives_in_fork(void)
{
    check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_GIVE,
                  THREAD_GIVE_TAKE);
}

const testhugepages_test testhugepages_fork_policy_tests[] = {
    {"fork_policy_no_arenas", test_no_arenas},
    {"fork_policy_runs", test_runs},
    {"fork_policy_shared_is_not_kept", test_shared_is_not_kept},
    {"fork_policy_kept_is_released", test_kept_is_released},
    {"fork_policy_move", test_move},
    {"fork_policy_copy", test_copy},
    {"fork_policy_no_memory_for_copies", test_no_memory_for_copies},
    {"fork_policy_move_refused", test_move_refused},
    {"fork_policy_each_single_fault", test_each_single_fault},
    {"fork_policy_two_faults", test_two_faults},
    {"fork_policy_handler_forks", test_handler_forks},
    {"fork_policy_handler_forks_child", test_handler_forks_child},
    {"fork_policy_handler_forks_in_fork", test_handler_forks_in_fork},
    {"fork_policy_thread_forks", test_thread_forks},
    {"fork_policy_thread_forks_in_fork", test_thread_forks_in_fork},
    {"fork_policy_thread_takes", test_thread_takes},
    {"fork_policy_thread_takes_in_fork", test_thread_takes_in_fork},
    {"fork_policy_thread_gives_in_fork", test_thread_gives_in_fork},
    {NULL, NULL}
};
