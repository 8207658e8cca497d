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
#include <sys/resource.h>         // setrlimit()
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

/* What an mremap() that fails leaves of the place that it was given. */
typedef enum {PLACE_IS_LEFT, PLACE_IS_UNMAPPED, PLACE_IS_TAKEN} place;

static struct {
    fault mmap;
    fault munmap;
    fault advise_populate;
    fault advise_huge;
    fault sigprocmask;
    fault open;
    fault mremap;
    place failed_mremap;
    void *taken;
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

/* The page of another thread that has it at once. */
static void
take_place(char *address, size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (fake.failed_mremap == PLACE_IS_LEFT) {
        return;
    }
    if (munmap(address, size) != 0) {
        FAIL("munmap: %s", strerror(errno));
    }
    if (fake.failed_mremap == PLACE_IS_TAKEN) {
        fake.taken = mmap(address + page, page, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
}

static void *
fake_mremap(void *address, size_t old_size, size_t new_size, int flags, ...)
{
    void *to = NULL;
    if (flags & MREMAP_FIXED) {
        va_list arguments;
        va_start(arguments, flags);
        to = va_arg(arguments, void *);
        va_end(arguments);
    }
    if (is_failing(&fake.mremap)) {
        if (to != NULL) {
            take_place((char *)to, new_size);
            errno = fake.mremap.error;
        }
        return MAP_FAILED;
    }
    return mremap(address, old_size, new_size, flags, to);
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
#define mremap fake_mremap
#define madvise fake_madvise
#define syscall fake_rt_sigprocmask
#define open fake_open
#define _PyMem_SetHugePages linux_set_huge_pages
#define _PyMem_GetHugePagesStats linux_get_stats
#define _PyMem_ReleaseHugePages linux_release
#define _PyMem_HugePagesCollected linux_collected
#include "_testhugepages_room.h"
#include "../Objects/hugepages/fork.c"
#include "../Objects/hugepages/os_linux.c"
#include "../Objects/hugepages/os_linux_fork.c"
#undef mmap
#undef munmap
#undef mremap
#undef madvise
#undef syscall
#undef open

static void
begin_test(void)
{
    memset(&fake, 0, sizeof(fake));
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    skip_first_arenas();
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

// --- tests: memory that is advised later, and resized ----------------------

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
    if (hugepages_os_map_aligned(size, ARENA_SIZE, &address, &os_error)
        != HUGEPAGES_OK)
    {
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

/* Is the page at an address advised? */
static int
is_advised(const void *address)
{
    smaps_entry entry;
    if (read_smaps(address, &entry) < 0) {
        FAIL("%p is not mapped", address);
        return 0;
    }
    return entry.advised_huge;
}

static void
map_aligned_sizes(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t sizes[] = {
        page, 5 * page, ARENA_SIZE - page, ARENA_SIZE, ARENA_SIZE + page,
        3 * ARENA_SIZE, 3 * ARENA_SIZE + 7 * page,
    };
    address_space before = read_address_space();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        errno = UNTOUCHED;
        void *address = map_aligned(sizes[i]);
        REQUIRE(address != NULL);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK(!is_advised(address));
        test_use_memory(address, sizes[i], ARENA_SIZE);
        address_space now = read_address_space();
        CHECK_EQUAL(now.kib, before.kib + (long)sizes[i] / 1024);
        unmap(address, sizes[i]);
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

/* A huge alignment is one like any other. */
static void
test_aligned_to_more(void)
{
    const size_t size = 3 * ARENA_SIZE, alignment = 16 * ARENA_SIZE;
    void *address = NULL;
    int os_error = 0;
    begin_test();
    address_space before = read_address_space();
    REQUIRE(hugepages_os_map_aligned(size, alignment, &address, &os_error)
            == HUGEPAGES_OK);
    test_use_memory(address, size, alignment);
    unmap(address, size);
    check_no_leak(before);
}

static void
test_aligned_each_call_fails(void)
{
    static const struct {
        int misalign;
        fault *kind;
        int fail_at;
    } cases[] = {
        {0, &fake.mmap, 1},
        {1, &fake.mmap, 1},
        {1, &fake.mmap, 2},
        {1, &fake.munmap, 2},
        {1, &fake.munmap, 3},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        fake.misalign = cases[i].misalign;
        cases[i].kind->fail_at = cases[i].fail_at;
        cases[i].kind->fail_count = 1;
        cases[i].kind->error = ENOMEM;
        address_space before = read_address_space();
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_map_aligned(3 * ARENA_SIZE, ARENA_SIZE,
                                             &address, &os_error),
                    HUGEPAGES_BUSY);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, ENOMEM);
        check_no_leak(before);
    }
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
        fake.advise_huge.fail_at = 1;
        fake.advise_huge.error = cases[i].error;
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                    cases[i].result);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, cases[i].error);
        test_use_memory(address, ARENA_SIZE, ARENA_SIZE);
        unmap(address, ARENA_SIZE);
    }
}

/* Base pages, whatever mode the system is in. */
static char *
map_base_pages(size_t size)
{
    char *address = (char *)map_aligned(size);
    if (address != NULL) {
        /* EINVAL where there are no huge pages. */
        (void)madvise(address, size, MADV_NOHUGEPAGE);
    }
    return address;
}

static size_t
resident_pages(const void *address, size_t size)
{
    size_t resident = SIZE_MAX;
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_resident(address, size, &resident),
                HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    return resident / (size_t)sysconf(_SC_PAGESIZE);
}

static void
test_resident(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    begin_test();
    char *address = map_base_pages(ARENA_SIZE);
    REQUIRE(address != NULL);
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), 0);
    address[0] = 1;
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), 1);
    address[7 * page] = 1;
    address[ARENA_SIZE - 1] = 1;
    address[ARENA_SIZE - 2] = 1;
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), 3);
    CHECK_EQUAL(resident_pages(address, 8 * page), 2);
    CHECK_EQUAL(resident_pages(address + page, 6 * page), 0);
    write_pages(address, ARENA_SIZE);
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), ARENA_SIZE / page);
    unmap(address, ARENA_SIZE);
}

/* More than an arena is not looked at, nor is what is not there. */
static void
test_resident_refused(void)
{
    size_t resident = 4711;
    begin_test();
    char *address = map_base_pages(2 * ARENA_SIZE);
    REQUIRE(address != NULL);
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_resident(address, 2 * ARENA_SIZE, &resident),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(resident, 4711);
    unmap(address, 2 * ARENA_SIZE);
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_resident(address, ARENA_SIZE, &resident),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(resident, 4711);
    CHECK_EQUAL(errno, UNTOUCHED);
}

/* Linux has it since 5.14; without, it does nothing. */
static void
test_fill(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    begin_test();
    char *address = map_base_pages(ARENA_SIZE);
    REQUIRE(address != NULL);
    address[8 * page] = 7;
    fake.advise_populate.fail_at = 2;
    fake.advise_populate.error = EINVAL;
    int is_known = madvise(address, page, MADV_POPULATE_WRITE) == 0;
    errno = UNTOUCHED;
    hugepages_os_fill(address + 4 * page, 8 * page);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), is_known ? 9 : 1);
    CHECK_EQUAL(address[8 * page], 7);
    hugepages_os_fill(address, ARENA_SIZE);
    CHECK_EQUAL(fake.advise_populate.calls, 2);
    CHECK_EQUAL(errno, UNTOUCHED);
    CHECK_EQUAL(resident_pages(address, ARENA_SIZE), is_known ? 9 : 1);
    address[8 * page] = 0;
    test_use_memory(address, ARENA_SIZE, ARENA_SIZE);
    unmap(address, ARENA_SIZE);
}

/* Map memory that cannot grow where it is, or that can; *behind is the page
   that keeps it from that, or NULL. */
static char *
map_with_neighbour(size_t size, int can_grow, void **behind)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = 16 * ARENA_SIZE;
    char *address = (char *)map_aligned(size + room);
    *behind = NULL;
    if (address == NULL) {
        return NULL;
    }
    /* There is nothing behind it from here on. */
    if (munmap(address + size, room) != 0) {
        FAIL("munmap: %s", strerror(errno));
    }
    if (!can_grow) {
        *behind = mmap(address + size, page, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (*behind != address + size) {
            FAIL("mmap: %s", strerror(errno));
        }
    }
    return address;
}

static void
unmap_neighbour(void *behind)
{
    if (behind != NULL) {
        CHECK_EQUAL(munmap(behind, (size_t)sysconf(_SC_PAGESIZE)), 0);
    }
}

/* Let memory of which so much is advised grow. */
static void
check_growth(size_t old_size, size_t new_size, int can_grow, int is_whole)
{
    void *behind, *resized = NULL;
    int os_error = 0;
    address_space before = read_address_space();
    char *address = map_with_neighbour(old_size, can_grow, &behind);
    REQUIRE(address != NULL);
    if (is_whole) {
        CHECK_EQUAL(hugepages_os_advise(address, old_size, &os_error),
                    HUGEPAGES_OK);
    }
    write_pages(address, old_size);
    errno = UNTOUCHED;
    REQUIRE(hugepages_os_resize(address, old_size, new_size, ARENA_SIZE,
                                &resized, &os_error) == HUGEPAGES_OK);
    CHECK_EQUAL(errno, UNTOUCHED);
    if (can_grow) {
        CHECK(resized == address);
    }
    else {
        CHECK(resized != address);
        CHECK(is_unmapped(address));
        CHECK(is_unmapped(address + old_size - 1));
        CHECK(!is_unmapped(behind));
    }
    CHECK_EQUAL((uintptr_t)resized % ARENA_SIZE, 0);
    check_pages(resized, old_size);
    test_use_memory((char *)resized + old_size, new_size - old_size, 1);
    CHECK_EQUAL(is_advised(resized), is_whole);
    CHECK_EQUAL(is_advised((char *)resized + new_size - 1), is_whole);
    unmap(resized, new_size);
    unmap_neighbour(behind);
    check_no_leak(before);
}

static void
check_all_growth(int can_grow)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int is_whole = 0; is_whole < 2; is_whole++) {
        check_growth(ARENA_SIZE, 2 * ARENA_SIZE, can_grow, is_whole);
        check_growth(2 * ARENA_SIZE, 7 * ARENA_SIZE, can_grow, is_whole);
    }
    check_growth(ARENA_SIZE, ARENA_SIZE + page, can_grow, 0);
    check_growth(ARENA_SIZE + page, 3 * ARENA_SIZE - page, can_grow, 0);
    check_growth(page, 5 * page, can_grow, 0);
}

static void
test_resize_in_place(void)
{
    begin_test();
    check_all_growth(1);
    CHECK_EQUAL(fake.mremap.calls, 7);
}

static void
test_resize_moved(void)
{
    begin_test();
    check_all_growth(0);
    CHECK_EQUAL(fake.mremap.calls, 14);
}

/* As before Linux 6.7, which does not align by itself. */
static void
test_resize_misaligned(void)
{
    begin_test();
    fake.misalign = 1;
    check_all_growth(0);
}

/* The end of a mapping goes, wherever its advice ends. */
static void
test_resize_shrinks(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    static const size_t advised[] = {0, 1, 2, 4};
    for (size_t i = 0; i < sizeof(advised) / sizeof(advised[0]); i++) {
        void *resized = NULL;
        int os_error = 0;
        begin_test();
        address_space before = read_address_space();
        char *address = (char *)map_aligned(4 * ARENA_SIZE);
        REQUIRE(address != NULL);
        if (advised[i] > 0) {
            CHECK_EQUAL(hugepages_os_advise(address, advised[i] * ARENA_SIZE,
                                            &os_error), HUGEPAGES_OK);
        }
        write_pages(address, 4 * ARENA_SIZE);
        errno = UNTOUCHED;
        for (size_t units = 3; units >= 1; units--) {
            REQUIRE(hugepages_os_resize(address, (units + 1) * ARENA_SIZE,
                                        units * ARENA_SIZE, ARENA_SIZE,
                                        &resized, &os_error) == HUGEPAGES_OK);
            CHECK(resized == address);
            CHECK(is_unmapped(address + units * ARENA_SIZE));
            check_pages(address, units * ARENA_SIZE);
        }
        REQUIRE(hugepages_os_resize(address, ARENA_SIZE, page, ARENA_SIZE,
                                    &resized, &os_error) == HUGEPAGES_OK);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK(is_unmapped(address + page));
        check_pages(address, page);
        unmap(address, page);
        check_no_leak(before);
    }
}

/* The kernel has made two mappings of what was advised in part, and resizes
   one only: nothing has changed then.  When all is advised they are one again,
   as the rest was written to before a part was advised. */
static void
check_partly_advised(size_t written)
{
    const size_t size = 3 * ARENA_SIZE, new_size = 5 * ARENA_SIZE;
    void *behind, *resized = NULL;
    int os_error = 0;
    address_space before = read_address_space();
    char *address = map_with_neighbour(size, 0, &behind);
    REQUIRE(address != NULL);
    address[ARENA_SIZE] = 0;
    CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    write_pages(address, written);
    errno = UNTOUCHED;
    CHECK_EQUAL(hugepages_os_resize(address, size, new_size, ARENA_SIZE,
                                    &resized, &os_error), HUGEPAGES_BUSY);
    CHECK_EQUAL(errno, UNTOUCHED);
    check_pages(address, written);
    CHECK_EQUAL(hugepages_os_advise(address, size, &os_error), HUGEPAGES_OK);
    REQUIRE(hugepages_os_resize(address, size, new_size, ARENA_SIZE,
                                &resized, &os_error) == HUGEPAGES_OK);
    check_pages(resized, written);
    CHECK(is_advised((char *)resized + new_size - 1));
    unmap(resized, new_size);
    unmap_neighbour(behind);
    check_no_leak(before);
}

static void
test_resize_partly_advised(void)
{
    begin_test();
    check_partly_advised(0);
    check_partly_advised(ARENA_SIZE);
    check_partly_advised(3 * ARENA_SIZE);
}

/* Whatever fails, and whatever that leaves of the new place. */
static void
test_resize_each_call_fails(void)
{
    static const struct {
        fault *kind;
        int fail_at;
        place failed_mremap;
        int misalign;
    } cases[] = {
        {&fake.mmap, 1, PLACE_IS_LEFT, 0},
        {&fake.mmap, 2, PLACE_IS_LEFT, 1},
        {&fake.munmap, 2, PLACE_IS_LEFT, 1},
        {&fake.munmap, 3, PLACE_IS_LEFT, 1},
        {&fake.mremap, 2, PLACE_IS_LEFT, 0},
        {&fake.mremap, 2, PLACE_IS_UNMAPPED, 0},
        {&fake.mremap, 2, PLACE_IS_TAKEN, 0},
    };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t size = 2 * ARENA_SIZE;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *behind, *resized = NULL;
        int os_error = 0;
        begin_test();
        char *address = map_with_neighbour(size, 0, &behind);
        REQUIRE(address != NULL);
        write_pages(address, size);
        address_space before = read_address_space();
        memset(&fake, 0, sizeof(fake));
        fake.misalign = cases[i].misalign;
        cases[i].kind->fail_at = cases[i].fail_at;
        cases[i].kind->fail_count = 1;
        cases[i].kind->error = ENOMEM;
        fake.failed_mremap = cases[i].failed_mremap;
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_resize(address, size, 3 * size, ARENA_SIZE,
                                        &resized, &os_error), HUGEPAGES_BUSY);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, ENOMEM);
        if (fake.taken != NULL) {
            CHECK(!is_unmapped(fake.taken));
            CHECK_EQUAL(munmap(fake.taken, page), 0);
        }
        check_no_leak(before);
        check_pages(address, size);
        memset(&fake, 0, sizeof(fake));
        unmap(address, size);
        unmap_neighbour(behind);
        if (test_failed()) {
            FAIL("in case %zu", i);
            return;
        }
    }

    /* What cannot be made smaller is not moved. */
    begin_test();
    int os_error = 0;
    void *resized = NULL;
    void *address = map_aligned(size);
    REQUIRE(address != NULL);
    fake.mremap.fail_at = 1;
    fake.mremap.error = ENOMEM;
    write_pages(address, size);
    CHECK_EQUAL(hugepages_os_resize(address, size, ARENA_SIZE, ARENA_SIZE,
                                    &resized, &os_error), HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK_EQUAL(fake.mremap.calls, 1);
    check_pages(address, size);
    unmap(address, size);
}

/* Real limits: that on the address space keeps the new place from being had;
   that on data is met when the place is there. */
static void
resize_at_limit(int is_data, int can_grow)
{
    const size_t size = 2 * ARENA_SIZE;
    void *behind, *resized = NULL;
    int os_error = 0;
    struct rlimit limit;
    char *address = map_with_neighbour(size, can_grow, &behind);
    REQUIRE(address != NULL);
    write_pages(address, size);
    address_space before = read_address_space();
    REQUIRE((is_data ? getrlimit(RLIMIT_DATA, &limit)
                     : getrlimit(RLIMIT_AS, &limit)) == 0);
    limit.rlim_cur = ((rlim_t)(is_data ? read_status("VmData:") : before.kib)
                      << 10) + ARENA_SIZE;
    REQUIRE((is_data ? setrlimit(RLIMIT_DATA, &limit)
                     : setrlimit(RLIMIT_AS, &limit)) == 0);
    for (int i = 0; i < 3; i++) {
        errno = UNTOUCHED;
        CHECK_EQUAL(hugepages_os_resize(address, size, 2 * size, ARENA_SIZE,
                                        &resized, &os_error), HUGEPAGES_BUSY);
        CHECK_EQUAL(errno, UNTOUCHED);
        CHECK_EQUAL(os_error, ENOMEM);
        check_no_leak(before);
        check_pages(address, size);
    }
    /* There is room for half of it. */
    if (can_grow) {
        CHECK_EQUAL(hugepages_os_resize(address, size, size + ARENA_SIZE,
                                        ARENA_SIZE, &resized, &os_error),
                    HUGEPAGES_OK);
        CHECK(resized == address);
    }
}

static void
resize_at_limits(void)
{
    resize_at_limit(0, 0);
}

static void
resize_at_limits_in_place(void)
{
    resize_at_limit(0, 1);
}

static void
resize_at_data_limit(void)
{
    resize_at_limit(1, 0);
}

static void
resize_at_data_limit_in_place(void)
{
    resize_at_limit(1, 1);
}

static void
test_resize_at_limit(void)
{
    begin_test();
    run_in_child(resize_at_limits);
    run_in_child(resize_at_limits_in_place);
    run_in_child(resize_at_data_limit);
    run_in_child(resize_at_data_limit_in_place);
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

/* Sizes that go up and down, with others between, so that some move. */
static void
check_resize_cycles(void)
{
    enum { HELD = 4 };
    char *memory[HELD];
    size_t sizes[HELD];
    int os_error = 0;
    uint32_t state = test_seed;
    address_space before = read_address_space();
    for (int i = 0; i < HELD; i++) {
        sizes[i] = ARENA_SIZE;
        memory[i] = (char *)map_aligned(ARENA_SIZE);
        REQUIRE(memory[i] != NULL);
        memory[i][0] = (char)i;
    }
    for (int i = 0; i < test_rounds(1000); i++) {
        uint32_t number = test_random(&state);
        uint32_t which = number % HELD;
        size_t new_size = (number / 16 % 16 + 1) * ARENA_SIZE;
        void *resized = NULL;
        if (new_size == sizes[which]) {
            continue;
        }
        REQUIRE(hugepages_os_resize(memory[which], sizes[which], new_size,
                                    ARENA_SIZE, &resized, &os_error)
                == HUGEPAGES_OK);
        memory[which] = (char *)resized;
        sizes[which] = new_size;
        CHECK_EQUAL((uintptr_t)resized % ARENA_SIZE, 0);
        CHECK_EQUAL(memory[which][0], which);
        memory[which][new_size - 1] = 1;
    }
    for (int i = 0; i < HELD; i++) {
        CHECK_EQUAL(hugepages_os_unmap(memory[i], sizes[i], &os_error),
                    HUGEPAGES_OK);
    }
    check_no_leak(before);
}

static void
test_cycles_resize(void)
{
    begin_test();
    check_resize_cycles();
}

static void
test_cycles_resize_misaligned(void)
{
    begin_test();
    fake.misalign = 1;
    check_resize_cycles();
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

/* The first arenas are plain memory until one more is there. */
static void
use_first_arenas(void)
{
    enum { MOST = 16 };
    const int first = (int)hugepages_first_count[HUGEPAGES_FOR_POOLS];
    void *arenas[MOST];
    memset(hugepages_state.used, 0, sizeof(hugepages_state.used));
    linux_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < first; i++) {
        arenas[i] = hugepages_alloc(ARENA_SIZE);
        REQUIRE(arenas[i] != NULL);
        CHECK_EQUAL((uintptr_t)arenas[i] % ARENA_SIZE, 0);
        CHECK(!is_advised(arenas[i]));
        write_pages(arenas[i], ARENA_SIZE);
    }
    arenas[first] = hugepages_alloc(ARENA_SIZE);
    REQUIRE(arenas[first] != NULL);
    for (int i = 0; i <= first; i++) {
        check_thp(arenas[i]);
        if (i < first) {
            check_pages(arenas[i], ARENA_SIZE);
        }
        hugepages_free(arenas[i], ARENA_SIZE);
        CHECK(is_unmapped(arenas[i]));
    }
}

static void
test_first_arenas(void)
{
    begin_test();
    run_in_child(use_first_arenas);
}

/* As a list grows and shrinks. */
static void
use_blocks(void)
{
    linux_set_huge_pages(PYMALLOC_HUGEPAGES_THP);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t most = 20 * ARENA_SIZE;
    void *medium = hugepages_block_malloc(page);
    char *list = (char *)hugepages_block_malloc(page);
    REQUIRE(medium != NULL && list != NULL);
    address_space before = read_address_space();
    size_t size = page;
    write_pages(list, size);
    while (size < most) {
        size_t new_size = (size + size / 8 + page) / page * page;
        list = (char *)hugepages_block_realloc(list, new_size);
        REQUIRE(list != NULL);
        check_pages(list, size);
        write_pages(list, new_size);
        size = new_size;
    }
    CHECK_EQUAL(hugepages_unit_of(list), HUGEPAGES_UNIT_LARGE);
    CHECK(is_advised(list));
    CHECK(is_advised(list + size - 1));
    while (size > page) {
        size = size / 2 / page * page;
        list = (char *)hugepages_block_realloc(list, size);
        REQUIRE(list != NULL);
        check_pages(list, size);
    }
    CHECK(hugepages_stats[HUGEPAGES_LARGE].now == 0);
    /* An arena of the dense heap and the leaves of the tree may have come. */
    address_space after = read_address_space();
    CHECK(after.kib <= before.kib + 2 * (long)ARENA_SIZE / 1024);
    hugepages_block_free(list);
    hugepages_block_free(medium);
}

static void
test_blocks(void)
{
    begin_test();
    run_in_child(use_blocks);
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
    {"linux_aligned", test_aligned},
    {"linux_aligned_misaligned", test_aligned_misaligned},
    {"linux_aligned_to_more", test_aligned_to_more},
    {"linux_aligned_each_call_fails", test_aligned_each_call_fails},
    {"linux_advise", test_advise},
    {"linux_advise_refused", test_advise_refused},
    {"linux_resident", test_resident},
    {"linux_resident_refused", test_resident_refused},
    {"linux_fill", test_fill},
    {"linux_resize_in_place", test_resize_in_place},
    {"linux_resize_moved", test_resize_moved},
    {"linux_resize_misaligned", test_resize_misaligned},
    {"linux_resize_shrinks", test_resize_shrinks},
    {"linux_resize_partly_advised", test_resize_partly_advised},
    {"linux_resize_each_call_fails", test_resize_each_call_fails},
    {"linux_resize_at_limit", test_resize_at_limit},
    {"linux_cycles_plain", test_cycles_plain},
    {"linux_cycles_thp", test_cycles_thp},
    {"linux_cycles_thp_misaligned", test_cycles_thp_misaligned},
    {"linux_cycles_resize", test_cycles_resize},
    {"linux_cycles_resize_misaligned", test_cycles_resize_misaligned},
    {"linux_cycles_explicit", test_cycles_explicit},
    {"linux_max_map_count", test_max_map_count},
    {"linux_arenas", test_arenas},
    {"linux_first_arenas", test_first_arenas},
    {"linux_blocks", test_blocks},
    {NULL, NULL}
};
