/* Telling what was counted: to people, and to tools that read it when the
   process has ended. */

#ifdef MS_WINDOWS
#  include <process.h>            // _getpid()
#  define getpid _getpid
#else
#  include <unistd.h>             // getpid()
#endif

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

void
_PyMem_PrintHugePagesStats(FILE *out)
{
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    fprintf(out, "\n%-24s %12s %12s %12s\n",
            "# arenas of the process", "now", "peak", "ever");
    for (size_t i = 0; i < PYMEM_HUGEPAGES_TIERS; i++) {
        const _PyMem_HugePagesTier *tier = &stats.tiers[i];
        fprintf(out, "%-24s %12zu %12zu %12zu\n",
                tier->title, tier->now, tier->peak, tier->ever);
    }
    fprintf(out, "pymalloc_hugepages=%s\n", stats.switch_value);
    for (size_t i = 0; i < PYMEM_HUGEPAGES_TIERS; i++) {
        const _PyMem_HugePagesTier *tier = &stats.tiers[i];
        for (size_t j = 0; j < tier->errors; j++) {
            fprintf(out, "%s refused with ", tier->name);
            hugepages_print_error(out, tier->refused[j].error,
                                  tier->refused[j].name);
            fprintf(out, ": %zu\n", tier->refused[j].count);
        }
        if (tier->unusable != NULL) {
            fprintf(out, "%s not used: %s\n", tier->name, tier->unusable);
        }
    }
}

static void
hugepages_write_tier(FILE *out, const _PyMem_HugePagesTier *tier)
{
    fprintf(out, ", \"%s\": {\"now\": %zu, \"peak\": %zu, \"ever\": %zu, "
                 "\"refused\": {",
            tier->name, tier->now, tier->peak, tier->ever);
    for (size_t i = 0; i < tier->errors; i++) {
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
                (long)getpid(), stats.switch_value, stats.arena_size);
        for (size_t i = 0; i < PYMEM_HUGEPAGES_TIERS; i++) {
            hugepages_write_tier(out, &stats.tiers[i]);
        }
        fputs("}\n", out);
        is_written = !ferror(out);
        is_written = fclose(out) == 0 && is_written;
    }
    if (!is_written) {
        fprintf(stderr, "PYTHON_PYMALLOC_HUGEPAGES_STATS: cannot write %s: "
                        "%s\n", name, strerror(errno));
    }
}
