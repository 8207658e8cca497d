/* Explicit huge pages and fork(): the contract of the OS layer.

   Included where the system takes explicit pages away from one of two
   processes that share them after a fork(), which is Linux.  fork.c decides,
   os_linux_fork.c has the system calls.  The rules of hugepages.h hold. */

#ifndef Py_HUGEPAGES_FORK_H
#define Py_HUGEPAGES_FORK_H

#include "hugepages.h"

/* Implemented by fork.c.  The OS layer calls them, once
   hugepages_os_watch_fork() was called, in the thread that forks: the first
   before each fork(), one of the others after it in either process, the
   parent's also if fork() has failed. */
static void hugepages_before_fork(void);
static void hugepages_after_fork_in_parent(void);
static void hugepages_after_fork_in_child(void);

/* Keep signals and cancellation from the calling thread, and let it have them
   again.  The two calls come in pairs, with the lock held, and may have a
   fork() between them. */
static void hugepages_os_block_signals(void);
static void hugepages_os_unblock_signals(void);

// --- talk between parent and child -----------------------------------------

/* A one-way line: ends[1] is the child's, which sends, ends[0] the parent's,
   which waits.  After the fork each process closes the other's end at once and
   its own when it is done. */
static hugepages_result hugepages_os_open_line(int ends[2], int *os_error);
static void hugepages_os_close_line(int end);

/* Wake the parent up. */
static void hugepages_os_send(int end);

typedef enum {
    HUGEPAGES_SENT,         // the child has sent
    HUGEPAGES_CLOSED,       // it has closed its end, or is gone
    HUGEPAGES_TIME_IS_UP,
} hugepages_event;

static hugepages_event hugepages_os_wait(int end, int milliseconds);

static void hugepages_os_sleep(int milliseconds);

/* Map size bytes of zeroed memory that a child shares.  Each process unmaps it
   with hugepages_os_unmap().  It must not be accessed before it was opened;
   until then it takes no memory, not even after mlockall(). */
static hugepages_result hugepages_os_map_shared(size_t size, void **address,
                                                int *os_error);

/* Make a part of such memory accessible to this process.  address and size
   are multiples of a base page. */
static hugepages_result hugepages_os_open_shared(void *address, size_t size,
                                                 int *os_error);

// --- in the child, while it has only one thread ----------------------------

/* Copy size bytes of explicit pages that are shared with the parent, and that
   the system may take away at any moment.

   Return HUGEPAGES_OK; HUGEPAGES_BUSY if the pages are gone or cannot be read
   safely; HUGEPAGES_NEVER if the hardware has lost them, in both processes.
   Unless it is HUGEPAGES_OK, the content of target is unspecified. */
static hugepages_result hugepages_os_rescue(void *target, const void *source,
                                            size_t size);

/* Put explicit pages of this process in the place of those at address, as
   hugepages_os_map_explicit() would map them.  The content is lost.  If it
   fails, then what is at address must not be accessed until
   something else was put there. */
static hugepages_result hugepages_os_remap_explicit(void *address, size_t size,
                                                    int *os_error);

/* Move a mapping with its content to an address, in the place of whatever is
   there.  Return HUGEPAGES_OK or HUGEPAGES_BUSY. */
static hugepages_result hugepages_os_move(void *from, void *to, size_t size,
                                          int *os_error);

/* Put zeroed plain memory at an address, in the place of whatever is there.
   Return HUGEPAGES_OK or HUGEPAGES_BUSY. */
static hugepages_result hugepages_os_remap_plain(void *address, size_t size,
                                                 int *os_error);

/* Print a line on stderr and end this process with status 1, at once and
   without a signal. */
static void hugepages_os_exit(const char *line);

#endif /* !Py_HUGEPAGES_FORK_H */
