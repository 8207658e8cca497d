/* What an OS layer has whose system has no transparent huge pages, and no way
   to map memory that is aligned to them: the functions that say so.  Included
   by such a layer, which defines HUGEPAGES_NOT_SUPPORTED as the system's error
   number for it.  The contract is in hugepages.h. */

#include "hugepages.h"

static hugepages_result
hugepages_os_map_thp(size_t Py_UNUSED(size), void **Py_UNUSED(address),
                     int *os_error)
{
    *os_error = HUGEPAGES_NOT_SUPPORTED;
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_map_aligned(size_t Py_UNUSED(size), void **Py_UNUSED(address),
                         int *os_error)
{
    *os_error = HUGEPAGES_NOT_SUPPORTED;
    return HUGEPAGES_NEVER;
}

static hugepages_result
hugepages_os_advise(void *Py_UNUSED(address), size_t Py_UNUSED(size),
                    int *os_error)
{
    *os_error = HUGEPAGES_NOT_SUPPORTED;
    return HUGEPAGES_NEVER;
}
