/* A model of the TLBs that a processor has for data.

   usage: tlb_model GEOMETRY PAGES <TRACE

   TRACE is what valgrind's lackey writes with --trace-mem=yes.

   GEOMETRY is six numbers with commas: entries and ways of the first level for
   4 KiB pages, the same for 2 MiB pages, and the same of the second level,
   which both share.

   PAGES is the PID of the traced process: at each page walk the model asks the
   kernel which page is there at that moment.  Or it is FIRST-LAST, two
   addresses in hexadecimal, and just what is between them is on 2 MiB pages.

   A line "begin" in the trace sets all counts to 0, "end" stops counting; the
   TLBs go on in either case.  What a processor does beyond is not modelled:
   instructions, the kernel's own accesses, speculation, prefetch, and what the
   kernel invalidates.

   The counts are written as JSON.  */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BASE_SHIFT 12
#define HUGE_SHIFT 21

/* Lackey tells of up to four accesses before they happen.  The page of one is
   looked up when this much of the trace, a dozen lines and more, has come
   after it: by then it is there.  */
#define HELD_BACK 512

/* Between two reads.  Lackey makes one write for each line; were the model
   always waiting for it, each would wake the model up and take twice as long.
   30 KiB have come then.  There is room for more, as the model may have to
   wait for a processor; what is not read yet is how far the model is behind.
   */
#define PAUSE_NANOSECONDS 1000000
#define PIPE_SIZE (1 << 18)

static _Noreturn void
fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}


/* --- Which page is at an address ----------------------------------------- */

/* These are Linux 6.7's; headers may be older than the kernel.  */
struct page_region {
    uint64_t start, end, categories;
};

struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask;
    uint64_t return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_HUGE (1 << 6)

static char pagemap_path[64];           /* empty: the two below say it */
static uint64_t first_huge, last_huge;

static void
choose_pages(const char *pages)
{
    if (sscanf(pages, "%" SCNx64 "-%" SCNx64, &first_huge, &last_huge) != 2) {
        snprintf(pagemap_path, sizeof pagemap_path, "/proc/%s/pagemap", pages);
    }
}

/* The categories of the page at an address; 0 if there is none, or no process
   any more.  */
static uint64_t
scan(uint64_t address)
{
    /* Not before the trace begins: the file is that of one program, and
       valgrind becomes another one several times until then.  */
    static int pagemap = -1;
    if (pagemap < 0) {
        pagemap = open(pagemap_path, O_RDONLY);
        if (pagemap < 0 && errno != ENOENT && errno != ESRCH) {
            fail(pagemap_path, strerror(errno));
        }
    }
    uint64_t page = address >> BASE_SHIFT << BASE_SHIFT;
    struct page_region region = {0};
    struct pm_scan_arg arg = {
        .size = sizeof arg,
        .start = page,
        .end = page + (1 << BASE_SHIFT),
        .vec = (uintptr_t)&region,
        .vec_len = 1,
        .category_mask = PAGE_IS_PRESENT,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_HUGE,
    };
    if (pagemap >= 0 && ioctl(pagemap, PAGEMAP_SCAN, &arg) >= 0) {
        return region.categories;
    }
    if (pagemap >= 0 && errno != ESRCH) {
        fail("cannot look up pages",
             errno == ENOTTY ? "this needs Linux 6.7 or later"
                             : strerror(errno));
    }
    return 0;
}


/* --- The TLBs ------------------------------------------------------------ */

/* An entry is a page's number, with this bit for a 2 MiB page.  */
#define HUGE_BIT (UINT64_C(1) << 63)
#define EMPTY UINT64_MAX

/* The entries of a set stand together, that used last first.  */
struct tlb {
    unsigned sets, ways;
    uint64_t *entries;
};

static struct tlb first_base, first_huge_tlb, second;

static void
make_tlb(struct tlb *tlb, unsigned entries, unsigned ways)
{
    if (ways == 0 || entries == 0 || entries % ways != 0) {
        fail("bad geometry", "each set must have all its ways");
    }
    tlb->sets = entries / ways;
    tlb->ways = ways;
    tlb->entries = malloc(entries * sizeof *tlb->entries);
    if (tlb->entries == NULL) {
        fail("bad geometry", strerror(errno));
    }
    memset(tlb->entries, 0xff, entries * sizeof *tlb->entries);
}

static uint64_t *
set_of(struct tlb *tlb, uint64_t entry)
{
    return tlb->entries + (entry & ~HUGE_BIT) % tlb->sets * tlb->ways;
}

/* Put an entry before the first AGE ones of its set, in the place of what
   comes then.  */
static void
put_first(uint64_t *set, unsigned age, uint64_t entry)
{
    memmove(set + 1, set, age * sizeof *set);
    set[0] = entry;
}

static bool
has(struct tlb *tlb, uint64_t entry)
{
    uint64_t *set = set_of(tlb, entry);
    for (unsigned age = 0; age < tlb->ways; age++) {
        if (set[age] == entry) {
            put_first(set, age, entry);
            return true;
        }
    }
    return false;
}

/* Add an entry that is not there; the one not used for longest goes.  */
static void
add(struct tlb *tlb, uint64_t entry)
{
    put_first(set_of(tlb, entry), tlb->ways - 1, entry);
}


/* --- Counts -------------------------------------------------------------- */

enum outcome { HIT, MISS, WALK };       /* MISS: of the first level alone */

struct counts {
    uint64_t accesses, misses, walks;
};

static struct counts loads, stores;

/* Of all walks: those that found a 2 MiB page, and those that found none, as
   the page was gone when the model looked.  */
static uint64_t huge_walks, lost_walks;

static bool is_counting = true;

static bool
walk_finds_huge(uint64_t address)
{
    bool is_huge = first_huge <= address && address < last_huge;
    bool is_lost = false;
    if (pagemap_path[0]) {
        uint64_t categories = scan(address);
        is_huge = categories & PAGE_IS_HUGE;
        is_lost = categories == 0;
    }
    if (is_counting) {
        huge_walks += is_huge;
        lost_walks += is_lost;
    }
    return is_huge;
}

static enum outcome
translate(uint64_t address)
{
    uint64_t base = address >> BASE_SHIFT;
    uint64_t huge = address >> HUGE_SHIFT | HUGE_BIT;
    if (has(&first_base, base) || has(&first_huge_tlb, huge)) {
        return HIT;
    }
    if (has(&second, base)) {
        add(&first_base, base);
        return MISS;
    }
    if (has(&second, huge)) {
        add(&first_huge_tlb, huge);
        return MISS;
    }
    if (walk_finds_huge(address)) {
        add(&first_huge_tlb, huge);
        add(&second, huge);
    }
    else {
        add(&first_base, base);
        add(&second, base);
    }
    return WALK;
}

/* An access to two pages is one access, with the worse outcome of both.  */
static void
access_memory(struct counts *counts, uint64_t address, uint64_t size)
{
    enum outcome outcome = translate(address);
    uint64_t last = address + size - 1;
    if (address >> BASE_SHIFT != last >> BASE_SHIFT) {
        enum outcome other = translate(last);
        outcome = other > outcome ? other : outcome;
    }
    if (is_counting) {
        counts->accesses++;
        counts->misses += outcome != HIT;
        counts->walks += outcome == WALK;
    }
}


/* --- The trace ----------------------------------------------------------- */

/* One line, which ends with 0: "I  ADDRESS,SIZE" is an instruction, " L" a
   load, " S" a store, " M" one after the other, "==PID==" something that
   valgrind says.  */
static void
take_line(const char *line)
{
    if (line[0] == 'I' || line[0] == '=' || line[0] == '-') {
        return;
    }
    if (strcmp(line, "begin") == 0) {
        memset(&loads, 0, sizeof loads);
        memset(&stores, 0, sizeof stores);
        huge_walks = lost_walks = 0;
        return;
    }
    if (strcmp(line, "end") == 0) {
        is_counting = false;
        return;
    }
    char kind = line[0] == ' ' ? line[1] : 0;
    char *comma, *end;
    if ((kind != 'L' && kind != 'S' && kind != 'M') || line[2] != ' ') {
        fail("not a line of a trace", line);
    }
    uint64_t address = strtoull(line + 3, &comma, 16);
    uint64_t size = *comma == ',' ? strtoull(comma + 1, &end, 10) : 0;
    if (size == 0 || *end != 0) {
        fail("not a line of a trace", line);
    }
    if (kind != 'S') {
        access_memory(&loads, address, size);
    }
    if (kind != 'L') {
        access_memory(&stores, address, size);
    }
}

static void
read_trace(void)
{
    static char buffer[1 << 17];
    size_t have = 0;
    bool at_end = false;
    fcntl(0, F_SETPIPE_SZ, PIPE_SIZE);      /* a file has none */
    while (!at_end) {
        ssize_t got = read(0, buffer + have, sizeof buffer - have);
        if (got < 0) {
            fail("cannot read the trace", strerror(errno));
        }
        at_end = got == 0;
        have += (size_t)got;
        char *line = buffer, *newline;
        while ((newline = memchr(line, '\n', buffer + have - line)) != NULL
               && (at_end || newline + HELD_BACK < buffer + have)) {
            *newline = 0;
            take_line(line);
            line = newline + 1;
        }
        have -= line - buffer;
        memmove(buffer, line, have);
        if (have == sizeof buffer || (at_end && have > 0)) {
            fail("not a trace", "a line without an end");
        }
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NANOSECONDS}, NULL);
    }
}

static void
print_counts(const char *name, const struct counts *counts)
{
    printf("\"%s\": %" PRIu64 ", \"%s_misses\": %" PRIu64
           ", \"%s_walks\": %" PRIu64 ", ",
           name, counts->accesses, name, counts->misses, name, counts->walks);
}

int
main(int argc, char **argv)
{
    unsigned n[6];
    char more;
    if (argc != 3
        || sscanf(argv[1], "%u,%u,%u,%u,%u,%u%c", &n[0], &n[1], &n[2], &n[3],
                  &n[4], &n[5], &more) != 6) {
        fail("usage", "tlb_model GEOMETRY PAGES <TRACE");
    }
    make_tlb(&first_base, n[0], n[1]);
    make_tlb(&first_huge_tlb, n[2], n[3]);
    make_tlb(&second, n[4], n[5]);
    choose_pages(argv[2]);
    read_trace();
    printf("{");
    print_counts("load", &loads);
    print_counts("store", &stores);
    printf("\"huge_walks\": %" PRIu64 ", \"lost_walks\": %" PRIu64 "}\n",
           huge_walks, lost_walks);
    return 0;
}
