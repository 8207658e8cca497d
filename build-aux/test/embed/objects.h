/* Objects that both sides of a fork write to, and check. */

#include <Python.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS 3

/* Six arenas of 2 MiB. */
static const char make_objects[] =
    "import os\n"
    "objects = [bytearray(b'%03d' % (number % 1000) * 130)\n"
    "           for number in range(25000)]\n"
    "def write_and_check(mark):\n"
    "    for block in objects:\n"
    "        block[-1] = mark\n"
    "    for number, block in enumerate(objects):\n"
    "        assert block[:-1] == (b'%03d' % (number % 1000) * 130)[:-1]\n"
    "        assert block[-1] == mark\n"
    /* New arenas, too. */
    "    assert not any(map(any, [bytes(400) for _ in range(12000)]))\n";

static void
run(const char *code)
{
    if (PyRun_SimpleString(code) < 0) {
        _exit(1);
    }
}

/* To be called in both processes with what fork() has returned. */
static void
write_on_both_sides(pid_t pid)
{
    int status = -1;
    if (pid < 0) {
        perror("fork");
        _exit(1);
    }
    run(pid == 0 ? "write_and_check(1)" : "write_and_check(2)");
    if (pid == 0) {
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "the child ended with status %#x\n", status);
        _exit(1);
    }
}
