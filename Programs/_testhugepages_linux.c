/* Tests of os_linux.c, and of arena.c over it.

   Each call of os_linux.c to the kernel goes through a function of this file,
   which makes the real call or fails with the error that the test wants.  What
   the kernel did is read from /proc/self/smaps and sysfs, not taken from what
   the code says of itself.

   As root the tests set up what they need (the huge-page pool, a cgroup) and
   restore what they found, also when they fail. */

#include "_testhugepages.h"

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
#include "../Include/internal/pycore_hugepages.h"
#include "../Objects/hugepages/arena.c"
#include "../Objects/hugepages/os_linux.c"
#undef mmap
#undef munmap
#undef madvise
#undef syscall
#undef open

/* A value of errno that no call sets: it must still be there after a call that
   is silent. */
#define UNTOUCHED 4711

static void
begin_test(void)
{
    memset(&fake, 0, sizeof(fake));
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    errno = UNTOUCHED;
}

// --- what the kernel says --------------------------------------------------

/* Read a file whole, but for what buffer does not hold, and end it with a NUL.
   Return 0, or -1 with errno set.  No memory is allocated, so that reading
   /proc/self does not change what is read. */
static int
read_file(const char *path, char *buffer, size_t size)
{
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t got;
    while (length < size - 1
           && (got = read(fd, buffer + length, size - 1 - length)) > 0)
    {
        length += (size_t)got;
    }
    (void)close(fd);
    buffer[length] = '\0';
    return 0;
}

static int
write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t written = write(fd, text, strlen(text));
    int saved_errno = errno;
    (void)close(fd);
    errno = saved_errno;
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

/* Read a number from a file; -1 if it cannot be read. */
static long
read_number(const char *path)
{
    char text[64];
    return read_file(path, text, sizeof(text)) < 0 ? -1
           : strtol(text, NULL, 10);
}

static int
write_number(const char *path, long number)
{
    char text[32];
    (void)snprintf(text, sizeof(text), "%ld", number);
    return write_file(path, text);
}

/* What /proc/self/smaps says of the mapping around an address. */
typedef struct {
    uintptr_t start;
    uintptr_t end;
    long kernel_page_kib;
    long private_hugetlb_kib;
    long anon_huge_kib;
    int advised_huge;
} smaps_entry;

/* Return 0 and fill the entry, or -1 if nothing is mapped there. */
static int
read_smaps(const void *address, smaps_entry *entry)
{
    static char text[4 << 20];
    if (read_file("/proc/self/smaps", text, sizeof(text)) < 0) {
        FAIL("/proc/self/smaps: %s", strerror(errno));
        return -1;
    }
    int found = 0;
    for (char *line = text, *next; line != NULL && *line != '\0'; line = next)
    {
        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }
        unsigned long start, end;
        long number;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            if (found) {
                break;
            }
            found = start <= (uintptr_t)address && (uintptr_t)address < end;
            memset(entry, 0, sizeof(*entry));
            entry->start = start;
            entry->end = end;
        }
        else if (sscanf(line, "KernelPageSize: %ld", &number) == 1) {
            entry->kernel_page_kib = number;
        }
        else if (sscanf(line, "Private_Hugetlb: %ld", &number) == 1) {
            entry->private_hugetlb_kib = number;
        }
        else if (sscanf(line, "AnonHugePages: %ld", &number) == 1) {
            entry->anon_huge_kib = number;
        }
        else if (strncmp(line, "VmFlags:", 8) == 0) {
            entry->advised_huge = strstr(line, " hg") != NULL;
        }
    }
    return found ? 0 : -1;
}

static int
is_unmapped(const void *address)
{
    smaps_entry entry;
    return read_smaps(address, &entry) < 0;
}

/* The address space of this process: number of mappings, and KiB. */
typedef struct {
    long mappings;
    long kib;
} address_space;

static address_space
read_address_space(void)
{
    static char text[4 << 20];
    address_space space = {0, -1};
    if (read_file("/proc/self/maps", text, sizeof(text)) == 0) {
        for (const char *line = text; *line != '\0'; line++) {
            space.mappings += (*line == '\n');
        }
    }
    if (read_file("/proc/self/status", text, sizeof(text)) == 0) {
        const char *line = strstr(text, "VmSize:");
        if (line != NULL) {
            space.kib = strtol(line + strlen("VmSize:"), NULL, 10);
        }
    }
    return space;
}

static void
check_no_leak(address_space before)
{
    address_space after = read_address_space();
    CHECK_EQUAL(after.mappings, before.mappings);
    CHECK_EQUAL(after.kib, before.kib);
}

/* Run function in a child process and take its failures over.  A signal is a
   failure. */
static void
run_in_child(void (*function)(void))
{
    (void)fflush(stdout);
    pid_t child = fork();
    if (child < 0) {
        FAIL("fork: %s", strerror(errno));
        return;
    }
    if (child == 0) {
        function();
        (void)fflush(stdout);
        _exit(test_failed());
    }
    int status;
    if (waitpid(child, &status, 0) != child) {
        FAIL("waitpid: %s", strerror(errno));
    }
    else if (WIFSIGNALED(status)) {
        FAIL("the child was ended by signal %d", WTERMSIG(status));
    }
    else if (WEXITSTATUS(status) != 0) {
        FAIL("failed in the child");
    }
}

// --- the pool of huge pages ------------------------------------------------

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static struct {
    int changed;
    long pages;
    long overcommit;
} saved_pool;

static const int fatal_signals[] = {
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGBUS, SIGSEGV, SIGILL, SIGFPE
};
#define FATAL_SIGNALS ((int)(sizeof(fatal_signals) / sizeof(fatal_signals[0])))
static struct sigaction saved_actions[FATAL_SIGNALS];

static void
restore_pool_files(void)
{
    (void)write_number(POOL "nr_overcommit_hugepages", saved_pool.overcommit);
    (void)write_number(POOL "nr_hugepages", saved_pool.pages);
}

static void
restore_pool_and_die(int signal_number)
{
    restore_pool_files();
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

static void
restore_pool(void)
{
    if (!saved_pool.changed) {
        return;
    }
    restore_pool_files();
    for (int i = 0; i < FATAL_SIGNALS; i++) {
        (void)sigaction(fatal_signals[i], &saved_actions[i], NULL);
    }
    saved_pool.changed = 0;
}

/* Huge pages that the next mmap() can have. */
static long
pool_available(void)
{
    return read_number(POOL "free_hugepages")
           - read_number(POOL "resv_hugepages");
}

/* Make exactly this many huge pages available.  Return 0, or -1 after the test
   was skipped or has failed.  restore_pool() must be called in both cases. */
static int
need_pool(long pages)
{
    static char reason[200];
    long total = read_number(POOL "nr_hugepages");
    long overcommit = read_number(POOL "nr_overcommit_hugepages");
    if (total < 0 || overcommit < 0) {
        test_skip("the kernel has no huge pages of 2 MiB");
        return -1;
    }
    if (pool_available() == pages && overcommit == 0) {
        return 0;
    }
    /* Writing the value that is there changes nothing, but tells whether the
       kernel lets us. */
    if (write_number(POOL "nr_hugepages", total) < 0) {
        (void)snprintf(reason, sizeof(reason),
                       "needs %ld free huge pages: cannot write "
                       POOL "nr_hugepages: %s", pages, strerror(errno));
        test_skip(reason);
        return -1;
    }
    saved_pool.pages = total;
    saved_pool.overcommit = overcommit;
    saved_pool.changed = 1;
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = restore_pool_and_die;
    for (int i = 0; i < FATAL_SIGNALS; i++) {
        (void)sigaction(fatal_signals[i], &action, &saved_actions[i]);
    }
    (void)write_number(POOL "nr_overcommit_hugepages", 0);
    long wanted = total - pool_available() + pages;
    (void)write_number(POOL "nr_hugepages", wanted);
    if (pool_available() < pages) {
        /* Memory may be too fragmented at first. */
        (void)write_number("/proc/sys/vm/compact_memory", 1);
        (void)write_number(POOL "nr_hugepages", wanted);
    }
    if (pool_available() != pages) {
        FAIL("%ld huge pages are available, not %ld", pool_available(), pages);
        return -1;
    }
    return 0;
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

/* One hugetlb page in memory, and nothing else. */
static void
check_hugetlb(const void *address)
{
    smaps_entry entry;
    if (read_smaps(address, &entry) < 0) {
        FAIL("%p is not mapped", address);
        return;
    }
    CHECK_EQUAL(entry.kernel_page_kib, 2048);
    CHECK_EQUAL(entry.private_hugetlb_kib, (entry.end - entry.start) / 1024);
}

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

static struct {
    char mount[64];
    char group[128];
    int mounted;
    int created;
    int controller_added;
} cgroup;

/* Name a file of a cgroup. */
static const char *
cgroup_file(const char *group, const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", group, name);
    return path;
}

/* Make a cgroup that may have no huge page.  Return 0, or -1 after the test
   was skipped.  remove_cgroup() must be called in both cases. */
static int
make_cgroup(void)
{
    static char reason[200];
    char controllers[1024];
    const char *what = "mkdtemp";
    memset(&cgroup, 0, sizeof(cgroup));
    (void)snprintf(cgroup.mount, sizeof(cgroup.mount),
                   "/tmp/testhugepages-XXXXXX");
    if (mkdtemp(cgroup.mount) == NULL) {
        cgroup.mount[0] = '\0';
        goto error;
    }
    what = "mount cgroup2";
    if (mount("none", cgroup.mount, "cgroup2", 0, NULL) != 0) {
        goto error;
    }
    cgroup.mounted = 1;
    what = "cgroup.controllers";
    if (read_file(cgroup_file(cgroup.mount, what), controllers,
                  sizeof(controllers)) < 0)
    {
        goto error;
    }
    if (strstr(controllers, "hugetlb") == NULL) {
        test_skip("the kernel has no hugetlb controller in cgroup v2");
        return -1;
    }
    what = "cgroup.subtree_control";
    if (read_file(cgroup_file(cgroup.mount, what), controllers,
                  sizeof(controllers)) < 0)
    {
        goto error;
    }
    if (strstr(controllers, "hugetlb") == NULL) {
        if (write_file(cgroup_file(cgroup.mount, what), "+hugetlb") < 0) {
            goto error;
        }
        cgroup.controller_added = 1;
    }
    (void)snprintf(cgroup.group, sizeof(cgroup.group), "%s/testhugepages-%ld",
                   cgroup.mount, (long)getpid());
    what = "mkdir";
    if (mkdir(cgroup.group, 0755) != 0) {
        goto error;
    }
    cgroup.created = 1;
    what = "hugetlb.2MB.max";
    if (write_number(cgroup_file(cgroup.group, what), 0) < 0) {
        goto error;
    }
    return 0;

error:
    (void)snprintf(reason, sizeof(reason), "needs a hugetlb cgroup: %s: %s",
                   what, strerror(errno));
    test_skip(reason);
    return -1;
}

static void
remove_cgroup(void)
{
    if (cgroup.created) {
        CHECK_EQUAL(rmdir(cgroup.group), 0);
    }
    if (cgroup.controller_added) {
        CHECK_EQUAL(write_file(cgroup_file(cgroup.mount,
                                           "cgroup.subtree_control"),
                               "-hugetlb"), 0);
    }
    if (cgroup.mounted) {
        CHECK_EQUAL(umount(cgroup.mount), 0);
    }
    if (cgroup.mount[0] != '\0') {
        CHECK_EQUAL(rmdir(cgroup.mount), 0);
    }
}

/* The pool has a page, which mmap() reserves; the fault that would be SIGBUS
   must be seen before anybody relies on the page. */
static void
map_over_limit(void)
{
    void *address = NULL;
    int os_error = 0;
    long available = pool_available();
    CHECK(available > 0);
    REQUIRE(write_number(cgroup_file(cgroup.group, "cgroup.procs"), 0) == 0);
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
    if (need_pool(2) == 0 && make_cgroup() == 0) {
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

/* Aligned, advised, and whole. */
static void
check_thp(const void *address)
{
    smaps_entry entry;
    CHECK_EQUAL((uintptr_t)address % ARENA_SIZE, 0);
    if (read_smaps(address, &entry) < 0) {
        FAIL("%p is not mapped", address);
        return;
    }
    CHECK(entry.advised_huge);
    CHECK(entry.end >= (uintptr_t)address + ARENA_SIZE);
}

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
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int os_error = 0;
    address_space before = read_address_space();
    for (size_t i = 0; i < CYCLES; i++) {
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

/* Use up the mappings that the process may have.  Return the memory that does
   so, whose size is *size. */
static void *
use_up_mappings(size_t *size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    long limit = read_number("/proc/sys/vm/max_map_count");
    *size = ((size_t)limit + 100) * page;
    char *memory = mmap(NULL, *size, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* Each makes one mapping into three, the last maybe into two. */
    for (size_t offset = page; offset < *size; offset += 2 * page) {
        if (mprotect(memory + offset, page, PROT_READ) != 0) {
            break;
        }
    }
    (void)mprotect(memory + *size - page, page, PROT_READ);
    return memory;
}

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
