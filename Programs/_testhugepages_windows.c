/* Tests of os_windows.c, and of the core over it.

   Each call of os_windows.c to the system goes through a function of this
   file, which makes the real call or fails with the error that the test wants.
   Wine has no large pages: it refuses MEM_LARGE_PAGES with error 87, so what
   Windows grants is granted by the fake. */

#define TEST_PREFIX windows
#include "_testhugepages.h"

#include <windows.h>

// --- the calls to the system -----------------------------------------------

static struct {
    /* Errors to fail with; ERROR_SUCCESS: make the real call. */
    DWORD lookup_error;
    DWORD open_error;
    DWORD adjust_error;
    DWORD alloc_error;
    DWORD large_alloc_error;
    DWORD free_error;
    /* Nonzero: the calls for the privilege answer that the account does not
       hold it, or holds it. */
    int privilege_not_held;
    int privilege_held;
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

static BOOL
faked_result(DWORD error)
{
    SetLastError(error);
    return error == ERROR_SUCCESS;
}

static BOOL
fake_LookupPrivilegeValueW(LPCWSTR system, LPCWSTR name, PLUID luid)
{
    CHECK(system == NULL);
    CHECK(wcscmp(name, L"SeLockMemoryPrivilege") == 0);
    if (fake.lookup_error != ERROR_SUCCESS) {
        return faked_result(fake.lookup_error);
    }
    return LookupPrivilegeValueW(system, name, luid);
}

static BOOL
fake_OpenProcessToken(HANDLE process, DWORD access, PHANDLE token)
{
    fake.access = access;
    if (fake.open_error != ERROR_SUCCESS) {
        return faked_result(fake.open_error);
    }
    BOOL opened = OpenProcessToken(process, access, token);
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
    if (fake.adjust_error != ERROR_SUCCESS) {
        return faked_result(fake.adjust_error);
    }
    if (fake.privilege_not_held) {
        SetLastError(ERROR_NOT_ALL_ASSIGNED);
        return TRUE;
    }
    if (fake.privilege_held) {
        return faked_result(ERROR_SUCCESS);
    }
    return AdjustTokenPrivileges(token, disable_all, privileges,
                                 previous_size, previous, length);
}

static BOOL
fake_CloseHandle(HANDLE handle)
{
    fake.open_handles--;
    return CloseHandle(handle);
}

static LPVOID
fake_VirtualAlloc(LPVOID address, SIZE_T size, DWORD type, DWORD protection)
{
    fake.size = size;
    fake.type = type;
    fake.protection = protection;
    if (type & MEM_LARGE_PAGES) {
        fake.large_allocs++;
        if (fake.large_alloc_error != ERROR_SUCCESS) {
            (void)faked_result(fake.large_alloc_error);
            return NULL;
        }
        if (fake.grant_large_pages) {
            type &= ~(DWORD)MEM_LARGE_PAGES;
        }
    }
    else if (fake.alloc_error != ERROR_SUCCESS) {
        (void)faked_result(fake.alloc_error);
        return NULL;
    }
    return VirtualAlloc(address, size, type, protection);
}

static BOOL
fake_VirtualFree(LPVOID address, SIZE_T size, DWORD type)
{
    if (fake.free_error != ERROR_SUCCESS) {
        return faked_result(fake.free_error);
    }
    return VirtualFree(address, size, type);
}

#define LookupPrivilegeValueW fake_LookupPrivilegeValueW
#define OpenProcessToken fake_OpenProcessToken
#define AdjustTokenPrivileges fake_AdjustTokenPrivileges
#define CloseHandle fake_CloseHandle
#define VirtualAlloc fake_VirtualAlloc
#define VirtualFree fake_VirtualFree
#define HUGEPAGES_KEEP_MOST 0
#include "_testhugepages_core.h"
#undef VirtualAlloc
#undef VirtualFree

/* A value of GetLastError() that no call sets: it must still be there after a
   call that is silent. */
#define UNTOUCHED 0x20001234

static void
begin_test(void)
{
    memset(&fake, 0, sizeof(fake));
    reset_core();
    SetLastError(UNTOUCHED);
}

/* Nonzero if nothing is mapped at the address. */
static int
is_unmapped(const void *address)
{
    MEMORY_BASIC_INFORMATION info;
    SIZE_T length = VirtualQuery(address, &info, sizeof(info));
    return length == sizeof(info) && info.State == MEM_FREE;
}

// --- tests of os_windows.c -------------------------------------------------

static void
test_scan(void)
{
    hugepages_system system;
    begin_test();
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    test_note("large page %u KiB",
              (unsigned int)(system.explicit_page_size / 1024));
    CHECK_EQUAL(system.explicit_page_size, GetLargePageMinimum());
    CHECK_EQUAL(system.thp_size, 0);
    CHECK_EQUAL(system.thp_disabled, 0);
}

static void
test_enable_real(void)
{
    int os_error = 0;
    begin_test();
    hugepages_result result = hugepages_os_enable_explicit(&os_error);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    if (result == HUGEPAGES_OK) {
        test_note("privilege held");
        CHECK_EQUAL(os_error, 0);
    }
    else {
        test_note("error %d", os_error);
        CHECK_EQUAL(result, HUGEPAGES_NEVER);
        CHECK(os_error != 0);
    }
    CHECK_EQUAL(fake.open_handles, 0);
}

static void
test_enable_held(void)
{
    LUID luid;
    int os_error = 0;
    begin_test();
    fake.privilege_held = 1;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    CHECK_EQUAL(os_error, 0);
    CHECK_EQUAL(fake.open_handles, 0);
    CHECK_EQUAL(fake.access, TOKEN_ADJUST_PRIVILEGES);
    REQUIRE((LookupPrivilegeValueW)(NULL, L"SeLockMemoryPrivilege", &luid));
    CHECK_EQUAL(fake.privileges.PrivilegeCount, 1);
    CHECK_EQUAL(fake.privileges.Privileges[0].Attributes,
                SE_PRIVILEGE_ENABLED);
    CHECK_EQUAL(fake.privileges.Privileges[0].Luid.LowPart, luid.LowPart);
    CHECK_EQUAL(fake.privileges.Privileges[0].Luid.HighPart, luid.HighPart);
}

static void
test_enable_not_held(void)
{
    int os_error = 0;
    begin_test();
    fake.privilege_not_held = 1;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, 1300);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    CHECK_EQUAL(fake.open_handles, 0);
}

static void
test_enable_each_call_fails(void)
{
    static DWORD *const faults[] = {
        &fake.lookup_error, &fake.open_error, &fake.adjust_error
    };
    for (int i = 0; i < 3; i++) {
        int os_error = 0;
        begin_test();
        *faults[i] = ERROR_ACCESS_DENIED;
        CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_NEVER);
        CHECK_EQUAL(os_error, ERROR_ACCESS_DENIED);
        CHECK_EQUAL(GetLastError(), UNTOUCHED);
        CHECK_EQUAL(fake.open_handles, 0);
    }
}

static void
test_explicit_real(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
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
    test_use_memory(address, ARENA_SIZE, GetLargePageMinimum());
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    CHECK(is_unmapped(address));
}

static void
test_explicit_granted(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    fake.grant_large_pages = 1;
    REQUIRE(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    CHECK_EQUAL(fake.size, ARENA_SIZE);
    CHECK_EQUAL(fake.type, MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES);
    CHECK_EQUAL(fake.protection, PAGE_READWRITE);
    test_use_memory(address, ARENA_SIZE, 4096);
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
    CHECK(is_unmapped(address));
}

static void
test_explicit_refused(void)
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
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        fake.large_alloc_error = cases[i].error;
        CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                    cases[i].result);
        CHECK_EQUAL(os_error, cases[i].error);
        CHECK(address == NULL);
        CHECK_EQUAL(GetLastError(), UNTOUCHED);
    }
}

/* Windows has none of it. */
static void
test_thp(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    CHECK_EQUAL(hugepages_os_map_thp(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ERROR_NOT_SUPPORTED);
    os_error = 0;
    CHECK_EQUAL(hugepages_os_map_aligned(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ERROR_NOT_SUPPORTED);
    CHECK(address == NULL);
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    os_error = 0;
    SetLastError(UNTOUCHED);
    CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ERROR_NOT_SUPPORTED);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    test_use_memory(address, ARENA_SIZE, 4096);
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
}

static void
test_plain(void)
{
    static const size_t sizes[] = {1, 16 * 1024, ARENA_SIZE};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        begin_test();
        REQUIRE(hugepages_os_map_plain(sizes[i], &address, &os_error)
                == HUGEPAGES_OK);
        CHECK_EQUAL(fake.type, MEM_RESERVE | MEM_COMMIT);
        CHECK_EQUAL(fake.protection, PAGE_READWRITE);
        test_use_memory(address, sizes[i], 4096);
        CHECK_EQUAL(hugepages_os_unmap(address, sizes[i], &os_error),
                    HUGEPAGES_OK);
        CHECK(is_unmapped(address));
    }
}

static void
test_plain_fails(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    CHECK_EQUAL(hugepages_os_map_plain(SIZE_MAX / 4, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK(os_error != 0);
    CHECK(address == NULL);
    /* Even an error that is final for large pages is not for plain ones. */
    fake.alloc_error = ERROR_INVALID_PARAMETER;
    CHECK_EQUAL(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ERROR_INVALID_PARAMETER);
    CHECK(address == NULL);
}

static void
test_unmap_refused(void)
{
    void *address = NULL;
    int os_error = 0;
    begin_test();
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    SetLastError(UNTOUCHED);
    fake.free_error = ERROR_NOT_ENOUGH_MEMORY;
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ERROR_NOT_ENOUGH_MEMORY);
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
    fake.free_error = ERROR_SUCCESS;
    test_use_memory(address, ARENA_SIZE, 4096);
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
}

// --- tests of the core over os_windows.c -----------------------------------

/* Whatever the system says to large pages, there is memory. */
static void
check_arenas(int expected_large_allocs)
{
    enum { COUNT = 3 };
    void *arenas[COUNT];
    windows_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = windows_alloc(NULL, ARENA_SIZE);
        REQUIRE(arenas[i] != NULL);
        test_use_memory(arenas[i], ARENA_SIZE, 4096);
    }
    CHECK_EQUAL(fake.large_allocs, expected_large_allocs);
    for (int i = 0; i < COUNT; i++) {
        windows_free(NULL, arenas[i], ARENA_SIZE);
        CHECK(is_unmapped(arenas[i]));
    }
    CHECK_EQUAL(GetLastError(), UNTOUCHED);
}

static void
test_arenas_real(void)
{
    void *arena;
    begin_test();
    windows_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    arena = windows_alloc(NULL, ARENA_SIZE);
    REQUIRE(arena != NULL);
    test_use_memory(arena, ARENA_SIZE, 4096);
    windows_free(NULL, arena, ARENA_SIZE);
    CHECK(is_unmapped(arena));
}

static void
test_arenas_granted(void)
{
    begin_test();
    fake.privilege_held = 1;
    fake.grant_large_pages = 1;
    check_arenas(3);
}

static void
test_arenas_privilege_not_held(void)
{
    begin_test();
    fake.privilege_not_held = 1;
    check_arenas(0);
}

static void
test_arenas_never(void)
{
    begin_test();
    fake.privilege_held = 1;
    fake.large_alloc_error = ERROR_PRIVILEGE_NOT_HELD;
    check_arenas(1);
}

static void
test_arenas_busy(void)
{
    begin_test();
    fake.privilege_held = 1;
    fake.large_alloc_error = ERROR_NO_SYSTEM_RESOURCES;
    check_arenas(3);
}

/* The first arenas of an interpreter cannot be plain until later. */
static void
test_first_arenas(void)
{
    void *arenas[3];
    begin_test();
    fake.privilege_held = 1;
    fake.grant_large_pages = 1;
    windows_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < 3; i++) {
        arenas[i] = hugepages_take_first();
        REQUIRE(arenas[i] != NULL);
        hugepages_promote(arenas[i]);
        test_use_memory(arenas[i], ARENA_SIZE, 4096);
    }
    CHECK_EQUAL(fake.large_allocs, 3);
    for (int i = 0; i < 3; i++) {
        windows_free(NULL, arenas[i], ARENA_SIZE);
        CHECK(is_unmapped(arenas[i]));
    }
}

static void
test_chunks(void)
{
    begin_test();
    fake.privilege_held = 1;
    fake.grant_large_pages = 1;
    windows_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    void *chunk = windows_alloc(NULL, 16 * 1024);
    REQUIRE(chunk != NULL);
    CHECK_EQUAL(fake.large_allocs, 0);
    windows_free(NULL, chunk, 16 * 1024);
    CHECK(is_unmapped(chunk));
}

const testhugepages_test testhugepages_windows_tests[] = {
    {"windows_scan", test_scan},
    {"windows_enable_real", test_enable_real},
    {"windows_enable_held", test_enable_held},
    {"windows_enable_not_held", test_enable_not_held},
    {"windows_enable_each_call_fails", test_enable_each_call_fails},
    {"windows_explicit_real", test_explicit_real},
    {"windows_explicit_granted", test_explicit_granted},
    {"windows_explicit_refused", test_explicit_refused},
    {"windows_thp", test_thp},
    {"windows_plain", test_plain},
    {"windows_plain_fails", test_plain_fails},
    {"windows_unmap_refused", test_unmap_refused},
    {"windows_arenas_real", test_arenas_real},
    {"windows_arenas_granted", test_arenas_granted},
    {"windows_arenas_privilege_not_held", test_arenas_privilege_not_held},
    {"windows_arenas_never", test_arenas_never},
    {"windows_arenas_busy", test_arenas_busy},
    {"windows_first_arenas", test_first_arenas},
    {"windows_chunks", test_chunks},
    {NULL, NULL}
};
