#ifndef Py_INTERNAL_HUGEPAGES_H
#define Py_INTERNAL_HUGEPAGES_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#ifdef PYMALLOC_USE_HUGEPAGES

#if SIZEOF_VOID_P < 8
#  error "PYMALLOC_USE_HUGEPAGES needs a 64-bit target"
#endif
#ifdef Py_GIL_DISABLED
#  error "PYMALLOC_USE_HUGEPAGES cannot be used with Py_GIL_DISABLED"
#endif

/* Say which kinds of huge pages pymalloc's arenas may use from now on.

   tiers is a PyMalloc_HugePages value: a set of the bits
   PYMALLOC_HUGEPAGES_HUGETLB and PYMALLOC_HUGEPAGES_THP.  Arenas that exist
   stay as they are.  Before the first call every arena is plain memory.

   Called with the value of PyConfig.pymalloc_hugepages before the first
   interpreter is created, so that the first arena of a process already obeys
   it, and again if Python is initialized again.  The first call that asks for
   huge pages looks at the system (on Windows it enables
   SeLockMemoryPrivilege).  Must not run at the same time as itself. */
extern void _PyMem_SetHugePages(int tiers);

#endif  // PYMALLOC_USE_HUGEPAGES

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_HUGEPAGES_H
