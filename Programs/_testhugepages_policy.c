/* Tests of arena.c over a fake OS layer.

   The fake answers each call as the test wants and writes it down.  A model,
   simpler than arena.c, says after each operation which calls must have been
   made and what must have come of them; so every test, the random ones too,
   checks everything. */

#include "_testhugepages.h"

#define _PyMem_SetHugePages policy_set_huge_pages
#define _PyMem_GetHugePagesStats policy_get_stats
#define _PyMem_ReleaseHugePages policy_release
#define _PyMem_HugePagesCollected policy_collected
/* Few, so that tables grow often. */
#define HUGEPAGES_FIRST_ENTRIES 4
#define TEST_LATER_ARENAS
#include "_testhugepages_room.h"

// --- the fake OS layer -----------------------------------------------------

typedef enum {
    CALL_WATCH,
    CALL_SCAN,
    CALL_ENABLE,
    CALL_EXPLICIT,
    CALL_THP,
    CALL_PLAIN,
    CALL_UNMAP,
    CALL_KINDS
} call_kind;

static const char *const call_names[CALL_KINDS] = {
    "watch_fork", "scan", "enable_explicit", "map_explicit", "map_thp",
    "map_plain", "unmap"
};

typedef struct {
    call_kind kind;
    size_t size;
    void *address;
    hugepages_result answer;
} call;

/* The start of a mapping, which is all that there is in memory of an arena or
   what is larger: arena.c has no business behind it.  The tables of arenas
   are small, and whole. */
#define FAKE_MEMORY_SIZE 256

typedef struct {
    void *address;
    size_t size;
    /* Of a mapping: the call that made it, and whether it was seen in the
       table of its kind. */
    call_kind kind;
    int in_table;
} block;

#define MAX_BLOCKS 4096
#define MAX_CALLS 16

/* All of it is guarded by the lock of the layer, under which every call must
   be made but watch_fork. */
static struct {
    int locked;
    /* What the next calls answer. */
    hugepages_system system;
    hugepages_result answers[CALL_KINDS];
    /* If nonzero, answers are random: state of test_random(). */
    uint32_t random_state;
    /* The call with this number (from 0, since the start of the test) answers
       fault_answer; -1: none does. */
    int fault_at;
    hugepages_result fault_answer;

    int number_of_calls;
    int counts[CALL_KINDS];
    /* The calls of the running operation. */
    call calls[MAX_CALLS];
    int logged_calls;

    block mappings[MAX_BLOCKS];
    int mapping_count;
    /* Mappings of ARENA_SIZE, by the call that made them. */
    int mapped[CALL_KINDS];
} fake;

/* What the contract allows a call to answer. */
static hugepages_result
possible_answer(call_kind kind, hugepages_result answer)
{
    if (answer == HUGEPAGES_OK || kind == CALL_SCAN) {
        return HUGEPAGES_OK;
    }
    if (kind == CALL_WATCH || kind == CALL_ENABLE) {
        return HUGEPAGES_NEVER;
    }
    if (kind == CALL_PLAIN || kind == CALL_UNMAP) {
        return HUGEPAGES_BUSY;
    }
    return answer;
}

static hugepages_result
random_answer(call_kind kind)
{
    uint32_t number = test_random(&fake.random_state) % 100;
    if (kind == CALL_EXPLICIT || kind == CALL_THP) {
        /* NEVER ends the matter, so must be rare to let things happen. */
        return number < 1 ? HUGEPAGES_NEVER
               : number < 40 ? HUGEPAGES_BUSY : HUGEPAGES_OK;
    }
    if (kind == CALL_WATCH) {
        return number < 1 ? HUGEPAGES_NEVER : HUGEPAGES_OK;
    }
    return possible_answer(kind,
                           number < 20 ? HUGEPAGES_BUSY : HUGEPAGES_OK);
}

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

/* Choose the answer and count the call. */
static hugepages_result
fake_answer(call_kind kind)
{
    if (!fake.locked) {
        FAIL("%s called without the lock", call_names[kind]);
    }
    hugepages_result answer = possible_answer(kind, fake.answers[kind]);
    if (fake.random_state != 0) {
        answer = random_answer(kind);
    }
    if (fake.number_of_calls == fake.fault_at) {
        answer = possible_answer(kind, fake.fault_answer);
    }
    fake.number_of_calls++;
    fake.counts[kind]++;
    return answer;
}

static void
fake_log(call_kind kind, size_t size, void *address, hugepages_result answer)
{
    if (fake.logged_calls < MAX_CALLS) {
        fake.calls[fake.logged_calls++] = (call){kind, size, address, answer};
    }
}

static hugepages_result
hugepages_os_watch_fork(int *os_error)
{
    hugepages_os_lock();
    hugepages_result answer = fake_answer(CALL_WATCH);
    fake_log(CALL_WATCH, 0, NULL, answer);
    hugepages_os_unlock();
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
    }
    return answer;
}

static void
hugepages_os_scan(hugepages_system *system)
{
    fake_log(CALL_SCAN, 0, NULL, fake_answer(CALL_SCAN));
    *system = fake.system;
}

static uint64_t
hugepages_os_now(void)
{
    return 0;
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    hugepages_result answer = fake_answer(CALL_ENABLE);
    fake_log(CALL_ENABLE, 0, NULL, answer);
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
    }
    return answer;
}

static hugepages_result
fake_map(call_kind kind, size_t size, void **address, int *os_error)
{
    hugepages_result answer = fake_answer(kind);
    void *memory = NULL;
    if (answer == HUGEPAGES_OK && fake.mapping_count == MAX_BLOCKS) {
        FAIL("%d mappings are more than any test needs: one leaks",
             MAX_BLOCKS);
        answer = HUGEPAGES_BUSY;
    }
    if (answer == HUGEPAGES_OK) {
        int whole = size > FAKE_MEMORY_SIZE && size < ARENA_SIZE;
        memory = malloc(whole ? size : FAKE_MEMORY_SIZE);
        if (memory == NULL) {
            fprintf(stderr, "out of memory\n");
            exit(1);
        }
        fake.mappings[fake.mapping_count++] = (block){memory, size, kind, 0};
        fake.mapped[kind] += (size == ARENA_SIZE);
        *address = memory;
    }
    else {
        *os_error = 1;
    }
    fake_log(kind, size, memory, answer);
    return answer;
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    return fake_map(CALL_EXPLICIT, size, address, os_error);
}

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    return fake_map(CALL_THP, size, address, os_error);
}

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    return fake_map(CALL_PLAIN, size, address, os_error);
}

static int
find_block(const block *blocks, int count, const void *address)
{
    for (int i = 0; i < count; i++) {
        if (blocks[i].address == address) {
            return i;
        }
    }
    return -1;
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_UNMAP);
    fake_log(CALL_UNMAP, size, address, answer);
    int index = find_block(fake.mappings, fake.mapping_count, address);
    if (index < 0) {
        FAIL("unmap of %p, which is not mapped", address);
        answer = HUGEPAGES_BUSY;
    }
    else if (fake.mappings[index].size != size) {
        FAIL("unmap of size %llu, mapped with %llu", (unsigned long long)size,
             (unsigned long long)fake.mappings[index].size);
        answer = HUGEPAGES_BUSY;
    }
    else if (answer == HUGEPAGES_OK) {
        free(address);
        fake.mapped[fake.mappings[index].kind] -= (size == ARENA_SIZE);
        fake.mappings[index] = fake.mappings[--fake.mapping_count];
    }
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
    }
    return answer;
}

static const char *
hugepages_os_error_name(int os_error)
{
    return os_error == 1 ? "FAKE" : NULL;
}

// --- the model -------------------------------------------------------------

static struct {
    int allowed;
    int refused;
    int scanned;
    int enable_asked;
    block held[MAX_BLOCKS];
    int held_count;
    block strays[MAX_BLOCKS];
    int stray_count;
    /* The tables of the arenas on explicit pages and on THP, once they are
       mapped, and how often one was asked for. */
    block tables[2];
    int table_requests;
    /* Refusals, by the call. */
    size_t refusals[CALL_KINDS];
    /* Of plain memory for an arena. */
    size_t plain_refusals;
    _PyMem_HugePagesStats stats;
    /* Index of the first call of the log that is not accounted for. */
    int next_call;
} model;

static void
begin_test(void)
{
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    skip_first_arenas();
    memset(&hugepages_stats, 0, sizeof(hugepages_stats));
    memset(&model, 0, sizeof(model));
    memset(&fake, 0, sizeof(fake));
    fake.system.base_page_size = 4096;
    fake.system.explicit_page_size = ARENA_SIZE;
    fake.system.thp_size = ARENA_SIZE;
    fake.fault_at = -1;
}

static void
begin_operation(void)
{
    fake.logged_calls = 0;
    model.next_call = 0;
}

/* The next call must have been this one.  Return what it answered. */
static const call *
expect_call(call_kind kind, size_t size)
{
    static const call none;
    if (model.next_call >= fake.logged_calls) {
        FAIL("no call of %s", call_names[kind]);
        return &none;
    }
    const call *made = &fake.calls[model.next_call++];
    model.refusals[kind] += (made->answer != HUGEPAGES_OK);
    if (made->kind != kind) {
        FAIL("call of %s, expected %s",
             call_names[made->kind], call_names[kind]);
    }
    else if (made->size != size) {
        FAIL("%s called with size %llu, expected %llu", call_names[kind],
             (unsigned long long)made->size, (unsigned long long)size);
    }
    return made;
}

static const struct {
    int tier;
    call_kind kind;
} huge_tiers[] = {
    {PYMALLOC_HUGEPAGES_HUGETLB, CALL_EXPLICIT},
    {PYMALLOC_HUGEPAGES_THP, CALL_THP},
};

/* A table must hold what is mapped on its kind of pages, each once, and nothing
   else. */
static void
check_table(int number)
{
    const hugepages_table *table = &hugepages_state.arenas[number];
    CHECK_EQUAL(table->count, fake.mapped[huge_tiers[number].kind]);
    CHECK(table->count * sizeof(void *) <= model.tables[number].size
          || table->count <= HUGEPAGES_FIRST_ENTRIES);
    for (int i = 0; i < fake.mapping_count; i++) {
        fake.mappings[i].in_table = 0;
    }
    for (size_t i = 0; i < table->count; i++) {
        int index = find_block(fake.mappings, fake.mapping_count,
                               table->addresses[i]);
        if (index < 0 || fake.mappings[index].kind != huge_tiers[number].kind
            || fake.mappings[index].in_table)
        {
            FAIL("entry %d of table %d is wrong", (int)i, number);
            return;
        }
        fake.mappings[index].in_table = 1;
    }
}

static int
count_strays(size_t size)
{
    int count = 0;
    for (int i = 0; i < model.stray_count; i++) {
        count += (model.strays[i].size == size);
    }
    return count;
}

/* so_far is what the figures were after the last operation. */
static void
check_figures(const _PyMem_HugePagesTier *tier, int now,
              _PyMem_HugePagesTier *so_far)
{
    CHECK_EQUAL(tier->now, now);
    if (tier->now > so_far->now) {
        CHECK_EQUAL(tier->now, so_far->now + 1);
        CHECK_EQUAL(tier->ever, so_far->ever + 1);
    }
    else {
        CHECK_EQUAL(tier->ever, so_far->ever);
    }
    CHECK_EQUAL(tier->peak,
                tier->now > so_far->peak ? tier->now : so_far->peak);
    *so_far = *tier;
}

static size_t
sum_refusals(const _PyMem_HugePagesTier *tier)
{
    size_t sum = 0;
    for (int i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        sum += tier->refused[i].count;
    }
    return sum;
}

static void
check_stats(void)
{
    _PyMem_HugePagesStats stats;
    policy_get_stats(&stats);
    check_figures(&stats.hugetlb, fake.mapped[CALL_EXPLICIT],
                  &model.stats.hugetlb);
    check_figures(&stats.thp, fake.mapped[CALL_THP], &model.stats.thp);
    check_figures(&stats.plain, fake.mapped[CALL_PLAIN], &model.stats.plain);
    check_figures(&stats.retained, count_strays(ARENA_SIZE),
                  &model.stats.retained);
    CHECK_EQUAL(sum_refusals(&stats.hugetlb),
                model.refusals[CALL_EXPLICIT] + model.refusals[CALL_ENABLE]
                + model.refusals[CALL_WATCH]);
    CHECK_EQUAL(sum_refusals(&stats.thp),
                model.refusals[CALL_THP]);
    CHECK_EQUAL(sum_refusals(&stats.plain),
                model.plain_refusals);
    int usable = model.allowed & ~model.refused;
    CHECK_EQUAL(stats.hugetlb.unusable == NULL,
                (usable & PYMALLOC_HUGEPAGES_HUGETLB) != 0);
    CHECK_EQUAL(stats.thp.unusable == NULL,
                (usable & PYMALLOC_HUGEPAGES_THP) != 0);
}

static int
count_tables(void)
{
    return (model.tables[0].address != NULL)
           + (model.tables[1].address != NULL);
}

static void
end_operation(void)
{
    CHECK(!fake.locked);
    if (model.next_call != fake.logged_calls) {
        FAIL("unexpected call of %s",
             call_names[fake.calls[model.next_call].kind]);
    }
    int tables = count_tables();
    if (fake.mapping_count != model.held_count + model.stray_count + tables) {
        FAIL("%d mappings, but %d in use, %d tables, and %d strays",
             fake.mapping_count, model.held_count, tables, model.stray_count);
    }
    check_table(0);
    check_table(1);
    check_stats();
}

static void
set_tiers(int tiers)
{
    begin_operation();
    policy_set_huge_pages(tiers);

    if (expect_call(CALL_WATCH, 0)->answer != HUGEPAGES_OK) {
        model.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
    }
    model.allowed = tiers;
    if (tiers != PYMALLOC_HUGEPAGES_OFF && !model.scanned) {
        (void)expect_call(CALL_SCAN, 0);
        model.scanned = 1;
        size_t explicit_size = fake.system.explicit_page_size;
        size_t thp_size = fake.system.thp_size;
        if (explicit_size == 0 || ARENA_SIZE % explicit_size != 0) {
            model.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
        }
        if (thp_size == 0 || ARENA_SIZE % thp_size != 0
            || fake.system.thp_disabled)
        {
            model.refused |= PYMALLOC_HUGEPAGES_THP;
        }
    }
    if ((model.allowed & ~model.refused & PYMALLOC_HUGEPAGES_HUGETLB)
        && !model.enable_asked)
    {
        model.enable_asked = 1;
        if (expect_call(CALL_ENABLE, 0)->answer != HUGEPAGES_OK) {
            model.refused |= PYMALLOC_HUGEPAGES_HUGETLB;
        }
    }
    end_operation();
}

/* The calls that must make room in a table for one more arena, when so many
   are in it.  Return 0, or -1 if it is full. */
static int
expect_room_in_table(block *table, int count)
{
    size_t old_size = table->size;
    size_t used = (size_t)count * sizeof(void *);
    if (used < old_size || count < HUGEPAGES_FIRST_ENTRIES) {
        return 0;
    }
    size_t new_size = 2 * old_size;
    if (old_size == 0) {
        while (new_size <= used) {
            new_size += fake.system.base_page_size;
        }
    }
    model.table_requests++;
    const call *made = expect_call(CALL_PLAIN, new_size);
    if (made->answer != HUGEPAGES_OK) {
        return -1;
    }
    block old_table = *table;
    *table = (block){made->address, new_size, CALL_PLAIN, 0};
    if (old_size != 0) {
        made = expect_call(CALL_UNMAP, old_size);
        CHECK(made->address == old_table.address);
        if (made->answer != HUGEPAGES_OK) {
            model.strays[model.stray_count++] = old_table;
        }
    }
    return 0;
}

/* How often plain memory was asked for, other than for the tables. */
static int
plain_requests(void)
{
    return fake.counts[CALL_PLAIN] - model.table_requests;
}

/* The calls that a request must lead to, when so many arenas are on each kind
   of pages before.  Return the address that the last of them answered, NULL if
   it failed. */
static void *
expect_mapping(size_t size, const int counts[CALL_KINDS])
{
    for (int i = 0; i < 2; i++) {
        call_kind kind = huge_tiers[i].kind;
        if (size == ARENA_SIZE
            && (model.allowed & ~model.refused & huge_tiers[i].tier)
            && expect_room_in_table(&model.tables[i], counts[kind]) == 0)
        {
            const call *made = expect_call(kind, size);
            if (made->answer == HUGEPAGES_OK) {
                return made->address;
            }
            if (made->answer == HUGEPAGES_NEVER) {
                model.refused |= huge_tiers[i].tier;
            }
        }
    }
    const call *made = expect_call(CALL_PLAIN, size);
    if (size == ARENA_SIZE && made->answer != HUGEPAGES_OK) {
        model.plain_refusals++;
    }
    return made->address;
}

/* Fill a block with a pattern of its own, as its user would. */
static unsigned char
block_pattern(const void *address)
{
    return (unsigned char)((uintptr_t)address >> 4 | 1);
}

static void
fill_block(void *address)
{
    memset(address, block_pattern(address), FAKE_MEMORY_SIZE);
}

static void
check_block(const void *address)
{
    const unsigned char *bytes = (const unsigned char *)address;
    for (int i = 0; i < FAKE_MEMORY_SIZE; i++) {
        if (bytes[i] != block_pattern(address)) {
            FAIL("byte %d of a block in use was overwritten", i);
            return;
        }
    }
}

static void *
alloc_block(size_t size)
{
    begin_operation();
    int counts[CALL_KINDS];
    memcpy(counts, fake.mapped, sizeof(counts));
    void *address = hugepages_alloc(size);
    if (count_strays(size) > 0) {
        int index = find_block(model.strays, model.stray_count, address);
        if (index < 0 || model.strays[index].size != size) {
            FAIL("a stray of the size is there, but was not used");
        }
        else {
            model.strays[index] = model.strays[--model.stray_count];
        }
    }
    else {
        CHECK(address == expect_mapping(size, counts));
    }
    if (address != NULL) {
        if (find_block(model.held, model.held_count, address) >= 0) {
            FAIL("a block in use was given out again");
        }
        model.held[model.held_count++] = (block){
            address, size, CALL_KINDS, 0
        };
        fill_block(address);
    }
    end_operation();
    return address;
}

static void
free_block(void *address)
{
    int index = find_block(model.held, model.held_count, address);
    if (index < 0) {
        FAIL("the test frees %p, which it does not hold", address);
        return;
    }
    check_block(address);
    block freed = model.held[index];
    model.held[index] = model.held[--model.held_count];

    begin_operation();
    hugepages_free(address, freed.size);
    const call *made = expect_call(CALL_UNMAP, freed.size);
    CHECK(made->address == address);
    if (made->answer != HUGEPAGES_OK) {
        model.strays[model.stray_count++] = freed;
    }
    end_operation();
}

/* Free everything; then no mapping may be left but the tables, neither a
   stray. */
static void
end_test(void)
{
    fake.random_state = 0;
    fake.fault_at = -1;
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        fake.answers[kind] = HUGEPAGES_OK;
    }
    while (model.stray_count > 0 && !test_failed()) {
        (void)alloc_block(model.strays[0].size);
    }
    while (model.held_count > 0 && !test_failed()) {
        free_block(model.held[0].address);
    }
    CHECK_EQUAL(fake.mapping_count, count_tables());
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK(fake.counts[CALL_SCAN] <= 1);
    CHECK(fake.counts[CALL_ENABLE] <= 1);
    for (int i = 0; i < fake.mapping_count; i++) {
        free(fake.mappings[i].address);
    }
}

// --- tests: the switch -----------------------------------------------------

static void
test_before_switch(void)
{
    begin_test();
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.number_of_calls, 1);
    CHECK_EQUAL(fake.counts[CALL_PLAIN], 1);
    end_test();
}

static void
test_off(void)
{
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_OFF);
    CHECK_EQUAL(fake.number_of_calls, 1);
    CHECK_EQUAL(fake.counts[CALL_WATCH], 1);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.number_of_calls, 2);
    CHECK_EQUAL(plain_requests(), 1);
    end_test();
}

static void
test_hugetlb(void)
{
    begin_test();
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    set_tiers(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], 1);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 1);
    CHECK_EQUAL(fake.counts[CALL_THP], 0);
    CHECK_EQUAL(plain_requests(), 1);
    end_test();
}

static void
test_thp(void)
{
    begin_test();
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    set_tiers(PYMALLOC_HUGEPAGES_THP);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], 0);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(plain_requests(), 1);
    end_test();
}

static void
test_on(void)
{
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 1);
    CHECK_EQUAL(fake.counts[CALL_THP], 0);
    CHECK_EQUAL(plain_requests(), 0);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 2);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(plain_requests(), 0);
    end_test();
}

/* Python may be initialized again, with another value. */
static void
test_switch_again(void)
{
    static const int values[] = {
        PYMALLOC_HUGEPAGES_OFF, PYMALLOC_HUGEPAGES_THP,
        PYMALLOC_HUGEPAGES_OFF, PYMALLOC_HUGEPAGES_ON,
        PYMALLOC_HUGEPAGES_HUGETLB, PYMALLOC_HUGEPAGES_ON,
    };
    begin_test();
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        set_tiers(values[i]);
        (void)alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(fake.counts[CALL_SCAN], 1);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], 1);
    CHECK_EQUAL(plain_requests(), 2);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 3);
    end_test();
}

// --- tests: which pages a request gets -------------------------------------

/* A huge page for a data-stack chunk would waste nearly all of it. */
static void
test_other_sizes(void)
{
    static const size_t sizes[] = {
        1, 4096, 16 * 1024, ARENA_SIZE / 2, ARENA_SIZE - 1, ARENA_SIZE + 1,
        2 * ARENA_SIZE,
    };
    const int count = sizeof(sizes) / sizeof(sizes[0]);
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < count; i++) {
        (void)alloc_block(sizes[i]);
    }
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    CHECK_EQUAL(fake.counts[CALL_THP], 0);
    CHECK_EQUAL(plain_requests(), count);
    end_test();
}

/* Every answer of every tier under every value of the switch. */
static void
test_fallback(void)
{
    for (int tiers = PYMALLOC_HUGEPAGES_OFF; tiers <= PYMALLOC_HUGEPAGES_ON;
         tiers++)
    {
        for (int answers = 0; answers < 3 * 3 * 2; answers++) {
            begin_test();
            fake.answers[CALL_EXPLICIT] = (hugepages_result)(answers % 3);
            fake.answers[CALL_THP] = (hugepages_result)(answers / 3 % 3);
            fake.answers[CALL_PLAIN] = (hugepages_result)(answers / 9);
            set_tiers(tiers);
            for (int i = 0; i < 3; i++) {
                (void)alloc_block(ARENA_SIZE);
                (void)alloc_block(16 * 1024);
            }
            end_test();
        }
    }
}

static void
test_never_is_not_asked_again(void)
{
    begin_test();
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_NEVER;
    fake.answers[CALL_THP] = HUGEPAGES_NEVER;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < 5; i++) {
        (void)alloc_block(ARENA_SIZE);
        /* Not even by another value of the switch. */
        set_tiers(PYMALLOC_HUGEPAGES_OFF);
        set_tiers(PYMALLOC_HUGEPAGES_ON);
    }
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 1);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(plain_requests(), 5);
    end_test();
}

static void
test_busy_is_asked_again(void)
{
    begin_test();
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < 5; i++) {
        (void)alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 5);
    CHECK_EQUAL(fake.counts[CALL_THP], 5);
    fake.answers[CALL_THP] = HUGEPAGES_OK;
    (void)alloc_block(ARENA_SIZE);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_OK;
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(plain_requests(), 5);
    CHECK_EQUAL(fake.counts[CALL_THP], 6);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 7);
    end_test();
}

static void
test_enable_refused(void)
{
    begin_test();
    fake.answers[CALL_ENABLE] = HUGEPAGES_NEVER;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    (void)alloc_block(ARENA_SIZE);
    set_tiers(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], 1);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(plain_requests(), 1);
    end_test();
}

/* Without it, a fork would end in SIGBUS. */
static void
test_watch_fork_refused(void)
{
    begin_test();
    fake.answers[CALL_WATCH] = HUGEPAGES_NEVER;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    (void)alloc_block(ARENA_SIZE);
    set_tiers(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], 0);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(plain_requests(), 1);
    end_test();
}

static void
check_possible(hugepages_system system, int explicit_possible,
               int thp_possible)
{
    begin_test();
    fake.system = system;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    set_tiers(PYMALLOC_HUGEPAGES_HUGETLB);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_ENABLE], explicit_possible);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], explicit_possible);
    set_tiers(PYMALLOC_HUGEPAGES_THP);
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.counts[CALL_THP], thp_possible);
    end_test();
}

static void
test_impossible(void)
{
    const size_t gib = (size_t)1 << 30;
    const size_t arena = ARENA_SIZE;
    /* Fields: base page, explicit page, THP, THP disabled. */
    check_possible((hugepages_system){4096, arena, arena, 0}, 1, 1);
    check_possible((hugepages_system){4096, 0, arena, 0}, 0, 1);
    check_possible((hugepages_system){4096, gib, arena, 0}, 0, 1);
    check_possible((hugepages_system){4096, 2 * arena, arena, 0}, 0, 1);
    check_possible((hugepages_system){4096, arena / 2, arena, 0}, 1, 1);
    check_possible((hugepages_system){4096, arena, 0, 0}, 1, 0);
    check_possible((hugepages_system){4096, arena, arena, 1}, 1, 0);
    check_possible((hugepages_system){4096, arena, arena / 2, 0}, 1, 1);
    /* ARM64 with base pages of 64 KiB. */
    check_possible((hugepages_system){65536, arena, gib / 2, 0}, 1, 0);
    check_possible((hugepages_system){65536, 0, 0, 0}, 0, 0);
}

// --- tests: giving back ----------------------------------------------------

static void
test_free_null(void)
{
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    begin_operation();
    hugepages_free(NULL, ARENA_SIZE);
    end_operation();
    end_test();
}

static void
test_no_memory(void)
{
    begin_test();
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    CHECK(alloc_block(ARENA_SIZE) == NULL);
    CHECK(alloc_block(16 * 1024) == NULL);
    fake.answers[CALL_PLAIN] = HUGEPAGES_OK;
    CHECK(alloc_block(ARENA_SIZE) != NULL);
    end_test();
}

static void
test_stray_is_reused(void)
{
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    void *arena = alloc_block(ARENA_SIZE);
    void *chunk = alloc_block(16 * 1024);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    free_block(arena);
    free_block(chunk);
    int calls = fake.number_of_calls;
    CHECK(alloc_block(16 * 1024) == chunk);
    CHECK(alloc_block(ARENA_SIZE) == arena);
    CHECK_EQUAL(fake.number_of_calls, calls);
    end_test();
}

static void
test_stray_of_another_size_is_kept(void)
{
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    void *arena = alloc_block(ARENA_SIZE);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    free_block(arena);
    CHECK(alloc_block(16 * 1024) != arena);
    CHECK(alloc_block(2 * ARENA_SIZE) != arena);
    CHECK(alloc_block(ARENA_SIZE) == arena);
    end_test();
}

/* Whatever the order in which strays come and go, none is lost. */
static void
test_many_strays(void)
{
    enum { COUNT = 30 };
    void *blocks[COUNT];
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < COUNT; i++) {
        blocks[i] = alloc_block(i % 3 == 0 ? ARENA_SIZE
                                : (size_t)(i % 3) * 16 * 1024);
    }
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    for (int i = 0; i < COUNT; i++) {
        free_block(blocks[i]);
    }
    CHECK_EQUAL(model.stray_count, COUNT);
    int calls = fake.number_of_calls;
    for (int i = COUNT - 1; i >= 0; i--) {
        (void)alloc_block(i % 3 == 0 ? ARENA_SIZE
                          : (size_t)(i % 3) * 16 * 1024);
    }
    CHECK_EQUAL(fake.number_of_calls, calls);
    CHECK_EQUAL(model.stray_count, 0);
    end_test();
}

// --- tests: the statistics ---------------------------------------------------

/* Whatever the number of different errors, each refusal is counted. */
static void
test_errors(void)
{
    enum { ERRORS = PYMEM_HUGEPAGES_ERRORS + 3 };
    begin_test();
    for (int round = 0; round < 2; round++) {
        for (int error = 1; error <= ERRORS; error++) {
            hugepages_count_refused(HUGEPAGES_THP, error);
        }
    }
    _PyMem_HugePagesStats stats;
    policy_get_stats(&stats);
    const int last = PYMEM_HUGEPAGES_ERRORS - 1;
    for (int i = 0; i < last; i++) {
        CHECK_EQUAL(stats.thp.refused[i].error, i + 1);
        CHECK_EQUAL(stats.thp.refused[i].count, 2);
    }
    CHECK(strcmp(stats.thp.refused[0].name, "FAKE") == 0);
    CHECK(stats.thp.refused[1].name == NULL);
    CHECK_EQUAL(stats.thp.refused[last].error, 0);
    CHECK_EQUAL(stats.thp.refused[last].count, 2 * (ERRORS - last));
    CHECK_EQUAL(sum_refusals(&stats.hugetlb), 0);
}

/* Why a kind of pages is not asked for, and the switch, in words. */
static void
test_reasons(void)
{
    static const struct {
        hugepages_system system;
        int tiers;
        const char *switch_value, *hugetlb, *thp;
    } cases[] = {
        {{4096, ARENA_SIZE, ARENA_SIZE, 0}, PYMALLOC_HUGEPAGES_ON,
         "on", NULL, NULL},
        {{4096, ARENA_SIZE, ARENA_SIZE, 0}, PYMALLOC_HUGEPAGES_THP,
         "thp", "switch", NULL},
        {{4096, ARENA_SIZE, ARENA_SIZE, 0}, PYMALLOC_HUGEPAGES_HUGETLB,
         "hugetlb", NULL, "switch"},
        {{4096, ARENA_SIZE, ARENA_SIZE, 0}, PYMALLOC_HUGEPAGES_OFF,
         "off", "switch", "switch"},
        {{4096, 0, 0, 0}, PYMALLOC_HUGEPAGES_ON,
         "on", "no huge page that fits", "no transparent huge pages"},
        {{4096, 2 * ARENA_SIZE, 2 * ARENA_SIZE, 0}, PYMALLOC_HUGEPAGES_ON,
         "on", "no huge page that fits", "does not fit"},
        {{4096, ARENA_SIZE, ARENA_SIZE, 1}, PYMALLOC_HUGEPAGES_ON,
         "on", NULL, "disabled for this process"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin_test();
        fake.system = cases[i].system;
        set_tiers(cases[i].tiers);
        _PyMem_HugePagesStats stats;
        policy_get_stats(&stats);
        CHECK(strcmp(stats.switch_value, cases[i].switch_value) == 0);
        CHECK(cases[i].hugetlb == NULL
              ? stats.hugetlb.unusable == NULL
              : strstr(stats.hugetlb.unusable, cases[i].hugetlb) != NULL);
        CHECK(cases[i].thp == NULL
              ? stats.thp.unusable == NULL
              : strstr(stats.thp.unusable, cases[i].thp) != NULL);
        /* Large blocks have THP. */
        CHECK(stats.large.unusable == stats.thp.unusable);
        end_test();
    }
    begin_test();
    set_tiers(PYMALLOC_HUGEPAGES_ON);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_NEVER;
    (void)alloc_block(ARENA_SIZE);
    _PyMem_HugePagesStats stats;
    policy_get_stats(&stats);
    CHECK(strstr(stats.hugetlb.unusable, "refused it for good") != NULL);
    CHECK(stats.thp.unusable == NULL);
    end_test();
}

// --- tests: the tables of arenas -----------------------------------

/* In the first table that is mapped. */
#define FIRST_TABLE_ENTRIES 8

static void
begin_table_test(void)
{
    begin_test();
    fake.system.base_page_size = FIRST_TABLE_ENTRIES * sizeof(void *);
    set_tiers(PYMALLOC_HUGEPAGES_ON);
}

/* Whatever the order in which arenas come and go. */
static void
test_table_grows(void)
{
    enum { COUNT = 200 };
    void *arenas[COUNT];
    begin_table_test();
    for (int i = 0; i < COUNT; i++) {
        arenas[i] = alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(model.table_requests, 6);
    CHECK_EQUAL(plain_requests(), 0);
    for (int i = 0; i < COUNT; i++) {
        /* 7 and COUNT have no common divisor. */
        free_block(arenas[i * 7 % COUNT]);
    }
    for (int i = 0; i < COUNT; i++) {
        (void)alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(model.table_requests, 6);
    end_test();
}

/* An arena that would not be found at a fork gets other pages. */
static void
test_table_cannot_grow(void)
{
    begin_table_test();
    for (int i = 0; i < HUGEPAGES_FIRST_ENTRIES; i++) {
        (void)alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(fake.mapped[CALL_EXPLICIT], HUGEPAGES_FIRST_ENTRIES);
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    for (int i = 0; i < 3; i++) {
        CHECK(alloc_block(ARENA_SIZE) != NULL);
    }
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], HUGEPAGES_FIRST_ENTRIES);
    CHECK_EQUAL(fake.counts[CALL_THP], 3);
    fake.answers[CALL_PLAIN] = HUGEPAGES_OK;
    (void)alloc_block(ARENA_SIZE);
    CHECK_EQUAL(fake.mapped[CALL_EXPLICIT], HUGEPAGES_FIRST_ENTRIES + 1);
    end_test();
}

/* The old table is a stray of a size that a block may have. */
static void
test_table_stray(void)
{
    begin_table_test();
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    for (int i = 0; i <= FIRST_TABLE_ENTRIES; i++) {
        (void)alloc_block(ARENA_SIZE);
    }
    CHECK_EQUAL(model.stray_count, 1);
    (void)alloc_block(FIRST_TABLE_ENTRIES * sizeof(void *));
    CHECK_EQUAL(model.stray_count, 0);
    end_test();
}

/* A stray on explicit pages is in the table all the time. */
static void
test_table_keeps_strays(void)
{
    begin_table_test();
    void *first = alloc_block(ARENA_SIZE);
    void *second = alloc_block(ARENA_SIZE);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    free_block(first);
    CHECK_EQUAL(hugepages_explicit->count, 2);
    CHECK(alloc_block(ARENA_SIZE) == first);
    CHECK_EQUAL(hugepages_explicit->count, 2);
    fake.answers[CALL_UNMAP] = HUGEPAGES_OK;
    free_block(second);
    CHECK_EQUAL(hugepages_explicit->count, 1);
    end_test();
}

// --- tests: faults ---------------------------------------------------------

/* Everything that arena.c does, once.  Memory that cannot be had is not
   there to be freed. */
static void
run_scenario(void)
{
    static const int values[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_THP,
        PYMALLOC_HUGEPAGES_HUGETLB, PYMALLOC_HUGEPAGES_OFF,
        PYMALLOC_HUGEPAGES_ON,
    };
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        set_tiers(values[i]);
        void *first = alloc_block(ARENA_SIZE);
        void *chunk = alloc_block(16 * 1024);
        (void)alloc_block(ARENA_SIZE);
        if (first != NULL) {
            free_block(first);
        }
        if (chunk != NULL) {
            free_block(chunk);
        }
        (void)alloc_block(ARENA_SIZE);
    }
}

static void
test_each_single_fault(void)
{
    static const hugepages_result faults[] = {HUGEPAGES_BUSY, HUGEPAGES_NEVER};
    int points = 0;
    for (int i = 0; i < 2; i++) {
        int fault_at = 0, calls;
        do {
            begin_test();
            fake.system.base_page_size = 2 * sizeof(void *);
            fake.fault_at = fault_at;
            fake.fault_answer = faults[i];
            run_scenario();
            calls = fake.number_of_calls;
            end_test();
            if (test_failed()) {
                FAIL("with call %d failing", fault_at);
                return;
            }
            fault_at++;
        } while (fault_at < calls);
        points += fault_at;
    }
    CHECK(points > 50);
    test_note("%d failure points", points);
}

static void
test_random_sequences(void)
{
    static const size_t sizes[] = {
        ARENA_SIZE, ARENA_SIZE, 16 * 1024, 32 * 1024
    };
    const int sequences = 200, operations = 1000;
    for (int i = 0; i < sequences; i++) {
        uint32_t seed = test_seed + (uint32_t)i;
        uint32_t random_state = seed;
        begin_test();
        /* Small, so that the table of explicit arenas grows often. */
        fake.system.base_page_size = 64;
        fake.random_state = ~seed;
        for (int j = 0; j < operations; j++) {
            uint32_t number = test_random(&random_state);
            uint32_t choice = number % 100;
            number /= 100;
            if (choice < 3) {
                set_tiers((int)(number % 4));
            }
            else if (choice < 53 || model.held_count == 0) {
                (void)alloc_block(sizes[number % 4]);
            }
            else {
                uint32_t index = number % (uint32_t)model.held_count;
                free_block(model.held[index].address);
            }
            if (test_failed()) {
                FAIL("in operation %d; run again with --seed %u", j, seed);
                return;
            }
        }
        end_test();
    }
    test_note("%d sequences of %d operations, seeds from %u",
              sequences, operations, test_seed);
}

// --- tests: threads --------------------------------------------------------

#define THREADS 8
#define THREAD_OPERATIONS 20000

/* The threads do not follow the model, which knows one operation at a time:
   each checks that nobody else writes into its blocks. */
static void
stress(int thread)
{
    static const int tiers[] = {
        PYMALLOC_HUGEPAGES_ON, PYMALLOC_HUGEPAGES_OFF,
        PYMALLOC_HUGEPAGES_THP, PYMALLOC_HUGEPAGES_HUGETLB,
    };
    enum { MAX_HELD = 16 };
    block held[MAX_HELD];
    uint32_t held_count = 0;
    uint32_t random_state = test_seed + (uint32_t)thread;
    for (int i = 0; i < THREAD_OPERATIONS; i++) {
        uint32_t number = test_random(&random_state);
        if (thread == 0 && i % 16 == 0) {
            policy_set_huge_pages(tiers[number % 4]);
        }
        if (held_count < MAX_HELD && number & 0x10000) {
            size_t size = number & 0x20000 ? ARENA_SIZE : 16 * 1024;
            void *address = hugepages_alloc(size);
            if (address != NULL) {
                held[held_count++] = (block){address, size, CALL_KINDS, 0};
                memset(address, thread + 1, FAKE_MEMORY_SIZE);
            }
        }
        else if (held_count > 0) {
            uint32_t index = number % held_count;
            const unsigned char *bytes = held[index].address;
            for (int j = 0; j < FAKE_MEMORY_SIZE; j++) {
                if (bytes[j] != thread + 1) {
                    FAIL("byte %d of a block in use was overwritten", j);
                    break;
                }
            }
            hugepages_free(held[index].address, held[index].size);
            held[index] = held[--held_count];
        }
    }
    while (held_count > 0) {
        held_count--;
        hugepages_free(held[held_count].address, held[held_count].size);
    }
}

static void
test_threads(void)
{
    begin_test();
    fake.random_state = ~test_seed;
    test_run_threads(THREADS, stress);
    CHECK(fake.counts[CALL_SCAN] == 1);
    CHECK(fake.counts[CALL_ENABLE] <= 1);
    for (int i = 0; i < 2; i++) {
        const hugepages_table *table = &hugepages_state.arenas[i];
        if (table->size > 0) {
            model.tables[i] = (block){
                table->addresses, table->size, CALL_PLAIN, 0
            };
        }
    }

    /* What is still mapped, but for the tables, was refused by unmap and must
       be on the list. */
    test_note("%d strays left", fake.mapping_count - count_tables());
    fake.random_state = 0;
    policy_get_stats(&model.stats);
    model.refusals[CALL_EXPLICIT] = sum_refusals(&model.stats.hugetlb);
    model.refusals[CALL_THP] = sum_refusals(&model.stats.thp);
    model.plain_refusals = sum_refusals(&model.stats.plain);
    model.allowed = (int)hugepages_state.allowed;
    model.refused = (int)hugepages_state.refused;
    static const size_t sizes[] = {ARENA_SIZE, 16 * 1024};
    for (int i = 0; i < 2; i++) {
        int count = 0;
        for (int j = 0; j < fake.mapping_count; j++) {
            count += (fake.mappings[j].size == sizes[i]);
        }
        int calls = fake.number_of_calls;
        for (int j = 0; j < count; j++) {
            void *address = hugepages_alloc(sizes[i]);
            REQUIRE(address != NULL);
            model.held[model.held_count++] = (block){
                address, sizes[i], CALL_KINDS, 0
            };
            fill_block(address);
        }
        CHECK_EQUAL(fake.number_of_calls, calls);
    }
    end_test();
}

const testhugepages_test testhugepages_policy_tests[] = {
    {"policy_before_switch", test_before_switch},
    {"policy_off", test_off},
    {"policy_hugetlb", test_hugetlb},
    {"policy_thp", test_thp},
    {"policy_on", test_on},
    {"policy_switch_again", test_switch_again},
    {"policy_other_sizes", test_other_sizes},
    {"policy_fallback", test_fallback},
    {"policy_never_is_not_asked_again", test_never_is_not_asked_again},
    {"policy_busy_is_asked_again", test_busy_is_asked_again},
    {"policy_enable_refused", test_enable_refused},
    {"policy_watch_fork_refused", test_watch_fork_refused},
    {"policy_impossible", test_impossible},
    {"policy_free_null", test_free_null},
    {"policy_no_memory", test_no_memory},
    {"policy_stray_is_reused", test_stray_is_reused},
    {"policy_stray_of_another_size_is_kept",
     test_stray_of_another_size_is_kept},
    {"policy_many_strays", test_many_strays},
    {"policy_errors", test_errors},
    {"policy_reasons", test_reasons},
    {"policy_table_grows", test_table_grows},
    {"policy_table_cannot_grow", test_table_cannot_grow},
    {"policy_table_stray", test_table_stray},
    {"policy_table_keeps_strays", test_table_keeps_strays},
    {"policy_each_single_fault", test_each_single_fault},
    {"policy_random_sequences", test_random_sequences},
    {"policy_threads", test_threads},
    {NULL, NULL}
};
