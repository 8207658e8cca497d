/* Tests of os_other.c, the OS layer without huge pages.  It is compiled the
   way that this system has: with mmap() where there is one. */

#include "check.h"

#ifdef _WIN32
#  include <windows.h>
#else
#  define HAVE_MMAP
#endif
#include "../../Objects/hugepages/hugepages.h"
#include "../../Objects/hugepages/os_other.c"
#include "os_calls.h"

#define TEST(name) TEST_CASE(name, ANYWHERE, NULL, NULL)

TEST(other_scan)
{
    hugepages_system system;
    memset(&system, 0xFF, sizeof(system));
    hugepages_os_scan(&system);
    CHECK_EQUAL(system.explicit_page_size, 0);
    CHECK_EQUAL(system.thp_size, 0);
    CHECK_EQUAL(system.thp_disabled, 0);
}

TEST(other_refusals)
{
    static const map_function map[] = {
        hugepages_os_map_explicit, hugepages_os_map_thp,
        hugepages_os_map_aligned,
    };
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_enable_explicit(&os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(map); i++) {
        CHECK(CHECK_REFUSED(map[i], ARENA_SIZE, HUGEPAGES_NEVER, ENOSYS)
              == NULL);
    }
    CHECK(strcmp(hugepages_os_error_name(ENOSYS), "ENOSYS") == 0);
    CHECK(strcmp(hugepages_os_error_name(ENOMEM), "ENOMEM") == 0);
    CHECK(hugepages_os_error_name(0) == NULL);
}

TEST(other_plain)
{
    static const size_t sizes[] = {1, 16 * 1024, ARENA_SIZE};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sizes); i++) {
        use_and_unmap(MAP(hugepages_os_map_plain, sizes[i]), sizes[i],
                      sizeof(void *));
    }
}

/* What may be called with memory all the same does not touch it. */
TEST(other_memory_is_left_alone)
{
    void *address = MAP(hugepages_os_map_plain, ARENA_SIZE);
    REQUIRE(address != NULL);
    CHECK_ADVISE(address, ARENA_SIZE, HUGEPAGES_NEVER, ENOSYS);
    use_and_unmap(address, ARENA_SIZE, sizeof(void *));
}

/* More than any address space holds. */
TEST(other_plain_too_large)
{
    volatile size_t size = SIZE_MAX / 4;
    CHECK(CHECK_REFUSED(hugepages_os_map_plain, size, HUGEPAGES_BUSY, ENOMEM)
          == NULL);
}

#ifdef HAVE_MMAP

/* It was never there. */
TEST(other_unmap_refused)
{
    CHECK_UNMAP_REFUSED((void *)1, ARENA_SIZE, EINVAL);
}

#endif
