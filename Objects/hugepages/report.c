/* Telling what was counted: to people, and to tools that read it when the
   process has ended. */

#ifdef MS_WINDOWS
#  include <process.h>            // _getpid()
#  define getpid _getpid
#else
#  include <unistd.h>             // getpid()
#endif

static void
hugepages_print_figures(FILE *out, const char *name,
                        const _PyMem_HugePagesTier *tier)
{
    fprintf(out, "%-24s %12zu %12zu %12zu\n",
            name, tier->now, tier->peak, tier->ever);
}

static void
hugepages_print_error(FILE *out, int error, const char *name)
{
    if (name != NULL) {
        fputs(name, out);
    }
    else if (error != 0) {
        fprintf(out, "error %d", error);
    }
    else {
        fputs("other errors", out);
    }
}

static void
hugepages_print_refusals(FILE *out, const char *name,
                         const _PyMem_HugePagesTier *tier)
{
    for (size_t i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        if (tier->refused[i].count == 0) {
            break;
        }
        fprintf(out, "%s refused with ", name);
        hugepages_print_error(out, tier->refused[i].error,
                              tier->refused[i].name);
        fprintf(out, ": %zu\n", tier->refused[i].count);
    }
    if (tier->unusable != NULL) {
        fprintf(out, "%s not used: %s\n", name, tier->unusable);
    }
}

void
_PyMem_PrintHugePagesStats(FILE *out)
{
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    fprintf(out, "\n%-24s %12s %12s %12s\n",
            "# arenas of the process", "now", "peak", "ever");
    hugepages_print_figures(out, "hugetlb", &stats.hugetlb);
    hugepages_print_figures(out, "THP-advised", &stats.thp);
    hugepages_print_figures(out, "plain", &stats.plain);
    hugepages_print_figures(out, "retained of these", &stats.retained);
    fprintf(out, "pymalloc_hugepages=%s\n", stats.switch_value);
    hugepages_print_refusals(out, "hugetlb", &stats.hugetlb);
    hugepages_print_refusals(out, "THP", &stats.thp);
    hugepages_print_refusals(out, "plain", &stats.plain);
}

static void
hugepages_write_tier(FILE *out, const char *name,
                     const _PyMem_HugePagesTier *tier)
{
    fprintf(out, ", \"%s\": {\"now\": %zu, \"peak\": %zu, \"ever\": %zu, "
                 "\"refused\": {",
            name, tier->now, tier->peak, tier->ever);
    for (size_t i = 0; i < PYMEM_HUGEPAGES_ERRORS; i++) {
        if (tier->refused[i].count == 0) {
            break;
        }
        fputs(i > 0 ? ", \"" : "\"", out);
        hugepages_print_error(out, tier->refused[i].error,
                              tier->refused[i].name);
        fprintf(out, "\": %zu", tier->refused[i].count);
    }
    if (tier->unusable != NULL) {
        fprintf(out, "}, \"unusable\": \"%s\"}", tier->unusable);
    }
    else {
        fputs("}, \"unusable\": null}", out);
    }
}

/* Append the figures to the file that the environment names, if it does. */
static void
hugepages_write_stats(void)
{
    const char *name = Py_GETENV("PYTHON_PYMALLOC_HUGEPAGES_STATS");
    if (name == NULL || name[0] == '\0') {
        return;
    }
    /* The line is shorter than a stream's buffer: it is written, and thus
       appended, as one, whatever other processes write. */
    FILE *out = fopen(name, "a");
    int is_written = 0;
    if (out != NULL) {
        _PyMem_HugePagesStats stats;
        _PyMem_GetHugePagesStats(&stats);
        fprintf(out, "{\"pid\": %ld, \"option\": true, \"switch\": \"%s\", "
                     "\"arena_size\": %zu",
                (long)getpid(), stats.switch_value, (size_t)ARENA_SIZE);
        hugepages_write_tier(out, "hugetlb", &stats.hugetlb);
        hugepages_write_tier(out, "thp", &stats.thp);
        hugepages_write_tier(out, "plain", &stats.plain);
        hugepages_write_tier(out, "retained", &stats.retained);
        fputs("}\n", out);
        is_written = !ferror(out);
        is_written = fclose(out) == 0 && is_written;
    }
    if (!is_written) {
        fprintf(stderr, "PYTHON_PYMALLOC_HUGEPAGES_STATS: cannot write %s: "
                        "%s\n", name, strerror(errno));
    }
}
