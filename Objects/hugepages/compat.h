/* What a series of CPython has in another place, or not at all.

   Included by pymalloc.c, before the other files.  No other file of this
   folder asks for the version. */

#ifndef Py_HUGEPAGES_COMPAT_H
#define Py_HUGEPAGES_COMPAT_H

/* Before 3.13 there is no pyatomic.h.  GCC and Clang have what it does. */
#if PY_VERSION_HEX < 0x030d0000

#define HUGEPAGES_LOAD(p)       __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define HUGEPAGES_STORE(p, v)   __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define HUGEPAGES_ADD(p, v)     __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define HUGEPAGES_SWAP(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, \
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

#define _Py_atomic_load_int_relaxed         HUGEPAGES_LOAD
#define _Py_atomic_load_ptr_acquire         HUGEPAGES_LOAD
#define _Py_atomic_load_ssize               HUGEPAGES_LOAD
#define _Py_atomic_load_ssize_relaxed       HUGEPAGES_LOAD
#define _Py_atomic_load_uint32_relaxed      HUGEPAGES_LOAD
#define _Py_atomic_load_uintptr             HUGEPAGES_LOAD
#define _Py_atomic_load_uintptr_relaxed     HUGEPAGES_LOAD
#define _Py_atomic_store_int_relaxed        HUGEPAGES_STORE
#define _Py_atomic_store_uint32_relaxed     HUGEPAGES_STORE
#define _Py_atomic_store_uintptr            HUGEPAGES_STORE
#define _Py_atomic_add_ssize                HUGEPAGES_ADD
#define _Py_atomic_add_uint32               HUGEPAGES_ADD
#define _Py_atomic_compare_exchange_int     HUGEPAGES_SWAP
#define _Py_atomic_compare_exchange_ptr     HUGEPAGES_SWAP
#define _Py_atomic_compare_exchange_ssize   HUGEPAGES_SWAP
#define _Py_atomic_compare_exchange_uintptr HUGEPAGES_SWAP
#define _Py_atomic_or_uint32(p, v) \
    __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)

#endif  // PY_VERSION_HEX < 0x030d0000

#if PY_VERSION_HEX < 0x030c0000
#  define _Py_thread_local __thread
#endif

/* Functions of obmalloc.c.  It knows whether an interpreter has pools of its
   own or the main one's; before 3.12 all have the same. */
#ifdef POOL_ADDR
#  if PY_VERSION_HEX >= 0x030c0000
static struct _obmalloc_state *get_state(void);
static void insert_to_usedpool(struct _obmalloc_state *state, poolp pool);
#    define hugepages_insert_to_usedpool(pool) \
         insert_to_usedpool(get_state(), (pool))
#  else
static void insert_to_usedpool(poolp pool);
#    define hugepages_insert_to_usedpool insert_to_usedpool
#  endif
#endif

/* The arenas of the interpreter that asks; NULL if none does. */
#if PY_VERSION_HEX >= 0x030d0000
static const struct _obmalloc_mgmt *
hugepages_current_arenas(void)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL || tstate->interp->obmalloc == NULL) {
        return NULL;
    }
    return &tstate->interp->obmalloc->mgmt;
}
#elif PY_VERSION_HEX >= 0x030c0000
#  define hugepages_current_arenas() \
    (_PyThreadState_GET() == NULL ? NULL : &get_state()->mgmt)
#else
/* Before 3.12 all interpreters have them together, in variables of
   obmalloc.c. */
struct _obmalloc_mgmt {
    const struct arena_object *arenas;
    unsigned int maxarenas;
    size_t narenas_currently_allocated;
};
#  define hugepages_current_arenas() \
    (&(const struct _obmalloc_mgmt){arenas, maxarenas, \
                                    narenas_currently_allocated})
#endif

/* Since 3.15 /proc/PID/maps says what pymalloc has mapped, in debug builds and
   in development mode. */
#if PY_VERSION_HEX >= 0x030f0000
#  include "pycore_mmap.h"        // _PyAnnotateMemoryMap()
#else
#  define _PyAnnotateMemoryMap(address, size, name) ((void)0)
#endif

#endif /* !Py_HUGEPAGES_COMPAT_H */
