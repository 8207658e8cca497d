/* sys._pymalloc_hugepages().

   Included by sysmodule.c alone.  In a build without the option the function
   says so; nothing else is there then. */

#include "pycore_hugepages.h"     // _PyMem_GetHugePagesStats()

#ifdef PYMALLOC_USE_HUGEPAGES

/* {"ENOMEM": 4, ...} */
static PyObject *
pymalloc_hugepages_refused(const _PyMem_HugePagesTier *tier)
{
    PyObject *refused = PyDict_New();
    if (refused == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < tier->errors; i++) {
        PyObject *name;
        if (tier->refused[i].name != NULL) {
            name = PyUnicode_FromString(tier->refused[i].name);
        }
        else if (tier->refused[i].error != 0) {
            name = PyUnicode_FromFormat("error %d", tier->refused[i].error);
        }
        else {
            name = PyUnicode_FromString("other errors");
        }
        PyObject *count = PyLong_FromSize_t(tier->refused[i].count);
        int result = -1;
        if (name != NULL && count != NULL) {
            result = PyDict_SetItem(refused, name, count);
        }
        Py_XDECREF(name);
        Py_XDECREF(count);
        if (result < 0) {
            Py_DECREF(refused);
            return NULL;
        }
    }
    return refused;
}

static PyObject *
pymalloc_hugepages_tier(const _PyMem_HugePagesTier *tier)
{
    return Py_BuildValue("{s:n,s:n,s:n,s:N,s:z}",
                         "now", (Py_ssize_t)tier->now,
                         "peak", (Py_ssize_t)tier->peak,
                         "ever", (Py_ssize_t)tier->ever,
                         "refused", pymalloc_hugepages_refused(tier),
                         "unusable", tier->unusable);
}

#endif  // PYMALLOC_USE_HUGEPAGES

PyDoc_STRVAR(sys__pymalloc_hugepages__doc__,
"_pymalloc_hugepages($module, /)\n"
"--\n"
"\n"
"Return a dict of what pymalloc's arenas sit on, and what was refused.");

static PyObject *
sys__pymalloc_hugepages(PyObject *Py_UNUSED(module),
                        PyObject *Py_UNUSED(ignored))
{
#ifdef PYMALLOC_USE_HUGEPAGES
    /* Taken before the dict is made, which may need an arena itself. */
    _PyMem_HugePagesStats stats;
    _PyMem_GetHugePagesStats(&stats);
    PyObject *result = Py_BuildValue("{s:O,s:s,s:n}",
                                     "option", Py_True,
                                     "switch", stats.switch_value,
                                     "arena_size",
                                     (Py_ssize_t)stats.arena_size);
    for (size_t i = 0; result != NULL && i < PYMEM_HUGEPAGES_TIERS; i++) {
        PyObject *tier = pymalloc_hugepages_tier(&stats.tiers[i]);
        if (tier == NULL
            || PyDict_SetItemString(result, stats.tiers[i].name, tier) < 0)
        {
            Py_CLEAR(result);
        }
        Py_XDECREF(tier);
    }
    return result;
#else
    return Py_BuildValue("{s:O}", "option", Py_False);
#endif
}

/* With the macro defined as nothing this file gives a sys module as it was
   released: the tests compare the two. */
#ifndef SYS__PYMALLOC_HUGEPAGES_METHODDEF
#  define SYS__PYMALLOC_HUGEPAGES_METHODDEF \
    {"_pymalloc_hugepages", sys__pymalloc_hugepages, METH_NOARGS, \
     sys__pymalloc_hugepages__doc__},
#endif
