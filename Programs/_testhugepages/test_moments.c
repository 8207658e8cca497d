/* Tests of all moments at which a fork, a signal handler or another thread can
   find the core, over the fake OS layer. */

#define TEST_PREFIX moments
#include "fake_os.h"

/* What is done when something else happens. */
typedef enum {
    DO_TAKE, DO_GIVE, DO_FIRST, DO_RELEASE, DO_FORK_PARENT, DO_FORK_CHILD,
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
        (void)hold(hugepages_take(), 1);
        break;
    case THREAD_GIVE_TAKE:
        thread_gives();
        (void)hold(hugepages_take(), 1);
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
    begin_with(PYMALLOC_HUGEPAGES_ON);
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
    abandon_test();
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

TEST_CALL(moments_handler_forks,
          check_moments(DO_TAKE, DO_RELEASE, HANDLER_PARENT, HANDLER_PARENT))
TEST_CALL(moments_handler_forks_child,
          check_moments(DO_TAKE, DO_RELEASE, HANDLER_CHILD, HANDLER_CHILD))
TEST_CALL(moments_handler_forks_in_fork,
          check_moments(DO_FORK_PARENT, DO_FORK_CHILD, HANDLER_PARENT,
                        HANDLER_CHILD))
TEST_CALL(moments_thread_forks,
          check_moments(DO_TAKE, DO_RELEASE, THREAD_PARENT, THREAD_CHILD))
TEST_CALL(moments_thread_forks_in_fork,
          check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_PARENT,
                        THREAD_CHILD))
TEST_CALL(moments_thread_takes,
          check_moments(DO_TAKE, DO_RELEASE, THREAD_TAKE, THREAD_GIVE_TAKE))
TEST_CALL(moments_thread_takes_in_fork,
          check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_TAKE,
                        THREAD_TAKE))
TEST_CALL(moments_thread_gives_in_fork,
          check_moments(DO_FORK_PARENT, DO_FORK_CHILD, THREAD_GIVE,
                        THREAD_GIVE_TAKE))

static void
take_more_than_copies(void)
{
    has_happened = 1;
    if (!fake.is_child) {
        for (int i = 0; i <= HUGEPAGES_MORE_COPIES; i++) {
            (void)hold(hugepages_take(), 1);
        }
    }
}

/* Another thread maps more arenas than there is room for copies: the child has
   copies of its own, or exits; the parent keeps all. */
TEST(moments_thread_takes_many_in_fork)
{
    int moments = 0, exits = 0;
    for (int i = 0; i < 2; i++) {
        int at = 0;
        do {
            /* The thread's come first in the table. */
            void *arenas[5];
            begin_with(PYMALLOC_HUGEPAGES_HUGETLB);
            take_many(arenas, 5);
            for (int j = 0; j <= HUGEPAGES_MORE_COPIES; j++) {
                give(arenas[j]);
            }
            moment_action = take_more_than_copies;
            has_happened = 0;
            moments_left = at++;
            if (does_exit(fork_as[i])) {
                exits++;
                continue;
            }
            moments_left = -1;
            check_state(i);
            check_chunks();
            abandon_test();
        } while (has_happened);
        moments += at - 1;
    }
    CHECK(exits > 0);
    test_note("%d moments, %d exits", moments, exits);
}
