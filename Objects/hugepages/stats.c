/* What arenas sit on, and how often a kind of page was refused.

   Only arenas are counted, that is, requests of exactly ARENA_SIZE.  "now"
   counts mappings, whether an arena uses them or they are kept, so that it
   agrees with what the system tells of this process; "retained" says how many
   of them are kept.

   There is no lock (see table.c): each figure is right by itself, and while
   interpreters with a GIL of their own allocate, two of them may be of
   different moments. */

#include "hugepages.h"

/* Numbers of arenas, and what the system has answered.  Zeros in both are
   figures as well, so a static object needs no initialization. */
typedef struct {
    Py_ssize_t now;
    Py_ssize_t peak;
    Py_ssize_t ever;
    struct {
        int error;
        Py_ssize_t count;
    } refused[PYMEM_HUGEPAGES_ERRORS];
} hugepages_counts;

static struct {
    hugepages_counts kinds[HUGEPAGES_KINDS];
    hugepages_counts retained;
} hugepages_stats;

static void
hugepages_count_one_more(hugepages_counts *counts)
{
    (void)_Py_atomic_add_ssize(&counts->ever, 1);
    Py_ssize_t now = _Py_atomic_add_ssize(&counts->now, 1) + 1;
    Py_ssize_t peak = _Py_atomic_load_ssize_relaxed(&counts->peak);
    while (now > peak
           && !_Py_atomic_compare_exchange_ssize(&counts->peak, &peak, now))
    {
    }
}

static void
hugepages_count_one_less(hugepages_counts *counts)
{
    (void)_Py_atomic_add_ssize(&counts->now, -1);
}

static void
hugepages_count_mapped(hugepages_kind kind)
{
    hugepages_count_one_more(&hugepages_stats.kinds[kind]);
}

static void
hugepages_count_unmapped(hugepages_kind kind)
{
    hugepages_count_one_less(&hugepages_stats.kinds[kind]);
}

static void
hugepages_count_refused(hugepages_kind kind, int os_error)
{
    hugepages_counts *counts = &hugepages_stats.kinds[kind];
    size_t last = PYMEM_HUGEPAGES_ERRORS - 1;
    size_t i = 0;
    while (i < last) {
        /* The first one to come with an error gets the entry for it. */
        int error = 0;
        if (_Py_atomic_compare_exchange_int(&counts->refused[i].error, &error,
                                            os_error)
            || error == os_error)
        {
            break;
        }
        i++;
    }
    /* The last entry is for all that have none of their own. */
    (void)_Py_atomic_add_ssize(&counts->refused[i].count, 1);
}

static void
hugepages_copy_counts(hugepages_counts *counts, _PyMem_HugePagesTier *copy)
{
    memset(copy, 0, sizeof(*copy));
    copy->now = (size_t)_Py_atomic_load_ssize_relaxed(&counts->now);
    copy->peak = (size_t)_Py_atomic_load_ssize_relaxed(&counts->peak);
    copy->ever = (size_t)_Py_atomic_load_ssize_relaxed(&counts->ever);
    for (size_t i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        Py_ssize_t count =
            _Py_atomic_load_ssize_relaxed(&counts->refused[i].count);
        if (count > 0) {
            int error = _Py_atomic_load_int_relaxed(&counts->refused[i].error);
            copy->refused[copy->errors].error = error;
            copy->refused[copy->errors].name = hugepages_os_error_name(error);
            copy->refused[copy->errors].count = (size_t)count;
            copy->errors++;
        }
    }
}
