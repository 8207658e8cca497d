/* Objects/hugepages for a file of tests, over Linux's system calls, each of
   which goes through a function of this file: it makes the real call, or fails
   with the error that the test wants, or has something happen in the child. */

#ifndef Py_TESTHUGEPAGES_LINUX_CALLS_H
#define Py_TESTHUGEPAGES_LINUX_CALLS_H

#include "machine.h"

#include <errno.h>                // errno
#include <fcntl.h>                // open()
#include <sys/mman.h>             // mmap()
#include <sys/prctl.h>            // prctl()
#include <sys/stat.h>             // stat()
#include <sys/syscall.h>          // SYS_rt_sigprocmask
#include <unistd.h>               // getpid()

typedef enum {
    CALL_MMAP, CALL_MUNMAP, CALL_MREMAP, CALL_POPULATE, CALL_ADVISE,
    CALL_UNADVISE, CALL_DROP, CALL_SIGPROCMASK, CALL_OPEN, CALL_STAT,
    CALL_COPY, CALL_KINDS
} call_kind;

static const char *const call_names[CALL_KINDS] = {
    "mmap", "munmap", "mremap", "MADV_POPULATE_WRITE", "MADV_HUGEPAGE",
    "MADV_NOHUGEPAGE", "MADV_DONTNEED", "rt_sigprocmask", "open", "stat",
    "memcpy"
};

typedef enum {THE_PARENT = 1, THE_CHILD = 2, EITHER = 3} side;

static struct {
    pid_t parent;
    /* Calls of this process since disarm(), or since the fork. */
    int calls[CALL_KINDS];
    int counts_child;
    /* The number of the first call that fails, from 1 (0: none does), and how
       many fail from it on (0: all). */
    struct {
        int at;
        int count;
        int error;
        side where;
    } fault[CALL_KINDS];
    /* What happens at this call of the child, from 1; at 0: nothing. */
    struct {
        call_kind kind;
        int at;
        void (*function)(void);
    } event;
    /* What both processes see: nonzero if a call has failed that should. */
    int *has_failed;
    /* Serve hugetlb pages from plain memory. */
    int grant_hugetlb;
    /* Memory is not aligned, as often on kernels before 6.7. */
    int misalign;
    /* There seem to be other threads. */
    int has_threads;
    int mmap_flags;
} fake;

/* Let every call succeed, and count from here on. */
static void
disarm(void)
{
    int *has_failed = fake.has_failed;
    if (has_failed == NULL) {
        has_failed = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (has_failed == MAP_FAILED) {
            perror("mmap");
            exit(1);
        }
    }
    memset(&fake, 0, sizeof(fake));
    fake.parent = getpid();
    fake.has_failed = has_failed;
    *has_failed = 0;
}

static void
let_fail(call_kind kind, int at, int count, int error)
{
    fake.fault[kind].at = at;
    fake.fault[kind].count = count;
    fake.fault[kind].error = error;
    fake.fault[kind].where = EITHER;
}

/* Have something happen at a call of the child, from 1. */
static void
let_happen(call_kind kind, int at, void (*function)(void))
{
    fake.event.kind = kind;
    fake.event.at = at;
    fake.event.function = function;
}

/* Is this call to fail? */
static int
is_failing(call_kind kind)
{
    side here = getpid() == fake.parent ? THE_PARENT : THE_CHILD;
    if (here == THE_CHILD && !fake.counts_child) {
        memset(fake.calls, 0, sizeof(fake.calls));
        fake.counts_child = 1;
    }
    int number = _Py_atomic_add_int(&fake.calls[kind], 1) + 1;
    if (here == THE_CHILD && fake.event.kind == kind
        && fake.event.at == number)
    {
        fake.event.function();
    }
    if (fake.fault[kind].at == 0 || number < fake.fault[kind].at
        || !(fake.fault[kind].where & here)
        || (fake.fault[kind].count != 0
            && number >= fake.fault[kind].at + fake.fault[kind].count))
    {
        return 0;
    }
    _Py_atomic_store_int(fake.has_failed, 1);
    errno = fake.fault[kind].error;
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
    if (is_failing(CALL_MMAP)) {
        return MAP_FAILED;
    }
    fake.mmap_flags = flags;
    if (fake.grant_hugetlb) {
        const int size_mask = 0x3F;
        flags &= ~(MAP_HUGETLB | (int)((unsigned int)size_mask << 26));
    }
    if (fake.misalign && size >= ARENA_SIZE && !(flags & MAP_FIXED)) {
        return mmap_misaligned(size, protection, flags);
    }
    return mmap(hint, size, protection, flags, fd, offset);
}

static int
fake_stat(const char *path, struct stat *status)
{
    if (is_failing(CALL_STAT)) {
        return -1;
    }
    int result = stat(path, status);
    status->st_nlink += (nlink_t)fake.has_threads;
    return result;
}

static long
fake_rt_sigprocmask(long number, int how, void *set, void *old_set,
                    size_t size)
{
    CHECK_EQUAL(number, SYS_rt_sigprocmask);
    return is_failing(CALL_SIGPROCMASK) ? -1
           : syscall(number, how, set, old_set, size);
}

static call_kind
kind_of_advice(int advice)
{
    return advice == MADV_HUGEPAGE ? CALL_ADVISE
           : advice == MADV_NOHUGEPAGE ? CALL_UNADVISE
           : advice == MADV_DONTNEED ? CALL_DROP : CALL_POPULATE;
}

#define mmap fake_mmap
#define munmap(address, size) \
    (is_failing(CALL_MUNMAP) ? -1 : munmap(address, size))
#define mremap(from, old_size, new_size, flags, to) \
    (is_failing(CALL_MREMAP) ? MAP_FAILED \
     : mremap(from, old_size, new_size, flags, to))
#define madvise(address, size, advice) \
    (is_failing(kind_of_advice(advice)) ? -1 : madvise(address, size, advice))
#define syscall fake_rt_sigprocmask
#define open(path, flags) (is_failing(CALL_OPEN) ? -1 : open(path, flags))
/* Of the function, not the structure. */
#define stat(path, status) fake_stat(path, status)
#define memcpy(target, source, size) \
    (is_failing(CALL_COPY), memcpy(target, source, size))
#include "core.h"
#undef mmap
#undef munmap
#undef mremap
#undef madvise
#undef syscall
#undef open
#undef stat
#undef memcpy

/* What each test begins with. */
static void
begin_test(void)
{
    reset_core();
    disarm();
    test_tstate = NULL;
    errno = UNTOUCHED;
}

#define TEST(name) \
    TEST_CASE(name, ON_EACH_KERNEL, begin_test, restore_machine)

#endif /* !Py_TESTHUGEPAGES_LINUX_CALLS_H */
