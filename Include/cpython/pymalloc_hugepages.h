#ifndef Py_CPYTHON_PYMALLOC_HUGEPAGES_H
#define Py_CPYTHON_PYMALLOC_HUGEPAGES_H

/* Values of PyConfig.pymalloc_hugepages: the kinds of huge pages that
   pymalloc's arenas may use.  OFF and ON are what a boolean would be. */
typedef enum {
    /* Not set: PyConfig_Read() takes the value from the command line, then
       from the environment, then PYMALLOC_HUGEPAGES_ON. */
    PYMALLOC_HUGEPAGES_UNSET = -1,

    /* Plain pages only. */
    PYMALLOC_HUGEPAGES_OFF = 0,

    /* Both kinds, explicit huge pages first. */
    PYMALLOC_HUGEPAGES_ON = 1,

    /* Transparent huge pages: madvise(MADV_HUGEPAGE) on Linux. */
    PYMALLOC_HUGEPAGES_THP = 2,

    /* Explicit huge pages: mmap(MAP_HUGETLB) on Linux,
       VirtualAlloc(MEM_LARGE_PAGES) on Windows. */
    PYMALLOC_HUGEPAGES_HUGETLB = 3,
} PyMalloc_HugePages;

#endif  // !Py_CPYTHON_PYMALLOC_HUGEPAGES_H
