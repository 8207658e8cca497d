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

   value is a PyMalloc_HugePages, but not PYMALLOC_HUGEPAGES_UNSET.  Arenas
   that exist stay as they are.  Before the first call every arena is plain
   memory.

   Called with PyConfig.pymalloc_hugepages before the first interpreter is
   created, so that the first arena of a process already obeys it, and again if
   Python is initialized again.  The first call that asks for huge pages looks
   at the system (on Windows it enables SeLockMemoryPrivilege).  Must not run
   at the same time as itself. */
extern void _PyMem_SetHugePages(int value);

/* At the end of Py_FinalizeEx(): write the figures, and give arenas back that
   nobody uses.

   If PYTHON_PYMALLOC_HUGEPAGES_STATS names a file (and the environment is not
   ignored), the figures are appended to it, as one line of JSON with the
   process's number; if that fails, one line on stderr says so. */
extern void _PyMem_FiniHugePages(void);

/* Distinct errors that are counted for a tier.  Few systems have as many;
   further ones are counted together. */
#define PYMEM_HUGEPAGES_ERRORS 8

/* What has become of the requests for arenas on one kind of page.  Strings are
   static. */
typedef struct {
    /* As programs and as people read it: "thp", "THP-advised". */
    const char *name;
    const char *title;
    /* Numbers of arenas: mapped at the moment, the most that were at any
       moment, and all that ever were mapped. */
    size_t now;
    size_t peak;
    size_t ever;
    /* How often the system has answered with which error: errno, or
       GetLastError() on Windows; 0 stands for any further error.  name is NULL
       if the error has none here. */
    size_t errors;
    struct {
        int error;
        const char *name;
        size_t count;
    } refused[PYMEM_HUGEPAGES_ERRORS];
    /* NULL, or why such pages are not asked for. */
    const char *unusable;
} _PyMem_HugePagesTier;

/* "hugetlb", "thp" and "plain", best first; and "retained": arenas that nobody
   uses, kept for the next request, and how often one was.  These are counted
   in one of the others, too, and have no errors. */
#define PYMEM_HUGEPAGES_TIERS 4

/* What the arenas of this process sit on, those of all interpreters together.
   A forked child goes on counting from what its parent had counted. */
typedef struct {
    /* The value of the switch, by name. */
    const char *switch_value;
    /* In bytes. */
    size_t arena_size;
    _PyMem_HugePagesTier tiers[PYMEM_HUGEPAGES_TIERS];
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
