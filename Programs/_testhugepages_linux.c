/* Tests of os_linux.c, and of arena.c over it.

   Each call of os_linux.c to the kernel goes through a function of this file,
   which makes the real call or fails with the error that the test wants.  What
   the kernel did is read from /proc/self/smaps and sysfs, not taken from what
   the code says of itself.

   As root the tests set up what they need (the huge-page pool, a cgroup) and
   restore what they found, also when they fail. */

#include "_testhugepages.h"
#include "_testhugepages_system.h"

#include <errno.h>                // errno
#include <fcntl.h>                // open()
#include <signal.h>               // sigaction()
#include <stdarg.h>               // va_list
#include <sys/mman.h>             // mmap()
#include <sys/mount.h>            // mount()
#include <sys/prctl.h>            // prctl()
#include <sys/stat.h>             // mkdir()
#include <sys/syscall.h>          // SYS_rt_sigprocmask
#include <sys/wait.h>             // waitpid()
#include <unistd.h>               // fork()

// --- the calls to the kernel -----------------------------------------------

/* Which of the calls of one kind fails. */
typedef struct {
    /* Number of the first call to fail, from 1; 0: none does. */
    int fail_at;
    /* How many calls fail from there; 0: all. */
    int fail_count;
    int error;
    int calls;
} fault;

static struct {
    fault mmap;
    fault munmap;
    fault advise_populate;
    fault advise_huge;
    fault sigprocmask;
    fault open;
    /* Nonzero: serve hugetlb pages from plain memory. */
    int grant_hugetlb;
    /* Nonzero: memory is not aligned, as often on kernels before 6.7. */
    int misalign;
    int mmap_flags;
} fake;

static int
is_failing(fault *kind)
{
    kind->calls++;
    if (kind->fail_at == 0 || kind->calls < kind->fail_at
        || (kind->fail_count != 0
            && kind->calls >= kind->fail_at + kind->fail_count))
    {
        return 0;
    }
    errno = kind->error;
    return 1;
}

/* mmap() memory that begins in the middle between two aligned addresses. */
static void *
mmap_misaligned(size_t size, int protection, int flags)
{
    size_t room = size + 2 * ARENA_SIZE;
    char *mapping = mmap(NULL, room, protection, flags, -1, 0);
    if (mapping == MAP_FAILED) {
        return mapping;
    }
    size_t head = (0 - (uintptr_t)mapping) % ARENA_SIZE + ARENA_SIZE / 2;
    char *end = mapping + head + size;
    if (munmap(mapping, head) != 0
        || munmap(end, (size_t)(mapping + room - end)) != 0)
    {
        FAIL("munmap: %s", strerror(errno));
    }
    return mapping + head;
}

static void *
fake_mmap(void *hint, size_t size, int protection, int flags, int fd,
          off_t offset)
{
    if (is_failing(&fake.mmap)) {
        return MAP_FAILED;
    }
    fake.mmap_flags = flags;
    if (fake.grant_hugetlb) {
        const int size_mask = 0x3F;
        flags &= ~(MAP_HUGETLB | (int)((unsigned int)size_mask << 26));
    }
    if (fake.misalign && size >= ARENA_SIZE) {
        return mmap_misaligned(size, protection, flags);
    }
    return mmap(hint, size, protection, flags, fd, offset);
}

static int
fake_munmap(void *address, size_t size)
{
    return is_failing(&fake.munmap) ? -1 : munmap(address, size);
}

static int
fake_madvise(void *address, size_t size, int advice)
{
    fault *kind = advice == MADV_HUGEPAGE ? &fake.advise_huge
                                          : &fake.advise_populate;
    return is_failing(kind) ? -1 : madvise(address, size, advice);
}

static long
fake_rt_sigprocmask(long number, int how, void *set, void *old_set,
                    size_t size)
{
    CHECK_EQUAL(number, SYS_rt_sigprocmask);
    return is_failing(&fake.sigprocmask) ? -1
           : syscall(number, how, set, old_set, size);
}

static int
fake_open(const char *path, int flags)
{
    return is_failing(&fake.open) ? -1 : open(path, flags);
}

#define mmap fake_mmap
#define munmap fake_munmap
#define madvise fake_madvise
#define syscall fake_rt_sigprocmask
#define open fake_open
#define _PyMem_SetHugePages linux_set_huge_pages
#define _PyMem_GetHugePagesStats linux_get_stats
#define _PyMem_ReleaseHugePages linux_release
#define _PyMem_HugePagesCollected linux_collected
#include "../Include/internal/pycore_hugepages.h"
#include "../Objects/hugepages/stats.c"
#include "../Objects/hugepages/retain.c"
#include "../Objects/hugepages/arena.c"
#include "../Objects/hugepages/fork.c"
#include "../Objects/hugepages/os_linux.c"
#include "../Objects/hugepages/os_linux_fork.c"
#undef mmap
#undef munmap
#undef madvise
#undef syscall
#undef open

static void
begin_test(void)
{
    memset(&fake, 0, sizeof(fake));
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    errno = UNTOUCHED;
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
    test_note("base page %zu KiB, explicit page %zu KiB, THP %zu KiB%s",
              system.base_page_size / 1024, system.explicit_page_size / 1024,
              system.thp_size / 1024,
              system.thp_disabled ? ", THP disabled" : "");
    CHECK_EQUAL(system.base_page_size, sysconf(_SC_PAGESIZE));
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
    fake.open.fail_at = 1;
    fake.open.error = ENOENT;
    hugepages_os_scan(&system);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(fake.open.calls, 1);
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

/* It goes on, never back, and about as fast as time does. */
static void
test_now(void)
{
    const struct timespec millisecond = {0, 1000000};
    begin_test();
    uint64_t start = hugepages_os_now();
    uint64_t now = start;
    for (int i = 0; i < 10000 && now < start + 20; i++) {
        uint64_t before = now;
        (void)nanosleep(&millisecond, NULL);
        errno = UNTOUCHED;
        now = hugepages_os_now();
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK(now >= before);
    }
    CHECK(now >= start + 20);
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

static void
test_unmap_refused(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    fake.munmap.fail_at = 1;
    fake.munmap.fail_count = 1;
    fake.munmap.error = ENOMEM;
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK_EQUAL(errno, UNTOUCHED);
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
    fake.advise_populate.fail_at = 1;
    fake.advise_populate.error = EINVAL;
    if (need_pool(pages) == 0) {
        errno = UNTOUCHED;
        use_pool(pages);
        CHECK_EQUAL(fake.sigprocmask.calls, pages);
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
    fake.advise_populate.fail_at = 1;
    fake.advise_populate.error = EINVAL;
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
        fake.mmap.fail_at = 1;
        fake.mmap.error = cases[i].error;
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
    fake.advise_populate.fail_at = 1;
    fake.advise_populate.error = populate_error;
    fake.sigprocmask.fail_at = sigprocmask_error != 0;
    fake.sigprocmask.error = sigprocmask_error;
    address_space before = read_address_space();
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(os_error,
                sigprocmask_error ? sigprocmask_error : populate_error);
    CHECK_EQUAL(fake.sigprocmask.calls, sigprocmask_error != 0);
    CHECK_EQUAL(fake.munmap.calls, 1);
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
        fault *kind;
        int fail_at;
        int error;
        hugepages_result result;
    } cases[] = {
        {0, &fake.mmap, 1, ENOMEM, HUGEPAGES_BUSY},
        {0, &fake.mmap, 1, EPERM, HUGEPAGES_NEVER},
        {0, &fake.advise_huge, 1, EINVAL, HUGEPAGES_NEVER},
        {0, &fake.advise_huge, 1, ENOMEM, HUGEPAGES_BUSY},
        {1, &fake.mmap, 1, ENOMEM, HUGEPAGES_BUSY},
        {1, &fake.mmap, 2, ENOMEM, HUGEPAGES_BUSY},
        {1, &fake.munmap, 2, ENOMEM, HUGEPAGES_BUSY},
        {1, &fake.munmap, 3, ENOMEM, HUGEPAGES_BUSY},
        {1, &fake.advise_huge, 1, EINVAL, HUGEPAGES_NEVER},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        fake.misalign = cases[i].misalign;
        cases[i].kind->fail_at = cases[i].fail_at;
        cases[i].kind->fail_count = 1;
        cases[i].kind->error = cases[i].error;
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
   be cut out of it; it must come back to use. */
static void
free_without_mappings(void)
{
    enum { COUNT = 16 };
    void *arenas[COUNT];
    int middle = -1;
    int os_error = 0;
    linux_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = hugepages_alloc(ARENA_SIZE);
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

    CHECK_EQUAL(hugepages_os_unmap(arenas[middle], ARENA_SIZE, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    memset(arenas[middle], 1, ARENA_SIZE);
    hugepages_free(arenas[middle], ARENA_SIZE);
    int calls = fake.mmap.calls;
    CHECK(hugepages_alloc(ARENA_SIZE) == arenas[middle]);
    CHECK_EQUAL(fake.mmap.calls, calls);
    /* A new one cannot be had, or merges with those that are there; either
       way quietly. */
    (void)hugepages_alloc(ARENA_SIZE);

    CHECK_EQUAL(munmap(filler, filler_size), 0);
    hugepages_free(arenas[middle], ARENA_SIZE);
    CHECK(is_unmapped(arenas[middle]));
}

static void
test_max_map_count(void)
{
    begin_test();
    run_in_child(free_without_mappings);
}

// --- tests: arena.c over os_linux.c ----------------------------------------

/* A pool of two, then transparent huge pages; chunks get neither. */
static void
use_arenas(void)
{
    enum { COUNT = 4 };
    void *arenas[COUNT];
    smaps_entry entry;
    linux_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    void *chunk = hugepages_alloc(16 * 1024);
    REQUIRE(chunk != NULL);
    CHECK_EQUAL(pool_available(), 2);
    REQUIRE(read_smaps(chunk, &entry) == 0);
    CHECK(!entry.advised_huge);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = hugepages_alloc(ARENA_SIZE);
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
        hugepages_free(arenas[i], ARENA_SIZE);
        CHECK(is_unmapped(arenas[i]));
    }
    CHECK_EQUAL(pool_available(), 2);
    hugepages_free(chunk, 16 * 1024);
    CHECK(is_unmapped(chunk));
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

const testhugepages_test testhugepages_linux_tests[] = {
    {"linux_scan", test_scan},
    {"linux_scan_without_sysfs", test_scan_without_sysfs},
    {"linux_scan_thp_disabled", test_scan_thp_disabled},
    {"linux_now", test_now},
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
    {"linux_cycles_plain", test_cycles_plain},
    {"linux_cycles_thp", test_cycles_thp},
    {"linux_cycles_thp_misaligned", test_cycles_thp_misaligned},
    {"linux_cycles_explicit", test_cycles_explicit},
    {"linux_max_map_count", test_max_map_count},
    {"linux_arenas", test_arenas},
    {NULL, NULL}
};
