/* Tests of retain.c, and of arena.c with it, over a fake OS layer whose clock
   the test sets.

   After each operation the arenas that the fake has mapped must be those that
   the test holds, those that are kept, and the strays. */

#include <stddef.h>               // size_t

/* Small, so that the tests reach them. */
#define HUGEPAGES_KEEP_MOST_EXPLICIT 6
#define HUGEPAGES_KEEP_MOST_THP 10

#include "_testhugepages.h"

#define _PyMem_SetHugePages retain_set_huge_pages
#define _PyMem_GetHugePagesStats retain_get_stats
#define _PyMem_ReleaseHugePages retain_release
#define _PyMem_HugePagesCollected retain_collected
/* Medium and large blocks have their tests in _testhugepages_blocks.c. */
#define TEST_NO_BLOCKS
#include "_testhugepages_room.h"

// --- the fake OS layer -----------------------------------------------------

#define MAX_ARENAS 256

typedef struct {
    unsigned char *address;
    size_t size;
    hugepages_kind kind;
    int is_aligned;
} mapping;

/* All of it but the clock is guarded by the lock of the layer. */
static struct {
    uint64_t now;
    int locked;
    int lock_count;
    /* Which kinds of pages there are. */
    int has[HUGEPAGES_KINDS];
    /* How many are not taken back from now on. */
    int refused_unmaps;
    /* If nonzero, some requests are refused at random. */
    uint32_t random_state;
    mapping mappings[MAX_ARENAS];
    int mapping_count;
    /* Arenas ever mapped. */
    int maps;
} fake;

static void
hugepages_os_lock(void)
{
    test_lock();
    fake.locked = 1;
    fake.lock_count++;
}

static void
hugepages_os_unlock(void)
{
    fake.locked = 0;
    test_unlock();
}

static uint64_t
hugepages_os_now(void)
{
    return _Py_atomic_load_uint64_relaxed(&fake.now);
}

static hugepages_result
hugepages_os_watch_fork(int *Py_UNUSED(os_error))
{
    return HUGEPAGES_OK;
}

static void
hugepages_os_scan(hugepages_system *system)
{
    *system = (hugepages_system){4096, ARENA_SIZE, ARENA_SIZE, 0};
}

static hugepages_result
hugepages_os_enable_explicit(int *Py_UNUSED(os_error))
{
    return HUGEPAGES_OK;
}

static hugepages_result
fake_map(hugepages_kind kind, size_t size, int is_aligned, void **address,
         int *os_error)
{
    /* A stand-in for the memory: nobody but the list of those kept, and that
       of the strays, writes into an arena here. */
    const size_t stand_in_size = size == ARENA_SIZE ? 64 : size;
    CHECK(fake.locked);
    *os_error = 1;
    if (!fake.has[kind] || fake.mapping_count == MAX_ARENAS
        || (fake.random_state != 0
            && test_random(&fake.random_state) % 100 < 20))
    {
        return HUGEPAGES_BUSY;
    }
    mapping *added = &fake.mappings[fake.mapping_count++];
    *added = (mapping){NULL, size, kind, is_aligned};
    /* What is not aligned must not seem to be: only aligned plain memory may
       be kept. */
    added->address = is_aligned
                     ? (unsigned char *)test_alloc_aligned(size, ARENA_SIZE)
                     : (unsigned char *)malloc(stand_in_size);
    if (added->address == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    fake.maps += (size == ARENA_SIZE);
    *address = added->address;
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    return fake_map(HUGEPAGES_EXPLICIT, size, 0, address, os_error);
}

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    return fake_map(HUGEPAGES_THP, size, 0, address, os_error);
}

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    return fake_map(HUGEPAGES_PLAIN, size, 0, address, os_error);
}

static hugepages_result
hugepages_os_map_aligned(size_t size, size_t alignment, void **address,
                         int *os_error)
{
    CHECK_EQUAL(size, ARENA_SIZE);
    CHECK_EQUAL(alignment, ARENA_SIZE);
    return fake_map(HUGEPAGES_PLAIN, size, 1, address, os_error);
}

static hugepages_result
hugepages_os_advise(void *address, size_t size, int *os_error)
{
    CHECK_EQUAL(size, ARENA_SIZE);
    *os_error = 1;
    for (int i = 0; i < fake.mapping_count; i++) {
        if (fake.mappings[i].address == address) {
            CHECK(fake.mappings[i].is_aligned);
            if (!fake.has[HUGEPAGES_THP]) {
                return HUGEPAGES_BUSY;
            }
            fake.mappings[i].kind = HUGEPAGES_THP;
            return HUGEPAGES_OK;
        }
    }
    FAIL("advice for %p, which is not mapped", address);
    return HUGEPAGES_BUSY;
}

static void
free_memory(const mapping *freed)
{
    if (freed->is_aligned) {
        test_free_aligned(freed->address, freed->size);
    }
    else {
        free(freed->address);
    }
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    CHECK(fake.locked);
    *os_error = 1;
    for (int i = 0; i < fake.mapping_count; i++) {
        if (fake.mappings[i].address == address) {
            CHECK_EQUAL(fake.mappings[i].size, size);
            if (fake.refused_unmaps > 0) {
                fake.refused_unmaps--;
                return HUGEPAGES_BUSY;
            }
            free_memory(&fake.mappings[i]);
            fake.mappings[i] = fake.mappings[--fake.mapping_count];
            return HUGEPAGES_OK;
        }
    }
    FAIL("unmap of %p, which is not mapped", address);
    return HUGEPAGES_BUSY;
}

static const char *
hugepages_os_error_name(int Py_UNUSED(os_error))
{
    return NULL;
}

// --- helpers ---------------------------------------------------------------

static void *held[MAX_ARENAS];
static int held_count;

static int
count_mapped(hugepages_kind kind)
{
    int count = 0;
    for (int i = 0; i < fake.mapping_count; i++) {
        count += (fake.mappings[i].size == ARENA_SIZE
                  && fake.mappings[i].kind == kind);
    }
    return count;
}

static int
count_strays(void)
{
    int count = 0;
    for (const hugepages_stray *stray = hugepages_state.strays; stray != NULL;
         stray = stray->next)
    {
        count += (stray->size == ARENA_SIZE);
    }
    return count;
}

static int
kept(void)
{
    return (int)hugepages_retained_count;
}

static void
check_all(void)
{
    int in_lists = 0;
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KEPT_KINDS; kind++) {
        int in_list = 0;
        for (const hugepages_kept *arena = hugepages_retained.arenas[kind];
             arena != NULL; arena = arena->next)
        {
            size_t index;
            CHECK_EQUAL(hugepages_find(arena, &index), kind);
            in_list++;
        }
        CHECK_EQUAL(in_list, hugepages_retained.count[kind]);
        CHECK((size_t)in_list <= hugepages_keep_most[kind]);
        CHECK(hugepages_retained.unwanted[kind] <= (size_t)in_list);
        in_lists += in_list;
    }
    CHECK_EQUAL(in_lists, kept());
    int mapped = count_mapped(HUGEPAGES_EXPLICIT)
                 + count_mapped(HUGEPAGES_THP) + count_mapped(HUGEPAGES_PLAIN);
    CHECK_EQUAL(mapped, held_count + kept() + count_strays());
    for (int i = 0; i < held_count; i++) {
        for (int j = 0; j < i; j++) {
            if (held[i] == held[j]) {
                FAIL("an arena in use was given out again");
            }
        }
    }
    _PyMem_HugePagesStats stats;
    retain_get_stats(&stats);
    CHECK_EQUAL(stats.retained.now, kept() + count_strays());
    CHECK_EQUAL(stats.hugetlb.now, count_mapped(HUGEPAGES_EXPLICIT));
    CHECK_EQUAL(stats.thp.now, count_mapped(HUGEPAGES_THP));
    CHECK_EQUAL(stats.plain.now, count_mapped(HUGEPAGES_PLAIN));
}

static void
begin_test(int tiers)
{
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    skip_first_arenas();
    memset(&hugepages_stats, 0, sizeof(hugepages_stats));
    memset(&hugepages_retained, 0, sizeof(hugepages_retained));
    hugepages_retained_count = 0;
    memset(&fake, 0, sizeof(fake));
    for (int kind = 0; kind < HUGEPAGES_KINDS; kind++) {
        fake.has[kind] = 1;
    }
    fake.now = 1000000;
    held_count = 0;
    retain_set_huge_pages(tiers);
}

/* The same, with no arena before. */
static void
begin_first_test(int tiers)
{
    begin_test(tiers);
    memset(&hugepages_state.used, 0, sizeof(hugepages_state.used));
}

#define FIRST ((int)hugepages_first_count[HUGEPAGES_FOR_POOLS])

/* Take so many arenas.  Return how many of them had to be mapped. */
static int
build(int count)
{
    int maps = fake.maps;
    while (count-- > 0) {
        void *address = hugepages_alloc(ARENA_SIZE);
        if (address == NULL) {
            FAIL("no arena");
            break;
        }
        held[held_count++] = address;
        check_all();
    }
    return fake.maps - maps;
}

/* Give so many back. */
static void
drop(int count)
{
    while (count-- > 0) {
        hugepages_free(held[--held_count], ARENA_SIZE);
        check_all();
    }
}

/* Let so many epochs go by, the program working all the time. */
static void
work(int epochs)
{
    while (epochs-- > 0) {
        fake.now += HUGEPAGES_EPOCH;
        hugepages_work_goes_on();
        check_all();
    }
}

static void
end_test(void)
{
    drop(held_count);
    retain_release();
    CHECK_EQUAL(kept(), 0);
    check_all();
    fake.refused_unmaps = 0;
    hugepages_os_lock();
    while (hugepages_state.strays != NULL) {
        size_t size = hugepages_state.strays->size;
        void *stray = hugepages_pop_stray(size);
        if (size == ARENA_SIZE) {
            hugepages_unmap_arena(stray);
        }
        else {
            (void)hugepages_unmap_or_stray(stray, size);
        }
    }
    hugepages_os_unlock();
    for (int i = 0; i < fake.mapping_count; i++) {
        /* The tables are never unmapped. */
        CHECK(fake.mappings[i].size < ARENA_SIZE);
        free_memory(&fake.mappings[i]);
    }
}

// --- tests: how many -------------------------------------------------------

static void
test_first_drop(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    CHECK_EQUAL(build(20), 20);
    drop(20);
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_LEAST);
    end_test();
}

static void
test_loop(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    (void)build(8);
    drop(8);
    CHECK_EQUAL(build(8), 8 - HUGEPAGES_KEEP_LEAST);
    drop(8);
    CHECK_EQUAL(kept(), 8);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(build(8), 0);
        drop(8);
        CHECK_EQUAL(kept(), 8);
    }
    end_test();
}

/* A loop over more epochs than one: what is wanted in each stays. */
static void
test_slow_loop(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < 12; i++) {
        int maps = build(8);
        if (i >= 2) {
            CHECK_EQUAL(maps, 0);
        }
        fake.now += HUGEPAGES_EPOCH / 2;
        hugepages_work_goes_on();
        drop(8);
        fake.now += HUGEPAGES_EPOCH / 4;
        hugepages_work_goes_on();
    }
    CHECK_EQUAL(kept(), 8);
    end_test();
}

/* What was given back long ago was not given back too early. */
static void
test_long_ago(void)
{
    for (uint64_t pause = 0; pause <= 4; pause++) {
        begin_test(PYMALLOC_HUGEPAGES_THP);
        (void)build(8);
        drop(8);
        fake.now += pause * HUGEPAGES_EPOCH;
        (void)build(8);
        drop(8);
        CHECK_EQUAL(kept(), pause <= 1 ? 8 : HUGEPAGES_KEEP_LEAST);
        end_test();
    }
}

/* Not even if nothing has happened since. */
static void
test_pause(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    (void)build(9);
    drop(8);
    fake.now += HUGEPAGES_EPOCH;
    (void)build(1);
    drop(1);
    fake.now += 100 * HUGEPAGES_EPOCH;
    (void)build(8);
    drop(8);
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_LEAST);
    end_test();
}

/* Growth is not a return of what was dropped. */
static void
test_growth(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    (void)build(5);
    drop(5);
    CHECK_EQUAL(build(30), 30 - HUGEPAGES_KEEP_LEAST);
    drop(30);
    CHECK_EQUAL(kept(), 5);
    end_test();
}

static void
test_most_thp(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < 4; i++) {
        (void)build(25);
        drop(25);
    }
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_MOST_THP);
    end_test();
}

static void
test_most_explicit(void)
{
    begin_test(PYMALLOC_HUGEPAGES_HUGETLB);
    for (int i = 0; i < 4; i++) {
        (void)build(25);
        drop(25);
    }
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_MOST_EXPLICIT);
    CHECK(hugepages_retained.bound <= HUGEPAGES_KEEP_MOST_THP);
    end_test();
}

/* Explicit pages are taken before others. */
static void
test_kinds(void)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    fake.has[HUGEPAGES_EXPLICIT] = 0;
    (void)build(3);
    fake.has[HUGEPAGES_EXPLICIT] = 1;
    (void)build(4);
    hugepages_retained.bound = 7;
    drop(7);
    CHECK_EQUAL(kept(), 7);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_EXPLICIT], 4);
    (void)build(4);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_EXPLICIT], 0);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_THP], 3);
    end_test();
}

static void
test_plain_is_not_kept(void)
{
    static const int switches[] = {
        PYMALLOC_HUGEPAGES_OFF, PYMALLOC_HUGEPAGES_ON
    };
    for (int i = 0; i < 2; i++) {
        begin_test(switches[i]);
        fake.has[HUGEPAGES_EXPLICIT] = 0;
        fake.has[HUGEPAGES_THP] = 0;
        for (int j = 0; j < 3; j++) {
            CHECK_EQUAL(build(8), 8);
            drop(8);
            CHECK_EQUAL(kept(), 0);
        }
        end_test();
    }
}

/* Nor is plain memory that is no more than that. */
static void
test_unaligned_is_not_kept(void)
{
    void *arena;
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.has[HUGEPAGES_THP] = 0;
    CHECK_EQUAL(build(3), 3);
    drop(3);
    CHECK_EQUAL(kept(), 0);
    fake.has[HUGEPAGES_THP] = 1;
    CHECK_EQUAL(build(1), 1);
    arena = held[0];
    drop(1);
    CHECK_EQUAL(kept(), 1);
    CHECK_EQUAL(build(1), 0);
    CHECK(held[0] == arena);
    end_test();
}

/* The first arenas are plain memory, but on its way to huge pages. */
static void
test_first_are_kept(void)
{
    begin_first_test(PYMALLOC_HUGEPAGES_THP);
    CHECK_EQUAL(build(2), 2);
    CHECK_EQUAL(count_mapped(HUGEPAGES_PLAIN), 2);
    drop(2);
    CHECK_EQUAL(kept(), 2);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_PLAIN], 2);
    CHECK_EQUAL(build(2), 0);
    CHECK_EQUAL(kept(), 0);
    /* They are first arenas as before. */
    CHECK_EQUAL(build(FIRST - 1), FIRST - 1);
    CHECK_EQUAL(count_mapped(HUGEPAGES_PLAIN), 0);
    CHECK_EQUAL(count_mapped(HUGEPAGES_THP), FIRST + 1);
    end_test();
}

/* A later arena does not take what is plain memory. */
static void
test_later_take_no_plain(void)
{
    begin_first_test(PYMALLOC_HUGEPAGES_THP);
    CHECK_EQUAL(build(1), 1);
    drop(1);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_PLAIN], 1);
    skip_first_arenas();
    CHECK_EQUAL(build(1), 1);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_PLAIN], 1);
    CHECK_EQUAL(count_mapped(HUGEPAGES_THP), 1);
    /* A first one takes what there is. */
    drop(1);
    hugepages_state.used[HUGEPAGES_FOR_POOLS] = 0;
    CHECK_EQUAL(build(2), 0);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

static void
test_most_plain(void)
{
    begin_first_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = 100;
    for (int i = 0; i < HUGEPAGES_KEEP_MOST_THP + 5; i++) {
        hugepages_state.used[HUGEPAGES_FOR_POOLS] = 0;
        (void)build(1);
    }
    CHECK_EQUAL(count_mapped(HUGEPAGES_PLAIN), held_count);
    hugepages_state.used[HUGEPAGES_FOR_POOLS] = (size_t)held_count;
    drop(held_count);
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_MOST_THP);
    work(2);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

/* With the switch off nothing is kept, what it was before notwithstanding. */
static void
test_first_after_switch(void)
{
    begin_first_test(PYMALLOC_HUGEPAGES_THP);
    (void)build(2);
    retain_set_huge_pages(PYMALLOC_HUGEPAGES_OFF);
    drop(2);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

// --- tests: how long -------------------------------------------------------

/* Have 8 arenas kept, the bound being as high. */
static void
keep_eight(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < 2; i++) {
        (void)build(8);
        drop(8);
    }
    CHECK_EQUAL(kept(), 8);
}

static void
test_unwanted(void)
{
    keep_eight();
    work(1);
    CHECK_EQUAL(kept(), 8);
    work(1);
    CHECK_EQUAL(kept(), 0);
    (void)build(8);
    drop(8);
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_LEAST);
    end_test();
}

/* Only those that are not wanted go. */
static void
test_partly_wanted(void)
{
    keep_eight();
    work(1);
    for (int i = 0; i < 4; i++) {
        CHECK_EQUAL(build(3), 0);
        drop(3);
        work(1);
        CHECK_EQUAL(kept(), 3);
    }
    end_test();
}

/* A program that does nothing keeps what it has; when it goes on, the time of
   its rest does not count as work. */
static void
test_rest(void)
{
    keep_eight();
    fake.now += 1000 * HUGEPAGES_EPOCH;
    hugepages_work_goes_on();
    CHECK_EQUAL(kept(), 8);
    hugepages_work_goes_on();
    CHECK_EQUAL(kept(), 8);
    work(1);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

/* The bound falls as well where nothing is there to be kept. */
static void
test_bound_falls(void)
{
    keep_eight();
    (void)build(40);
    for (int i = 0; i < 12; i++) {
        work(1);
        (void)build(1);
    }
    drop(20);
    CHECK_EQUAL(kept(), HUGEPAGES_KEEP_LEAST);
    end_test();
}

/* Before the time, and when nothing is kept, there is nothing to be done. */
static void
test_work_is_cheap(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    (void)build(8);
    int lock_count = fake.lock_count;
    fake.now += 10 * HUGEPAGES_EPOCH;
    hugepages_work_goes_on();
    CHECK_EQUAL(fake.lock_count, lock_count);
    drop(8);
    lock_count = fake.lock_count;
    fake.now += HUGEPAGES_EPOCH - 1;
    hugepages_work_goes_on();
    CHECK_EQUAL(fake.lock_count, lock_count);
    fake.now++;
    hugepages_work_goes_on();
    CHECK_EQUAL(fake.lock_count, lock_count + 1);
    end_test();
}

static void
test_collection(void)
{
    keep_eight();
    retain_collected(0);
    CHECK_EQUAL(kept(), 8);
    retain_collected(1);
    CHECK_EQUAL(kept(), 0);
    end_test();

    keep_eight();
    fake.now += HUGEPAGES_EPOCH;
    retain_collected(0);
    fake.now += HUGEPAGES_EPOCH;
    retain_collected(0);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

static void
test_switch(void)
{
    keep_eight();
    (void)build(4);
    retain_set_huge_pages(PYMALLOC_HUGEPAGES_HUGETLB);
    CHECK_EQUAL(kept(), 0);
    check_all();
    /* Nor are those kept that it does not allow any more. */
    drop(4);
    CHECK_EQUAL(kept(), 0);
    end_test();
}

// --- tests: what goes wrong ------------------------------------------------

/* Where other memory is short, nothing is kept. */
static void
test_other_size_refused(void)
{
    const size_t size = 16 * 1024;
    keep_eight();
    fake.has[HUGEPAGES_PLAIN] = 0;
    CHECK(hugepages_alloc(size) == NULL);
    CHECK_EQUAL(kept(), 0);
    CHECK(hugepages_alloc(size) == NULL);
    fake.has[HUGEPAGES_PLAIN] = 1;
    void *address = hugepages_alloc(size);
    REQUIRE(address != NULL);
    hugepages_free(address, size);
    check_all();
    end_test();
}

static void
test_unmap_refused(void)
{
    keep_eight();
    fake.refused_unmaps = 3;
    retain_release();
    CHECK_EQUAL(kept(), 0);
    CHECK_EQUAL(count_strays(), 3);
    check_all();
    CHECK_EQUAL(build(8), 5);
    CHECK_EQUAL(count_strays(), 0);
    end_test();
}

// --- tests: everything -----------------------------------------------------

static void
test_random_sequences(void)
{
    for (int round = 0; round < test_rounds(50); round++) {
        static const int switches[] = {
            PYMALLOC_HUGEPAGES_THP, PYMALLOC_HUGEPAGES_HUGETLB,
            PYMALLOC_HUGEPAGES_ON
        };
        if (round % 2 == 0) {
            begin_test(switches[round % 3]);
        }
        else {
            begin_first_test(switches[round % 3]);
        }
        fake.random_state = test_seed + (uint32_t)round;
        uint32_t state = ~fake.random_state;
        for (int i = 0; i < 200 && !test_failed(); i++) {
            int count = (int)(test_random(&state) % 12);
            fake.now += test_random(&state) % HUGEPAGES_EPOCH;
            fake.refused_unmaps = (int)(test_random(&state) % 3);
            switch (test_random(&state) % 10) {
            case 0:
                hugepages_work_goes_on();
                break;
            case 1:
                retain_collected(count > 8);
                break;
            case 2: case 3: case 4: case 5:
                for (int j = 0; j < count && held_count < 100; j++) {
                    held[held_count] = hugepages_alloc(ARENA_SIZE);
                    held_count += (held[held_count] != NULL);
                }
                break;
            default:
                drop(count < held_count ? count : held_count);
                break;
            }
            check_all();
        }
        fake.random_state = 0;
        end_test();
    }
}

#define THREADS 8

static void
stress(int number)
{
    uint32_t state = test_seed + (uint32_t)number;
    void *arenas[8];
    for (int i = 0; i < test_rounds(300); i++) {
        for (int j = 0; j < 8; j++) {
            arenas[j] = hugepages_alloc(ARENA_SIZE);
        }
        _Py_atomic_store_uint64_relaxed(
            &fake.now, hugepages_os_now() + test_random(&state) % 50);
        hugepages_work_goes_on();
        if (number == 0 && i % 16 == 0) {
            retain_collected(1);
        }
        for (int j = 0; j < 8; j++) {
            hugepages_free(arenas[j], ARENA_SIZE);
        }
    }
}

static void
test_threads(void)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    test_run_threads(THREADS, stress);
    check_all();
    end_test();
}

const testhugepages_test testhugepages_retain_tests[] = {
    {"retain_first_drop", test_first_drop},
    {"retain_loop", test_loop},
    {"retain_slow_loop", test_slow_loop},
    {"retain_long_ago", test_long_ago},
    {"retain_pause", test_pause},
    {"retain_growth", test_growth},
    {"retain_most_thp", test_most_thp},
    {"retain_most_explicit", test_most_explicit},
    {"retain_kinds", test_kinds},
    {"retain_plain_is_not_kept", test_plain_is_not_kept},
    {"retain_unaligned_is_not_kept", test_unaligned_is_not_kept},
    {"retain_first_are_kept", test_first_are_kept},
    {"retain_later_take_no_plain", test_later_take_no_plain},
    {"retain_most_plain", test_most_plain},
    {"retain_first_after_switch", test_first_after_switch},
    {"retain_unwanted", test_unwanted},
    {"retain_partly_wanted", test_partly_wanted},
    {"retain_rest", test_rest},
    {"retain_bound_falls", test_bound_falls},
    {"retain_work_is_cheap", test_work_is_cheap},
    {"retain_collection", test_collection},
    {"retain_switch", test_switch},
    {"retain_other_size_refused", test_other_size_refused},
    {"retain_unmap_refused", test_unmap_refused},
    {"retain_random_sequences", test_random_sequences},
    {"retain_threads", test_threads},
    {NULL, NULL}
};
