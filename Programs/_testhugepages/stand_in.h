/* In place of Python.h: what lets the sources of Objects/hugepages compile
   without libpython.  The first include of each file. */

#ifndef Py_TESTHUGEPAGES_STAND_IN_H
#define Py_TESTHUGEPAGES_STAND_IN_H

#ifndef _WIN32
#  define _GNU_SOURCE 1
#endif
#include <stddef.h>               // size_t
#include <stdint.h>               // uint32_t, uintptr_t
#include <stdio.h>                // printf()
#include <stdlib.h>               // malloc()
#include <string.h>               // memset()
#include <sys/types.h>            // ssize_t

typedef ssize_t Py_ssize_t;
#ifdef _WIN32
#  define MS_WINDOWS 1
#  define SIZEOF_LONG 4
#else
#  define SIZEOF_LONG __SIZEOF_LONG__
#endif
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define Py_BUILD_CORE 1
#define Py_NO_INLINE
#define PYMALLOC_USE_HUGEPAGES 1
#define ARENA_SIZE ((size_t)1 << 21)
#ifndef _Py_thread_local
#  define _Py_thread_local _Thread_local
#endif

/* No file uses all that it includes. */
#pragma GCC diagnostic ignored "-Wunused-function"

#include "patchlevel.h"           // PY_VERSION_HEX
#include "pymacro.h"              // Py_UNUSED(), Py_ARRAY_LENGTH()
#include "pyatomic.h"             // _Py_atomic_load_ptr_relaxed()
#include "cpython/pymalloc_hugepages.h"

#endif /* !Py_TESTHUGEPAGES_STAND_IN_H */
