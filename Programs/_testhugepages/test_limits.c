/* Tests of the core over os_linux.c where the system sets limits: each ends in
   the next tier or without memory, never in a signal, and nothing is lost.

   All calls are real.  Each test runs in a child process, so that it begins
   with the state of a new process, and its limits end with it.  What changes
   the machine for all others (where the pool has its pages, how memory is
   committed), or is not free while an init system uses it (cgroup v1,
   cpusets), is tested only where the tests have the machine for themselves. */

#define TEST_PREFIX limits
#define HUGEPAGES_KEEP_MOST 0
#include "core.h"
#include "machine.h"
#define ARENA_STRIDE 8
#include "arenas.h"

#include <limits.h>               // LONG_MAX
#include <signal.h>               // raise()

#include <linux/filter.h>         // struct sock_filter
#include <linux/mempolicy.h>      // MPOL_BIND
#include <linux/seccomp.h>        // struct seccomp_data
#include <sys/wait.h>             // waitpid()

#define TEST(name) TEST_CASE(name, ON_EACH_KERNEL, NULL, restore_machine)
#define MACHINE_TEST(name) TEST_CASE(name, OWN_MACHINE, NULL, restore_machine)

/* A child's program, and how many pages the pool is to have meanwhile. */
static void
run_with_pool(long pages, void (*function)(void))
{
    NEED_POOL(pages);
    run_in_child(function);
    CHECK_EQUAL(pool_available(), pages);
}

/* A test that is such a program. */
#define POOL_TEST(name, pages) \
    static void run_ ## name(void); \
    TEST(name) \
    { \
        run_with_pool(pages, run_ ## name); \
    } \
    static void \
    run_ ## name(void)

// --- arenas on hugetlb pages ------------------------------------------------

/* What each child begins with: it is as one that has never forked. */
static void
begin_arenas(void)
{
    hugepages_state.prefers_thp = 0;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
}

static int
count_explicit(void)
{
    int count = 0;
    for (int i = 0; i < arena_count; i++) {
        smaps_entry entry = read_smaps(arenas[i]);
        if (entry.kernel_page_kib == (long)(ARENA_SIZE / 1024)) {
            CHECK_EQUAL(entry.private_hugetlb_kib, entry.kernel_page_kib);
            count++;
        }
    }
    return count;
}

/* Add arenas, and check how many of all are on hugetlb pages then. */
static void
check_added(int count, long explicit_count)
{
    CHECK_EQUAL(add_arenas(count), count);
    CHECK_EQUAL(count_explicit(), explicit_count);
}

static void
check_and_free(void)
{
    check_arenas(0);
    free_arenas();
}

/* Nonzero: all can be moved to THP. */
static int expected_left = -1;

/* Fork, write to all arenas in both processes, and see that each has its own.
   None is on a hugetlb page then. */
static void
check_fork(void)
{
    (void)fflush(stdout);
    pid_t child = fork();
    const uint32_t generation = child == 0;
    REQUIRE(child >= 0);
    check_arenas(0);
    fill_arenas(generation);
    check_arenas(generation);
    if (child == 0) {
        test_end_child();
    }
    CHECK_EQUAL(wait_for(child), 0);
    check_arenas(0);
    CHECK_EQUAL(count_explicit() & expected_left, 0);
}

/* What happens wherever the pool is too small: some arenas are on hugetlb
   pages, the others are not, and a fork changes nothing of their content. */
static void
check_mix(int count, int explicit_count)
{
    const long available = pool_available();
    for (int round = 0; round < 2; round++) {
        begin_arenas();
        check_added(count, explicit_count);
        check_fork();
        check_and_free();
        CHECK_EQUAL(pool_available(), available);
    }
}

// --- hugetlb cgroups --------------------------------------------------------

enum { LIMITED_PAGES = 4, LIMITED_ARENAS = 30, UNLIMITED_PAGES = 64 };

/* The pool has more than enough. */
static void
check_hugetlb_cgroup(int version, const char *limit, const char *usage)
{
    NEED_POOL(UNLIMITED_PAGES);
    if (make_cgroup(version, "hugetlb", limit,
                    LIMITED_PAGES * (long)ARENA_SIZE) < 0)
    {
        return;
    }
    IN_CHILD {
        REQUIRE(join_cgroup() == 0);
        check_mix(LIMITED_ARENAS, LIMITED_PAGES);
    }
    CHECK_EQUAL(read_cgroup(usage), 0);
    CHECK_EQUAL(pool_available(), UNLIMITED_PAGES);
}

TEST_CALL(limits_cgroup_v2,
          check_hugetlb_cgroup(2, "hugetlb.2MB.max", "hugetlb.2MB.current"))

/* This limit is on what mmap() reserves. */
TEST_CALL(limits_cgroup_v2_reserved,
          check_hugetlb_cgroup(2, "hugetlb.2MB.rsvd.max",
                               "hugetlb.2MB.rsvd.current"))

MACHINE_TEST(limits_cgroup_v1)
{
    check_hugetlb_cgroup(1, "hugetlb.2MB.limit_in_bytes",
                         "hugetlb.2MB.usage_in_bytes");
}

MACHINE_TEST(limits_cgroup_v1_reserved)
{
    check_hugetlb_cgroup(1, "hugetlb.2MB.rsvd.limit_in_bytes",
                         "hugetlb.2MB.rsvd.usage_in_bytes");
}

// --- NUMA nodes -------------------------------------------------------------

#define NODE_POOL(node) \
    "/sys/devices/system/node/node" #node \
    "/hugepages/hugepages-2048kB/nr_hugepages"

/* The pool has its pages on node 1, from where function keeps itself away. */
static void
run_with_far_pool(long pages, void (*function)(void))
{
    if (write_number(NODE_POOL(1), pages) < 0
        || read_number(NODE_POOL(1)) != pages
        || read_number(NODE_POOL(0)) != 0)
    {
        FAIL("node 1 cannot have %ld huge pages: %s", pages, strerror(errno));
    }
    else {
        run_in_child(function);
        CHECK_EQUAL(pool_available(), pages);
    }
    (void)write_number(NODE_POOL(0), 0);
    (void)write_number(NODE_POOL(1), 0);
}

static void
check_near_arenas(int first)
{
    for (int i = first; i < arena_count; i++) {
        check_thp(arenas[i]);
    }
}

/* Without nodes for MPOL_DEFAULT. */
static int
set_policy(int mode, unsigned long nodes)
{
    return (int)syscall(SYS_set_mempolicy, mode, &nodes, 8 * sizeof(nodes));
}

static void
use_arenas_under_policy(void)
{
    begin_arenas();
    REQUIRE(set_policy(MPOL_BIND, 1UL << 0) == 0);
    check_added(4, 0);
    check_near_arenas(0);
    /* It was no refusal for good. */
    REQUIRE(set_policy(MPOL_DEFAULT, 0) == 0);
    check_added(2, 2);
    /* The forked child gets none that is near. */
    REQUIRE(set_policy(MPOL_BIND, 1UL << 0) == 0);
    check_fork();
    check_and_free();
}

MACHINE_TEST(limits_memory_policy)
{
    run_with_far_pool(4, use_arenas_under_policy);
}

static void
use_arenas_under_cpuset(void)
{
    begin_arenas();
    check_added(2, 2);
    /* The kernel tries to move what is on node 1. */
    REQUIRE(join_cgroup() == 0);
    check_arenas(0);
    check_added(4, 2);
    check_near_arenas(2);
    check_fork();
    check_and_free();
    begin_arenas();
    /* Newer kernels have moved the pages themselves. */
    const long near_pages = read_number(NODE_POOL(0));
    CHECK(near_pages == 0 || near_pages == 2);
    check_added(4, near_pages);
    check_near_arenas((int)near_pages);
    check_and_free();
}

MACHINE_TEST(limits_cpuset)
{
    const long node = 0;
    if (make_cgroup(2, "cpuset", "cpuset.mems", node) == 0) {
        run_with_far_pool(4, use_arenas_under_cpuset);
    }
}

// --- limits of the process --------------------------------------------------

/* What is not memory of arenas: the table of explicit arenas, and what the C
   library needs. */
#define SMALL_CHANGE ((rlim_t)256 << 10)

/* There is memory for this many arenas, and then there is none, each time. */
static void
check_exhaustion(int count, int explicit_count, int error)
{
    const long available = pool_available();
    begin_arenas();
    for (int round = 0; round < 3; round++) {
        CHECK_EQUAL(add_arenas(count + 1), count);
        CHECK_EQUAL(errno, error);
        CHECK_EQUAL(count_explicit(), explicit_count);
        check_and_free();
        CHECK_EQUAL(pool_available(), available);
    }
}

/* With room for two arenas more, a fork has all that it needs. */
static void
check_fork_below_limit(int count)
{
    CHECK_EQUAL(add_arenas(count - 2), count - 2);
    check_fork();
    check_and_free();
}

static void
check_size_limit(int resource, const char *size)
{
    enum { COUNT = 10, POOL_PAGES = 3 };
    begin_arenas();
    rlim_t used = (rlim_t)read_status(size) << 10;
    (void)set_limit(resource, used + COUNT * ARENA_SIZE + SMALL_CHANGE);
    check_exhaustion(COUNT, POOL_PAGES, ENOMEM);
    check_fork_below_limit(COUNT);
    check_exhaustion(COUNT, POOL_PAGES, ENOMEM);
}

POOL_TEST(limits_rlimit_as, 3)
{
    check_size_limit(RLIMIT_AS, "VmSize:");
}

POOL_TEST(limits_rlimit_data, 3)
{
    check_size_limit(RLIMIT_DATA, "VmData:");
}

/* As system calls: the C library's functions do nothing under the address
   sanitizer, whose terabytes cannot be locked, so not what there is now. */
static int
lock_memory(int flags)
{
#ifdef __SANITIZE_ADDRESS__
    flags &= ~MCL_CURRENT;
#endif
    return (int)syscall(SYS_mlockall, flags);
}

static void
limit_locked_memory(void)
{
    /* Less than the hard limit of most systems, 8 MiB. */
    enum { COUNT = 3, POOL_PAGES = 2 };
    const uid_t nobody = 65534;
    begin_arenas();
    CHECK_EQUAL(add_arenas(2), 2);
    REQUIRE(lock_memory(MCL_CURRENT | MCL_FUTURE) == 0);
    check_added(2, POOL_PAGES);
    check_fork();
    check_and_free();

    REQUIRE(syscall(SYS_munlockall) == 0);
    REQUIRE(lock_memory(MCL_FUTURE) == 0);
    CHECK_EQUAL(read_status("VmLck:"), 0);
    (void)set_limit(RLIMIT_MEMLOCK, COUNT * ARENA_SIZE + SMALL_CHANGE);
    /* Root has no such limit. */
    REQUIRE(setresuid(nobody, nobody, nobody) == 0);
    /* hugetlb pages do not count as locked, but must be below the limit when
       they are asked for. */
    check_exhaustion(COUNT + POOL_PAGES, POOL_PAGES, EAGAIN);
    /* Before Linux 6.7, what is to be aligned is twice as large at first. */
    check_fork_below_limit(COUNT + POOL_PAGES - 1);
    check_exhaustion(COUNT + POOL_PAGES, POOL_PAGES, EAGAIN);
}

TEST(limits_mlockall)
{
    if (getuid() != 0) {
        test_skip("needs root, to lock all memory");
        return;
    }
    run_with_pool(2, limit_locked_memory);
}

/* Every other one first: the kernel may have merged neighbours. */
static void
free_alternately(uint64_t **some, int count)
{
    for (int step = 0; step < 2; step++) {
        for (int i = step; i < count; i += 2) {
            free_arena(some[i]);
        }
    }
}

/* Arenas that are there without a mapping more, and what comes back of them,
   are whole. */
POOL_TEST(limits_mappings, 4)
{
    enum { COUNT = 16, POOL_PAGES = 4 };
    uint64_t *held[2 * COUNT];
    int held_count = 0;
    size_t filler_size;
    begin_arenas();
    address_space before = read_address_space();
    check_added(COUNT, POOL_PAGES);
    void *filler = use_up_mappings(&filler_size);
    REQUIRE(filler != NULL);

    for (int i = 0; i < COUNT; i++) {
        held[i] = (uint64_t *)alloc_arena();
        if (held[i] == NULL) {
            CHECK_EQUAL(errno, ENOMEM);
            break;
        }
        memset(held[i], i, ARENA_SIZE);
        held_count++;
    }
    free_alternately(held, held_count);
    check_arenas(0);
    free_alternately(arenas, arena_count);
    arena_count = 0;
    (void)add_arenas(COUNT);
    check_arenas(0);

    /* What could not be unmapped comes back to use, and can be now. */
    CHECK_EQUAL(munmap(filler, filler_size), 0);
    check_added(2 * COUNT, POOL_PAGES);
    check_fork();
    check_and_free();
    CHECK_EQUAL(pool_available(), POOL_PAGES);
    check_no_leak(before);
}

/* Strictly no overcommitment, and memory for some ten arenas. */
static void
limit_commitment(void)
{
    enum { POOL_PAGES = 3 };
    char text[8192];
    begin_arenas();
    /* First no limit: the kernel counts well only in this mode. */
    REQUIRE(write_number("/proc/sys/vm/overcommit_kbytes", LONG_MAX / 4096)
            == 0);
    REQUIRE(write_number("/proc/sys/vm/overcommit_memory", 2) == 0);
    REQUIRE(read_file("/proc/meminfo", text, sizeof(text)) == 0);
    const char *committed = strstr(text, "Committed_AS:");
    REQUIRE(committed != NULL);
    /* The kernel keeps a 32nd part of a process's size for the others. */
    long kib = strtol(committed + strlen("Committed_AS:"), NULL, 10)
               + read_status("VmSize:") / 32 + 10 * (long)(ARENA_SIZE / 1024);
    REQUIRE(write_number("/proc/sys/vm/overcommit_kbytes", kib) == 0);
    for (int round = 0; round < 3; round++) {
        int count = add_arenas(MAX_ARENAS);
        CHECK(count > POOL_PAGES);
        CHECK(count < MAX_ARENAS);
        CHECK_EQUAL(errno, ENOMEM);
        CHECK_EQUAL(count_explicit(), POOL_PAGES);
        check_and_free();
        CHECK_EQUAL(pool_available(), POOL_PAGES);
    }
}

MACHINE_TEST(limits_overcommit)
{
    long mode = read_number("/proc/sys/vm/overcommit_memory");
    long ratio = read_number("/proc/sys/vm/overcommit_ratio");
    run_with_pool(3, limit_commitment);
    CHECK_EQUAL(write_number("/proc/sys/vm/overcommit_memory", mode), 0);
    CHECK_EQUAL(write_number("/proc/sys/vm/overcommit_ratio", ratio), 0);
}

// --- a pool that others use -------------------------------------------------

/* Another process, which does something each time it is told to, and waits in
   between, stopped.  Return its number. */
static pid_t
start_other(void (*function)(void))
{
    (void)fflush(stdout);
    pid_t other = fork();
    if (other < 0) {
        /* kill(-1) would reach every process. */
        FAIL("no process: %s", strerror(errno));
        test_end_child();
    }
    if (other == 0) {
        /* It ends with the test, whatever that ends by. */
        (void)prctl(PR_SET_PDEATHSIG, (long)SIGKILL);
        (void)raise(SIGSTOP);
        function();
        test_end_child();
    }
    CHECK_EQUAL(waitpid(other, NULL, WUNTRACED), other);
    return other;
}

/* All huge pages that are available, or NULL if there are none. */
static void *
take_pool(size_t *size)
{
    *size = (size_t)pool_available() * ARENA_SIZE;
    if (*size == 0) {
        return NULL;
    }
    void *memory = mmap(NULL, *size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
                        | 21 << MAP_HUGE_SHIFT | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void
drain_pool(void)
{
    size_t size;
    CHECK(take_pool(&size) != NULL);
    (void)raise(SIGSTOP);
}

POOL_TEST(limits_pool_drained, 4)
{
    pid_t other = start_other(drain_pool);
    begin_arenas();
    check_added(2, 2);
    CHECK_EQUAL(kill(other, SIGCONT), 0);
    CHECK_EQUAL(waitpid(other, NULL, WUNTRACED), other);
    CHECK_EQUAL(pool_available(), 0);
    check_added(3, 2);
    check_fork();
    /* The two that are free again. */
    CHECK_EQUAL(pool_available(), 2);
    CHECK_EQUAL(kill(other, SIGCONT), 0);
    CHECK_EQUAL(wait_for(other), 0);
    CHECK_EQUAL(pool_available(), 4);
    begin_arenas();
    check_added(2, 2);
    check_and_free();
}

/* Take and give back, until it is killed. */
static void
compete_for_pool(void)
{
    while (!test_failed()) {
        size_t size;
        void *memory = take_pool(&size);
        if (memory != NULL) {
            CHECK_EQUAL(munmap(memory, size), 0);
        }
    }
}

POOL_TEST(limits_pool_contended, 4)
{
    pid_t other = start_other(compete_for_pool);
    CHECK_EQUAL(kill(other, SIGCONT), 0);
    for (int i = 0; i < 20; i++) {
        begin_arenas();
        CHECK_EQUAL(add_arenas(6), 6);
        if (i % 5 == 0) {
            check_fork();
        }
        check_and_free();
    }
    CHECK_EQUAL(kill(other, SIGKILL), 0);
    CHECK_EQUAL(wait_for(other), SIGKILL);
}

/* Root takes the pool away while its pages are in use: they stay until they
   are freed, and then leave. */
POOL_TEST(limits_pool_shrunk, 4)
{
    enum { POOL_PAGES = 4 };
    const long rest = read_number(POOL "nr_hugepages") - POOL_PAGES;
    begin_arenas();
    check_added(POOL_PAGES, POOL_PAGES);
    CHECK_EQUAL(write_number(POOL "nr_hugepages", rest), 0);
    CHECK_EQUAL(read_number(POOL "surplus_hugepages"), POOL_PAGES);
    check_arenas(0);
    check_added(2, POOL_PAGES);
    check_fork();
    check_and_free();
    begin_arenas();
    CHECK_EQUAL(read_number(POOL "nr_hugepages"), rest);
    CHECK_EQUAL(read_number(POOL "surplus_hugepages"), 0);
    CHECK_EQUAL(pool_available(), 0);
    check_added(2, 0);
    check_and_free();
    CHECK_EQUAL(write_number(POOL "nr_hugepages", rest + POOL_PAGES), 0);
}

// --- forbidden system calls -------------------------------------------------

typedef struct {
    /* The system call, and the bits of its fourth argument of which one must
       be there; 0: whatever it is. */
    unsigned int number;
    unsigned int flags;
    int error;
    /* How many arenas get hugetlb pages, and keep them at a fork; and whether
       the others get THP. */
    int explicit_count;
    int left;
    int thp;
} seccomp_case;

/* Let a system call fail from now on. */
static int
forbid(const seccomp_case *forbidden)
{
    enum { ALLOW = 5 };             // the last step
#define JUMP_TO(target, here) (unsigned char)((target) - (here) - 1)
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, forbidden->number,
                 0, JUMP_TO(ALLOW, 1)),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, forbidden->flags,
                 0, forbidden->flags == 0 ? 0 : JUMP_TO(ALLOW, 3)),
        BPF_STMT(BPF_RET | BPF_K,
                 SECCOMP_RET_ERRNO | (unsigned int)forbidden->error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
#undef JUMP_TO
    struct sock_fprog filter = {Py_ARRAY_LENGTH(program), program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) != 0) {
        return -1;
    }
    return prctl(PR_SET_SECCOMP, (long)SECCOMP_MODE_FILTER, &filter, 0L, 0L);
}

static void
use_arenas_without_call(const seccomp_case *current_case)
{
    REQUIRE(forbid(current_case) == 0);
    begin_arenas();
    check_added(4, current_case->explicit_count);
    for (int i = current_case->explicit_count; i < arena_count; i++) {
        CHECK_EQUAL(is_advised(arenas[i]), current_case->thp);
    }
    expected_left = 0;
    check_fork();
    CHECK_EQUAL(count_explicit(), current_case->left);
    check_and_free();
    CHECK_EQUAL(pool_available(), 2);
}

TEST(limits_seccomp)
{
    static const seccomp_case cases[] = {
        {SYS_madvise, 0, EPERM, 2, 2, 0},
        {SYS_madvise, 0, ENOSYS, 2, 2, 0},
        {SYS_mremap, 0, EPERM, 2, 0, 1},
        {SYS_mremap, 0, ENOSYS, 2, 0, 1},
        {SYS_prctl, 0, EPERM, 2, 0, 1},
        {SYS_rt_sigprocmask, 0, EPERM, 2, 0, 1},
#ifdef SYS_newfstatat
        {SYS_newfstatat, 0, EPERM, 2, 2, 1},
#endif
        {SYS_mmap, MAP_HUGETLB, EPERM, 0, 0, 1},
        {SYS_mmap, MAP_HUGETLB, ENOSYS, 0, 0, 1},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        /* Without this advice, pages are proved by that system call. */
        if (cases[i].number == SYS_rt_sigprocmask
            && madvise(NULL, 0, MADV_POPULATE_WRITE) != 0)
        {
            continue;
        }
        NEED_POOL(2);
        IN_CHILD {
            use_arenas_without_call(&cases[i]);
        }
        CHECK_EQUAL(pool_available(), 2);
        if (test_failed()) {
            FAIL("in case %zu", i);
            return;
        }
    }
}

/* As a program does that has secrets, and as a set-user-ID one is. */
POOL_TEST(limits_not_dumpable, 2)
{
    const uid_t nobody = 65534;
    if (getuid() == 0) {
        REQUIRE(setresuid(nobody, nobody, nobody) == 0);
    }
    REQUIRE(prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L) == 0);
    check_mix(4, 2);
}
