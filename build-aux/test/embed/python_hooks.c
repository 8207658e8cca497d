/* A program that has Python's own hooks run at each fork(), by handlers that
   it gives to pthread_atfork() before it initializes Python.  The functions
   that are registered in Python make objects. */

#include "objects.h"
#include <pthread.h>

static void
before_fork(void)
{
    if (Py_IsInitialized()) {
        PyOS_BeforeFork();
    }
}

static void
after_fork_in_parent(void)
{
    if (Py_IsInitialized()) {
        PyOS_AfterFork_Parent();
    }
}

static void
after_fork_in_child(void)
{
    if (Py_IsInitialized()) {
        PyOS_AfterFork_Child();
    }
}

static const char register_functions[] =
    "import logging, random, threading\n"
    "made = []\n"
    "def make():\n"
    "    made.append([bytes(400) for _ in range(6000)])\n"
    "    made.append(bytes(4096))\n"
    "os.register_at_fork(before=make, after_in_parent=make,\n"
    "                    after_in_child=make)\n";

int
main(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    Py_Initialize();
    run(make_objects);
    run(register_functions);
    for (int i = 0; i < FORKS; i++) {
        write_on_both_sides(fork());
    }
    /* Two calls for each fork, with two objects. */
    run("assert len(made) == 12");
    return Py_FinalizeEx() < 0;
}
