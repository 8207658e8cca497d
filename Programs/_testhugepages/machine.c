/* Linux as it is: see machine.h. */

#include "machine.h"

#include <dirent.h>               // opendir()
#include <errno.h>                // errno
#include <fcntl.h>                // open()
#include <signal.h>               // sigaction()
#include <sys/mman.h>             // mmap()
#include <sys/mount.h>            // mount()
#include <sys/stat.h>             // mkdir()
#include <sys/wait.h>             // waitpid()
#include <time.h>                 // nanosleep()
#include <unistd.h>               // fork()

// --- what the kernel says ---------------------------------------------------

int
read_file(const char *path, char *buffer, size_t size)
{
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t got;
    while (length < size - 1
           && (got = read(fd, buffer + length, size - 1 - length)) > 0)
    {
        length += (size_t)got;
    }
    (void)close(fd);
    buffer[length] = '\0';
    return 0;
}

int
write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t written = write(fd, text, strlen(text));
    int saved_errno = errno;
    (void)close(fd);
    errno = saved_errno;
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

long
read_number(const char *path)
{
    char text[64];
    return read_file(path, text, sizeof(text)) < 0 ? -1
           : strtol(text, NULL, 10);
}

int
write_number(const char *path, long number)
{
    char text[32];
    (void)snprintf(text, sizeof(text), "%ld", number);
    return write_file(path, text);
}

smaps_entry
read_smaps(const void *address)
{
    static char text[4 << 20];
    const smaps_entry nothing = {0};
    smaps_entry entry = {0};
    int found = 0;
    if (read_file("/proc/self/smaps", text, sizeof(text)) < 0) {
        FAIL("/proc/self/smaps: %s", strerror(errno));
        return nothing;
    }
    for (char *line = text, *next; line != NULL && *line != '\0'; line = next)
    {
        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }
        unsigned long start, end;
        long number;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            if (found) {
                break;
            }
            found = start <= (uintptr_t)address && (uintptr_t)address < end;
            entry = nothing;
            entry.start = start;
            entry.end = end;
        }
        else if (sscanf(line, "KernelPageSize: %ld", &number) == 1) {
            entry.kernel_page_kib = number;
        }
        else if (sscanf(line, "Private_Hugetlb: %ld", &number) == 1) {
            entry.private_hugetlb_kib = number;
        }
        else if (sscanf(line, "AnonHugePages: %ld", &number) == 1) {
            entry.anon_huge_kib = number;
        }
        else if (strncmp(line, "VmFlags:", 8) == 0) {
            entry.advised_huge = strstr(line, " hg") != NULL;
            entry.unadvised = strstr(line, " nh") != NULL;
        }
    }
    return found ? entry : nothing;
}

smaps_entry
need_smaps(const void *address)
{
    smaps_entry entry = read_smaps(address);
    if (entry.end == 0) {
        FAIL("%p is not mapped", address);
    }
    return entry;
}

int
is_unmapped(const void *address)
{
    return read_smaps(address).end == 0;
}

int
is_advised(const void *address)
{
    return need_smaps(address).advised_huge;
}

void
check_hugetlb(const void *address)
{
    smaps_entry entry = need_smaps(address);
    CHECK_EQUAL(entry.kernel_page_kib, 2048);
    CHECK_EQUAL(entry.private_hugetlb_kib, (entry.end - entry.start) / 1024);
}

void
check_thp(const void *address)
{
    smaps_entry entry = need_smaps(address);
    CHECK_EQUAL((uintptr_t)address % ARENA_SIZE, 0);
    CHECK(entry.advised_huge);
    CHECK(entry.end >= (uintptr_t)address + ARENA_SIZE);
}

void
write_numbers(void *address, size_t size)
{
    for (size_t i = 0; i < size / sizeof(size_t); i++) {
        ((size_t *)address)[i] = i + 1;
    }
}

void
check_numbers(const void *address, size_t size)
{
    for (size_t i = 0; i < size / sizeof(size_t); i++) {
        if (((const size_t *)address)[i] != i + 1) {
            FAIL("word %zu has lost its content", i);
            return;
        }
    }
}

long
read_status(const char *name)
{
    char text[8192];
    if (read_file("/proc/self/status", text, sizeof(text)) < 0) {
        return -1;
    }
    const char *line = strstr(text, name);
    return line == NULL ? -1 : strtol(line + strlen(name), NULL, 10);
}

address_space
read_address_space(void)
{
    static char text[4 << 20];
    address_space space = {0, -1};
    if (read_file("/proc/self/maps", text, sizeof(text)) == 0) {
        for (const char *line = text; *line != '\0'; line++) {
            space.mappings += (*line == '\n');
        }
    }
    space.kib = read_status("VmSize:");
    return space;
}

void
check_no_leak(address_space before)
{
    address_space after = read_address_space();
    CHECK_EQUAL(after.mappings, before.mappings);
    CHECK_EQUAL(after.kib, before.kib);
}

int
count_files(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL) {
        FAIL("/proc/self/fd: %s", strerror(errno));
        return -1;
    }
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

void *
use_up_mappings(size_t *size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    long limit = read_number("/proc/sys/vm/max_map_count");
    *size = ((size_t)limit + 100) * page;
    char *memory = mmap(NULL, *size, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* Each makes one mapping into three, the last maybe into two. */
    for (size_t offset = page; offset < *size; offset += 2 * page) {
        if (mprotect(memory + offset, page, PROT_READ) != 0) {
            break;
        }
    }
    (void)mprotect(memory + *size - page, page, PROT_READ);
    return memory;
}

// --- children and signals ---------------------------------------------------

int
begin_child(void)
{
    (void)fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        return 1;
    }
    int status = child < 0 ? -1 : wait_for(child);
    if (status == -1) {
        FAIL("no child: %s", strerror(errno));
    }
    else if (WIFSIGNALED(status)) {
        FAIL("the child was ended by signal %d", WTERMSIG(status));
    }
    else if (status != 0) {
        FAIL("failed in the child");
    }
    return 0;
}

void
run_in_child(void (*function)(void))
{
    IN_CHILD {
        function();
    }
}

int
wait_for(pid_t child)
{
    int status;
    return waitpid(child, &status, 0) == child ? status : -1;
}

rlim_t
set_limit(int resource, rlim_t limit)
{
    struct rlimit limits = {0, 0};
    CHECK_EQUAL(getrlimit((__rlimit_resource_t)resource, &limits), 0);
    rlim_t saved_limit = limits.rlim_cur;
    limits.rlim_cur = limit;
    if (limits.rlim_max < limit) {
        limits.rlim_max = limit;
    }
    CHECK_EQUAL(setrlimit((__rlimit_resource_t)resource, &limits), 0);
    return saved_limit;
}

void
set_handler(int signal_number, void (*handler)(int), struct sigaction *saved)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    CHECK_EQUAL(sigaction(signal_number, &action, saved), 0);
}

// --- what is restored -------------------------------------------------------

static void restore_pool(void);
static int undo_cgroup(void);

static const int fatal_signals[] = {
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGBUS, SIGSEGV, SIGILL, SIGFPE
};
#define FATAL_SIGNALS ((int)Py_ARRAY_LENGTH(fatal_signals))
static struct sigaction saved_actions[FATAL_SIGNALS];

/* The process that has changed settings of the system, or 0. */
static pid_t guarded;

static void
end_guard(void)
{
    guarded = 0;
    for (int i = 0; i < FATAL_SIGNALS; i++) {
        (void)sigaction(fatal_signals[i], &saved_actions[i], NULL);
    }
}

static void
restore_and_die(int signal_number)
{
    if (getpid() == guarded) {
        (void)undo_cgroup();
        restore_pool();
    }
    end_guard();
    (void)raise(signal_number);
}

/* From here on, a signal that ends this process restores the system first. */
static void
begin_guard(void)
{
    if (guarded == 0) {
        guarded = getpid();
        for (int i = 0; i < FATAL_SIGNALS; i++) {
            set_handler(fatal_signals[i], restore_and_die, &saved_actions[i]);
        }
    }
}

void
restore_machine(void)
{
    if (guarded != 0) {
        CHECK_EQUAL(undo_cgroup(), 0);
        restore_pool();
        end_guard();
    }
}

// --- the pool of huge pages -------------------------------------------------

static struct {
    int changed;
    long pages;
    long overcommit;
} saved_pool;

static void
restore_pool(void)
{
    if (saved_pool.changed) {
        saved_pool.changed = 0;
        (void)write_number(POOL "nr_overcommit_hugepages",
                           saved_pool.overcommit);
        (void)write_number(POOL "nr_hugepages", saved_pool.pages);
    }
}

long
pool_available(void)
{
    return read_number(POOL "free_hugepages")
           - read_number(POOL "resv_hugepages");
}

int
need_pool(long pages)
{
    long total = read_number(POOL "nr_hugepages");
    long overcommit = read_number(POOL "nr_overcommit_hugepages");
    if (total < 0 || overcommit < 0) {
        test_skip("the kernel has no huge pages of 2 MiB");
        return -1;
    }
    if (pool_available() == pages && overcommit == 0) {
        return 0;
    }
    /* Writing the value that is there changes nothing, but tells whether the
       kernel lets us. */
    if (write_number(POOL "nr_hugepages", total) < 0) {
        test_skip("needs %ld free huge pages: cannot write "
                  POOL "nr_hugepages: %s", pages, strerror(errno));
        return -1;
    }
    begin_guard();
    if (!saved_pool.changed) {
        saved_pool.pages = total;
        saved_pool.overcommit = overcommit;
        saved_pool.changed = 1;
    }
    (void)write_number(POOL "nr_overcommit_hugepages", 0);
    long wanted = total - pool_available() + pages;
    (void)write_number(POOL "nr_hugepages", wanted);
    if (pool_available() < pages) {
        /* Memory may be too fragmented at first. */
        (void)write_number("/proc/sys/vm/compact_memory", 1);
        (void)write_number(POOL "nr_hugepages", wanted);
    }
    if (pool_available() != pages) {
        FAIL("%ld huge pages are available, not %ld", pool_available(), pages);
        return -1;
    }
    return 0;
}

// --- a cgroup ---------------------------------------------------------------

static struct {
    char mount[64];
    char group[128];
    int mounted;
    int created;
    /* NULL if it was there before. */
    const char *controller_added;
} cgroup;

/* Name a file of a cgroup. */
static const char *
cgroup_file(const char *group, const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", group, name);
    return path;
}

static const struct timespec short_pause = {0, 10 * 1000 * 1000};

/* A cgroup that was removed is not gone at once for the kernel, which does not
   mount its controller in the other version until then. */
static int
mount_cgroup(int version, const char *controller)
{
    for (int tries = 0; ; tries++) {
        int status = version == 1
                     ? mount("none", cgroup.mount, "cgroup", 0, controller)
                     : mount("none", cgroup.mount, "cgroup2", 0, NULL);
        if (status == 0 || errno != EBUSY || tries == 500) {
            return status;
        }
        (void)nanosleep(&short_pause, NULL);
    }
}

/* Have the controllers of a group enabled ('+') or not ('-') for those in it.
   Return 0, or -1 with errno set. */
static int
switch_controller(char sign, const char *controller)
{
    char text[32];
    (void)snprintf(text, sizeof(text), "%c%s", sign, controller);
    return write_file(cgroup_file(cgroup.mount, "cgroup.subtree_control"),
                      text);
}

/* Return 0, or -1 with errno set: ENOENT or EINVAL if cgroups of version 2 do
   not have it. */
static int
enable_controller(const char *controller)
{
    char enabled[1024] = "";
    (void)read_file(cgroup_file(cgroup.mount, "cgroup.subtree_control"),
                    enabled, sizeof(enabled));
    if (strstr(enabled, controller) == NULL) {
        if (switch_controller('+', controller) < 0) {
            return -1;
        }
        cgroup.controller_added = controller;
    }
    return 0;
}

int
make_cgroup(int version, const char *controller, const char *file, long limit)
{
    const char *what = "mkdtemp";
    (void)snprintf(cgroup.mount, sizeof(cgroup.mount),
                   "/tmp/testhugepages-XXXXXX");
    if (mkdtemp(cgroup.mount) == NULL) {
        cgroup.mount[0] = '\0';
        goto error;
    }
    begin_guard();
    what = "mount";
    if (mount_cgroup(version, controller) != 0) {
        goto error;
    }
    cgroup.mounted = 1;
    what = "not to be enabled";
    if (version == 2 && enable_controller(controller) < 0) {
        goto error;
    }
    (void)snprintf(cgroup.group, sizeof(cgroup.group), "%s/testhugepages-%ld",
                   cgroup.mount, (long)getpid());
    what = "mkdir";
    if (mkdir(cgroup.group, 0755) != 0) {
        goto error;
    }
    cgroup.created = 1;
    what = file;
    if (write_number(cgroup_file(cgroup.group, file), limit) < 0) {
        goto error;
    }
    return 0;

error:
    test_skip("needs a %s cgroup: %s: %s", controller, what, strerror(errno));
    return -1;
}

int
join_cgroup(void)
{
    return write_number(cgroup_file(cgroup.group, "cgroup.procs"), 0);
}

long
read_cgroup(const char *file)
{
    return read_number(cgroup_file(cgroup.group, file));
}

/* Return how many steps have failed. */
static int
undo_cgroup(void)
{
    int failed = 0;
    if (cgroup.created) {
        /* After a signal its processes may still be about to end. */
        int tries = 0;
        while (rmdir(cgroup.group) != 0 && tries < 100) {
            (void)nanosleep(&short_pause, NULL);
            tries++;
        }
        failed += tries == 100;
    }
    if (cgroup.controller_added != NULL) {
        failed += switch_controller('-', cgroup.controller_added) < 0;
    }
    if (cgroup.mounted) {
        failed += umount(cgroup.mount) != 0;
    }
    if (cgroup.mount[0] != '\0') {
        failed += rmdir(cgroup.mount) != 0;
    }
    memset(&cgroup, 0, sizeof(cgroup));
    return failed;
}
