/* Tests of os_windows.c, and of the core over it.

   Each call of os_windows.c to the system goes through a function of this
   file, which makes the real call or fails with the error that the test wants.
   Wine has no large pages: it refuses MEM_LARGE_PAGES with error 87, so what
   Windows grants is granted by the fake. */

#define TEST_PREFIX windows
#include "check.h"

#include <windows.h>

// --- the calls to the system ------------------------------------------------

static struct {
    /* Errors to fail with; ERROR_SUCCESS: make the real call. */
    DWORD lookup_error;
    DWORD open_error;
    DWORD adjust_error;
    DWORD alloc_error;
    DWORD large_alloc_error;
    DWORD free_error;
    /* What the calls for the privilege answer: that the account holds it (1)
       or not (-1); 0: make them. */
    int privilege;
    /* Nonzero: serve large pages from plain memory. */
    int grant_large_pages;

    int large_allocs;
    int open_handles;
    DWORD access;
    SIZE_T size;
    DWORD type;
    DWORD protection;
    TOKEN_PRIVILEGES privileges;
} fake;

/* Nonzero, and the error is set, if there is one. */
static int
is_refused(DWORD error)
{
    if (error != ERROR_SUCCESS) {
        SetLastError(error);
    }
    return error != ERROR_SUCCESS;
}

static BOOL
fake_LookupPrivilegeValueW(LPCWSTR system, LPCWSTR name, PLUID luid)
{
    CHECK(system == NULL);
    CHECK(wcscmp(name, L"SeLockMemoryPrivilege") == 0);
    return !is_refused(fake.lookup_error)
           && LookupPrivilegeValueW(system, name, luid);
}

static BOOL
fake_OpenProcessToken(HANDLE process, DWORD access, PHANDLE token)
{
    fake.access = access;
    BOOL opened = !is_refused(fake.open_error)
                  && OpenProcessToken(process, access, token);
    fake.open_handles += (opened != FALSE);
    return opened;
}

static BOOL
fake_AdjustTokenPrivileges(HANDLE token, BOOL disable_all,
                           PTOKEN_PRIVILEGES privileges, DWORD previous_size,
                           PTOKEN_PRIVILEGES previous, PDWORD length)
{
    CHECK(!disable_all);
    fake.privileges = *privileges;
    if (is_refused(fake.adjust_error)) {
        return FALSE;
    }
    if (fake.privilege != 0) {
        SetLastError(fake.privilege > 0 ? ERROR_SUCCESS
                     : ERROR_NOT_ALL_ASSIGNED);
        return TRUE;
    }
    return AdjustTokenPrivileges(token, disable_all, privileges,
                                 previous_size, previous, length);
}

static LPVOID
fake_VirtualAlloc(LPVOID address, SIZE_T size, DWORD type, DWORD protection)
{
    int is_large = (type & MEM_LARGE_PAGES) != 0;
    fake.size = size;
    fake.type = type;
    fake.protection = protection;
    fake.large_allocs += is_large;
    if (is_refused(is_large ? fake.large_alloc_error : fake.alloc_error)) {
        return NULL;
    }
    if (fake.grant_large_pages) {
        type &= ~(DWORD)MEM_LARGE_PAGES;
    }
    return VirtualAlloc(address, size, type, protection);
}

#define LookupPrivilegeValueW fake_LookupPrivilegeValueW
#define OpenProcessToken fake_OpenProcessToken
#define AdjustTokenPrivileges fake_AdjustTokenPrivileges
#define CloseHandle(handle) (fake.open_handles--, CloseHandle(handle))
#define VirtualAlloc fake_VirtualAlloc
#define VirtualFree(address, size, type) \
    (!is_refused(fake.free_error) && VirtualFree(address, size, type))
#define HUGEPAGES_KEEP_MOST 0
#include "core.h"
#undef VirtualAlloc
#undef VirtualFree

/* Nonzero if nothing is mapped at the address. */
static int
is_unmapped(const void *address)
{
    MEMORY_BASIC_INFORMATION info;
    SIZE_T length = VirtualQuery(address, &info, sizeof(info));
    return length == sizeof(info) && info.State == MEM_FREE;
}

#define IS_UNMAPPED is_unmapped
#include "os_calls.h"

static void
begin_test(void)
{
    memset(&fake, 0, sizeof(fake));
    reset_core();
    SetLastError(UNTOUCHED);
}

#define TEST(name) TEST_CASE(name, ANYWHERE, begin_test, NULL)

// --- os_windows.c -----------------------------------------------------------

TEST(windows_scan)
{
    hugepages_system system;
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    test_note("large page %u KiB",
              (unsigned int)(system.explicit_page_size / 1024));
    CHECK_EQUAL(system.explicit_page_size, GetLargePageMinimum());
    CHECK_EQUAL(system.thp_size, 0);
    CHECK_EQUAL(system.thp_disabled, 0);
}

/* Enable explicit pages, and check that nothing is left open. */
static hugepages_result
enable(int *os_error)
{
    *os_error = 0;
    SetLastError(UNTOUCHED);
    hugepages_result result = hugepages_os_enable_explicit(os_error);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    CHECK_EQUAL(fake.open_handles, 0);
    return result;
}

TEST(windows_enable_real)
{
    int os_error;
    if (enable(&os_error) == HUGEPAGES_OK) {
        test_note("privilege held");
        CHECK_EQUAL(os_error, 0);
    }
    else {
        test_note("error %d", os_error);
        CHECK(os_error != 0);
    }
}

TEST(windows_enable_held)
{
    LUID luid;
    int os_error;
    fake.privilege = 1;
    CHECK_EQUAL(enable(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(os_error, 0);
    CHECK_EQUAL(fake.access, TOKEN_ADJUST_PRIVILEGES);
    REQUIRE((LookupPrivilegeValueW)(NULL, L"SeLockMemoryPrivilege", &luid));
    CHECK_EQUAL(fake.privileges.PrivilegeCount, 1);
    CHECK_EQUAL(fake.privileges.Privileges[0].Attributes,
                SE_PRIVILEGE_ENABLED);
    CHECK_EQUAL(fake.privileges.Privileges[0].Luid.LowPart, luid.LowPart);
    CHECK_EQUAL(fake.privileges.Privileges[0].Luid.HighPart, luid.HighPart);
}

TEST(windows_enable_not_held)
{
    int os_error;
    fake.privilege = -1;
    CHECK_EQUAL(enable(&os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, 1300);
}

TEST(windows_enable_each_call_fails)
{
    static DWORD *const faults[] = {
        &fake.lookup_error, &fake.open_error, &fake.adjust_error
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(faults); i++) {
        int os_error;
        begin_test();
        *faults[i] = ERROR_ACCESS_DENIED;
        CHECK_EQUAL(enable(&os_error), HUGEPAGES_NEVER);
        CHECK_EQUAL(os_error, ERROR_ACCESS_DENIED);
    }
}

TEST(windows_explicit_real)
{
    void *address = NULL;
    int os_error = 0;
    (void)hugepages_os_enable_explicit(&os_error);
    os_error = 0;
    hugepages_result result = hugepages_os_map_explicit(ARENA_SIZE, &address,
                                                        &os_error);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    if (result != HUGEPAGES_OK) {
        test_note("error %d", os_error);
        CHECK(address == NULL);
        CHECK_EQUAL(result, hugepages_windows_result((DWORD)os_error));
        return;
    }
    test_note("granted");
    use_and_unmap(address, ARENA_SIZE, GetLargePageMinimum());
}

TEST(windows_explicit_granted)
{
    fake.grant_large_pages = 1;
    void *address = MAP(hugepages_os_map_explicit, ARENA_SIZE);
    CHECK_EQUAL(fake.size, ARENA_SIZE);
    CHECK_EQUAL(fake.type, MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES);
    CHECK_EQUAL(fake.protection, PAGE_READWRITE);
    use_and_unmap(address, ARENA_SIZE, 4096);
}

TEST(windows_explicit_refused)
{
    /* The numbers are Microsoft's; the names are for the reader. */
    static const struct {
        DWORD error;
        hugepages_result result;
    } cases[] = {
        {1314, HUGEPAGES_NEVER},    // ERROR_PRIVILEGE_NOT_HELD
        {87, HUGEPAGES_NEVER},      // ERROR_INVALID_PARAMETER
        {50, HUGEPAGES_NEVER},      // ERROR_NOT_SUPPORTED
        {120, HUGEPAGES_NEVER},     // ERROR_CALL_NOT_IMPLEMENTED
        {1450, HUGEPAGES_BUSY},     // ERROR_NO_SYSTEM_RESOURCES
        {8, HUGEPAGES_BUSY},        // ERROR_NOT_ENOUGH_MEMORY
        {1455, HUGEPAGES_BUSY},     // ERROR_COMMITMENT_LIMIT
        {1816, HUGEPAGES_BUSY},     // ERROR_NOT_ENOUGH_QUOTA
        {487, HUGEPAGES_BUSY},      // ERROR_INVALID_ADDRESS
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        fake.large_alloc_error = cases[i].error;
        CHECK(CHECK_REFUSED(hugepages_os_map_explicit, ARENA_SIZE,
                            cases[i].result, (int)cases[i].error) == NULL);
    }
}

/* Windows has none of it. */
TEST(windows_thp)
{
    CHECK(CHECK_REFUSED(hugepages_os_map_thp, ARENA_SIZE, HUGEPAGES_NEVER,
                        ERROR_NOT_SUPPORTED) == NULL);
    CHECK(CHECK_REFUSED(hugepages_os_map_aligned, ARENA_SIZE, HUGEPAGES_NEVER,
                        ERROR_NOT_SUPPORTED) == NULL);
    void *address = MAP(hugepages_os_map_plain, ARENA_SIZE);
    REQUIRE(address != NULL);
    CHECK_ADVISE(address, ARENA_SIZE, HUGEPAGES_NEVER, ERROR_NOT_SUPPORTED);
    use_and_unmap(address, ARENA_SIZE, 4096);
}

TEST(windows_plain)
{
    static const size_t sizes[] = {1, 16 * 1024, ARENA_SIZE};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sizes); i++) {
        void *address = MAP(hugepages_os_map_plain, sizes[i]);
        CHECK_EQUAL(fake.type, MEM_RESERVE | MEM_COMMIT);
        CHECK_EQUAL(fake.protection, PAGE_READWRITE);
        use_and_unmap(address, sizes[i], 4096);
    }
}

TEST(windows_plain_fails)
{
    void *address = NULL;
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_map_plain(SIZE_MAX / 4, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK(os_error != 0);
    CHECK(address == NULL);
    /* Even an error that is final for large pages is not for plain ones. */
    fake.alloc_error = ERROR_INVALID_PARAMETER;
    CHECK(CHECK_REFUSED(hugepages_os_map_plain, ARENA_SIZE, HUGEPAGES_BUSY,
                        ERROR_INVALID_PARAMETER) == NULL);
}

TEST(windows_unmap_refused)
{
    void *address = MAP(hugepages_os_map_plain, ARENA_SIZE);
    REQUIRE(address != NULL);
    fake.free_error = ERROR_NOT_ENOUGH_MEMORY;
    CHECK_UNMAP_REFUSED(address, ARENA_SIZE, ERROR_NOT_ENOUGH_MEMORY);
    fake.free_error = ERROR_SUCCESS;
    use_and_unmap(address, ARENA_SIZE, 4096);
}

// --- the core over os_windows.c ---------------------------------------------

enum { COUNT = 3 };
static void *arenas[COUNT];

static void
free_arenas(void)
{
    for (int i = 0; i < COUNT; i++) {
        free_arena(arenas[i]);
        CHECK(is_unmapped(arenas[i]));
    }
}

/* Whatever the system says to large pages, there is memory.  -1 expects any
   number of requests for them. */
static void
check_arenas(int large_allocs)
{
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_arena();
        REQUIRE(arenas[i] != NULL);
        test_use_memory(arenas[i], ARENA_SIZE, 4096);
    }
    if (large_allocs >= 0) {
        CHECK_EQUAL(fake.large_allocs, large_allocs);
    }
    free_arenas();
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
}

TEST_CALL(windows_arenas_real, check_arenas(-1))

TEST(windows_arenas)
{
    static const struct {
        int privilege, grant_large_pages;
        DWORD large_alloc_error;
        int large_allocs;
    } cases[] = {
        {1, 1, ERROR_SUCCESS, COUNT},
        {-1, 0, ERROR_SUCCESS, 0},
        {1, 0, ERROR_PRIVILEGE_NOT_HELD, 1},
        {1, 0, ERROR_NO_SYSTEM_RESOURCES, COUNT},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(cases); i++) {
        begin_test();
        fake.privilege = cases[i].privilege;
        fake.grant_large_pages = cases[i].grant_large_pages;
        fake.large_alloc_error = cases[i].large_alloc_error;
        check_arenas(cases[i].large_allocs);
    }
}

/* The first arenas of an interpreter cannot be plain until later. */
TEST(windows_first_arenas)
{
    fake.privilege = 1;
    fake.grant_large_pages = 1;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = hugepages_take_first();
        REQUIRE(arenas[i] != NULL);
        hugepages_promote(arenas[i]);
        test_use_memory(arenas[i], ARENA_SIZE, 4096);
    }
    CHECK_EQUAL(fake.large_allocs, COUNT);
    free_arenas();
}

TEST(windows_chunks)
{
    fake.privilege = 1;
    fake.grant_large_pages = 1;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    void *chunk = _PyMem_HugePagesAlloc(NULL, 16 * 1024);
    REQUIRE(chunk != NULL);
    CHECK_EQUAL(fake.large_allocs, 0);
    _PyMem_HugePagesFree(NULL, chunk, 16 * 1024);
    CHECK(is_unmapped(chunk));
}
