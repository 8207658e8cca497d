#!/usr/bin/env python3
"""Fork again and again while threads work and the pool of huge pages is short.

Run it as root, with an interpreter built --with-pymalloc-hugepages or that of
an environment that has the wheel::

    sudo ./python Tools/pymalloc_hugepages/stress/stress_fork.py --forks 1000

It sets up a pool, and before each fork occupies a random part of it (none to
all), so that the parent gets huge pages for some arenas and not for others.
A process that has forked asks for no more pages of the pool where there are
transparent huge pages.  So half of the forks are those of many processes with
the switch "on", the other half of one with the switch "hugetlb", which goes on
taking pages of the pool.  Threads allocate, free and write objects of many
sizes meanwhile.

Each child verifies every object of its parent, writes to all of them,
allocates more, frees some, sometimes starts threads or forks itself, verifies
again, and leaves; the parent verifies its own after each.  The ways to fork
take turns: os.fork(), from the main and from another thread, multiprocessing,
preexec_fn of subprocess, os.forkpty(), and fork() of the C library as an
extension or an embedder calls it.

No process may be ended by a signal, no byte may be wrong, and at the end no
page of the pool may be lost, nor may a process have more file descriptors or
address space, but for arenas in use, than after its first forks.  The last
line is "N forks, N passed, N failed"; exit status 0 if all is well, 1 if not,
2 if nothing was tested.

A seed gives the same forks, sizes and fullness again, but not the same
interleaving of threads.  The pool is put back as it was, even if this process
is killed.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import importlib.util
import itertools
import mmap
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import warnings


MIB = 1 << 20
HUGE_PAGE = 2 * MIB
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"

# linux/mman.h; the mmap module does not have them.
MAP_HUGETLB = 0x40000
MAP_HUGE_SHIFT = 26
MADV_DONTFORK = 10

WORKERS = 3
# What each worker has: objects of many sizes, and groups of equal ones that
# take about an arena each.
OBJECTS = 1500
GROUPS = 6
GROUP_OBJECTS = 36 * 128
GROUP_SIZE = 400

# Forks of each process with the switch "on".  At its first, its arenas are on
# the pool; then fewer and fewer.
FEW_FORKS = 15

# How long a thread keeps the GIL from others: short, for many to be in the
# middle of something when one forks.
SWITCH_INTERVAL = 0.0005

# What a process of this test may take.  Enough for one on a loaded machine:
# whatever takes longer hangs.
CHILD_SECONDS = 120
PARENT_SECONDS = 2 * CHILD_SECONDS

# An arena lost with each of 100 forks would be 200 MiB.  The C tests look for
# the last byte.
ADDRESS_SPACE_SLACK = 8 * MIB

# Of the C library's malloc.h.
M_ARENA_MAX = -8


class StressError(Exception):
    """Nothing can be tested."""


class Corruption(Exception):
    """An object does not have the content that was written to it."""


# --- objects ---------------------------------------------------------------

def make_bytes(seed):
    return random.Random(seed).randbytes(1 << 16)


class Store:
    """Objects that know what they must contain.

    Entries are pairs of a bytearray and its version, of which its content
    follows.  Both the bytearray and its buffer are pymalloc's.  A fork in
    another thread sees an entry that is being written with the old or the
    new content, for it happens between two bytecodes.

    Groups are pairs of a list of bytes objects and the content of each.  They
    are many objects that are fast to make and to verify, and empty an arena
    when they go.
    """

    def __init__(self, seed, source):
        self.random = random.Random(seed)
        self.source = source
        self.entries = []
        self.groups = []
        self.writing = None         # an index and the version to come
        self.version = self.random.randrange(1 << 32)
        # Taken by who changes or verifies the objects.  Not by forked
        # children, which have nobody to share them with.
        self.lock = threading.Lock()

    def content(self, version, size):
        start = version * 37 % (len(self.source) - 1024)
        return version.to_bytes(8, "little") + self.source[start:start+size-8]

    def next_version(self):
        self.version += 1
        return self.version

    def append(self):
        size = self.random.randrange(16, 1000)
        version = self.next_version()
        self.entries.append((bytearray(self.content(version, size)), version))

    def append_group(self):
        content = self.content(self.next_version(), GROUP_SIZE)
        # Each a copy of its own.
        copies = map(bytes, itertools.repeat(bytearray(content),
                                             GROUP_OBJECTS))
        self.groups.append((list(copies), content))

    def fill(self, objects=OBJECTS, groups=GROUPS):
        while len(self.entries) < objects:
            self.append()
        while len(self.groups) < groups:
            self.append_group()

    def clear(self):
        self.entries.clear()
        self.groups.clear()

    def write(self, index):
        obj, _ = self.entries[index]
        version = self.next_version()
        self.writing = index, version
        obj[:] = self.content(version, len(obj))
        self.entries[index] = obj, version
        self.writing = None

    def write_all(self):
        for index in range(len(self.entries)):
            self.write(index)
        for objects, _ in self.groups:
            # Writes to the reference counts.
            list(objects)

    def verify(self):
        writing, version_to_come = self.writing or (None, None)
        for index, (obj, version) in enumerate(self.entries):
            expected = self.content(version, len(obj))
            if obj != expected and not (
                    index == writing
                    and obj == self.content(version_to_come, len(obj))):
                self.complain(index, obj, expected)
        for objects, content in self.groups:
            if objects.count(content) != GROUP_OBJECTS:
                for index, obj in enumerate(objects):
                    if obj != content:
                        self.complain(index, obj, content)
                raise Corruption(f"{len(objects)} of {GROUP_OBJECTS} objects")

    @staticmethod
    def complain(index, obj, expected):
        raise Corruption(
            f"object {index} at {id(obj):#x} has {bytes(obj[:24]).hex()}... "
            f"in place of {expected[:24].hex()}...")

    def step(self):
        """Do a little of what a program does."""
        what = self.random.random()
        entries = self.entries
        if what < 0.4:
            for _ in range(100):
                self.write(self.random.randrange(len(entries)))
        elif what < 0.6:
            # Replace objects by those of other sizes.
            for _ in range(100):
                index = self.random.randrange(len(entries))
                self.append()
                entries[index] = entries.pop()
        elif what < 0.8:
            # Arenas that come and go.
            temporary = [bytes(400) for _ in range(
                self.random.randrange(2 * GROUP_OBJECTS))]
            temporary.clear()
        else:
            # Give arenas back, so that the pool is asked again.
            del self.groups[self.random.randrange(GROUPS):]
            self.fill()


class Worker:
    """A thread that is busy with a store of its own."""

    def __init__(self, seed, source):
        self.store = Store(seed, source)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.error = None

    def run(self):
        try:
            store = self.store
            while not self.stop.is_set():
                with store.lock:
                    store.step()
                # Let others have the lock.
                time.sleep(0)
        except BaseException as exc:
            self.error = exc

    def start(self):
        self.store.fill()
        self.thread.start()

    def verify(self):
        with self.store.lock:
            self.store.verify()
        if self.error is not None:
            raise Corruption(f"a thread failed: {self.error!r}")

    def end(self):
        self.stop.set()
        self.thread.join()
        self.store.clear()


# --- children --------------------------------------------------------------

def use_threads(seed, source):
    stores = [Store(f"{seed} {i}", source) for i in range(3)]
    errors = []

    def work(store):
        try:
            store.fill(1000, 1)
            for _ in range(3):
                store.step()
            store.verify()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(store,))
               for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def do_child_work(stores, seed, may_fork=True):
    """What each forked process does.  Raise an exception if it goes wrong."""
    signal.alarm(CHILD_SECONDS)
    chance = random.Random(seed)
    source = stores[0].source
    for store in stores:
        store.verify()
    for store in stores:
        store.write_all()
    more = Store(f"{seed} more", source)
    more.fill(chance.randrange(2000), chance.randrange(2 * GROUPS))
    for store in stores:
        store.verify()
        if chance.random() < 0.3:
            del store.groups[chance.randrange(GROUPS):]
            store.fill()
    if chance.random() < 0.2:
        use_threads(seed, source)
    if may_fork and chance.random() < 0.2:
        pid = os.fork()
        if pid == 0:
            run_child(stores + [more], f"{seed} again", False)
        stores[0].write_all()
        check_status(os.waitpid(pid, 0)[1], "its own child")
    for store in stores:
        store.write_all()
        store.verify()
    more.verify()


def run_child(stores, seed, may_fork=True):
    """Do the work of a forked process, and end it."""
    status = 1
    try:
        do_child_work(stores, seed, may_fork)
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def check_status(wait_status, who="the child"):
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        raise Corruption(f"{who} was ended by {name}")
    if code > 0:
        raise Corruption(f"{who} ended with status {code}")


# --- ways to fork ----------------------------------------------------------

def by_os_fork(work):
    pid = os.fork()
    if pid == 0:
        work(leave=True)
    check_status(os.waitpid(pid, 0)[1])


def by_thread(work):
    errors = []

    def fork():
        try:
            by_os_fork(work)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def by_multiprocessing(work):
    process = multiprocessing.get_context("fork").Process(
        target=work, kwargs={"leave": True})
    process.start()
    process.join()
    exitcode = process.exitcode
    process.close()
    check_status(-exitcode if exitcode < 0 else exitcode << 8)


def by_preexec_fn(work):
    # An exception of preexec_fn is a SubprocessError here.
    process = subprocess.Popen(["/bin/true"], preexec_fn=work)
    code = process.wait()
    check_status(-code if code < 0 else code << 8)


def by_forkpty(work):
    pid, terminal = os.forkpty()
    if pid == 0:
        work(leave=True)
    output = b""
    with open(terminal, "rb", buffering=0) as file:
        # Where the terminal has no user any more, reading fails with EIO.
        with contextlib.suppress(OSError):
            while data := file.read(4096):
                output += data
    status = os.waitpid(pid, 0)[1]
    if output:
        sys.stderr.write(output.decode(errors="replace"))
    check_status(status)


# PyDLL holds the GIL, as an extension does that calls fork().
libc = ctypes.PyDLL(None)


def by_extension(work):
    # C code calls PyOS_AfterFork_Child() right after fork().  Between the two
    # calls here the child must not be asked to give up the GIL, for it has
    # nobody to give it to.  No thread asks when the interval is long, once
    # those that waited with the old one have had it.
    sys.setswitchinterval(10)
    time.sleep(0.01)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = libc.fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        work(leave=True)
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    sys.setswitchinterval(SWITCH_INTERVAL)
    check_status(os.waitpid(pid, 0)[1])


WAYS = {
    "os.fork": by_os_fork,
    "os.fork in a thread": by_thread,
    "multiprocessing": by_multiprocessing,
    "preexec_fn": by_preexec_fn,
    "os.forkpty": by_forkpty,
    "fork of an extension": by_extension,
}


# --- the system ------------------------------------------------------------

def read_number(name):
    with open(f"{POOL}/{name}") as file:
        return int(file.read())


def available_pages():
    return read_number("free_hugepages") - read_number("resv_hugepages")


def own_status():
    """Pages of the pool, and bytes of address space, of this process."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    pages = int(fields["HugetlbPages"].split()[0]) * 1024 // HUGE_PAGE
    return pages, int(fields["VmSize"].split()[0]) * 1024


def arenas_size():
    """Bytes of the arenas that pymalloc knows.  They come and go, as a few
    objects that threads leave behind keep one."""
    with tempfile.TemporaryFile("w+") as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        count, size = re.search(r"(\d+) arenas \* (\d+) bytes/arena",
                                file.read()).groups()
    return int(count) * int(size)


def count_descriptors():
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def pool_of(pages):
    """Have at least that many pages available in the pool.

    The shell puts the pool back when its standard input is closed, which the
    kernel does even if this process is killed.
    """
    names = ["nr_hugepages", "nr_overcommit_hugepages"]
    missing = pages - available_pages()
    if missing <= 0 and read_number(names[1]) == 0:
        yield
        return
    if not os.access(f"{POOL}/{names[0]}", os.W_OK):
        raise StressError(f"only root can set up a pool of {pages} huge pages")
    size = read_number(names[0])
    # Pages that are in use when a pool is made smaller stay in it as surplus.
    old = [str(size - read_number("surplus_hugepages")),
           str(read_number(names[1]))]
    undo = ('cat > /dev/null; echo "$2" > "$1/nr_hugepages"; '
            'echo "$3" > "$1/nr_overcommit_hugepages"')
    shell = subprocess.Popen(["/bin/sh", "-c", undo, "sh", POOL, *old],
                             stdin=subprocess.PIPE, start_new_session=True)
    # A child that outlives this process must not keep it open.
    os.register_at_fork(after_in_child=shell.stdin.close)
    try:
        for name, value in zip(names, (size + max(missing, 0), 0)):
            with open(f"{POOL}/{name}", "w") as file:
                file.write(f"{value}\n")
        if available_pages() < pages:
            raise StressError(f"the kernel has not the memory for {pages} "
                              "huge pages")
        yield
    finally:
        shell.stdin.close()
        shell.wait()


class Occupant:
    """Keeps pages of the pool from all others."""

    def __init__(self):
        self.mapping = None

    def release(self):
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None

    def leave(self, pages):
        """Leave that many of the available pages, as far as there are."""
        self.release()
        flags = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
                 | (HUGE_PAGE.bit_length() - 1) << MAP_HUGE_SHIFT)
        # Threads take pages at the same time: another try may be needed.
        for _ in range(10):
            count = available_pages() - pages
            if count <= 0:
                return
            try:
                self.mapping = mmap.mmap(-1, count * HUGE_PAGE, flags)
            except OSError:
                continue
            # A child is not to have a mapping without its pages.
            self.mapping.madvise(MADV_DONTFORK)
            return


# --- the test --------------------------------------------------------------

class Stress:

    def __init__(self, options):
        self.forks = options.forks
        self.pool = options.pool
        self.seed = options.seed
        self.random = random.Random(options.seed)
        self.source = make_bytes(options.seed)
        self.occupant = Occupant()
        self.workers = []
        self.generation = 0
        self.failed = 0
        self.faults = 0             # those that are not of a single fork
        self.pages = []             # pages of this process at each fork

    def start_workers(self, pages=None):
        """Start workers that find this many pages in the pool, or all."""
        self.occupant.release()
        if pages is not None:
            self.occupant.leave(pages)
        self.generation += 1
        self.workers = [
            Worker(f"{self.seed} {self.generation} {i}", self.source)
            for i in range(WORKERS)]
        for worker in self.workers:
            worker.start()

    def end_workers(self):
        for worker in self.workers:
            worker.end()
        self.workers = []
        self.occupant.release()
        gc.collect()

    def fault(self, text):
        print(f"FAILED: {text}", flush=True)
        self.faults += 1

    def fork(self, number):
        """Fork once; return what has gone wrong, or None."""
        way, fork = self.random.choice(list(WAYS.items()))
        fullness = self.random.random()
        # Now and then all of it, or nothing.
        left = int(self.pool * min(max(1.25 * fullness - 0.125, 0), 1))
        chance = self.random.random()
        if chance < 0.15:
            # Parents, too, have some of their arenas on other pages.
            self.end_workers()
            self.start_workers(self.random.randrange(WORKERS * (GROUPS + 1)))
        elif chance < 0.5:
            # Let the threads have pages again.
            self.occupant.release()
        time.sleep(self.random.random() * 0.01)
        self.occupant.leave(left)
        self.pages.append(own_status()[0])

        stores = [worker.store for worker in self.workers]
        seed = f"{self.seed} fork {number}"

        def work(leave=False):
            if leave:
                run_child(stores, seed)
            else:
                try:
                    do_child_work(stores, seed)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    raise

        faulthandler.dump_traceback_later(PARENT_SECONDS, exit=True)
        try:
            fork(work)
            for worker in self.workers:
                worker.verify()
        except (Corruption, OSError, MemoryError,
                subprocess.SubprocessError) as exc:
            return (f"fork {number} by {way}, {self.pages[-1]} pages of the "
                    f"parent, {left} left in the pool: {exc!r}")
        return None

    def measure(self):
        """Descriptors, and address space without arenas in use, while nothing
        goes on."""
        self.end_workers()
        return count_descriptors(), own_status()[1] - arenas_size()

    def run(self):
        all_pages = available_pages() + own_status()[0]
        before = None
        self.start_workers()
        if own_status()[0] == 0:
            raise StressError("this interpreter takes no huge pages of the "
                              "pool; is it switched off by "
                              "PYTHON_PYMALLOC_HUGEPAGES?")
        for number in range(1, self.forks + 1):
            # What is done once has been done by then.
            if number == self.forks // 10 + 2 and self.forks > FEW_FORKS:
                before = self.measure()
                self.start_workers()
            error = self.fork(number)
            if error is not None:
                self.failed += 1
                print(f"FAILED: {error}", flush=True)
        faulthandler.cancel_dump_traceback_later()
        after = self.measure()

        print(f"Pages of the parent at a fork: {min(self.pages)} to "
              f"{max(self.pages)}, median {statistics.median(self.pages):g}")
        if before is not None:
            self.check_growth(before, after)
        self.check_pool(all_pages)
        print(f"{self.forks} forks, {self.forks - self.failed} passed, "
              f"{self.failed} failed")
        return 1 if self.failed or self.faults else 0

    def check_growth(self, before, after):
        descriptors, size = (new - old for old, new in zip(before, after))
        print(f"Growth: {descriptors} file descriptors, {size // 1024} KiB of "
              "address space")
        if descriptors > 0:
            self.fault(f"{descriptors} file descriptors were left open")
        if size > ADDRESS_SPACE_SLACK:
            self.fault(f"{size // 1024} KiB of address space were lost")

    def check_pool(self, all_pages):
        # Other processes may use the pool for a moment.
        for _ in range(50):
            lost = all_pages - available_pages() - own_status()[0]
            if lost == 0:
                break
            time.sleep(0.1)
        print(f"Pages of the pool lost: {lost}")
        if lost != 0:
            self.fault(f"{lost} pages of the pool are missing")


class Parser(argparse.ArgumentParser):

    def error(self, message):
        raise StressError(message)


def parse_arguments():
    parser = Parser(
        prog="stress_fork.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=1000, metavar="N",
                        help="(default: 1000)")
    parser.add_argument("--pool", type=int, default=64, metavar="N",
                        help="huge pages to have in the pool (default: 64)")
    parser.add_argument("--seed", type=int, default=None, metavar="N",
                        help="(default: a random one, which is printed)")
    parser.add_argument("--switch", choices=["on", "hugetlb"],
                        help="let one process do all forks, with the switch "
                        "that it was started with, which must be this one")
    options = parser.parse_args()
    for name in "forks", "pool":
        if getattr(options, name) < 1:
            raise StressError(f"--{name} must be 1 or more")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options


def parts(options):
    """(switch, forks, seed) of the processes that share the work."""
    left = options.forks // 2
    yield "hugetlb", options.forks - left, options.seed
    while left > 0:
        forks = min(left, FEW_FORKS)
        yield "on", forks, options.seed + left
        left -= forks


def run_part(options, switch, forks, seed):
    """Run a process that forks so often.  Return how many forks have passed,
    and whether all else was well."""
    command = [sys.executable, "-X", f"pymalloc_hugepages={switch}", __file__,
               "--switch", switch, "--forks", str(forks), "--seed", str(seed),
               "--pool", str(options.pool)]
    passed = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE,
                          text=True) as process:
        try:
            for line in process.stdout:
                match = re.fullmatch(
                    r"\d+ forks, (\d+) passed, \d+ failed\n", line)
                if match is None:
                    print(line, end="", flush=True)
                else:
                    passed = int(match[1])
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 2:
        raise StressError("nothing can be tested, see above")
    if process.returncode not in (0, 1):
        print(f"FAILED: the process with {switch} and seed {seed} ended with "
              f"status {process.returncode}", flush=True)
    return passed, process.returncode == 0


def run_parts(options):
    """Return the exit status."""
    passed, is_well = 0, True
    for part in parts(options):
        more, is_part_well = run_part(options, *part)
        passed += more
        is_well = is_well and is_part_well
    print(f"{options.forks} forks, {passed} passed, {options.forks - passed} "
          "failed")
    return 0 if is_well and passed == options.forks else 1


def main():
    try:
        options = parse_arguments()
        if (not sysconfig.get_config_var("PYMALLOC_USE_HUGEPAGES")
                and importlib.util.find_spec("pymalloc_hugepages") is None):
            raise StressError(f"{sys.executable} is not built "
                              "--with-pymalloc-hugepages, nor has the wheel")
        if not os.path.isdir(POOL):
            raise StressError("this kernel has no pool of 2 MiB huge pages")
        # Threads are the point of it.
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.setswitchinterval(SWITCH_INTERVAL)
        # The C library would set aside 64 MiB of address space for a thread
        # now and then.
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
        # Leave as after an exception, with the pool put back.
        signal.signal(signal.SIGTERM, lambda *args: sys.exit(1))
        with pool_of(options.pool):
            if options.switch is None:
                return run_parts(options)
            print(f"{options.forks} forks with seed {options.seed}, the "
                  f"switch {options.switch} and a pool of {options.pool} huge "
                  "pages", flush=True)
            return Stress(options).run()
    except StressError as error:
        print(f"stress_fork.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
