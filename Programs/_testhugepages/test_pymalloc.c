/* Tests of pymalloc.c and report.c, over Linux. */

#define TEST_PREFIX pymalloc
#define HUGEPAGES_KEEP_MOST 0
#include "linux_calls.h"

/* A pool of two, then transparent huge pages; chunks get neither. */
TEST(pymalloc_arenas)
{
    enum { COUNT = 4 };
    void *arenas[COUNT];
    NEED_POOL(2);
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_ON);
    void *chunk = _PyMem_HugePagesAlloc(NULL, 16 * 1024);
    REQUIRE(chunk != NULL);
    CHECK_EQUAL(pool_available(), 2);
    CHECK(!is_advised(chunk));
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_arena();
        REQUIRE(arenas[i] != NULL);
        if (i < 2) {
            check_hugetlb(arenas[i]);
        }
        else {
            check_thp(arenas[i]);
        }
        test_use_memory(arenas[i], ARENA_SIZE, ARENA_SIZE);
    }
    CHECK_EQUAL(pool_available(), 0);
    for (int i = 0; i < COUNT; i++) {
        free_arena(arenas[i]);
        CHECK(is_unmapped(arenas[i]));
    }
    CHECK_EQUAL(pool_available(), 2);
    _PyMem_HugePagesFree(NULL, chunk, 16 * 1024);
    CHECK(is_unmapped(chunk));
    _PyMem_HugePagesFree(NULL, NULL, ARENA_SIZE);
}

/* As an interpreter does it: what it has is in its table. */
CHILD_TEST(pymalloc_first_arenas)
{
    enum { MOST = 8 };
    static PyThreadState tstate;
    static __typeof__(*tstate.interp) interp;
    static __typeof__(*interp.obmalloc) obmalloc;
    static __typeof__(*obmalloc.mgmt.arenas) table[MOST];
    struct _obmalloc_mgmt *mgmt = &obmalloc.mgmt;
    /* This process has forked none. */
    reset_core();
    tstate.interp = &interp;
    test_tstate = &tstate;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    /* An interpreter that has none yet. */
    void *early = alloc_arena();
    check_thp(early);
    free_arena(early);

    interp.obmalloc = &obmalloc;
    mgmt->arenas = table;
    mgmt->maxarenas = MOST;
    for (unsigned int i = 0; i < MOST; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        CHECK_EQUAL((uintptr_t)arena % ARENA_SIZE, 0);
        CHECK_EQUAL(is_advised(arena), i >= HUGEPAGES_FIRST_ARENAS);
        write_numbers(arena, ARENA_SIZE);
        mgmt->arenas[i].address = (uintptr_t)arena;
        mgmt->narenas_currently_allocated++;
    }
    for (unsigned int i = 0; i < MOST; i++) {
        void *arena = (void *)mgmt->arenas[i].address;
        check_thp(arena);
        check_numbers(arena, ARENA_SIZE);
        free_arena(arena);
        CHECK(is_unmapped(arena));
    }
}

/* The last thing that a program does. */
CHILD_TEST(pymalloc_fini)
{
    char line[2000];
    char name[] = "/tmp/testhugepages-XXXXXX";
    int fd = mkstemp(name);
    REQUIRE(fd >= 0);
    (void)close(fd);
    CHECK_EQUAL(setenv("PYTHON_PYMALLOC_HUGEPAGES_STATS", name, 1), 0);
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    void *arena = alloc_arena();
    _PyMem_FiniHugePages();
    CHECK_EQUAL(read_file(name, line, sizeof(line)), 0);
    (void)unlink(name);
    CHECK(line[0] == '{' && strchr(line, '\n') == line + strlen(line) - 1);
    CHECK(strstr(line, "\"switch\": \"thp\"") != NULL);
    CHECK(strstr(line, "\"thp\": {\"now\": 1, \"peak\": 1, \"ever\": 1, "
                       "\"refused\": {}, \"unusable\": null}") != NULL);
    CHECK(strstr(line, "the switch leaves it out") != NULL);
    free_arena(arena);
}

/* An arena in the middle of memory that the kernel sees as one mapping cannot
   be cut out of it: it waits for the next request. */
CHILD_TEST(pymalloc_max_map_count)
{
    enum { COUNT = 16 };
    void *arenas[COUNT];
    int middle = -1;
    _PyMem_SetHugePages(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_arena();
        REQUIRE(arenas[i] != NULL);
    }
    for (int i = 0; i < COUNT && middle < 0; i++) {
        smaps_entry entry = need_smaps(arenas[i]);
        uintptr_t address = (uintptr_t)arenas[i];
        if (entry.start < address && address + ARENA_SIZE < entry.end) {
            middle = i;
        }
    }
    REQUIRE(middle >= 0);
    size_t filler_size;
    void *filler = use_up_mappings(&filler_size);
    REQUIRE(filler != NULL);

    memset(arenas[middle], 1, ARENA_SIZE);
    long resident = read_status("VmRSS:");
    free_arena(arenas[middle]);
    CHECK(read_status("VmRSS:") < resident - 1024);
    /* Where no more memory is available, this is no way out, nor a trap. */
    let_fail(CALL_MMAP, fake.calls[CALL_MMAP] + 1, 0, ENOMEM);
    (void)alarm(60);
    CHECK(_PyMem_HugePagesAlloc(NULL, 16 * 1024) == NULL);
    (void)alarm(0);
    int calls = fake.calls[CALL_MMAP];
    CHECK(alloc_arena() == arenas[middle]);
    CHECK_EQUAL(fake.calls[CALL_MMAP], calls);
    test_use_memory(arenas[middle], ARENA_SIZE, ARENA_SIZE);
    disarm();
    /* A new one is refused, or merges with those that are there; either way
       quietly. */
    (void)alloc_arena();

    CHECK_EQUAL(munmap(filler, filler_size), 0);
    free_arena(arenas[middle]);
    CHECK(is_unmapped(arenas[middle]));
}
