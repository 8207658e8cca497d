#ifndef Py_CPYTHON_PYMALLOC_HUGEPAGES_H
#define Py_CPYTHON_PYMALLOC_HUGEPAGES_H

/* Values of PyConfig.pymalloc_hugepages: the kinds of huge pages that
   pymalloc's arenas may use.  A set: ON is HUGETLB and THP together. */
typedef enum {
    /* Not set: PyConfig_Read() takes the value from the command line, then
       from the environment, then PYMALLOC_HUGEPAGES_ON. */
    PYMALLOC_HUGEPAGES_UNSET = -1,

    /* Plain pages only. */
    PYMALLOC_HUGEPAGES_OFF = 0,

    /* Explicit huge pages: mmap(MAP_HUGETLB) on Linux,
       VirtualAlloc(MEM_LARGE_PAGES) on Windows. */
    PYMALLOC_HUGEPAGES_HUGETLB = 1,

    /* Transparent huge pages: madvise(MADV_HUGEPAGE) on Linux. */
    PYMALLOC_HUGEPAGES_THP = 2,

    PYMALLOC_HUGEPAGES_ON = PYMALLOC_HUGEPAGES_HUGETLB | PYMALLOC_HUGEPAGES_THP
} PyMalloc_HugePages;

#endif  // !Py_CPYTHON_PYMALLOC_HUGEPAGES_H
