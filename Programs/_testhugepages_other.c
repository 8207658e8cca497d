/* Tests of os_other.c, the OS layer without huge pages.  It is compiled the
   way that this system has: with mmap() where there is one. */

#include "_testhugepages.h"

#ifndef _WIN32
#  define HAVE_MMAP
#endif
#include "../Objects/hugepages/hugepages.h"
#include "../Objects/hugepages/os_other.c"

static void
test_other_scan(void)
{
    hugepages_system system;
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.explicit_page_size, 0);
    CHECK_EQUAL(system.thp_size, 0);
    CHECK_EQUAL(system.thp_disabled, 0);
}

static void
test_other_refusals(void)
{
    static hugepages_result (*const map[])(size_t, void **, int *) = {
        hugepages_os_map_explicit, hugepages_os_map_thp,
        hugepages_os_map_aligned,
    };
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    for (int i = 0; i < 3; i++) {
        void *address = NULL;
        os_error = 0;
        CHECK_EQUAL(map[i](ARENA_SIZE, &address, &os_error), HUGEPAGES_NEVER);
        CHECK_EQUAL(os_error, ENOSYS);
        CHECK(address == NULL);
    }
    CHECK(strcmp(hugepages_os_error_name(ENOSYS), "ENOSYS") == 0);
    CHECK(strcmp(hugepages_os_error_name(ENOMEM), "ENOMEM") == 0);
    CHECK(hugepages_os_error_name(0) == NULL);
}

static void
test_other_plain(void)
{
    static const size_t sizes[] = {1, 16 * 1024, ARENA_SIZE};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *address = NULL;
        int os_error = 0;
        REQUIRE(hugepages_os_map_plain(sizes[i], &address, &os_error)
                == HUGEPAGES_OK);
        test_use_memory(address, sizes[i], sizeof(void *));
        CHECK_EQUAL(hugepages_os_unmap(address, sizes[i], &os_error),
                    HUGEPAGES_OK);
    }
}

/* What may be called with memory all the same does not touch it. */
static void
test_other_memory_is_left_alone(void)
{
    void *address = NULL;
    int os_error = 0;
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    test_use_memory(address, ARENA_SIZE, sizeof(void *));
    CHECK_EQUAL(hugepages_os_unmap(address, ARENA_SIZE, &os_error),
                HUGEPAGES_OK);
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

#ifdef HAVE_MMAP

/* It was never there: the caller keeps its errno. */
static void
test_other_unmap_refused(void)
{
    int os_error = 0;
    errno = 4711;
    CHECK_EQUAL(hugepages_os_unmap((void *)1, ARENA_SIZE, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, EINVAL);
    CHECK_EQUAL(errno, 4711);
}

#endif

const testhugepages_test testhugepages_other_tests[] = {
    {"other_scan", test_other_scan},
    {"other_refusals", test_other_refusals},
    {"other_plain", test_other_plain},
    {"other_memory_is_left_alone", test_other_memory_is_left_alone},
    {"other_plain_too_large", test_other_plain_too_large},
#ifdef HAVE_MMAP
    {"other_unmap_refused", test_other_unmap_refused},
#endif
    {NULL, NULL}
};
