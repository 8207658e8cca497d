/* A program with one thread whose signal handler forks, again and again, while
   Python allocates and frees objects, and with them arenas.

   The child may only look: whether the objects are what they were. */

#include <Python.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS 200
/* Between two forks. */
#define MICROSECONDS 1000
/* Ten arenas of 2 MiB. */
#define BLOCKS 45000
#define SIZE 400

static unsigned char *blocks[BLOCKS];
static volatile long filled;
static volatile long forks;
static volatile sig_atomic_t failed;

static void
set_alarm(void)
{
    struct itimerval timer = {.it_value.tv_usec = MICROSECONDS};
    (void)setitimer(ITIMER_REAL, &timer, NULL);
}

static void
on_alarm(int Py_UNUSED(number))
{
    int saved_errno = errno;
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        for (long i = 0; i < filled; i += 8) {
            if (blocks[i][0] != (i & 255)
                || blocks[i][SIZE - 1] != (i & 255))
            {
                _exit(1);
            }
        }
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        failed = 1;
    }
    forks++;
    set_alarm();
    errno = saved_errno;
}

int
main(void)
{
    Py_Initialize();
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    if (sigaction(SIGALRM, &action, NULL) < 0) {
        return 2;
    }
    set_alarm();
    while (forks < FORKS && !failed) {
        for (long i = 0; i < BLOCKS; i++) {
            blocks[i] = PyMem_Malloc(SIZE);
            if (blocks[i] == NULL) {
                return 2;
            }
            memset(blocks[i], (int)(i & 255), SIZE);
            /* For the signal handler: the block is filled before it is
               counted. */
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            filled = i + 1;
        }
        for (long i = BLOCKS - 1; i >= 0; i--) {
            filled = i;
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            PyMem_Free(blocks[i]);
            PyMem_Free(PyMem_Malloc(600 + i % 3000));
        }
    }
    (void)signal(SIGALRM, SIG_IGN);
    Py_Finalize();
    return failed;
}
