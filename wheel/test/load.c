/* Loads a library, all of whose symbols must be found. */

#include <dlfcn.h>
#include <stdio.h>

int
main(int argc, char **argv)
{
    if (argc != 2 || dlopen(argv[1], RTLD_NOW) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    return 0;
}
