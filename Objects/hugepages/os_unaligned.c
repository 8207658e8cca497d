/* What an OS layer has that cannot map plain memory aligned to a huge page:
   the functions for such memory, which say so.  Included by those layers,
   which define HUGEPAGES_NOT_SUPPORTED as the system's error number for it.
   The contract is in hugepages.h. */

#include "hugepages.h"

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
