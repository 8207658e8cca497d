/* A program whose pthread_atfork() handler allocates from Python: one large
   block and as many small ones as need another arena.

   usage: handler_alloc prepare|parent|child

   The handlers are registered before Python is initialized; with EARLIEST in
   the environment before main(), and before anything of Python's own.  With
   THREAD in the environment there is another thread, which does nothing. */

#include "objects.h"
#include <pthread.h>

#define BLOCKS 8000

static const char *handler = "";
static int armed, calls;
static unsigned char *blocks[BLOCKS];

static size_t
size_of(int i)
{
    return i == 0 ? 4096 : 400;
}

static void
release(void)
{
    for (int i = 0; i < BLOCKS && blocks[i] != NULL; i++) {
        for (size_t j = 0; j < size_of(i); j++) {
            if (blocks[i][j] != (i & 255)) {
                fprintf(stderr, "block %d has changed\n", i);
                _exit(1);
            }
        }
        PyMem_Free(blocks[i]);
        blocks[i] = NULL;
    }
}

static void
allocate(const char *name)
{
    if (!armed || strcmp(name, handler) != 0) {
        return;
    }
    calls++;
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = PyMem_Malloc(size_of(i));
        if (blocks[i] == NULL) {
            _exit(1);
        }
        memset(blocks[i], i & 255, size_of(i));
    }
}

static void prepare(void) { allocate("prepare"); }
static void parent(void) { allocate("parent"); }
static void child(void) { allocate("child"); }

__attribute__((constructor(101)))
static void
register_earliest(void)
{
    if (getenv("EARLIEST") != NULL) {
        pthread_atfork(prepare, parent, child);
    }
}

static void *
do_nothing(void *Py_UNUSED(argument))
{
    while (pause() != 0) {
    }
    return NULL;
}

int
main(int argc, char **argv)
{
    pthread_t thread;
    if (argc != 2) {
        return 2;
    }
    handler = argv[1];
    if (getenv("EARLIEST") == NULL) {
        pthread_atfork(prepare, parent, child);
    }
    Py_Initialize();
    run(make_objects);
    if (getenv("THREAD") != NULL
        && pthread_create(&thread, NULL, do_nothing, NULL) != 0)
    {
        return 2;
    }
    armed = 1;
    for (int i = 1; i <= FORKS; i++) {
        PyOS_BeforeFork();
        pid_t pid = fork();
        if (pid == 0) {
            PyOS_AfterFork_Child();
        }
        else {
            PyOS_AfterFork_Parent();
        }
        int called_here = strcmp(handler, pid == 0 ? "parent" : "child") != 0;
        if (called_here && calls == 0) {
            fprintf(stderr, "the handler was not called\n");
            return 1;
        }
        release();
        write_on_both_sides(pid);
    }
    armed = 0;
    return Py_FinalizeEx() < 0;
}
