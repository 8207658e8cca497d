/* A program with a lock of its own, which its pthread_atfork() handlers hold
   over each fork().  One thread holds it while it allocates from Python;
   another one, without the GIL, forks. */

#include <Python.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS 400
/* Five arenas of 2 MiB. */
#define BLOCKS 22500

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int stop;
static long turns;

static void lock_it(void) { pthread_mutex_lock(&lock); }
static void unlock_it(void) { pthread_mutex_unlock(&lock); }

static void *
allocate(void *Py_UNUSED(argument))
{
    static void *blocks[BLOCKS];
    long i = 0;
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&lock);
        PyGILState_STATE state = PyGILState_Ensure();
        PyMem_Free(PyMem_Malloc(4096));
        /* All blocks in turn, so that arenas come and go. */
        for (int n = 0; n < 500; n++, i++) {
            void **block = &blocks[i % BLOCKS];
            if (i / BLOCKS % 2 == 0) {
                *block = PyMem_Malloc(400);
                memset(*block, 1, 400);
            }
            else {
                PyMem_Free(*block);
            }
        }
        PyGILState_Release(state);
        pthread_mutex_unlock(&lock);
        turns++;
    }
    return NULL;
}

int
main(void)
{
    pthread_t thread;
    pthread_atfork(lock_it, unlock_it, unlock_it);
    Py_Initialize();
    PyThreadState *tstate = PyEval_SaveThread();
    if (pthread_create(&thread, NULL, allocate, NULL) != 0) {
        return 2;
    }
    for (int i = 0; i < FORKS; i++) {
        int status = -1;
        pid_t pid = fork();
        if (pid == 0) {
            _exit(0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            fprintf(stderr, "fork %d: status %#x\n", i, status);
            return 1;
        }
    }
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    PyEval_RestoreThread(tstate);
    if (turns == 0) {
        fprintf(stderr, "no turns\n");
        return 1;
    }
    return Py_FinalizeEx() < 0;
}
