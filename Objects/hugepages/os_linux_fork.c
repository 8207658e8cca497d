/* The OS layer on Linux, continued: hugetlb pages and fork().  The contract is
   in fork.h. */

#include <pthread.h>              // pthread_atfork()
#include <signal.h>               // pthread_sigmask()
#include <sys/stat.h>             // stat()

#include "fork.h"

/* errno is the caller's throughout: what looks at it after fork() wants to
   know what fork() has set. */

#define HUGEPAGES_THP_MODE_FILE "/sys/kernel/mm/transparent_hugepage/enabled"

/* 0, or why fork() does not call fork.c: an error number. */
static int hugepages_linux_fork_error = ENOSYS;

static void
hugepages_linux_watch_fork(void)
{
    hugepages_linux_fork_error = pthread_atfork(
        hugepages_before_fork, hugepages_after_fork_in_parent,
        hugepages_after_fork_in_child);
}

/* Called as the program or the library is loaded, before all constructors of
   programs, whose priorities begin with 101: handlers that are registered
   first run last before a fork, and first after it. */
__attribute__((section(".init_array.00100"), used))
static void (*hugepages_linux_at_load)(void) = hugepages_linux_watch_fork;

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    *os_error = hugepages_linux_fork_error;
    return *os_error == 0 ? HUGEPAGES_OK : HUGEPAGES_NEVER;
}

/* The links of this folder are itself, its parent, and one for each thread. */
static int
hugepages_os_is_single_threaded(void)
{
    int saved_errno = errno;
    struct stat threads;
    int is_single = (stat("/proc/self/task", &threads) == 0
                     && threads.st_nlink == 3);
    errno = saved_errno;
    return is_single;
}

/* open() and read() are cancellation points, which fork() is not. */
static int
hugepages_os_is_thp_off(void)
{
    int saved_errno = errno;
    int cancel_state;
    char mode[64];
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    int is_off = (hugepages_linux_read_line(HUGEPAGES_THP_MODE_FILE, mode,
                                            sizeof(mode)) == 0
                  && strstr(mode, "[never]") != NULL);
    (void)pthread_setcancelstate(cancel_state, NULL);
    errno = saved_errno;
    return is_off;
}

static _Py_thread_local sigset_t hugepages_linux_saved_mask;

static void
hugepages_os_block_signals(void)
{
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &hugepages_linux_saved_mask);
}

static void
hugepages_os_unblock_signals(void)
{
    (void)pthread_sigmask(SIG_SETMASK, &hugepages_linux_saved_mask, NULL);
}

static void
hugepages_os_unadvise(void *address, size_t size)
{
#ifdef MADV_NOHUGEPAGE
    int saved_errno = errno;
    (void)madvise(address, size, MADV_NOHUGEPAGE);
    errno = saved_errno;
#else
    (void)address;
    (void)size;
#endif
}

/* It fails where a seccomp filter forbids it, or vm.max_map_count is near. */
static hugepages_result
hugepages_os_move(void *from, void *to, size_t size)
{
    int saved_errno = errno;
    void *moved = mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    errno = saved_errno;
    return moved != MAP_FAILED ? HUGEPAGES_OK : HUGEPAGES_BUSY;
}

static hugepages_result
hugepages_os_remap_plain(void *address, size_t size)
{
    int saved_errno = errno;
    int error = hugepages_linux_mmap(address, size, MAP_FIXED, &address);
    errno = saved_errno;
    return error == 0 ? HUGEPAGES_OK : HUGEPAGES_BUSY;
}

static void
hugepages_os_exit(const char *line)
{
    (void)!write(STDERR_FILENO, line, strlen(line));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(1);
}
