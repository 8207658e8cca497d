/* A program that initializes Python as often as it has arguments, and runs one
   of them each time.  It keeps 40 MiB of small blocks from each time to the
   next one. */

#include <Python.h>

#define BLOCKS 87360

static void *kept[BLOCKS];

static void
keep(void)
{
/* 3.12 forgets in between which blocks are pymalloc's. */
#if PY_VERSION_HEX < 0x030c0000 || PY_VERSION_HEX >= 0x030d0000
    for (int i = 0; i < BLOCKS; i++) {
        kept[i] = PyObject_Malloc(480);
        if (kept[i] != NULL) {
            memset(kept[i], 1, 480);
        }
    }
#endif
}

static void
drop(void)
{
    for (int i = 0; i < BLOCKS; i++) {
        PyObject_Free(kept[i]);
    }
}

int
main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        Py_Initialize();
        drop();
        if (PyRun_SimpleString(argv[i]) != 0) {
            return 1;
        }
        keep();
        if (Py_FinalizeEx() != 0) {
            return 2;
        }
    }
    return 0;
}
