/* What users and tools see of blocks that pymalloc does not serve.

   usage: as_stock double-free SIZE     free a block twice
          as_stock overflow SIZE        write a byte behind a block
          as_stock trim                 drop 100 MiB and call malloc_trim()
          as_stock hook                 count blocks in the raw domain

   The last two fail with a message if something is not as in stock CPython. */

#include <Python.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int
fail(const char *why)
{
    fprintf(stderr, "%s\n", why);
    return 1;
}

static int
double_free(size_t size)
{
    void *block = PyMem_Malloc(size);
    void *guard = PyMem_Malloc(size);
    PyMem_Free(block);
    PyMem_Free(block);
    PyMem_Free(guard);
    return 0;
}

static int
overflow(size_t size)
{
    volatile char *block = PyMem_Malloc(size);
    block[size] = 1;
    PyMem_Free((void *)block);
    return 0;
}

/* Resident memory in MiB. */
static long
resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1) {
        exit(2);
    }
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE) >> 20;
}

#define BLOCKS 20000

static int
trim(void)
{
    static void *blocks[BLOCKS];
    long before = resident();
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = PyMem_Malloc(5000);
        memset(blocks[i], 1, 5000);
    }
    /* What is freed below another block stays with malloc(). */
    void *top = PyMem_Malloc(5000);
    for (int i = 0; i < BLOCKS; i++) {
        PyMem_Free(blocks[i]);
    }
    long dropped = resident();
    malloc_trim(0);
    long trimmed = resident();
    PyMem_Free(top);
    fprintf(stderr, "%ld MiB before, %ld dropped, %ld trimmed\n", before,
            dropped, trimmed);
    /* Blocks of another allocator would not be there to be trimmed. */
    return dropped - before < 80 || trimmed - before > 8;
}

static PyMemAllocatorEx raw;
static long blocks_now, blocks_ever;

static void *
count_malloc(void *Py_UNUSED(context), size_t size)
{
    blocks_now++;
    blocks_ever++;
    return raw.malloc(raw.ctx, size);
}

static void *
count_calloc(void *Py_UNUSED(context), size_t count, size_t size)
{
    blocks_now++;
    blocks_ever++;
    return raw.calloc(raw.ctx, count, size);
}

static void *
count_realloc(void *Py_UNUSED(context), void *block, size_t size)
{
    blocks_now += block == NULL;
    blocks_ever++;
    return raw.realloc(raw.ctx, block, size);
}

static void
count_free(void *Py_UNUSED(context), void *block)
{
    blocks_now -= block != NULL;
    raw.free(raw.ctx, block);
}

static int
hook(void)
{
    PyMemAllocatorEx counting = {NULL, count_malloc, count_calloc,
                                 count_realloc, count_free};
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &raw);
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &counting);

    void *kept[5] = {PyMem_Malloc(1025), PyObject_Malloc(2000),
                     PyMem_Calloc(1, 100000), PyObject_Calloc(100, 50000),
                     PyMem_Realloc(PyMem_Malloc(100), 5000)};
    if (blocks_now != 5 || blocks_ever != 5) {
        return fail("blocks were not seen");
    }
    kept[0] = PyMem_Realloc(kept[0], 3000);
    if (blocks_now != 5 || blocks_ever != 6) {
        return fail("a realloc() was not seen");
    }
    kept[0] = PyMem_Realloc(kept[0], 100);
    if (kept[0] == NULL) {
        return fail("no memory");
    }
    for (int i = 0; i < 5; i++) {
        PyMem_Free(kept[i]);
    }
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &raw);
    return blocks_now == 0 ? 0 : fail("a free() was not seen");
}

int
main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    size_t size = argc > 2 ? (size_t)atol(argv[2]) : 0;
    Py_Initialize();
    return strcmp(what, "double-free") == 0 ? double_free(size)
           : strcmp(what, "overflow") == 0 ? overflow(size)
           : strcmp(what, "trim") == 0 ? trim()
           : strcmp(what, "hook") == 0 ? hook()
           : fail("unknown");
}
