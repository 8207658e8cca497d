/* The OS layer on Windows: large pages by VirtualAlloc(MEM_LARGE_PAGES).
   Windows has no transparent huge pages.  The contract is in hugepages.h.

   Large pages are asked for by an account that holds the right "Lock pages in
   memory" (SeLockMemoryPrivilege), which is enabled in the process token
   first.  They are committed, zeroed and locked in memory by the call itself:
   no later access can fail.

   Where a call of stock CPython succeeds, GetLastError() stays as the caller
   left it; so it does here when a request for large pages is refused and plain
   memory takes their place. */

#include <windows.h>

/* Which errors are final?  Those that tell of the system or the account; not
   those that tell of memory, such as ERROR_NO_SYSTEM_RESOURCES when memory is
   too fragmented for a large page, or ERROR_COMMITMENT_LIMIT. */
static hugepages_result
hugepages_windows_result(DWORD error)
{
    switch (error) {
    case ERROR_PRIVILEGE_NOT_HELD:
    case ERROR_INVALID_PARAMETER:       // large pages not known
    case ERROR_NOT_SUPPORTED:
    case ERROR_CALL_NOT_IMPLEMENTED:
        return HUGEPAGES_NEVER;
    default:
        return HUGEPAGES_BUSY;
    }
}

static void
hugepages_os_scan(hugepages_system *system)
{
    /* 0 if the processor or the system has no large pages. */
    system->explicit_page_size = GetLargePageMinimum();
    system->thp_size = 0;
    system->thp_disabled = 0;
}

/* Enable SeLockMemoryPrivilege in the process token.  Return the error
   number, ERROR_SUCCESS if there is none. */
static DWORD
hugepages_windows_enable_lock_memory(void)
{
    HANDLE token;
    TOKEN_PRIVILEGES privileges;

    privileges.PrivilegeCount = 1;
    privileges.Privileges[0].Attributes = SE_PRIVILEGE_ENABLED;
    if (!LookupPrivilegeValueW(NULL, L"SeLockMemoryPrivilege",
                               &privileges.Privileges[0].Luid)
        || !OpenProcessToken(GetCurrentProcess(), TOKEN_ADJUST_PRIVILEGES,
                             &token))
    {
        return GetLastError();
    }
    /* The call also succeeds for an account that does not hold the privilege;
       then the last error is ERROR_NOT_ALL_ASSIGNED. */
    SetLastError(ERROR_SUCCESS);
    (void)AdjustTokenPrivileges(token, FALSE, &privileges, 0, NULL, NULL);
    DWORD error = GetLastError();
    (void)CloseHandle(token);
    return error;
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    DWORD saved_error = GetLastError();
    DWORD error = hugepages_windows_enable_lock_memory();
    SetLastError(saved_error);
    if (error != ERROR_SUCCESS) {
        *os_error = (int)error;
        return HUGEPAGES_NEVER;
    }
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    DWORD saved_error = GetLastError();
    void *mapping = VirtualAlloc(NULL, size,
                                 MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES,
                                 PAGE_READWRITE);
    if (mapping == NULL) {
        DWORD error = GetLastError();
        SetLastError(saved_error);
        *os_error = (int)error;
        return hugepages_windows_result(error);
    }
    *address = mapping;
    return HUGEPAGES_OK;
}

#define HUGEPAGES_NOT_SUPPORTED ERROR_NOT_SUPPORTED
#include "os_without_thp.c"

/* The last error is left as VirtualAlloc() sets it, as stock CPython does. */
static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    void *mapping = VirtualAlloc(NULL, size, MEM_COMMIT | MEM_RESERVE,
                                 PAGE_READWRITE);
    if (mapping == NULL) {
        *os_error = (int)GetLastError();
        return HUGEPAGES_BUSY;
    }
    *address = mapping;
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_unmap(void *address, size_t Py_UNUSED(size), int *os_error)
{
    DWORD saved_error = GetLastError();
    /* MEM_RELEASE gives back the whole mapping and demands 0 as its size. */
    if (VirtualFree(address, 0, MEM_RELEASE)) {
        return HUGEPAGES_OK;
    }
    *os_error = (int)GetLastError();
    SetLastError(saved_error);
    return HUGEPAGES_BUSY;
}

static const char *
hugepages_os_error_name(int os_error)
{
#define NAMED(error) case error: return #error
    switch (os_error) {
    NAMED(ERROR_ACCESS_DENIED);
    NAMED(ERROR_CALL_NOT_IMPLEMENTED);
    NAMED(ERROR_COMMITMENT_LIMIT);
    NAMED(ERROR_INVALID_PARAMETER);
    NAMED(ERROR_NOT_ALL_ASSIGNED);
    NAMED(ERROR_NOT_ENOUGH_MEMORY);
    NAMED(ERROR_NOT_SUPPORTED);
    NAMED(ERROR_NO_SYSTEM_RESOURCES);
    NAMED(ERROR_PRIVILEGE_NOT_HELD);
    default:
        return NULL;
    }
#undef NAMED
}
