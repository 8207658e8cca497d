/* The OS layer on Linux, continued: hugetlb pages and fork().  The contract is
   in fork.h. */

#include <poll.h>                 // poll()
#include <pthread.h>              // pthread_atfork()
#include <setjmp.h>               // sigsetjmp()
#include <signal.h>               // pthread_sigmask()
#include <time.h>                 // nanosleep()

#include "fork.h"

/* errno is the caller's throughout: what looks at it after fork() wants to
   know what fork() has set. */

static hugepages_result
hugepages_os_watch_fork(int *os_error)
{
    static int watching = 0;
    if (watching) {
        return HUGEPAGES_OK;
    }
    *os_error = pthread_atfork(hugepages_before_fork,
                               hugepages_after_fork_in_parent,
                               hugepages_after_fork_in_child);
    if (*os_error != 0) {
        return HUGEPAGES_NEVER;
    }
    watching = 1;
    return HUGEPAGES_OK;
}

/* Of the thread that forks. */
static sigset_t hugepages_linux_saved_mask;
static int hugepages_linux_saved_cancel_state;

static void
hugepages_os_block_signals(void)
{
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &hugepages_linux_saved_mask);
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE,
                                 &hugepages_linux_saved_cancel_state);
}

static void
hugepages_os_unblock_signals(void)
{
    (void)pthread_setcancelstate(hugepages_linux_saved_cancel_state, NULL);
    (void)pthread_sigmask(SIG_SETMASK, &hugepages_linux_saved_mask, NULL);
}

// --- talk between parent and child -----------------------------------------

static hugepages_result
hugepages_os_open_line(int ends[2], int *os_error)
{
    int saved_errno = errno;
    hugepages_result result = HUGEPAGES_OK;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        *os_error = errno;
        result = HUGEPAGES_BUSY;
    }
    errno = saved_errno;
    return result;
}

static void
hugepages_os_close_line(int end)
{
    int saved_errno = errno;
    (void)close(end);
    errno = saved_errno;
}

/* A parent that is gone needs no news.  SIGPIPE is blocked, as all signals
   are, and must not be left pending. */
static void
hugepages_os_send(int end)
{
    int saved_errno = errno;
    if (write(end, "", 1) < 0 && errno == EPIPE) {
        const struct timespec no_time = {0, 0};
        sigset_t pipe_signal;
        (void)sigemptyset(&pipe_signal);
        (void)sigaddset(&pipe_signal, SIGPIPE);
        (void)sigtimedwait(&pipe_signal, NULL, &no_time);
    }
    errno = saved_errno;
}

static hugepages_event
hugepages_os_wait(int end, int milliseconds)
{
    int saved_errno = errno;
    hugepages_event event = HUGEPAGES_TIME_IS_UP;
    struct pollfd line = {end, POLLIN, 0};
    char byte;
    if (poll(&line, 1, milliseconds) > 0) {
        event = read(end, &byte, 1) == 1 ? HUGEPAGES_SENT : HUGEPAGES_CLOSED;
    }
    errno = saved_errno;
    return event;
}

static void
hugepages_os_sleep(int milliseconds)
{
    int saved_errno = errno;
    const struct timespec duration = {
        milliseconds / 1000, milliseconds % 1000 * 1000000L
    };
    (void)nanosleep(&duration, NULL);
    errno = saved_errno;
}

/* mlockall(MCL_FUTURE) fills what is mapped from then on, but not what may not
   be accessed. */
static hugepages_result
hugepages_os_map_shared(size_t size, void **address, int *os_error)
{
    int saved_errno = errno;
    void *mapping = mmap(NULL, size, PROT_NONE,
                         MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        *os_error = errno;
        errno = saved_errno;
        return HUGEPAGES_BUSY;
    }
    *address = mapping;
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_open_shared(void *address, size_t size, int *os_error)
{
    int saved_errno = errno;
    if (mprotect(address, size, PROT_READ | PROT_WRITE) != 0) {
        *os_error = errno;
        errno = saved_errno;
        return HUGEPAGES_BUSY;
    }
    return HUGEPAGES_OK;
}

// --- in the child ----------------------------------------------------------

/* Where to go on when a page cannot be read, and the signal's code; whether
   somebody has sent a SIGBUS meanwhile. */
static sigjmp_buf hugepages_linux_unreadable;
static volatile sig_atomic_t hugepages_linux_bus_code;
static volatile sig_atomic_t hugepages_linux_bus_sent;

static void
hugepages_linux_on_bus_error(int Py_UNUSED(signal_number), siginfo_t *info,
                             void *Py_UNUSED(context))
{
    if (info->si_code <= 0 || info->si_code == BUS_MCEERR_AO) {
        hugepages_linux_bus_sent = 1;
        return;
    }
    hugepages_linux_bus_code = info->si_code;
    siglongjmp(hugepages_linux_unreadable, 1);
}

/* Only a handler of SIGBUS can tell at the moment of the access.  System calls
   that copy memory and fail instead cannot be had everywhere, take two to
   three times as long, and one of them, process_vm_readv(), needs a page of
   the pool for reading a shared one.  The handler is there for the time of the
   copy, in a process with one thread. */
static hugepages_result
hugepages_os_rescue(void *target, const void *source, size_t size)
{
    int saved_errno = errno;
    struct sigaction action, saved_action;
    sigset_t bus_signal, saved_mask;

    hugepages_linux_bus_sent = 0;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = hugepages_linux_on_bus_error;
    action.sa_flags = SA_SIGINFO;
    (void)sigfillset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &saved_action) != 0) {
        errno = saved_errno;
        return HUGEPAGES_BUSY;
    }
    (void)sigemptyset(&bus_signal);
    (void)sigaddset(&bus_signal, SIGBUS);
    (void)pthread_sigmask(SIG_UNBLOCK, &bus_signal, &saved_mask);

    hugepages_result result = HUGEPAGES_OK;
    if (sigsetjmp(hugepages_linux_unreadable, 0) == 0) {
        memcpy(target, source, size);
    }
    else {
        result = hugepages_linux_bus_code == BUS_MCEERR_AR ? HUGEPAGES_NEVER
                                                           : HUGEPAGES_BUSY;
    }
    (void)pthread_sigmask(SIG_SETMASK, &saved_mask, NULL);
    (void)sigaction(SIGBUS, &saved_action, NULL);
    if (hugepages_linux_bus_sent) {
        /* It stays blocked until the child is done. */
        (void)raise(SIGBUS);
    }
    return result;
}

static hugepages_result
hugepages_os_remap_explicit(void *address, size_t size, int *os_error)
{
    return hugepages_linux_map_explicit(address, size, &address, os_error);
}

/* It fails where a seccomp filter forbids it, or vm.max_map_count is near. */
static hugepages_result
hugepages_os_move(void *from, void *to, size_t size, int *os_error)
{
    int saved_errno = errno;
    if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to)
        == MAP_FAILED)
    {
        *os_error = errno;
        errno = saved_errno;
        return HUGEPAGES_BUSY;
    }
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_remap_plain(void *address, size_t size, int *os_error)
{
    int saved_errno = errno;
    *os_error = hugepages_linux_mmap(address, size, PROT_READ | PROT_WRITE,
                                     MAP_FIXED, &address);
    errno = saved_errno;
    return *os_error == 0 ? HUGEPAGES_OK : HUGEPAGES_BUSY;
}

static void
hugepages_os_exit(const char *line)
{
    (void)!write(STDERR_FILENO, line, strlen(line));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(1);
}
