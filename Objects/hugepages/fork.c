/* Policy: what a process does with its arenas when it forks.

   Plain memory and THP are shared by both processes until one writes, which
   then gets a copy; the system always has memory for that, or ends a process
   as it would end any other.  With explicit pages the copy is another page of
   the pool, and the pool may be empty:

       if the child writes      the child is ended by SIGBUS
       if the parent writes     it gets the child's page, and the child is
                                ended by SIGBUS when it reads its own data

   So no arena that the child uses may be on explicit pages that it has
   inherited.  The parent ensures this before the fork, so that neither process
   waits for the other one:

   - A process with one thread moves its arenas from explicit pages to THP, at
     the same addresses.  Then the fork costs no memory, as in stock CPython,
     and the next fork finds nothing to do.
   - While other threads run, an arena cannot be moved: a write between the
     copy and the move would be lost.  Nor can it where there is no THP.  Such
     an arena is copied, the child puts the copy in the place of what it has
     inherited, and the parent unmaps it.  The parent goes on with its own
     pages; when it writes to one that the child has not replaced yet, it may
     take the page away, but the child no longer reads it.  A thread of the
     parent that writes during the copy may have a write in half in the child;
     fork() makes no promise to such threads either, as it copies while they
     run.

   Either way it takes a third of a millisecond for each arena.  From then on
   both processes ask for THP first, if there is any.  A child for whose arenas
   there is no memory exits with a message: any access could end it with a
   signal, or with wrong data.

   Arenas on THP that both processes have must not be put on new huge pages in
   the background: khugepaged would copy what is shared, in each process, until
   little of it is.  Their advice is taken back, once for a run of neighbours.
   What either process maps later is advised.

   A process without arenas on huge pages does nothing here.  No lock is held
   over a fork, and none taken: see table.c.  The handlers of others may
   allocate in the thread that forks, as these come last before the fork and
   first after it.

   A child that shares its parent's memory (vfork(), posix_spawn()) calls none
   of this, nor does a program that forks around the C library. */

#include "fork.h"

#define HUGEPAGES_FORK_MESSAGE \
    "Fatal Python error: a forked process has no memory for the huge pages " \
    "of its parent; set PYTHON_PYMALLOC_HUGEPAGES=thp for programs that " \
    "fork, or give them more memory"

typedef struct {
    void *arena;
    void *copy;
} hugepages_copy;

/* The fork under way in this thread. */
static _Py_thread_local struct {
    int has_blocked_signals;
    /* How many arenas the child may get copies of; 0: nothing is to be done.
       */
    size_t count;
    /* NULL if there is no memory for all of them. */
    hugepages_copy *copies;
    /* What all the copies sit on. */
    hugepages_kind kind;
} hugepages_fork;

// --- before ----------------------------------------------------------------

static size_t
hugepages_count_explicit(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    size_t count = 0;
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        if (_Py_atomic_load_uintptr(entry) & HUGEPAGES_IS_EXPLICIT) {
            count++;
        }
    }
    return count;
}

/* Put a copy in the place of an arena on explicit pages, with what it sits on:
   kind, or plain memory where that cannot be moved.  Return 0, and set *copy
   to NULL if it was moved; or -1 if neither can be. */
static int
hugepages_replace_arena(uintptr_t *entry, uintptr_t value, void **copy,
                        hugepages_kind kind)
{
    void *arena = hugepages_address_of(value);
    if (hugepages_os_move(*copy, arena, ARENA_SIZE) == HUGEPAGES_OK) {
        *copy = NULL;
    }
    else if (hugepages_os_remap_plain(arena, ARENA_SIZE) == HUGEPAGES_OK) {
        memcpy(arena, *copy, ARENA_SIZE);
        kind = HUGEPAGES_PLAIN;
    }
    else {
        return -1;
    }
    if (kind == HUGEPAGES_PLAIN) {
        (void)hugepages_empty_entry(entry, value);
    }
    else {
        (void)hugepages_replace_entry(entry, value,
                                      (value & ~HUGEPAGES_IS_EXPLICIT)
                                      | hugepages_flag(kind));
    }
    hugepages_count_unmapped(HUGEPAGES_EXPLICIT);
    hugepages_count_mapped(kind);
    return 0;
}

/* Move as many arenas as possible from explicit pages to THP.  Return 0, or -1
   if one may have been lost on the way. */
static int
hugepages_move_to_thp(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        void *copy = NULL;
        int os_error;
        if (!(value & HUGEPAGES_IS_EXPLICIT)) {
            continue;
        }
        if (hugepages_os_map_thp(ARENA_SIZE, &copy, &os_error)
            != HUGEPAGES_OK)
        {
            return 0;
        }
        memcpy(copy, hugepages_address_of(value), ARENA_SIZE);
        int status = hugepages_replace_arena(entry, value, &copy,
                                             HUGEPAGES_THP);
        if (copy != NULL) {
            (void)hugepages_os_unmap(copy, ARENA_SIZE, &os_error);
        }
        if (status < 0) {
            return -1;
        }
    }
    return 0;
}

/* Keep the pages of arenas on THP as they are. */
static void
hugepages_share_thp(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    uintptr_t start = 0, end = 0;
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        uintptr_t arena = value & ~HUGEPAGES_FLAGS;
        if (!(value & HUGEPAGES_IS_THP) || (value & HUGEPAGES_IS_SHARED)
            || !hugepages_replace_entry(entry, value,
                                        value | HUGEPAGES_IS_SHARED))
        {
            continue;
        }
        /* The kernel hands addresses out from the top down. */
        if (arena + ARENA_SIZE == start) {
            start = arena;
        }
        else if (arena == end) {
            end += ARENA_SIZE;
        }
        else {
            if (end > start) {
                hugepages_os_unadvise((void *)start, end - start);
            }
            start = arena;
            end = arena + ARENA_SIZE;
        }
    }
    if (end > start) {
        hugepages_os_unadvise((void *)start, end - start);
    }
}

/* Unmap the copies of this process, and forget them. */
static void
hugepages_unmap_copies(void)
{
    int os_error;
    if (hugepages_fork.copies == NULL) {
        hugepages_fork.count = 0;
        return;
    }
    for (size_t i = 0; i < hugepages_fork.count; i++) {
        if (hugepages_fork.copies[i].copy != NULL) {
            (void)hugepages_os_unmap(hugepages_fork.copies[i].copy, ARENA_SIZE,
                                     &os_error);
        }
    }
    (void)hugepages_os_unmap(hugepages_fork.copies,
                             hugepages_fork.count * sizeof(hugepages_copy),
                             &os_error);
    hugepages_fork.copies = NULL;
    hugepages_fork.count = 0;
}

/* Map memory for a copy.  Return 0, or -1 if there is none. */
static int
hugepages_map_copy(void **copy)
{
    int os_error;
    hugepages_result result =
        hugepages_fork.kind == HUGEPAGES_THP
        ? hugepages_os_map_thp(ARENA_SIZE, copy, &os_error)
        : hugepages_os_map_aligned(ARENA_SIZE, copy, &os_error);
    return result == HUGEPAGES_OK ? 0 : -1;
}

/* Room for arenas that threads of other interpreters map while the others are
   copied: these may come first, though the child does not use them.  The C
   tests have less. */
#ifndef HUGEPAGES_MORE_COPIES
#  define HUGEPAGES_MORE_COPIES 64
#endif

/* Copy the arenas on explicit pages, or none if memory does not suffice, or if
   there are more than hugepages_fork.count: then the child exits. */
static void
hugepages_copy_explicit(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    size_t copied = 0;
    void *memory = NULL;
    int os_error;
    if (hugepages_os_map_plain(hugepages_fork.count * sizeof(hugepages_copy),
                               &memory, &os_error) != HUGEPAGES_OK)
    {
        return;
    }
    hugepages_fork.copies = (hugepages_copy *)memory;
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        if (!(value & HUGEPAGES_IS_EXPLICIT)) {
            continue;
        }
        hugepages_copy *copy = &hugepages_fork.copies[copied];
        if (copied == hugepages_fork.count
            || hugepages_map_copy(&copy->copy) < 0)
        {
            size_t count = hugepages_fork.count;
            hugepages_unmap_copies();
            hugepages_fork.count = count;
            return;
        }
        copy->arena = hugepages_address_of(value);
        memcpy(copy->copy, copy->arena, ARENA_SIZE);
        copied++;
    }
}

/* Let no arena that the child uses be on explicit pages that it inherits. */
static void
hugepages_leave_explicit(void)
{
    int has_thp = (hugepages_usable() & HUGEPAGES_BIT(HUGEPAGES_THP))
                  && !hugepages_os_is_thp_off();
    int is_lost = 0;
    hugepages_os_block_signals();
    hugepages_fork.has_blocked_signals = 1;
    if (has_thp) {
        _Py_atomic_store_uint32_relaxed(&hugepages_state.prefers_thp, 1);
        if (hugepages_os_is_single_threaded()) {
            is_lost = hugepages_move_to_thp() < 0;
        }
    }
    hugepages_fork.kind = has_thp ? HUGEPAGES_THP : HUGEPAGES_PLAIN;
    size_t count = hugepages_count_explicit();
    hugepages_fork.count = count > 0 ? count + HUGEPAGES_MORE_COPIES : 0;
    if (count > 0 && !is_lost) {
        (void)_Py_atomic_add_ssize(&hugepages_process.copying, 1);
        hugepages_copy_explicit();
        (void)_Py_atomic_add_ssize(&hugepages_process.copying, -1);
        if (hugepages_kept() > HUGEPAGES_KEEP_MOST) {
            (void)hugepages_release_kept();
        }
    }
}

static void
hugepages_before_fork(void)
{
    _Py_atomic_store_uint32_relaxed(&hugepages_process.has_forked, 1);
    hugepages_fork.count = 0;
    hugepages_fork.has_blocked_signals = 0;
    if (_Py_atomic_load_ssize(&hugepages_table.count) == 0) {
        return;
    }
    (void)hugepages_release_kept();
    if (hugepages_count_explicit() > 0) {
        hugepages_leave_explicit();
    }
    hugepages_share_thp();
}

// --- after -----------------------------------------------------------------

static void
hugepages_unblock_signals(void)
{
    if (hugepages_fork.has_blocked_signals) {
        hugepages_fork.has_blocked_signals = 0;
        hugepages_os_unblock_signals();
    }
}

static void
hugepages_after_fork_in_parent(void)
{
    hugepages_unmap_copies();
    hugepages_unblock_signals();
}

/* Arenas on explicit pages that are left belong to threads that the child does
   not have, which were about to use them. */
static void
hugepages_forget_explicit(void)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        uintptr_t value = _Py_atomic_load_uintptr(entry);
        if ((value & HUGEPAGES_IS_EXPLICIT)
            && hugepages_empty_entry(entry, value))
        {
            hugepages_count_unmapped(HUGEPAGES_EXPLICIT);
        }
    }
}

static void
hugepages_after_fork_in_child(void)
{
    (void)_Py_atomic_add_uint32(&hugepages_process.children, 1);
    hugepages_process.copying = 0;
    (void)hugepages_release_kept();
    if (hugepages_fork.count > 0) {
        if (hugepages_fork.copies == NULL) {
            hugepages_os_exit(HUGEPAGES_FORK_MESSAGE);
        }
        for (size_t i = 0; i < hugepages_fork.count; i++) {
            /* Another thread may have given the arena back meanwhile. */
            hugepages_copy *copy = &hugepages_fork.copies[i];
            uintptr_t value;
            uintptr_t *entry = copy->copy == NULL ? NULL
                : hugepages_find_entry(copy->arena, &value);
            if (entry != NULL && (value & HUGEPAGES_IS_EXPLICIT)
                && hugepages_replace_arena(entry, value, &copy->copy,
                                           hugepages_fork.kind) < 0)
            {
                hugepages_os_exit(HUGEPAGES_FORK_MESSAGE);
            }
        }
        hugepages_unmap_copies();
    }
    if (_Py_atomic_load_ssize(&hugepages_table.count) > 0) {
        hugepages_forget_explicit();
    }
    hugepages_unblock_signals();
}
