/* The extension module: whether it may serve this interpreter, and what it
   tells.

   A .pth file imports it at the start of each interpreter, of the main one and
   of subinterpreters; the first import in a process decides for all. */

#include "stand_in.h"
#include "hugepages/pymalloc.c"
#include "slices.c"
#include "Python/initconfig_hugepages.h"
#include "Python/sysmodule_hugepages.h"

static struct {
    /* Whether an interpreter of this process has begun to activate. */
    int is_begun;
    /* NULL once slices are handed out. */
    void *refusal;
    /* sys.flags.ignore_environment */
    int ignores_environment;
    /* Whether the figures will be written at the end of Python. */
    int is_exit_known;
} wheel = {.refusal = "another interpreter is activating it"};

static const char *
wheel_getenv(const char *name)
{
    return wheel.ignores_environment ? NULL : getenv(name);
}

// --- may it be used? -------------------------------------------------------

/* Each of these returns why not, or NULL; or NULL with an exception set. */

/* Fill a structure of the interpreter's: that of a domain, or of arenas if the
   domain is WHEEL_ARENAS. */
static void
wheel_get(int domain, void *structure)
{
    if (domain == WHEEL_ARENAS) {
        PyObject_GetArenaAllocator(structure);
    }
    else {
        PyMem_GetAllocator(domain, structure);
    }
}

/* Whether such a structure has the layout that is declared here: a context,
   which may be NULL, and functions, together of this size.  What the
   interpreter fills is the same whatever was there. */
static int
wheel_is_known(int domain, size_t size)
{
    void *probe[2][32];
    const unsigned char *bytes[2];
    for (int i = 0; i < 2; i++) {
        memset(probe[i], i == 0 ? 0x55 : 0xaa, sizeof(probe[i]));
        wheel_get(domain, probe[i]);
        bytes[i] = (const unsigned char *)probe[i];
    }
    for (size_t i = 0; i < sizeof(probe[0]); i++) {
        int is_filled = bytes[0][i] == bytes[1][i];
        if (is_filled != (i < size)) {
            return 0;
        }
    }
    for (size_t i = 1; i < size / sizeof(void *); i++) {
        if (probe[0][i] == NULL) {
            return 0;
        }
    }
    return 1;
}

/* Get the arena allocator that there is, if the structures have the layouts
   that are declared here. */
static const char *
wheel_why_unknown(wheel_arena_allocator *allocator)
{
    if (PyObject_GetArenaAllocator == NULL
        || PyObject_SetArenaAllocator == NULL || PyMem_GetAllocator == NULL)
    {
        return "this interpreter has no functions to replace its arena "
               "allocator";
    }
    if (!wheel_is_known(WHEEL_ARENAS, sizeof(wheel_arena_allocator))
        || !wheel_is_known(WHEEL_DOMAIN_RAW, sizeof(wheel_allocator))
        || !wheel_is_known(WHEEL_DOMAIN_MEM, sizeof(wheel_allocator))
        || !wheel_is_known(WHEEL_DOMAIN_OBJ, sizeof(wheel_allocator)))
    {
        return "the allocators of this interpreter are not as this extension "
               "knows them";
    }
    PyObject_GetArenaAllocator(allocator);
    return NULL;
}

static int
wheel_contains(const struct dl_phdr_info *object, void *function)
{
    uintptr_t offset = (uintptr_t)function - object->dlpi_addr;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD
            && offset - segment->p_vaddr < segment->p_memsz)
        {
            return 1;
        }
    }
    return 0;
}

enum { WHEEL_NOT_THERE, WHEEL_IS_STOCK, WHEEL_IS_HOOKED };

/* Called for the program and each library: whether both functions of an
   allocator are in the one that has the interpreter. */
static int
wheel_look_into(struct dl_phdr_info *object, size_t Py_UNUSED(size),
                void *data)
{
    const wheel_arena_allocator *allocator = data;
    if (!wheel_contains(object, (void *)PyObject_SetArenaAllocator)) {
        return WHEEL_NOT_THERE;
    }
    return wheel_contains(object, (void *)allocator->alloc)
           && wheel_contains(object, (void *)allocator->free)
           ? WHEEL_IS_STOCK : WHEEL_IS_HOOKED;
}

static const char *
wheel_why_hooked(wheel_arena_allocator *allocator)
{
    if (allocator->ctx != NULL
        || dl_iterate_phdr(wheel_look_into, allocator) != WHEEL_IS_STOCK)
    {
        return "another arena allocator was there first";
    }
    return NULL;
}

/* Call a function of sys.  Return NULL if there is none, or it fails. */
static PyObject *
wheel_call_sys(const char *name)
{
    PyObject *function = PySys_GetObject(name);
    return function == NULL ? NULL : PyObject_CallObject(function, NULL);
}

/* An interpreter with the option says so itself. */
static const char *
wheel_why_patched(void)
{
    const char *why = NULL;
    PyObject *stats = wheel_call_sys("_pymalloc_hugepages");
    PyObject *option = stats == NULL ? NULL
        : PyMapping_GetItemString(stats, "option");
    if (option != NULL && PyObject_IsTrue(option) == 1) {
        why = "this interpreter was built --with-pymalloc-hugepages";
    }
    Py_XDECREF(option);
    Py_XDECREF(stats);
    return why;
}

/* pymalloc serves the mem and obj domains by the same functions, malloc() the
   raw domain, too, and mimalloc each domain by others. */
static const char *
wheel_why_no_pymalloc(void)
{
    wheel_allocator raw, mem, obj;
    int is_other = 0;
    PyMem_GetAllocator(WHEEL_DOMAIN_RAW, &raw);
    PyMem_GetAllocator(WHEEL_DOMAIN_MEM, &mem);
    PyMem_GetAllocator(WHEEL_DOMAIN_OBJ, &obj);
    if (raw.ctx == NULL && mem.ctx == NULL && obj.ctx == NULL) {
        is_other = obj.malloc == raw.malloc || obj.malloc != mem.malloc;
    }
    else if (hugepages_os_is_single_threaded()) {
        /* Under hooks it can be told of malloc(), whose blocks are not
           counted.  Who counts looks into the arenas of all interpreters, so
           none may run meanwhile.  Where it is not known, nothing but arenas
           will be missing. */
        PyObject *blocks = wheel_call_sys("getallocatedblocks");
        is_other = blocks != NULL && PyObject_IsTrue(blocks) == 0;
        Py_XDECREF(blocks);
    }
    return is_other ? "this interpreter runs without pymalloc (PYTHONMALLOC)"
                    : NULL;
}

// --- the switch ------------------------------------------------------------

/* The PyMalloc_HugePages value of a str, or PYMALLOC_HUGEPAGES_UNSET. */
static int
wheel_switch_from(PyObject *text)
{
    wchar_t *name = PyUnicode_AsWideCharString(text, NULL);
    if (name == NULL) {
        PyErr_Clear();
        return PYMALLOC_HUGEPAGES_UNSET;
    }
    int value = pymalloc_hugepages_from_name(name);
    PyMem_Free(name);
    return value;
}

/* The value of -X pymalloc_hugepages, else of PYTHON_PYMALLOC_HUGEPAGES, else
   the default; PYMALLOC_HUGEPAGES_UNSET if it is none, and *source says where
   it is from. */
static int
wheel_read_switch(const char **source)
{
    PyObject *options = PySys_GetXOptions();
    PyObject *option = options == NULL ? NULL
        : PyDict_GetItemString(options, "pymalloc_hugepages");
    if (option != NULL) {
        *source = "-X pymalloc_hugepages";
        /* True: given without a value. */
        return PyUnicode_Check(option) ? wheel_switch_from(option)
                                       : PYMALLOC_HUGEPAGES_ON;
    }
    *source = "PYTHON_PYMALLOC_HUGEPAGES";
    const char *variable = wheel_getenv(*source);
    if (variable == NULL) {
        return PYMALLOC_HUGEPAGES_ON;
    }
    PyObject *text = PyUnicode_DecodeFSDefault(variable);
    if (text == NULL) {
        PyErr_Clear();
        return PYMALLOC_HUGEPAGES_UNSET;
    }
    int value = wheel_switch_from(text);
    Py_DECREF(text);
    return value;
}

// --- activation ------------------------------------------------------------

static void
wheel_at_exit(void)
{
    _Py_atomic_store_int_relaxed(&wheel.is_exit_known, 0);
    _PyMem_FiniHugePages();
}

/* Put our hooks in the place of the interpreter's. */
static const char *
wheel_install(void)
{
    wheel_arena_allocator now;
    wheel_arena_allocator ours = {slices.stock.ctx, slices_hook_alloc,
                                  slices_hook_free};
    if (pthread_atfork(slices_before_fork, slices_after_fork,
                       slices_after_fork) != 0)
    {
        return "there is no memory for a handler of forks";
    }
    /* Other interpreters may allocate meanwhile.  Until both hooks are there
       for every thread to see, they only pass on: who sees the flag sees what
       was stored before it (slices_hook_alloc()). */
    PyObject_SetArenaAllocator(&ours);
    PyObject_GetArenaAllocator(&now);
    if (memcmp(&now, &ours, sizeof(ours)) != 0) {
        PyObject_SetArenaAllocator(&slices.stock);
        return "this interpreter does not let its arena allocator be replaced";
    }
    HUGEPAGES_STORE(&slices.is_on, 1);
    return NULL;
}

/* Return why this process does without huge pages, or NULL. */
static const char *
wheel_activate(void)
{
    const char *source, *why;
    int value = wheel_read_switch(&source);
    if (value == PYMALLOC_HUGEPAGES_OFF) {
        return "the switch is off";
    }
    if (value == PYMALLOC_HUGEPAGES_UNSET) {
        PySys_WriteStderr("%s: unknown value; use on, 1, thp, hugetlb, off or "
                          "0\n", source);
        return "the switch has an unknown value";
    }
    if ((why = wheel_why_unknown(&slices.stock)) != NULL
        || (why = wheel_why_patched()) != NULL
        || (why = wheel_why_hooked(&slices.stock)) != NULL
        || (why = wheel_why_no_pymalloc()) != NULL)
    {
        return why;
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return "this interpreter does not tell which allocators it has";
    }
    _PyMem_SetHugePages(value);
    if (hugepages_usable() == 0) {
        return "this system has no huge pages for arenas";
    }
    return wheel_install();
}

// --- the module ------------------------------------------------------------

/* Whether Python has taken its own arena allocator back. */
static int
wheel_is_abandoned(void)
{
    wheel_arena_allocator now;
    PyObject_GetArenaAllocator(&now);
    return memcmp(&now, &slices.stock, sizeof(now)) == 0;
}

/* Why arenas are not on huge pages, as far as it can be known now; or NULL. */
static const char *
wheel_refusal(void)
{
    const char *why = (const char *)_Py_atomic_load_ptr_acquire(
        &wheel.refusal);
    if (why != NULL) {
        return why;
    }
    if (wheel_is_abandoned()) {
        return "Python was initialized again, and has taken its own arena "
               "allocator back";
    }
    if (_Py_atomic_load_ssize_relaxed(&slices.counts.ever) == 0
        && _Py_atomic_load_ssize_relaxed(&slices.foreign) > 0)
    {
        return "the arenas of this interpreter are of another size than 1 MiB";
    }
    return NULL;
}

PyDoc_STRVAR(refusal_doc,
"refusal($module, /)\n"
"--\n"
"\n"
"Return why this process does without huge pages, or None if it has them.");

static PyObject *
wheel_tell_refusal(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("z", wheel_refusal());
}

PyDoc_STRVAR(stats_doc,
"stats($module, /)\n"
"--\n"
"\n"
"Return a dict of what the units of arenas sit on, and what was refused.");

static PyObject *
wheel_tell_stats(PyObject *module, PyObject *ignored)
{
    /* Taken before the dict is made, which may need an arena itself. */
    _PyMem_HugePagesTier counts;
    hugepages_copy_counts(&slices.counts, &counts);
    PyObject *stats = sys__pymalloc_hugepages(module, ignored);
    if (stats == NULL) {
        return NULL;
    }
    PyObject *used = Py_BuildValue("{s:n,s:n,s:n,s:n}",
                                   "size", (Py_ssize_t)SLICES_SIZE,
                                   "now", (Py_ssize_t)counts.now,
                                   "peak", (Py_ssize_t)counts.peak,
                                   "ever", (Py_ssize_t)counts.ever);
    if (used == NULL || PyDict_SetItemString(stats, "slices", used) < 0
        || PyDict_DelItemString(stats, "option") < 0)
    {
        Py_CLEAR(stats);
    }
    Py_XDECREF(used);
    return stats;
}

static PyMethodDef wheel_methods[] = {
    {"refusal", wheel_tell_refusal, METH_NOARGS, refusal_doc},
    {"stats", wheel_tell_stats, METH_NOARGS, stats_doc},
    {NULL, NULL, 0, NULL}
};

static int
wheel_exec(PyObject *Py_UNUSED(module))
{
    int not_begun = 0;
    if (_Py_atomic_compare_exchange_int(&wheel.is_begun, &not_begun, 1)) {
        PyObject *flags = PySys_GetObject("flags");
        PyObject *ignores = flags == NULL ? NULL
            : PyObject_GetAttrString(flags, "ignore_environment");
        wheel.ignores_environment = ignores != NULL
                                    && PyObject_IsTrue(ignores) == 1;
        Py_XDECREF(ignores);
        PyErr_Clear();
        HUGEPAGES_STORE(&wheel.refusal, (void *)wheel_activate());
    }
    else if (_Py_atomic_load_ptr_acquire(&wheel.refusal) == NULL
             && wheel_is_abandoned())
    {
        slices_abandon();
    }
    /* Each Py_FinalizeEx() forgets what is to be called at its end. */
    int not_known = 0;
    if (wheel_refusal() == NULL
        && _Py_atomic_compare_exchange_int(&wheel.is_exit_known, &not_known, 1)
        && Py_AtExit(wheel_at_exit) < 0)
    {
        wheel.is_exit_known = 0;
    }
    return 0;
}

/* Python.h has their names in newer releases only. */
#define WHEEL_MULTIPLE_INTERPRETERS 3       // Py_mod_multiple_interpreters
#define WHEEL_PER_INTERPRETER_GIL ((void *)2)
#define WHEEL_GIL 4                         // Py_mod_gil
#define WHEEL_GIL_NOT_USED ((void *)1)

/* A release rejects what it does not know, and without the slot of 3.12 the
   import fails in an interpreter with a GIL of its own. */
static PyModuleDef_Slot wheel_slots[] = {
    {WHEEL_GIL, WHEEL_GIL_NOT_USED},                            // 3.13
    {WHEEL_MULTIPLE_INTERPRETERS, WHEEL_PER_INTERPRETER_GIL},   // 3.12
    {Py_mod_exec, (void *)wheel_exec},
    {0, NULL}
};

static struct PyModuleDef wheel_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_pymalloc_hugepages",
    .m_methods = wheel_methods,
};

PyMODINIT_FUNC
PyInit__pymalloc_hugepages(void)
{
    int minor = 0;
    (void)sscanf(Py_GetVersion(), "3.%d", &minor);
    int unknown = minor >= 13 ? 0 : minor == 12 ? 1 : 2;
    wheel_module.m_slots = &wheel_slots[unknown];
    return PyModuleDef_Init(&wheel_module);
}
