/* Linux as it is: what the kernel says of memory, child processes, and the
   settings of the system.

   As root the tests set up what they need (the pool of huge pages, a cgroup).
   restore_machine() restores what was found, after each test; so does a signal
   that ends the program. */

#ifndef Py_TESTHUGEPAGES_MACHINE_H
#define Py_TESTHUGEPAGES_MACHINE_H

#include "check.h"

#include <sys/resource.h>         // rlim_t
#include <sys/types.h>            // pid_t

// --- what the kernel says ---------------------------------------------------

/* Read a file whole, but for what buffer does not hold, and end it with a NUL.
   Return 0, or -1 with errno set.  No memory is allocated, so that reading
   /proc/self does not change what is read. */
extern int read_file(const char *path, char *buffer, size_t size);

/* Return 0, or -1 with errno set. */
extern int write_file(const char *path, const char *text);

/* Read a number from a file; -1 if it cannot be read. */
extern long read_number(const char *path);

extern int write_number(const char *path, long number);

/* What /proc/self/smaps says of the mapping around an address. */
typedef struct {
    uintptr_t start;
    uintptr_t end;
    long kernel_page_kib;
    long private_hugetlb_kib;
    long anon_huge_kib;
    /* MADV_HUGEPAGE, MADV_NOHUGEPAGE */
    int advised_huge;
    int unadvised;
} smaps_entry;

/* All zeros if nothing is mapped there. */
extern smaps_entry read_smaps(const void *address);

/* The same, and check that something is. */
extern smaps_entry need_smaps(const void *address);

extern int is_unmapped(const void *address);

/* Return whether the page at an address is advised. */
extern int is_advised(const void *address);

/* Check that there are hugetlb pages, all in memory, and nothing else. */
extern void check_hugetlb(const void *address);

/* Check that an arena is aligned, advised, and whole. */
extern void check_thp(const void *address);

/* Write a number of its own to each word, and check that they are there. */
extern void write_numbers(void *address, size_t size);
extern void check_numbers(const void *address, size_t size);

/* Read a number of KiB from /proc/self/status; -1 if it is not there. */
extern long read_status(const char *name);

/* The address space of this process: number of mappings, and KiB. */
typedef struct {
    long mappings;
    long kib;
} address_space;

extern address_space read_address_space(void);

extern void check_no_leak(address_space before);

/* Number of open files. */
extern int count_files(void);

/* Use up the mappings that the process may have.  Return the memory that does
   so, whose size is *size, or NULL. */
extern void *use_up_mappings(size_t *size);

// --- children and signals ---------------------------------------------------

/* Run what follows in a child process, and take its failures over.  A signal
   is a failure.  The child may leave it only at its end or by REQUIRE(). */
#define IN_CHILD \
    for (int in_child_ = begin_child(); in_child_; \
         test_end_child(), in_child_ = 0)

/* Return 1 in the child, and in the parent 0 when the child has ended. */
extern int begin_child(void);

extern void run_in_child(void (*function)(void));

/* A test all of which is run in a child. */
#define CHILD_TEST(name) \
    static void run_ ## name(void); \
    TEST(name) \
    { \
        run_in_child(run_ ## name); \
    } \
    static void \
    run_ ## name(void)

/* Wait for a child and return its status, as waitpid() does; -1 if that cannot
   be. */
extern int wait_for(pid_t child);

/* Set a limit of this process, which is ended or fails if it cannot, and
   return what it was.  As root, it may be more than the hard limit. */
extern rlim_t set_limit(int resource, rlim_t limit);

/* Have a function handle a signal, restarting system calls, and tell what did
   before if saved is not NULL. */
struct sigaction;
extern void set_handler(int signal_number, void (*handler)(int),
                        struct sigaction *saved);

// --- the pool of huge pages -------------------------------------------------

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* Huge pages that the next mmap() can have. */
extern long pool_available(void);

/* Make exactly this many huge pages available.  Return 0, or -1 after the test
   was skipped or has failed. */
extern int need_pool(long pages);

/* The same, and leave the test if that cannot be. */
#define NEED_POOL(pages) \
    do { \
        if (need_pool(pages) < 0) { \
            return; \
        } \
    } while (0)

// --- a cgroup ---------------------------------------------------------------

/* Make a cgroup of version 1 or 2 that has this controller, and write the
   limit to that file of it.  Return 0, or -1 after the test was skipped. */
extern int make_cgroup(int version, const char *controller, const char *file,
                       long limit);

/* Put the calling process into it.  Return 0, or -1 with errno set. */
extern int join_cgroup(void);

/* Read a number from one of its files; -1 if it cannot be read. */
extern long read_cgroup(const char *file);

/* Restore what a test has changed; no process may be in its cgroup. */
extern void restore_machine(void);

#endif /* !Py_TESTHUGEPAGES_MACHINE_H */
