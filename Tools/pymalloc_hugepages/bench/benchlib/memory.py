"""The pool of huge pages, warming free memory, and a process's peak memory."""

import atexit
import mmap
import os
import signal
import subprocess
import tempfile
import time

from . import BenchError, last_line
from .process import describe_status


MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE_SIZE = 2 * MIB        # ARENA_SIZE of the builds measured
_POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"

# linux/mman.h; the mmap module does not have them.
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26


class PoolError(BenchError):
    """The pool cannot be made what a configuration needs."""


class Pool:
    """The kernel's pool of 2 MiB huge pages, put back as it was on exit.

    A context manager.  Shared by the whole machine: pages that other processes
    use are left to them and not counted here.
    """

    # Both decide what a process can get: the second is the number of pages
    # that the kernel may add to the pool by itself.
    _SETTINGS = ("nr_hugepages", "nr_overcommit_hugepages")

    def __init__(self, directory=_POOL):
        self._directory = directory
        self._found = None      # the settings found; None: nothing to restore
        self.exists = os.path.isdir(directory)
        self.writable = (self.exists and os.geteuid() == 0 and os.access(
            self._path("nr_hugepages"), os.W_OK))

    def _path(self, name):
        return os.path.join(self._directory, name)

    def _read(self, name):
        with open(self._path(name)) as file:
            return int(file.read())

    def _write(self, name, value):
        with open(self._path(name), "w") as file:
            file.write(f"{value}\n")

    def __enter__(self):
        if self.writable:
            self._found = {name: self._read(name) for name in self._SETTINGS}
            # For a signal that arrives between the last line of the with
            # block and __exit__().
            atexit.register(self.restore)
        return self

    def __exit__(self, *exc_info):
        self.restore()

    def restore(self):
        """Put the pool back as it was found.  Any number of calls will do."""
        if self._found is None:
            return
        stop = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        old = signal.pthread_sigmask(signal.SIG_BLOCK, stop)
        try:
            for name, value in self._found.items():
                self._write(name, value)
            self._found = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def available(self):
        """The number of pages that a process could get now."""
        if not self.exists:
            return 0
        return self._read("free_hugepages") - self._read("resv_hugepages")

    def set_available(self, pages):
        """Let a process get exactly this many pages.

        Without the right to do so, a pool with at least this many will do (a
        program that asks for none is not changed by those that are left).
        Raise PoolError if there are fewer.
        """
        if self.writable:
            self._write("nr_overcommit_hugepages", 0)
            others = self._read("nr_hugepages") - self.available()
            self._write("nr_hugepages", others + pages)
        got = self.available()
        if got >= pages:
            return
        if self.writable:
            raise PoolError(
                f"the kernel gave only {got} of {pages} huge pages: memory is "
                "short or fragmented; stop other programs, or reboot")
        if not self.exists:
            raise PoolError("this kernel has no pool of 2 MiB huge pages")
        raise PoolError(
            f"the pool has {got} free huge pages, {pages} are needed, and "
            "only root may change it; as root: "
            f"echo {pages} > /proc/sys/vm/nr_hugepages")


def _touch(size, flags, advice=None):
    """Map size bytes, write to every base page, unmap."""
    with mmap.mmap(-1, size, flags=flags) as memory:
        if advice is not None:
            try:
                memory.madvise(advice)
            except OSError:
                pass            # a kernel without THP: base pages will do
        memory[::mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)


def warm(size, pool_pages):
    """Touch and free size bytes of memory, and pool_pages pages of the pool.

    A virtual machine's host may take free memory back after a short while, and
    then whoever touches it next pays for getting it again, for a huge page
    most.  After this all configurations find their memory alike.  The host
    deals in blocks of free memory of 2 MiB and more, so it is huge pages that
    are touched here; the kernel cuts them up for those who want base pages.
    """
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if pool_pages:
        log2_size = HUGE_PAGE_SIZE.bit_length() - 1
        try:
            _touch(pool_pages * HUGE_PAGE_SIZE,
                   private | _MAP_HUGETLB | log2_size << _MAP_HUGE_SHIFT)
        except OSError as error:
            raise PoolError(f"the pool's {pool_pages} free huge pages cannot "
                            f"be used: {error.strerror}")
    if size:
        _touch(size, private, mmap.MADV_HUGEPAGE)


def _read_kib(path, names):
    """{name: bytes} for the lines "name:  123 kB" of a file in /proc; a name
    that is not there has 0."""
    found = dict.fromkeys(names, 0)
    with open(path) as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found


def available_memory():
    """Bytes that programs could get without swapping."""
    return _read_kib("/proc/meminfo", ["MemAvailable"])["MemAvailable"]


def current_memory(pid):
    """What a process has in memory now, in bytes, as a dict:

        rss         resident, pages of files included; no hugetlb pages
        pss         the same, but of a page that N processes share an Nth
        peak        the highest rss so far

    Raise OSError if there is no such process.
    """
    now = _read_kib(f"/proc/{pid}/smaps_rollup", ["Rss", "Pss"])
    status = _read_kib(f"/proc/{pid}/status", ["VmHWM"])
    return {"rss": now["Rss"], "pss": now["Pss"], "peak": status["VmHWM"]}


def peak_memory(command, env):
    """Run command and return its peak memory, in bytes, as a dict:

        rss         the kernel's own high-water mark; has no hugetlb pages
        hugetlb     hugetlb pages
        thp         transparent huge pages; these are in rss, too

    hugetlb and thp have no high-water mark: they are looked at about a
    thousand times a second, while the command runs, as is rss.  The kernel's
    ru_maxrss would not do: it has the peak of the process that forked, too.
    Raise BenchError if the command fails.
    """
    peak = {"rss": 0, "hugetlb": 0, "thp": 0}
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        try:
            while process.poll() is None:
                _raise_peak(peak, process.pid)
                time.sleep(0.001)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.returncode:
            stderr.seek(0)
            raise BenchError(last_line(stderr.read())
                             or describe_status(process.returncode))
    return peak


def _raise_peak(peak, pid):
    try:
        status = _read_kib(f"/proc/{pid}/status", ["VmHWM", "HugetlbPages"])
        rollup = _read_kib(f"/proc/{pid}/smaps_rollup", ["AnonHugePages"])
    except OSError:
        return                  # it has just ended
    for key, value in (("rss", status["VmHWM"]),
                       ("hugetlb", status["HugetlbPages"]),
                       ("thp", rollup["AnonHugePages"])):
        peak[key] = max(peak[key], value)
