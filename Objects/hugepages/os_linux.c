/* The OS layer on Linux: hugetlb pages by mmap(MAP_HUGETLB), transparent huge
   pages by madvise(MADV_HUGEPAGE).  The contract is in hugepages.h.

   Constants that the C library's headers may lack are the kernel's ABI and are
   defined here; a kernel that does not know one answers EINVAL. */

#include <errno.h>                // errno
#include <fcntl.h>                // open()
#include <stdint.h>               // uintptr_t
#include <stdlib.h>               // strtoll()
#include <sys/mman.h>             // mmap()
#include <sys/prctl.h>            // prctl()
#include <sys/syscall.h>          // SYS_rt_sigprocmask
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

/* Read a file of one line, up to size - 1 bytes of it.  Return 0, or -1 if it
   cannot be read. */
static int
hugepages_linux_read_line(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t length = read(fd, text, size - 1);
    (void)close(fd);
    if (length <= 0) {
        return -1;
    }
    text[length] = '\0';
    return 0;
}

static void
hugepages_os_scan(hugepages_system *system)
{
    int saved_errno = errno;

#ifdef MAP_HUGETLB
    system->explicit_page_size = ARENA_SIZE;
#else
    system->explicit_page_size = 0;
#endif

#ifdef MADV_HUGEPAGE
    /* Without sysfs (in a chroot, say) or before Linux 4.6 the size cannot be
       read; then the first madvise() tells. */
    char thp_size[32];
    system->thp_size = ARENA_SIZE;
    if (hugepages_linux_read_line(HUGEPAGES_THP_SIZE_FILE, thp_size,
                                  sizeof(thp_size)) == 0)
    {
        system->thp_size = (size_t)strtoll(thp_size, NULL, 10);
    }
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

/* mmap() private anonymous memory, at the address where if flags have
   MAP_FIXED, and set *address.  Return 0 or an error number. */
static int
hugepages_linux_mmap(void *where, size_t size, int flags, void **address)
{
    void *mapping = mmap(where, size, PROT_READ | PROT_WRITE,
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
   nothing: it stores the signal mask, and answers EFAULT if there is no
   page.  The mask stays in the page: a signal handler may have forked since,
   and then a write of the child could end in SIGBUS. */
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
    return syscall(SYS_rt_sigprocmask, 0, NULL, address, kernel_sigset_size)
           == 0 ? 0 : errno;
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
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
    hugepages_result result = HUGEPAGES_OK;
    *os_error = hugepages_linux_mmap(NULL, size, flags, address);
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
    (void)size;
    (void)address;
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
#endif
}

/* Map memory aligned to ARENA_SIZE, and set *address.  Return 0 or an error
   number.

   Since Linux 6.7 the kernel aligns a mapping whose size is a multiple of a
   huge page by itself.  Before, the first arena takes the detour over a
   mapping that is large enough to hold an aligned one; the next mmap() is then
   usually placed right below it, so is aligned too.

   The calls to munmap() that are not checked cannot fail: they undo what the
   process has just done, so need no more mappings (vm.max_map_count) than it
   had. */
static int
hugepages_linux_mmap_aligned(size_t size, void **address)
{
    void *mapping = NULL;
    int error = hugepages_linux_mmap(NULL, size, 0, &mapping);
    if (error != 0) {
        return error;
    }
    if (((uintptr_t)mapping & (ARENA_SIZE - 1)) == 0) {
        *address = mapping;
        return 0;
    }
    (void)munmap(mapping, size);

    size_t slack = ARENA_SIZE - (size_t)sysconf(_SC_PAGESIZE);
    error = hugepages_linux_mmap(NULL, size + slack, 0, &mapping);
    if (error != 0) {
        return error;
    }
    size_t head = (0 - (uintptr_t)mapping) & (ARENA_SIZE - 1);
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
hugepages_os_map_aligned(size_t size, void **address, int *os_error)
{
    int saved_errno = errno;
    *os_error = hugepages_linux_mmap_aligned(size, address);
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

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    hugepages_result result = hugepages_os_map_aligned(size, address,
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
    *os_error = hugepages_linux_mmap(NULL, size, 0, address);
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
    (void)madvise(address, size, MADV_DONTNEED);
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
