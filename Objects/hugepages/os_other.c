/* The OS layer where nothing is known about huge pages: plain memory only, got
   as stock obmalloc.c gets it.  The contract is in hugepages.h.

   As there, that is mmap() if it has MAP_ANONYMOUS, else malloc(). */

#include <errno.h>                // errno, ENOSYS
#include <stdlib.h>               // calloc()
#ifdef HAVE_MMAP
#  include <sys/mman.h>           // mmap()
#endif

static void
hugepages_os_scan(hugepages_system *system)
{
    system->explicit_page_size = 0;
    system->thp_size = 0;
    system->thp_disabled = 0;
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

#define HUGEPAGES_NOT_SUPPORTED ENOSYS
#include "os_without_thp.c"

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
#ifdef MAP_ANONYMOUS
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

#ifdef MAP_ANONYMOUS
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
