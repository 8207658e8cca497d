/* Tests of os_other.c, the OS layer without huge pages.  It is compiled the
   way that this system has: with mmap() where there is one. */

#include "_testhugepages.h"

#ifndef _WIN32
#  define ARENAS_USE_MMAP
#endif
#include "../Objects/hugepages/hugepages.h"
#include "../Objects/hugepages/os_other.c"

static void
test_other_scan(void)
{
    hugepages_system system;
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    CHECK(system.base_page_size != 0);
    CHECK_EQUAL(system.explicit_page_size, 0);
    CHECK_EQUAL(system.thp_size, 0);
    CHECK_EQUAL(system.thp_disabled, 0);
}

static void
test_other_refusals(void)
{
    void *address = NULL;
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    os_error = 0;
    CHECK_EQUAL(hugepages_os_map_explicit(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    os_error = 0;
    CHECK_EQUAL(hugepages_os_map_thp(ARENA_SIZE, &address, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    CHECK(address == NULL);
}

static void
test_other_plain(void)
{
    static const size_t sizes[] = {1, 16 * 1024, ARENA_SIZE};
    hugepages_system system;
    hugepages_os_scan(&system);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        REQUIRE(hugepages_os_map_plain(sizes[i], &address, &os_error)
                == HUGEPAGES_OK);
        test_use_memory(address, sizes[i], system.base_page_size);
        CHECK_EQUAL(hugepages_os_unmap(address, sizes[i], &os_error),
                    HUGEPAGES_OK);
    }
}

/* More than any address space holds. */
static void
test_other_plain_too_large(void)
{
    void *address = NULL;
    int os_error = 0;
    volatile size_t size = SIZE_MAX / 4;
    CHECK_EQUAL(hugepages_os_map_plain(size, &address, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOMEM);
    CHECK(address == NULL);
}

const testhugepages_test testhugepages_other_tests[] = {
    {"other_scan", test_other_scan},
    {"other_refusals", test_other_refusals},
    {"other_plain", test_other_plain},
    {"other_plain_too_large", test_other_plain_too_large},
    {NULL, NULL}
};
