"""What the tests of the tools share.

What depends on the kernel is tested on trees of files that look like /proc,
/sys and /etc, and once more for real.  Programs that write the statistics of a
patched interpreter stand in for one.  Tests that change the real pool need
root and put it back.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from hugepages import cli, process, reserve, run, smaps


PACKAGE = pathlib.Path(__file__).resolve().parent.parent
TOOL = str(PACKAGE.with_suffix(".py"))
MIB = 1 << 20
POOL = "sys/kernel/mm/hugepages/hugepages-2048kB"
LINUX = sys.platform == "linux"
requires_linux = unittest.skipUnless(LINUX, "needs Linux")


def call(main, *args):
    """Call a main(); return (exit status, stdout, stderr)."""
    with contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(args)
    return status, out.getvalue(), err.getvalue()


def is_patched():
    """Whether a patched interpreter runs the tests."""
    ask = getattr(sys, "_pymalloc_hugepages", None)
    return ask is not None and ask()["option"]


def end(child):
    """End a child that waits for the end of its stdin."""
    child.stdin.close()
    child.stdout.close()
    child.wait()


@contextlib.contextmanager
def lock_pool():
    """Have the real pool to oneself, in a with block.

    Other tests that change it (those of build-aux/test and Lib/test/test_capi)
    wait, as they take the same lock.
    """
    if not os.access(f"/{POOL}/nr_hugepages", os.W_OK):
        raise unittest.SkipTest("needs root, to change the pool")
    import fcntl                                # not on Windows
    lock = os.open(f"/{POOL}", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def pool_with(pages):
    """Have this many pages more in the real pool, in a with block."""
    path = f"/{POOL}/nr_hugepages"

    def write(pages):
        with open(path, "w") as file:
            file.write(str(pages))

    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_pool())
        before = reserve.read_pool()
        stack.callback(write, before.size)
        write(before.size + pages)
        if reserve.read_pool().size < before.size + pages:
            raise unittest.SkipTest("the kernel has no huge pages to give")
        yield before


def mapping(start, mib, fields="", flags="rd wr mr mw me ac", name="",
            permissions="rw-p"):
    """What smaps says of one mapping; start in MiB."""
    lines = [f"{start * MIB:x}-{(start + mib) * MIB:x} {permissions} "
             f"00000000 00:00 0 {name:>30}".rstrip() + " " * (not name),
             f"Size: {mib * 1024:14} kB"]
    values = {"KernelPageSize": 4, "Rss": mib * 1024, "AnonHugePages": 0,
              "Shared_Hugetlb": 0, "Private_Hugetlb": 0}
    for field in fields.split():
        key, _, value = field.partition("=")
        values[key] = int(value)
    # Unless it is said otherwise, no other process has it.
    for key in "Pss", "Private_Dirty":
        values.setdefault(key, values["Rss"])
    lines += [f"{key + ':':20}{value:5} kB" for key, value in values.items()]
    lines += ["THPeligible:           0", f"VmFlags: {flags} "]
    return "\n".join(lines) + "\n"


HUGETLB = "KernelPageSize=2048 Rss=0 Private_Hugetlb="
ANON_HUGEPAGE = "/anon_hugepage (deleted)"

# As a patched interpreter's: 3 arenas on the pool, 10 advised of which 9 are
# on huge pages, and all kinds of other memory, some of it on huge pages, too.
SMAPS = "".join([
    mapping(100, 3, flags="rd ex mr mw me", permissions="r-xp",
            name="/usr/bin/python3"),
    mapping(110, 4, "AnonHugePages=2048", flags="rd wr mr mw me ac hg",
            name="[heap]"),
    # A named one is another allocator's.
    mapping(120, 2, "AnonHugePages=2048", flags="rd wr mr mw me ac hg",
            name="[anon: glibc: malloc]"),
    # Not aligned, and not a multiple.
    mapping(131, 4, "AnonHugePages=2048", flags="rd wr mr mw me ac hg"),
    mapping(140, 3, "AnonHugePages=2048", flags="rd wr mr mw me ac hg"),
    # Not advised, as with the mode "always".
    mapping(150, 4, "AnonHugePages=4096"),
    mapping(160, 2, HUGETLB + "2048", "rd wr mr mw me de ht", ANON_HUGEPAGE),
    mapping(170, 4, HUGETLB + "4096", "rd wr mr mw me de ht", ANON_HUGEPAGE),
    # Shared, of a file, and of 1 GiB pages.
    mapping(180, 2, HUGETLB.replace("Private", "Shared") + "2048",
            "rd wr sh mr mw me ms de ht", "/SYSV00000000 (deleted)", "rw-s"),
    mapping(184, 2, HUGETLB + "2048", "rd wr sh mr mw me ms de ht",
            ANON_HUGEPAGE, "rw-s"),
    mapping(190, 2, HUGETLB + "2048", "rd wr mr mw me de ht",
            "/dev/hugepages/data"),
    mapping(1024, 1024, "KernelPageSize=1048576 Rss=0 Private_Hugetlb=1048576",
            "rd wr mr mw me de ht", ANON_HUGEPAGE),
    mapping(4096, 16, "AnonHugePages=16384", "rd wr mr mw me ac hg"),
    mapping(4120, 4, "AnonHugePages=2048", "rd wr mr mw me ac hg"),
    # Reserved address space, not memory.
    mapping(4200, 4, flags="mr mw me hg", permissions="---p"),
    mapping(8191, 1, name="[stack]"),
])

EXPECTED = smaps.Usage(
    hugetlb_size=6 * MIB, hugetlb=6 * MIB, thp_size=20 * MIB, thp=18 * MIB,
    thp_size_once=20 * MIB, thp_once=18 * MIB)
# Of all of it, arenas and other.
ALL_HUGETLB = (6 + 2 + 2 + 2 + 1024) * MIB
ALL_THP = (18 + 2 + 2 + 2 + 2 + 4) * MIB


# What shows a process as one that has loaded the wheel's extension.
EXTENSION = "/opt/lib/_pymalloc_hugepages.abi3.so"
WITH_WHEEL = {"exe": b"stock",
              "maps": f"7f00-7f10 r--p 00000000 08:01 3   {EXTENSION}\n"}


class Tree:
    """A tree with proc, sys and etc."""

    def __init__(self, root):
        self.root = root

    def path(self, name):
        return os.path.join(self.root, name)

    def write(self, name, data):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())

    def read(self, name):
        with open(self.path(name)) as file:
            return file.read()

    def add_process(self, pid, name="python", arguments=("python", "app.py"),
                    *, smaps=SMAPS, exe=process.MARKER, maps="", state="S",
                    parent=1, flags=0, start=100, environ="", children="",
                    status="", cgroup="0::/\n"):
        stat = [state, parent, 0, 0, 0, 0, flags, *[0] * 12, start, 0, 0]
        files = {"stat": f"{pid} ({name}) " + " ".join(map(str, stat)),
                 "cmdline": "".join(arg + "\0" for arg in arguments),
                 "comm": name[:15] + "\n", "smaps": smaps, "maps": maps,
                 "exe": exe, "environ": environ, "status": status,
                 "cgroup": cgroup,
                 f"task/{pid}/children": children}
        for file, data in files.items():
            self.write(f"proc/{pid}/{file}", data)
        if EXTENSION in maps:
            self.write(f"proc/{pid}/root{EXTENSION}", process.MARKER)

    def remove_process(self, pid):
        shutil.rmtree(self.path(f"proc/{pid}"))

    def add_pool(self, total=0, free=0, reserved=0, surplus=0, default=2048,
                 available_mib=1000):
        for name, value in [("nr", total), ("free", free), ("resv", reserved),
                            ("surplus", surplus)]:
            self.write(f"{POOL}/{name}_hugepages", f"{value}\n")
        self.write("proc/sys/vm/compact_memory", "")
        self.write("proc/meminfo",
                   f"MemAvailable: {available_mib * 1024} kB\n"
                   f"HugePages_Total: {total}\nHugepagesize: {default} kB\n")


class TestCase(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.tree = Tree(os.path.join(self.directory, "root"))
        self.root = self.tree.root

    def path(self, name):
        return os.path.join(self.directory, name)

    def tool(self, *args, status=0, **kwargs):
        """Run the tool; return what it printed, as (stdout, stderr)."""
        done = subprocess.run([sys.executable, TOOL, *args],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, **kwargs)
        self.assertEqual(done.returncode, status, done)
        self.assertNotIn("Traceback", done.stderr)
        return done.stdout, done.stderr

    def refuse(self, *args, pattern, status=2, **kwargs):
        """The tool must say one line, and nothing on stdout."""
        out, err = self.tool(*args, status=status, **kwargs)
        self.assertEqual(out, "")
        self.assertRegex(err, r"\Ahugepages\.py: [^\n]+\n\Z")
        self.assertRegex(err, pattern)

    def main(self, *args):
        """Call main() here; return (status, stdout, stderr)."""
        return call(cli.main, *args)


# Writes statistics as a patched interpreter does that has two first arenas on
# THP.  Arguments: exit status, and numbers for the peaks; one more starts
# another one of these.
INTERPRETER = """
import json, os, subprocess, sys
status, hugetlb, thp, plain, *rest = map(int, sys.argv[1:])
if rest:
    subprocess.call([sys.executable, sys.argv[0], "0", "100", "20", "3"])
with open(os.environ["PYTHON_PYMALLOC_HUGEPAGES_STATS"], "a") as file:
    tier = lambda peak, refused={}: {"now": 0, "peak": peak, "ever": peak,
                                     "refused": refused, "unusable": None}
    print(json.dumps({"pid": os.getpid(), "option": True, "switch": "on",
                      "arena_size": 2097152,
                      "hugetlb": tier(hugetlb, {"ENOMEM": max(0, thp - 2)}),
                      "thp": tier(thp), "plain": tier(plain),
                      "retained": tier(0)}), file=file)
# It may be a patched interpreter, which must not write its own.
sys.stdout.flush()
os._exit(status)
"""


def statistics_line(pid, hugetlb=0, thp=0, plain=0, *, asked=None, more=0,
                    unusable=None):
    """asked says how many of the arenas that were not on the pool had asked
    for that, if not all; more how many arenas came after others had gone."""
    if asked is None:
        asked = thp + plain
    return json.dumps({"pid": pid, **{
        name: {"now": 0, "peak": peak, "ever": peak + more, "refused": refused,
               "unusable": reason}
        for name, peak, refused, reason in [
            ("hugetlb", hugetlb, {"ENOMEM": asked - 1, "EFAULT": 1}, None),
            ("thp", thp, {}, unusable), ("plain", plain, {}, None)]}})


def outcome(statistics="", seen=(), together=(), pid=5, status=0):
    seen = {(one.pid, 0): one for one in seen}
    return run.Outcome(
        ["app"], "on", pid, status, 1.23456, 3456, 1,
        run.parse_statistics(statistics), seen,
        {frozenset((each, 0) for each in keys) for keys in together})
