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

/* pymalloc's arena allocator, in place of stock's (see
   PyObject_SetArenaAllocator()).  Of requests for ARENA_SIZE it chooses the
   pages; memory of any other size is plain.  Return memory that belongs to the
   caller, who gives it back with the size that it was asked with, or NULL if
   there is none.  Its content is not specified. */
extern void *_PyMem_HugePagesAlloc(void *ctx, size_t size);
extern void _PyMem_HugePagesFree(void *ctx, void *ptr, size_t size);

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

/* At the end of Py_FinalizeEx(): write the figures, and give arenas back that
   nobody uses.

   If PYTHON_PYMALLOC_HUGEPAGES_STATS names a file (and the environment is not
   ignored), the figures are appended to it, as one line of JSON with the
   process's number; if that fails, one line on stderr says so. */
extern void _PyMem_FiniHugePages(void);

/* Distinct errors that are counted for a kind of page.  There are not as many
   that a system has; others are counted together. */
#define PYMEM_HUGEPAGES_ERRORS 8

/* What has become of the requests for arenas on one kind of page.  All figures
   but those of errors are numbers of arenas. */
typedef struct {
    /* Mapped at the moment; the most that were at any moment; all that ever
       were mapped. */
    size_t now;
    size_t peak;
    size_t ever;
    /* How often the system has answered with which error: errno, or
       GetLastError() on Windows; 0 stands for any further error.  name is a
       static string, or NULL if the error has none here.  The first entry with
       a count of 0 is the end. */
    struct {
        int error;
        const char *name;
        size_t count;
    } refused[PYMEM_HUGEPAGES_ERRORS];
    /* NULL, or why such pages are not asked for: a static string. */
    const char *unusable;
} _PyMem_HugePagesTier;

/* What the arenas of this process sit on, those of all interpreters together.
   A forked child goes on counting from what its parent had counted. */
typedef struct {
    /* The value of the switch, by name. */
    const char *switch_value;
    _PyMem_HugePagesTier hugetlb;
    _PyMem_HugePagesTier thp;
    _PyMem_HugePagesTier plain;
    /* Arenas that nobody uses, kept for the next request, and how often one
       was.  They are counted in one of the kinds above, too.  It has no
       errors. */
    _PyMem_HugePagesTier retained;
} _PyMem_HugePagesStats;

/* Copy the figures.  It costs no system call. */
extern void _PyMem_GetHugePagesStats(_PyMem_HugePagesStats *stats);

/* Print the figures for people. */
extern void _PyMem_PrintHugePagesStats(FILE *out);

#endif  // PYMALLOC_USE_HUGEPAGES

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_HUGEPAGES_H
