/* The table of the arenas on huge pages: what each sits on, and whether
   anybody uses it.

   A fork() finds the table as it is at that moment, whatever the other threads
   were doing, and a signal handler may fork in the middle of anything.  So
   there is no lock: an arena is one word, its address with flags in the bits
   that alignment leaves, and each change of it is one atomic operation.  Words
   never move.  A thread that is stopped half-way, because it does not exist in
   the child, leaves no more behind than a word that stays reserved, or a
   mapping that nobody uses.

   Invariant: an arena on explicit pages is in the table from before anybody
   uses it until nobody does any more.  Where the table cannot grow, an arena
   gets other pages.

   Among ten thousand arenas (20 GiB) a search takes some microseconds, where
   mapping, clearing and unmapping an arena takes 190. */

#include "hugepages.h"

/* An entry: 0 if it is empty, HUGEPAGES_RESERVED, or an address and flags. */
#define HUGEPAGES_RESERVED      ((uintptr_t)1)
/* What the arena sits on: one of these, for each kind in its order. */
#define HUGEPAGES_IS_EXPLICIT   ((uintptr_t)2)
#define HUGEPAGES_IS_THP        ((uintptr_t)4)
#define HUGEPAGES_IS_PLAIN      ((uintptr_t)8)
/* Nobody uses it: it waits for the next request (see arena.c). */
#define HUGEPAGES_IS_FREE       ((uintptr_t)16)
/* It is shared with a forked process, and stays on the pages that it has (see
   fork.c). */
#define HUGEPAGES_IS_SHARED     ((uintptr_t)32)
#define HUGEPAGES_FLAGS         ((uintptr_t)ARENA_SIZE - 1)

/* The entries are in pieces, each of which is twice as long as the one before.
   Most programs need no more than the first.  The C tests have shorter ones.
   */
#ifndef HUGEPAGES_FIRST_ENTRIES
#  define HUGEPAGES_FIRST_ENTRIES ((size_t)512)
#endif
#define HUGEPAGES_PIECES 20

static uintptr_t hugepages_first_entries[HUGEPAGES_FIRST_ENTRIES];

static struct {
    /* The second piece and those after it, or NULL. */
    void *pieces[HUGEPAGES_PIECES - 1];
    /* Number of entries that are neither empty nor reserved. */
    Py_ssize_t count;
} hugepages_table;

static void *
hugepages_address_of(uintptr_t value)
{
    return (void *)(value & ~HUGEPAGES_FLAGS);
}

static uintptr_t
hugepages_flag(hugepages_kind kind)
{
    return HUGEPAGES_IS_EXPLICIT << kind;
}

static hugepages_kind
hugepages_kind_of(uintptr_t value)
{
    hugepages_kind kind = 0;
    while (kind < HUGEPAGES_PLAIN && !(value & hugepages_flag(kind))) {
        kind++;
    }
    return kind;
}

/* Return the piece of a number and set *length, or NULL where there is none
   yet. */
static uintptr_t *
hugepages_piece(size_t number, size_t *length)
{
    *length = HUGEPAGES_FIRST_ENTRIES << number;
    if (number == 0) {
        return hugepages_first_entries;
    }
    if (number >= HUGEPAGES_PIECES) {
        return NULL;
    }
    return (uintptr_t *)_Py_atomic_load_ptr_acquire(
        &hugepages_table.pieces[number - 1]);
}

/* Map the piece of a number, if no other thread has done it.  Return 0, or -1
   if there is no memory. */
static int
hugepages_add_piece(size_t number)
{
    void *piece = NULL;
    void *nothing = NULL;
    int os_error;
    if (number >= HUGEPAGES_PIECES) {
        return -1;
    }
    size_t size = (HUGEPAGES_FIRST_ENTRIES << number) * sizeof(uintptr_t);
    if (hugepages_os_map_plain(size, &piece, &os_error) != HUGEPAGES_OK) {
        return -1;
    }
    if (!_Py_atomic_compare_exchange_ptr(&hugepages_table.pieces[number - 1],
                                         &nothing, piece))
    {
        (void)hugepages_os_unmap(piece, size, &os_error);
    }
    return 0;
}

/* Visit each entry:

       hugepages_cursor cursor = {0};
       while ((entry = hugepages_next_entry(&cursor)) != NULL)

   Entries that are added meanwhile may be visited or not. */
typedef struct {
    size_t number;
    size_t index;
} hugepages_cursor;

static uintptr_t *
hugepages_next_entry(hugepages_cursor *cursor)
{
    size_t length;
    uintptr_t *piece = hugepages_piece(cursor->number, &length);
    if (piece != NULL && cursor->index == length) {
        cursor->number++;
        cursor->index = 0;
        piece = hugepages_piece(cursor->number, &length);
    }
    return piece != NULL ? &piece[cursor->index++] : NULL;
}

/* Return an entry for the caller to fill, or NULL if there is no memory for
   one. */
static uintptr_t *
hugepages_reserve_entry(void)
{
    hugepages_cursor cursor = {0};
    for (;;) {
        uintptr_t *entry = hugepages_next_entry(&cursor);
        if (entry == NULL) {
            if (hugepages_add_piece(cursor.number) < 0) {
                return NULL;
            }
            continue;
        }
        uintptr_t empty = 0;
        if (_Py_atomic_load_uintptr_relaxed(entry) == 0
            && _Py_atomic_compare_exchange_uintptr(entry, &empty,
                                                   HUGEPAGES_RESERVED))
        {
            return entry;
        }
    }
}

/* Fill a reserved entry with an arena, and count it. */
static void
hugepages_fill_entry(uintptr_t *entry, void *address, uintptr_t flags)
{
    /* Counted first: one too few would hide an arena from a fork. */
    (void)_Py_atomic_add_ssize(&hugepages_table.count, 1);
    _Py_atomic_store_uintptr(entry, (uintptr_t)address | flags);
}

/* Give a reserved entry back. */
static void
hugepages_drop_entry(uintptr_t *entry)
{
    _Py_atomic_store_uintptr(entry, 0);
}

/* Replace what an entry has, unless it has become something else meanwhile.
   Return whether it was replaced. */
static int
hugepages_replace_entry(uintptr_t *entry, uintptr_t value, uintptr_t new_value)
{
    return _Py_atomic_compare_exchange_uintptr(entry, &value, new_value);
}

/* Empty an entry that has an arena.  Return whether this thread has done it.
   */
static int
hugepages_empty_entry(uintptr_t *entry, uintptr_t value)
{
    if (!hugepages_replace_entry(entry, value, 0)) {
        return 0;
    }
    (void)_Py_atomic_add_ssize(&hugepages_table.count, -1);
    return 1;
}

/* Return the entry of an arena and set *value to what it has, or NULL if it is
   not in the table. */
static uintptr_t *
hugepages_find_entry(const void *address, uintptr_t *value)
{
    uintptr_t *entry;
    hugepages_cursor cursor = {0};
    if (_Py_atomic_load_ssize(&hugepages_table.count) == 0) {
        return NULL;
    }
    while ((entry = hugepages_next_entry(&cursor)) != NULL) {
        *value = _Py_atomic_load_uintptr_relaxed(entry);
        if ((*value & ~HUGEPAGES_FLAGS) == (uintptr_t)address) {
            return entry;
        }
    }
    return NULL;
}
