/* A module that uses the arena allocator as others may. */

#include <Python.h>
#include <pthread.h>

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

#define ARENA       ((size_t)1 << 20)
#define THREADS     4
#define HELD        2
#define ROUNDS      400000
#define OWNERS      ((size_t)1 << 20)

/* Of the arena at an address / ARENA % OWNERS: the thread that has it.  The
   arenas are not touched, so that threads meet in the allocator and not in
   the kernel. */
static size_t owners[OWNERS];

static size_t
hook_set_owner(const void *arena, size_t owner)
{
    return __atomic_exchange_n(&owners[(size_t)arena / ARENA % OWNERS], owner,
                               __ATOMIC_SEQ_CST);
}

/* Take arenas and give them back.  Return NULL if each was this thread's
   alone. */
static void *
hook_stress_thread(void *number)
{
    PyObjectArenaAllocator now;
    PyObject_GetArenaAllocator(&now);
    void *held[HELD] = {NULL};
    size_t self = (size_t)number;
    unsigned int random = (unsigned int)self;
    /* In the end all are given back. */
    for (int round = 0; round < ROUNDS + HELD; round++) {
        random = random * 1103515245 + 12345;
        int i = round < ROUNDS ? (int)((random >> 16) % HELD)
                               : round - ROUNDS;
        if (held[i] != NULL) {
            if (hook_set_owner(held[i], 0) != self) {
                return "an arena was taken from its owner";
            }
            now.free(now.ctx, held[i], ARENA);
            held[i] = NULL;
        }
        else if (round < ROUNDS) {
            held[i] = now.alloc(now.ctx, ARENA);
            if (held[i] == NULL) {
                return "no memory";
            }
            if (hook_set_owner(held[i], self) != 0) {
                return "an arena has two owners";
            }
        }
    }
    return NULL;
}

/* Do that in several threads at once, as interpreters with a GIL of their own
   do.  Return what went wrong, or None. */
static PyObject *
hook_stress(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    pthread_t threads[THREADS];
    char *problem = NULL;
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, hook_stress_thread,
                           (void *)(i + 1)) != 0)
        {
            abort();
        }
    }
    for (size_t i = 0; i < THREADS; i++) {
        void *result;
        if (pthread_join(threads[i], &result) != 0) {
            abort();
        }
        if (result != NULL) {
            problem = result;
        }
    }
    Py_END_ALLOW_THREADS
    return Py_BuildValue("z", problem);
}

static PyMethodDef hook_methods[] = {
    {"install", hook_install, METH_NOARGS, NULL},
    {"stress", hook_stress, METH_NOARGS, NULL},
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
