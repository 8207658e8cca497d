/* Huge pages under pymalloc's arenas: the contract of the OS layer.

   Layers, from the top:

       obmalloc.c         knows arenas; asks _PyMem_ArenaAlloc/_PyMem_ArenaFree;
                          sends what is too large for it to blocks.c, through
                          slow_paths.c
       report.c           tells what stats.c has counted
       arena.c            policy: which pages a request gets; no system call
       heap.c             medium blocks, above pymalloc's limit, in arenas
       large.c            larger blocks, each in a mapping of its own
       units.c            which of both an address belongs to
       blocks.c           malloc() and the like for obmalloc.c, over the three
       retain.c           policy: which memory is kept when it is freed
       stats.c            counts arenas, large blocks and refusals
       fork.c             policy: what a forked process does with its arenas
       os_linux.c         mechanism, one file per system: the system calls;
       os_windows.c       no decision
       os_other.c

   static.c includes all but the OS files that do not fit the target, and
   is itself included by obmalloc.c, as is slow_paths.c, so the whole room is
   one translation unit with no exported symbol but those of
   pycore_hugepages.h.  The C tests (Programs/_testhugepages.c) put a fake
   system in place of the OS file.

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
   - A mapping is readable, writable, private, zeroed, and belongs to the
     caller, who returns it with hugepages_os_unmap() and the size it was
     asked with.
   - A call that fails has changed nothing: what it mapped on the way is
     unmapped again, and no signal is raised, now or at the first access.
   - Any thread may call at any time.  No function needs a thread state, and
     none calls back into Python.

   What a system needs whose explicit pages do not outlive a fork() by
   themselves is in fork.h. */

#ifndef Py_HUGEPAGES_H
#define Py_HUGEPAGES_H

#include <stddef.h>               // size_t
#include <stdint.h>               // uint64_t

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
   after.  It tells facts; arena.c draws the conclusions. */
typedef struct {
    /* Size of a base page. */
    size_t base_page_size;
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

/* Take and give back the one lock of this process that guards the state of
   arena.c.  It does not nest. */
static void hugepages_os_lock(void);
static void hugepages_os_unlock(void);

/* Milliseconds of a clock that is never set back, from any moment on.  Cheap:
   tens of nanoseconds; it may be some milliseconds late.  With or without the
   lock. */
static uint64_t hugepages_os_now(void);

/* See to it that a fork() waits for the lock, that the child finds it free,
   and that explicit pages outlive the fork (see fork.h).  Called without the
   lock, before anything is mapped on explicit pages; a second call does
   nothing.

   Return HUGEPAGES_OK, or HUGEPAGES_NEVER with *os_error set; then explicit
   pages must not be used. */
static hugepages_result hugepages_os_watch_fork(int *os_error);

/* Do what must be done once per process before explicit pages may be asked
   for: enable SeLockMemoryPrivilege in the process token on Windows, nothing
   elsewhere.  Called at most once, and only when explicit pages are wanted.
   Return HUGEPAGES_OK or HUGEPAGES_NEVER; *os_error is as below. */
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

/* Map size bytes, aligned to size, and advise the kernel to put them on
   transparent huge pages.  size must be a power of two and a multiple of
   system->thp_size.  Pages are faulted in by their first access, as plain
   memory is.  Result as for hugepages_os_map_explicit(). */
static hugepages_result hugepages_os_map_thp(size_t size, void **address,
                                             int *os_error);

/* Map size bytes of plain memory, aligned to alignment, so that it may be
   advised later.  size is a multiple of a base page; alignment is a power of
   two and a multiple of a base page.  Result as for
   hugepages_os_map_explicit(); HUGEPAGES_NEVER where the system has no such
   way, and then the next two functions do not work either. */
static hugepages_result hugepages_os_map_aligned(size_t size,
                                                 size_t alignment,
                                                 void **address,
                                                 int *os_error);

/* Advise the kernel to put a part of such a mapping on transparent huge pages
   from now on, whether it is in memory already or not.  address and size are
   multiples of system->thp_size.  Result as for hugepages_os_map_explicit();
   if it fails, the mapping is as usable as before. */
static hugepages_result hugepages_os_advise(void *address, size_t size,
                                            int *os_error);

/* Fault in a part of a mapping, which need not be done: if the system cannot
   do it at once, then the program does it page by page.  address and size are
   multiples of a base page. */
static void hugepages_os_fill(void *address, size_t size);

/* Find out how much of a mapping is in memory, that is, was ever touched, and
   set *resident, in bytes.  HUGEPAGES_NEVER if the system does not tell; then
   *resident is as it was. */
static hugepages_result hugepages_os_resident(const void *address, size_t size,
                                              size_t *resident);

/* Give such a mapping another size, of which the same is true as of the first
   one, and set *new_address to where it is then, which may be elsewhere.  The
   content is kept as far as both sizes go; what is added is zeroed.
   HUGEPAGES_BUSY if it cannot be; then it is unchanged.

   If it grows, all of it must have been advised, or none.  Where a part was
   advised before the rest, the rest must have been written to before that:
   Linux makes two mappings of it for a while, and one again if they share
   their bookkeeping (anon_vma), which a mapping gets with its first page and
   has in common with those that it is divided into later. */
static hugepages_result hugepages_os_resize(void *address, size_t old_size,
                                            size_t new_size, size_t alignment,
                                            void **new_address,
                                            int *os_error);

/* Map size bytes of plain memory, aligned to a base page, exactly as stock
   CPython does.  size is any value above 0.  Result as for
   hugepages_os_map_explicit(), but never HUGEPAGES_NEVER. */
static hugepages_result hugepages_os_map_plain(size_t size, void **address,
                                               int *os_error);

/* Give a mapping back.  address and size are those of one whole mapping made
   by one of the functions above.

   Return HUGEPAGES_OK, or HUGEPAGES_BUSY with *os_error set.  The system may
   refuse for want of its own memory (Linux: ENOMEM when the mapping would have
   to be cut out of a merged one and vm.max_map_count is reached); then the
   mapping is still there, whole, readable and writable, and still belongs to
   the caller. */
static hugepages_result hugepages_os_unmap(void *address, size_t size,
                                           int *os_error);

/* Return the name that the system's documentation has for an error number
   ("ENOMEM"), a string that is never freed, or NULL if it is none that the
   functions above are known to meet. */
static const char *hugepages_os_error_name(int os_error);

#endif /* !Py_HUGEPAGES_H */
