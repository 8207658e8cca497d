/* A fake OS layer under the core, and what tests over it share.

   Each call answers what the test wants, and writes one letter to a log: the
   letter of the call, in lower case if it refuses.

       S scan                    O is this the only thread? (o: no)
       N enable_explicit         H is THP off? (h: no)
       E map_explicit            B block_signals
       T map_thp                 D unblock_signals
       A map_aligned             R unadvise
       V advise                  M move
       P map_plain, an arena     L remap_plain
       C map_plain, other size   X exit
       U unmap, an arena
       F unmap, other size

   Arenas are slots of one piece of memory, which the fake hands out from the
   top down, as Linux does.  It knows what each slot sits on, and looks at each
   access of the core.

   At each atomic operation, each call and each copy of the core is a moment:
   at any one of them a test can have something else done, as a signal handler
   or another thread would.

   A test, or each case of it, begins with begin_test() or begin_with() and
   ends with the next one or by itself: then all that it holds is given back,
   and nothing may be left. */

#ifndef Py_TESTHUGEPAGES_FAKE_OS_H
#define Py_TESTHUGEPAGES_FAKE_OS_H

#include "stand_in.h"

#include <ctype.h>                // tolower()
#include <pthread.h>              // pthread_mutex_lock()
#include <setjmp.h>               // longjmp()

/* Small, so that every byte of an arena can be looked at often. */
#undef ARENA_SIZE
#define ARENA_SIZE ((size_t)1 << 12)
/* Few, so that the table grows often. */
#define HUGEPAGES_FIRST_ENTRIES ((size_t)4)
/* Few, so that a thread can map more. */
#define HUGEPAGES_MORE_COPIES 2

/* -1, or how many moments are left until the action. */
static int moments_left = -1;
static void (*moment_action)(void);

static void
moment(void)
{
    if (moments_left >= 0 && moments_left-- == 0) {
        moment_action();
    }
}

static void *fake_memcpy(void *target, const void *source, size_t size);

#define _Py_atomic_load_uintptr(object) \
    (moment(), (_Py_atomic_load_uintptr)(object))
#define _Py_atomic_load_uintptr_relaxed(object) \
    (moment(), (_Py_atomic_load_uintptr_relaxed)(object))
#define _Py_atomic_store_uintptr(object, value) \
    (moment(), (_Py_atomic_store_uintptr)(object, value))
#define _Py_atomic_compare_exchange_uintptr(object, expected, value) \
    (moment(), \
     (_Py_atomic_compare_exchange_uintptr)(object, expected, value))
#define _Py_atomic_compare_exchange_ptr(object, expected, value) \
    (moment(), (_Py_atomic_compare_exchange_ptr)(object, expected, value))
#define _Py_atomic_load_ssize(object) \
    (moment(), (_Py_atomic_load_ssize)(object))
#define _Py_atomic_load_ssize_relaxed(object) \
    (moment(), (_Py_atomic_load_ssize_relaxed)(object))
#define _Py_atomic_load_uint32_relaxed(object) \
    (moment(), (_Py_atomic_load_uint32_relaxed)(object))
#define _Py_atomic_add_ssize(object, value) \
    (moment(), (_Py_atomic_add_ssize)(object, value))
#define memcpy fake_memcpy
#define TEST_FAKE_OS
#include "core.h"
#undef memcpy

#define TEST(name) TEST_CASE(name, ANYWHERE, NULL, end_test)

// --- the fake OS layer ------------------------------------------------------

typedef enum {
    NOTHING,
    EXPLICIT,
    THP,
    PLAIN,
    INHERITED,          // explicit pages of the parent
    HOLE,               // not to be accessed
    HALF,               // the end of an arena that is not aligned
} memory_kind;

#define SLOTS 1024
#define MAX_CHUNKS 64
#define LOG_SIZE 1000
#define MAX_CALLS 10000000

static struct {
    hugepages_system system;
    /* What the next calls answer, by letter. */
    hugepages_result answers[128];
    /* If nonzero, answers are random: state of test_random(). */
    uint32_t random_state;
    /* The call with this number (from 0) answers fault_answer; -1: none. */
    int fault_at;
    hugepages_result fault_answer;
    /* Whether plain memory for an arena is aligned by chance. */
    int aligns_plain;
    int has_threads;
    int thp_is_off;

    int calls;
    char log[LOG_SIZE];
    size_t length;
    memory_kind slots[SLOTS];
    struct {
        void *address;
        size_t size;
    } chunks[MAX_CHUNKS];
    int blocked;
    int is_child;
    /* Arenas of threads that the child does not have. */
    int dropped;
    /* What unadvise was called for last. */
    void *unadvised;
    size_t unadvised_size;
    /* Where a child that exits goes, if it may. */
    int may_exit;
    jmp_buf exited;
} fake;

static _Alignas(ARENA_SIZE) unsigned char fake_memory[SLOTS * ARENA_SIZE];

/* Held while a call is answered: threads may make them. */
static pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;

static void
begin_call(void)
{
    moment();
    (void)pthread_mutex_lock(&fake_lock);
}

static void
end_call(void)
{
    (void)pthread_mutex_unlock(&fake_lock);
    moment();
}

static hugepages_result
random_answer(char letter)
{
    uint32_t number = test_random(&fake.random_state) % 100;
    switch (letter) {
    case 'E':
    case 'T':
        /* NEVER ends the matter, so must be rare to let things happen. */
        return number < 1 ? HUGEPAGES_NEVER
               : number < 40 ? HUGEPAGES_BUSY : HUGEPAGES_OK;
    case 'A': case 'V': case 'P': case 'C': case 'U': case 'F': case 'M':
        return number < 20 ? HUGEPAGES_BUSY : HUGEPAGES_OK;
    default:
        return HUGEPAGES_OK;
    }
}

/* Let the calls with these letters answer so. */
static void
let_answer(const char *letters, hugepages_result answer)
{
    for (; *letters != '\0'; letters++) {
        fake.answers[(int)*letters] = answer;
    }
}

/* Let a call answer so, by its number from the next one on, from 0. */
static void
let_call_answer(int number, hugepages_result answer)
{
    fake.fault_at = fake.calls + number;
    fake.fault_answer = answer;
}

/* Choose the answer and write the call down.  The lock is held. */
static hugepages_result
fake_call(char letter)
{
    hugepages_result answer = fake.answers[(int)letter];
    if (fake.random_state != 0) {
        answer = random_answer(letter);
    }
    if (fake.calls == fake.fault_at) {
        answer = fake.fault_answer;
    }
    if (++fake.calls > MAX_CALLS) {
        printf("more calls than any test needs: the core does not end\n");
        (void)fflush(stdout);
        _Exit(1);
    }
    /* What the contract allows. */
    if (strchr("SOHBDRX", letter) != NULL) {
        answer = HUGEPAGES_OK;
    }
    else if (answer == HUGEPAGES_NEVER && strchr("PCUFML", letter) != NULL) {
        answer = HUGEPAGES_BUSY;
    }
    else if (answer == HUGEPAGES_BUSY && letter == 'N') {
        answer = HUGEPAGES_NEVER;
    }
    if (fake.length < LOG_SIZE - 1) {
        fake.log[fake.length++] = (char)(answer == HUGEPAGES_OK ? letter
                                         : tolower(letter));
    }
    return answer;
}

static int
slot_of(const void *address)
{
    return (int)(((uintptr_t)address - (uintptr_t)fake_memory) / ARENA_SIZE);
}

static unsigned char *
address_of(int slot)
{
    return fake_memory + (size_t)slot * ARENA_SIZE;
}

static void
empty_slots(const void *arena)
{
    int slot = slot_of(arena);
    fake.slots[slot] = NOTHING;
    if ((uintptr_t)arena % ARENA_SIZE != 0) {
        fake.slots[slot + 1] = NOTHING;
    }
}

static int
is_fake(const void *address)
{
    return (uintptr_t)address - (uintptr_t)fake_memory < sizeof(fake_memory);
}

static int
is_accessible(const void *address)
{
    memory_kind kind = fake.slots[slot_of(address)];
    return kind == EXPLICIT || kind == THP || kind == PLAIN;
}

/* Only arenas are copied. */
static void
check_access(const void *address, const char *what)
{
    if (!is_fake(address) || !is_accessible(address)) {
        FAIL("%s %s", what,
             is_fake(address) ? "memory that must not be accessed"
                              : "memory that is no arena");
        (void)fflush(stdout);
    }
}

static void *
fake_memcpy(void *target, const void *source, size_t size)
{
    CHECK_EQUAL(size, ARENA_SIZE);
    moment();
    check_access(source, "reads");
    check_access(target, "writes");
    memcpy(target, source, size / 2);
    moment();
    check_access(source, "reads on");
    check_access(target, "writes on");
    return memcpy((char *)target + size / 2, (const char *)source + size / 2,
                  size - size / 2);
}

/* Return the number of a chunk, or of a free place if address is NULL;
   MAX_CHUNKS if there is none. */
static int
find_chunk(const void *address)
{
    int i = 0;
    while (i < MAX_CHUNKS && fake.chunks[i].address != address) {
        i++;
    }
    return i;
}

static hugepages_result
fake_map(char letter, memory_kind kind, size_t size, void **address,
         int *os_error)
{
    begin_call();
    hugepages_result answer = fake_call(letter);
    int slots = letter == 'P' && !fake.aligns_plain ? 2 : 1;
    *os_error = 1;
    if (answer == HUGEPAGES_OK && letter == 'C') {
        int i = find_chunk(NULL);
        *address = calloc(1, size);
        if (i == MAX_CHUNKS || *address == NULL) {
            FAIL("no memory for another chunk");
            answer = HUGEPAGES_BUSY;
        }
        else {
            fake.chunks[i].address = *address;
            fake.chunks[i].size = size;
        }
    }
    else if (answer == HUGEPAGES_OK) {
        int slot = SLOTS - slots;
        CHECK_EQUAL(size, ARENA_SIZE);
        while (slot >= 0 && (fake.slots[slot] != NOTHING
                             || fake.slots[slot + slots - 1] != NOTHING))
        {
            slot--;
        }
        if (slot < 0) {
            FAIL("no memory for another arena: one leaks");
            answer = HUGEPAGES_BUSY;
        }
        else {
            fake.slots[slot + slots - 1] = HALF;
            fake.slots[slot] = kind;
            *address = address_of(slot) + (slots == 2 ? ARENA_SIZE / 2 : 0);
            memset(*address, 0, ARENA_SIZE);
        }
    }
    end_call();
    return answer;
}

static void
hugepages_os_scan(hugepages_system *system)
{
    (void)fake_call('S');
    *system = fake.system;
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    *os_error = 1;
    return fake_call('N');
}

#define FAKE_MAP(name, letter, kind) \
    static hugepages_result \
    name(size_t size, void **address, int *os_error) \
    { \
        return fake_map(letter, kind, size, address, os_error); \
    }

FAKE_MAP(hugepages_os_map_explicit, 'E', EXPLICIT)
FAKE_MAP(hugepages_os_map_thp, 'T', THP)
FAKE_MAP(hugepages_os_map_aligned, 'A', PLAIN)
FAKE_MAP(hugepages_os_map_plain, size == ARENA_SIZE ? 'P' : 'C', PLAIN)

static hugepages_result
hugepages_os_advise(void *address, size_t size, int *os_error)
{
    begin_call();
    hugepages_result answer = fake_call('V');
    CHECK_EQUAL(size, ARENA_SIZE);
    CHECK_EQUAL(fake.slots[slot_of(address)], PLAIN);
    CHECK_EQUAL((uintptr_t)address % ARENA_SIZE, 0);
    if (answer == HUGEPAGES_OK) {
        fake.slots[slot_of(address)] = THP;
    }
    *os_error = 1;
    end_call();
    return answer;
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    begin_call();
    int is_arena = is_fake(address);
    hugepages_result answer = fake_call(is_arena ? 'U' : 'F');
    *os_error = 1;
    if (is_arena) {
        int slot = slot_of(address);
        CHECK_EQUAL(size, ARENA_SIZE);
        if (fake.slots[slot] == NOTHING || fake.slots[slot] == HALF) {
            FAIL("unmap of slot %d, which is not mapped", slot);
        }
        else {
            /* Content is lost either way. */
            memset(address, answer == HUGEPAGES_OK ? 0xDE : 0, ARENA_SIZE);
            if (answer == HUGEPAGES_OK) {
                empty_slots(address);
            }
        }
    }
    else {
        int i = find_chunk(address);
        if (i == MAX_CHUNKS || fake.chunks[i].size != size) {
            FAIL("unmap of a chunk that is not mapped");
        }
        else if (answer == HUGEPAGES_OK) {
            fake.chunks[i].address = NULL;
            free(address);
        }
    }
    end_call();
    return answer;
}

static const char *
hugepages_os_error_name(int os_error)
{
    return os_error == 1 ? "FAKE" : NULL;
}

/* A question: "no" is written down in lower case. */
static int
fake_ask(char letter, int answer)
{
    begin_call();
    (void)fake_call(letter);
    if (!answer && fake.length > 0) {
        fake.log[fake.length - 1] = (char)tolower(letter);
    }
    end_call();
    return answer;
}

static int
hugepages_os_is_single_threaded(void)
{
    return fake_ask('O', !fake.has_threads);
}

static int
hugepages_os_is_thp_off(void)
{
    return fake_ask('H', fake.thp_is_off);
}

static void
hugepages_os_block_signals(void)
{
    moment();
    (void)fake_call('B');
    CHECK_EQUAL(fake.blocked, 0);
    fake.blocked = 1;
}

static void
hugepages_os_unblock_signals(void)
{
    (void)fake_call('D');
    CHECK_EQUAL(fake.blocked, 1);
    fake.blocked = 0;
    moment();
}

static void
hugepages_os_unadvise(void *address, size_t size)
{
    begin_call();
    (void)fake_call('R');
    fake.unadvised = address;
    fake.unadvised_size = size;
    end_call();
}

static hugepages_result
hugepages_os_move(void *from, void *to, size_t size)
{
    begin_call();
    hugepages_result answer = fake_call('M');
    int source = slot_of(from), target = slot_of(to);
    CHECK_EQUAL(size, ARENA_SIZE);
    if (!is_fake(from) || !is_fake(to) || !is_accessible(from)
        || fake.slots[target] == NOTHING)
    {
        FAIL("move of what is not there");
    }
    else if (answer == HUGEPAGES_OK) {
        memcpy(to, from, ARENA_SIZE);
        fake.slots[target] = fake.slots[source];
        fake.slots[source] = NOTHING;
    }
    else {
        memset(to, 0xDE, ARENA_SIZE);
        fake.slots[target] = HOLE;
    }
    end_call();
    return answer;
}

static hugepages_result
hugepages_os_remap_plain(void *address, size_t size)
{
    begin_call();
    hugepages_result answer = fake_call('L');
    CHECK_EQUAL(size, ARENA_SIZE);
    if (!is_fake(address) || fake.slots[slot_of(address)] == NOTHING) {
        FAIL("remap of what is not there");
    }
    else if (answer == HUGEPAGES_OK) {
        memset(address, 0, ARENA_SIZE);
        fake.slots[slot_of(address)] = PLAIN;
    }
    end_call();
    return answer;
}

static void
hugepages_os_exit(const char *line)
{
    const char start[] = "Fatal Python error: a forked process has no memory";
    (void)fake_call('X');
    CHECK(strncmp(line, start, strlen(start)) == 0);
    if (!fake.may_exit) {
        FAIL("a child exits");
        (void)fflush(stdout);
        _Exit(1);
    }
    longjmp(fake.exited, 1);
}

// --- arenas in use ----------------------------------------------------------

/* What the test has taken; each has a pattern of its own in it. */
#define MAX_HELD 256
static struct {
    unsigned char *address;
    /* Another thread has it, which a forked child does not have. */
    int of_thread;
} held[MAX_HELD];
static int held_count;

static unsigned char
pattern(const unsigned char *arena, size_t index)
{
    int slot = slot_of(arena);
    return (unsigned char)(1 + (index % 2 == 0 ? slot : slot / 127) % 127);
}

static void
check_content(const unsigned char *arena)
{
    if (!is_accessible(arena)) {
        FAIL("an arena in use must not be accessed");
        return;
    }
    for (size_t i = 0; i < ARENA_SIZE; i++) {
        if (arena[i] != pattern(arena, i)) {
            FAIL("byte %u of an arena in use has changed", (unsigned int)i);
            return;
        }
    }
}

/* Return the number of an arena that the test has, or -1. */
static int
find_held(const void *arena)
{
    int i = held_count - 1;
    while (i >= 0 && held[i].address != arena) {
        i--;
    }
    return i;
}

/* Fill an arena that the core has given, if it has, and return it. */
static void *
hold(void *address, int of_thread)
{
    unsigned char *arena = (unsigned char *)address;
    if (arena == NULL) {
        return NULL;
    }
    check_access(arena, "an arena is");
    CHECK(find_held(arena) < 0);
    for (size_t i = 0; i < ARENA_SIZE; i++) {
        arena[i] = pattern(arena, i);
    }
    if (held_count == MAX_HELD) {
        FAIL("too many arenas");
        return NULL;
    }
    held[held_count].address = arena;
    held[held_count++].of_thread = of_thread;
    return arena;
}

static void *
take(void)
{
    return hold(hugepages_take(), 0);
}

static void *
take_first(void)
{
    return hold(hugepages_take_first(), 0);
}

static void
give_number(int number)
{
    void *arena = held[number].address;
    check_content(held[number].address);
    held[number] = held[--held_count];
    hugepages_give(arena);
}

static void
give(void *arena)
{
    REQUIRE(find_held(arena) >= 0);
    give_number(find_held(arena));
}

static void
take_many(void **arenas, int count)
{
    for (int i = 0; i < count; i++) {
        arenas[i] = take();
    }
}

static void
give_many(void **arenas, int count)
{
    for (int i = 0; i < count; i++) {
        give(arenas[i]);
    }
}

static int
count_slots(memory_kind kind)
{
    int count = 0;
    for (int i = 0; i < SLOTS; i++) {
        count += fake.slots[i] == kind;
    }
    return count;
}

static size_t
count_refused(const _PyMem_HugePagesTier *tier)
{
    size_t count = 0;
    for (int i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        count += tier->refused[i].count;
    }
    return count;
}

static void
check_kinds(int explicit_count, int thp_count, int plain_count)
{
    CHECK_EQUAL(count_slots(EXPLICIT), explicit_count);
    CHECK_EQUAL(count_slots(THP), thp_count);
    CHECK_EQUAL(count_slots(PLAIN), plain_count);
    check_figures(explicit_count, thp_count, plain_count);
}

static void
check_range(long long value, long long least, long long most, int slack,
            const char *what)
{
    if (value < least || value > most + slack) {
        FAIL("%s: %lld, expected %lld to %lld", what, value, least, most);
    }
}

/* What the system has not taken back may be lost, but not more. */
static void
check_tier(const _PyMem_HugePagesTier *tier, memory_kind kind, int in_use,
           int slack, const char *what)
{
    /* Explicit pages that the parent has lost are lost in the child, too. */
    int most = fake.is_child && kind == EXPLICIT ? SLOTS : count_slots(kind);
    check_range((long long)tier->now, in_use, most, slack, what);
    CHECK(tier->peak + (size_t)slack >= tier->now);
    CHECK(tier->ever >= tier->peak);
}

/* Check the table and the figures against what is mapped and held.  slack is
   how many arenas a thread that is gone may have been busy with. */
static void
check_state(int slack)
{
    static int seen[SLOTS];
    hugepages_cursor cursor = {0};
    uintptr_t *entry;
    int in_use[INHERITED] = {0};
    int entries = 0, reserved = 0, kept = 0, lonely = 0, advised = 0;
    int saved_left = moments_left;
    moments_left = -1;
    memset(seen, 0, sizeof(seen));
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = *entry;
        if (value == 0) {
            continue;
        }
        if (value == HUGEPAGES_RESERVED) {
            reserved++;
            continue;
        }
        void *arena = hugepages_address_of(value);
        int is_free = (value & HUGEPAGES_IS_FREE) != 0;
        REQUIRE(is_fake(arena));
        memory_kind kind = fake.slots[slot_of(arena)];
        CHECK_EQUAL(kind, value & HUGEPAGES_IS_EXPLICIT ? EXPLICIT
                          : value & HUGEPAGES_IS_THP ? THP : PLAIN);
        CHECK_EQUAL(seen[slot_of(arena)], 0);
        int is_held = find_held(arena) >= 0;
        CHECK(!(is_free && is_held));
        lonely += !is_free && !is_held;
        kept += is_free;
        seen[slot_of(arena)] = 1;
        in_use[kind <= PLAIN ? kind : NOTHING]++;
        entries++;
    }
    CHECK(reserved <= slack);
    CHECK(lonely <= slack + fake.dropped);
    /* One too few would hide the last arena. */
    check_range((long long)hugepages_table.count, entries, entries + slack, 0,
                "arenas in the table");
    for (int i = 0; i < held_count; i++) {
        check_content(held[i].address);
        memory_kind kind = fake.slots[slot_of(held[i].address)];
        int is_seen = seen[slot_of(held[i].address)];
        CHECK(is_seen || kind != EXPLICIT);
        in_use[PLAIN] += kind == PLAIN && !is_seen;
        /* A thread has advised it, and no more. */
        advised += kind == THP && !is_seen;
    }

    CHECK(advised <= slack);
    _PyMem_HugePagesStats stats = get_stats();
    const _PyMem_HugePagesTier *tiers = stats.tiers;
    check_tier(&tiers[HUGEPAGES_EXPLICIT], EXPLICIT, in_use[EXPLICIT], slack,
               "arenas on explicit pages");
    check_tier(&tiers[HUGEPAGES_THP], THP, in_use[THP], slack,
               "arenas on THP");
    check_tier(&tiers[HUGEPAGES_PLAIN], PLAIN, in_use[PLAIN], slack,
               "plain arenas");
    check_range((long long)tiers[RETAINED].now, kept, kept, slack,
                "kept arenas");
    CHECK_EQUAL(fake.blocked, 0);
    moments_left = saved_left;
}

/* An arena that the system has not taken back, and that nobody gets: it is no
   leak of the core's. */
static void
forget_arena(void *arena, hugepages_kind kind)
{
    empty_slots(arena);
    hugepages_count_unmapped(kind);
}

/* Check the log since the last call. */
static void
check_log(int line, const char *expected)
{
    fake.log[fake.length] = '\0';
    if (strcmp(fake.log, expected) != 0) {
        FAIL("line %d: the calls were \"%s\", expected \"%s\"", line,
             fake.log, expected);
    }
    fake.length = 0;
    check_state(0);
}

#define CHECK_LOG(expected) check_log(__LINE__, expected)

/* Do something, and check which calls it makes. */
#define EXPECT(action, expected) \
    do { \
        (void)(action); \
        CHECK_LOG(expected); \
    } while (0)

/* Nonzero from the beginning of a test to its end. */
static int is_begun;

/* Check that the table is all that there is but for arenas. */
static void
check_chunks(void)
{
    for (int i = 0; i < MAX_CHUNKS; i++) {
        int is_piece = fake.chunks[i].address == NULL;
        for (int j = 0; j < HUGEPAGES_PIECES - 1; j++) {
            is_piece |= fake.chunks[i].address == hugepages_table.pieces[j];
        }
        CHECK(is_piece);
    }
}

static void
give_all(void)
{
    while (held_count > 0 && !test_failed()) {
        give_number(0);
    }
}

/* Give everything back; then nothing is left but the table. */
static void
end_test(void)
{
    if (!is_begun) {
        return;
    }
    is_begun = 0;
    fake.random_state = 0;
    fake.fault_at = -1;
    memset(fake.answers, 0, sizeof(fake.answers));
    give_all();
    (void)hugepages_release_kept();
    check_state(0);
    CHECK_EQUAL(hugepages_table.count, 0);
    check_chunks();
    CHECK_EQUAL(count_slots(EXPLICIT) + count_slots(THP) + count_slots(PLAIN),
                0);
}

/* The same where the process is gone, or what the system has not taken back
   is lost: what is left is not looked at. */
static void
abandon_test(void)
{
    is_begun = 0;
}

static void
begin_test(void)
{
    end_test();
    is_begun = 1;
    moments_left = -1;
    for (int i = 0; i < MAX_CHUNKS; i++) {
        free(fake.chunks[i].address);
    }
    memset(&fake, 0, sizeof(fake));
    memset(hugepages_table.pieces, 0, sizeof(hugepages_table.pieces));
    reset_core();
    memset(&hugepages_fork, 0, sizeof(hugepages_fork));
    held_count = 0;
    fake.system.explicit_page_size = ARENA_SIZE;
    fake.system.thp_size = ARENA_SIZE;
    fake.fault_at = -1;
}

/* The same, and set the switch. */
static void
begin_with(int tiers)
{
    begin_test();
    _PyMem_SetHugePages(tiers);
    fake.length = 0;
}

/* The same, with arenas on explicit pages, then some on THP. */
static void
begin_with_arenas(int tiers, int explicit_count, int thp_count)
{
    begin_with(tiers);
    for (int i = 0; i < explicit_count + thp_count; i++) {
        fake.answers['E'] = i < explicit_count ? HUGEPAGES_OK : HUGEPAGES_BUSY;
        REQUIRE(take() != NULL);
    }
    fake.answers['E'] = HUGEPAGES_OK;
    check_state(0);
    fake.length = 0;
}

// --- forks ------------------------------------------------------------------

/* From here on this is the child: what is on explicit pages is the parent's,
   and other threads are gone. */
static void
become_child(void)
{
    for (int i = 0; i < SLOTS; i++) {
        if (fake.slots[i] == EXPLICIT) {
            fake.slots[i] = INHERITED;
            memset(address_of(i), 0xBB, ARENA_SIZE);
        }
    }
    for (int i = held_count - 1; i >= 0; i--) {
        if (held[i].of_thread) {
            held[i] = held[--held_count];
            fake.dropped++;
        }
    }
    fake.is_child = 1;
    fake.has_threads = 0;
}

static void
fork_as_parent(void)
{
    hugepages_before_fork();
    hugepages_after_fork_in_parent();
}

static void
fork_as_child(void)
{
    hugepages_before_fork();
    become_child();
    hugepages_after_fork_in_child();
}

typedef void (*fork_function)(void);
static const fork_function fork_as[] = {fork_as_parent, fork_as_child};

/* Return whether that process exits meanwhile. */
static int
does_exit(void (*function)(void))
{
    fake.may_exit = 1;
    if (setjmp(fake.exited) != 0) {
        CHECK(fake.is_child);
        abandon_test();
        return 1;
    }
    function();
    fake.may_exit = 0;
    return 0;
}

/* Begin and do something again and again, while each of its calls answers so
   in turn.  Return how many there are, and add to *exits how often the process
   has exited. */
static int
fail_each_call(void (*begin)(void), void (*function)(void),
               hugepages_result answer, int *exits)
{
    int number = 0;
    do {
        begin();
        let_call_answer(number, answer);
        *exits += does_exit(function);
        abandon_test();
        if (test_failed()) {
            FAIL("with call %d failing", number);
            break;
        }
        number++;
    } while (fake.fault_at < fake.calls);
    return number;
}

#endif /* !Py_TESTHUGEPAGES_FAKE_OS_H */
