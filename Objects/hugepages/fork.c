/* Policy: what a process does with its arenas when it forks.

   Plain memory and THP are shared by both processes until one writes, which
   then gets a copy; the system always has memory for that, or ends a process
   as it would end any other.  With explicit pages the copy is another page of
   the pool, and the pool may be empty:

       if the child writes      the child is ended by SIGBUS
       if the parent writes     it gets the child's page, and the child is
                                ended by SIGBUS when it reads its own data

   So the child makes each explicit arena its own before it returns from
   fork().  The content is copied to a spare mapping.  Then the arena's address
   gets an explicit page of the child, into which the content is copied back;
   or, where there is none to be had, the spare is moved there.  Both put a
   mapping of the child in the place of the inherited one: a page of the pool
   that merely became the child's, by writing to it, would still not be
   reserved for it, and the child could lose it to a child of its own.

   Meanwhile the parent waits in fork(), so that it does not write.  Threads of
   it that do not need the GIL of the one that forks may write all the same.
   If the pool is empty, they take pages from the child, which then asks the
   parent for a copy.  Other than what the kernel copies, such a copy can have
   a write that was under way in half; fork() makes no promise to such threads
   either, for it copies page by page while they run.

   How long does the parent wait?  Until the child is done or gone: both close
   its end of the line.  A child that is stopped, or gets no processor, does
   neither.  When it has not done one arena in HUGEPAGES_PATIENCE, the parent
   copies the arenas that are left and goes on; the child finds the copies if
   it comes back.  That is safe at any time, and costs as much memory as a
   child without a pool takes, so the bound need not be generous.  An arena
   takes a third of a millisecond.

   Without file descriptors for the line, the parent looks at the shared memory
   every millisecond; a child that is gone, or that fork() did not make, looks
   to it like a stopped one.  Without shared memory, the child cannot get
   copies, and tells over the line how far it is.  Without either, the parent
   just gives it some time.  A child that can make an arena its own in no way
   exits with a message, for then any access might end it with a signal, or
   with wrong data.

   Signals are blocked from before the fork until both are done: a handler
   could look at objects of an arena that is between two mappings.

   A child that shares its parent's memory (vfork(), posix_spawn()) calls none
   of this, nor does a program that forks around the C library. */

#include "fork.h"

/* In milliseconds: how long the parent waits for a sign of progress; how long
   the child waits for a copy that it has asked for; the time that a child
   that cannot give a sign is given for each arena, thirty times what it
   takes. */
#define HUGEPAGES_PATIENCE 1000
#define HUGEPAGES_COPY_PATIENCE 10000
#define HUGEPAGES_BLIND_PATIENCE 10

#define HUGEPAGES_FORK_MESSAGE(why) \
    "Fatal Python error: a forked process cannot make the huge pages of its " \
    "parent its own: " why "; set PYTHON_PYMALLOC_HUGEPAGES=thp for " \
    "programs that fork, or give them more memory"

/* What both processes read and write. */
typedef struct {
    /* The child's: how many arenas are left to be made its own.  They are done
       from the end of the table, so these are the first ones. */
    uint32_t left;
    /* The child's: 1 + the index of the arena that it wants a copy of. */
    uint32_t wanted;
    /* The parent's: 1 + the index of the last copy that was wanted and made;
       whether all that were left are copied; whether it can copy no more. */
    uint32_t copied;
    uint32_t copied_all;
    uint32_t cannot_copy;
} hugepages_talk;

/* The fork under way.  Guarded by the lock. */
static struct {
    /* Number of explicit arenas; 0: nothing is to be done. */
    size_t count;
    int has_line;
    int line[2];
    /* Shared memory, or NULL: what is said; room for a copy of each arena. */
    hugepages_talk *talk;
    char *copies;
    /* The child's spare mapping, or NULL, and what it sits on. */
    void *spare;
    hugepages_kind spare_kind;
} hugepages_fork;

/* A mapping of shared memory is never merged with another, so that unmapping
   it cannot fail for want of mappings.  The list of strays is not for it: it
   would write into what the other process reads. */
static void
hugepages_unmap_shared(void *address, size_t size)
{
    int os_error;
    (void)hugepages_os_unmap(address, size, &os_error);
}

static void
hugepages_close_talk(void)
{
    if (hugepages_fork.copies != NULL) {
        hugepages_unmap_shared(hugepages_fork.copies,
                               hugepages_fork.count * ARENA_SIZE);
    }
    if (hugepages_fork.talk != NULL) {
        hugepages_unmap_shared(hugepages_fork.talk,
                               hugepages_state.system.base_page_size);
    }
}

static void
hugepages_open_talk(void)
{
    size_t page_size = hugepages_state.system.base_page_size;
    void *shared;
    int os_error;

    hugepages_fork.has_line =
        hugepages_os_open_line(hugepages_fork.line, &os_error) == HUGEPAGES_OK;
    hugepages_fork.talk = NULL;
    hugepages_fork.copies = NULL;
    if (hugepages_os_map_shared(page_size, &shared, &os_error)
        != HUGEPAGES_OK)
    {
        return;
    }
    if (hugepages_os_open_shared(shared, page_size, &os_error)
        != HUGEPAGES_OK)
    {
        hugepages_unmap_shared(shared, page_size);
        return;
    }
    hugepages_fork.talk = (hugepages_talk *)shared;
    hugepages_fork.talk->left = (uint32_t)hugepages_fork.count;

    if (hugepages_os_map_shared(hugepages_fork.count * ARENA_SIZE, &shared,
                                &os_error) == HUGEPAGES_OK)
    {
        hugepages_fork.copies = (char *)shared;
    }
}

static void
hugepages_before_fork(void)
{
    hugepages_os_lock();
    (void)hugepages_release_all();
    hugepages_fork.count = hugepages_explicit->count;
    if (hugepages_fork.count > 0) {
        hugepages_os_block_signals();
        hugepages_open_talk();
    }
}

// --- the parent ------------------------------------------------------------

/* Copy an arena to the shared memory.  Return 0, or -1 if that cannot be. */
static int
hugepages_copy_for_child(size_t index)
{
    int os_error;
    if (hugepages_fork.copies == NULL) {
        return -1;
    }
    char *copy = hugepages_fork.copies + index * ARENA_SIZE;
    if (hugepages_os_open_shared(copy, ARENA_SIZE, &os_error) != HUGEPAGES_OK) {
        return -1;
    }
    memcpy(copy, hugepages_explicit->addresses[index], ARENA_SIZE);
    return 0;
}

static void
hugepages_serve_child(void)
{
    hugepages_talk *talk = hugepages_fork.talk;
    uint32_t wanted = _Py_atomic_load_uint32(&talk->wanted);
    if (wanted == _Py_atomic_load_uint32(&talk->copied)
        || wanted > hugepages_fork.count)
    {
        return;
    }
    if (hugepages_copy_for_child(wanted - 1) == 0) {
        _Py_atomic_store_uint32(&talk->copied, wanted);
    }
    else {
        _Py_atomic_store_uint32(&talk->cannot_copy, 1);
    }
}

static void
hugepages_copy_rest_for_child(size_t left)
{
    hugepages_talk *talk = hugepages_fork.talk;
    for (size_t i = 0; i < left; i++) {
        if (hugepages_copy_for_child(i) < 0) {
            _Py_atomic_store_uint32(&talk->cannot_copy, 1);
            return;
        }
    }
    _Py_atomic_store_uint32(&talk->copied_all, 1);
}

/* Wait for the child's next sign, or for some time. */
static hugepages_event
hugepages_wait_for_sign(int *milliseconds)
{
    if (hugepages_fork.has_line) {
        *milliseconds = HUGEPAGES_PATIENCE;
        return hugepages_os_wait(hugepages_fork.line[0], *milliseconds);
    }
    *milliseconds = 1;
    hugepages_os_sleep(*milliseconds);
    return HUGEPAGES_TIME_IS_UP;
}

static void
hugepages_wait_for_child(void)
{
    const hugepages_talk *talk = hugepages_fork.talk;
    size_t left = hugepages_fork.count;
    size_t patience = HUGEPAGES_PATIENCE;
    if (!hugepages_fork.has_line && talk == NULL) {
        patience = left * HUGEPAGES_BLIND_PATIENCE;
    }
    for (size_t waited = 0; waited < patience; ) {
        int milliseconds;
        hugepages_event event = hugepages_wait_for_sign(&milliseconds);
        size_t left_before = left;
        if (event == HUGEPAGES_CLOSED) {
            return;
        }
        if (talk != NULL) {
            left = _Py_atomic_load_uint32(&talk->left);
            if (left == 0) {
                return;
            }
            hugepages_serve_child();
        }
        if (event == HUGEPAGES_SENT || left != left_before) {
            waited = 0;
        }
        else {
            waited += (size_t)milliseconds;
        }
    }
    if (talk != NULL) {
        hugepages_copy_rest_for_child(left);
    }
}

static void
hugepages_after_fork_in_parent(void)
{
    if (hugepages_fork.count > 0) {
        if (hugepages_fork.has_line) {
            hugepages_os_close_line(hugepages_fork.line[1]);
        }
        hugepages_wait_for_child();
        if (hugepages_fork.has_line) {
            hugepages_os_close_line(hugepages_fork.line[0]);
        }
        hugepages_close_talk();
        hugepages_os_unblock_signals();
    }
    hugepages_os_unlock();
}

// --- the child -------------------------------------------------------------

/* Get the content of an arena that the parent has taken.  Return 0, or -1 if
   it cannot be had. */
static int
hugepages_fetch_copy(size_t index)
{
    hugepages_talk *talk = hugepages_fork.talk;
    int os_error;
    if (talk == NULL || hugepages_fork.copies == NULL) {
        return -1;
    }
    uint32_t wanted = (uint32_t)index + 1;
    _Py_atomic_store_uint32(&talk->wanted, wanted);
    if (hugepages_fork.has_line) {
        hugepages_os_send(hugepages_fork.line[1]);
    }
    int waited = 0;
    while (_Py_atomic_load_uint32(&talk->copied) != wanted
           && !_Py_atomic_load_uint32(&talk->copied_all))
    {
        if (_Py_atomic_load_uint32(&talk->cannot_copy)
            || waited == HUGEPAGES_COPY_PATIENCE)
        {
            return -1;
        }
        hugepages_os_sleep(1);
        waited++;
    }
    char *copy = hugepages_fork.copies + index * ARENA_SIZE;
    if (hugepages_os_open_shared(copy, ARENA_SIZE, &os_error) != HUGEPAGES_OK) {
        return -1;
    }
    memcpy(hugepages_fork.spare, copy, ARENA_SIZE);
    return 0;
}

/* Copy an arena to the spare mapping, or exit. */
static void
hugepages_rescue(size_t index)
{
    if (hugepages_fork.spare == NULL) {
        hugepages_fork.spare = hugepages_map_arena(
            PYMALLOC_HUGEPAGES_THP, &hugepages_fork.spare_kind);
        if (hugepages_fork.spare == NULL) {
            hugepages_os_exit(HUGEPAGES_FORK_MESSAGE("out of memory"));
        }
    }
    void *arena = hugepages_explicit->addresses[index];
    switch (hugepages_os_rescue(hugepages_fork.spare, arena, ARENA_SIZE))
    {
    case HUGEPAGES_OK:
        break;
    case HUGEPAGES_BUSY:
        if (hugepages_fetch_copy(index) < 0) {
            hugepages_os_exit(HUGEPAGES_FORK_MESSAGE("the parent has taken "
                                                     "one back"));
        }
        break;
    case HUGEPAGES_NEVER:
        hugepages_os_exit(HUGEPAGES_FORK_MESSAGE("the memory is broken"));
        break;
    }
}

/* Make an arena of the table the child's own, on explicit pages or not. */
static void
hugepages_own(size_t index)
{
    void *arena = hugepages_explicit->addresses[index];
    int os_error;

    hugepages_rescue(index);
    if (hugepages_tiers() & PYMALLOC_HUGEPAGES_HUGETLB) {
        hugepages_result result =
            hugepages_os_remap_explicit(arena, ARENA_SIZE, &os_error);
        if (result == HUGEPAGES_OK) {
            memcpy(arena, hugepages_fork.spare, ARENA_SIZE);
            return;
        }
        hugepages_note_refused(PYMALLOC_HUGEPAGES_HUGETLB, result, os_error);
    }
    hugepages_kind kind = hugepages_fork.spare_kind;
    if (hugepages_os_move(hugepages_fork.spare, arena, ARENA_SIZE, &os_error)
        == HUGEPAGES_OK)
    {
        hugepages_fork.spare = NULL;
    }
    else if (hugepages_os_remap_plain(arena, ARENA_SIZE, &os_error)
             == HUGEPAGES_OK)
    {
        memcpy(arena, hugepages_fork.spare, ARENA_SIZE);
        kind = HUGEPAGES_PLAIN;
    }
    else {
        hugepages_os_exit(HUGEPAGES_FORK_MESSAGE("out of memory"));
    }
    /* The one that takes its place was made the child's own before. */
    hugepages_unregister(HUGEPAGES_EXPLICIT, index);
    hugepages_register(arena, kind);
}

/* Tell the parent that only the first arenas are left, so many. */
static void
hugepages_tell_parent(size_t left)
{
    if (hugepages_fork.talk != NULL) {
        _Py_atomic_store_uint32(&hugepages_fork.talk->left, (uint32_t)left);
    }
    /* That the line is closed would tell it as well that none is left, unless
       another process has got the end of the line, from a vfork(). */
    if (hugepages_fork.has_line && (hugepages_fork.talk == NULL || left == 0))
    {
        hugepages_os_send(hugepages_fork.line[1]);
    }
}

static void
hugepages_unmap_spare(void)
{
    int os_error;
    if (hugepages_fork.spare != NULL
        && hugepages_os_unmap(hugepages_fork.spare, ARENA_SIZE, &os_error)
           != HUGEPAGES_OK)
    {
        hugepages_register(hugepages_fork.spare, hugepages_fork.spare_kind);
        hugepages_push_stray(hugepages_fork.spare, ARENA_SIZE);
    }
}

static void
hugepages_after_fork_in_child(void)
{
    if (hugepages_fork.count > 0) {
        if (hugepages_fork.has_line) {
            hugepages_os_close_line(hugepages_fork.line[0]);
        }
        hugepages_fork.spare = NULL;
        for (size_t i = hugepages_fork.count; i-- > 0; ) {
            hugepages_own(i);
            hugepages_tell_parent(i);
        }
        if (hugepages_fork.has_line) {
            hugepages_os_close_line(hugepages_fork.line[1]);
        }
        hugepages_close_talk();
        hugepages_unmap_spare();
        hugepages_os_unblock_signals();
    }
    hugepages_os_unlock();
}
