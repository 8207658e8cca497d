/* Tests of os_linux.c and os_linux_fork.c, and of pymalloc.c over them.

   What the kernel did is read from /proc/self/smaps and sysfs, not taken from
   what the code says of itself.

   As root the tests set up what they need (the huge-page pool, a cgroup) and
   restore what they found, also when they fail. */

#define TEST_PREFIX linux_layer
#define HUGEPAGES_KEEP_MOST 0
#include "_testhugepages_calls.h"

#include <signal.h>               // sigprocmask()
#include <sys/wait.h>             // waitpid()

static void
begin_test(void)
{
    reset_core();
    disarm();
    test_tstate = NULL;
    errno = UNTOUCHED;
}

static void *
alloc_arena(void)
{
    return linux_layer_alloc(NULL, ARENA_SIZE);
}

static void
free_arena(void *arena)
{
    linux_layer_free(NULL, arena, ARENA_SIZE);
}

// --- tests: scan -----------------------------------------------------------

static void
test_scan(void)
{
    hugepages_system system;
    begin_test();
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

static void
test_scan_without_sysfs(void)
{
    hugepages_system system;
    begin_test();
    let_fail(CALL_OPEN, 1, 0, ENOENT);
    hugepages_os_scan(&system);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(fake.calls[CALL_OPEN], 1);
    CHECK_EQUAL(system.thp_size, ARENA_SIZE);
}

static void
scan_with_thp_disabled(void)
{
    hugepages_system system;
    REQUIRE(prctl(PR_SET_THP_DISABLE, 1L, 0L, 0L, 0L) == 0);
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.thp_disabled, 1);
    REQUIRE(prctl(PR_SET_THP_DISABLE, 0L, 0L, 0L, 0L) == 0);
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.thp_disabled, 0);
}

static void
test_scan_thp_disabled(void)
{
    begin_test();
    run_in_child(scan_with_thp_disabled);
}

static void
test_enable(void)
{
    int os_error = 0;
    begin_test();
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
}

// --- tests: plain memory ---------------------------------------------------

static void
test_plain(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t sizes[] = {
        1, page, 16 * 1024, ARENA_SIZE - page, ARENA_SIZE, 3 * ARENA_SIZE
    };
    begin_test();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        REQUIRE(hugepages_os_map_plain(sizes[i], &address, &os_error)
                == HUGEPAGES_OK);
        test_use_memory(address, sizes[i], page);
        CHECK_EQUAL(hugepages_os_unmap(address, sizes[i], &os_error),
                    HUGEPAGES_OK);
        CHECK(is_unmapped(address));
    }
    CHECK_EQUAL(errno, UNTOUCHED);
}

static void
test_plain_too_large(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    CHECK_EQUAL(hugepages_os_map_plain(SIZE_MAX / 4, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK_EQUAL(errno, ENOMEM);
}

/* What is not taken back is empty, and can be used. */
static void
test_unmap_refused(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    test_use_memory(address, ARENA_SIZE, 1);
    let_fail(CALL_MUNMAP, 1, 1, ENOMEM);
    long resident = read_status("VmRSS:");
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK(read_status("VmRSS:") < resident - 1024);
    test_use_memory(address, ARENA_SIZE, 1);
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    CHECK(is_unmapped(address));
}

// --- tests: explicit pages, real -------------------------------------------

/* Use a whole pool, find it empty, give it back. */
static void
use_pool(long pages)
{
    enum { MAX_PAGES = 8 };
    void *mappings[MAX_PAGES];
    void *address = NULL;
    int os_error = 0;
    address_space before = read_address_space();
    for (long i = 0; i < pages; i++) {
        REQUIRE(hugepages_os_map_explicit(ARENA_SIZE, &mappings[i], &os_error)
                == HUGEPAGES_OK);
        /* Before the first access of ours. */
        check_hugetlb(mappings[i]);
        test_use_memory(mappings[i], ARENA_SIZE, ARENA_SIZE);
        CHECK_EQUAL(pool_available(), pages - i - 1);
    }
    CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    for (long i = 0; i < pages; i++) {
        CHECK_EQUAL(hugepages_os_unmap(mappings[i], ARENA_SIZE, &os_error),
                    HUGEPAGES_OK);
        CHECK(is_unmapped(mappings[i]));
        CHECK_EQUAL(pool_available(), i + 1);
    }
    CHECK_EQUAL(errno, UNTOUCHED);
    check_no_leak(before);
}

static void
test_explicit_pool(void)
{
    const long pages = 3;
    begin_test();
    if (need_pool(pages) == 0) {
        errno = UNTOUCHED;
        use_pool(pages);
    }
    restore_pool();
}

/* As before Linux 5.14, which does not know MADV_POPULATE_WRITE. */
static void
test_explicit_pool_old_kernel(void)
{
    const long pages = 3;
    /* A signal mask that would be seen if it stayed in the page. */
    sigset_t mask, saved_mask, after;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGUSR1);
    (void)sigprocmask(SIG_BLOCK, &mask, &saved_mask);
    begin_test();
    let_fail(CALL_POPULATE, 1, 0, EINVAL);
    if (need_pool(pages) == 0) {
        errno = UNTOUCHED;
        use_pool(pages);
        CHECK_EQUAL(fake.calls[CALL_SIGPROCMASK], pages);
    }
    restore_pool();
    (void)sigprocmask(SIG_SETMASK, &saved_mask, &after);
    CHECK(sigismember(&after, SIGUSR1));
}

static void
test_explicit_empty_pool(void)
{
    begin_test();
    if (need_pool(0) == 0) {
        errno = UNTOUCHED;
        use_pool(0);
    }
    restore_pool();
}

// --- tests: a hugetlb cgroup -----------------------------------------------

/* The pool has a page, which mmap() reserves; the fault that would be SIGBUS
   must be seen before anybody relies on the page. */
static void
map_over_limit(void)
{
    void *address = NULL;
    int os_error = 0;
    long available = pool_available();
    CHECK(available > 0);
    REQUIRE(join_cgroup() == 0);
    address_space before = read_address_space();
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(os_error, EFAULT);
    check_no_leak(before);
    CHECK_EQUAL(pool_available(), available);
}

static void
check_over_limit(void)
{
    if (need_pool(2) == 0
        && make_cgroup(2, "hugetlb", "hugetlb.2MB.max", 0) == 0)
    {
        run_in_child(map_over_limit);
    }
    remove_cgroup();
    restore_pool();
}

static void
test_explicit_over_limit(void)
{
    begin_test();
    check_over_limit();
}

static void
test_explicit_over_limit_old_kernel(void)
{
    begin_test();
    let_fail(CALL_POPULATE, 1, 0, EINVAL);
    check_over_limit();
}

// --- tests: explicit pages, faked ------------------------------------------

static void
test_explicit_granted(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    fake.grant_hugetlb = 1;
    REQUIRE(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    /* Whatever the default size of a huge page is. */
    CHECK_EQUAL(fake.mmap_flags,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26);
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
}

static void
test_explicit_refused(void)
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
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        let_fail(CALL_MMAP, 1, 0, cases[i].error);
        CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                    cases[i].result);
        CHECK_EQUAL(os_error, cases[i].error);
        CHECK_EQUAL(errno, UNTOUCHED);
    }
}

/* The page is there, but may not be faulted in: by MADV_POPULATE_WRITE, or
   before Linux 5.14 by the other system call. */
static void
check_not_proved(int populate_error, int sigprocmask_error)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    fake.grant_hugetlb = 1;
    let_fail(CALL_POPULATE, 1, 0, populate_error);
    let_fail(CALL_SIGPROCMASK, sigprocmask_error != 0, 0, sigprocmask_error);
    address_space before = read_address_space();
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(os_error,
                sigprocmask_error ? sigprocmask_error : populate_error);
    CHECK_EQUAL(fake.calls[CALL_SIGPROCMASK], sigprocmask_error != 0);
    CHECK_EQUAL(fake.calls[CALL_MUNMAP], 1);
    check_no_leak(before);
}

static void
test_explicit_not_proved(void)
{
    check_not_proved(EFAULT, 0);
    check_not_proved(EHWPOISON, 0);
    check_not_proved(ENOMEM, 0);
    check_not_proved(EINVAL, EFAULT);
}

// --- tests: transparent huge pages -----------------------------------------

/* As the arenas of a program come: other mappings of odd sizes between. */
static void
map_thp_arenas(void)
{
    enum { COUNT = 20 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *arenas[COUNT], *others[COUNT];
    int os_error = 0;
    smaps_entry entry;
    long huge_kib = 0;
    address_space before = read_address_space();
    for (size_t i = 0; i < COUNT; i++) {
        others[i] = mmap(NULL, (2 * i + 1) * page, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(others[i] != MAP_FAILED);
        errno = UNTOUCHED;
        REQUIRE(hugepages_os_map_thp(ARENA_SIZE, &arenas[i], &os_error)
                == HUGEPAGES_OK);
        CHECK_EQUAL(errno, UNTOUCHED);
        check_thp(arenas[i]);
        /* As pymalloc does, write first: before Linux 6.13 a huge page that
           is read first, as zeros, is split into base pages when written. */
        *(volatile char *)arenas[i] = 0;
        test_use_memory(arenas[i], ARENA_SIZE, ARENA_SIZE);
    }
    for (size_t i = 0; i < COUNT; i++) {
        if (read_smaps(arenas[i], &entry) == 0) {
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
        CHECK_EQUAL(hugepages_os_unmap(arenas[i], ARENA_SIZE, &os_error),
                    HUGEPAGES_OK);
        CHECK(is_unmapped(arenas[i]));
        CHECK_EQUAL(munmap(others[i], (2 * i + 1) * page), 0);
    }
    check_no_leak(before);
}

static void
test_thp(void)
{
    begin_test();
    map_thp_arenas();
}

static void
test_thp_misaligned(void)
{
    begin_test();
    fake.misalign = 1;
    map_thp_arenas();
}

/* Each call that can fail, with and without the detour for alignment. */
static void
test_thp_each_call_fails(void)
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
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        fake.misalign = cases[i].misalign;
        let_fail(cases[i].kind, cases[i].fail_at, 1, cases[i].error);
        address_space before = read_address_space();
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_map_thp(ARENA_SIZE, &address, &os_error),
                    cases[i].result);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, cases[i].error);
        check_no_leak(before);
        if (test_failed()) {
            FAIL("in case %zu", i);
            return;
        }
    }
}

// --- tests: aligned memory, and advice -------------------------------------

/* Write a pattern to each page of memory, or see that it is there. */
static void
write_pages(void *address, size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *bytes = (char *)address;
    for (size_t i = 0; i < size; i += page) {
        memset(bytes + i, (int)(i / page % 127) + 1, page);
    }
}

static void
check_pages(const void *address, size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const char *bytes = (const char *)address;
    for (size_t i = 0; i < size; i += page) {
        if (bytes[i] != (char)(i / page % 127) + 1
            || memcmp(bytes + i, bytes + i + 1, page - 1) != 0)
        {
            FAIL("page %zu has lost its content", i / page);
            return;
        }
    }
}

static void *
map_aligned(size_t size)
{
    void *address = NULL;
    int os_error = 0;
    if (hugepages_os_map_aligned(size, &address, &os_error) != HUGEPAGES_OK) {
        FAIL("map_aligned: error %d", os_error);
    }
    return address;
}

static void
unmap(void *address, size_t size)
{
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_unmap(address, size, &os_error), HUGEPAGES_OK);
    CHECK(is_unmapped(address));
}

static void
map_aligned_sizes(void)
{
    address_space before = read_address_space();
    for (size_t size = ARENA_SIZE; size <= 3 * ARENA_SIZE; size += ARENA_SIZE)
    {
        errno = UNTOUCHED;
        void *address = map_aligned(size);
        REQUIRE(address != NULL);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK(!is_advised(address));
        test_use_memory(address, size, ARENA_SIZE);
        address_space now = read_address_space();
        CHECK_EQUAL(now.kib, before.kib + (long)size / 1024);
        unmap(address, size);
    }
    check_no_leak(before);
}

static void
test_aligned(void)
{
    begin_test();
    map_aligned_sizes();
}

static void
test_aligned_misaligned(void)
{
    begin_test();
    fake.misalign = 1;
    map_aligned_sizes();
}

/* Only what was asked for is advised, be it in memory already or not. */
static void
test_advise(void)
{
    const size_t size = 4 * ARENA_SIZE;
    int os_error = 0;
    begin_test();
    address_space before = read_address_space();
    char *address = (char *)map_aligned(size);
    REQUIRE(address != NULL);
    write_pages(address, ARENA_SIZE);
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_advise(address, 2 * ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK(is_advised(address));
    CHECK(is_advised(address + 2 * ARENA_SIZE - 1));
    CHECK(!is_advised(address + 2 * ARENA_SIZE));
    check_pages(address, ARENA_SIZE);
    test_use_memory(address + ARENA_SIZE, size - ARENA_SIZE, ARENA_SIZE);
    unmap(address, size);
    CHECK(is_unmapped(address + 3 * ARENA_SIZE));
    check_no_leak(before);
}

static void
test_advise_refused(void)
{
    static const struct {
        int error;
        hugepages_result result;
    } cases[] = {
        {EINVAL, HUGEPAGES_NEVER},
        {ENOMEM, HUGEPAGES_BUSY},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int os_error = 0;
        begin_test();
        void *address = map_aligned(ARENA_SIZE);
        REQUIRE(address != NULL);
        let_fail(CALL_ADVISE, 1, 0, cases[i].error);
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                    cases[i].result);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, cases[i].error);
        test_use_memory(address, ARENA_SIZE, ARENA_SIZE);
        unmap(address, ARENA_SIZE);
    }
}

// --- tests: what a fork needs ----------------------------------------------

static void
count_threads(int thread)
{
    if (thread == 0) {
        CHECK(!hugepages_os_is_single_threaded());
    }
    else {
        /* Until the other one has looked. */
        const struct timespec pause = {0, 50 * 1000 * 1000};
        (void)nanosleep(&pause, NULL);
    }
}

static void
test_single_threaded(void)
{
    begin_test();
    CHECK(hugepages_os_is_single_threaded());
    CHECK_EQUAL(errno, UNTOUCHED);
    test_run_threads(2, count_threads);
    let_fail(CALL_STAT, 1, 0, ENOENT);
    errno = UNTOUCHED;
    CHECK(!hugepages_os_is_single_threaded());
    CHECK_EQUAL(errno, UNTOUCHED);
}

static void
test_thp_off(void)
{
    const char *file = "/sys/kernel/mm/transparent_hugepage/enabled";
    char mode[64];
    begin_test();
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

static void
test_signals(void)
{
    sigset_t before, blocked, after;
    begin_test();
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
static void
test_unadvise(void)
{
    int os_error = 0;
    begin_test();
    char *address = (char *)map_aligned(3 * ARENA_SIZE);
    REQUIRE(address != NULL);
    CHECK_EQUAL(hugepages_os_advise(address, 3 * ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    write_pages(address, 3 * ARENA_SIZE);
    errno = UNTOUCHED;
    hugepages_os_unadvise(address + ARENA_SIZE, ARENA_SIZE);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK(is_advised(address));
    CHECK(!is_advised(address + ARENA_SIZE));
    CHECK(is_advised(address + 2 * ARENA_SIZE));
    check_pages(address, 3 * ARENA_SIZE);
    let_fail(CALL_UNADVISE, 2, 0, EINVAL);
    errno = UNTOUCHED;
    hugepages_os_unadvise(address, ARENA_SIZE);
    CHECK_EQUAL(errno, UNTOUCHED);
    unmap(address, 3 * ARENA_SIZE);
}

/* Onto memory of either kind. */
static void
check_move(void *to)
{
    begin_test();
    void *from = map_aligned(ARENA_SIZE);
    REQUIRE(from != NULL);
    write_pages(from, ARENA_SIZE);
    address_space before = read_address_space();
    let_fail(CALL_MREMAP, 1, 1, ENOMEM);
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_move(from, to, ARENA_SIZE), HUGEPAGES_BUSY);
    check_pages(from, ARENA_SIZE);
    check_no_leak(before);
    let_fail(CALL_MMAP, 1, 1, ENOMEM);
    fake.calls[CALL_MMAP] = 0;
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_remap_plain(to, ARENA_SIZE), HUGEPAGES_BUSY);
    CHECK_EQUAL(hugepages_os_remap_plain(to, ARENA_SIZE), HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    test_use_memory(to, ARENA_SIZE, ARENA_SIZE);
    CHECK_EQUAL(hugepages_os_move(from, to, ARENA_SIZE), HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK(is_unmapped(from));
    check_pages(to, ARENA_SIZE);
    unmap(to, ARENA_SIZE);
}

static void
test_move(void)
{
    begin_test();
    void *to = map_aligned(ARENA_SIZE);
    REQUIRE(to != NULL);
    check_move(to);
}

static void
test_move_onto_hugetlb(void)
{
    void *to = NULL;
    int os_error;
    begin_test();
    if (need_pool(1) == 0) {
        REQUIRE(hugepages_os_map_explicit(ARENA_SIZE, &to, &os_error)
                == HUGEPAGES_OK);
        check_move(to);
        CHECK_EQUAL(pool_available(), 1);
    }
    restore_pool();
}

// --- tests: nothing leaks --------------------------------------------------

typedef hugepages_result (*map_function)(size_t, void **, int *);

static void
check_cycles(map_function map)
{
    enum { CYCLES = 1000, HELD = 4 };
    const size_t cycles = (size_t)test_rounds(CYCLES);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int os_error = 0;
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

static void
test_cycles_plain(void)
{
    begin_test();
    check_cycles(hugepages_os_map_plain);
}

static void
test_cycles_thp(void)
{
    begin_test();
    check_cycles(hugepages_os_map_thp);
}

static void
test_cycles_thp_misaligned(void)
{
    begin_test();
    fake.misalign = 1;
    check_cycles(hugepages_os_map_thp);
}

static void
test_cycles_explicit(void)
{
    const long pages = 4;
    begin_test();
    if (need_pool(pages) == 0) {
        check_cycles(hugepages_os_map_explicit);
        CHECK_EQUAL(pool_available(), pages);
    }
    restore_pool();
}

// --- tests: no more mappings -----------------------------------------------

/* An arena in the middle of memory that the kernel sees as one mapping cannot
   be cut out of it: it waits for the next request. */
static void
free_without_mappings(void)
{
    enum { COUNT = 16 };
    void *arenas[COUNT];
    int middle = -1;
    linux_layer_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_arena();
        REQUIRE(arenas[i] != NULL);
    }
    for (int i = 0; i < COUNT && middle < 0; i++) {
        smaps_entry entry;
        uintptr_t address = (uintptr_t)arenas[i];
        if (read_smaps(arenas[i], &entry) == 0 && entry.start < address
            && address + ARENA_SIZE < entry.end)
        {
            middle = i;
        }
    }
    REQUIRE(middle >= 0);
    size_t filler_size;
    void *filler = use_up_mappings(&filler_size);
    REQUIRE(filler != NULL);

    memset(arenas[middle], 1, ARENA_SIZE);
    long resident = read_status("VmRSS:");
    free_arena(arenas[middle]);
    CHECK(read_status("VmRSS:") < resident - 1024);
    /* Where no more memory is to be had, this is no way out, nor a trap. */
    let_fail(CALL_MMAP, fake.calls[CALL_MMAP] + 1, 0, ENOMEM);
    (void)alarm(60);
    CHECK(linux_layer_alloc(NULL, 16 * 1024) == NULL);
    (void)alarm(0);
    int calls = fake.calls[CALL_MMAP];
    CHECK(alloc_arena() == arenas[middle]);
    CHECK_EQUAL(fake.calls[CALL_MMAP], calls);
    test_use_memory(arenas[middle], ARENA_SIZE, ARENA_SIZE);
    disarm();
    /* A new one cannot be had, or merges with those that are there; either
       way quietly. */
    (void)alloc_arena();

    CHECK_EQUAL(munmap(filler, filler_size), 0);
    free_arena(arenas[middle]);
    CHECK(is_unmapped(arenas[middle]));
}

static void
test_max_map_count(void)
{
    begin_test();
    run_in_child(free_without_mappings);
}

// --- tests: pymalloc.c -----------------------------------------------------

/* A pool of two, then transparent huge pages; chunks get neither. */
static void
use_arenas(void)
{
    enum { COUNT = 4 };
    void *arenas[COUNT];
    linux_layer_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    void *chunk = linux_layer_alloc(NULL, 16 * 1024);
    REQUIRE(chunk != NULL);
    CHECK_EQUAL(pool_available(), 2);
    CHECK(!is_advised(chunk));
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_arena();
        REQUIRE(arenas[i] != NULL);
        if (i < 2) {
            check_hugetlb(arenas[i]);
        }
        else {
            check_thp(arenas[i]);
        }
        test_use_memory(arenas[i], ARENA_SIZE, ARENA_SIZE);
    }
    CHECK_EQUAL(pool_available(), 0);
    for (int i = 0; i < COUNT; i++) {
        free_arena(arenas[i]);
        CHECK(is_unmapped(arenas[i]));
    }
    CHECK_EQUAL(pool_available(), 2);
    linux_layer_free(NULL, chunk, 16 * 1024);
    CHECK(is_unmapped(chunk));
    linux_layer_free(NULL, NULL, ARENA_SIZE);
}

static void
test_arenas(void)
{
    begin_test();
    if (need_pool(2) == 0) {
        use_arenas();
    }
    restore_pool();
}

/* As an interpreter does it: what it has is in its table. */
static void
use_first_arenas(void)
{
    enum { MOST = 8 };
    static PyThreadState tstate;
    struct _obmalloc_mgmt *mgmt;
    /* This process has forked none. */
    reset_core();
    memset(&tstate, 0, sizeof(tstate));
    tstate.interp = calloc(1, sizeof(*tstate.interp));
    REQUIRE(tstate.interp != NULL);
    test_tstate = &tstate;
    linux_layer_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    /* An interpreter that has none yet. */
    void *early = alloc_arena();
    check_thp(early);
    free_arena(early);

    tstate.interp->obmalloc = calloc(1, sizeof(*tstate.interp->obmalloc));
    REQUIRE(tstate.interp->obmalloc != NULL);
    mgmt = &tstate.interp->obmalloc->mgmt;
    mgmt->arenas = calloc(MOST, sizeof(*mgmt->arenas));
    REQUIRE(mgmt->arenas != NULL);
    mgmt->maxarenas = MOST;
    for (unsigned int i = 0; i < MOST; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        CHECK_EQUAL((uintptr_t)arena % ARENA_SIZE, 0);
        CHECK_EQUAL(is_advised(arena), i >= HUGEPAGES_FIRST_ARENAS);
        write_pages(arena, ARENA_SIZE);
        mgmt->arenas[i].address = (uintptr_t)arena;
        mgmt->narenas_currently_allocated++;
    }
    for (unsigned int i = 0; i < MOST; i++) {
        void *arena = (void *)mgmt->arenas[i].address;
        check_thp(arena);
        check_pages(arena, ARENA_SIZE);
        free_arena(arena);
        CHECK(is_unmapped(arena));
    }
}

static void
test_first_arenas(void)
{
    begin_test();
    run_in_child(use_first_arenas);
}

/* The last thing that a program does. */
static void
finish(void)
{
    char line[2000];
    char name[] = "/tmp/testhugepages-XXXXXX";
    int fd = mkstemp(name);
    REQUIRE(fd >= 0);
    (void)close(fd);
    CHECK_EQUAL(setenv("PYTHON_PYMALLOC_HUGEPAGES_STATS", name, 1), 0);
    linux_layer_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    void *arena = alloc_arena();
    linux_layer_fini();
    CHECK_EQUAL(read_file(name, line, sizeof(line)), 0);
    (void)unlink(name);
    CHECK(line[0] == '{' && strchr(line, '\n') == line + strlen(line) - 1);
    CHECK(strstr(line, "\"switch\": \"thp\"") != NULL);
    CHECK(strstr(line, "\"thp\": {\"now\": 1, \"peak\": 1, \"ever\": 1, "
                       "\"refused\": {}, \"unusable\": null}") != NULL);
    CHECK(strstr(line, "the switch leaves it out") != NULL);
    free_arena(arena);
}

static void
test_fini(void)
{
    begin_test();
    run_in_child(finish);
}

const testhugepages_test testhugepages_linux_tests[] = {
    {"linux_scan", test_scan},
    {"linux_scan_without_sysfs", test_scan_without_sysfs},
    {"linux_scan_thp_disabled", test_scan_thp_disabled},
    {"linux_enable", test_enable},
    {"linux_plain", test_plain},
    {"linux_plain_too_large", test_plain_too_large},
    {"linux_unmap_refused", test_unmap_refused},
    {"linux_explicit_pool", test_explicit_pool},
    {"linux_explicit_pool_old_kernel", test_explicit_pool_old_kernel},
    {"linux_explicit_empty_pool", test_explicit_empty_pool},
    {"linux_explicit_over_limit", test_explicit_over_limit},
    {"linux_explicit_over_limit_old_kernel",
     test_explicit_over_limit_old_kernel},
    {"linux_explicit_granted", test_explicit_granted},
    {"linux_explicit_refused", test_explicit_refused},
    {"linux_explicit_not_proved", test_explicit_not_proved},
    {"linux_thp", test_thp},
    {"linux_thp_misaligned", test_thp_misaligned},
    {"linux_thp_each_call_fails", test_thp_each_call_fails},
    {"linux_aligned", test_aligned},
    {"linux_aligned_misaligned", test_aligned_misaligned},
    {"linux_advise", test_advise},
    {"linux_advise_refused", test_advise_refused},
    {"linux_single_threaded", test_single_threaded},
    {"linux_thp_off", test_thp_off},
    {"linux_signals", test_signals},
    {"linux_unadvise", test_unadvise},
    {"linux_move", test_move},
    {"linux_move_onto_hugetlb", test_move_onto_hugetlb},
    {"linux_cycles_plain", test_cycles_plain},
    {"linux_cycles_thp", test_cycles_thp},
    {"linux_cycles_thp_misaligned", test_cycles_thp_misaligned},
    {"linux_cycles_explicit", test_cycles_explicit},
    {"linux_max_map_count", test_max_map_count},
    {"linux_arenas", test_arenas},
    {"linux_first_arenas", test_first_arenas},
    {"linux_fini", test_fini},
    {NULL, NULL}
};
