/* C tests of Objects/hugepages, without an interpreter.

   usage: _testhugepages [--list] [--seed NUMBER] [TEST...]

   TEST is the name of a test, or what the names of several begin with; without
   any, all tests are run.  The last line of the output is
   "N passed, N failed, N skipped"; the exit status is 0 if none failed, 1 if
   some did, 2 if the command line is wrong.  build-aux/test/ctests.sh compiles
   and runs it in all its variants.

       main.c            this file: runs the tests
       check.[ch]        what a test is, its checks, its threads
       stand_in.h        in place of Python.h
       machine.[ch]      Linux as it is: what the kernel says, children, the
                         pool of huge pages, cgroups
       core.h            Objects/hugepages, for one file of tests
       fake_os.h         the same over a fake OS layer
       linux_calls.h     the same over Linux's system calls, which can fail
       os_calls.h        calls of an OS layer, and what each must say
       arenas.h          arenas with content

       test_SOURCE.c     tests of that source; those of os_without_thp.c are
                         with the layers that include it, those of report.c
                         with pymalloc.c
       test_tiers.c      which pages an arena gets
       test_moments.c    all moments at which a fork, a signal handler or
                         another thread can find the core
       test_real_fork.c  forks of a process with arenas, on the real system
       test_limits.c     where Linux sets limits

   It needs only the C library, so that it can be the only program of a virtual
   machine (build-aux/test/kernels.sh).  As process 1 it mounts /dev, /proc and
   /sys, has the kernel use transparent huge pages where they are advised, runs
   the tests that depend on the kernel and those that need a machine for
   themselves, and switches the machine off when it is done. */

#include "check.h"

#ifdef __linux__
#  include "machine.h"
#  include <sys/mount.h>          // mount()
#  include <sys/reboot.h>         // reboot()
#  include <sys/stat.h>           // mkdir()
#  include <unistd.h>             // getpid()
#endif

/* Call function, if it is not NULL, for each test that is run here and whose
   name begins so.  Return how many there are. */
static int
for_tests(const char *start, void (*function)(const test_case *test))
{
    int count = 0;
    for (const test_case *test = test_first; test != NULL; test = test->next) {
        if (strncmp(test->name, start, strlen(start)) == 0
            && test->place != (test_owns_machine ? ANYWHERE : OWN_MACHINE))
        {
            count++;
            if (function != NULL) {
                function(test);
            }
        }
    }
    return count;
}

static void
list_test(const test_case *test)
{
    printf("%s\n", test->name);
}

/* Return the exit status. */
static int
run_tests(int argc, char **argv)
{
    int named = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            (void)for_tests("", list_test);
            return 0;
        }
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            char *end;
            unsigned long seed = strtoul(argv[++i], &end, 10);
            if (*end != '\0' || seed == 0 || seed > UINT32_MAX / 2) {
                fprintf(stderr, "%s: --seed %s: not a number from 1 to %lu\n",
                        argv[0], argv[i], (unsigned long)UINT32_MAX / 2);
                return 2;
            }
            test_seed = (uint32_t)seed;
            continue;
        }
        if (for_tests(argv[i], NULL) == 0) {
            fprintf(stderr, "%s: no test is named %s; see --list\n",
                    argv[0], argv[i]);
            return 2;
        }
        /* The names go to the front of argv, and are run when all are known
           to be good. */
        argv[++named] = argv[i];
    }
    if (named == 0) {
        (void)for_tests("", test_run);
    }
    for (int i = 1; i <= named; i++) {
        (void)for_tests(argv[i], test_run);
    }
    printf("%d passed, %d failed, %d skipped\n",
           test_passed_count, test_failed_count, test_skipped_count);
    return test_failed_count != 0;
}

int
main(int argc, char **argv)
{
#ifdef __linux__
    if (getpid() == 1) {
        (void)mkdir("/dev", 0755);
        (void)mkdir("/proc", 0755);
        (void)mkdir("/sys", 0755);
        (void)mkdir("/tmp", 01777);
        (void)mount("dev", "/dev", "devtmpfs", 0, NULL);
        (void)mount("proc", "/proc", "proc", 0, NULL);
        (void)mount("sysfs", "/sys", "sysfs", 0, NULL);
        (void)write_file("/sys/kernel/mm/transparent_hugepage/enabled",
                         "madvise");
        test_owns_machine = 1;
        int status = run_tests(argc, argv);
        (void)fflush(stdout);
        sync();
        (void)reboot(RB_POWER_OFF);
        return status;
    }
#endif
    return run_tests(argc, argv);
}
