/* What the tests on a real kernel share: what the kernel says of memory, child
   processes, and the settings of the system, which are restored.

   As root the tests set up what they need (the huge-page pool, a cgroup) and
   restore what they found, also when they fail. */

#ifndef Py_TESTHUGEPAGES_SYSTEM_H
#define Py_TESTHUGEPAGES_SYSTEM_H

#include "_testhugepages.h"

/* A value of errno that no call sets: it must still be there after a call that
   is silent. */
#define UNTOUCHED 4711

// --- what the kernel says --------------------------------------------------

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

/* Return 0 and fill the entry, or -1 if nothing is mapped there. */
extern int read_smaps(const void *address, smaps_entry *entry);

extern int is_unmapped(const void *address);

/* Return whether the page at an address is advised. */
extern int is_advised(const void *address);

/* Check that there are hugetlb pages, all in memory, and nothing else. */
extern void check_hugetlb(const void *address);

/* Check that an arena is aligned, advised, and whole. */
extern void check_thp(const void *address);

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

/* Run function in a child process and take its failures over.  A signal is a
   failure. */
extern void run_in_child(void (*function)(void));

// --- the pool of huge pages ------------------------------------------------

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* Huge pages that the next mmap() can have. */
extern long pool_available(void);

/* Make exactly this many huge pages available.  Return 0, or -1 after the test
   was skipped or has failed.  restore_pool() must be called in both cases. */
extern int need_pool(long pages);

extern void restore_pool(void);

// --- a cgroup --------------------------------------------------------------

/* Make a cgroup of version 1 or 2 that has this controller, and write the
   limit to that file of it.  Return 0, or -1 after the test was skipped.
   remove_cgroup() must be called in both cases, when no process is in it. */
extern int make_cgroup(int version, const char *controller, const char *file,
                       long limit);

/* Put the calling process into it.  Return 0, or -1 with errno set. */
extern int join_cgroup(void);

/* Read a number from one of its files; -1 if it cannot be read. */
extern long read_cgroup(const char *file);

extern void remove_cgroup(void);

#endif /* !Py_TESTHUGEPAGES_SYSTEM_H */
