/* The OS layer where nothing is known about huge pages: plain memory only, got
   as stock obmalloc.c gets it.  The contract is in hugepages.h.

   ARENAS_USE_MMAP is obmalloc.c's: mmap() has MAP_ANONYMOUS here. */

#include <errno.h>                // errno, ENOSYS

#ifdef ARENAS_USE_MMAP
#  include <pthread.h>            // pthread_atfork()
#  include <sys/mman.h>           // mmap()
#  include <unistd.h>             // sysconf()
#else
#  include <stddef.h>             // max_align_t
#  include <stdlib.h>             // calloc()
#endif

static void
hugepages_os_scan(hugepages_system *system)
{
#ifdef ARENAS_USE_MMAP
    system->base_page_size = (size_t)sysconf(_SC_PAGESIZE);
#else
    /* The C library's memory has no pages, only an alignment. */
    system->base_page_size = _Alignof(max_align_t);
#endif
    system->explicit_page_size = 0;
    system->thp_size = 0;
    system->thp_disabled = 0;
}

#ifdef ARENAS_USE_MMAP

static pthread_mutex_t hugepages_other_lock = PTHREAD_MUTEX_INITIALIZER;

static void
hugepages_os_lock(void)
{
    (void)pthread_mutex_lock(&hugepages_other_lock);
}

static void
hugepages_os_unlock(void)
{
    (void)pthread_mutex_unlock(&hugepages_other_lock);
}

static hugepages_result
hugepages_os_watch_fork(int *os_error)
{
    static int watching = 0;
    if (!watching) {
        *os_error = pthread_atfork(hugepages_os_lock, hugepages_os_unlock,
                                   hugepages_os_unlock);
        if (*os_error != 0) {
            return HUGEPAGES_NEVER;
        }
        watching = 1;
    }
    return HUGEPAGES_OK;
}

#else

/* Nothing changes after the start: free() does not fail, so there are no
   strays, nor are there explicit pages. */
static void
hugepages_os_lock(void)
{
}

static void
hugepages_os_unlock(void)
{
}

static hugepages_result
hugepages_os_watch_fork(int *Py_UNUSED(os_error))
{
    return HUGEPAGES_OK;
}

#endif  // !ARENAS_USE_MMAP

/* Time matters only to what is kept, and plain memory is not. */
static uint64_t
hugepages_os_now(void)
{
    return 0;
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_map_explicit(size_t Py_UNUSED(size), void **Py_UNUSED(address),
                          int *os_error)
{
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_map_thp(size_t Py_UNUSED(size), void **Py_UNUSED(address),
                     int *os_error)
{
    *os_error = ENOSYS;
    return HUGEPAGES_NEVER;
}

#define HUGEPAGES_NOT_SUPPORTED ENOSYS
#include "os_unaligned.c"

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
#ifdef ARENAS_USE_MMAP
    void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        *os_error = errno;
        return HUGEPAGES_BUSY;
    }
#else
    /* Stock CPython calls malloc() here; the contract wants zeros. */
    void *mapping = calloc(1, size);
    if (mapping == NULL) {
        *os_error = ENOMEM;
        return HUGEPAGES_BUSY;
    }
#endif
    *address = mapping;
    return HUGEPAGES_OK;
}

#ifdef ARENAS_USE_MMAP
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
#else
static hugepages_result
hugepages_os_unmap(void *address, size_t Py_UNUSED(size),
                   int *Py_UNUSED(os_error))
{
    free(address);
    return HUGEPAGES_OK;
}
#endif

static const char *
hugepages_os_error_name(int os_error)
{
    switch (os_error) {
    case ENOMEM:
        return "ENOMEM";
    case ENOSYS:
        return "ENOSYS";
    default:
        return NULL;
    }
}
