/* Tests of the core over os_linux.c where the system sets limits: each ends in
   the next tier or without memory, never in a signal, and nothing is lost.

   All calls are real.  Each test runs in a child process, so that it begins
   with the state of a new process, and its limits end with it.  What changes
   the machine for all others (where the pool has its pages, how memory is
   committed), or cannot be had while an init system uses it (cgroup v1,
   cpusets), is tested only where the tests have the machine for themselves. */

#define TEST_PREFIX limits
#define HUGEPAGES_KEEP_MOST 0
#include "_testhugepages_core.h"
#include "_testhugepages_system.h"

#include <limits.h>               // LONG_MAX

#include <linux/filter.h>         // struct sock_filter
#include <linux/mempolicy.h>      // MPOL_BIND
#include <linux/seccomp.h>        // struct seccomp_data
#include <sys/resource.h>         // setrlimit()
#include <sys/stat.h>             // mkdir()
#include <sys/wait.h>             // waitpid()

/* A child's program, and how many pages the pool is to have meanwhile. */
static void
run_with_pool(long pages, void (*function)(void))
{
    if (need_pool(pages) == 0) {
        run_in_child(function);
        CHECK_EQUAL(pool_available(), pages);
    }
    restore_pool();
}

// --- arenas with content ---------------------------------------------------

enum { MAX_ARENAS = 128 };
static unsigned char *arenas[MAX_ARENAS];
static int arena_count;

/* The pattern of an arena: another one for each, and for each writer.  One
   word of each cache line has it. */
enum { LINE_WORDS = 8 };

static uint64_t
arena_word(int index, int writer, size_t word)
{
    return (uint64_t)(unsigned int)(writer * MAX_ARENAS + index + 1)
           * UINT64_C(0x9E3779B97F4A7C15) + word;
}

static void
write_arena(int index, int writer)
{
    uint64_t *words = (uint64_t *)(void *)arenas[index];
    for (size_t i = 0; i < ARENA_SIZE / sizeof(*words); i += LINE_WORDS) {
        words[i] = arena_word(index, writer, i);
    }
}

static void
check_arena(int index, int writer)
{
    const uint64_t *words = (const uint64_t *)(const void *)arenas[index];
    for (size_t i = 0; i < ARENA_SIZE / sizeof(*words); i += LINE_WORDS) {
        if (words[i] != arena_word(index, writer, i)) {
            FAIL("arena %d has lost what was written", index);
            return;
        }
    }
}

/* What each child begins with: it is as one that has never forked. */
static void
begin_arenas(void)
{
    hugepages_state.prefers_thp = 0;
    limits_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
}

/* Allocate so many arenas more, or as many as there are, and write to each.
   Return how many were had. */
static int
add_arenas(int count)
{
    for (int i = 0; i < count && arena_count < MAX_ARENAS; i++) {
        unsigned char *arena = limits_alloc(NULL, ARENA_SIZE);
        if (arena == NULL) {
            return i;
        }
        arenas[arena_count++] = arena;
        write_arena(arena_count - 1, 0);
    }
    return count;
}

static void
check_arenas(int writer)
{
    for (int i = 0; i < arena_count; i++) {
        check_arena(i, writer);
    }
}

static void
free_arenas(void)
{
    check_arenas(0);
    while (arena_count > 0) {
        limits_free(NULL, arenas[--arena_count], ARENA_SIZE);
    }
}

/* How many arenas are on hugetlb pages. */
static int
count_explicit(void)
{
    int count = 0;
    for (int i = 0; i < arena_count; i++) {
        smaps_entry entry;
        if (read_smaps(arenas[i], &entry) == 0
            && entry.kernel_page_kib == (long)(ARENA_SIZE / 1024))
        {
            CHECK_EQUAL(entry.private_hugetlb_kib, entry.kernel_page_kib);
            count++;
        }
    }
    return count;
}

/* Fork, write to all arenas in both processes, and see that each has its own.
   None is on a hugetlb page then. */
/* Nonzero: all can be moved to THP. */
static int expected_left = -1;

static void
check_fork(void)
{
    (void)fflush(stdout);
    pid_t child = fork();
    if (child < 0) {
        FAIL("fork: %s", strerror(errno));
        return;
    }
    const int writer = child == 0;
    check_arenas(0);
    for (int i = 0; i < arena_count; i++) {
        write_arena(i, writer);
    }
    check_arenas(writer);
    if (child == 0) {
        (void)fflush(stdout);
        _exit(test_failed());
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    if (status != 0) {
        FAIL("the forked child ended with status %#x", (unsigned int)status);
    }
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
        CHECK_EQUAL(add_arenas(count), count);
        CHECK_EQUAL(count_explicit(), explicit_count);
        check_fork();
        free_arenas();
        CHECK_EQUAL(pool_available(), available);
    }
}

// --- hugetlb cgroups -------------------------------------------------------

enum { LIMITED_PAGES = 4, LIMITED_ARENAS = 30, UNLIMITED_PAGES = 64 };

static void
use_limited_arenas(void)
{
    REQUIRE(join_cgroup() == 0);
    check_mix(LIMITED_ARENAS, LIMITED_PAGES);
}

/* The pool has more than enough. */
static void
check_hugetlb_cgroup(int version, const char *limit, const char *usage)
{
    if (need_pool(UNLIMITED_PAGES) == 0
        && make_cgroup(version, "hugetlb", limit,
                       LIMITED_PAGES * (long)ARENA_SIZE) == 0)
    {
        run_in_child(use_limited_arenas);
        CHECK_EQUAL(read_cgroup(usage), 0);
        CHECK_EQUAL(pool_available(), UNLIMITED_PAGES);
    }
    remove_cgroup();
    restore_pool();
}

static void
test_cgroup_v2(void)
{
    check_hugetlb_cgroup(2, "hugetlb.2MB.max", "hugetlb.2MB.current");
}

/* This limit is on what mmap() reserves. */
static void
test_cgroup_v2_reserved(void)
{
    check_hugetlb_cgroup(2, "hugetlb.2MB.rsvd.max",
                         "hugetlb.2MB.rsvd.current");
}

static void
test_cgroup_v1(void)
{
    check_hugetlb_cgroup(1, "hugetlb.2MB.limit_in_bytes",
                         "hugetlb.2MB.usage_in_bytes");
}

static void
test_cgroup_v1_reserved(void)
{
    check_hugetlb_cgroup(1, "hugetlb.2MB.rsvd.limit_in_bytes",
                         "hugetlb.2MB.rsvd.usage_in_bytes");
}

// --- NUMA nodes ------------------------------------------------------------

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

static int
set_policy(int mode, unsigned long nodes)
{
    const unsigned long node_count = nodes == 0 ? 0 : 8 * sizeof(nodes);
    return (int)syscall(SYS_set_mempolicy, mode, nodes == 0 ? NULL : &nodes,
                        node_count);
}

static void
use_arenas_under_policy(void)
{
    begin_arenas();
    REQUIRE(set_policy(MPOL_BIND, 1UL << 0) == 0);
    CHECK_EQUAL(add_arenas(4), 4);
    CHECK_EQUAL(count_explicit(), 0);
    check_near_arenas(0);
    /* It was no refusal for good. */
    REQUIRE(set_policy(MPOL_DEFAULT, 0) == 0);
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), 2);
    /* The forked child gets none that is near. */
    REQUIRE(set_policy(MPOL_BIND, 1UL << 0) == 0);
    check_fork();
    free_arenas();
}

static void
test_memory_policy(void)
{
    run_with_far_pool(4, use_arenas_under_policy);
}

static void
use_arenas_under_cpuset(void)
{
    begin_arenas();
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), 2);
    /* The kernel tries to move what is on node 1. */
    REQUIRE(join_cgroup() == 0);
    check_arenas(0);
    CHECK_EQUAL(add_arenas(4), 4);
    CHECK_EQUAL(count_explicit(), 2);
    check_near_arenas(2);
    check_fork();
    free_arenas();
    begin_arenas();
    /* Newer kernels have moved the pages themselves. */
    const long near_pages = read_number(NODE_POOL(0));
    CHECK(near_pages == 0 || near_pages == 2);
    CHECK_EQUAL(add_arenas(4), 4);
    CHECK_EQUAL(count_explicit(), near_pages);
    check_near_arenas((int)near_pages);
    free_arenas();
}

static void
test_cpuset(void)
{
    const long node = 0;
    if (make_cgroup(2, "cpuset", "cpuset.mems", node) == 0) {
        run_with_far_pool(4, use_arenas_under_cpuset);
    }
    remove_cgroup();
}

// --- limits of the process -------------------------------------------------

/* What is not memory of arenas: the table of explicit arenas, and what the C
   library needs. */
#define SMALL_CHANGE ((rlim_t)256 << 10)

#ifdef __USE_GNU
typedef enum __rlimit_resource resource_number;
#else
typedef int resource_number;
#endif

static int
set_limit(resource_number resource, rlim_t bytes)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0) {
        return -1;
    }
    limit.rlim_cur = bytes;
    /* As root, this may be more than there was. */
    if (limit.rlim_max < bytes) {
        limit.rlim_max = bytes;
    }
    return setrlimit(resource, &limit);
}

/* There is memory for so many arenas, and then there is none, each time. */
static void
check_exhaustion(int count, int explicit_count, int error)
{
    const long available = pool_available();
    begin_arenas();
    for (int round = 0; round < 3; round++) {
        CHECK_EQUAL(add_arenas(count + 1), count);
        CHECK_EQUAL(errno, error);
        CHECK_EQUAL(count_explicit(), explicit_count);
        check_arenas(0);
        free_arenas();
        CHECK_EQUAL(pool_available(), available);
    }
}

/* With room for two arenas more, a fork has all that it needs. */
static void
check_fork_below_limit(int count)
{
    CHECK_EQUAL(add_arenas(count - 2), count - 2);
    check_fork();
    free_arenas();
}

static void
check_size_limit(resource_number resource, const char *size)
{
    enum { COUNT = 10, POOL_PAGES = 3 };
    begin_arenas();
    rlim_t used = (rlim_t)read_status(size) << 10;
    REQUIRE(set_limit(resource, used + COUNT * ARENA_SIZE + SMALL_CHANGE)
            == 0);
    check_exhaustion(COUNT, POOL_PAGES, ENOMEM);
    check_fork_below_limit(COUNT);
    check_exhaustion(COUNT, POOL_PAGES, ENOMEM);
}

static void
limit_address_space(void)
{
    check_size_limit(RLIMIT_AS, "VmSize:");
}

static void
test_rlimit_as(void)
{
    run_with_pool(3, limit_address_space);
}

static void
limit_data(void)
{
    check_size_limit(RLIMIT_DATA, "VmData:");
}

static void
test_rlimit_data(void)
{
    run_with_pool(3, limit_data);
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
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), POOL_PAGES);
    check_fork();
    free_arenas();

    REQUIRE(syscall(SYS_munlockall) == 0);
    REQUIRE(lock_memory(MCL_FUTURE) == 0);
    CHECK_EQUAL(read_status("VmLck:"), 0);
    REQUIRE(set_limit(RLIMIT_MEMLOCK, COUNT * ARENA_SIZE + SMALL_CHANGE) == 0);
    /* Root has no such limit. */
    REQUIRE(setresuid(nobody, nobody, nobody) == 0);
    /* hugetlb pages do not count as locked, but must be below the limit when
       they are asked for. */
    check_exhaustion(COUNT + POOL_PAGES, POOL_PAGES, EAGAIN);
    /* Before Linux 6.7, what is to be aligned is twice as large at first. */
    check_fork_below_limit(COUNT + POOL_PAGES - 1);
    check_exhaustion(COUNT + POOL_PAGES, POOL_PAGES, EAGAIN);
}

static void
test_mlockall(void)
{
    if (getuid() != 0) {
        test_skip("needs root, to lock all memory");
        return;
    }
    run_with_pool(2, limit_locked_memory);
}

/* What can be had without mappings, and what comes back from it, is whole. */
static void
limit_mappings(void)
{
    enum { COUNT = 16, POOL_PAGES = 4 };
    void *held[2 * COUNT];
    int held_count = 0;
    size_t filler_size;
    begin_arenas();
    address_space before = read_address_space();
    CHECK_EQUAL(add_arenas(COUNT), COUNT);
    CHECK_EQUAL(count_explicit(), POOL_PAGES);
    void *filler = use_up_mappings(&filler_size);
    REQUIRE(filler != NULL);

    for (int i = 0; i < COUNT; i++) {
        held[i] = limits_alloc(NULL, ARENA_SIZE);
        if (held[i] == NULL) {
            CHECK_EQUAL(errno, ENOMEM);
            break;
        }
        memset(held[i], i, ARENA_SIZE);
        held_count++;
    }
    /* Every other one first: the kernel may have merged neighbours. */
    for (int step = 0; step < 2; step++) {
        for (int i = step; i < held_count; i += 2) {
            limits_free(NULL, held[i], ARENA_SIZE);
        }
    }
    check_arenas(0);
    for (int step = 0; step < 2; step++) {
        for (int i = step; i < arena_count; i += 2) {
            limits_free(NULL, arenas[i], ARENA_SIZE);
        }
    }
    arena_count = 0;
    (void)add_arenas(COUNT);
    check_arenas(0);

    /* What could not be unmapped comes back to use, and can be now. */
    CHECK_EQUAL(munmap(filler, filler_size), 0);
    CHECK_EQUAL(add_arenas(2 * COUNT), 2 * COUNT);
    CHECK_EQUAL(count_explicit(), POOL_PAGES);
    check_fork();
    free_arenas();
    CHECK_EQUAL(pool_available(), POOL_PAGES);
    check_no_leak(before);
}

static void
test_mappings(void)
{
    run_with_pool(4, limit_mappings);
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
        free_arenas();
        CHECK_EQUAL(pool_available(), POOL_PAGES);
    }
}

static void
test_overcommit(void)
{
    long mode = read_number("/proc/sys/vm/overcommit_memory");
    long ratio = read_number("/proc/sys/vm/overcommit_ratio");
    run_with_pool(3, limit_commitment);
    CHECK_EQUAL(write_number("/proc/sys/vm/overcommit_memory", mode), 0);
    CHECK_EQUAL(write_number("/proc/sys/vm/overcommit_ratio", ratio), 0);
}

// --- a pool that others use ------------------------------------------------

/* Another process, which does one thing after another: each when it is told,
   and it says when that is done. */
typedef struct {
    pid_t pid;
    int to;
    int from;
} other_process;

/* Return 0, or -1 after the test has failed. */
static int
start_other(other_process *other, void (*function)(int from, int to))
{
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) {
        FAIL("pipe: %s", strerror(errno));
        return -1;
    }
    (void)fflush(stdout);
    other->pid = fork();
    if (other->pid == 0) {
        (void)close(to[1]);
        (void)close(from[0]);
        function(to[0], from[1]);
        (void)fflush(stdout);
        _exit(test_failed());
    }
    (void)close(to[0]);
    (void)close(from[1]);
    other->to = to[1];
    other->from = from[0];
    if (other->pid < 0) {
        FAIL("fork: %s", strerror(errno));
        return -1;
    }
    return 0;
}

static void
tell_other(other_process *other)
{
    char byte = 0;
    CHECK_EQUAL(write(other->to, &byte, 1), 1);
    CHECK_EQUAL(read(other->from, &byte, 1), 1);
}

static void
end_other(other_process *other)
{
    int status;
    (void)close(other->to);
    CHECK_EQUAL(waitpid(other->pid, &status, 0), other->pid);
    CHECK_EQUAL(status, 0);
    (void)close(other->from);
}

/* All huge pages that are to be had, or NULL if there are none. */
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
drain_pool(int from, int to)
{
    char byte;
    size_t size;
    CHECK_EQUAL(read(from, &byte, 1), 1);
    CHECK(take_pool(&size) != NULL);
    CHECK_EQUAL(write(to, &byte, 1), 1);
    /* Until the other end is closed. */
    CHECK_EQUAL(read(from, &byte, 1), 0);
}

static void
use_drained_pool(void)
{
    other_process other;
    if (start_other(&other, drain_pool) < 0) {
        return;
    }
    begin_arenas();
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), 2);
    tell_other(&other);
    CHECK_EQUAL(pool_available(), 0);
    CHECK_EQUAL(add_arenas(3), 3);
    CHECK_EQUAL(count_explicit(), 2);
    check_fork();
    /* The two that are free again. */
    CHECK_EQUAL(pool_available(), 2);
    end_other(&other);
    CHECK_EQUAL(pool_available(), 4);
    begin_arenas();
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), 2);
    free_arenas();
}

static void
test_pool_drained(void)
{
    run_with_pool(4, use_drained_pool);
}

/* Take and give back, until the other end is closed. */
static void
compete_for_pool(int from, int to)
{
    char byte;
    CHECK_EQUAL(read(from, &byte, 1), 1);
    CHECK_EQUAL(write(to, &byte, 1), 1);
    (void)fcntl(from, F_SETFL, O_NONBLOCK);
    while (read(from, &byte, 1) < 0) {
        size_t size;
        void *memory = take_pool(&size);
        if (memory != NULL) {
            CHECK_EQUAL(munmap(memory, size), 0);
        }
    }
}

static void
use_contended_pool(void)
{
    other_process other;
    if (start_other(&other, compete_for_pool) < 0) {
        return;
    }
    begin_arenas();
    tell_other(&other);
    for (int i = 0; i < 20; i++) {
        begin_arenas();
        CHECK_EQUAL(add_arenas(6), 6);
        if (i % 5 == 0) {
            check_fork();
        }
        free_arenas();
    }
    end_other(&other);
}

static void
test_pool_contended(void)
{
    run_with_pool(4, use_contended_pool);
}

/* Root takes the pool away while its pages are in use: they stay until they
   are freed, and then leave. */
static void
use_shrunk_pool(void)
{
    enum { POOL_PAGES = 4 };
    const long rest = read_number(POOL "nr_hugepages") - POOL_PAGES;
    begin_arenas();
    CHECK_EQUAL(add_arenas(POOL_PAGES), POOL_PAGES);
    CHECK_EQUAL(count_explicit(), POOL_PAGES);
    CHECK_EQUAL(write_number(POOL "nr_hugepages", rest), 0);
    CHECK_EQUAL(read_number(POOL "surplus_hugepages"), POOL_PAGES);
    check_arenas(0);
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), POOL_PAGES);
    check_fork();
    free_arenas();
    begin_arenas();
    CHECK_EQUAL(read_number(POOL "nr_hugepages"), rest);
    CHECK_EQUAL(read_number(POOL "surplus_hugepages"), 0);
    CHECK_EQUAL(pool_available(), 0);
    CHECK_EQUAL(add_arenas(2), 2);
    CHECK_EQUAL(count_explicit(), 0);
    free_arenas();
    CHECK_EQUAL(write_number(POOL "nr_hugepages", rest + POOL_PAGES), 0);
}

static void
test_pool_shrunk(void)
{
    run_with_pool(4, use_shrunk_pool);
}

// --- forbidden system calls ------------------------------------------------

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

static const seccomp_case *current_case;

/* Let a system call fail from now on. */
static int
forbid(const seccomp_case *forbidden)
{
    enum { ALLOW = 5 };
#define JUMP_TO(target, here) (unsigned char)((target) - (here) - 1)
    struct sock_filter program[] = {
        /* 0 */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, forbidden->number,
                 0, JUMP_TO(ALLOW, 1)),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, forbidden->flags,
                 0, forbidden->flags == 0 ? 0 : JUMP_TO(ALLOW, 3)),
        /* 4 */
        BPF_STMT(BPF_RET | BPF_K,
                 SECCOMP_RET_ERRNO | (unsigned int)forbidden->error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
#undef JUMP_TO
    struct sock_fprog filter = {
        sizeof(program) / sizeof(program[0]), program
    };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) != 0) {
        return -1;
    }
    return prctl(PR_SET_SECCOMP, (long)SECCOMP_MODE_FILTER, &filter, 0L, 0L);
}

static void
use_arenas_without_call(void)
{
    REQUIRE(forbid(current_case) == 0);
    begin_arenas();
    CHECK_EQUAL(add_arenas(4), 4);
    CHECK_EQUAL(count_explicit(), current_case->explicit_count);
    for (int i = current_case->explicit_count; i < arena_count; i++) {
        smaps_entry entry;
        REQUIRE(read_smaps(arenas[i], &entry) == 0);
        CHECK_EQUAL(entry.advised_huge, current_case->thp);
    }
    expected_left = 0;
    check_fork();
    CHECK_EQUAL(count_explicit(), current_case->left);
    free_arenas();
    CHECK_EQUAL(pool_available(), 2);
}

static void
test_seccomp(void)
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
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        current_case = &cases[i];
        /* Without this advice, pages are proved by that system call. */
        if (cases[i].number == SYS_rt_sigprocmask
            && madvise(NULL, 0, MADV_POPULATE_WRITE) != 0)
        {
            continue;
        }
        run_with_pool(2, use_arenas_without_call);
        if (test_failed()) {
            FAIL("in case %zu", i);
            return;
        }
    }
}

/* As a program does that has secrets, and as a set-user-ID one is. */
static void
use_arenas_undumpable(void)
{
    const uid_t nobody = 65534;
    if (getuid() == 0) {
        REQUIRE(setresuid(nobody, nobody, nobody) == 0);
    }
    REQUIRE(prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L) == 0);
    check_mix(4, 2);
}

static void
test_not_dumpable(void)
{
    run_with_pool(2, use_arenas_undumpable);
}

const testhugepages_test testhugepages_limits_tests[] = {
    {"limits_cgroup_v2", test_cgroup_v2},
    {"limits_cgroup_v2_reserved", test_cgroup_v2_reserved},
    {"limits_rlimit_as", test_rlimit_as},
    {"limits_rlimit_data", test_rlimit_data},
    {"limits_mlockall", test_mlockall},
    {"limits_mappings", test_mappings},
    {"limits_pool_drained", test_pool_drained},
    {"limits_pool_contended", test_pool_contended},
    {"limits_pool_shrunk", test_pool_shrunk},
    {"limits_seccomp", test_seccomp},
    {"limits_not_dumpable", test_not_dumpable},
    {NULL, NULL}
};

const testhugepages_test testhugepages_machine_tests[] = {
    {"limits_cgroup_v1", test_cgroup_v1},
    {"limits_cgroup_v1_reserved", test_cgroup_v1_reserved},
    {"limits_memory_policy", test_memory_policy},
    {"limits_cpuset", test_cpuset},
    {"limits_overcommit", test_overcommit},
    {NULL, NULL}
};
