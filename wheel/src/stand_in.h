/* What Objects/hugepages needs of CPython's internals, for an extension module
   with the limited API: one binary for all releases from 3.10 on. */

#ifndef WHEEL_STAND_IN_H
#define WHEEL_STAND_IN_H

#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <errno.h>                // errno
#include <link.h>                 // dl_iterate_phdr()
#include <pthread.h>              // pthread_atfork()
#include <stdint.h>               // uintptr_t
#include <stdio.h>                // FILE
#include <stdlib.h>               // getenv()
#include <string.h>               // memset()
#include <wchar.h>                // wcscmp()

#if !defined(__linux__) || !defined(__LP64__)
#  error "this extension is for 64-bit Linux"
#endif
#ifdef Py_GIL_DISABLED
#  error "free-threaded builds do not use pymalloc"
#endif

/* The limited API is that of the oldest release, whatever headers there are:
   compat.h must take none of the newer ones' internals. */
#undef PY_VERSION_HEX
#define PY_VERSION_HEX Py_LIMITED_API

#define Py_BUILD_CORE 1
#ifndef PYMALLOC_USE_HUGEPAGES
#  define PYMALLOC_USE_HUGEPAGES 1
#endif
#define ARENA_SIZE ((size_t)1 << 21)

#include "cpython/pymalloc_hugepages.h"

/* getenv(), but NULL in an interpreter that ignores its environment. */
static const char *wheel_getenv(const char *name);
#define Py_GETENV wheel_getenv

/* The functions below are documented, and as they are here since CPython 3.4,
   but no part of the stable ABI.  module.c proves before it uses them that
   they are there, and what the structures look like. */

typedef struct {
    void *ctx;
    void *(*alloc)(void *ctx, size_t size);
    void (*free)(void *ctx, void *ptr, size_t size);
} wheel_arena_allocator;

typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t nelem, size_t elsize);
    void *(*realloc)(void *ctx, void *ptr, size_t new_size);
    void (*free)(void *ctx, void *ptr);
} wheel_allocator;

/* PyMemAllocatorDomain, and one that is none. */
enum { WHEEL_ARENAS = -1,
       WHEEL_DOMAIN_RAW, WHEEL_DOMAIN_MEM, WHEEL_DOMAIN_OBJ };

#pragma GCC visibility push(default)
extern void PyObject_GetArenaAllocator(void *allocator)
    __attribute__((weak));
extern void PyObject_SetArenaAllocator(wheel_arena_allocator *allocator)
    __attribute__((weak));
extern void PyMem_GetAllocator(int domain, void *allocator)
    __attribute__((weak));
#pragma GCC visibility pop

/* What pymalloc.c takes for the arenas of the interpreter: slices.c keeps
   these. */
struct arena_object {
    uintptr_t address;
};
static struct arena_object arenas[1];
static const unsigned int maxarenas = 1;
static size_t narenas_currently_allocated = 1;

#endif /* !WHEEL_STAND_IN_H */
