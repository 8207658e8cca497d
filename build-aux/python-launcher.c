/* ./python: starts the interpreter of a build tree.

   An interpreter that was not installed finds its library by the file
   pybuilddir.txt beside it, so that it works in its build tree only.  This
   program, which knows where that is, can be copied anywhere, under any name,
   and keeps starting the interpreter that it was made for.

   PYTHON is the interpreter's absolute path. */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
    const char *name = argc > 0 ? argv[0] : "python";
    char *empty[] = {PYTHON, NULL};
    if (argc > 0) {
        argv[0] = PYTHON;
    }
    else {
        argv = empty;
    }
    execv(PYTHON, argv);
    fprintf(stderr, "%s: error: cannot start %s: %s: configure as it was and "
                    "run make\n", name, PYTHON, strerror(errno));
    return errno == ENOENT ? 127 : 126;
}
