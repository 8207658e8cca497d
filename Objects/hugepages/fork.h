/* Explicit huge pages and fork(): the contract of the OS layer.

   Included where the system takes explicit pages away from one of two
   processes that share them after a fork(), which is Linux.  fork.c decides,
   os_linux_fork.c has the system calls.  The rules of hugepages.h hold. */

#ifndef Py_HUGEPAGES_FORK_H
#define Py_HUGEPAGES_FORK_H

#include "hugepages.h"

/* Implemented by fork.c.  The OS layer calls them at each fork(), in the
   thread that forks: the first before it, after the handlers of everybody
   else; one of the others after it in either process, before the handlers of
   everybody else, the parent's also if fork() has failed. */
static void hugepages_before_fork(void);
static void hugepages_after_fork_in_parent(void);
static void hugepages_after_fork_in_child(void);

/* Whether this process has no other thread.  A system that does not tell says
   no. */
static int hugepages_os_is_single_threaded(void);

/* Whether the system has switched transparent huge pages off.  A system that
   does not tell says no. */
static int hugepages_os_is_thp_off(void);

/* Keep signals from the calling thread, and let it have them again.  The two
   calls come in pairs, and may have a fork() between them. */
static void hugepages_os_block_signals(void);
static void hugepages_os_unblock_signals(void);

/* Take back the advice to put memory on transparent huge pages; what is on
   them stays there.  Any number of neighbouring mappings at once. */
static void hugepages_os_unadvise(void *address, size_t size);

/* Move a mapping with its content to an address, in the place of whatever is
   there.  Return HUGEPAGES_OK, or HUGEPAGES_BUSY; then the mapping is where it
   was, but what is at the address must not be accessed until something else
   was put there. */
static hugepages_result hugepages_os_move(void *from, void *to, size_t size);

/* Put zeroed plain memory at an address, in the place of whatever is there.
   Return HUGEPAGES_OK or HUGEPAGES_BUSY. */
static hugepages_result hugepages_os_remap_plain(void *address, size_t size);

/* Print a line on stderr and end this process with status 1, at once and
   without a signal. */
static void hugepages_os_exit(const char *line);

#endif /* !Py_HUGEPAGES_FORK_H */
