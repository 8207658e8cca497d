/* Tests of os_linux.c.

   What the kernel did is read from /proc/self/smaps and sysfs, not taken from
   what the code says of itself. */

#define TEST_PREFIX os_linux
#include "linux_calls.h"
#define IS_UNMAPPED is_unmapped
#include "os_calls.h"

#include <signal.h>               // sigprocmask()

// --- scan -------------------------------------------------------------------

TEST(linux_scan)
{
    hugepages_system system;
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    CHECK_EQUAL(errno, UNTOUCHED);
    test_note("explicit page %zu KiB, THP %zu KiB%s",
              system.explicit_page_size / 1024, system.thp_size / 1024,
              system.thp_disabled ? ", THP disabled" : "");
    CHECK_EQUAL(system.explicit_page_size, ARENA_SIZE);
    long thp_size = read_number(
        "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    CHECK_EQUAL(system.thp_size, thp_size < 0 ? (long)ARENA_SIZE : thp_size);
}

TEST(linux_scan_without_sysfs)
{
    hugepages_system system;
    let_fail(CALL_OPEN, 1, 0, ENOENT);
    hugepages_os_scan(&system);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(fake.calls[CALL_OPEN], 1);
    CHECK_EQUAL(system.thp_size, ARENA_SIZE);
}

CHILD_TEST(linux_scan_thp_disabled)
{
    hugepages_system system;
    REQUIRE(prctl(PR_SET_THP_DISABLE, 1L, 0L, 0L, 0L) == 0);
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.thp_disabled, 1);
    REQUIRE(prctl(PR_SET_THP_DISABLE, 0L, 0L, 0L, 0L) == 0);
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.thp_disabled, 0);
}

TEST(linux_enable)
{
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
}

// --- plain memory -----------------------------------------------------------

TEST(linux_plain)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t sizes[] = {
        1, page, 16 * 1024, ARENA_SIZE - page, ARENA_SIZE, 3 * ARENA_SIZE
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sizes); i++) {
        use_and_unmap(MAP(hugepages_os_map_plain, sizes[i]), sizes[i], page);
    }
}

TEST(linux_plain_too_large)
{
    void *address = NULL;
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_map_plain(SIZE_MAX / 4, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK_EQUAL(errno, ENOMEM);
}

/* What is not taken back is empty, and can be used. */
TEST(linux_unmap_refused)
{
    void *address = MAP(hugepages_os_map_plain, ARENA_SIZE);
    REQUIRE(address != NULL);
    test_use_memory(address, ARENA_SIZE, 1);
    let_fail(CALL_MUNMAP, 1, 1, ENOMEM);
    long resident = read_status("VmRSS:");
    CHECK_UNMAP_REFUSED(address, ARENA_SIZE, ENOMEM);
    CHECK(read_status("VmRSS:") < resident - 1024);
    use_and_unmap(address, ARENA_SIZE, 1);
}

// --- explicit pages, real ---------------------------------------------------

/* Use a whole pool, find it empty, give it back. */
static void
use_pool(long pages)
{
    enum { MAX_PAGES = 8 };
    void *mappings[MAX_PAGES];
    /* What a kernel before 5.14 writes into a page: not zero. */
    sigset_t mask, saved_mask, after;
    NEED_POOL(pages);
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGUSR1);
    (void)sigprocmask(SIG_BLOCK, &mask, &saved_mask);
    address_space before = read_address_space();
    for (long i = 0; i < pages; i++) {
        mappings[i] = MAP(hugepages_os_map_explicit, ARENA_SIZE);
        REQUIRE(mappings[i] != NULL);
        /* Before our first access. */
        check_hugetlb(mappings[i]);
        if (fake.calls[CALL_SIGPROCMASK] > 0) {
            /* The page was not written to since. */
            CHECK(*(uint64_t *)mappings[i] != 0);
            *(uint64_t *)mappings[i] = 0;
        }
        test_use_memory(mappings[i], ARENA_SIZE, ARENA_SIZE);
        CHECK_EQUAL(pool_available(), pages - i - 1);
    }
    CHECK_REFUSED(hugepages_os_map_explicit, ARENA_SIZE, HUGEPAGES_BUSY,
                  ENOMEM);
    for (long i = 0; i < pages; i++) {
        CHECK_UNMAP(mappings[i], ARENA_SIZE);
        CHECK_EQUAL(pool_available(), i + 1);
    }
    check_no_leak(before);
    (void)sigprocmask(SIG_SETMASK, &saved_mask, &after);
    CHECK(sigismember(&after, SIGUSR1));
}

TEST_CALL(linux_explicit_pool, use_pool(3))
TEST_CALL(linux_explicit_empty_pool, use_pool(0))

/* As before Linux 5.14, which does not know MADV_POPULATE_WRITE. */
TEST(linux_explicit_pool_old_kernel)
{
    NEED_POOL(3);
    let_fail(CALL_POPULATE, 1, 0, EINVAL);
    use_pool(3);
    CHECK_EQUAL(fake.calls[CALL_SIGPROCMASK], 3);
}

/* A cgroup: the pool has a page, which mmap() reserves; the fault that would
   be SIGBUS must be seen before anybody relies on the page. */
static void
check_over_limit(int is_old_kernel)
{
    let_fail(CALL_POPULATE, is_old_kernel, 0, EINVAL);
    NEED_POOL(2);
    if (make_cgroup(2, "hugetlb", "hugetlb.2MB.max", 0) < 0) {
        return;
    }
    IN_CHILD {
        long available = pool_available();
        CHECK(available > 0);
        REQUIRE(join_cgroup() == 0);
        address_space before = read_address_space();
        CHECK_REFUSED(hugepages_os_map_explicit, ARENA_SIZE, HUGEPAGES_BUSY,
                      EFAULT);
        check_no_leak(before);
        CHECK_EQUAL(pool_available(), available);
    }
}

TEST_CALL(linux_explicit_over_limit, check_over_limit(0))
TEST_CALL(linux_explicit_over_limit_old_kernel, check_over_limit(1))

// --- explicit pages, faked --------------------------------------------------

TEST(linux_explicit_granted)
{
    fake.grant_hugetlb = 1;
    void *address = MAP(hugepages_os_map_explicit, ARENA_SIZE);
    REQUIRE(address != NULL);
    /* Whatever the default size of a huge page is. */
    CHECK_EQUAL(fake.mmap_flags,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26);
    CHECK_UNMAP(address, ARENA_SIZE);
}

TEST(linux_explicit_refused)
{
    static const struct {
        int error;
        hugepages_result result;
    } cases[] = {
        {EINVAL, HUGEPAGES_NEVER},
        {ENOSYS, HUGEPAGES_NEVER},
        {EPERM, HUGEPAGES_NEVER},
        {EACCES, HUGEPAGES_NEVER},
        {EOPNOTSUPP, HUGEPAGES_NEVER},
        {ENOMEM, HUGEPAGES_BUSY},
        {EAGAIN, HUGEPAGES_BUSY},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        let_fail(CALL_MMAP, 1, 0, cases[i].error);
        CHECK_REFUSED(hugepages_os_map_explicit, ARENA_SIZE, cases[i].result,
                      cases[i].error);
    }
}

/* The page is there, but may not be faulted in: by MADV_POPULATE_WRITE, or
   before Linux 5.14 by the other system call. */
TEST(linux_explicit_not_proved)
{
    static const struct {
        int populate_error;
        int sigprocmask_error;
    } cases[] = {{EFAULT, 0}, {EHWPOISON, 0}, {ENOMEM, 0}, {EINVAL, EFAULT}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        int is_old = cases[i].sigprocmask_error != 0;
        begin_test();
        fake.grant_hugetlb = 1;
        let_fail(CALL_POPULATE, 1, 0, cases[i].populate_error);
        let_fail(CALL_SIGPROCMASK, is_old, 0, cases[i].sigprocmask_error);
        address_space before = read_address_space();
        CHECK_REFUSED(hugepages_os_map_explicit, ARENA_SIZE, HUGEPAGES_BUSY,
                      is_old ? cases[i].sigprocmask_error
                      : cases[i].populate_error);
        CHECK_EQUAL(fake.calls[CALL_SIGPROCMASK], is_old);
        CHECK_EQUAL(fake.calls[CALL_MUNMAP], 1);
        check_no_leak(before);
    }
}

// --- transparent huge pages -------------------------------------------------

/* As the arenas of a program come: other mappings of odd sizes between. */
static void
map_thp_arenas(int misalign)
{
    enum { COUNT = 20 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *arenas[COUNT], *others[COUNT];
    long huge_kib = 0;
    fake.misalign = misalign;
    address_space before = read_address_space();
    for (size_t i = 0; i < COUNT; i++) {
        others[i] = mmap(NULL, (2 * i + 1) * page, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(others[i] != MAP_FAILED);
        arenas[i] = MAP(hugepages_os_map_thp, ARENA_SIZE);
        REQUIRE(arenas[i] != NULL);
        check_thp(arenas[i]);
        /* As pymalloc does, write first: before Linux 6.13 a huge page that
           is read first, as zeros, is split into base pages when written. */
        *(volatile char *)arenas[i] = 0;
        test_use_memory(arenas[i], ARENA_SIZE, ARENA_SIZE);
    }
    for (size_t i = 0; i < COUNT; i++) {
        smaps_entry entry = need_smaps(arenas[i]);
        if (entry.end != 0) {
            /* Neighbours are one mapping to the kernel. */
            huge_kib += entry.anon_huge_kib
                        / (long)((entry.end - entry.start) / ARENA_SIZE);
        }
    }
    test_note("%ld of %d on huge pages", huge_kib / 2048, (int)COUNT);
    if (test_owns_machine) {
        /* Its memory is neither short nor fragmented. */
        CHECK_EQUAL(huge_kib / 2048, COUNT);
    }
    for (size_t i = 0; i < COUNT; i++) {
        CHECK_UNMAP(arenas[i], ARENA_SIZE);
        CHECK_EQUAL(munmap(others[i], (2 * i + 1) * page), 0);
    }
    check_no_leak(before);
}

TEST_CALL(linux_thp, map_thp_arenas(0))
TEST_CALL(linux_thp_misaligned, map_thp_arenas(1))

/* Each call that can fail, with and without the detour for alignment. */
TEST(linux_thp_each_call_fails)
{
    static const struct {
        int misalign;
        call_kind kind;
        int fail_at;
        int error;
        hugepages_result result;
    } cases[] = {
        {0, CALL_MMAP, 1, ENOMEM, HUGEPAGES_BUSY},
        {0, CALL_MMAP, 1, EPERM, HUGEPAGES_NEVER},
        {0, CALL_ADVISE, 1, EINVAL, HUGEPAGES_NEVER},
        {0, CALL_ADVISE, 1, ENOMEM, HUGEPAGES_BUSY},
        {1, CALL_MMAP, 1, ENOMEM, HUGEPAGES_BUSY},
        {1, CALL_MMAP, 2, ENOMEM, HUGEPAGES_BUSY},
        {1, CALL_MUNMAP, 2, ENOMEM, HUGEPAGES_BUSY},
        {1, CALL_MUNMAP, 3, ENOMEM, HUGEPAGES_BUSY},
        {1, CALL_ADVISE, 1, EINVAL, HUGEPAGES_NEVER},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        begin_test();
        fake.misalign = cases[i].misalign;
        let_fail(cases[i].kind, cases[i].fail_at, 1, cases[i].error);
        address_space before = read_address_space();
        CHECK_REFUSED(hugepages_os_map_thp, ARENA_SIZE, cases[i].result,
                      cases[i].error);
        check_no_leak(before);
        if (test_failed()) {
            FAIL("in case %zu", i);
            return;
        }
    }
}

// --- aligned memory, and advice ---------------------------------------------

static void
map_aligned_sizes(int misalign)
{
    fake.misalign = misalign;
    address_space before = read_address_space();
    for (size_t size = ARENA_SIZE; size <= 3 * ARENA_SIZE; size += ARENA_SIZE)
    {
        void *address = MAP(hugepages_os_map_aligned, size);
        REQUIRE(address != NULL);
        CHECK(!is_advised(address));
        test_use_memory(address, size, ARENA_SIZE);
        CHECK_EQUAL(read_address_space().kib, before.kib + (long)size / 1024);
        CHECK_UNMAP(address, size);
    }
    check_no_leak(before);
}

TEST_CALL(linux_aligned, map_aligned_sizes(0))
TEST_CALL(linux_aligned_misaligned, map_aligned_sizes(1))

/* Only what was asked for is advised, be it in memory already or not. */
TEST(linux_advise)
{
    const size_t size = 4 * ARENA_SIZE;
    address_space before = read_address_space();
    char *address = (char *)MAP(hugepages_os_map_aligned, size);
    REQUIRE(address != NULL);
    write_numbers(address, ARENA_SIZE);
    CHECK_ADVISE(address, 2 * ARENA_SIZE, HUGEPAGES_OK, 0);
    CHECK(is_advised(address));
    CHECK(is_advised(address + 2 * ARENA_SIZE - 1));
    CHECK(!is_advised(address + 2 * ARENA_SIZE));
    check_numbers(address, ARENA_SIZE);
    test_use_memory(address + ARENA_SIZE, size - ARENA_SIZE, ARENA_SIZE);
    CHECK_UNMAP(address, size);
    CHECK(is_unmapped(address + 3 * ARENA_SIZE));
    check_no_leak(before);
}

TEST(linux_advise_refused)
{
    static const struct {
        int error;
        hugepages_result result;
    } cases[] = {{EINVAL, HUGEPAGES_NEVER}, {ENOMEM, HUGEPAGES_BUSY}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        begin_test();
        void *address = MAP(hugepages_os_map_aligned, ARENA_SIZE);
        REQUIRE(address != NULL);
        let_fail(CALL_ADVISE, 1, 0, cases[i].error);
        CHECK_ADVISE(address, ARENA_SIZE, cases[i].result, cases[i].error);
        use_and_unmap(address, ARENA_SIZE, ARENA_SIZE);
    }
}

// --- nothing leaks ----------------------------------------------------------

static void
check_cycles(map_function map, int misalign)
{
    enum { CYCLES = 1000, HELD = 4 };
    const size_t cycles = (size_t)test_rounds(CYCLES);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int os_error = 0;
    fake.misalign = misalign;
    address_space before = read_address_space();
    for (size_t i = 0; i < cycles; i++) {
        void *arenas[HELD];
        size_t odd_size = (i % 7 + 1) * page;
        void *odd = mmap(NULL, odd_size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(odd != MAP_FAILED);
        for (int j = 0; j < HELD; j++) {
            REQUIRE(map(ARENA_SIZE, &arenas[j], &os_error) == HUGEPAGES_OK);
            *(char *)arenas[j] = 1;
        }
        REQUIRE(munmap(odd, odd_size) == 0);
        /* Not in the order in which they came. */
        for (int j = 0; j < HELD; j++) {
            void *arena = arenas[(j + (int)i) % HELD];
            REQUIRE(hugepages_os_unmap(arena, ARENA_SIZE, &os_error)
                    == HUGEPAGES_OK);
        }
    }
    check_no_leak(before);
}

TEST_CALL(linux_cycles_plain, check_cycles(hugepages_os_map_plain, 0))
TEST_CALL(linux_cycles_thp, check_cycles(hugepages_os_map_thp, 0))
TEST_CALL(linux_cycles_thp_misaligned, check_cycles(hugepages_os_map_thp, 1))

TEST(linux_cycles_explicit)
{
    NEED_POOL(4);
    check_cycles(hugepages_os_map_explicit, 0);
    CHECK_EQUAL(pool_available(), 4);
}
