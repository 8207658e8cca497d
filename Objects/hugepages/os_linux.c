/* The OS layer on Linux: hugetlb pages by mmap(MAP_HUGETLB), transparent huge
   pages by madvise(MADV_HUGEPAGE).  The contract is in hugepages.h.

   Constants that the C library's headers may lack are the kernel's ABI and are
   defined here; a kernel that does not know one answers EINVAL. */

#include <errno.h>                // errno
#include <fcntl.h>                // open()
#include <pthread.h>              // pthread_mutex_lock()
#include <stdint.h>               // uintptr_t
#include <stdlib.h>               // strtoll()
#include <string.h>               // memset()
#include <sys/mman.h>             // mmap()
#include <sys/prctl.h>            // prctl()
#include <sys/syscall.h>          // SYS_rt_sigprocmask
#include <time.h>                 // clock_gettime()
#include <unistd.h>               // sysconf()

#ifndef MAP_HUGE_SHIFT
#  define MAP_HUGE_SHIFT 26       // Linux 3.8
#endif
#ifndef MADV_POPULATE_WRITE
#  define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
#ifndef PR_GET_THP_DISABLE
#  define PR_GET_THP_DISABLE 42   // Linux 3.15
#endif
#ifndef PR_THP_DISABLE_EXCEPT_ADVISED
#  define PR_THP_DISABLE_EXCEPT_ADVISED (1 << 1)  // Linux 6.18
#endif

/* Base pages of an arena, if they are as small as can be. */
#define HUGEPAGES_LINUX_MOST_PAGES (ARENA_SIZE / 4096)

#define HUGEPAGES_THP_SIZE_FILE \
    "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"

/* Which errors are final?  Those that tell of the kernel, the architecture or
   a seccomp filter; not those that tell of memory and limits. */
static hugepages_result
hugepages_linux_result(int error)
{
    switch (error) {
    case EINVAL:        // page size or advice not known to this kernel
    case ENOSYS:        // system call not known, or hidden by a seccomp filter
    case EPERM:         // forbidden by a seccomp filter or security module
    case EACCES:
    case EOPNOTSUPP:
        return HUGEPAGES_NEVER;
    default:            // ENOMEM, EAGAIN, EFAULT, EHWPOISON, ...
        return HUGEPAGES_BUSY;
    }
}

/* Read a decimal number of bytes from a file of one line.  Return -1 if the
   file cannot be read. */
static long long
hugepages_linux_read_size(const char *path)
{
    char text[32];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t length = read(fd, text, sizeof(text) - 1);
    (void)close(fd);
    if (length <= 0) {
        return -1;
    }
    text[length] = '\0';
    return strtoll(text, NULL, 10);
}

static void
hugepages_os_scan(hugepages_system *system)
{
    int saved_errno = errno;

    system->base_page_size = (size_t)sysconf(_SC_PAGESIZE);

#ifdef MAP_HUGETLB
    system->explicit_page_size = ARENA_SIZE;
#else
    system->explicit_page_size = 0;
#endif

#ifdef MADV_HUGEPAGE
    /* Without sysfs (in a chroot, say) or before Linux 4.6 the size cannot be
       read; then the first madvise() tells. */
    long long thp_size = hugepages_linux_read_size(HUGEPAGES_THP_SIZE_FILE);
    system->thp_size = thp_size > 0 ? (size_t)thp_size : ARENA_SIZE;
#else
    system->thp_size = 0;
#endif

    /* madvise() succeeds even where transparent huge pages are disabled for
       the process.  Since Linux 6.18 they can be disabled for all memory but
       that which is advised, as ours is. */
    int disabled = prctl(PR_GET_THP_DISABLE, 0L, 0L, 0L, 0L);
    system->thp_disabled = (disabled > 0
                            && !(disabled & PR_THP_DISABLE_EXCEPT_ADVISED));

    errno = saved_errno;
}

/* A fork() takes it before and frees it after, in both processes. */
static pthread_mutex_t hugepages_linux_lock = PTHREAD_MUTEX_INITIALIZER;

static void
hugepages_os_lock(void)
{
    (void)pthread_mutex_lock(&hugepages_linux_lock);
}

static void
hugepages_os_unlock(void)
{
    (void)pthread_mutex_unlock(&hugepages_linux_lock);
}

/* The coarse clock is read without a system call even where the other one
   needs one, as on a virtual machine without a usable TSC.  It cannot fail:
   the clock is older than any kernel that Python runs on. */
static uint64_t
hugepages_os_now(void)
{
    struct timespec now = {0, 0};
    (void)clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static hugepages_result
hugepages_os_enable_explicit(int *Py_UNUSED(os_error))
{
    return HUGEPAGES_OK;
}

/* mmap() private anonymous memory, at the address where if flags have
   MAP_FIXED, and set *address.  Return 0 or an error number. */
static int
hugepages_linux_mmap(void *where, size_t size, int protection, int flags,
                     void **address)
{
    void *mapping = mmap(where, size, protection,
                         MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (mapping == MAP_FAILED) {
        return errno;
    }
    *address = mapping;
    return 0;
}

/* Fault in a mapping of one page for writing.  Return 0, or an error number
   where an access by the program would have ended in SIGBUS.

   Before Linux 5.14 there is no MADV_POPULATE_WRITE.  There the kernel is made
   to write into the page on behalf of another system call, one that changes
   nothing: it stores the signal mask, and answers EFAULT if the page cannot be
   had. */
static int
hugepages_linux_prove(void *address, size_t size)
{
    const size_t kernel_sigset_size = 8;

    if (madvise(address, size, MADV_POPULATE_WRITE) == 0) {
        return 0;
    }
    if (hugepages_linux_result(errno) != HUGEPAGES_NEVER) {
        return errno;
    }
    if (syscall(SYS_rt_sigprocmask, 0, NULL, address, kernel_sigset_size) != 0)
    {
        return errno;
    }
    memset(address, 0, kernel_sigset_size);
    return 0;
}

/* Map hugetlb pages, in the place of what is at the address where, or anywhere
   if that is NULL. */
static hugepages_result
hugepages_linux_map_explicit(void *where, size_t size, void **address,
                             int *os_error)
{
#ifdef MAP_HUGETLB
    int saved_errno = errno;

    /* The page size is always given.  The default one may be 1 GiB, of which
       an arena would use a sliver. */
    unsigned int log2_size = 0;
    while (((size_t)1 << log2_size) < size) {
        log2_size++;
    }
    int flags = (int)((unsigned int)MAP_HUGETLB | log2_size << MAP_HUGE_SHIFT);
    if (where != NULL) {
        flags |= MAP_FIXED;
    }
    hugepages_result result = HUGEPAGES_OK;
    *os_error = hugepages_linux_mmap(where, size, PROT_READ | PROT_WRITE,
                                     flags, address);
    if (*os_error != 0) {
        result = hugepages_linux_result(*os_error);
    }
    else {
        /* mmap() has reserved the page in the pool, but a hugetlb cgroup limit
           or a memory policy has its say when the page is faulted in. */
        *os_error = hugepages_linux_prove(*address, size);
        if (*os_error != 0) {
            (void)munmap(*address, size);
            result = HUGEPAGES_BUSY;
        }
    }
    errno = saved_errno;
    return result;
#else
    (void)where;
    (void)size;
    (void)address;
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
#endif
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    return hugepages_linux_map_explicit(NULL, size, address, os_error);
}

/* Map memory aligned to a power of two, and set *address, to NULL if that
   fails. Return 0 or an error number.

   Since Linux 6.7 the kernel aligns a mapping whose size is a multiple of a
   huge page by itself.  Before, the first arena takes the detour over a
   mapping that is large enough to hold an aligned one; the next mmap() is then
   usually placed right below it, so is aligned too.

   The calls to munmap() that are not checked cannot fail: they undo what the
   process has just done, so need no more mappings (vm.max_map_count) than it
   had. */
static int
hugepages_linux_mmap_aligned(size_t size, size_t alignment, int protection,
                             void **address)
{
    void *mapping = NULL;
    *address = NULL;
    int error = hugepages_linux_mmap(NULL, size, protection, 0, &mapping);
    if (error != 0) {
        return error;
    }
    if (((uintptr_t)mapping & (alignment - 1)) == 0) {
        *address = mapping;
        return 0;
    }
    (void)munmap(mapping, size);

    size_t slack = alignment - (size_t)sysconf(_SC_PAGESIZE);
    error = hugepages_linux_mmap(NULL, size + slack, protection, 0, &mapping);
    if (error != 0) {
        return error;
    }
    size_t head = (0 - (uintptr_t)mapping) & (alignment - 1);
    size_t tail = slack - head;
    char *aligned = (char *)mapping + head;
    if (head != 0 && munmap(mapping, head) != 0) {
        error = errno;
        (void)munmap(mapping, size + slack);
        return error;
    }
    if (tail != 0 && munmap(aligned + size, tail) != 0) {
        error = errno;
        (void)munmap(aligned, size + tail);
        return error;
    }
    *address = aligned;
    return 0;
}

static hugepages_result
hugepages_os_map_aligned(size_t size, size_t alignment, void **address,
                         int *os_error)
{
    int saved_errno = errno;
    *os_error = hugepages_linux_mmap_aligned(size, alignment,
                                             PROT_READ | PROT_WRITE, address);
    errno = saved_errno;
    return *os_error == 0 ? HUGEPAGES_OK : hugepages_linux_result(*os_error);
}

static hugepages_result
hugepages_os_advise(void *address, size_t size, int *os_error)
{
#ifdef MADV_HUGEPAGE
    int saved_errno = errno;
    hugepages_result result = HUGEPAGES_OK;
    if (madvise(address, size, MADV_HUGEPAGE) != 0) {
        *os_error = errno;
        result = hugepages_linux_result(*os_error);
    }
    errno = saved_errno;
    return result;
#else
    (void)address;
    (void)size;
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
#endif
}

static void
hugepages_os_fill(void *address, size_t size)
{
    int saved_errno = errno;
    (void)madvise(address, size, MADV_POPULATE_WRITE);
    errno = saved_errno;
}

/* Of private anonymous memory, mincore() tells which pages the process has. */
static hugepages_result
hugepages_os_resident(const void *address, size_t size, size_t *resident)
{
    int saved_errno = errno;
    hugepages_result result = HUGEPAGES_OK;
    unsigned char in_core[HUGEPAGES_LINUX_MOST_PAGES];
    size_t page_size = (size_t)sysconf(_SC_PAGESIZE);
    size_t pages = size / page_size;
    if (pages > HUGEPAGES_LINUX_MOST_PAGES
        || mincore((void *)(uintptr_t)address, size, in_core) != 0)
    {
        result = HUGEPAGES_NEVER;
    }
    else {
        *resident = 0;
        for (size_t i = 0; i < pages; i++) {
            *resident += (in_core[i] & 1) ? page_size : 0;
        }
    }
    errno = saved_errno;
    return result;
}

/* Move a mapping to a new aligned place and let it grow.  Return 0 or an error
   number.

   The new place is reserved first: mremap() by itself does not align before
   Linux 6.7.  mremap() may fail before or after it has unmapped what was
   there; in the second case another thread may have mapped a part of it since,
   which must not be unmapped. */
static int
hugepages_linux_move_and_grow(void *address, size_t old_size, size_t new_size,
                              size_t alignment, void **new_address)
{
    void *place;
    int error = hugepages_linux_mmap_aligned(new_size, alignment, PROT_NONE,
                                             &place);
    if (error != 0) {
        return error;
    }
    if (mremap(address, old_size, new_size, MREMAP_MAYMOVE | MREMAP_FIXED,
               place) == MAP_FAILED)
    {
        error = errno;
        unsigned char in_core[1];
        size_t page_size = (size_t)sysconf(_SC_PAGESIZE);
        if (mincore(place, page_size, in_core) == 0) {
            (void)munmap(place, new_size);
        }
        return error;
    }
    *new_address = place;
    return 0;
}

/* The kernel moves page tables, not memory; and those of whole huge pages at
   once, as both places are aligned. */
static hugepages_result
hugepages_os_resize(void *address, size_t old_size, size_t new_size,
                    size_t alignment, void **new_address, int *os_error)
{
    int saved_errno = errno;
    hugepages_result result = HUGEPAGES_OK;
    *new_address = address;
    if (mremap(address, old_size, new_size, 0) == MAP_FAILED) {
        *os_error = errno;
        if (new_size > old_size) {
            *os_error = hugepages_linux_move_and_grow(
                address, old_size, new_size, alignment, new_address);
        }
        if (*os_error != 0) {
            result = HUGEPAGES_BUSY;
        }
    }
    errno = saved_errno;
    return result;
}

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    hugepages_result result = hugepages_os_map_aligned(size, size, address,
                                                       os_error);
    if (result == HUGEPAGES_OK) {
        result = hugepages_os_advise(*address, size, os_error);
        if (result != HUGEPAGES_OK) {
            int saved_errno = errno;
            (void)munmap(*address, size);
            errno = saved_errno;
        }
    }
    return result;
}

/* errno is left as mmap() sets it: a caller of pymalloc that gets NULL may
   look at it, as after malloc(). */
static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    *os_error = hugepages_linux_mmap(NULL, size, PROT_READ | PROT_WRITE, 0,
                                     address);
    return *os_error == 0 ? HUGEPAGES_OK : HUGEPAGES_BUSY;
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    int saved_errno = errno;
    if (munmap(address, size) == 0) {
        return HUGEPAGES_OK;
    }
    *os_error = errno;
    errno = saved_errno;
    return HUGEPAGES_BUSY;
}

static const char *
hugepages_os_error_name(int os_error)
{
#define NAMED(error) case error: return #error
    switch (os_error) {
    NAMED(EACCES);
    NAMED(EAGAIN);
    NAMED(EBUSY);
    NAMED(EFAULT);
    NAMED(EHWPOISON);
    NAMED(EINTR);
    NAMED(EINVAL);
    NAMED(EIO);
    NAMED(ENODEV);
    NAMED(ENOMEM);
    NAMED(ENOSYS);
    NAMED(EOPNOTSUPP);
    NAMED(EPERM);
    default:
        return NULL;
    }
#undef NAMED
}
