/* Tests of blocks.c, heap.c, large.c and units.c, and of the first arenas in
   arena.c, over a fake OS layer.

   The fake hands out real memory, aligned as the contract says, and can refuse
   any call.  After each operation everything is looked at: the blocks that the
   test holds, all blocks of the heaps with their lists, which memory is known
   to be what, and the statistics. */

#include <stddef.h>               // size_t

/* Small, so that the tests reach them. */
#define HUGEPAGES_KEEP_MOST_EXPLICIT 4
#define HUGEPAGES_KEEP_MOST_THP 16

#include "_testhugepages.h"

static void *raw_malloc(size_t size);
static void *raw_calloc(size_t count, size_t size);
static void *raw_realloc(void *memory, size_t size);
static void raw_free(void *memory);

#define PyMem_RawMalloc raw_malloc
#define PyMem_RawCalloc raw_calloc
#define PyMem_RawRealloc raw_realloc
#define PyMem_RawFree raw_free
#define _PyMem_SetHugePages blocks_set_huge_pages
#define _PyMem_GetHugePagesStats blocks_get_stats
#define _PyMem_ReleaseHugePages blocks_release
#define _PyMem_HugePagesCollected blocks_collected
/* Few, so that tables grow often. */
#define HUGEPAGES_FIRST_ENTRIES 4
#include "_testhugepages_room.h"

// --- the fake OS layer -----------------------------------------------------

#define BASE_PAGE_SIZE ((size_t)4096)

typedef enum {
    CALL_WATCH,
    CALL_ENABLE,
    CALL_EXPLICIT,
    CALL_THP,
    CALL_ALIGNED,
    CALL_ADVISE,
    CALL_RESIDENT,
    CALL_RESIZE,
    CALL_PLAIN,
    CALL_UNMAP,
    CALL_RAW,
    CALL_KINDS
} call_kind;

static const char *const call_names[CALL_KINDS] = {
    "watch_fork", "enable_explicit", "map_explicit", "map_thp", "map_aligned",
    "advise", "resident", "resize", "map_plain", "unmap", "the raw domain"
};

typedef struct {
    unsigned char *address;
    size_t size;
    call_kind kind;
    /* So many bytes at its begin. */
    size_t advised;
    /* What it is a part of, and how far it could grow where it is. */
    void *memory;
    size_t memory_size;
    size_t room;
} mapping;

#define MAX_MAPPINGS 512
#define MAX_RAW 4096

/* Guarded by the lock of the layer, under which every call must be made but
   watch_fork, and those of the raw domain, which must not. */
static struct {
    uint64_t now;
    int locked;
    /* What the next calls answer. */
    hugepages_result answers[CALL_KINDS];
    /* If nonzero, some calls are refused at random. */
    uint32_t random_state;
    /* The call with this number (from 0, since the start of the test) answers
       fault_answer, as do those after it up to fault_end; -1: none does. */
    int fault_at;
    int fault_end;
    hugepages_result fault_answer;
    int number_of_calls;
    int counts[CALL_KINDS];

    mapping mappings[MAX_MAPPINGS];
    int mapping_count;
    /* In bytes: how far mappings can grow where they are from now on; what is
       in memory of each arena. */
    size_t room;
    size_t resident;

    int fills;
    void *filled;
    size_t filled_size;

    void *raw[MAX_RAW];
    int raw_count;
} fake;

/* In the first page behind a mapping that could grow where it is. */
#define UNMAPPED_BYTE 0xDE

static void
hugepages_os_lock(void)
{
    test_lock();
    fake.locked = 1;
}

static void
hugepages_os_unlock(void)
{
    CHECK(fake.locked);
    fake.locked = 0;
    test_unlock();
}

static uint64_t
hugepages_os_now(void)
{
    return _Py_atomic_load_uint64_relaxed(&fake.now);
}

/* What the contract allows a call to answer. */
static hugepages_result
possible_answer(call_kind kind, hugepages_result answer)
{
    if (answer == HUGEPAGES_OK) {
        return HUGEPAGES_OK;
    }
    switch (kind) {
    case CALL_WATCH: case CALL_ENABLE: case CALL_RESIDENT:
        return HUGEPAGES_NEVER;
    case CALL_EXPLICIT: case CALL_THP: case CALL_ALIGNED: case CALL_ADVISE:
        return answer;
    default:
        return HUGEPAGES_BUSY;
    }
}

/* Choose the answer and count the call. */
static hugepages_result
fake_answer(call_kind kind)
{
    if (!fake.locked) {
        FAIL("%s called without the lock", call_names[kind]);
    }
    hugepages_result answer = fake.answers[kind];
    if (fake.random_state != 0) {
        uint32_t number = test_random(&fake.random_state) % 100;
        answer = number < 10 ? HUGEPAGES_BUSY : HUGEPAGES_OK;
    }
    if (fake.fault_at >= 0 && fake.number_of_calls >= fake.fault_at
        && fake.number_of_calls < fake.fault_end)
    {
        answer = fake.fault_answer;
    }
    fake.number_of_calls++;
    fake.counts[kind]++;
    return possible_answer(kind, answer);
}

static hugepages_result
hugepages_os_watch_fork(int *os_error)
{
    hugepages_os_lock();
    hugepages_result answer = fake_answer(CALL_WATCH);
    hugepages_os_unlock();
    *os_error = 1;
    return answer;
}

static void
hugepages_os_scan(hugepages_system *system)
{
    *system = (hugepages_system){BASE_PAGE_SIZE, ARENA_SIZE, ARENA_SIZE, 0};
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    *os_error = 1;
    return fake_answer(CALL_ENABLE);
}

static mapping *
find_mapping(const void *address)
{
    for (int i = 0; i < fake.mapping_count; i++) {
        if (fake.mappings[i].address == address) {
            return &fake.mappings[i];
        }
    }
    return NULL;
}

/* The mapping of this address and size, or NULL after a failure. */
static mapping *
require_mapping(const void *address, size_t size, const char *call)
{
    mapping *found = find_mapping(address);
    if (found == NULL || found->size != size) {
        FAIL("%s of %p, which is not mapped with that size", call, address);
        return NULL;
    }
    return found;
}

static void
mark_room(const mapping *mapped)
{
    if (mapped->room > 0) {
        memset(mapped->address + mapped->size, UNMAPPED_BYTE, BASE_PAGE_SIZE);
    }
}

/* Plain memory is never aligned to more than a base page. */
static void
get_memory(mapping *mapped)
{
    const size_t head = mapped->kind == CALL_PLAIN ? BASE_PAGE_SIZE : 0;
    const size_t alignment = mapped->size < ARENA_SIZE ? BASE_PAGE_SIZE
                                                       : ARENA_SIZE;
    const size_t page = BASE_PAGE_SIZE;
    mapped->memory_size = (head + mapped->size + mapped->room + page - 1)
                          / page * page;
    mapped->memory = test_alloc_aligned(mapped->memory_size, alignment);
    mapped->address = (unsigned char *)mapped->memory + head;
    mark_room(mapped);
}

static void
check_room(const mapping *mapped)
{
    for (size_t i = 0; mapped->room > 0 && i < BASE_PAGE_SIZE; i++) {
        if (mapped->address[mapped->size + i] != UNMAPPED_BYTE) {
            FAIL("byte %d behind a mapping was written to", (int)i);
            return;
        }
    }
}

static hugepages_result
fake_map(call_kind kind, size_t size, void **address, int *os_error)
{
    hugepages_result answer = fake_answer(kind);
    *os_error = 1;
    if (answer == HUGEPAGES_OK && fake.mapping_count == MAX_MAPPINGS) {
        FAIL("%d mappings are more than any test needs: one leaks",
             MAX_MAPPINGS);
        answer = HUGEPAGES_BUSY;
    }
    if (answer == HUGEPAGES_OK) {
        mapping *added = &fake.mappings[fake.mapping_count++];
        *added = (mapping){
            .size = size, .kind = kind,
            .advised = kind == CALL_THP ? size : 0,
            .room = kind == CALL_ALIGNED ? fake.room : 0,
        };
        get_memory(added);
        *address = added->address;
    }
    return answer;
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    CHECK_EQUAL(size, ARENA_SIZE);
    return fake_map(CALL_EXPLICIT, size, address, os_error);
}

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    CHECK_EQUAL(size, ARENA_SIZE);
    return fake_map(CALL_THP, size, address, os_error);
}

static hugepages_result
hugepages_os_map_aligned(size_t size, size_t alignment, void **address,
                         int *os_error)
{
    CHECK_EQUAL(size % BASE_PAGE_SIZE, 0);
    CHECK_EQUAL(alignment, ARENA_SIZE);
    return fake_map(CALL_ALIGNED, size, address, os_error);
}

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    return fake_map(CALL_PLAIN, size, address, os_error);
}

static hugepages_result
hugepages_os_advise(void *address, size_t size, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_ADVISE);
    mapping *advised = find_mapping(address);
    *os_error = 1;
    if (advised == NULL || advised->kind != CALL_ALIGNED
        || size == 0 || size > advised->size || size % ARENA_SIZE != 0)
    {
        FAIL("advice for %d bytes at %p", (int)size, address);
        return HUGEPAGES_BUSY;
    }
    if (answer == HUGEPAGES_OK && size > advised->advised) {
        advised->advised = size;
    }
    return answer;
}

static void
hugepages_os_fill(void *address, size_t size)
{
    CHECK(fake.locked);
    fake.fills++;
    fake.filled = address;
    fake.filled_size = size;
}

static hugepages_result
hugepages_os_resident(const void *address, size_t size, size_t *resident)
{
    hugepages_result answer = fake_answer(CALL_RESIDENT);
    (void)require_mapping(address, size, "resident");
    if (answer == HUGEPAGES_OK) {
        *resident = fake.resident;
    }
    return answer;
}

static hugepages_result
hugepages_os_resize(void *address, size_t old_size, size_t new_size,
                    size_t alignment, void **new_address, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_RESIZE);
    mapping *resized = require_mapping(address, old_size, "resize");
    *os_error = 1;
    CHECK_EQUAL(alignment, ARENA_SIZE);
    CHECK(new_size > 0 && new_size != old_size);
    CHECK_EQUAL(new_size % BASE_PAGE_SIZE, 0);
    if (resized == NULL || answer != HUGEPAGES_OK) {
        return HUGEPAGES_BUSY;
    }
    CHECK_EQUAL(resized->kind, CALL_ALIGNED);
    check_room(resized);
    if (new_size > old_size) {
        /* The C library may have the old place before this returns. */
        CHECK_EQUAL(hugepages_unit_of(address), HUGEPAGES_UNIT_FOREIGN);
        CHECK(resized->advised == 0 || resized->advised == old_size);
        if (resized->advised > 0) {
            resized->advised = new_size;
        }
    }
    else if (resized->advised > new_size) {
        resized->advised = new_size;
    }
    if (new_size <= old_size + resized->room) {
        if (new_size > old_size) {
            memset(resized->address + old_size, 0, new_size - old_size);
        }
        resized->room = old_size + resized->room - new_size;
        resized->size = new_size;
        mark_room(resized);
        *new_address = address;
        return HUGEPAGES_OK;
    }
    const mapping old = *resized;
    resized->size = new_size;
    resized->room = fake.room;
    get_memory(resized);
    memcpy(resized->address, address, old_size);
    test_free_aligned(old.memory, old.memory_size);
    *new_address = resized->address;
    return HUGEPAGES_OK;
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_UNMAP);
    mapping *unmapped = require_mapping(address, size, "unmap");
    *os_error = 1;
    if (unmapped == NULL || answer != HUGEPAGES_OK) {
        return HUGEPAGES_BUSY;
    }
    check_room(unmapped);
    CHECK_EQUAL(hugepages_unit_of(address), HUGEPAGES_UNIT_FOREIGN);
    test_free_aligned(unmapped->memory, unmapped->memory_size);
    *unmapped = fake.mappings[--fake.mapping_count];
    return HUGEPAGES_OK;
}

static const char *
hugepages_os_error_name(int os_error)
{
    return os_error == 1 ? "FAKE" : NULL;
}

// --- the raw domain --------------------------------------------------------

/* The place of a block of the raw domain among them; -1 after a failure. */
static int
find_raw(const void *memory)
{
    for (int i = 0; i < fake.raw_count; i++) {
        if (fake.raw[i] == memory) {
            return i;
        }
    }
    FAIL("%p is not the raw domain's", memory);
    return -1;
}

static void
add_raw(void *memory)
{
    if (fake.raw_count == MAX_RAW) {
        FAIL("more raw blocks than any test needs: one leaks");
        fake.raw_count--;
    }
    fake.raw[fake.raw_count++] = memory;
}

static void *
raw_malloc(size_t size)
{
    void *memory = NULL;
    hugepages_os_lock();
    if (fake_answer(CALL_RAW) == HUGEPAGES_OK) {
        memory = malloc(size > 0 ? size : 1);
        if (memory != NULL) {
            memset(memory, 0xA5, size);
            add_raw(memory);
        }
    }
    hugepages_os_unlock();
    return memory;
}

static void *
raw_calloc(size_t count, size_t size)
{
    void *memory = raw_malloc(count * size);
    if (memory != NULL) {
        memset(memory, 0, count * size);
    }
    return memory;
}

static void *
raw_realloc(void *memory, size_t size)
{
    void *resized = NULL;
    hugepages_os_lock();
    int index = find_raw(memory);
    if (fake_answer(CALL_RAW) == HUGEPAGES_OK && index >= 0) {
        resized = realloc(memory, size > 0 ? size : 1);
        if (resized != NULL) {
            fake.raw[index] = resized;
        }
    }
    hugepages_os_unlock();
    return resized;
}

static void
raw_free(void *memory)
{
    hugepages_os_lock();
    if (memory != NULL) {
        int index = find_raw(memory);
        if (index >= 0) {
            free(memory);
            fake.raw[index] = fake.raw[--fake.raw_count];
        }
    }
    hugepages_os_unlock();
}

// --- what the test holds ---------------------------------------------------

typedef struct {
    unsigned char *memory;
    size_t size;
    uint32_t seed;
} block;

#define MAX_HELD 1024

static block held[MAX_HELD];
static int held_count;
/* Arenas of pymalloc. */
static void *arenas[64];
static int arena_count;
static uint32_t last_seed;

static unsigned char
block_byte(const block *checked, size_t index)
{
    return (unsigned char)(checked->seed * 37 + index + (index >> 8) * 5);
}

/* A part of the bytes is enough, if the first and the last ones are in it. */
static size_t
next_index(const block *checked, size_t index)
{
    size_t next = index + 1 + checked->size / 128;
    return next >= checked->size && index + 1 < checked->size
           ? checked->size - 1 : next;
}

static void
fill_block(block *filled)
{
    filled->seed = ++last_seed;
    for (size_t i = 0; i < filled->size; i = next_index(filled, i)) {
        filled->memory[i] = block_byte(filled, i);
    }
}

/* As far as there is so much of it. */
static void
check_block(const block *checked, const unsigned char *memory, size_t size)
{
    for (size_t i = 0; i < checked->size && i < size;
         i = next_index(checked, i))
    {
        if (memory[i] != block_byte(checked, i)) {
            FAIL("byte %d of a block of %d is %d", (int)i, (int)checked->size,
                 memory[i]);
            return;
        }
    }
}

static int
is_in_unit(const void *memory, hugepages_unit unit)
{
    return hugepages_unit_of(memory) == unit;
}

/* Take note of a new block, if it is one.  Return its place. */
static block *
hold(void *memory, size_t size)
{
    if (memory == NULL) {
        return NULL;
    }
    if (held_count == MAX_HELD) {
        FAIL("the test holds too much");
        held_count--;
    }
    CHECK_EQUAL((uintptr_t)memory % HUGEPAGES_GRAIN, 0);
    held[held_count] = (block){(unsigned char *)memory, size, 0};
    fill_block(&held[held_count]);
    return &held[held_count++];
}

static block *
find_held(const void *memory)
{
    for (int i = 0; i < held_count; i++) {
        if (held[i].memory == memory) {
            return &held[i];
        }
    }
    FAIL("the test does not hold %p", memory);
    return &held[0];
}

// --- a look at everything --------------------------------------------------

/* The blocks of an arena: without a gap, no two free neighbours.  Return how
   many are free, and set *in_use. */
static int
check_arena(unsigned char *arena, int *in_use)
{
    uint32_t before = 0;
    int was_free = 0;
    int free_count = 0;
    size_t offset = 0;
    *in_use = 0;
    while (offset < HUGEPAGES_WHOLE_ARENA) {
        const hugepages_block *found = hugepages_block_at(arena, offset);
        if (found->size < HUGEPAGES_LEAST_BLOCK
            || found->size % HUGEPAGES_GRAIN != 0
            || found->size > HUGEPAGES_WHOLE_ARENA - offset
            || found->size_before != before || found->is_free > 1
            || (was_free && found->is_free))
        {
            FAIL("the block at %d of an arena is wrong", (int)offset);
            return 0;
        }
        was_free = (int)found->is_free;
        free_count += was_free;
        *in_use += !was_free;
        before = found->size;
        offset += found->size;
    }
    const hugepages_block *end = hugepages_block_at(arena, offset);
    CHECK_EQUAL(offset, HUGEPAGES_WHOLE_ARENA);
    CHECK_EQUAL(end->size, 0);
    CHECK_EQUAL(end->is_free, 0);
    CHECK_EQUAL(end->size_before, before);
    return free_count;
}

/* Return how many blocks are in the lists of a heap, which its bitmaps must
   agree with. */
static int
check_lists(const hugepages_heap *heap)
{
    int count = 0;
    for (unsigned int row = 0; row < HUGEPAGES_ROWS; row++) {
        for (unsigned int column = 0; column < HUGEPAGES_COLUMNS; column++) {
            hugepages_block *const *link = &heap->lists[row][column];
            CHECK_EQUAL(heap->columns[row] >> column & 1, *link != NULL);
            for (; *link != NULL; link = &(*link)->next) {
                unsigned int right_row, right_column;
                hugepages_list_of((*link)->size, &right_row, &right_column);
                CHECK_EQUAL(right_row, row);
                CHECK_EQUAL(right_column, column);
                CHECK((*link)->link == link);
                CHECK((*link)->is_free);
                CHECK(is_in_unit(*link, heap->unit));
                count++;
            }
        }
        CHECK_EQUAL(heap->rows >> row & 1, heap->columns[row] != 0);
    }
    return count;
}

static void
check_heap(const hugepages_heap *heap)
{
    int arenas_found = 0, empty = 0, free_count = 0;
    int in_use = 0, of_arena, expected = 0;
    for (int i = 0; i < fake.mapping_count; i++) {
        if (is_in_unit(fake.mappings[i].address, heap->unit)) {
            CHECK_EQUAL(fake.mappings[i].size, ARENA_SIZE);
            free_count += check_arena(fake.mappings[i].address, &of_arena);
            in_use += of_arena;
            empty += (of_arena == 0);
            arenas_found++;
        }
    }
    for (int i = 0; i < held_count; i++) {
        expected += is_in_unit(held[i].memory, heap->unit);
    }
    CHECK_EQUAL(in_use, expected);
    CHECK_EQUAL(arenas_found, heap->arena_count);
    CHECK_EQUAL(arenas_found, hugepages_state.used[heap->use]);
    CHECK(empty <= 1);
    CHECK_EQUAL(check_lists(heap), free_count);
}

/* How many units are said to be this. */
static int
count_units(hugepages_unit unit)
{
    int count = 0;
    for (size_t i = 0; i < HUGEPAGES_ROOT_LENGTH; i++) {
        const uint8_t *leaf = (const uint8_t *)hugepages_units[i];
        for (size_t j = 0; leaf != NULL && j < HUGEPAGES_LEAF_LENGTH; j++) {
            count += leaf[j] == (uint8_t)unit;
        }
    }
    return count;
}

static int
is_table(const void *address)
{
    for (int i = 0; i < HUGEPAGES_PLAIN; i++) {
        if ((const void *)hugepages_state.arenas[i].addresses == address) {
            return 1;
        }
    }
    return 0;
}

static int
is_leaf(const void *address)
{
    for (size_t i = 0; i < HUGEPAGES_ROOT_LENGTH; i++) {
        if (hugepages_units[i] == address) {
            return 1;
        }
    }
    return address == hugepages_spare_leaf;
}

static int
count_strays(size_t size)
{
    int count = 0;
    for (const hugepages_stray *stray = hugepages_state.strays; stray != NULL;
         stray = stray->next)
    {
        count += stray->size == size;
    }
    return count;
}

/* How many arenas would fit the large blocks that are mapped; each must know
   how it is mapped. */
static size_t
check_large(void)
{
    size_t sum = 0;
    int count = 0;
    for (int i = 0; i < fake.mapping_count; i++) {
        const mapping *found = &fake.mappings[i];
        if (is_in_unit(found->address, HUGEPAGES_UNIT_LARGE)) {
            const hugepages_large *large =
                (const hugepages_large *)(const void *)found->address;
            CHECK_EQUAL(found->kind, CALL_ALIGNED);
            CHECK_EQUAL(large->size, found->size);
            CHECK(large->advised <= found->advised);
            CHECK_EQUAL(found->size % ARENA_SIZE, 0);
            sum += found->size / ARENA_SIZE;
            count++;
        }
    }
    CHECK_EQUAL(count_units(HUGEPAGES_UNIT_LARGE), count);
    return sum;
}

static size_t
count_arenas(hugepages_kind kind)
{
    size_t count = 0;
    for (int i = 0; i < fake.mapping_count; i++) {
        const mapping *found = &fake.mappings[i];
        if (found->size == ARENA_SIZE && !is_table(found->address)
            && !is_in_unit(found->address, HUGEPAGES_UNIT_LARGE))
        {
            size_t index;
            count += (hugepages_find(found->address, &index) == kind);
        }
    }
    return count;
}

/* What nobody uses and is kept. */
static size_t
check_kept(void)
{
    size_t large_count = 0;
    size_t count = 0;
    for (hugepages_large *large = hugepages_retained.large; large != NULL;
         large = large->next)
    {
        CHECK(is_in_unit(large, HUGEPAGES_UNIT_LARGE));
        large_count += large->size / ARENA_SIZE;
    }
    CHECK_EQUAL(large_count, hugepages_retained.large_count);
    CHECK(hugepages_retained.unwanted_large <= large_count);
    CHECK(large_count + hugepages_retained.count[HUGEPAGES_THP]
          <= HUGEPAGES_KEEP_MOST_THP);
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KEPT_KINDS; kind++) {
        count += hugepages_retained.count[kind];
    }
    CHECK_EQUAL(hugepages_retained_count, count + large_count);
    return count + large_count + (size_t)count_strays(ARENA_SIZE);
}

static void
check_all(void)
{
    CHECK(!fake.locked);
    for (int i = 0; i < held_count; i++) {
        check_block(&held[i], held[i].memory, held[i].size);
    }
    check_heap(&hugepages_dense);
    check_heap(&hugepages_roomy);
    CHECK_EQUAL(count_units(HUGEPAGES_UNIT_DENSE),
                hugepages_dense.arena_count);
    CHECK_EQUAL(count_units(HUGEPAGES_UNIT_ROOMY),
                hugepages_roomy.arena_count);
    CHECK_EQUAL(hugepages_state.used[HUGEPAGES_FOR_POOLS], arena_count);

    _PyMem_HugePagesStats stats;
    blocks_get_stats(&stats);
    CHECK_EQUAL(stats.large.now, check_large());
    CHECK_EQUAL(stats.hugetlb.now, count_arenas(HUGEPAGES_EXPLICIT));
    CHECK_EQUAL(stats.thp.now, count_arenas(HUGEPAGES_THP));
    CHECK_EQUAL(stats.plain.now, count_arenas(HUGEPAGES_PLAIN));
    CHECK_EQUAL(stats.retained.now, check_kept());
}

// --- what a test does ------------------------------------------------------

static void
begin_test(int tiers)
{
    static const hugepages_heap dense = {
        .use = HUGEPAGES_FOR_DENSE, .unit = HUGEPAGES_UNIT_DENSE
    };
    static const hugepages_heap roomy = {
        .use = HUGEPAGES_FOR_ROOMY, .unit = HUGEPAGES_UNIT_ROOMY
    };
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    memset(&hugepages_stats, 0, sizeof(hugepages_stats));
    memset(&hugepages_retained, 0, sizeof(hugepages_retained));
    memset(&hugepages_units, 0, sizeof(hugepages_units));
    memset(&fake, 0, sizeof(fake));
    hugepages_retained_count = 0;
    hugepages_spare_leaf = NULL;
    hugepages_dense = dense;
    hugepages_roomy = roomy;
    fake.fault_at = -1;
    fake.now = 1000000;
    fake.resident = ARENA_SIZE;
    held_count = 0;
    arena_count = 0;
    blocks_set_huge_pages(tiers);
}

static block *
alloc_block(size_t size)
{
    block *added = hold(hugepages_block_malloc(size), size);
    check_all();
    return added;
}

static block *
calloc_block(size_t count, size_t size)
{
    unsigned char *memory =
        (unsigned char *)hugepages_block_calloc(count, size);
    /* Each byte is as the one before it. */
    if (memory != NULL && count * size > 0
        && (memory[0] != 0
            || memcmp(memory, memory + 1, count * size - 1) != 0))
    {
        FAIL("%d bytes are not zeroed", (int)(count * size));
    }
    block *added = hold(memory, count * size);
    check_all();
    return added;
}

static void
free_block(block *freed)
{
    block copy = *freed;
    check_block(&copy, copy.memory, copy.size);
    *freed = held[--held_count];
    hugepages_block_free(copy.memory);
    check_all();
}

/* Return whether it has the new size. */
static int
realloc_block(block *resized, size_t size)
{
    unsigned char *memory =
        (unsigned char *)hugepages_block_realloc(resized->memory, size);
    if (memory == NULL) {
        check_all();
        return 0;
    }
    check_block(resized, memory, size);
    resized->memory = memory;
    resized->size = size;
    fill_block(resized);
    check_all();
    return 1;
}

static void *
alloc_arena(void)
{
    void *arena = hugepages_alloc(ARENA_SIZE);
    if (arena != NULL) {
        arenas[arena_count++] = arena;
    }
    check_all();
    return arena;
}

static void
free_arena(int index)
{
    void *arena = arenas[index];
    arenas[index] = arenas[--arena_count];
    hugepages_free(arena, ARENA_SIZE);
    check_all();
}

/* Give back the arenas that the heaps keep, which must be empty. */
static void
drop_last_arena(hugepages_heap *heap)
{
    CHECK(heap->arena_count <= 1);
    for (int i = 0; i < fake.mapping_count; i++) {
        void *arena = fake.mappings[i].address;
        if (is_in_unit(arena, heap->unit)) {
            hugepages_block *whole = hugepages_block_at(arena, 0);
            CHECK(whole->is_free);
            CHECK_EQUAL(whole->size, HUGEPAGES_WHOLE_ARENA);
            hugepages_unlink_free(heap, whole);
            heap->arena_count--;
            (void)hugepages_set_unit(arena, HUGEPAGES_UNIT_FOREIGN);
            hugepages_free_arena(arena, heap->use);
            return;
        }
    }
}

/* Free everything, by every means that there is; then nothing may be left but
   the tables and leaves. */
static void
end_test(void)
{
    fake.random_state = 0;
    fake.fault_at = -1;
    memset(fake.answers, 0, sizeof(fake.answers));
    while (held_count > 0 && !test_failed()) {
        free_block(&held[0]);
    }
    while (arena_count > 0 && !test_failed()) {
        free_arena(0);
    }
    if (test_failed()) {
        return;
    }
    CHECK_EQUAL(fake.raw_count, 0);
    hugepages_os_lock();
    drop_last_arena(&hugepages_dense);
    drop_last_arena(&hugepages_roomy);
    (void)hugepages_release_all();
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
    check_all();
    for (hugepages_kind kind = 0; kind < HUGEPAGES_KINDS; kind++) {
        CHECK_EQUAL(hugepages_stats[kind].now, 0);
    }
    for (int i = 0; i < fake.mapping_count; i++) {
        if (!is_table(fake.mappings[i].address)
            && !is_leaf(fake.mappings[i].address))
        {
            FAIL("%d bytes leak", (int)fake.mappings[i].size);
        }
        test_free_aligned(fake.mappings[i].memory,
                          fake.mappings[i].memory_size);
    }
}

// --- tests: the first arenas -----------------------------------------------

#define FIRST ((int)hugepages_first_count[HUGEPAGES_FOR_POOLS])

static size_t
advised(const void *address)
{
    const mapping *found = find_mapping(address);
    if (found == NULL) {
        FAIL("%p is not mapped", address);
        return 0;
    }
    return found->advised;
}

/* They are plain memory until one more is needed. */
static void
test_first(void)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < FIRST; i++) {
        void *arena = alloc_arena();
        REQUIRE(arena != NULL);
        CHECK_EQUAL(find_mapping(arena)->kind, CALL_ALIGNED);
    }
    CHECK_EQUAL(fake.counts[CALL_ADVISE], 0);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT] + fake.counts[CALL_THP], 0);
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), FIRST);
    (void)alloc_arena();
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 1);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], FIRST);
    for (int i = 0; i < FIRST; i++) {
        CHECK_EQUAL(advised(arenas[i]), ARENA_SIZE);
    }
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), 0);
    CHECK_EQUAL(count_arenas(HUGEPAGES_THP), FIRST);
    CHECK_EQUAL(count_arenas(HUGEPAGES_EXPLICIT), 1);
    /* Once. */
    (void)alloc_arena();
    CHECK_EQUAL(fake.counts[CALL_ADVISE], FIRST);
    end_test();
}

/* One that is given back makes room for another. */
static void
test_first_again(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < FIRST; i++) {
        (void)alloc_arena();
    }
    free_arena(1);
    blocks_release();
    void *again = alloc_arena();
    REQUIRE(again != NULL);
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], FIRST + 1);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], 0);
    (void)alloc_arena();
    CHECK_EQUAL(fake.counts[CALL_ADVISE], FIRST);
    CHECK_EQUAL(advised(again), ARENA_SIZE);
    end_test();

    /* What was given back is not advised. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < FIRST; i++) {
        (void)alloc_arena();
    }
    free_arena(0);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_PLAIN], 1);
    hugepages_state.used[HUGEPAGES_FOR_POOLS]++;
    void *later = hugepages_alloc(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], FIRST - 1);
    hugepages_free(later, ARENA_SIZE);
    hugepages_state.used[HUGEPAGES_FOR_POOLS]--;
    end_test();
}

/* When the number falls below the first ones again, they are as before. */
static void
test_first_after_later(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < FIRST + 2; i++) {
        (void)alloc_arena();
    }
    while (arena_count > 1) {
        free_arena(arena_count - 1);
    }
    blocks_release();
    int maps = fake.counts[CALL_ALIGNED];
    (void)alloc_arena();
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], maps + 1);
    end_test();
}

/* Without aligned memory an arena gets what there is, and plain memory that is
   not aligned is never advised. */
static void
test_first_not_aligned(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.answers[CALL_ALIGNED] = HUGEPAGES_BUSY;
    (void)alloc_arena();
    CHECK_EQUAL(count_arenas(HUGEPAGES_THP), 1);
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    (void)alloc_arena();
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), 1);
    fake.answers[CALL_THP] = HUGEPAGES_OK;
    for (int i = 2; i < FIRST + 1; i++) {
        (void)alloc_arena();
    }
    CHECK_EQUAL(fake.counts[CALL_ADVISE], 0);
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), 1);
    end_test();
}

static void
test_first_switch(void)
{
    begin_test(PYMALLOC_HUGEPAGES_OFF);
    for (int i = 0; i < FIRST + 1; i++) {
        (void)alloc_arena();
    }
    CHECK_EQUAL(fake.counts[CALL_PLAIN], FIRST + 1);
    CHECK_EQUAL(fake.counts[CALL_ALIGNED] + fake.counts[CALL_ADVISE], 0);
    end_test();

    /* Explicit pages are there from the first one on or not at all. */
    begin_test(PYMALLOC_HUGEPAGES_HUGETLB);
    for (int i = 0; i < FIRST + 1; i++) {
        (void)alloc_arena();
    }
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], FIRST);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], 0);
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), FIRST);
    CHECK_EQUAL(count_arenas(HUGEPAGES_EXPLICIT), 1);
    end_test();
}

static void
test_first_not_advised(void)
{
    static const hugepages_result answers[] = {
        HUGEPAGES_BUSY, HUGEPAGES_NEVER
    };
    for (int i = 0; i < 2; i++) {
        begin_test(PYMALLOC_HUGEPAGES_THP);
        fake.answers[CALL_ADVISE] = answers[i];
        for (int j = 0; j < FIRST + 1; j++) {
            (void)alloc_arena();
        }
        /* Never means that nobody asks any more. */
        int asked = answers[i] == HUGEPAGES_NEVER ? 1 : FIRST;
        CHECK_EQUAL(fake.counts[CALL_ADVISE], asked);
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_THP].refused[0].count, asked);
        CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), FIRST);
        end_test();
    }
}

/* An arena that would not be found in the table stays plain. */
static void
test_first_without_table(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < FIRST; i++) {
        (void)alloc_arena();
    }
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    (void)alloc_arena();
    CHECK_EQUAL(count_arenas(HUGEPAGES_THP), HUGEPAGES_FIRST_ENTRIES);
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN),
                FIRST + 1 - HUGEPAGES_FIRST_ENTRIES);
    end_test();
}

/* Fill so many arenas of the roomy heap, two blocks each. */
static void
fill_roomy(size_t count)
{
    const size_t size = ARENA_SIZE / 2 - 64;
    for (size_t i = 0; i < 2 * count && hugepages_roomy.arena_count < count;
         i++)
    {
        (void)alloc_block(size);
    }
    (void)alloc_block(size);
}

/* Each heap has first arenas of its own. */
static void
test_first_of_heaps(void)
{
    const size_t first = hugepages_first_count[HUGEPAGES_FOR_ROOMY];
    begin_test(PYMALLOC_HUGEPAGES_THP);
    (void)alloc_arena();
    fill_roomy(first);
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], first + 1);
    CHECK_EQUAL(fake.counts[CALL_RESIDENT], 0);
    (void)alloc_block(1000);
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], first + 2);
    CHECK_EQUAL(fake.counts[CALL_THP] + fake.counts[CALL_ADVISE], 0);
    /* The dense one has one. */
    for (int i = 0; hugepages_dense.arena_count == 1 && i < 600; i++) {
        (void)hold(hugepages_block_malloc(4000), 4000);
    }
    check_all();
    CHECK_EQUAL(hugepages_dense.arena_count, 2);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], 1);
    CHECK_EQUAL(fake.counts[CALL_RESIDENT], 0);
    end_test();
}

/* The roomy heap has huge pages only if its blocks are filled. */
static void
check_roomy(size_t resident, hugepages_result answer, int has_huge)
{
    const size_t first = hugepages_first_count[HUGEPAGES_FOR_ROOMY];
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.resident = resident;
    fake.answers[CALL_RESIDENT] = answer;
    fill_roomy(first);
    fill_roomy(first + 1);
    CHECK_EQUAL(hugepages_roomy.arena_count, first + 1);
    CHECK_EQUAL(fake.counts[CALL_RESIDENT], first);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], has_huge ? first : 0);
    CHECK_EQUAL(fake.counts[CALL_THP], has_huge);
    /* It is asked again for the next one, of the same arenas. */
    fake.resident = ARENA_SIZE;
    fill_roomy(first + 2);
    CHECK_EQUAL(fake.counts[CALL_RESIDENT], has_huge ? first : 2 * first);
    CHECK_EQUAL(fake.counts[CALL_ADVISE], first);
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), has_huge ? 0 : 1);
    end_test();
}

static void
test_roomy(void)
{
    check_roomy(0, HUGEPAGES_OK, 0);
    check_roomy(ARENA_SIZE / 4 * 3 - BASE_PAGE_SIZE, HUGEPAGES_OK, 0);
    check_roomy(ARENA_SIZE / 4 * 3, HUGEPAGES_OK, 1);
    check_roomy(ARENA_SIZE, HUGEPAGES_OK, 1);
    check_roomy(0, HUGEPAGES_NEVER, 1);
}

static void
check_fill(unsigned char *pool, int fills)
{
    int before = fake.fills;
    hugepages_fill_ahead(pool);
    CHECK_EQUAL(fake.fills, before + fills);
    if (fills > 0) {
        CHECK(fake.filled == pool);
        CHECK_EQUAL(fake.filled_size, 128 * 1024);
    }
}

/* The first of the first arenas are not filled ahead; nor is what has huge
   pages, or nobody's; and as much as is filled is asked for once. */
static void
test_fill_ahead(void)
{
    const size_t pool_size = 16 * 1024, at_once = 128 * 1024;
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < FIRST; i++) {
        unsigned char *arena = (unsigned char *)alloc_arena();
        REQUIRE(arena != NULL);
        for (size_t at = 0; at < ARENA_SIZE; at += pool_size) {
            check_fill(arena + at, i >= 2 && at % at_once == 0);
        }
    }
    block *roomy = alloc_block(ARENA_SIZE / 2);
    check_fill((unsigned char *)((uintptr_t)roomy->memory
                                 & ~(uintptr_t)(ARENA_SIZE - 1)), 0);
    unsigned char *freed = (unsigned char *)arenas[2];
    free_arena(2);
    check_fill(freed, 0);
    CHECK(alloc_arena() == freed);
    check_fill(freed, 1);
    (void)alloc_arena();
    for (int i = 0; i < arena_count; i++) {
        check_fill((unsigned char *)arenas[i], 0);
    }
    end_test();
}

// --- tests: units ----------------------------------------------------------

static int
set_unit(uintptr_t address, hugepages_unit unit)
{
    hugepages_os_lock();
    int result = hugepages_set_unit((const void *)address, unit);
    hugepages_os_unlock();
    return result;
}

static int
unit_at(uintptr_t address)
{
    return (int)hugepages_unit_of((const void *)address);
}

static void
test_units(void)
{
    /* Nothing is mapped there.  The first is the last unit of a leaf. */
    const uintptr_t address = ((uintptr_t)3 << 35) - ARENA_SIZE;
    begin_test(PYMALLOC_HUGEPAGES_ON);
    CHECK_EQUAL(unit_at(0), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(unit_at(UINTPTR_MAX), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(unit_at(address), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(set_unit(address, HUGEPAGES_UNIT_LARGE), 0);
    CHECK_EQUAL(unit_at(address), HUGEPAGES_UNIT_LARGE);
    CHECK_EQUAL(unit_at(address + ARENA_SIZE - 1), HUGEPAGES_UNIT_LARGE);
    CHECK_EQUAL(unit_at(address - 1), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(unit_at(address + ARENA_SIZE), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], 1);
    CHECK_EQUAL(set_unit(address - ARENA_SIZE, HUGEPAGES_UNIT_DENSE), 0);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], 1);
    CHECK_EQUAL(set_unit(address + ARENA_SIZE, HUGEPAGES_UNIT_ROOMY), 0);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], 2);
    CHECK_EQUAL(unit_at(address - ARENA_SIZE), HUGEPAGES_UNIT_DENSE);
    CHECK_EQUAL(unit_at(address), HUGEPAGES_UNIT_LARGE);
    CHECK_EQUAL(unit_at(address + ARENA_SIZE), HUGEPAGES_UNIT_ROOMY);
    CHECK_EQUAL(set_unit(address, HUGEPAGES_UNIT_FOREIGN), 0);
    CHECK_EQUAL(set_unit(address - ARENA_SIZE, HUGEPAGES_UNIT_FOREIGN), 0);
    CHECK_EQUAL(set_unit(address + ARENA_SIZE, HUGEPAGES_UNIT_FOREIGN), 0);
    CHECK_EQUAL(unit_at(address), HUGEPAGES_UNIT_FOREIGN);
    end_test();
}

/* An address that is not aligned, or higher than the tree knows. */
static void
test_units_refused(void)
{
    const uintptr_t end = (uintptr_t)1 << 48;
    begin_test(PYMALLOC_HUGEPAGES_ON);
    CHECK_EQUAL(set_unit(ARENA_SIZE + BASE_PAGE_SIZE, HUGEPAGES_UNIT_LARGE),
                -1);
    CHECK_EQUAL(set_unit(ARENA_SIZE / 2, HUGEPAGES_UNIT_LARGE), -1);
    CHECK_EQUAL(set_unit(end, HUGEPAGES_UNIT_LARGE), -1);
    CHECK_EQUAL(set_unit(0 - ARENA_SIZE, HUGEPAGES_UNIT_LARGE), -1);
    CHECK_EQUAL(unit_at(end), HUGEPAGES_UNIT_FOREIGN);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], 0);
    CHECK_EQUAL(set_unit(end - ARENA_SIZE, HUGEPAGES_UNIT_LARGE), 0);
    CHECK_EQUAL(unit_at(end - 1), HUGEPAGES_UNIT_LARGE);
    CHECK_EQUAL(set_unit(end - ARENA_SIZE, HUGEPAGES_UNIT_FOREIGN), 0);
    end_test();
}

static void
test_units_without_memory(void)
{
    const uintptr_t first = (uintptr_t)1 << 40, second = (uintptr_t)1 << 41;
    begin_test(PYMALLOC_HUGEPAGES_ON);
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    CHECK_EQUAL(set_unit(first, HUGEPAGES_UNIT_LARGE), -1);
    CHECK_EQUAL(unit_at(first), HUGEPAGES_UNIT_FOREIGN);
    hugepages_os_lock();
    CHECK_EQUAL(hugepages_reserve_leaf(), -1);
    fake.answers[CALL_PLAIN] = HUGEPAGES_OK;
    int calls = fake.counts[CALL_PLAIN];
    CHECK_EQUAL(hugepages_reserve_leaf(), 0);
    CHECK_EQUAL(hugepages_reserve_leaf(), 0);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], calls + 1);
    hugepages_os_unlock();
    /* That was for the next one, and only for that. */
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    CHECK_EQUAL(set_unit(first, HUGEPAGES_UNIT_LARGE), 0);
    CHECK_EQUAL(set_unit(first, HUGEPAGES_UNIT_FOREIGN), 0);
    CHECK_EQUAL(set_unit(second, HUGEPAGES_UNIT_LARGE), -1);
    end_test();
}

// --- tests: medium blocks --------------------------------------------------

/* Which heap a block belongs to. */
static void
test_heap_classes(void)
{
    static const struct {
        size_t size;
        hugepages_unit unit;
    } cases[] = {
        {0, HUGEPAGES_UNIT_FOREIGN},
        {1, HUGEPAGES_UNIT_FOREIGN},
        {SMALL_REQUEST_THRESHOLD, HUGEPAGES_UNIT_FOREIGN},
        {SMALL_REQUEST_THRESHOLD + 1, HUGEPAGES_UNIT_DENSE},
        {BASE_PAGE_SIZE - 1, HUGEPAGES_UNIT_DENSE},
        {BASE_PAGE_SIZE, HUGEPAGES_UNIT_ROOMY},
        {ARENA_SIZE / 2, HUGEPAGES_UNIT_ROOMY},
        {ARENA_SIZE / 2 + 1, HUGEPAGES_UNIT_LARGE},
    };
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const block *added = alloc_block(cases[i].size);
        REQUIRE(added != NULL);
        CHECK_EQUAL(hugepages_unit_of(added->memory), cases[i].unit);
        added = calloc_block(1, cases[i].size);
        REQUIRE(added != NULL);
        CHECK_EQUAL(hugepages_unit_of(added->memory), cases[i].unit);
    }
    end_test();
}

/* What has grown is filled, so is dense from then on. */
static void
test_heap_grown(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *grown = alloc_block(ARENA_SIZE / 4);
    (void)alloc_block(ARENA_SIZE / 4);
    CHECK(is_in_unit(grown->memory, HUGEPAGES_UNIT_ROOMY));
    CHECK(realloc_block(grown, ARENA_SIZE / 3));
    CHECK(is_in_unit(grown->memory, HUGEPAGES_UNIT_DENSE));
    /* A block that shrinks stays where it is, whatever heap that is. */
    const unsigned char *memory = grown->memory;
    CHECK(realloc_block(grown, ARENA_SIZE / 5));
    CHECK(grown->memory == memory);
    block *large = alloc_block(ARENA_SIZE);
    CHECK(realloc_block(large, ARENA_SIZE / 4));
    CHECK(is_in_unit(large->memory, HUGEPAGES_UNIT_ROOMY));
    end_test();
}

/* The gap that a block leaves, seen in its size. */
static size_t
usable(const block *seen)
{
    return hugepages_heap_size(seen->memory);
}

static void
test_heap_sizes(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (size_t size = SMALL_REQUEST_THRESHOLD + 1; size < 700; size++) {
        const block *added = alloc_block(size);
        REQUIRE(added != NULL);
        CHECK_EQUAL(usable(added), (size + 15) / 16 * 16);
    }
    /* Not less than what a free block takes. */
    block *shrunk = &held[0];
    CHECK(realloc_block(shrunk, 1));
    CHECK_EQUAL(usable(shrunk), 16);
    CHECK(realloc_block(shrunk, 0));
    CHECK_EQUAL(usable(shrunk), 16);
    end_test();
}

/* A block takes over as much as it needs of a free neighbour, and gives it
   back. */
static void
test_heap_in_place(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    unsigned char *first = alloc_block(1000)->memory;
    unsigned char *second = alloc_block(1000)->memory;
    unsigned char *third = alloc_block(1000)->memory;
    CHECK_EQUAL(second - first, 1008 + 16);
    CHECK_EQUAL(third - second, 1008 + 16);
    free_block(find_held(second));

    CHECK(realloc_block(find_held(first), 1008 + 16 + 1008));
    CHECK_EQUAL(usable(find_held(first)), 1008 + 16 + 1008);
    CHECK(realloc_block(find_held(first), 1000));
    CHECK_EQUAL(usable(find_held(first)), 1008);
    CHECK(alloc_block(1000)->memory == second);
    free_block(find_held(second));
    /* A rest too small for a block stays with the one before. */
    CHECK(realloc_block(find_held(first), 1008 + 16 + 1008 - 16));
    CHECK_EQUAL(usable(find_held(first)), 1008 + 16 + 1008);
    CHECK(realloc_block(find_held(first), 1008 + 16 + 1008 - 32));
    CHECK_EQUAL(usable(find_held(first)), 1008 + 16 + 1008 - 32);
    CHECK(find_held(first)->memory == first);

    /* One byte more, and it must move: a neighbour in use is no room. */
    block *moved = find_held(first);
    CHECK(realloc_block(moved, 1008 + 16 + 1008 + 1));
    CHECK(moved->memory != first);
    CHECK(alloc_block(1008 + 16 + 1008)->memory == first);
    CHECK(find_held(third)->memory == third);
    end_test();
}

/* A medium block does not become more than that, whatever room there is. */
static void
test_heap_most(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *medium = alloc_block(ARENA_SIZE / 2);
    REQUIRE(medium != NULL);
    CHECK(is_in_unit(medium->memory, HUGEPAGES_UNIT_ROOMY));
    CHECK(realloc_block(medium, ARENA_SIZE / 2 + 1));
    CHECK(is_in_unit(medium->memory, HUGEPAGES_UNIT_LARGE));
    end_test();
}

/* A block is joined with a free one before it, after it, and both. */
static void
test_heap_joins(void)
{
    static const int orders[6][3] = {
        {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}
    };
    for (int i = 0; i < 6; i++) {
        unsigned char *memory[4];
        begin_test(PYMALLOC_HUGEPAGES_THP);
        for (int j = 0; j < 4; j++) {
            memory[j] = alloc_block(2000)->memory;
        }
        for (int j = 0; j < 3; j++) {
            free_block(find_held(memory[orders[i][j]]));
        }
        /* It is the smallest that is large enough. */
        CHECK(alloc_block(4000)->memory == memory[0]);
        end_test();
    }
}

/* The last arena stays, others go when they are empty. */
static void
test_heap_arenas(void)
{
    const size_t size = ARENA_SIZE / 2;
    begin_test(PYMALLOC_HUGEPAGES_THP);
    unsigned char *memory[3];
    for (int i = 0; i < 3; i++) {
        memory[i] = alloc_block(size)->memory;
        CHECK_EQUAL(hugepages_roomy.arena_count, i + 1);
    }
    unsigned char *small = alloc_block(BASE_PAGE_SIZE)->memory;
    CHECK_EQUAL(hugepages_roomy.arena_count, 3);
    free_block(find_held(memory[0]));
    free_block(find_held(memory[1]));
    free_block(find_held(memory[2]));
    free_block(find_held(small));
    CHECK_EQUAL(hugepages_roomy.arena_count, 1);
    int maps = fake.counts[CALL_ALIGNED];
    for (int i = 0; i < 3; i++) {
        free_block(alloc_block(size));
    }
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], maps);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 0);
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_PLAIN], 2);
    end_test();
}

/* What was in use before is taken before what was not, if it is among the
   first few of its list. */
static void
check_reuse(int count)
{
    unsigned char *memory[HUGEPAGES_LOOK_AT + 1] = {NULL};
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (int i = 0; i < count; i++) {
        /* All of one list, and only the first one is large enough, which is
           the last one there. */
        memory[i] = alloc_block(i == 0 ? 2008 : 1990)->memory;
        (void)alloc_block(600);
    }
    for (int i = 0; i < count; i++) {
        free_block(find_held(memory[i]));
    }
    CHECK_EQUAL(alloc_block(2008)->memory == memory[0],
                count <= HUGEPAGES_LOOK_AT);
    CHECK_EQUAL(alloc_block(1990)->memory == memory[count - 1], count > 1);
    end_test();
}

static void
test_heap_reuse(void)
{
    check_reuse(1);
    check_reuse(HUGEPAGES_LOOK_AT);
    check_reuse(HUGEPAGES_LOOK_AT + 1);
}

/* Memory that cannot be a heap's arena is given back. */
static void
test_heap_refused(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    /* Plain memory that is not aligned. */
    fake.answers[CALL_ALIGNED] = HUGEPAGES_BUSY;
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    CHECK(is_in_unit(alloc_block(1000)->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.raw_count, 1);
    CHECK_EQUAL(fake.mapping_count, 0);
    /* No leaf. */
    fake.answers[CALL_ALIGNED] = HUGEPAGES_OK;
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    CHECK(is_in_unit(alloc_block(1000)->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.raw_count, 2);
    CHECK_EQUAL(hugepages_dense.arena_count, 0);
    fake.answers[CALL_PLAIN] = HUGEPAGES_OK;
    CHECK(is_in_unit(alloc_block(1000)->memory, HUGEPAGES_UNIT_DENSE));
    end_test();
}

/* Plain memory that is not aligned is of no use, where huge pages have run
   out: then it is aligned memory, and none is mapped for each block. */
static void
test_heap_not_aligned(void)
{
    const size_t first = hugepages_first_count[HUGEPAGES_FOR_DENSE];
    begin_test(PYMALLOC_HUGEPAGES_HUGETLB);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    while (hugepages_dense.arena_count <= first) {
        block *added = alloc_block(BASE_PAGE_SIZE - 1);
        REQUIRE(added != NULL);
        CHECK(is_in_unit(added->memory, HUGEPAGES_UNIT_DENSE));
    }
    CHECK_EQUAL(count_arenas(HUGEPAGES_PLAIN), first + 1);
    /* pymalloc takes what is not. */
    int maps = fake.counts[CALL_ALIGNED];
    for (int i = 0; i < FIRST + 1; i++) {
        (void)alloc_arena();
    }
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], maps + FIRST);
    end_test();
}

/* A number of bytes from the least to the most: as often small as large. */
static size_t
random_size(uint32_t *state, size_t most)
{
    size_t bits = 9 + test_random(state) % 13;
    size_t size = test_random(state) % ((size_t)1 << bits) + 513;
    return size < most ? size : most;
}

static void
test_heap_random(void)
{
    const int sequences = 20, operations = 600;
    for (int i = 0; i < test_rounds(sequences); i++) {
        uint32_t seed = test_seed + (uint32_t)i;
        uint32_t state = seed;
        begin_test(PYMALLOC_HUGEPAGES_THP);
        fake.random_state = i % 2 == 0 ? 0 : ~seed;
        for (int j = 0; j < operations && !test_failed(); j++) {
            uint32_t choice = test_random(&state) % 100;
            /* Half of the time the number of blocks falls. */
            uint32_t allocs = j / 100 % 2 == 0 ? 50 : 20;
            size_t size = random_size(&state, HUGEPAGES_HEAP_MOST);
            uint32_t index = test_random(&state);
            if (choice < allocs || held_count == 0) {
                (void)alloc_block(size);
            }
            else if (choice < 70) {
                free_block(&held[index % (uint32_t)held_count]);
            }
            else {
                (void)realloc_block(&held[index % (uint32_t)held_count],
                                    size);
            }
            if (test_failed()) {
                FAIL("in operation %d; run again with --seed %u", j, seed);
            }
        }
        end_test();
    }
}

// --- tests: large blocks ---------------------------------------------------

#define OFFSET ((size_t)HUGEPAGES_LARGE_OFFSET)

static mapping *
large_mapping(const block *large)
{
    static mapping none;
    mapping *found = find_mapping(large->memory - OFFSET);
    if (found == NULL || !is_in_unit(large->memory, HUGEPAGES_UNIT_LARGE)) {
        FAIL("a block of %d is not a large one", (int)large->size);
        return &none;
    }
    return found;
}

static void
test_large_sizes(void)
{
    static const struct {
        size_t size;
        size_t units;
    } cases[] = {
        {ARENA_SIZE / 2 + 1, 1},
        {ARENA_SIZE - OFFSET - 1, 1},
        {ARENA_SIZE - OFFSET, 1},
        {ARENA_SIZE - OFFSET + 1, 2},
        {ARENA_SIZE, 2},
        {2 * ARENA_SIZE - OFFSET, 2},
        {2 * ARENA_SIZE - OFFSET + 1, 3},
        {5 * ARENA_SIZE, 6},
    };
    begin_test(PYMALLOC_HUGEPAGES_THP);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        block *large = calloc_block(1, cases[i].size);
        REQUIRE(large != NULL);
        CHECK_EQUAL((uintptr_t)large->memory % ARENA_SIZE, OFFSET);
        CHECK_EQUAL(large_mapping(large)->size, cases[i].units * ARENA_SIZE);
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, cases[i].units);
        free_block(large);
        blocks_release();
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, 0);
    }
    end_test();
}

/* A huge page is advised if the block fills it, but for an eighth of that. */
static void
test_large_advice(void)
{
    static const struct {
        size_t size;
        size_t advised;
    } cases[] = {
        /* Of one huge page: it is empty by less than an eighth of the block if
           the block has eight ninths of it. */
        {ARENA_SIZE / 2 + 1, 0},
        {(ARENA_SIZE - OFFSET) / 9 * 8 - 8, 0},
        {(ARENA_SIZE - OFFSET) / 9 * 8 + 16, 1},
        {ARENA_SIZE - OFFSET, 1},
        {ARENA_SIZE - OFFSET + 1, 1},
        {(2 * ARENA_SIZE - OFFSET) / 9 * 8 - 8, 1},
        {(2 * ARENA_SIZE - OFFSET) / 9 * 8 + 16, 2},
        {3 * ARENA_SIZE, 3},
        {8 * ARENA_SIZE, 9},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin_test(PYMALLOC_HUGEPAGES_THP);
        block *large = alloc_block(cases[i].size);
        REQUIRE(large != NULL);
        if (large_mapping(large)->advised != cases[i].advised * ARENA_SIZE) {
            FAIL("of a block of %d, %d bytes are advised",
                 (int)cases[i].size, (int)large_mapping(large)->advised);
        }
        /* A growing one is expected to fill it. */
        CHECK(realloc_block(large, cases[i].size + 1));
        CHECK_EQUAL(large_mapping(large)->advised,
                    large_mapping(large)->size);
        int calls = fake.counts[CALL_ADVISE];
        CHECK(realloc_block(large, cases[i].size + 2));
        CHECK_EQUAL(fake.counts[CALL_ADVISE], calls);
        end_test();
    }

    /* A medium one has grown when it becomes a large one. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *medium = alloc_block(1000);
    REQUIRE(medium != NULL);
    CHECK(realloc_block(medium, ARENA_SIZE / 2 + 1));
    CHECK_EQUAL(large_mapping(medium)->advised, ARENA_SIZE);
    end_test();

    /* One that does not grow is not. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *large = alloc_block(ARENA_SIZE + ARENA_SIZE / 2);
    REQUIRE(large != NULL);
    CHECK_EQUAL(large_mapping(large)->advised, ARENA_SIZE);
    CHECK(realloc_block(large, ARENA_SIZE + ARENA_SIZE / 2));
    CHECK(realloc_block(large, ARENA_SIZE + ARENA_SIZE / 3));
    CHECK_EQUAL(large_mapping(large)->advised, ARENA_SIZE);
    /* Until it does, however large it has been. */
    CHECK(realloc_block(large, ARENA_SIZE + ARENA_SIZE / 3 + 1));
    CHECK_EQUAL(large_mapping(large)->advised, 2 * ARENA_SIZE);
    end_test();
}

/* The kernel can refuse it: at the begin, then the block is another's; later,
   then it stays as it is. */
static void
test_large_not_advised(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.answers[CALL_ADVISE] = HUGEPAGES_BUSY;
    block *raw = alloc_block(3 * ARENA_SIZE);
    REQUIRE(raw != NULL);
    CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(count_units(HUGEPAGES_UNIT_LARGE), 0);
    CHECK_EQUAL(fake.mapping_count, 0);
    /* There is nothing to be advised. */
    block *large = alloc_block(ARENA_SIZE / 2 + 1);
    REQUIRE(large != NULL);
    CHECK_EQUAL(large_mapping(large)->advised, 0);
    const unsigned char *memory = large->memory;
    CHECK(realloc_block(large, ARENA_SIZE / 2 + 2));
    CHECK(large->memory == memory);
    CHECK_EQUAL(large_mapping(large)->advised, 0);
    /* It is asked again when it grows again. */
    fake.answers[CALL_ADVISE] = HUGEPAGES_OK;
    CHECK(realloc_block(large, ARENA_SIZE / 2 + 3));
    CHECK_EQUAL(large_mapping(large)->advised, ARENA_SIZE);

    /* Once it says never, large blocks are the raw domain's. */
    fake.answers[CALL_ADVISE] = HUGEPAGES_NEVER;
    (void)alloc_block(3 * ARENA_SIZE);
    int calls = fake.counts[CALL_ADVISE];
    raw = alloc_block(3 * ARENA_SIZE);
    REQUIRE(raw != NULL);
    CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.counts[CALL_ADVISE], calls);
    end_test();
}

/* A mapping grows before it is moved only as a whole: one that is advised in
   part is advised whole first. */
static void
test_large_grows_after_advice(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *large = alloc_block(ARENA_SIZE + ARENA_SIZE / 2);
    REQUIRE(large != NULL);
    CHECK_EQUAL(large_mapping(large)->advised, ARENA_SIZE);
    fake.answers[CALL_ADVISE] = HUGEPAGES_BUSY;
    int calls = fake.counts[CALL_RESIZE];
    /* It is copied, to the raw domain, for nobody advises another one. */
    CHECK(realloc_block(large, 3 * ARENA_SIZE));
    CHECK_EQUAL(fake.counts[CALL_RESIZE], calls);
    CHECK(is_in_unit(large->memory, HUGEPAGES_UNIT_FOREIGN));
    end_test();

    /* It is advised once, though it cannot grow yet. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    large = alloc_block(ARENA_SIZE + ARENA_SIZE / 2);
    REQUIRE(large != NULL);
    fake.answers[CALL_RESIZE] = HUGEPAGES_BUSY;
    fake.answers[CALL_ALIGNED] = HUGEPAGES_BUSY;
    fake.answers[CALL_RAW] = HUGEPAGES_BUSY;
    CHECK(!realloc_block(large, 3 * ARENA_SIZE));
    CHECK_EQUAL(large_mapping(large)->advised, 2 * ARENA_SIZE);
    fake.answers[CALL_ADVISE] = HUGEPAGES_BUSY;
    fake.answers[CALL_RESIZE] = HUGEPAGES_OK;
    CHECK(realloc_block(large, 3 * ARENA_SIZE));
    CHECK(is_in_unit(large->memory, HUGEPAGES_UNIT_LARGE));
    end_test();
}

static void
test_large_in_place(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.room = 4 * ARENA_SIZE;
    block *large = alloc_block(ARENA_SIZE);
    REQUIRE(large != NULL);
    const unsigned char *memory = large->memory;
    for (size_t units = 2; units <= 6; units++) {
        CHECK(realloc_block(large, units * ARENA_SIZE - OFFSET));
        CHECK(large->memory == memory);
        CHECK_EQUAL(large_mapping(large)->size, units * ARENA_SIZE);
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, units);
    }
    /* Within its mapping it needs no system call. */
    int calls = fake.number_of_calls;
    CHECK(realloc_block(large, 6 * ARENA_SIZE - OFFSET - 1));
    CHECK(realloc_block(large, 6 * ARENA_SIZE - OFFSET));
    CHECK_EQUAL(fake.number_of_calls, calls);
    for (size_t units = 5; units >= 1; units--) {
        CHECK(realloc_block(large, units * ARENA_SIZE - OFFSET));
        CHECK(large->memory == memory);
        CHECK_EQUAL(large_mapping(large)->size, units * ARENA_SIZE);
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, units);
    }
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].ever, 6);
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].peak, 6);
    end_test();
}

static void
test_large_moved(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *large = alloc_block(ARENA_SIZE);
    REQUIRE(large != NULL);
    for (size_t units = 3; units <= 6; units++) {
        const unsigned char *memory = large->memory;
        CHECK(realloc_block(large, units * ARENA_SIZE - OFFSET));
        CHECK(large->memory != memory);
        CHECK(is_in_unit(memory, HUGEPAGES_UNIT_FOREIGN));
        CHECK(is_in_unit(large->memory, HUGEPAGES_UNIT_LARGE));
        CHECK_EQUAL(large_mapping(large)->size, units * ARENA_SIZE);
    }
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], 1);
    end_test();
}

/* What grows is zeroed by nobody, but what was not there before is not what
   others have left. */
static void
test_large_not_resized(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *large = alloc_block(2 * ARENA_SIZE);
    REQUIRE(large != NULL);
    unsigned char *memory = large->memory;
    /* It is copied to another one. */
    fake.answers[CALL_RESIZE] = HUGEPAGES_BUSY;
    CHECK(realloc_block(large, 4 * ARENA_SIZE));
    CHECK(large->memory != memory);
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], 2);
    CHECK_EQUAL(large_mapping(large)->size, 5 * ARENA_SIZE);
    /* A smaller one keeps what it has. */
    memory = large->memory;
    CHECK(realloc_block(large, 2 * ARENA_SIZE));
    CHECK(large->memory == memory);
    CHECK_EQUAL(large_mapping(large)->size, 5 * ARENA_SIZE);
    /* And has it still. */
    CHECK(realloc_block(large, 5 * ARENA_SIZE - OFFSET));
    CHECK(large->memory == memory);
    /* Nowhere is memory: it is as it was. */
    fake.answers[CALL_ALIGNED] = HUGEPAGES_BUSY;
    fake.answers[CALL_RAW] = HUGEPAGES_BUSY;
    blocks_release();
    CHECK(!realloc_block(large, 9 * ARENA_SIZE));
    CHECK(large->memory == memory);
    CHECK(is_in_unit(memory, HUGEPAGES_UNIT_LARGE));
    end_test();
}

/* Without a leaf for where it may be moved, it is not moved. */
static void
test_large_without_leaf(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    block *raw = alloc_block(ARENA_SIZE);
    REQUIRE(raw != NULL);
    CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.mapping_count, 0);
    fake.answers[CALL_PLAIN] = HUGEPAGES_OK;
    block *large = alloc_block(ARENA_SIZE);
    REQUIRE(large != NULL);
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    CHECK(realloc_block(large, 4 * ARENA_SIZE));
    CHECK_EQUAL(fake.counts[CALL_RESIZE], 0);
    end_test();
}

/* A large block that is freed is kept, and serves a request of half its size
   at least. */
static void
check_taken(size_t kept_units, size_t units, int is_taken)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = HUGEPAGES_KEEP_MOST_THP;
    block *large = alloc_block(kept_units * ARENA_SIZE - OFFSET);
    REQUIRE(large != NULL);
    const unsigned char *memory = large->memory;
    free_block(large);
    CHECK_EQUAL(hugepages_retained.large_count, kept_units);
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_RETAINED].now, kept_units);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 0);
    /* Of what was in it nothing is seen. */
    large = calloc_block(1, units * ARENA_SIZE - OFFSET);
    REQUIRE(large != NULL);
    CHECK_EQUAL(large->memory == memory, is_taken);
    CHECK_EQUAL(hugepages_retained.large_count, is_taken ? 0 : kept_units);
    CHECK_EQUAL(large_mapping(large)->size, units * ARENA_SIZE);
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now,
                is_taken ? units : units + kept_units);
    end_test();
}

static void
test_large_kept(void)
{
    check_taken(1, 1, 1);
    check_taken(1, 2, 0);
    check_taken(2, 1, 1);
    check_taken(3, 1, 0);
    check_taken(3, 2, 1);
    check_taken(4, 2, 1);
    check_taken(5, 2, 0);
    check_taken(4, 5, 0);
}

/* What cannot be made smaller is used as it is. */
static void
test_large_kept_whole(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = HUGEPAGES_KEEP_MOST_THP;
    free_block(alloc_block(4 * ARENA_SIZE - OFFSET));
    fake.answers[CALL_RESIZE] = HUGEPAGES_BUSY;
    block *large = alloc_block(2 * ARENA_SIZE - OFFSET);
    REQUIRE(large != NULL);
    CHECK_EQUAL(large_mapping(large)->size, 4 * ARENA_SIZE);
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, 4);
    end_test();
}

/* How much is kept: large blocks count as the arenas that would fit them,
   under the same bounds. */
static void
test_large_bound(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    free_block(alloc_block(3 * ARENA_SIZE - OFFSET));
    CHECK_EQUAL(hugepages_retained.large_count, 0);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 1);
    /* It was given back too early. */
    free_block(alloc_block(3 * ARENA_SIZE - OFFSET));
    CHECK_EQUAL(hugepages_retained.large_count, 3);
    int maps = fake.counts[CALL_ALIGNED];
    for (int i = 0; i < 3; i++) {
        free_block(alloc_block(3 * ARENA_SIZE - OFFSET));
    }
    CHECK_EQUAL(fake.counts[CALL_ALIGNED], maps);
    /* Arenas come under the bound with them. */
    CHECK_EQUAL(hugepages_retained.bound, 3);
    skip_first_arenas();
    arena_count = FIRST;
    for (int i = 0; i < 4; i++) {
        arenas[i] = hugepages_alloc(ARENA_SIZE);
    }
    for (int i = 0; i < 4; i++) {
        hugepages_free(arenas[i], ARENA_SIZE);
    }
    CHECK_EQUAL(hugepages_retained.count[HUGEPAGES_THP], 2);
    hugepages_retained.bound = 100;
    memset(hugepages_state.used, 0, sizeof(hugepages_state.used));
    arena_count = 0;

    /* No more than the most. */
    free_block(alloc_block((HUGEPAGES_KEEP_MOST_THP - 5) * ARENA_SIZE
                           - OFFSET));
    CHECK_EQUAL(hugepages_retained.large_count, HUGEPAGES_KEEP_MOST_THP - 2);
    free_block(alloc_block(ARENA_SIZE - OFFSET));
    CHECK_EQUAL(hugepages_retained.large_count, HUGEPAGES_KEEP_MOST_THP - 2);
    end_test();
}

/* Take so many large blocks, and give them back in the order in which they
   came, in an epoch. */
static void
want_large(int count, unsigned char *memory[])
{
    for (int i = 0; i < count; i++) {
        block *large = alloc_block(4 * ARENA_SIZE - OFFSET);
        REQUIRE(large != NULL);
        memory[i] = large->memory;
    }
    for (int i = 0; i < count; i++) {
        free_block(find_held(memory[i]));
    }
    fake.now += HUGEPAGES_EPOCH;
    hugepages_work_goes_on();
    check_all();
}

/* What was not wanted for an epoch goes, the oldest first, and the bound falls
   with it. */
static void
test_large_unwanted(void)
{
    unsigned char *first[3] = {NULL}, *wanted[3] = {NULL};
    begin_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = HUGEPAGES_KEEP_MOST_THP;
    want_large(3, first);
    size_t bound = hugepages_retained.bound;
    CHECK_EQUAL(hugepages_retained.large_count, 12);
    want_large(3, wanted);
    CHECK_EQUAL(hugepages_retained.large_count, 12);
    CHECK_EQUAL(hugepages_retained.bound, bound);
    want_large(2, wanted);
    CHECK_EQUAL(hugepages_retained.large_count, 8);
    CHECK_EQUAL(hugepages_retained.bound, bound - 4);
    int found = 0;
    for (int i = 0; i < 3; i++) {
        if (find_mapping(first[i] - OFFSET) != NULL) {
            CHECK(first[i] == wanted[0] || first[i] == wanted[1]);
            found++;
        }
    }
    CHECK_EQUAL(found, 2);
    want_large(0, wanted);
    CHECK_EQUAL(hugepages_retained.large_count, 0);
    end_test();
}

/* Not with the switch off, nor does it stay when that is turned. */
static void
test_large_switch(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = HUGEPAGES_KEEP_MOST_THP;
    block *first = alloc_block(2 * ARENA_SIZE);
    free_block(alloc_block(2 * ARENA_SIZE));
    CHECK_EQUAL(hugepages_retained.large_count, 3);
    blocks_set_huge_pages(PYMALLOC_HUGEPAGES_HUGETLB);
    CHECK_EQUAL(hugepages_retained.large_count, 0);
    check_all();
    /* It can be resized all the same. */
    CHECK(realloc_block(first, 4 * ARENA_SIZE));
    CHECK(is_in_unit(first->memory, HUGEPAGES_UNIT_LARGE));
    free_block(first);
    CHECK_EQUAL(hugepages_retained.large_count, 0);
    block *raw = alloc_block(2 * ARENA_SIZE);
    CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
    end_test();
}

/* What the system does not take back serves again. */
static void
test_large_not_unmapped(void)
{
    for (size_t units = 1; units <= 3; units++) {
        begin_test(PYMALLOC_HUGEPAGES_THP);
        block *large = alloc_block(units * ARENA_SIZE - OFFSET);
        REQUIRE(large != NULL);
        fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
        free_block(large);
        blocks_release();
        check_all();
        CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, 0);
        CHECK_EQUAL(count_strays(units * ARENA_SIZE), 1);
        if (units == 1) {
            /* As an arena. */
            (void)alloc_arena();
        }
        else {
            large = calloc_block(1, units * ARENA_SIZE - OFFSET);
            REQUIRE(large != NULL);
            CHECK_EQUAL(hugepages_stats[HUGEPAGES_LARGE].now, units);
        }
        CHECK_EQUAL(count_strays(units * ARENA_SIZE), 0);
        CHECK_EQUAL(fake.counts[CALL_ALIGNED], 1);
        end_test();
    }
    /* Other memory of that size does not. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    void *chunk = hugepages_alloc(2 * ARENA_SIZE);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    hugepages_free(chunk, 2 * ARENA_SIZE);
    (void)alloc_block(2 * ARENA_SIZE - OFFSET);
    CHECK_EQUAL(count_strays(2 * ARENA_SIZE), 1);
    CHECK(hugepages_alloc(2 * ARENA_SIZE) == chunk);
    hugepages_free(chunk, 2 * ARENA_SIZE);
    end_test();
}

/* The same where a block was never made of it. */
static void
test_large_not_begun(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    fake.answers[CALL_ADVISE] = HUGEPAGES_BUSY;
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    block *raw = alloc_block(3 * ARENA_SIZE - OFFSET);
    REQUIRE(raw != NULL);
    CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(count_strays(3 * ARENA_SIZE), 1);
    end_test();
}

/* Where memory is short, what nobody uses is given back before anybody has to
   do without. */
static void
test_kept_is_given_back(void)
{
    /* Kept: a large block; a plain arena.  Wanted: an arena, a medium block, a
       larger block. */
    for (int i = 0; i < 6; i++) {
        begin_test(PYMALLOC_HUGEPAGES_THP);
        if (i < 3) {
            free_block(alloc_block(2 * ARENA_SIZE - OFFSET));
        }
        else {
            (void)alloc_arena();
            free_arena(0);
        }
        CHECK(hugepages_retained_count > 0);
        for (int kind = 0; kind < CALL_KINDS; kind++) {
            if (kind != CALL_UNMAP) {
                fake.answers[kind] = HUGEPAGES_BUSY;
            }
        }
        switch (i % 3) {
        case 0:
            hugepages_state.used[HUGEPAGES_FOR_POOLS] = (size_t)FIRST;
            arena_count = FIRST;
            CHECK(alloc_arena() == NULL);
            hugepages_state.used[HUGEPAGES_FOR_POOLS] = 0;
            arena_count = 0;
            break;
        case 1:
            hugepages_state.used[HUGEPAGES_FOR_DENSE] = 1;
            CHECK(hugepages_block_malloc(1000) == NULL);
            hugepages_state.used[HUGEPAGES_FOR_DENSE] = 0;
            break;
        default:
            CHECK(alloc_block(5 * ARENA_SIZE) == NULL);
        }
        CHECK_EQUAL(hugepages_retained_count, 0);
        end_test();
    }
}

// --- tests: blocks of all sizes --------------------------------------------

static const size_t all_sizes[] = {
    0, 1, SMALL_REQUEST_THRESHOLD, SMALL_REQUEST_THRESHOLD + 1, 1000,
    BASE_PAGE_SIZE - 1, BASE_PAGE_SIZE, 100000, ARENA_SIZE / 2,
    ARENA_SIZE / 2 + 1, ARENA_SIZE - OFFSET, ARENA_SIZE, 3 * ARENA_SIZE,
};
#define ALL_SIZES (sizeof(all_sizes) / sizeof(all_sizes[0]))

static void
test_calloc(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    hugepages_retained.bound = HUGEPAGES_KEEP_MOST_THP;
    /* The second time from memory that was used. */
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < ALL_SIZES; i++) {
            block *zeroed = calloc_block(1, all_sizes[i]);
            REQUIRE(zeroed != NULL);
            memset(zeroed->memory, 0xFF, zeroed->size);
            fill_block(zeroed);
            free_block(zeroed);
        }
    }
    (void)calloc_block(7, 100);
    (void)calloc_block(1000, 1000);
    (void)calloc_block(0, 1000);
    end_test();
}

/* From every size to every other one, with and without memory. */
static void
check_realloc(size_t old_size, size_t new_size, int tiers, int is_short)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    block *resized = alloc_block(old_size);
    REQUIRE(resized != NULL);
    int is_raw = is_in_unit(resized->memory, HUGEPAGES_UNIT_FOREIGN);
    blocks_set_huge_pages(tiers);
    if (is_short) {
        for (int kind = 0; kind < CALL_KINDS; kind++) {
            fake.answers[kind] = HUGEPAGES_BUSY;
        }
    }
    int is_done = realloc_block(resized, new_size);
    if (!is_short) {
        CHECK(is_done);
    }
    else if (!is_raw && new_size <= old_size) {
        /* The raw domain is the C library's, and makes no promise. */
        CHECK(is_done);
    }
    if (is_raw) {
        CHECK(is_in_unit(resized->memory, HUGEPAGES_UNIT_FOREIGN));
    }
    if (test_failed()) {
        FAIL("from %d to %d, switch %d%s", (int)old_size, (int)new_size,
             tiers, is_short ? ", without memory" : "");
    }
    end_test();
}

static void
test_realloc(void)
{
    for (size_t i = 0; i < ALL_SIZES; i++) {
        for (size_t j = 0; j < ALL_SIZES && !test_failed(); j++) {
            check_realloc(all_sizes[i], all_sizes[j], PYMALLOC_HUGEPAGES_ON,
                          0);
            check_realloc(all_sizes[i], all_sizes[j], PYMALLOC_HUGEPAGES_ON,
                          1);
            check_realloc(all_sizes[i], all_sizes[j], PYMALLOC_HUGEPAGES_OFF,
                          0);
        }
    }
}

/* Where a block is after it was resized. */
static void
test_realloc_units(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *resized = alloc_block(1000);
    REQUIRE(resized != NULL);
    CHECK(realloc_block(resized, 3 * ARENA_SIZE));
    CHECK(is_in_unit(resized->memory, HUGEPAGES_UNIT_LARGE));
    CHECK(realloc_block(resized, 100));
    CHECK(is_in_unit(resized->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.raw_count, 1);
    CHECK(realloc_block(resized, 3 * ARENA_SIZE));
    CHECK(is_in_unit(resized->memory, HUGEPAGES_UNIT_FOREIGN));
    CHECK_EQUAL(fake.raw_count, 1);
    /* A medium block stays one, small as it may be. */
    block *medium = alloc_block(1000);
    const unsigned char *memory = medium->memory;
    CHECK(realloc_block(medium, 10));
    CHECK(medium->memory == memory);
    CHECK(is_in_unit(memory, HUGEPAGES_UNIT_DENSE));
    end_test();
}

/* Without memory for another block, a shrinking one is what it was, but does
   not hold what the system takes back. */
static void
test_realloc_shrinks(void)
{
    begin_test(PYMALLOC_HUGEPAGES_THP);
    block *large = alloc_block(3 * ARENA_SIZE);
    REQUIRE(large != NULL);
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        fake.answers[kind] = HUGEPAGES_BUSY;
    }
    const unsigned char *memory = large->memory;
    CHECK(realloc_block(large, 1000));
    CHECK(large->memory == memory);
    CHECK(realloc_block(large, 0));
    CHECK(large->memory == memory);
    memset(fake.answers, 0, sizeof(fake.answers));
    /* The end that was not advised stays. */
    CHECK(realloc_block(large, 2 * ARENA_SIZE));
    CHECK(large->memory == memory);
    CHECK_EQUAL(large_mapping(large)->size, 4 * ARENA_SIZE);
    CHECK(realloc_block(large, ARENA_SIZE));
    CHECK(large->memory == memory);
    CHECK_EQUAL(large_mapping(large)->size, 2 * ARENA_SIZE);
    end_test();

    /* But not if it is more than a huge page, because the kernel refused the
       advice as the block grew. */
    begin_test(PYMALLOC_HUGEPAGES_THP);
    large = alloc_block(ARENA_SIZE / 2 + 1);
    REQUIRE(large != NULL);
    fake.answers[CALL_ADVISE] = HUGEPAGES_BUSY;
    CHECK(realloc_block(large, 3 * ARENA_SIZE));
    CHECK_EQUAL(large_mapping(large)->advised, 0);
    CHECK_EQUAL(large_mapping(large)->size, 4 * ARENA_SIZE);
    CHECK(realloc_block(large, ARENA_SIZE));
    CHECK_EQUAL(large_mapping(large)->size, 2 * ARENA_SIZE);
    end_test();
}

/* With the switch off nothing is here. */
static void
test_switch_off(void)
{
    begin_test(PYMALLOC_HUGEPAGES_OFF);
    for (size_t i = 0; i < ALL_SIZES; i++) {
        block *raw = alloc_block(all_sizes[i]);
        REQUIRE(raw != NULL);
        CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
        CHECK(realloc_block(raw, all_sizes[ALL_SIZES - 1 - i]));
        CHECK(is_in_unit(raw->memory, HUGEPAGES_UNIT_FOREIGN));
        (void)calloc_block(1, all_sizes[i]);
    }
    CHECK_EQUAL(fake.raw_count, 2 * ALL_SIZES);
    /* Nobody tried. */
    CHECK_EQUAL(fake.number_of_calls - fake.counts[CALL_RAW],
                fake.counts[CALL_WATCH]);
    end_test();
}

/* Without THP, medium blocks have explicit pages, and large ones are the raw
   domain's. */
static void
test_switch_hugetlb(void)
{
    begin_test(PYMALLOC_HUGEPAGES_HUGETLB);
    CHECK(is_in_unit(alloc_block(1000)->memory, HUGEPAGES_UNIT_DENSE));
    CHECK(is_in_unit(alloc_block(ARENA_SIZE)->memory,
                     HUGEPAGES_UNIT_FOREIGN));
    end_test();
}

/* Blocks are told from their address when the switch is turned. */
static void
test_switch_again(void)
{
    static const int values[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_OFF,
        PYMALLOC_HUGEPAGES_THP, PYMALLOC_HUGEPAGES_HUGETLB,
    };
    begin_test(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < 4; i++) {
        blocks_set_huge_pages(values[i]);
        for (size_t j = 0; j < ALL_SIZES; j++) {
            (void)alloc_block(all_sizes[j]);
        }
        for (int j = 0; j < held_count; j += 3) {
            (void)realloc_block(&held[j], all_sizes[(size_t)j % ALL_SIZES]);
        }
        for (int j = 0; j < held_count; j += 5) {
            free_block(&held[j]);
        }
    }
    end_test();
}

static void
test_free_null(void)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    hugepages_block_free(NULL);
    check_all();
    end_test();
}

// --- tests: faults ---------------------------------------------------------

/* Resize or free the block that was alloced as the one with this number, if
   it was. */
static void
scenario_resize(int number, size_t size)
{
    if (number >= 0 && number < held_count) {
        (void)realloc_block(&held[number], size);
    }
}

static void
scenario_free(int number)
{
    if (number >= 0 && number < held_count) {
        free_block(&held[number]);
    }
}

/* Everything that may be refused, once. */
static void
run_scenario(void)
{
    /* Later arenas, so that huge pages are asked for. */
    for (int i = 0; i < FIRST + 1; i++) {
        (void)alloc_arena();
    }
    fill_roomy(1);
    scenario_free(0);
    hugepages_state.used[HUGEPAGES_FOR_ROOMY] += HUGEPAGES_MOST_FIRST;
    /* Not looked at: the number of arenas is not what it should be. */
    (void)hold(hugepages_block_malloc(ARENA_SIZE / 2), ARENA_SIZE / 2);
    (void)hold(hugepages_block_malloc(ARENA_SIZE / 2), ARENA_SIZE / 2);
    hugepages_state.used[HUGEPAGES_FOR_ROOMY] -= HUGEPAGES_MOST_FIRST;
    (void)alloc_block(1000);
    (void)alloc_block(ARENA_SIZE + ARENA_SIZE / 2);
    (void)calloc_block(1, 3 * ARENA_SIZE);
    for (int i = 0; i < 3; i++) {
        scenario_resize(held_count - 1, 5 * ARENA_SIZE);
        scenario_resize(held_count - 2, 3 * ARENA_SIZE);
        scenario_resize(held_count - 3, 100000);
        scenario_resize(held_count - 1, 2 * ARENA_SIZE);
        scenario_resize(held_count - 2, 1000);
        scenario_resize(held_count - 3, 10);
        scenario_free(0);
        (void)alloc_block(2 * ARENA_SIZE);
        if (arena_count > 0) {
            free_arena(0);
        }
        fake.now += HUGEPAGES_EPOCH;
        hugepages_work_goes_on();
        blocks_set_huge_pages(i == 0 ? PYMALLOC_HUGEPAGES_THP
                                     : PYMALLOC_HUGEPAGES_ON);
    }
    while (held_count > 1) {
        free_block(&held[0]);
    }
}

/* Return how many calls the scenario has made. */
static int
check_fault(int fault_at, int fault_count, hugepages_result answer,
            size_t room)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    fake.room = room;
    fake.fault_at = fault_at;
    fake.fault_end = fault_at + fault_count;
    fake.fault_answer = answer;
    run_scenario();
    int calls = fake.number_of_calls;
    end_test();
    if (test_failed()) {
        FAIL("with %d calls failing from %d, room for %d", fault_count,
             fault_at, (int)room);
    }
    return calls;
}

static void
test_each_single_fault(void)
{
    static const hugepages_result faults[] = {HUGEPAGES_BUSY, HUGEPAGES_NEVER};
    /* One call fails, or all from there. */
    static const int counts[] = {1, 1000000};
    /* Mappings are moved when they grow, or not. */
    static const size_t rooms[] = {0, 8 * ARENA_SIZE};
    int points = 0;
    for (int i = 0; i < 2 * 2 * 2; i++) {
        int fault_at = 0, calls;
        do {
            calls = check_fault(fault_at, counts[i / 2 % 2], faults[i % 2],
                                rooms[i / 4]);
            fault_at++;
        } while (fault_at < calls && !test_failed());
        points += fault_at;
    }
    CHECK(points > 300);
    test_note("%d failure points", points);
}

static void
test_random_sequences(void)
{
    const int sequences = 20, operations = 300;
    for (int i = 0; i < sequences; i++) {
        uint32_t seed = test_seed + (uint32_t)i;
        uint32_t state = seed;
        begin_test(PYMALLOC_HUGEPAGES_ON);
        for (int j = 0; j < operations && !test_failed(); j++) {
            uint32_t choice = test_random(&state) % 100;
            uint32_t number = test_random(&state);
            size_t size = random_size(&state, 2 * ARENA_SIZE);
            if (number % 8 == 0) {
                size = all_sizes[number / 8 % ALL_SIZES];
            }
            fake.room = number % 3 * ARENA_SIZE;
            fake.resident = number % 4 * (ARENA_SIZE / 3);
            fake.random_state = choice % 2 == 0 || i % 3 == 0 ? 0 : number | 1;
            fake.now += number % (HUGEPAGES_EPOCH / 4);
            if (choice < 2) {
                blocks_set_huge_pages((int)(number % 4));
            }
            else if (choice < 4) {
                blocks_collected((int)(number % 2));
            }
            else if (choice < 8 && arena_count < 16) {
                (void)alloc_arena();
            }
            else if (choice < 12 && arena_count > 0) {
                free_arena((int)(number % (uint32_t)arena_count));
            }
            else if (choice < 40 || held_count == 0) {
                (void)(number & 0x100 ? alloc_block(size)
                                      : calloc_block(1, size));
            }
            else if (choice < 65) {
                free_block(&held[number % (uint32_t)held_count]);
            }
            else {
                (void)realloc_block(&held[number % (uint32_t)held_count],
                                    size);
            }
            if (test_failed()) {
                FAIL("in operation %d; run again with --seed %u", j, seed);
            }
        }
        end_test();
    }
}

// --- tests: threads --------------------------------------------------------

#define THREADS 8
#define THREAD_OPERATIONS 400
#define SLOTS 24

/* Where threads leave blocks for each other; NULL: nothing is there. */
static block *slots[SLOTS];

/* The threads do not look at everything, which changes meanwhile: each checks
   the block that it has, and makes it another one's. */
static void
stress(int thread)
{
    uint32_t state = test_seed + (uint32_t)thread;
    block *mine = NULL;
    for (int i = 0; i < test_rounds(THREAD_OPERATIONS); i++) {
        uint32_t number = test_random(&state);
        size_t size = number % 4 == 0 ? all_sizes[number / 4 % ALL_SIZES]
                                      : random_size(&state, ARENA_SIZE * 2);
        if (mine == NULL) {
            mine = (block *)malloc(sizeof(*mine));
            if (mine == NULL) {
                FAIL("no memory");
                return;
            }
            mine->memory = (unsigned char *)hugepages_block_malloc(size);
        }
        else {
            check_block(mine, mine->memory, mine->size);
            if (number & 0x1000) {
                hugepages_block_free(mine->memory);
                mine->memory =
                    (unsigned char *)hugepages_block_calloc(1, size);
            }
            else {
                unsigned char *resized = (unsigned char *)
                    hugepages_block_realloc(mine->memory, size);
                if (resized != NULL) {
                    check_block(mine, resized, size);
                }
                mine->memory = resized;
            }
        }
        if (mine->memory == NULL) {
            FAIL("no block of %d", (int)size);
            free(mine);
            return;
        }
        mine->size = size;
        mine->seed = number;
        for (size_t j = 0; j < mine->size; j = next_index(mine, j)) {
            mine->memory[j] = block_byte(mine, j);
        }
        if (thread == 0 && i % 16 == 0) {
            static const int tiers[] = {
                PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_OFF,
                PYMALLOC_HUGEPAGES_THP, PYMALLOC_HUGEPAGES_HUGETLB,
            };
            blocks_set_huge_pages(tiers[number / 16 % 4]);
        }
        _Py_atomic_store_uint64_relaxed(&fake.now,
                                        hugepages_os_now() + number % 50);
        hugepages_work_goes_on();
        mine = (block *)_Py_atomic_exchange_ptr(&slots[number / 32 % SLOTS],
                                                mine);
    }
    if (mine != NULL) {
        hugepages_block_free(mine->memory);
        free(mine);
    }
}

static void
test_threads(void)
{
    begin_test(PYMALLOC_HUGEPAGES_ON);
    memset(slots, 0, sizeof(slots));
    test_run_threads(THREADS, stress);
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i] != NULL) {
            check_block(slots[i], slots[i]->memory, slots[i]->size);
            hugepages_block_free(slots[i]->memory);
            free(slots[i]);
        }
    }
    check_all();
    end_test();
}

const testhugepages_test testhugepages_blocks_tests[] = {
    {"blocks_first", test_first},
    {"blocks_first_again", test_first_again},
    {"blocks_first_after_later", test_first_after_later},
    {"blocks_first_not_aligned", test_first_not_aligned},
    {"blocks_first_switch", test_first_switch},
    {"blocks_first_not_advised", test_first_not_advised},
    {"blocks_first_without_table", test_first_without_table},
    {"blocks_first_of_heaps", test_first_of_heaps},
    {"blocks_roomy", test_roomy},
    {"blocks_fill_ahead", test_fill_ahead},
    {"blocks_units", test_units},
    {"blocks_units_refused", test_units_refused},
    {"blocks_units_without_memory", test_units_without_memory},
    {"blocks_heap_classes", test_heap_classes},
    {"blocks_heap_grown", test_heap_grown},
    {"blocks_heap_sizes", test_heap_sizes},
    {"blocks_heap_in_place", test_heap_in_place},
    {"blocks_heap_most", test_heap_most},
    {"blocks_heap_joins", test_heap_joins},
    {"blocks_heap_arenas", test_heap_arenas},
    {"blocks_heap_reuse", test_heap_reuse},
    {"blocks_heap_refused", test_heap_refused},
    {"blocks_heap_not_aligned", test_heap_not_aligned},
    {"blocks_heap_random", test_heap_random},
    {"blocks_large_sizes", test_large_sizes},
    {"blocks_large_advice", test_large_advice},
    {"blocks_large_not_advised", test_large_not_advised},
    {"blocks_large_grows_after_advice", test_large_grows_after_advice},
    {"blocks_large_in_place", test_large_in_place},
    {"blocks_large_moved", test_large_moved},
    {"blocks_large_not_resized", test_large_not_resized},
    {"blocks_large_without_leaf", test_large_without_leaf},
    {"blocks_large_kept", test_large_kept},
    {"blocks_large_kept_whole", test_large_kept_whole},
    {"blocks_large_bound", test_large_bound},
    {"blocks_large_unwanted", test_large_unwanted},
    {"blocks_large_switch", test_large_switch},
    {"blocks_large_not_unmapped", test_large_not_unmapped},
    {"blocks_large_not_begun", test_large_not_begun},
    {"blocks_kept_is_given_back", test_kept_is_given_back},
    {"blocks_calloc", test_calloc},
    {"blocks_realloc", test_realloc},
    {"blocks_realloc_units", test_realloc_units},
    {"blocks_realloc_shrinks", test_realloc_shrinks},
    {"blocks_switch_off", test_switch_off},
    {"blocks_switch_hugetlb", test_switch_hugetlb},
    {"blocks_switch_again", test_switch_again},
    {"blocks_free_null", test_free_null},
    {"blocks_each_single_fault", test_each_single_fault},
    {"blocks_random_sequences", test_random_sequences},
    {"blocks_threads", test_threads},
    {NULL, NULL}
};
