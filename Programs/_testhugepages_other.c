/* Tests of os_other.c, the OS layer without huge pages.  It is compiled the
   way that this system has: with mmap() where there is one. */

#include "_testhugepages.h"

#ifndef _WIN32
#  define ARENAS_USE_MMAP
#endif
#include "../Objects/hugepages/hugepages.h"
#include "../Objects/hugepages/os_other.c"

#ifdef ARENAS_USE_MMAP
#  include <sys/wait.h>           // waitpid()
#  include <unistd.h>             // fork()
#endif

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
    CHECK_EQUAL(hugepages_os_now(), 0);
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
    os_error = 0;
    CHECK_EQUAL(hugepages_os_map_aligned(2 * ARENA_SIZE, ARENA_SIZE, &address,
                                         &os_error), HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    CHECK(address == NULL);
    CHECK(strcmp(hugepages_os_error_name(ENOSYS), "ENOSYS") == 0);
    CHECK(strcmp(hugepages_os_error_name(ENOMEM), "ENOMEM") == 0);
    CHECK(hugepages_os_error_name(0) == NULL);
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

/* What may be called with memory all the same does not touch it. */
static void
test_other_memory_is_left_alone(void)
{
    hugepages_system system;
    void *address = NULL, *moved = NULL;
    size_t resident = 4711;
    int os_error = 0;
    hugepages_os_scan(&system);
    REQUIRE(hugepages_os_map_plain(ARENA_SIZE, &address, &os_error)
            == HUGEPAGES_OK);
    CHECK_EQUAL(hugepages_os_advise(address, ARENA_SIZE, &os_error),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(os_error, ENOSYS);
    hugepages_os_fill(address, ARENA_SIZE);
    CHECK_EQUAL(hugepages_os_resident(address, ARENA_SIZE, &resident),
                HUGEPAGES_NEVER);
    CHECK_EQUAL(resident, 4711);
    os_error = 0;
    CHECK_EQUAL(hugepages_os_resize(address, ARENA_SIZE, 2 * ARENA_SIZE,
                                    ARENA_SIZE, &moved, &os_error),
                HUGEPAGES_BUSY);
    CHECK_EQUAL(os_error, ENOSYS);
    test_use_memory(address, ARENA_SIZE, system.base_page_size);
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

#ifdef ARENAS_USE_MMAP

static int counter;

/* Without the lock, some of the additions would be lost. */
static void
count_up(void)
{
    for (int i = 0; i < 100000; i++) {
        hugepages_os_lock();
        counter++;
        hugepages_os_unlock();
    }
}

/* A child that finds the lock taken would wait for ever. */
static void
fork_children(void)
{
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            (void)alarm(60);
            hugepages_os_lock();
            hugepages_os_unlock();
            _exit(0);
        }
        int status = -1;
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
    }
}

static void
count_up_or_fork(int thread)
{
    if (thread == 0) {
        fork_children();
    }
    else {
        count_up();
    }
}

static void
test_other_lock(void)
{
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_watch_fork(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(hugepages_os_watch_fork(&os_error), HUGEPAGES_OK);
    CHECK_EQUAL(os_error, 0);
    counter = 0;
    test_run_threads(4, count_up_or_fork);
    CHECK_EQUAL(counter, 3 * 100000);
}

#else

/* There is nothing to guard. */
static void
test_other_lock(void)
{
    int os_error = 0;
    CHECK_EQUAL(hugepages_os_watch_fork(&os_error), HUGEPAGES_OK);
    hugepages_os_lock();
    hugepages_os_unlock();
    CHECK_EQUAL(os_error, 0);
}

#endif

const testhugepages_test testhugepages_other_tests[] = {
    {"other_scan", test_other_scan},
    {"other_lock", test_other_lock},
    {"other_refusals", test_other_refusals},
    {"other_memory_is_left_alone", test_other_memory_is_left_alone},
    {"other_plain", test_other_plain},
    {"other_plain_too_large", test_other_plain_too_large},
    {NULL, NULL}
};
