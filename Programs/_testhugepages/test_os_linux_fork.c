/* Tests of os_linux_fork.c, but for forks: what fork.c asks of the system.
   Forks are in test_real_fork.c. */

#define TEST_PREFIX os_linux_fork
#include "linux_calls.h"
#define IS_UNMAPPED is_unmapped
#include "os_calls.h"

#include <signal.h>               // sigprocmask()

static void
count_threads(int thread)
{
    if (thread == 0) {
        CHECK(!hugepages_os_is_single_threaded());
    }
    else {
        /* Until the other one has looked. */
        (void)usleep(50 * 1000);
    }
}

TEST(linux_fork_single_threaded)
{
    CHECK(hugepages_os_is_single_threaded());
    CHECK_EQUAL(errno, UNTOUCHED);
    test_run_threads(2, count_threads);
    let_fail(CALL_STAT, 1, 0, ENOENT);
    errno = UNTOUCHED;
    CHECK(!hugepages_os_is_single_threaded());
    CHECK_EQUAL(errno, UNTOUCHED);
}

TEST(linux_fork_thp_off)
{
    const char *file = "/sys/kernel/mm/transparent_hugepage/enabled";
    char mode[64];
    if (read_file(file, mode, sizeof(mode)) == 0) {
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_is_thp_off(),
                    strstr(mode, "[never]") != NULL);
        if (test_owns_machine) {
            CHECK_EQUAL(write_file(file, "never"), 0);
            CHECK(hugepages_os_is_thp_off());
            CHECK_EQUAL(write_file(file, "madvise"), 0);
        }
    }
    let_fail(CALL_OPEN, 1, 0, ENOENT);
    errno = UNTOUCHED;
    CHECK(!hugepages_os_is_thp_off());
    CHECK_EQUAL(errno, UNTOUCHED);
}

TEST(linux_fork_signals)
{
    sigset_t before, blocked, after;
    CHECK_EQUAL(sigprocmask(SIG_SETMASK, NULL, &before), 0);
    hugepages_os_block_signals();
    CHECK_EQUAL(sigprocmask(SIG_SETMASK, NULL, &blocked), 0);
    hugepages_os_unblock_signals();
    CHECK_EQUAL(sigprocmask(SIG_SETMASK, NULL, &after), 0);
    CHECK_EQUAL(errno, UNTOUCHED);
    for (int i = 1; i < 32; i++) {
        CHECK(i == SIGKILL || i == SIGSTOP || sigismember(&blocked, i));
        CHECK_EQUAL(sigismember(&after, i), sigismember(&before, i));
    }
}

/* Of the middle one of three neighbours. */
TEST(linux_fork_unadvise)
{
    char *address = (char *)MAP(hugepages_os_map_aligned, 3 * ARENA_SIZE);
    REQUIRE(address != NULL);
    CHECK_ADVISE(address, 3 * ARENA_SIZE, HUGEPAGES_OK, 0);
    write_numbers(address, 3 * ARENA_SIZE);
    FORGET_ERROR();
    hugepages_os_unadvise(address + ARENA_SIZE, ARENA_SIZE);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK(is_advised(address));
    CHECK(!is_advised(address + ARENA_SIZE));
    CHECK(is_advised(address + 2 * ARENA_SIZE));
    check_numbers(address, 3 * ARENA_SIZE);
    let_fail(CALL_UNADVISE, 2, 0, EINVAL);
    FORGET_ERROR();
    hugepages_os_unadvise(address, ARENA_SIZE);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_UNMAP(address, 3 * ARENA_SIZE);
}

static void
check_move(void *from, void *to, hugepages_result expected)
{
    FORGET_ERROR();
    CHECK_EQUAL(hugepages_os_move(from, to, ARENA_SIZE), expected);
    CHECK_EQUAL(errno, UNTOUCHED);
}

static void
check_remap(void *address, hugepages_result expected)
{
    FORGET_ERROR();
    CHECK_EQUAL(hugepages_os_remap_plain(address, ARENA_SIZE), expected);
    CHECK_EQUAL(errno, UNTOUCHED);
}

/* Onto memory of either kind. */
static void
move_onto(void *to)
{
    begin_test();
    void *from = MAP(hugepages_os_map_aligned, ARENA_SIZE);
    REQUIRE(from != NULL);
    write_numbers(from, ARENA_SIZE);
    address_space before = read_address_space();
    let_fail(CALL_MREMAP, 1, 1, ENOMEM);
    check_move(from, to, HUGEPAGES_BUSY);
    check_numbers(from, ARENA_SIZE);
    check_no_leak(before);
    let_fail(CALL_MMAP, 1, 1, ENOMEM);
    fake.calls[CALL_MMAP] = 0;
    check_remap(to, HUGEPAGES_BUSY);
    check_remap(to, HUGEPAGES_OK);
    test_use_memory(to, ARENA_SIZE, ARENA_SIZE);
    check_move(from, to, HUGEPAGES_OK);
    CHECK(is_unmapped(from));
    check_numbers(to, ARENA_SIZE);
    CHECK_UNMAP(to, ARENA_SIZE);
}

TEST(linux_fork_move)
{
    void *to = MAP(hugepages_os_map_aligned, ARENA_SIZE);
    REQUIRE(to != NULL);
    move_onto(to);
}

TEST(linux_fork_move_onto_hugetlb)
{
    NEED_POOL(1);
    void *to = MAP(hugepages_os_map_explicit, ARENA_SIZE);
    REQUIRE(to != NULL);
    move_onto(to);
    CHECK_EQUAL(pool_available(), 1);
}
