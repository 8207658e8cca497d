/* A library with an arena allocator of its own, which passes on. */

#include <Python.h>

static PyObjectArenaAllocator before;

static void *
hook_alloc(void *Py_UNUSED(ctx), size_t size)
{
    return before.alloc(before.ctx, size);
}

static void
hook_free(void *Py_UNUSED(ctx), void *address, size_t size)
{
    before.free(before.ctx, address, size);
}

/* Call it once. */
void
hook_install(void)
{
    PyObjectArenaAllocator ours = {NULL, hook_alloc, hook_free};
    PyObject_GetArenaAllocator(&before);
    PyObject_SetArenaAllocator(&ours);
}
