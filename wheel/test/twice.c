/* A program that initializes Python as often as it has arguments, and runs one
   of them each time. */

#include <Python.h>

int
main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        Py_Initialize();
        if (PyRun_SimpleString(argv[i]) != 0) {
            return 1;
        }
        if (Py_FinalizeEx() != 0) {
            return 2;
        }
    }
    return 0;
}
