/* A module that uses the arena allocator as others may. */

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

/* Put an allocator in place that passes on.  Call it once. */
static PyObject *
hook_install(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObjectArenaAllocator ours = {NULL, hook_alloc, hook_free};
    PyObject_GetArenaAllocator(&before);
    PyObject_SetArenaAllocator(&ours);
    Py_RETURN_NONE;
}

/* Ask for an arena of a size, and give it back. */
static PyObject *
hook_ask(PyObject *Py_UNUSED(module), PyObject *size)
{
    PyObjectArenaAllocator now;
    PyObject_GetArenaAllocator(&now);
    void *arena = now.alloc(now.ctx, PyLong_AsSize_t(size));
    if (arena == NULL) {
        return PyErr_NoMemory();
    }
    now.free(now.ctx, arena, PyLong_AsSize_t(size));
    Py_RETURN_NONE;
}

static PyMethodDef hook_methods[] = {
    {"install", hook_install, METH_NOARGS, NULL},
    {"ask", hook_ask, METH_O, NULL},
    {NULL, NULL, 0, NULL}
};

static struct PyModuleDef hook_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "arena_hook",
    .m_methods = hook_methods,
};

PyMODINIT_FUNC
PyInit_arena_hook(void)
{
    return PyModule_Create(&hook_module);
}
