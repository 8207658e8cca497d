/* Objects/hugepages for one file of tests, which gives itself a name with
   TEST_PREFIX: over the OS layer that the system has, or over a fake one that
   the file defines, if it defines TEST_FAKE_OS.

   Each file of tests is a translation unit with a copy of what it tests,
   because the functions under test are static. */

#ifndef Py_TESTHUGEPAGES_CORE_H
#define Py_TESTHUGEPAGES_CORE_H

#include "check.h"

#include <assert.h>               // assert()
#include <errno.h>                // errno

#define TEST_JOIN(prefix, name) prefix ## name
#define TEST_NAME(prefix, name) TEST_JOIN(prefix, name)
#define _PyMem_HugePagesAlloc TEST_NAME(TEST_PREFIX, _alloc)
#define _PyMem_HugePagesFree TEST_NAME(TEST_PREFIX, _free)
#define _PyMem_SetHugePages TEST_NAME(TEST_PREFIX, _set_huge_pages)
#define _PyMem_FiniHugePages TEST_NAME(TEST_PREFIX, _fini)
#define _PyMem_GetHugePagesStats TEST_NAME(TEST_PREFIX, _get_stats)
#define _PyMem_PrintHugePagesStats TEST_NAME(TEST_PREFIX, _print_stats)

// --- in place of obmalloc.c and the interpreter's state ---------------------

struct _obmalloc_mgmt {
    struct {
        uintptr_t address;
    } *arenas;
    unsigned int maxarenas;
    size_t narenas_currently_allocated;
};

typedef struct {
    struct {
        struct {
            struct _obmalloc_mgmt mgmt;
        } *obmalloc;
    } *interp;
} PyThreadState;

/* A pool's header, as far as free.c knows it. */
typedef uint8_t pymem_block;
typedef struct {
    struct {
        unsigned int count;
    } ref;
    pymem_block *freeblock;
} *poolp;
#define POOL_SIZE ((size_t)1 << 14)
#define POOL_ADDR(block) ((poolp)((uintptr_t)(block) & ~(POOL_SIZE - 1)))

#define Py_GETENV(name) getenv(name)

#include "pycore_hugepages.h"
#ifdef TEST_FAKE_OS
#  include "../../Objects/hugepages/stats.c"
#  include "../../Objects/hugepages/table.c"
#  include "../../Objects/hugepages/tiers.c"
#  include "../../Objects/hugepages/arena.c"
#  include "../../Objects/hugepages/fork.c"
#else
/* Of the thread that asks; NULL is one that Python does not know. */
static PyThreadState *test_tstate;
#  define _PyThreadState_GET() test_tstate

/* The pool that free.c has put among those in use, or NULL. */
static poolp test_inserted;

static struct _obmalloc_state *
get_state(void)
{
    return NULL;
}

static void
insert_to_usedpool(struct _obmalloc_state *Py_UNUSED(state), poolp pool)
{
    test_inserted = pool;
}

#  include "../../Objects/hugepages/pymalloc.c"

static void *
alloc_arena(void)
{
    return _PyMem_HugePagesAlloc(NULL, ARENA_SIZE);
}

static void
free_arena(void *arena)
{
    _PyMem_HugePagesFree(NULL, arena, ARENA_SIZE);
}
#endif

/* Of the figures, those of the arenas that are kept. */
#define RETAINED (PYMEM_HUGEPAGES_TIERS - 1)

static _PyMem_HugePagesStats
get_stats(void)
{
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    return stats;
}

/* Check how many arenas the figures say are on which pages. */
static void
check_figures(int explicit_count, int thp_count, int plain_count)
{
    _PyMem_HugePagesStats stats = get_stats();
    CHECK_EQUAL(stats.tiers[HUGEPAGES_EXPLICIT].now, explicit_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_THP].now, thp_count);
    CHECK_EQUAL(stats.tiers[HUGEPAGES_PLAIN].now, plain_count);
}

/* Forget everything: what is tested begins as in a new process. */
static void
reset_core(void)
{
    for (size_t i = 1; i < HUGEPAGES_PIECES; i++) {
        int os_error;
        void *piece = hugepages_table.pieces[i - 1];
        if (piece != NULL) {
            size_t size = (HUGEPAGES_FIRST_ENTRIES << i) * sizeof(uintptr_t);
            (void)hugepages_os_unmap(piece, size, &os_error);
        }
    }
    memset(hugepages_first_entries, 0, sizeof(hugepages_first_entries));
    memset(&hugepages_table, 0, sizeof(hugepages_table));
    memset(&hugepages_state, 0, sizeof(hugepages_state));
    memset(&hugepages_process, 0, sizeof(hugepages_process));
    memset(&hugepages_stats, 0, sizeof(hugepages_stats));
}

#endif /* !Py_TESTHUGEPAGES_CORE_H */
