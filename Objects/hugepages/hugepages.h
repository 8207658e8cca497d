/* Huge pages under pymalloc's arenas: the contract of the OS layer.

   Layers, from the top; calls go down only:

       pymalloc.c         what pymalloc calls: knows interpreters
       free.c             free() of most blocks
       report.c           tells what stats.c has counted
       fork.c             policy: what a process does with its arenas before a
                          fork()
       arena.c            policy: taking arenas, giving them back, keeping
                          some
       tiers.c            policy: which kinds of pages this process asks for,
                          in which order
       table.c            which arenas there are on huge pages
       stats.c            counts arenas and refusals
       os_linux.c         mechanism, one file per system: the system calls;
       os_windows.c       no decision
       os_other.c

   pymalloc.c includes all but the OS files that do not fit the target, and is
   itself included by obmalloc.c, so the whole folder is one translation unit
   with no exported symbol but those of pycore_hugepages.h.  The C tests
   (Programs/_testhugepages/, in the project's own tree) put a fake system in
   place of the OS file.

   Words:

       base page          the system's smallest page: 4 KiB on x86-64
       explicit pages     huge pages that are asked for by size and granted or
                          refused at once: hugetlb on Linux, large pages on
                          Windows
       THP                transparent huge pages: memory that the kernel is
                          advised to put on huge pages, when and if it can
       plain memory       what stock CPython asks for

   Rules for every function below:

   - Sizes are in bytes.  Alignment means that of the address.  ARENA_SIZE is
     pycore_obmalloc.h's, or that of the C tests.
   - A mapping is readable, writable, private, zeroed (but for the first eight
     bytes of explicit pages), and belongs to the caller, who returns it with
     hugepages_os_unmap() and the size it was asked with.
   - A call that fails has changed nothing: what it mapped on the way is
     unmapped again, and no signal is raised, now or at the first access.
   - Any thread may call at any time, and so may a handler of a signal.  No
     function takes a lock, needs a thread state, or calls back into Python.

   What a system needs whose explicit pages do not outlive a fork() by
   themselves is in fork.h. */

#ifndef Py_HUGEPAGES_H
#define Py_HUGEPAGES_H

#include <stddef.h>               // size_t

/* What an arena may sit on, best first. */
typedef enum {
    HUGEPAGES_EXPLICIT,
    HUGEPAGES_THP,
    HUGEPAGES_PLAIN,
} hugepages_kind;

#define HUGEPAGES_KINDS 3

/* What the system said to a request. */
typedef enum {
    HUGEPAGES_OK = 0,
    /* Not now; the same request may be granted later.  Examples: the pool is
       empty, a limit is reached, memory is short. */
    HUGEPAGES_BUSY,
    /* Not in the life of this process.  Examples: a page size that the kernel
       does not have, a privilege that the account does not hold. */
    HUGEPAGES_NEVER,
} hugepages_result;

/* What the system offers: filled once by hugepages_os_scan() and never changed
   after.  It tells facts; tiers.c draws the conclusions. */
typedef struct {
    /* Size of the explicit huge page that serves a request of ARENA_SIZE, or
       0 if the system has none.  Nonzero is no promise: whether the kernel
       was built with that size shows at the first request. */
    size_t explicit_page_size;
    /* Size of a transparent huge page (of the kind that one page table entry
       of the level above base pages maps), or 0 if the system has none. */
    size_t thp_size;
    /* Nonzero if this process was told to do without transparent huge pages
       (PR_SET_THP_DISABLE on Linux). */
    int thp_disabled;
} hugepages_system;

/* Find out what the system offers.  Never fails: what cannot be found out is
   filled with the value that lets the first request decide. */
static void hugepages_os_scan(hugepages_system *system);

/* Do what must be done once per process before explicit pages may be asked
   for: enable SeLockMemoryPrivilege in the process token on Windows; on Linux,
   see that fork() calls fork.c.  Called at most once, and only when explicit
   pages are wanted.

   Return HUGEPAGES_OK, or HUGEPAGES_NEVER with *os_error set, as below; then
   explicit pages must not be used. */
static hugepages_result hugepages_os_enable_explicit(int *os_error);

/* Map size bytes on explicit huge pages, aligned to one such page.  size must
   be ARENA_SIZE, and system->explicit_page_size must divide it.

   On success every page of the mapping is already in memory and charged to
   this process, so that no later access can be refused with a signal.

   Return HUGEPAGES_OK and set *address, or set *os_error to the system's error
   number (errno on POSIX, GetLastError() on Windows) and say how final that
   is.  What a function is not said to set is unspecified. */
static hugepages_result hugepages_os_map_explicit(size_t size, void **address,
                                                  int *os_error);

/* Map size bytes, aligned to ARENA_SIZE, and advise the kernel to put them on
   transparent huge pages.  size must be a multiple of ARENA_SIZE and of
   system->thp_size.  Pages are faulted in by their first access, as plain
   memory is.  Result as for hugepages_os_map_explicit(). */
static hugepages_result hugepages_os_map_thp(size_t size, void **address,
                                             int *os_error);

/* Map size bytes of plain memory, aligned to ARENA_SIZE, so that it may be
   advised later.  size is a multiple of ARENA_SIZE.  Result as for
   hugepages_os_map_explicit(); HUGEPAGES_NEVER where the system has no such
   way, and then the next function is not called. */
static hugepages_result hugepages_os_map_aligned(size_t size, void **address,
                                                 int *os_error);

/* Advise the kernel to put such a mapping on transparent huge pages from now
   on, whether it is in memory already or not.  Result as for
   hugepages_os_map_explicit(); if it fails, the mapping is as usable as
   before. */
static hugepages_result hugepages_os_advise(void *address, size_t size,
                                            int *os_error);

/* Map size bytes of plain memory, aligned to a base page, exactly as stock
   CPython does.  size is any value above 0.  Result as for
   hugepages_os_map_explicit(), but never HUGEPAGES_NEVER. */
static hugepages_result hugepages_os_map_plain(size_t size, void **address,
                                               int *os_error);

/* Give a mapping back.  address and size are those of one whole mapping made
   by one of the functions above.

   Return HUGEPAGES_OK, or HUGEPAGES_BUSY with *os_error set.  The system may
   refuse because it lacks memory itself (Linux: ENOMEM when the mapping would
   be cut out of a merged one and vm.max_map_count is reached); then the
   mapping is still there, readable and writable, and still belongs to the
   caller, but its content is lost, and its memory given back where the system
   can do that. */
static hugepages_result hugepages_os_unmap(void *address, size_t size,
                                           int *os_error);

/* Return the name that the system's documentation has for an error number
   ("ENOMEM"), a string that is never freed, or NULL if it is none that the
   functions above are known to meet. */
static const char *hugepages_os_error_name(int os_error);

#endif /* !Py_HUGEPAGES_H */
