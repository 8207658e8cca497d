/* Tests of fork.c, and of arena.c with it, over a fake OS layer.

   There is one process.  It runs what fork.c does in the parent or in the
   child; the other side is played by the fake, in the calls in which fork.c
   waits for it.  The fake also knows the contract: what may be called when,
   and what memory may be accessed, and a test ends with a look at every byte
   of every arena. */

#include "_testhugepages.h"

#include <setjmp.h>               // longjmp()

/* Small, so that an arena can be looked at often. */
#undef ARENA_SIZE
#define ARENA_SIZE ((size_t)1 << 12)
#define BASE_PAGE_SIZE ((size_t)1 << 10)

#define _PyMem_SetHugePages fork_policy_set_huge_pages
#define _PyMem_GetHugePagesStats fork_policy_get_stats
#define _PyMem_ReleaseHugePages fork_policy_release
#define _PyMem_HugePagesCollected fork_policy_collected
/* Few, so that tables grow often. */
#define HUGEPAGES_FIRST_ENTRIES 4
#define TEST_LATER_ARENAS
#include "_testhugepages_room.h"
#include "../Objects/hugepages/fork.c"

// --- the fake OS layer -----------------------------------------------------

typedef enum {
    CALL_WATCH,
    CALL_ENABLE,
    CALL_EXPLICIT,
    CALL_THP,
    CALL_PLAIN,
    CALL_UNMAP,
    CALL_SHARED,
    CALL_OPEN,
    CALL_LINE,
    CALL_RESCUE,
    CALL_REMAP,
    CALL_MOVE,
    CALL_REMAP_PLAIN,
    CALL_KINDS
} call_kind;

static const char *const call_names[CALL_KINDS] = {
    "watch_fork", "enable_explicit", "map_explicit", "map_thp", "map_plain",
    "unmap", "map_shared", "open_shared", "open_line", "rescue",
    "remap_explicit", "move", "remap_plain"
};

typedef enum {
    EXPLICIT,           // of this process
    INHERITED,          // explicit, of the parent
    RESCUED,            // the same, and its content was asked for
    HOLE,               // must not be accessed
    THP,
    PLAIN,
    SHARED,
    UNMAPPED,           // kept for a look at the content
} memory_kind;

typedef struct {
    unsigned char *address;
    size_t size;
    memory_kind kind;
    /* Of shared memory: which base pages were opened. */
    unsigned char *opened;
    /* In use by the test, with a pattern in it. */
    int held;
} mapping;

#define MAX_MAPPINGS 512

typedef enum {NO_FORK, IN_PARENT, IN_CHILD} side;

static struct {
    /* What the next calls answer; the call with number fault_at (from 0)
       answers fault_answer; if random_state is not 0, answers are random. */
    hugepages_result answers[CALL_KINDS];
    int fault_at;
    hugepages_result fault_answer;
    uint32_t random_state;
    int number_of_calls;
    int counts[CALL_KINDS];

    mapping mappings[MAX_MAPPINGS];
    int mapping_count;

    int locked;
    int blocked;
    side side;
    /* The ends of the line, from open_line() on. */
    int end_open[2];
    int line_used;

    /* Why the child may exit: what it had to do and could not. */
    const char *exit_reason;
    jmp_buf exited;
    int remap_never;
    int remap_refused;
    int move_refused;
    /* Bit n: the remap with number n is refused. */
    uint32_t refused_remaps;

    /* The parent, where fork.c is in the child: what it does when the child
       waits. */
    enum {
        PARENT_COPIES,
        PARENT_COPIES_ALL,
        PARENT_CANNOT_COPY,
        PARENT_IS_GONE,
    } parent;
    int sent;
    int slept;
    /* Which arenas it has copied; and the one that it took last. */
    unsigned char copied[MAX_MAPPINGS];
    unsigned char taken[ARENA_SIZE];

    /* The child, where fork.c is in the parent: what it has done when the
       parent's waiting ends.  The last one stays. */
    const struct child_step {
        hugepages_event event;
        uint32_t left;
        uint32_t wanted;
    } *steps;
    int step_count;
    int next_step;
    /* What must be copied by the next wait. */
    uint32_t expected_copy;
} fake;

#define SHARED_UNTOUCHED 0xA5

/* What an arena has in each byte: other than any other arena, and than memory
   that is zeroed, scribbled on (0xDE) or untouched. */
static unsigned char
pattern(const unsigned char *arena, size_t index)
{
    uintptr_t number = (uintptr_t)arena >> 4;
    return (unsigned char)(1 + (index % 2 == 0 ? number : number / 127) % 127);
}

static hugepages_result
fake_answer(call_kind kind)
{
    hugepages_result answer = fake.answers[kind];
    if (kind != CALL_WATCH && !fake.locked) {
        FAIL("%s called without the lock", call_names[kind]);
    }
    if (fake.random_state != 0) {
        uint32_t number = test_random(&fake.random_state) % 100;
        answer = number < 85 ? HUGEPAGES_OK
                 : number < 99 ? HUGEPAGES_BUSY : HUGEPAGES_NEVER;
        /* Both end the matter, so must be rare to let things happen. */
        if (number < 98
            && (kind == CALL_WATCH || kind == CALL_ENABLE
                || kind == CALL_REMAP_PLAIN || kind == CALL_RESCUE))
        {
            answer = HUGEPAGES_OK;
        }
    }
    if (fake.number_of_calls == fake.fault_at) {
        answer = fake.fault_answer;
    }
    if (kind == CALL_REMAP && fake.counts[kind] < 32
        && fake.refused_remaps >> fake.counts[kind] & 1)
    {
        answer = HUGEPAGES_BUSY;
    }
    fake.number_of_calls++;
    fake.counts[kind]++;
    if (answer != HUGEPAGES_OK) {
        if (kind == CALL_WATCH || kind == CALL_ENABLE) {
            answer = HUGEPAGES_NEVER;
        }
        else if (kind != CALL_EXPLICIT && kind != CALL_THP
                 && kind != CALL_REMAP && kind != CALL_RESCUE)
        {
            answer = HUGEPAGES_BUSY;
        }
    }
    return answer;
}

static mapping *
find_mapping(const void *address)
{
    for (int i = 0; i < fake.mapping_count; i++) {
        if (fake.mappings[i].address == address
            && fake.mappings[i].kind != UNMAPPED)
        {
            return &fake.mappings[i];
        }
    }
    return NULL;
}

static mapping *
require_mapping(const void *address, size_t size, const char *name)
{
    static mapping none;
    mapping *found = find_mapping(address);
    if (found == NULL || found->size != size) {
        FAIL("%s of %p, which is not mapped with that size", name, address);
        memset(&none, 0, sizeof(none));
        return &none;
    }
    return found;
}

static mapping *
add_mapping(size_t size, memory_kind kind)
{
    if (fake.mapping_count == MAX_MAPPINGS) {
        FAIL("more mappings than any test needs: one leaks");
        fake.mapping_count--;
    }
    mapping *added = &fake.mappings[fake.mapping_count++];
    memset(added, 0, sizeof(*added));
    added->address = (unsigned char *)calloc(1, size);
    added->size = size;
    added->kind = kind;
    if (added->address == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return added;
}

static hugepages_result
fake_map(call_kind call, memory_kind kind, size_t size, void **address,
         int *os_error)
{
    hugepages_result answer = fake_answer(call);
    if (answer == HUGEPAGES_OK) {
        *address = add_mapping(size, kind)->address;
    }
    else {
        *os_error = 1;
        if (call == CALL_PLAIN && fake.side == IN_CHILD) {
            fake.exit_reason = "out of memory";
        }
    }
    return answer;
}

static hugepages_result
hugepages_os_watch_fork(int *os_error)
{
    *os_error = 1;
    return fake_answer(CALL_WATCH);
}

static void
hugepages_os_scan(hugepages_system *system)
{
    *system = (hugepages_system){BASE_PAGE_SIZE, ARENA_SIZE, ARENA_SIZE, 0};
}

static void
hugepages_os_lock(void)
{
    CHECK(!fake.locked);
    fake.locked = 1;
}

static void
hugepages_os_unlock(void)
{
    CHECK(fake.locked);
    CHECK(!fake.blocked);
    fake.locked = 0;
}

static uint64_t
hugepages_os_now(void)
{
    return 0;
}

static hugepages_result
hugepages_os_enable_explicit(int *os_error)
{
    *os_error = 1;
    return fake_answer(CALL_ENABLE);
}

static hugepages_result
hugepages_os_map_explicit(size_t size, void **address, int *os_error)
{
    CHECK(fake.side == NO_FORK);
    return fake_map(CALL_EXPLICIT, EXPLICIT, size, address, os_error);
}

static hugepages_result
hugepages_os_map_thp(size_t size, void **address, int *os_error)
{
    CHECK(fake.side != IN_PARENT);
    return fake_map(CALL_THP, THP, size, address, os_error);
}

static hugepages_result
hugepages_os_map_plain(size_t size, void **address, int *os_error)
{
    CHECK(fake.side != IN_PARENT);
    return fake_map(CALL_PLAIN, PLAIN, size, address, os_error);
}

static hugepages_result
hugepages_os_unmap(void *address, size_t size, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_UNMAP);
    mapping *unmapped = require_mapping(address, size, "unmap");
    if (answer == HUGEPAGES_OK) {
        unmapped->kind = UNMAPPED;
    }
    else {
        *os_error = 1;
    }
    return answer;
}

static void
hugepages_os_block_signals(void)
{
    CHECK(fake.locked);
    CHECK(!fake.blocked);
    fake.blocked = 1;
}

static void
hugepages_os_unblock_signals(void)
{
    CHECK(fake.locked);
    CHECK(fake.blocked);
    fake.blocked = 0;
}

// --- talk between parent and child -----------------------------------------

#define LINE_END 100

static hugepages_result
hugepages_os_open_line(int ends[2], int *os_error)
{
    hugepages_result answer = fake_answer(CALL_LINE);
    CHECK(!fake.line_used);
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
        return answer;
    }
    fake.line_used = 1;
    for (int i = 0; i < 2; i++) {
        ends[i] = LINE_END + i;
        fake.end_open[i] = 1;
    }
    return answer;
}

static void
hugepages_os_close_line(int end)
{
    int index = end - LINE_END;
    if ((index != 0 && index != 1) || !fake.end_open[index]) {
        FAIL("end %d of the line is not open", index);
        return;
    }
    /* The other's end is closed first. */
    int own = fake.side == IN_CHILD;
    CHECK(index != own || !fake.end_open[!own]);
    fake.end_open[index] = 0;
}

static void
hugepages_os_send(int end)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    CHECK_EQUAL(end, LINE_END + 1);
    CHECK(fake.end_open[1] && !fake.end_open[0]);
    fake.sent++;
}

static hugepages_result
hugepages_os_map_shared(size_t size, void **address, int *os_error)
{
    CHECK_EQUAL(fake.side, NO_FORK);
    hugepages_result answer = fake_answer(CALL_SHARED);
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
        return answer;
    }
    mapping *shared = add_mapping(size, SHARED);
    memset(shared->address, SHARED_UNTOUCHED, size);
    shared->opened = (unsigned char *)calloc(1, size / BASE_PAGE_SIZE);
    *address = shared->address;
    return answer;
}

static hugepages_result
hugepages_os_open_shared(void *address, size_t size, int *os_error)
{
    hugepages_result answer = fake_answer(CALL_OPEN);
    unsigned char *start = (unsigned char *)address;
    for (int i = 0; i < fake.mapping_count; i++) {
        mapping *shared = &fake.mappings[i];
        if (shared->kind != SHARED || start < shared->address
            || start + size > shared->address + shared->size)
        {
            continue;
        }
        size_t offset = (size_t)(start - shared->address);
        CHECK_EQUAL(offset % BASE_PAGE_SIZE, 0);
        CHECK_EQUAL(size % BASE_PAGE_SIZE, 0);
        if (answer != HUGEPAGES_OK) {
            *os_error = 1;
            return answer;
        }
        memset(shared->opened + offset / BASE_PAGE_SIZE, 1,
               size / BASE_PAGE_SIZE);
        memset(address, 0, size);
        if (fake.side == IN_CHILD) {
            size_t index = offset / ARENA_SIZE;
            CHECK_EQUAL(size, ARENA_SIZE);
            if (fake.copied[index]) {
                memcpy(address, fake.taken, size);
            }
        }
        return answer;
    }
    FAIL("open_shared of %p, which is not shared", address);
    return answer;
}

/* Did the parent copy an arena rightly? */
static int
is_copied(size_t index)
{
    const unsigned char *copy =
        (const unsigned char *)hugepages_fork.copies + index * ARENA_SIZE;
    return memcmp(copy, hugepages_explicit->addresses[index],
                  ARENA_SIZE) == 0;
}

static void
check_expected_copy(void)
{
    uint32_t wanted = fake.expected_copy;
    if (wanted == 0) {
        return;
    }
    fake.expected_copy = 0;
    if (hugepages_fork.talk->copied == wanted) {
        CHECK(is_copied(wanted - 1));
    }
    else {
        CHECK(hugepages_fork.talk->cannot_copy);
    }
}

/* The child takes its next step. */
static hugepages_event
take_step(void)
{
    static const struct child_step closed = {HUGEPAGES_CLOSED, 0, 0};
    hugepages_talk *talk = hugepages_fork.talk;
    check_expected_copy();
    const struct child_step *step = &closed;
    if (fake.next_step < fake.step_count) {
        step = &fake.steps[fake.next_step++];
    }
    if (step->event != HUGEPAGES_CLOSED && talk != NULL) {
        uint32_t count = (uint32_t)hugepages_fork.count;
        talk->left = step->left < count ? step->left : count;
        talk->wanted = step->wanted;
        if (talk->left > 0 && step->event == HUGEPAGES_SENT
            && step->wanted <= count)
        {
            fake.expected_copy = step->wanted;
        }
    }
    return step->event;
}

static hugepages_event
hugepages_os_wait(int end, int milliseconds)
{
    CHECK_EQUAL(fake.side, IN_PARENT);
    CHECK_EQUAL(end, LINE_END);
    CHECK(fake.end_open[0] && !fake.end_open[1]);
    CHECK(milliseconds > 0);
    return take_step();
}

static void
hugepages_os_sleep(int milliseconds)
{
    CHECK(milliseconds > 0);
    fake.slept += milliseconds;
    if (fake.side == IN_PARENT) {
        CHECK(!fake.line_used);
        (void)take_step();
        return;
    }
    if (fake.slept < 5) {
        return;
    }
    hugepages_talk *talk = hugepages_fork.talk;
    if (talk == NULL) {
        FAIL("the child waits for what it cannot ask for");
        return;
    }
    CHECK(talk->wanted >= 1 && talk->wanted <= hugepages_fork.count);
    switch (fake.parent) {
    case PARENT_COPIES:
        fake.copied[talk->wanted - 1] = 1;
        talk->copied = talk->wanted;
        break;
    case PARENT_COPIES_ALL:
        memset(fake.copied, 1, talk->left);
        talk->copied_all = 1;
        break;
    case PARENT_CANNOT_COPY:
        talk->cannot_copy = 1;
        break;
    case PARENT_IS_GONE:
        break;
    }
}

static const char *
hugepages_os_error_name(int os_error)
{
    return os_error == 1 ? "FAKE" : NULL;
}

// --- in the child ----------------------------------------------------------

static hugepages_result
hugepages_os_rescue(void *target, const void *source, size_t size)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    CHECK(fake.blocked);
    hugepages_result answer = fake_answer(CALL_RESCUE);
    mapping *arena = require_mapping(source, size, "rescue");
    mapping *spare = require_mapping(target, size, "rescue to");
    CHECK_EQUAL(arena->kind, INHERITED);
    CHECK(spare->kind == THP || spare->kind == PLAIN);
    arena->kind = RESCUED;
    fake.remap_refused = 0;
    fake.move_refused = 0;
    /* The parent knows how far the child is. */
    if (hugepages_fork.talk != NULL) {
        uint32_t left = hugepages_fork.talk->left;
        CHECK(left > 0 && hugepages_explicit->addresses[left - 1] == source);
    }
    if (answer == HUGEPAGES_OK) {
        memcpy(target, source, size);
        return answer;
    }
    memset(target, 0xDE, size);
    if (answer == HUGEPAGES_NEVER) {
        fake.exit_reason = "the memory is broken";
    }
    else {
        memcpy(fake.taken, source, size);
        memset((void *)(uintptr_t)source, 0xDE, size);
        fake.slept = 0;
        fake.exit_reason = "the parent has taken one back";
    }
    return answer;
}

static hugepages_result
hugepages_os_remap_explicit(void *address, size_t size, int *os_error)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    fake.exit_reason = NULL;
    hugepages_result answer = fake_answer(CALL_REMAP);
    mapping *arena = require_mapping(address, size, "remap");
    CHECK_EQUAL(arena->kind, RESCUED);
    CHECK(!fake.remap_never);
    if (answer == HUGEPAGES_OK) {
        memset(address, 0, size);
        arena->kind = EXPLICIT;
        return answer;
    }
    *os_error = 1;
    memset(address, 0xDE, size);
    arena->kind = HOLE;
    fake.remap_refused = 1;
    fake.remap_never = answer == HUGEPAGES_NEVER;
    return answer;
}

static hugepages_result
hugepages_os_move(void *from, void *to, size_t size, int *os_error)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    hugepages_result answer = fake_answer(CALL_MOVE);
    mapping *spare = require_mapping(from, size, "move from");
    mapping *arena = require_mapping(to, size, "move to");
    CHECK(spare->kind == THP || spare->kind == PLAIN);
    /* Explicit pages were asked for first, if they may be. */
    if (!fake.remap_never
        && (hugepages_tiers() & PYMALLOC_HUGEPAGES_HUGETLB))
    {
        CHECK(fake.remap_refused);
    }
    CHECK_EQUAL(arena->kind, fake.remap_refused ? HOLE : RESCUED);
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
        fake.move_refused = 1;
        return answer;
    }
    memcpy(to, from, size);
    memset(from, 0xDE, size);
    arena->kind = spare->kind;
    spare->kind = UNMAPPED;
    return answer;
}

static hugepages_result
hugepages_os_remap_plain(void *address, size_t size, int *os_error)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    CHECK(fake.move_refused);
    hugepages_result answer = fake_answer(CALL_REMAP_PLAIN);
    mapping *arena = require_mapping(address, size, "remap");
    CHECK_EQUAL(arena->kind, fake.remap_refused ? HOLE : RESCUED);
    if (answer != HUGEPAGES_OK) {
        *os_error = 1;
        fake.exit_reason = "out of memory";
        return answer;
    }
    memset(address, 0, size);
    arena->kind = PLAIN;
    return answer;
}

static void
hugepages_os_exit(const char *line)
{
    CHECK_EQUAL(fake.side, IN_CHILD);
    if (fake.exit_reason == NULL) {
        FAIL("the child exits without need: %s", line);
    }
    else if (strstr(line, fake.exit_reason) == NULL) {
        FAIL("the message does not say %s: %s", fake.exit_reason, line);
    }
    CHECK(strchr(line, '\n') == NULL);
    longjmp(fake.exited, 1);
}

// --- what the tests do -----------------------------------------------------

static void
begin_test(void)
{
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    skip_first_arenas();
    memset(&hugepages_stats, 0, sizeof(hugepages_stats));
    memset(&hugepages_fork, 0xFF, sizeof(hugepages_fork));
    memset(&fake, 0, sizeof(fake));
    fake.fault_at = -1;
}

static void
check_content(const mapping *held)
{
    for (size_t i = 0; i < held->size; i++) {
        if (held->address[i] != pattern(held->address, i)) {
            FAIL("byte %d of an arena is %d", (int)i, held->address[i]);
            return;
        }
    }
}

/* Nothing but memory in use, strays, tables, and shared memory that the system
   would not unmap, may be mapped; all that is on explicit pages must be in the
   table. */
static void
check_all(void)
{
    size_t counts[UNMAPPED + 1] = {0};
    CHECK(!fake.locked);
    CHECK(!fake.blocked);
    CHECK(!fake.end_open[0] && !fake.end_open[1]);
    for (int i = 0; i < fake.mapping_count; i++) {
        const mapping *mapped = &fake.mappings[i];
        if (mapped->opened != NULL) {
            for (size_t j = 0; j < mapped->size; j++) {
                if (!mapped->opened[j / BASE_PAGE_SIZE]
                    && mapped->address[j] != SHARED_UNTOUCHED)
                {
                    FAIL("shared memory was written to before it was opened");
                    break;
                }
            }
        }
        if (mapped->held) {
            CHECK(mapped->kind == EXPLICIT || mapped->kind == THP
                  || mapped->kind == PLAIN);
            check_content(mapped);
        }
        int stray = 0;
        for (hugepages_stray *node = hugepages_state.strays; node != NULL;
             node = node->next)
        {
            stray += ((unsigned char *)node == mapped->address
                      && mapped->kind != UNMAPPED);
        }
        int table = 0;
        for (int j = 0; j < HUGEPAGES_PLAIN; j++) {
            table += (void *)mapped->address
                     == (void *)hugepages_state.arenas[j].addresses
                     && mapped->kind != UNMAPPED;
        }
        if (mapped->kind == UNMAPPED || mapped->kind == SHARED) {
            CHECK_EQUAL(mapped->held + stray + table, 0);
        }
        else {
            CHECK_EQUAL(mapped->held + stray + table, 1);
        }
        counts[mapped->kind] += (mapped->size == ARENA_SIZE && !table);
        if (mapped->kind == EXPLICIT) {
            size_t index;
            CHECK_EQUAL(hugepages_find(mapped->address, &index),
                        HUGEPAGES_EXPLICIT);
        }
    }
    CHECK_EQUAL(hugepages_explicit->count, counts[EXPLICIT]);

    _PyMem_HugePagesStats stats;
    fork_policy_get_stats(&stats);
    CHECK_EQUAL(stats.hugetlb.now, counts[EXPLICIT]);
    CHECK_EQUAL(stats.thp.now, counts[THP]);
    CHECK_EQUAL(stats.thp.now, hugepages_state.arenas[HUGEPAGES_THP].count);
    CHECK_EQUAL(stats.plain.now, counts[PLAIN]);
}

static unsigned char *
alloc_arena(void)
{
    unsigned char *arena = (unsigned char *)hugepages_alloc(ARENA_SIZE);
    if (arena != NULL) {
        mapping *mapped = require_mapping(arena, ARENA_SIZE, "alloc");
        CHECK(!mapped->held);
        mapped->held = 1;
        for (size_t i = 0; i < ARENA_SIZE; i++) {
            arena[i] = pattern(arena, i);
        }
    }
    return arena;
}

static void
free_arena(unsigned char *arena)
{
    mapping *held = require_mapping(arena, ARENA_SIZE, "free");
    check_content(held);
    held->held = 0;
    hugepages_free(arena, ARENA_SIZE);
}

/* Free what is in use, and forget the rest. */
static void
end_test(void)
{
    check_all();
    fake.random_state = 0;
    fake.fault_at = -1;
    memset(fake.answers, 0, sizeof(fake.answers));
    while (hugepages_state.strays != NULL && !test_failed()) {
        hugepages_stray *stray = hugepages_state.strays;
        if (stray->size == ARENA_SIZE) {
            (void)alloc_arena();
        }
        else {
            size_t size = stray->size;
            hugepages_free(hugepages_alloc(size), size);
        }
    }
    for (int i = 0; i < fake.mapping_count && !test_failed(); i++) {
        if (fake.mappings[i].held) {
            free_arena(fake.mappings[i].address);
        }
    }
    check_all();
    for (int i = 0; i < fake.mapping_count; i++) {
        free(fake.mappings[i].address);
        free(fake.mappings[i].opened);
    }
}

static void
before_fork(void)
{
    fake.line_used = 0;
    fake.slept = 0;
    fake.sent = 0;
    fake.next_step = 0;
    fake.expected_copy = 0;
    fake.exit_reason = NULL;
    fake.remap_never = 0;
    memset(fake.copied, 0, sizeof(fake.copied));
    hugepages_before_fork();
    CHECK(fake.locked);
    CHECK_EQUAL(fake.blocked, hugepages_explicit->count > 0);
}

static void
fork_parent(void)
{
    before_fork();
    fake.side = IN_PARENT;
    hugepages_after_fork_in_parent();
    fake.side = NO_FORK;
    check_expected_copy();
    check_all();
}

/* Return 0, or -1 if the child has exited, as it may. */
static int
fork_child(void)
{
    before_fork();
    fake.side = IN_CHILD;
    for (int i = 0; i < fake.mapping_count; i++) {
        if (fake.mappings[i].kind == EXPLICIT) {
            fake.mappings[i].kind = INHERITED;
        }
    }
    if (setjmp(fake.exited) != 0) {
        return -1;
    }
    hugepages_after_fork_in_child();
    fake.side = NO_FORK;
    check_all();
    return 0;
}

/* After a child has exited nothing is to be checked. */
static void
abandon_test(void)
{
    for (int i = 0; i < fake.mapping_count; i++) {
        free(fake.mappings[i].address);
        free(fake.mappings[i].opened);
    }
}

/* Have so many arenas on explicit pages, and one that is not. */
static void
begin_with_arenas(int count)
{
    begin_test();
    fork_policy_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < count; i++) {
        CHECK(alloc_arena() != NULL);
    }
    CHECK_EQUAL(hugepages_explicit->count, count);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_BUSY;
    CHECK(alloc_arena() != NULL);
    fake.answers[CALL_EXPLICIT] = HUGEPAGES_OK;
    memset(fake.counts, 0, sizeof(fake.counts));
    fake.number_of_calls = 0;
}

// --- tests: the child ------------------------------------------------------

static void
test_nothing_to_do(void)
{
    begin_with_arenas(0);
    fork_parent();
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(fake.number_of_calls, 0);
    CHECK_EQUAL(fake.slept, 0);
    end_test();
}

static void
test_child_remaps(void)
{
    begin_with_arenas(5);
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 5);
    CHECK_EQUAL(fake.counts[CALL_RESCUE], 5);
    CHECK_EQUAL(fake.counts[CALL_REMAP], 5);
    CHECK_EQUAL(fake.counts[CALL_MOVE], 0);
    /* One spare mapping is enough, and talking takes two. */
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 3);
    /* That it is done. */
    CHECK_EQUAL(fake.sent, 1);
    CHECK_EQUAL(fake.slept, 0);
    end_test();
}

static void
test_child_moves(void)
{
    begin_with_arenas(5);
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    size_t refused = hugepages_stats[HUGEPAGES_EXPLICIT].refused[0].count;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_stats[HUGEPAGES_EXPLICIT].refused[0].count,
                refused + 5);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK_EQUAL(fake.counts[CALL_REMAP], 5);
    CHECK_EQUAL(fake.counts[CALL_MOVE], 5);
    CHECK_EQUAL(fake.counts[CALL_THP], 5);
    /* Busy is not for ever. */
    CHECK(alloc_arena() != NULL);
    CHECK_EQUAL(hugepages_explicit->count, 1);
    end_test();
}

static void
test_child_cannot_move(void)
{
    begin_with_arenas(5);
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    fake.answers[CALL_MOVE] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK_EQUAL(fake.counts[CALL_REMAP_PLAIN], 5);
    /* The spare mapping goes on serving. */
    CHECK_EQUAL(fake.counts[CALL_THP], 1);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 3);
    end_test();
}

/* Whichever of them are refused, all are the child's own. */
static void
test_child_moves_some(void)
{
    const int count = 6;
    for (uint32_t refused = 0; refused < 1U << count; refused++) {
        begin_with_arenas(count);
        fake.refused_remaps = refused;
        CHECK_EQUAL(fork_child(), 0);
        int moved = fake.counts[CALL_MOVE];
        CHECK_EQUAL(moved + (int)hugepages_explicit->count, count);
        end_test();
    }
}

static void
test_child_never(void)
{
    begin_with_arenas(5);
    fake.answers[CALL_REMAP] = HUGEPAGES_NEVER;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK_EQUAL(fake.counts[CALL_REMAP], 1);
    CHECK_EQUAL(fake.counts[CALL_MOVE], 5);
    CHECK(alloc_arena() != NULL);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    end_test();
}

/* Python was initialized again, without explicit pages. */
static void
test_child_switched_off(void)
{
    begin_with_arenas(3);
    fork_policy_set_huge_pages(PYMALLOC_HUGEPAGES_OFF);
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(fake.counts[CALL_REMAP], 0);
    CHECK_EQUAL(fake.counts[CALL_MOVE], 3);
    CHECK_EQUAL(fake.counts[CALL_THP], 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    end_test();
}

/* A stray is memory of the process, as any other. */
static void
test_child_strays(void)
{
    begin_with_arenas(4);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    for (int i = 0; i < 2; i++) {
        free_arena(hugepages_explicit->addresses[i]);
    }
    fake.answers[CALL_UNMAP] = HUGEPAGES_OK;
    CHECK_EQUAL(hugepages_explicit->count, 4);
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK_EQUAL(fake.counts[CALL_MOVE], 4);
    CHECK(alloc_arena() != NULL);
    CHECK_EQUAL(fake.counts[CALL_EXPLICIT], 0);
    end_test();
}

/* The system does not take the spare mapping back. */
static void
test_child_spare_is_a_stray(void)
{
    begin_with_arenas(2);
    fake.answers[CALL_UNMAP] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    fake.answers[CALL_UNMAP] = HUGEPAGES_OK;
    int calls = fake.number_of_calls;
    CHECK(alloc_arena() != NULL);
    CHECK_EQUAL(fake.number_of_calls, calls);
    end_test();
}

static void
test_child_of_a_child(void)
{
    begin_with_arenas(4);
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 4);
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    CHECK_EQUAL(fork_child(), 0);
    end_test();
}

// --- tests: the child needs the parent, or cannot be helped ----------------

static void
test_child_gets_copies(void)
{
    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(fake.sent, 5);
    CHECK_EQUAL(hugepages_explicit->count, 4);
    end_test();

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    fake.answers[CALL_LINE] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(fake.sent, 0);
    CHECK_EQUAL(hugepages_explicit->count, 4);
    end_test();

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    fake.parent = PARENT_COPIES_ALL;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 0);
    end_test();
}

/* The child ends, for the reason that is said. */
static void
check_child_exits(const char *reason)
{
    CHECK_EQUAL(fork_child(), -1);
    CHECK(fake.exit_reason != NULL && strcmp(fake.exit_reason, reason) == 0);
    abandon_test();
}

static void
test_child_gets_no_copies(void)
{
    const char reason[] = "the parent has taken one back";

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    fake.parent = PARENT_CANNOT_COPY;
    check_child_exits(reason);
    CHECK_EQUAL(fake.slept, 5);

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    fake.parent = PARENT_IS_GONE;
    check_child_exits(reason);
    /* It has waited, but not for ever. */
    CHECK(fake.slept > 1000 && fake.slept < 100 * 1000);

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    fake.answers[CALL_SHARED] = HUGEPAGES_BUSY;
    check_child_exits(reason);
    CHECK_EQUAL(fake.slept, 0);

    begin_with_arenas(4);
    fake.answers[CALL_RESCUE] = HUGEPAGES_BUSY;
    /* The line, the memory for talking; that for the copies cannot be had. */
    fake.fault_at = 3;
    fake.fault_answer = HUGEPAGES_BUSY;
    check_child_exits(reason);
    CHECK_EQUAL(fake.counts[CALL_SHARED], 2);
    CHECK_EQUAL(fake.slept, 0);
}

static void
test_child_exits(void)
{
    begin_with_arenas(2);
    fake.answers[CALL_RESCUE] = HUGEPAGES_NEVER;
    check_child_exits("the memory is broken");

    begin_with_arenas(2);
    fake.answers[CALL_THP] = HUGEPAGES_BUSY;
    fake.answers[CALL_PLAIN] = HUGEPAGES_BUSY;
    check_child_exits("out of memory");

    begin_with_arenas(2);
    fake.answers[CALL_REMAP] = HUGEPAGES_BUSY;
    fake.answers[CALL_MOVE] = HUGEPAGES_BUSY;
    fake.answers[CALL_REMAP_PLAIN] = HUGEPAGES_BUSY;
    check_child_exits("out of memory");
}

static void
test_child_without_talk(void)
{
    static const call_kind kinds[] = {CALL_SHARED, CALL_OPEN, CALL_LINE};
    for (int i = 0; i < 3; i++) {
        begin_with_arenas(3);
        fake.answers[kinds[i]] = HUGEPAGES_BUSY;
        CHECK_EQUAL(fork_child(), 0);
        CHECK_EQUAL(hugepages_explicit->count, 3);
        /* Without shared memory it tells of each arena. */
        CHECK_EQUAL(fake.sent, kinds[i] == CALL_LINE ? 0 : 3);
        end_test();
    }
    begin_with_arenas(3);
    fake.answers[CALL_SHARED] = HUGEPAGES_BUSY;
    fake.answers[CALL_LINE] = HUGEPAGES_BUSY;
    CHECK_EQUAL(fork_child(), 0);
    CHECK_EQUAL(hugepages_explicit->count, 3);
    end_test();
}

// --- tests: the parent -----------------------------------------------------

/* The copies that the parent has made, in the order of the arenas. */
static void
check_copies(int count, const char *expected)
{
    for (int i = 0; i < count; i++) {
        CHECK_EQUAL(is_copied((size_t)i), expected[i] == '1');
    }
}

#define STEPS(...) \
    do { \
        static const struct child_step steps_[] = {__VA_ARGS__}; \
        fake.steps = steps_; \
        fake.step_count = sizeof(steps_) / sizeof(steps_[0]); \
    } while (0)

static void
test_parent_child_is_done(void)
{
    begin_with_arenas(3);
    fork_parent();
    CHECK_EQUAL(fake.counts[CALL_OPEN], 1);
    CHECK_EQUAL(fake.counts[CALL_UNMAP], 2);
    CHECK_EQUAL(fake.slept, 0);
    check_copies(3, "000");
    end_test();
}

static void
test_parent_copies(void)
{
    begin_with_arenas(4);
    STEPS({HUGEPAGES_SENT, 4, 4}, {HUGEPAGES_SENT, 3, 3},
          {HUGEPAGES_TIME_IS_UP, 2, 3}, {HUGEPAGES_SENT, 1, 1},
          {HUGEPAGES_SENT, 0, 1}, {HUGEPAGES_SENT, 0, 1});
    fork_parent();
    /* It does not wait for the line to be closed. */
    CHECK_EQUAL(fake.next_step, 5);
    check_copies(4, "1011");
    CHECK_EQUAL(hugepages_fork.talk->copied_all, 0);
    CHECK_EQUAL(hugepages_fork.talk->cannot_copy, 0);
    end_test();
}

/* What the child asks for need not make sense. */
static void
test_parent_ignores_nonsense(void)
{
    begin_with_arenas(4);
    STEPS({HUGEPAGES_SENT, 4, 0}, {HUGEPAGES_SENT, 4, 5},
          {HUGEPAGES_SENT, 4, UINT32_MAX}, {HUGEPAGES_SENT, 4, 0});
    fork_parent();
    CHECK_EQUAL(fake.next_step, 4);
    check_copies(4, "0000");
    end_test();
}

/* The child is slow, or stopped: without progress since the last time, the
   parent copies what is left and leaves. */
static void
test_parent_time_is_up(void)
{
    begin_with_arenas(4);
    STEPS({HUGEPAGES_TIME_IS_UP, 3, 0}, {HUGEPAGES_TIME_IS_UP, 2, 0},
          {HUGEPAGES_TIME_IS_UP, 2, 0}, {HUGEPAGES_TIME_IS_UP, 1, 0});
    fork_parent();
    CHECK_EQUAL(fake.next_step, 3);
    check_copies(4, "1100");
    CHECK_EQUAL(hugepages_fork.talk->copied_all, 1);
    end_test();

    begin_with_arenas(4);
    STEPS({HUGEPAGES_TIME_IS_UP, 4, 0}, {HUGEPAGES_TIME_IS_UP, 4, 0});
    fork_parent();
    CHECK_EQUAL(fake.next_step, 1);
    check_copies(4, "1111");
    CHECK_EQUAL(hugepages_fork.talk->copied_all, 1);
    end_test();
}

static void
test_parent_cannot_copy(void)
{
    for (int time_is_up = 0; time_is_up < 2; time_is_up++) {
        for (int fault_at = 3; fault_at < 6; fault_at++) {
            begin_with_arenas(3);
            if (time_is_up) {
                STEPS({HUGEPAGES_TIME_IS_UP, 3, 0});
            }
            else {
                STEPS({HUGEPAGES_SENT, 3, 3}, {HUGEPAGES_SENT, 3, 2});
            }
            /* Call 3 is for the memory, the next ones open it. */
            fake.fault_at = fault_at;
            fake.fault_answer = HUGEPAGES_BUSY;
            fork_parent();
            CHECK_EQUAL(hugepages_fork.talk->cannot_copy, 1);
            CHECK_EQUAL(hugepages_fork.talk->copied_all, 0);
            end_test();
        }
    }
}

static void
test_parent_without_line(void)
{
    begin_with_arenas(4);
    fake.answers[CALL_LINE] = HUGEPAGES_BUSY;
    STEPS({HUGEPAGES_TIME_IS_UP, 4, 0}, {HUGEPAGES_SENT, 4, 4},
          {HUGEPAGES_TIME_IS_UP, 3, 4}, {HUGEPAGES_SENT, 1, 1},
          {HUGEPAGES_TIME_IS_UP, 0, 1});
    fork_parent();
    CHECK_EQUAL(fake.slept, 5);
    check_copies(4, "1001");
    CHECK_EQUAL(hugepages_fork.talk->copied_all, 0);
    end_test();

    /* The child gets somewhere, and then nowhere. */
    begin_with_arenas(4);
    fake.answers[CALL_LINE] = HUGEPAGES_BUSY;
    STEPS({HUGEPAGES_TIME_IS_UP, 4, 0}, {HUGEPAGES_TIME_IS_UP, 4, 0},
          {HUGEPAGES_TIME_IS_UP, 2, 0});
    fork_parent();
    CHECK_EQUAL(fake.slept, 3 + HUGEPAGES_PATIENCE);
    check_copies(4, "1100");
    CHECK_EQUAL(hugepages_fork.talk->copied_all, 1);
    end_test();
}

static void
test_parent_without_memory(void)
{
    static const call_kind kinds[] = {CALL_SHARED, CALL_OPEN};
    for (int i = 0; i < 2; i++) {
        for (int is_stopped = 0; is_stopped < 2; is_stopped++) {
            begin_with_arenas(3);
            fake.answers[kinds[i]] = HUGEPAGES_BUSY;
            STEPS({HUGEPAGES_SENT, 2, 0}, {HUGEPAGES_SENT, 1, 0},
                  {HUGEPAGES_SENT, 0, 0}, {HUGEPAGES_TIME_IS_UP, 0, 0});
            fake.step_count -= !is_stopped;
            fork_parent();
            CHECK_EQUAL(fake.next_step, fake.step_count);
            end_test();
        }
    }
}

static void
test_parent_without_talk(void)
{
    begin_with_arenas(3);
    fake.answers[CALL_SHARED] = HUGEPAGES_BUSY;
    fake.answers[CALL_LINE] = HUGEPAGES_BUSY;
    fork_parent();
    CHECK_EQUAL(fake.slept, 3 * HUGEPAGES_BLIND_PATIENCE);
    end_test();
}

// --- tests: faults ---------------------------------------------------------

/* Return -1 if the child has exited. */
static int
run_scenario(side where)
{
    STEPS({HUGEPAGES_SENT, 5, 5}, {HUGEPAGES_TIME_IS_UP, 4, 5},
          {HUGEPAGES_SENT, 4, 4}, {HUGEPAGES_TIME_IS_UP, 4, 4});
    unsigned char *arenas[6];
    fork_policy_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
    for (int i = 0; i < 6; i++) {
        arenas[i] = alloc_arena();
    }
    if (arenas[1] != NULL) {
        free_arena(arenas[1]);
    }
    for (int i = 0; i < 2; i++) {
        if (where == IN_PARENT) {
            fork_parent();
        }
        else if (fork_child() < 0) {
            return -1;
        }
        if (arenas[i * 2 + 2] != NULL) {
            free_arena(arenas[i * 2 + 2]);
        }
        (void)alloc_arena();
    }
    return 0;
}

static void
test_each_single_fault(void)
{
    static const hugepages_result faults[] = {HUGEPAGES_BUSY, HUGEPAGES_NEVER};
    int points = 0, exits = 0;
    for (int i = 0; i < 4; i++) {
        int fault_at = 0, calls;
        do {
            begin_test();
            fake.fault_at = fault_at;
            fake.fault_answer = faults[i % 2];
            int exited = run_scenario(i / 2 ? IN_PARENT : IN_CHILD) < 0;
            calls = fake.number_of_calls;
            exits += exited;
            if (exited) {
                calls = fault_at + 2;
                abandon_test();
            }
            else {
                end_test();
            }
            if (test_failed()) {
                FAIL("with call %d failing", fault_at);
                return;
            }
            fault_at++;
        } while (fault_at < calls);
        points += fault_at;
    }
    CHECK(points > 100);
    /* One call that fails ends the child only where the memory is broken. */
    CHECK(exits > 0);
    test_note("%d failure points", points);
}

static void
test_random_sequences(void)
{
    const int sequences = 500, operations = 200;
    int exits = 0, forks = 0;
    for (int i = 0; i < sequences; i++) {
        uint32_t seed = test_seed + (uint32_t)i;
        uint32_t random_state = seed;
        struct child_step steps[8];
        int exited = 0;
        begin_test();
        fork_policy_set_huge_pages(PYMALLOC_HUGEPAGES_ON);
        fake.random_state = ~seed;
        for (int j = 0; j < operations && !exited; j++) {
            uint32_t number = test_random(&random_state);
            uint32_t choice = number % 100;
            number /= 100;
            if (fake.mapping_count > MAX_MAPPINGS - 40) {
                break;
            }
            if (choice < 2) {
                fork_policy_set_huge_pages((int)(number % 4));
            }
            else if (choice < 50) {
                (void)alloc_arena();
            }
            else if (choice < 85) {
                int index = (int)(number % (uint32_t)MAX_MAPPINGS);
                if (index < fake.mapping_count && fake.mappings[index].held) {
                    free_arena(fake.mappings[index].address);
                }
            }
            else if (choice < 95) {
                uint32_t left = (uint32_t)hugepages_explicit->count;
                for (int k = 0; k < 8; k++) {
                    uint32_t step = test_random(&random_state);
                    left -= left > 0 && step & 0x10000;
                    steps[k] = (struct child_step){
                        (hugepages_event)(step % 3), left,
                        left > 0 ? step / 3 % left + 1 : 0
                    };
                }
                fake.steps = steps;
                fake.step_count = 8;
                fork_parent();
                forks++;
            }
            else {
                fake.parent = number % 4;
                exited = fork_child() < 0;
                exits += exited;
                forks++;
            }
            if (test_failed()) {
                FAIL("in operation %d; run again with --seed %u", j, seed);
                return;
            }
        }
        if (exited) {
            abandon_test();
        }
        else {
            end_test();
        }
    }
    test_note("%d forks, %d exits, seeds from %u", forks, exits, test_seed);
}

const testhugepages_test testhugepages_fork_policy_tests[] = {
    {"fork_policy_nothing_to_do", test_nothing_to_do},
    {"fork_policy_child_remaps", test_child_remaps},
    {"fork_policy_child_moves", test_child_moves},
    {"fork_policy_child_cannot_move", test_child_cannot_move},
    {"fork_policy_child_moves_some", test_child_moves_some},
    {"fork_policy_child_never", test_child_never},
    {"fork_policy_child_switched_off", test_child_switched_off},
    {"fork_policy_child_strays", test_child_strays},
    {"fork_policy_child_spare_is_a_stray", test_child_spare_is_a_stray},
    {"fork_policy_child_of_a_child", test_child_of_a_child},
    {"fork_policy_child_gets_copies", test_child_gets_copies},
    {"fork_policy_child_gets_no_copies", test_child_gets_no_copies},
    {"fork_policy_child_exits", test_child_exits},
    {"fork_policy_child_without_talk", test_child_without_talk},
    {"fork_policy_parent_child_is_done", test_parent_child_is_done},
    {"fork_policy_parent_copies", test_parent_copies},
    {"fork_policy_parent_ignores_nonsense", test_parent_ignores_nonsense},
    {"fork_policy_parent_time_is_up", test_parent_time_is_up},
    {"fork_policy_parent_cannot_copy", test_parent_cannot_copy},
    {"fork_policy_parent_without_line", test_parent_without_line},
    {"fork_policy_parent_without_memory", test_parent_without_memory},
    {"fork_policy_parent_without_talk", test_parent_without_talk},
    {"fork_policy_each_single_fault", test_each_single_fault},
    {"fork_policy_random_sequences", test_random_sequences},
    {NULL, NULL}
};
