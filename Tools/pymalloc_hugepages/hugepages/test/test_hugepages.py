"""Tests of hugepages.py.

What depends on the kernel is tested on trees of files that look like /proc,
/sys and /etc, and once more for real.  Programs that write the statistics of a
patched interpreter stand in for one.  Tests that change the real pool need
root and put it back.

test_system.py has the tests of `status` without a process.
"""

import contextlib
import io
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

from hugepages import ToolError, cli, malloc, process, reserve, run

from .support import call


PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = f"{PACKAGE}.py"
MANUAL = os.path.join(PACKAGE, "hugepages.1")
MIB = 1 << 20
LINUX = sys.platform == "linux"
POOL = "sys/kernel/mm/hugepages/hugepages-2048kB"

requires_linux = unittest.skipUnless(LINUX, "needs Linux")


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
EXPECTED = process.Usage(
    hugetlb_size=6 * MIB, hugetlb=6 * MIB, thp_size=20 * MIB, thp=18 * MIB,
    other_hugetlb=(2 + 2 + 2 + 1024) * MIB,
    other_thp=(2 + 2 + 2 + 2 + 4) * MIB)

LIBRARY = "/opt/lib/libpython3.13.so.1.0"
MAPS = f"""\
55d0-55d1 r--p 00000000 08:01 1      /opt/bin/python3.13
7f00-7f20 r--p 00000000 08:01 2      {LIBRARY}
7f20-7f40 r-xp 00020000 08:01 2      {LIBRARY}
"""


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
                    status=""):
        stat = [state, parent, 0, 0, 0, 0, flags, *[0] * 12, start, 0, 0]
        files = {"stat": f"{pid} ({name}) " + " ".join(map(str, stat)),
                 "cmdline": "".join(arg + "\0" for arg in arguments),
                 "comm": name[:15] + "\n", "smaps": smaps, "maps": maps,
                 "exe": exe, "environ": environ, "status": status,
                 f"task/{pid}/children": children}
        for file, data in files.items():
            self.write(f"proc/{pid}/{file}", data)

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


class SmapsTests(TestCase):
    def test_what_counts(self):
        usage = process.add_up(process.parse_smaps(io.StringIO(SMAPS)))
        self.assertEqual(usage, EXPECTED)
        self.assertEqual((usage.hugetlb_arenas, usage.thp_arenas), (3, 10))
        self.assertAlmostEqual(usage.percent, 100 * 24 / 26)

    def test_nothing(self):
        usage = process.add_up(process.parse_smaps(io.StringIO("")))
        self.assertEqual((usage, usage.percent), (process.Usage(), None))

    def test_old_kernel(self):
        # Linux 3.2 has no VmFlags and no *_Hugetlb, and names nothing.
        text = ("00200000-00600000 rw-p 00000000 00:00 0 \n"
                "Size:               4096 kB\nAnonHugePages:      2048 kB\n"
                "KernelPageSize:        4 kB\n")
        self.assertEqual(process.add_up(process.parse_smaps(
            io.StringIO(text))), process.Usage(other_thp=2 * MIB))

    def test_unknown_lines_and_names_with_spaces_and_colons(self):
        text = ("200000-400000 rw-p 00000000 08:01 12    /tmp/a: b\n"
                "Newfangled:      12 furlongs\nProtectionKey:  0\n"
                "AnonHugePages:   2048 kB\n"
                "400000-600000 rw-p 00000000 00:00 0 \n"
                "AnonHugePages:   2048 kB\nVmFlags: rd wr hg\n")
        first, second = process.parse_smaps(io.StringIO(text))
        self.assertEqual((first.name, first.tier, first.thp),
                         ("/tmp/a: b", None, 2 * MIB))
        self.assertEqual((second.name, second.tier), ("", "thp"))

    def test_after_a_fork(self):
        # The advice was taken back, here of three arenas in a row.
        shared = mapping(4096, 6, "AnonHugePages=4096",
                         flags="rd wr mr mw me ac nh")
        usage = process.add_up(process.parse_smaps(io.StringIO(shared)))
        self.assertEqual(usage, process.Usage(thp_size=6 * MIB, thp=4 * MIB))

    def test_reads_no_more_than_it_needs(self):
        lines = itertools.cycle(SMAPS.splitlines(keepends=True))
        regions = list(itertools.islice(process.parse_smaps(lines), 1000))
        self.assertEqual(len(regions), 1000)


class InterpreterTests(TestCase):
    def find(self, **kwargs):
        self.tree.add_process(5, **kwargs)
        return process.find_interpreter(5, self.root)

    def test_program(self):
        self.assertEqual(self.find(exe=b"\0" * MIB + process.MARKER),
                         self.tree.path("proc/5/exe"))

    def test_program_by_its_name(self):
        self.tree.add_process(5)
        os.unlink(self.tree.path("proc/5/exe"))
        self.tree.write("opt/python", process.MARKER)
        os.symlink(self.tree.path("opt/python"), self.tree.path("proc/5/exe"))
        self.assertEqual(process.find_interpreter(5, self.root),
                         self.tree.path("opt/python"))

    def test_marker_between_two_pieces(self):
        for before in range(MIB - len(process.MARKER) - 1, MIB + 2):
            with self.subTest(before):
                file = io.BytesIO(b"x" * before + process.MARKER + b"y" * 99)
                self.assertTrue(process._find_in(file, process.MARKER))

    def test_other_program(self):
        self.assertIsNone(self.find(exe=b"x" * (3 * MIB)))
        self.assertIsNone(self.find(exe=b"PYTHON_PYMALLOC_HUGEPAGES"))
        self.assertIsNone(self.find(exe=b""))

    def test_library_by_its_mapping(self):
        # The one at its path is another one by now.
        self.tree.write("proc/5/map_files/7f00-7f20", process.MARKER)
        self.tree.write("proc/5/root" + LIBRARY, b"replaced")
        self.assertEqual(self.find(exe=b"", maps=MAPS), LIBRARY)

    def test_library_by_its_path(self):
        self.tree.write("proc/5/root" + LIBRARY, process.MARKER)
        self.assertEqual(self.find(exe=b"", maps=MAPS), LIBRARY)

    def test_unpatched_library(self):
        self.tree.write("proc/5/map_files/7f00-7f20", b"nothing")
        self.tree.write("proc/5/root" + LIBRARY, process.MARKER)
        self.assertIsNone(self.find(exe=b"", maps=MAPS))

    def test_library_that_cannot_be_read(self):
        with self.assertRaises(OSError):
            self.find(exe=b"", maps=MAPS)

    def test_other_libraries(self):
        self.tree.write("proc/5/root/lib/x.so", process.MARKER)
        self.assertIsNone(self.find(
            exe=b"", maps="7f00-7f20 r--p 00000000 08:01 2   /lib/x.so\n"))


class ReportTests(TestCase):
    def report(self, **kwargs):
        self.tree.add_process(5, **kwargs)
        return process.look_at(5, self.root)

    def text(self, **kwargs):
        return "\n".join(process.as_lines(self.report(**kwargs)))

    def test_patched(self):
        report = self.report(status="Name:\tx\nTHP_enabled:\t1\n")
        self.assertEqual(report.usage, EXPECTED)
        self.assertEqual((report.patched, report.status), (True, 0))
        text = "\n".join(process.as_lines(report))
        self.assertRegex(text, r"\A5 python app.py\n")
        self.assertRegex(text, r"hugetlb +3 arenas, 6 MiB\n")
        self.assertRegex(text, r"THP +10 arenas advised, 20 MiB; 18 MiB of it"
                               r" on huge pages now\n")
        self.assertRegex(text, r"huge pages +92.3 % of these 13 arenas\n")
        self.assertRegex(text, r"besides +1,030 MiB hugetlb, 12 MiB transp")
        self.assertRegex(text, r"plain pages are not counted")
        result = process.as_dict(report)
        self.assertEqual(result["hugetlb"], {
            "arenas": 3, "size": 6 * MIB, "on_huge_pages": 6 * MIB})
        self.assertEqual(result["thp"], {
            "arenas": 10, "size": 20 * MIB, "on_huge_pages": 18 * MIB})
        self.assertEqual(result["huge_percent"], 92.3)
        self.assertIs(result["thp_enabled"], True)
        self.assertEqual(json.loads(json.dumps(result)), result)

    def test_not_patched(self):
        report = self.report(exe=b"perl")
        self.assertEqual((report.patched, report.status), (False, 1))
        text = "\n".join(process.as_lines(report))
        self.assertIn("no interpreter built --with-pymalloc-hugepages", text)
        self.assertIn("1,036 MiB hugetlb, 30 MiB transparent", text)
        self.assertNotIn("arenas", text)
        self.assertIsNone(process.as_dict(report)["thp"])

    def test_unknown(self):
        report = self.report(exe=b"", maps=MAPS)
        self.assertEqual((report.patched, report.status), (None, 2))
        self.assertIn("No such file", process.as_dict(report)["problem"])
        self.assertIn("cannot be read",
                      "\n".join(process.as_lines(report)))

    def test_none_on_huge_pages(self):
        advised = mapping(4096, 16, flags="rd wr mr mw me ac hg")
        self.assertEqual(self.report(smaps=advised).status, 1)
        text = self.text(smaps=advised,
                         status="THP_enabled:\t0\n",
                         environ="A=b\0PYTHON_PYMALLOC_HUGEPAGES=off\0"
                         "PYTHONMALLOC=malloc\0")
        self.assertIn(" 0.0 % of these 8 arenas", text)
        self.assertIn("PYTHON_PYMALLOC_HUGEPAGES=off", text)
        self.assertIn("PYTHONMALLOC=malloc", text)
        self.assertIn("PR_SET_THP_DISABLE", text)
        self.assertNotIn("A small program", text)
        text = self.text(smaps="")
        self.assertNotIn("%", text)
        self.assertIn("A small program has none", text)
        self.assertIn("status` says", text)

    def test_names_do_nothing_to_the_terminal(self):
        text = self.text(arguments=["python", "\033[2J", "a b", "\udcff"[:0]])
        self.assertNotIn("\033", text)
        self.assertIn("'a b'", text)

    def assert_refused(self, pattern, error=ToolError):
        with self.assertRaisesRegex(error, pattern) as caught:
            process.look_at(5, self.root)
        self.assertNotIn("\n", str(caught.exception))

    def test_gone(self):
        self.assert_refused("there is no process 5", process.ProcessGone)

    def test_kernel_thread(self):
        self.tree.add_process(5, "kworker/0:1", (), flags=0x200040)
        self.assert_refused(r"kworker/0:1\) is a thread of the kernel")

    def test_zombie(self):
        self.tree.add_process(5, state="Z")
        self.assert_refused("has ended", process.ProcessGone)

    def test_dies_while_it_is_read(self):
        self.tree.add_process(5)
        for error in ProcessLookupError, FileNotFoundError:
            with mock.patch.object(process, "read_usage", side_effect=error):
                self.assert_refused("has just ended", process.ProcessGone)

    def test_is_a_zombie_after_it_was_read(self):
        self.tree.add_process(5)

        def end(pid, root):
            self.tree.add_process(5, state="Z", smaps="")
            return process.Usage()
        with mock.patch.object(process, "read_usage", end):
            self.assert_refused("has just ended", process.ProcessGone)

    def test_no_permission(self):
        self.tree.add_process(5)
        with mock.patch.object(process, "read_usage",
                               side_effect=PermissionError):
            self.assert_refused("no permission .* sudo .*status 5")

    def test_other_error(self):
        self.tree.add_process(5)
        with mock.patch.object(process, "read_usage",
                               side_effect=OSError(5, "Input/output error")):
            self.assert_refused("Input/output error")


class FindTests(TestCase):
    def find(self, name):
        return process.find(name, self.root)

    def setUp(self):
        super().setUp()
        add = self.tree.add_process
        add(1, "init", ["/sbin/init"])
        add(2, "kthreadd", [])
        add(10, "python3", ["/usr/bin/python3", "-X", "dev", "/srv/app.py"])
        add(11, "app.py", ["/usr/bin/python3", "/srv/app.py"])
        add(12, "python3", ["python3", "-um", "x", "app.py"])
        add(13, "python3", ["python3", "-m", "app"])
        add(14, "python3", ["python3", "-c", "pass", "app.py"])
        add(15, "vi", ["vi", "app.py"])
        add(16, "worker", ["/opt/gunicorn: worker"])
        self.tree.write("proc/17/comm", "half\n")
        self.tree.write("proc/self", "")

    def test_names(self):
        self.assertEqual(self.find("init"), [1])
        self.assertEqual(self.find("kthreadd"), [2])
        self.assertEqual(self.find("app.py"), [10, 11])
        self.assertEqual(self.find("x"), [12])
        self.assertEqual(self.find("app"), [13])
        self.assertEqual(self.find("python3"), [10, 11, 12, 13, 14])
        self.assertEqual(self.find("worker"), [16])
        self.assertEqual(self.find("gunicorn: worker"), [16])

    def test_pid(self):
        self.assertEqual(self.find("12345"), [12345])

    def test_none(self):
        with self.assertRaisesRegex(ToolError, "no process is called 'nope'"):
            self.find("nope")

    def test_not_itself(self):
        self.tree.add_process(os.getpid(), "itself")
        with self.assertRaisesRegex(ToolError, "no process is called"):
            self.find("itself")

    def test_no_proc(self):
        with self.assertRaisesRegex(ToolError, "cannot list processes"):
            process.find("x", self.path("nothing"))


# Looks like a patched interpreter from outside: maps a libpython with the
# marker, and memory as arenas are.  Says when it is ready, ends with its
# stdin.
CHILD = """
import ctypes, mmap, sys
library, tier = sys.argv[1:]
with open(library, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
MIB = 1 << 20
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
if tier == "hugetlb":
    try:
        arenas = mmap.mmap(-1, 4 * MIB, flags=flags | 0x40000 | 21 << 26)
    except OSError as error:
        sys.exit(print(error.strerror))
    arenas[0] = arenas[2 * MIB] = 1
else:
    arenas = mmap.mmap(-1, 8 * MIB, flags=flags)
    address = ctypes.addressof(ctypes.c_char.from_buffer(arenas))
    start = -address % (2 * MIB)
    arenas.madvise(mmap.MADV_HUGEPAGE, start, 4 * MIB)
    arenas[start] = arenas[start + 2 * MIB] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def pool_with(pages):
    """Have so many pages more in the real pool, in a with block.

    Other tests that change it (those of Lib/test/test_capi) wait, as they take
    the same lock.
    """
    path = f"/{POOL}/nr_hugepages"
    if not os.access(path, os.W_OK):
        raise unittest.SkipTest("needs root, to change the pool")

    def write(pages):
        with open(path, "w") as file:
            file.write(str(pages))

    import fcntl
    with contextlib.ExitStack() as stack:
        lock = os.open(f"/{POOL}", os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = reserve.read_pool()
        stack.callback(write, before.size)
        write(before.size + pages)
        if reserve.read_pool().size < before.size + pages:
            raise unittest.SkipTest("the kernel has no huge pages to give")
        yield before


def end(child):
    """End a child that waits for the end of its stdin."""
    child.stdin.close()
    child.stdout.close()
    child.wait()


def is_patched():
    """Whether a patched interpreter runs the tests."""
    ask = getattr(sys, "_pymalloc_hugepages", None)
    return ask is not None and ask()["option"]


@requires_linux
class RealProcessTests(TestCase):
    def start(self, tier="thp"):
        library = self.path("libpython-test.so")
        with open(library, "wb") as file:
            file.write(process.MARKER * 99)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, library, tier],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True,
            # It may be a patched interpreter that runs the tests.
            env={**os.environ, "PYTHON_PYMALLOC_HUGEPAGES": "off"})
        self.addCleanup(end, child)
        line = child.stdout.readline()
        if line != "ready\n":
            self.skipTest(f"cannot have {tier} pages: {line or 'no THP'}")
        return child

    def anon_huge_pages(self, pid):
        with open(f"/proc/{pid}/smaps") as file:
            return 1024 * sum(map(int, re.findall(
                r"^AnonHugePages: +(\d+) kB", file.read(), re.M)))

    def test_thp(self):
        child = self.start()
        total = self.anon_huge_pages(child.pid)
        out, _ = self.tool("status", str(child.pid), "--json",
                           status=0 if total else 1)
        [shown] = json.loads(out)["processes"]
        self.assertIs(shown["patched"], True)
        if not is_patched():
            self.assertEqual(shown["interpreter"],
                             self.path("libpython-test.so"))
        self.assertEqual((shown["thp"]["arenas"], shown["thp"]["size"]),
                         (2, 4 * MIB))
        self.assertEqual(shown["all_thp"], total)
        self.assertLessEqual(shown["thp"]["on_huge_pages"], total)
        self.assertEqual(shown["hugetlb"]["arenas"], 0)

    def test_hugetlb(self):
        # Others may take some of them.
        with pool_with(16):
            child = self.start("hugetlb")
            out, _ = self.tool("--json", "status", str(child.pid))
            child.communicate()
        [shown] = json.loads(out)["processes"]
        self.assertEqual(shown["hugetlb"], {
            "arenas": 2, "size": 4 * MIB, "on_huge_pages": 4 * MIB})
        self.assertEqual(shown["huge_percent"], 100.0)

    def test_no_patched_interpreter(self):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        self.addCleanup(end, child)
        out, err = self.tool("status", str(child.pid), status=1)
        self.assertIn("is no interpreter built", out)
        self.assertEqual(err, "")

    def test_dead(self):
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        self.refuse("status", str(child.pid), pattern="there is no process")
        self.refuse("status", str(child.pid), "--watch",
                    pattern="there is no process")
        self.refuse("status", "no-such-name", pattern="no process is called")

    def test_watch_until_the_process_ends(self):
        for options, pattern in ((["--json"], None),
                                 ([], r"\d\d:\d\d:\d\d \d+ .*2 arenas THP")):
            with self.subTest(options), self.start() as child, \
                    subprocess.Popen(
                        [sys.executable, TOOL, "status", str(child.pid),
                         "--watch", "0.02", *options],
                        stdout=subprocess.PIPE,
                        universal_newlines=True) as tool:
                for _ in range(2):
                    line = tool.stdout.readline()
                    if pattern is None:
                        [shown] = json.loads(line)["processes"]
                        self.assertEqual(shown["pid"], child.pid)
                    else:
                        self.assertRegex(line, pattern)
                child.communicate()
                tool.stdout.read()
                self.assertEqual(tool.wait(), 0)

    def test_watch_until_interrupted(self):
        child = self.start()
        with subprocess.Popen(
                [sys.executable, TOOL, "status", str(child.pid), "--watch",
                 "3600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                universal_newlines=True) as tool:
            tool.stdout.readline()
            tool.send_signal(signal.SIGINT)
            self.assertEqual(tool.communicate(), ("", ""))
            self.assertEqual(tool.returncode, 0)


@requires_linux
@unittest.skipUnless(is_patched(), "needs to be run by a patched interpreter")
class RealInterpreterTests(TestCase):
    # Objects for at least 20 arenas: 36 of these in each of 128 pools.
    FILL = "objects = [bytes(400) for _ in range(20 * 128 * 36)]\n"
    # Blocks above pymalloc's limit: they are malloc()'s, and no arenas.
    LARGE = ("large = bytes(64 << 20)\n"
             "buffers = [bytearray(i) for i in range(1100, 9000)]\n"
             "lists = [[None] * 300 for _ in range(5_000)]\n")

    def test_status_agrees_with_the_interpreter(self):
        tell = ("import json, sys\n"
                "print(json.dumps(sys._pymalloc_hugepages()), flush=True)\n"
                "sys.stdin.read()\n")
        for switch in run.MODES:
            child = subprocess.Popen(
                [sys.executable, "-X", f"pymalloc_hugepages={switch}", "-c",
                 self.FILL + self.LARGE + tell], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, universal_newlines=True)
            self.addCleanup(end, child)
            told = json.loads(child.stdout.readline())
            report = process.look_at(child.pid)
            self.assertEqual(report.interpreter, os.readlink(
                f"/proc/{child.pid}/exe"))
            self.assertEqual(
                (report.usage.hugetlb_arenas, report.usage.thp_arenas),
                (told["hugetlb"]["now"], told["thp"]["now"]), switch)

    def test_status_after_a_fork(self):
        fork = ("import os\n"
                "if os.fork():\n"
                "    os.wait()\n"
                "    sys.exit()\n")
        tell = ("told = sys._pymalloc_hugepages()\n"
                "print(json.dumps([os.getpid(), told]), flush=True)\n"
                "sys.stdin.read()\n")
        child = subprocess.Popen(
            [sys.executable, "-X", "pymalloc_hugepages=thp", "-c",
             "import json, sys\n" + self.FILL + fork + tell],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True)
        self.addCleanup(end, child)
        pid, told = json.loads(child.stdout.readline())
        for each in child.pid, pid:
            self.assertEqual(process.look_at(each).usage.thp_arenas,
                             told["thp"]["now"])
        self.assertGreaterEqual(told["thp"]["now"], 18)

    def test_run(self):
        for mode, tiers in [("on", {"hugetlb", "thp", "plain"}),
                            ("thp", {"thp", "plain"}), ("off", {"plain"}),
                            ("hugetlb", {"hugetlb", "plain"})]:
            _, err = self.tool("run", "--json", "--mode", mode,
                               sys.executable, "-c", self.FILL)
            result = json.loads(err)
            self.assertEqual([entry["source"] for entry in
                              result["processes"]], ["statistics"])
            peaks = result["peak_arenas"]
            self.assertGreaterEqual(sum(peaks.values()), 20)
            self.assertLessEqual({tier for tier in peaks if peaks[tier]},
                                 tiers)

    def test_run_with_large_blocks(self):
        for mode in run.MODES:
            _, err = self.tool("run", "--json", "--mode", mode,
                               sys.executable, "-c", self.LARGE)
            peaks = json.loads(err)["peak_arenas"]
            self.assertEqual(set(peaks), {"hugetlb", "thp", "plain"})
            self.assertLessEqual(sum(peaks.values()), process.FIRST)

    def test_run_with_malloc(self):
        # What is set is malloc()'s: the arenas get what they get without it.
        _, err = self.tool("run", "--json", "--mode", "thp", "--malloc",
                           sys.executable, "-c", self.FILL)
        peaks = json.loads(err)["peak_arenas"]
        self.assertGreaterEqual(peaks["thp"], 16)

    # Small objects alone, and with what is malloc()'s.
    PROGRAMS = (FILL, FILL + LARGE)
    # Its arenas come and go.
    LOOP = "for i in range(3):\n    " + FILL + "    del objects\n"

    def test_reserve_for(self):
        # Whatever the pool has now, the number is the same, and right: with so
        # many pages none is refused, with one less one is.
        for program in self.PROGRAMS:
            needed = {self.count_needed(pages, program)
                      for pages in (0, 5, 100)}
            self.assertEqual(len(needed), 1, (program, needed))
            [pages] = needed
            self.assertIn(pages, range(16, 40), program)
            self.assertEqual(self.run_with(pages, program)["refused"], {})
            figures = self.run_with(pages - 1, program)
            self.assertEqual(list(figures["refused"]), ["ENOMEM"], program)

    def test_reserve_for_a_loop(self):
        # It is never too low.
        for pages in 0, 5, 100:
            needed = self.count_needed(pages, self.LOOP)
            self.assertIn(needed, range(17, 30), pages)
            self.assertEqual(self.run_with(needed, self.LOOP)["refused"], {})

    def count_needed(self, pages, program):
        out, _ = self.run_leaving_pool(
            pages, self.tool, "reserve", "--json", "--dry-run", "--for",
            sys.executable, "-c", program)
        return json.loads(out)["for"]["needed"]

    def run_with(self, pages, program):
        """What the pool has given to a program, and refused."""
        path = self.path("statistics")
        self.run_leaving_pool(
            pages, subprocess.run, [sys.executable, "-c", program], check=True,
            env={**os.environ, run.SWITCH: "on", run.STATISTICS: path})
        with open(path) as file:
            return json.loads(file.readlines()[-1])["hugetlb"]

    @staticmethod
    def pool_of(pages, stack):
        """Have exactly so many pages available."""
        stack.enter_context(pool_with(0))
        pool = reserve.read_pool()
        missing = pages - pool.available
        if missing > 0:
            # It is undone with the rest.
            with open(f"/{POOL}/nr_hugepages", "w") as file:
                file.write(str(pool.size + missing))
        elif missing < 0:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 21 << 26
            stack.enter_context(contextlib.closing(
                mmap.mmap(-1, -missing * 2 * MIB, flags=flags)))

    def run_leaving_pool(self, pages, function, *args, **kwargs):
        """Call it with exactly so many pages available, again if another
        process has used the pool meanwhile."""
        for _ in range(20):
            with contextlib.ExitStack() as stack:
                self.pool_of(pages, stack)
                before = reserve.read_pool()
                result = function(*args, **kwargs)
                if before == reserve.read_pool() and before.available == pages:
                    return result
        self.fail("other processes use the pool all the time")

    def test_small_programs_need_none(self):
        out, _ = self.tool("reserve", "--json", "--dry-run", "--for",
                           sys.executable, "-c", self.LARGE)
        self.assertEqual(json.loads(out)["for"]["needed"], 0)


class WatchTests(TestCase):
    def watch(self, looks, *, json=False, tty=False):
        """What --watch shows of these looks: a dict of PID to start time or to
        an error each."""
        self.tree.add_process(5)
        real = process.look_at(5, self.root)
        calls = iter(looks)
        current = {}

        def look_at(pid):
            found = current["look"].get(pid, process.ProcessGone("gone"))
            if isinstance(found, Exception):
                raise found
            return process.dataclasses.replace(real, pid=pid, start=found)

        def sleep(seconds):
            self.assertEqual(seconds, 7)
            current["look"] = next(calls)

        current["look"] = next(calls)
        out = io.StringIO()
        out.isatty = lambda: tty
        options = types.SimpleNamespace(watch=7, json=json)
        with mock.patch.object(process, "look_at", look_at), \
                mock.patch.object(process.time, "sleep", sleep), \
                contextlib.redirect_stdout(out):
            self.assertEqual(process._watch(list(current["look"]), options), 0)
        return out.getvalue()

    def test_processes_end_one_by_one(self):
        out = self.watch([{5: 1, 6: 1}, {5: 1, 6: 1}, {6: 1}, {}])
        self.assertEqual(re.findall(r"^\S+ (\d) ", out, re.M),
                         ["5", "6", "5", "6", "6"])

    def test_pid_of_another_process(self):
        self.assertEqual(len(self.watch([{5: 1}, {5: 2}]).splitlines()), 1)

    def test_json(self):
        lines = self.watch([{5: 1, 6: 1}, {6: 1}, {}], json=True).splitlines()
        self.assertEqual([[shown["pid"] for shown in json.loads(line)[
            "processes"]] for line in lines], [[5, 6], [6]])

    def test_terminal_is_redrawn(self):
        out = self.watch([{5: 1}, {5: 1}, {}], tty=True)
        self.assertEqual(out.count("\033[H"), 2)
        self.assertEqual(out.count("\033[J"), 2)
        self.assertIn("13 arenas", out)

    def test_no_permission(self):
        with self.assertRaisesRegex(ToolError, "denied"):
            self.watch([{5: ToolError("denied")}])

    def test_seconds(self):
        for text in "0", "-1", "nan", "inf", "soon", "1e9":
            status, out, err = self.main("status", "5", f"--watch={text}")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\A.*not a number of seconds.*\n\Z")


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


class StatisticsTests(unittest.TestCase):
    def test_lines(self):
        text = "\n".join([
            statistics_line(5, 1, 2, 3), "", '{"pid": 6, "hugetlb', "[]",
            '{"pid": 7}', '{"pid": "x", "thp": 3}', statistics_line(8),
            statistics_line(9).replace('"refused": {', '"refused": [{')])
        self.assertEqual(run.parse_statistics(text), {
            5: run.Statistics({"hugetlb": 1, "thp": 2, "plain": 3}),
            8: run.Statistics({"hugetlb": 0, "thp": 0, "plain": 0})})

    def test_finalized_twice(self):
        text = (statistics_line(5, 1, 9, 3) + "\n"
                + statistics_line(5, 4, 8, 3, asked=6))
        self.assertEqual(run.parse_statistics(text)[5], run.Statistics(
            {"hugetlb": 4, "thp": 9, "plain": 3}, never_asked=2))

    def test_other_interpreters(self):
        # Earlier ones counted large blocks, too; later ones may tell more.
        line = json.loads(statistics_line(5, 1, 2, 3))
        line["large"] = {"now": 0, "peak": 7, "ever": 7, "refused": {},
                         "unusable": None}
        line["later"] = None
        self.assertEqual(run.parse_statistics(json.dumps(line))[5],
                         run.Statistics({"hugetlb": 1, "thp": 2, "plain": 3}))

    def test_first_arenas(self):
        for asked, more, unusable, expected in (
                (77, 0, None, ("thp", 0)), (76, 0, None, ("thp", 1)),
                # No more than there can be; and never less than none.
                (10, 0, None, ("thp", process.FIRST)),
                (100, 0, None, ("thp", 0)), (56, 0, "no THP", ("plain", 2)),
                # Others have come in their place.
                (76, 1, None, ("thp", 0))):
            found = run.parse_statistics(statistics_line(
                5, 9, 77, 58, asked=asked, more=more, unusable=unusable))[5]
            self.assertEqual((found.next_tier, found.never_asked), expected)


class RunLineTests(unittest.TestCase):
    def line(self, *args, **kwargs):
        return run.as_line(outcome(*args, **kwargs))

    FAULTS = "; 3,456 minor and 1 major page fault; 1.235 s"

    def test_one(self):
        self.assertEqual(
            self.line(statistics_line(5, 1200, 2, 3)),
            "peak arenas: 1,200 hugetlb, 2 THP, 3 plain" + self.FAULTS)

    def test_several(self):
        self.assertEqual(
            self.line(statistics_line(5, 1, 2, 3) + "\n"
                      + statistics_line(4, 10, 20, 30)),
            "peak arenas: 11 hugetlb, 22 THP, 33 plain (sum of 2 processes; "
            "the command itself: 1 hugetlb, 2 THP, 3 plain)" + self.FAULTS)

    def test_command_is_a_shell(self):
        self.assertIn("(sum of 2 processes);",
                      self.line(statistics_line(6) + "\n"
                                + statistics_line(7)))

    def test_sampled(self):
        seen = [run.Seen(5, True, 4, 1, 2)]
        self.assertIn("1 hugetlb, 2 THP, unknown plain (sampled, 4 looks);",
                      self.line(seen=seen))
        seen.append(run.Seen(6, True, 4, 1, 2))
        self.assertIn("1 hugetlb, 2 THP, unknown plain; sampled);",
                      self.line(seen=seen))

    def test_statistics_are_better_than_samples(self):
        text = self.line(statistics_line(5, 8, 0, 0),
                         [run.Seen(5, True, 4, 1, 2),
                          run.Seen(6, True, 4, 3, 3)])
        self.assertIn("11 hugetlb, 3 THP, 0 plain (sum of 2", text)
        self.assertIn("1 of them sampled", text)

    def test_none(self):
        self.assertEqual(self.line(), "no interpreter built "
                         "--with-pymalloc-hugepages was seen" + self.FAULTS)

    def test_json(self):
        result = run.as_dict(outcome(statistics_line(5, 1, 2, 3),
                                     [run.Seen(6, True, 4, 1, 2)], status=3))
        self.assertEqual(json.loads(json.dumps(result)), {
            "command": ["app"], "mode": "on", "malloc": None, "pid": 5,
            "status": 3,
            "wall_seconds": 1.23456,
            "page_faults": {"minor": 3456, "major": 1},
            "patched": True,
            "peak_arenas": {"hugetlb": 2, "thp": 4, "plain": 3},
            "sampled_processes": 1,
            "processes": [
                {"pid": 5, "source": "statistics",
                 "peak": {"hugetlb": 1, "thp": 2, "plain": 3}},
                {"pid": 6, "source": "sampled", "looks": 4,
                 "peak": {"hugetlb": 1, "thp": 2, "plain": None}}]})


class SamplerTests(TestCase):
    SMALL = mapping(160, 2, HUGETLB + "2048", "rd wr mr mw me de ht",
                    ANON_HUGEPAGE)

    def sampler(self):
        return run.Sampler(5, self.root)

    def test_highest_numbers(self):
        sampler = self.sampler()
        for smaps in self.SMALL, SMAPS, self.SMALL:
            self.tree.add_process(5, smaps=smaps)
            sampler.look()
        self.assertEqual(sampler.seen, {
            (5, 100): run.Seen(5, True, 3, 3, 10)})

    def test_descendants(self):
        add = self.tree.add_process
        add(5, children="6 7 ", exe=b"shell")
        add(6, parent=5, children="8")
        add(7, parent=5)
        add(8, parent=6)
        add(9, parent=1)
        sampler = self.sampler()
        sampler.look()
        # An orphan stays known; a new process with an old PID is another one.
        self.tree.remove_process(6)
        add(5, exe=b"shell", children="7")
        add(8, parent=1, children="10")
        add(10, parent=8)
        add(7, parent=5, start=200)
        sampler.look()
        self.assertEqual(set(sampler.seen), {
            (5, 100), (6, 100), (7, 100), (8, 100), (10, 100), (7, 200)})
        self.assertFalse(sampler.seen[5, 100].patched)
        self.assertEqual(sampler.together, {
            frozenset([(6, 100), (7, 100), (8, 100)]),
            frozenset([(7, 200), (8, 100), (10, 100)])})

    def test_orphan_whose_pid_is_another_process_now(self):
        self.tree.add_process(5, children="6")
        self.tree.add_process(6, parent=5)
        sampler = self.sampler()
        sampler.look()
        self.tree.add_process(5)
        self.tree.add_process(6, parent=1, start=200)
        sampler.look()
        self.assertEqual(set(sampler.seen), {(5, 100), (6, 100)})

    def test_nothing_there(self):
        sampler = self.sampler()
        sampler.look()
        self.assertEqual(sampler.seen, {})


@requires_linux
class RunTests(TestCase):
    def setUp(self):
        super().setUp()
        self.script = self.path("interpreter.py")
        with open(self.script, "w") as file:
            file.write(INTERPRETER)

    def run_tool(self, *command, options=(), **kwargs):
        return self.tool("run", *options, "--", *command, **kwargs)

    def test_statistics(self):
        out, err = self.run_tool(sys.executable, self.script, "3", "1", "2",
                                 "4", status=3)
        self.assertEqual(out, "")
        self.assertRegex(
            err, r"\Ahugepages.py: peak arenas: 1 hugetlb, 2 THP, 4 plain; "
            r"[\d,]+ minor and [\d,]+ major page faults?; \d+\.\d{3} s\n\Z")

    def test_descendants(self):
        _, err = self.run_tool(sys.executable, self.script, "0", "1", "2", "4",
                               "1", options=["--json"])
        result = json.loads(err)
        self.assertEqual(result["peak_arenas"],
                         {"hugetlb": 101, "thp": 22, "plain": 7})
        self.assertEqual([entry["source"] for entry in result["processes"]],
                         ["statistics"] * 2)
        self.assertEqual(result["processes"][0]["pid"], result["pid"])

    def test_no_interpreter(self):
        _, err = self.run_tool("true")
        self.assertIn("no interpreter built --with-pymalloc-hugepages", err)

    def test_output_file(self):
        path = self.path("line.json")
        out, err = self.run_tool(
            "sh", "-c", "echo out; echo err >&2; exit 9", status=9,
            options=["--json", "--output", path])
        self.assertEqual((out, err), ("out\n", "err\n"))
        with open(path) as file:
            self.assertEqual(json.load(file)["status"], 9)
        self.refuse("run", "--output", self.path("no/dir"), "sh", "-c",
                    "echo run", pattern="cannot write .*No such file")

    def test_environment(self):
        show = 'echo "$PYTHON_PYMALLOC_HUGEPAGES" $OTHER'
        env = {**os.environ, "OTHER": "x", "PYTHON_PYMALLOC_HUGEPAGES": "0"}
        for options, value in ([], "on"), (["--mode", "thp"], "thp"):
            out, _ = self.run_tool("sh", "-c", show, options=options, env=env)
            self.assertEqual(out, f"{value} x\n")

    def test_page_faults_are_counted(self):
        # Each writes to 20 MiB of plain pages, the second in a child.
        touch = "bytearray(20 << 20)"
        child = ("import subprocess, sys; "
                 f"subprocess.call([sys.executable, '-c', '{touch}'])")
        for program in touch, child:
            with self.subTest(program):
                _, err = self.run_tool(sys.executable, "-c", program,
                                       options=["--json", "--mode", "off"])
                faults = json.loads(err)["page_faults"]["minor"]
                self.assertGreater(faults, (20 << 20) // mmap.PAGESIZE // 2)

    def test_statuses(self):
        self.run_tool("sh", "-c", "kill -KILL $$", status=128 + 9)
        self.refuse("run", "no-such-command", pattern="no such command",
                    status=127)
        self.refuse("run", self.path("no/such"), pattern="no such command",
                    status=127)
        self.refuse("run", self.directory, pattern="Permission denied",
                    status=126)
        text = self.path("text")
        with open(text, "w") as file:
            file.write("#!/no/such/interpreter\n")
        self.refuse("run", text, pattern="ermission denied", status=126)
        os.chmod(text, 0o755)
        self.refuse("run", text, pattern="first line names", status=127)

    def test_command_line_belongs_to_the_command(self):
        for args in (["--", "sh", "-c", 'echo "$@"', "sh"],
                     ["--mode", "on", "sh", "-c", 'echo "$@"', "sh"],
                     ["--mode=off", "--json", "sh", "-c", 'echo "$@"', "sh"]):
            out, _ = self.tool("run", *args, "--json", "--", "--mode", "-h")
            self.assertEqual(out, "--json -- --mode -h\n")

    def test_signals_and_descriptors_are_as_if_run_without_the_tool(self):
        self.run_tool("sh", "-c", "kill -PIPE $$", status=128 + 13)
        out, _ = self.run_tool("sed", "-n", "s/^SigBlk:[^0-9]*//p",
                               "/proc/self/status")
        self.assertEqual(int(out, 16), 0)
        read_end, write_end = os.pipe()
        with open(read_end) as file:
            self.run_tool("sh", "-c", f"echo through >&{write_end}",
                          pass_fds=[write_end])
            os.close(write_end)
            self.assertEqual(file.read(), "through\n")
        # A parent that ignores SIGCHLD.
        self.run_tool("sh", "-c", "exit 5", status=5, preexec_fn=lambda:
                      signal.signal(signal.SIGCHLD, signal.SIG_IGN))

    def test_nothing_is_left(self):
        env = {**os.environ, "TMPDIR": self.path("")}
        before = os.listdir(self.directory)
        self.run_tool(sys.executable, self.script, *"0111", env=env)
        self.refuse("run", "no-such-command", pattern=".", status=127, env=env)
        self.assertEqual(os.listdir(self.directory), before)
        with mock.patch.object(run.tempfile, "TemporaryDirectory",
                               side_effect=OSError(30, "Read-only")):
            with self.assertRaisesRegex(ToolError, "Read-only; set TMPDIR"):
                run.execute(["true"], "on")

    # A handler may run while print() is at work, which cannot be called again
    # then.  The alarm ends it, and so the test, if a signal never comes.
    CATCH = """
import os, signal
signal.alarm(60)
caught = []
for each in signal.SIGINT, signal.SIGHUP:
    signal.signal(each, lambda signum, frame: (
        caught.append(signum), os.write(1, b"%d\\n" % signum)))
signal.signal(signal.SIGTERM, lambda signum, frame: exit(len(caught)))
print("ready", flush=True)
while True:
    signal.pause()
"""

    @staticmethod
    def set_signals(*ignored):
        """Let the terminal's signals act, whatever this process inherited:
        what runs in the background or under nohup ignores some.
        """
        for each in signal.SIGINT, signal.SIGHUP, signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN if each in ignored
                          else signal.SIG_DFL)

    def test_signals_are_passed_on(self):
        with subprocess.Popen(
                [sys.executable, TOOL, "run",
                 sys.executable, "-c", self.CATCH],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                universal_newlines=True, preexec_fn=self.set_signals) as tool:
            self.assertEqual(tool.stdout.readline(), "ready\n")
            for signum in signal.SIGINT, signal.SIGHUP:
                tool.send_signal(signum)
                line = tool.stdout.readline()
                if line != f"{signum:d}\n":
                    tool.kill()
                    self.fail(f"{line!r}, then {tool.communicate()}")
            tool.terminate()
            out, err = tool.communicate()
            self.assertEqual((tool.returncode, out), (2, ""))
            self.assertRegex(err, r"\Ahugepages\.py: [^\n]*\n\Z")

    def test_signals_of_the_kernel_are_not_passed_on(self):
        # SI_USER, SI_KERNEL and SI_QUEUE; the last is the child's end.
        infos = [types.SimpleNamespace(si_signo=signum, si_code=code)
                 for signum, code in [(15, 0), (2, 0x80), (1, 0x80), (10, -1),
                                      (signal.SIGCHLD, 1)]]
        waits = [(0, 0, None)] * len(infos) + [(5, 0, "usage")]
        with mock.patch.object(run.signal, "sigwaitinfo", side_effect=infos), \
                mock.patch.object(run.os, "wait4", side_effect=waits), \
                mock.patch.object(run.os, "kill") as kill:
            self.assertEqual(run._wait(5, {1}), (0, "usage"))
        self.assertEqual(kill.mock_calls,
                         [mock.call(5, 15), mock.call(5, 10)])

    def test_interrupt_of_the_terminal_comes_once(self):
        import pty
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                self.set_signals()
                os.execv(sys.executable, [sys.executable, TOOL, "run",
                                          sys.executable, "-c", self.CATCH])
            finally:
                os._exit(99)
        with open(terminal, "r+b", buffering=0) as file:
            def wait_for(text, data=b""):
                while text not in data:
                    try:
                        data += file.read(1000)
                    except OSError as error:        # all have closed it
                        self.fail(f"{error}, after {data}")
            wait_for(b"ready")
            file.write(b"\x03")
            wait_for(b"2\r\n")
            # What is passed on comes in the order in which it was sent.
            os.kill(pid, signal.SIGTERM)
            wait_for(b" s\r\n")
            _, status = os.waitpid(pid, 0)
        self.assertEqual(os.WEXITSTATUS(status), 1)

    def test_signal_that_is_ignored_stays_so(self):
        with subprocess.Popen(
                [sys.executable, TOOL, "run",
                 sys.executable, "-c", self.CATCH],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                universal_newlines=True,
                preexec_fn=lambda: self.set_signals(signal.SIGINT)) as tool:
            self.assertEqual(tool.stdout.readline(), "ready\n")
            tool.send_signal(signal.SIGINT)
            tool.terminate()
            self.assertEqual(tool.communicate(), ("", None))
            self.assertEqual(tool.returncode, 0)


class MallocTests(unittest.TestCase):
    """What is set for malloc(), in any environment, on any glibc."""

    MMAP, TRIM = "glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold"
    SET = {MMAP: "33554432", TRIM: "8388608"}
    TEXT = f"{MMAP}=33554432:{TRIM}=8388608"

    def test_nothing_is_set_already(self):
        for environment in {}, {"GLIBC_TUNABLES": ""}, {"MALLOC_ARENA_": "1"}:
            found = malloc.settings(environment, (2, 36))
            self.assertEqual(found, malloc.Settings(
                "glibc 2.36", {"GLIBC_TUNABLES": self.TEXT}, self.SET, {}))
        self.assertEqual(found.as_line(),
                         f"malloc: set GLIBC_TUNABLES={self.TEXT}")
        self.assertEqual(malloc.as_text(), self.TEXT)

    def test_others_stay(self):
        for text in ("glibc.malloc.check=3", ":glibc.malloc.check=3:",
                     self.MMAP + "_x=3", f"x.{self.TRIM}=3"):
            found = malloc.settings({"GLIBC_TUNABLES": text}, (2, 36))
            self.assertEqual(found.variables, {
                "GLIBC_TUNABLES": text.strip(":") + ":" + self.TEXT})
            self.assertEqual((found.set, found.kept), (self.SET, {}))

    def test_what_the_user_sets_wins(self):
        for text, value in (
                (f"{self.MMAP}=0", "0"),
                (f"{self.MMAP}=2:glibc.malloc.check=3:{self.MMAP}=0", "0"),
                (f"glibc.malloc.check=3:{self.MMAP}=1", "1")):
            found = malloc.settings({"GLIBC_TUNABLES": text}, (2, 36))
            after = f"{text}:{self.TRIM}=8388608"
            self.assertEqual(found, malloc.Settings(
                "glibc 2.36", {"GLIBC_TUNABLES": after},
                {self.TRIM: "8388608"}, {self.MMAP: value}))
            self.assertEqual(
                found.as_line(), f"malloc: set GLIBC_TUNABLES={after}; "
                f"you have set {self.MMAP}={value}")
        found = malloc.settings({"GLIBC_TUNABLES": self.TEXT}, (2, 36))
        self.assertEqual(found, malloc.Settings("glibc 2.36", {}, {},
                                                self.SET))
        self.assertEqual(found.as_line(), "malloc: set nothing; "
                         f"you have set {self.TEXT}")

    def test_version_that_has_it(self):
        for version in (2, 26), (2, 100), (3, 0):
            self.assertEqual(malloc.settings({}, version).set, self.SET)
        for version, name in (((2, 25), "glibc 2.25"), ((2, 4), "glibc 2.4"),
                              (None, "another C library")):
            with self.assertRaises(ToolError) as caught:
                malloc.settings({"GLIBC_TUNABLES": malloc.as_text()}, version)
            self.assertEqual(
                str(caught.exception), "run --malloc: this needs glibc 2.26 "
                f"or later, and here is {name}; leave --malloc out")
            self.assertEqual(caught.exception.status, 2)

    def test_no_glibc(self):
        for confstr in (
                mock.Mock(side_effect=ValueError("unrecognized name")),
                mock.Mock(side_effect=OSError(22, "Invalid argument")),
                mock.Mock(return_value=None), mock.Mock(return_value=""),
                mock.Mock(return_value="musl 1.2")):
            with mock.patch.object(os, "confstr", confstr, create=True):
                self.assertIsNone(malloc.glibc_version())
        with mock.patch.object(os, "confstr", None, create=True):
            del os.confstr
            self.assertIsNone(malloc.glibc_version())

    def test_version(self):
        for text, version in (("glibc 2.36", (2, 36)), ("glibc 2.9", (2, 9)),
                              ("glibc 2.36.9000", (2, 36))):
            with mock.patch.object(os, "confstr", return_value=text,
                                   create=True):
                self.assertEqual(malloc.glibc_version(), version)


@requires_linux
class RunMallocTests(TestCase):
    SHOW = 'echo "$GLIBC_TUNABLES"'

    def environment(self, **variables):
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("MALLOC_", "GLIBC_"))}
        return {**env, **variables}

    def setUp(self):
        super().setUp()
        version = malloc.glibc_version()
        if version is None or version < malloc.FIRST_VERSION:
            self.skipTest("needs glibc 2.26")

    def test_environment_of_the_command(self):
        for before, after in (
                ({}, malloc.as_text()),
                ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"},
                 "glibc.malloc.perturb=0:" + malloc.as_text())):
            out, err = self.tool("run", "--malloc", "--", "sh", "-c",
                                 self.SHOW, env=self.environment(**before))
            self.assertEqual(out, after + "\n")
            first, second = err.splitlines()
            self.assertEqual(first, "hugepages.py: malloc: set "
                             f"GLIBC_TUNABLES={after}")
            self.assertIn("no interpreter built", second)

    def test_what_the_user_sets_wins(self):
        users = "glibc.malloc.trim_threshold=0"
        out, err = self.tool(
            "run", "--malloc", "--", "sh", "-c", self.SHOW,
            env=self.environment(GLIBC_TUNABLES=users))
        after = f"{users}:glibc.malloc.mmap_threshold=33554432"
        self.assertEqual(out, after + "\n")
        self.assertEqual(err.splitlines()[0], "hugepages.py: malloc: set "
                         f"GLIBC_TUNABLES={after}; you have set {users}")

    def test_not_without_being_asked(self):
        out, err = self.tool("run", "--", "sh", "-c", self.SHOW,
                             env=self.environment(GLIBC_TUNABLES="a.b.c=1"))
        self.assertEqual(out, "a.b.c=1\n")
        self.assertNotIn("malloc: ", err)

    def test_json(self):
        libc = "glibc %d.%d" % malloc.glibc_version()
        text = malloc.as_text()
        for before, expected in (
                ({}, {"libc": libc, "variables": {"GLIBC_TUNABLES": text},
                      "set": malloc.RECIPE, "kept": {}}),
                ({"GLIBC_TUNABLES": text},
                 {"libc": libc, "variables": {}, "set": {},
                  "kept": malloc.RECIPE})):
            _, err = self.tool("run", "--malloc", "--json", "true",
                               env=self.environment(**before))
            self.assertEqual(json.loads(err)["malloc"], expected)

    def test_output_file(self):
        path = self.path("lines")
        out, err = self.tool("run", "--malloc", "--output", path, "true",
                             env=self.environment())
        self.assertEqual((out, err), ("", ""))
        with open(path) as file:
            first, second = file.read().splitlines()
        self.assertIn("malloc: set ", first)
        self.assertIn(" s", second)

    def test_nothing_is_run_without_it(self):
        marker = self.path("marker")
        for version in None, (2, 25):
            with mock.patch.object(malloc, "glibc_version",
                                   return_value=version):
                status, out, err = self.main("run", "--malloc", "touch",
                                             marker)
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Ahugepages\.py: run --malloc: [^\n]+; "
                             r"leave --malloc out\n\Z")
            self.assertFalse(os.path.exists(marker))

    # Buffers of 256 KiB to 1 MiB, one after the other.
    BUFFERS = ("for i in range(2000):\n"
               "    buffer = b'x' * (262144 + i % 4 * 262144)\n")

    def test_buffers_are_not_mapped_each_time(self):
        faults = []
        for options in [], ["--malloc"]:
            _, err = self.tool(
                "run", "--json", "--mode", "off", *options, sys.executable,
                "-c", self.BUFFERS, env=self.environment())
            faults.append(json.loads(err)["page_faults"]["minor"])
        self.assertLess(faults[1], faults[0] / 4, faults)


class CountTests(unittest.TestCase):
    def count(self, *args, **kwargs):
        return reserve.count_needed(outcome(*args, **kwargs))

    def lines(self, **peaks):
        return "\n".join(statistics_line(int(name[1:]), *values)
                         for name, values in peaks.items())

    def test_what_could_have_been_on_the_pool_counts(self):
        # Plain pages only where THP cannot be had.
        text = statistics_line(5, 1, 20, 300, asked=20)
        self.assertEqual(self.count(text, (), [{5}]), 21)
        text = statistics_line(5, 1, 0, 300, unusable="no THP")
        self.assertEqual(self.count(text, (), [{5}]), 301)

    def test_first_arenas_do_not_count(self):
        text = statistics_line(5, 1, 20, 300, asked=18)
        self.assertEqual(self.count(text, (), [{5}]), 19)
        text = statistics_line(5, 1, 20, 300, asked=18, more=1)
        self.assertEqual(self.count(text, (), [{5}]), 21)
        text = statistics_line(5, 1, 3, 0, asked=1)
        self.assertEqual(self.count(text, (), [{5}]), 2)
        text = statistics_line(5, 1, 0, 300, asked=298, unusable="no THP")
        self.assertEqual(self.count(text, (), [{5}]), 299)

    def test_only_those_at_the_same_time(self):
        text = self.lines(p5=(1,), p6=(10,), p7=(100,), p8=(108,))
        self.assertEqual(self.count(text, (), [{5, 6, 7}, {5, 8}, {5}]), 111)
        self.assertEqual(self.count(text, (), [{5, 6}, {5, 8}, {7}]), 109)

    def test_of_those_never_met_the_largest(self):
        text = self.lines(p5=(1,), p6=(10,), p7=(8,))
        self.assertEqual(self.count(text, (), [{5}]), 11)
        self.assertEqual(self.count(text, (), [()]), 10)

    def test_sampled(self):
        seen = [run.Seen(6, True, 1, 7, 70)]
        self.assertEqual(self.count(self.lines(p5=(1,)), seen, [{5, 6}]), 78)

    def test_none(self):
        with self.assertRaisesRegex(ToolError, "no process of 'app' was"):
            self.count()

    def test_margin(self):
        self.assertEqual([reserve.margin(pages)
                          for pages in (0, 1, 40, 41, 60, 1000)],
                         [2, 2, 2, 3, 3, 50])


class ReserveTests(TestCase):
    """On a tree; the kernel is played by kernel_write()."""

    def setUp(self):
        super().setUp()
        # What the kernel has, now and after it moved memory together.
        self.limits = [10**9, 10**9]
        self.writes = []
        patcher = mock.patch.object(reserve, "_write", self.kernel_write)
        patcher.start()
        self.addCleanup(patcher.stop)

    def kernel_write(self, path, text):
        name = os.path.relpath(path, self.root)
        self.writes.append((os.path.basename(name), text.strip()))
        if name == "proc/sys/vm/compact_memory":
            del self.limits[0]
        else:
            self.assertEqual(name, f"{POOL}/nr_hugepages")
            self.tree.write(name, f"{min(int(text), self.limits[0])}\n")

    def reserve(self, *args, status=0):
        options = cli.parse_arguments(["reserve", *args])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(reserve.main(options, self.root), status)
        return out.getvalue()

    def refuse(self, *args, pattern):
        before = self.files()
        with self.assertRaisesRegex(ToolError, pattern) as caught:
            with contextlib.redirect_stdout(io.StringIO()):
                reserve.main(cli.parse_arguments(["reserve", *args]),
                             self.root)
        self.assertNotIn("\n", str(caught.exception))
        self.assertEqual(caught.exception.status, 2)
        self.assertEqual(self.files(), before)

    def files(self):
        return {os.path.join(directory, name): self.tree.read(
                    os.path.join(directory, name))
                for directory, _, names in os.walk(self.root)
                for name in names}

    def test_reserve(self):
        self.tree.add_pool(total=4, free=3)
        out = self.reserve("128")
        self.assertEqual(self.writes, [("nr_hugepages", "128")])
        self.assertIn("The pool has 128 pages (256 MiB), 3 of them available",
                      out)

    def test_reserved_and_surplus_pages(self):
        self.tree.add_pool(total=10, free=5, reserved=2, surplus=4)
        pool = reserve.read_pool(self.root)
        self.assertEqual((pool.size, pool.available), (6, 3))
        self.assertIn("4 more are in use", self.reserve("3"))

    def test_never_shrinks_unless_told(self):
        self.tree.add_pool(total=200, free=200)
        self.assertIn("--shrink", self.reserve("128"))
        self.assertEqual(self.writes, [])
        self.reserve("128", "--shrink")
        self.assertEqual(self.writes, [("nr_hugepages", "128")])
        self.reserve("0", "--shrink")
        self.assertEqual(self.tree.read(f"{POOL}/nr_hugepages"), "0\n")

    def test_compaction_helps(self):
        self.tree.add_pool()
        self.limits = [50, 500]
        self.reserve("128")
        self.assertEqual(self.writes, [("nr_hugepages", "128"),
                                       ("compact_memory", "1"),
                                       ("nr_hugepages", "128")])

    def test_kernel_gives_only_some(self):
        self.tree.add_pool(total=10)
        self.limits = [50, 60]
        out = self.reserve("128", status=1)
        self.assertIn("gave only 50 of 118 more pages", out)
        self.assertIn("The pool keeps what it got", out)
        self.assertIn("The pool has 60 pages", out)
        self.limits = [60, 60]
        result = json.loads(self.reserve("128", "--json", status=1))
        self.assertEqual(result["after"]["size"], 60)
        self.assertEqual(result["pages"], 128)

    def test_kernel_without_compaction(self):
        self.tree.add_pool()
        os.unlink(self.tree.path("proc/sys/vm/compact_memory"))
        self.limits = [50]
        self.reserve("128", status=1)

    def test_more_than_there_is(self):
        self.tree.add_pool(total=1, available_mib=100)
        self.refuse("52", pattern="51 more huge pages are 102 MiB, and only "
                    "100 MiB .* at most 50 more")
        self.refuse("--dry-run", "52", pattern="51 more")
        self.reserve("51")

    def test_no_pool(self):
        self.tree.write("proc/meminfo", "MemTotal: 1 kB\n")
        self.refuse("5", pattern="no pool of 2 MiB huge pages")

    def test_arguments(self):
        self.tree.add_pool()
        for text in "x", "-1", "1.5", "", "\u0663", "9" * 20:
            self.refuse("--", text, pattern="not a number of pages")
        self.refuse(pattern="give a number of pages, or --for")
        self.refuse("5", "--for", "true", pattern="give a number .* or --for")
        self.refuse("--for", pattern="no command to run")
        self.refuse("--for", "--", pattern="no command to run")
        self.refuse("--shrink", "--for", "true", pattern="only makes .*larger")

    def test_not_root(self):
        self.tree.add_pool()
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000):
            self.refuse("128", "--persist", pattern="only root may change the "
                        "pool; run: sudo .*hugepages.py reserve 128 --persist")
            self.reserve("128", "--dry-run")
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=0):
            self.refuse("128", pattern="read-only, as in a container")

    def test_dry_run_changes_nothing(self):
        self.tree.add_pool(total=4)
        before = self.files()
        out = self.reserve("128", "--dry-run", "--persist")
        self.assertEqual(self.files(), before)
        self.assertEqual(self.writes, [])
        self.assertIn("Would write 128 to ", out)
        self.assertIn(f"{POOL}/nr_hugepages", out)
        self.assertIn("Would write " + self.tree.path(
            "etc/sysctl.d/60-pymalloc-hugepages.conf"), out)
        # What it says is what is written then.
        self.reserve("128", "--persist")
        text = self.tree.read("etc/sysctl.d/60-pymalloc-hugepages.conf")
        for line in text.splitlines():
            self.assertIn("    " + line + "\n", out)

    SYSCTL = "etc/sysctl.d/60-pymalloc-hugepages.conf"
    TMPFILES = "etc/tmpfiles.d/pymalloc-hugepages.conf"

    def test_persist(self):
        self.tree.add_pool()
        for pages in "128", "129":              # its own file is replaced
            self.reserve(pages, "--persist")
            self.assertRegex(self.tree.read(self.SYSCTL),
                             rf"\A(#.*\n)+vm\.nr_hugepages = {pages}\n\Z")
        mode = os.stat(self.tree.path(self.SYSCTL)).st_mode
        self.assertEqual(mode & 0o777, 0o644)
        self.assertEqual(os.listdir(self.tree.path("etc/sysctl.d")),
                         [os.path.basename(self.SYSCTL)])

    def test_persist_with_another_default_size(self):
        self.tree.add_pool(default=1048576)
        self.refuse("128", "--persist",
                    pattern="command line: hugepagesz=2M hugepages=128")
        self.assertEqual(self.writes, [])
        self.tree.write("usr/bin/systemd-tmpfiles", "")
        # Would reserve 1 GiB pages at the next boot.
        self.tree.write(self.SYSCTL, reserve.HEADER + "\n")
        out = self.reserve("128", "--persist")
        self.assertRegex(
            self.tree.read(self.TMPFILES),
            rf"\A(#.*\n)+w /{POOL}/nr_hugepages - - - - 128\n\Z")
        self.assertFalse(os.path.exists(self.tree.path(self.SYSCTL)))
        self.assertIn("Removed", out)

    def test_persist_leaves_files_of_others_alone(self):
        self.tree.add_pool()
        self.tree.write(self.SYSCTL, "vm.nr_hugepages = 3\n")
        self.refuse("128", "--persist", pattern="not a file that this tool")
        self.assertEqual(self.writes, [])
        self.tree.write("target", reserve.HEADER)
        os.unlink(self.tree.path(self.SYSCTL))
        os.symlink(self.tree.path("target"), self.tree.path(self.SYSCTL))
        self.refuse("128", "--persist", pattern="not a file that this tool")

    def test_persist_is_whole_or_not_at_all(self):
        self.tree.add_pool(total=128)
        self.tree.write(self.SYSCTL, reserve.HEADER + "\nold\n")
        for name in "replace", "fsync":
            with mock.patch.object(reserve.os, name,
                                   side_effect=OSError(28, "No space")):
                self.refuse("128", "--persist", pattern="No space")

    def test_persist_is_overridden(self):
        self.tree.add_pool()
        self.tree.write("etc/sysctl.d/50-x.conf", "vm.nr_hugepages = 1\n")
        self.tree.write("etc/sysctl.d/99-x.txt", "vm.nr_hugepages = 1\n")
        self.assertNotIn("read later", self.reserve("8", "--persist"))
        self.tree.write("etc/sysctl.d/99-x.conf",
                        "# a\nvm/nr_hugepages=1\n")
        self.assertRegex(self.reserve("8", "--persist"),
                         r"But .*99-x\.conf is read later")

    def test_json(self):
        self.tree.add_pool(total=4, free=3)
        result = json.loads(self.reserve("8", "--json", "--persist"))
        self.assertEqual((result["before"]["size"], result["after"]["size"]),
                         (4, 8))
        self.assertEqual(result["persist"]["path"],
                         self.tree.path(self.SYSCTL))
        result = json.loads(self.reserve("9", "--json", "--dry-run"))
        self.assertEqual(
            (result["dry_run"], result["write"]["value"], result["after"]),
            (True, 9, None))


class ReserveForTests(ReserveTests):
    """Its tests, and those with --for; the command is not run."""

    def reserve_for(self, result, *args, status=0):
        with mock.patch.object(run, "execute", return_value=result) as execute:
            out = self.reserve(*args, "--for", "app", "--json", status=status)
        self.assertEqual(execute.call_args[0][:2], (["app", "--json"], "on"))
        return out

    def test_free_pages_are_added(self):
        self.tree.add_pool(total=50, free=15, reserved=5)
        out = self.reserve_for(outcome(statistics_line(5, 80), (), [{5}]))
        self.assertIn("app needs 80 huge pages, and 4 to be sure", out)
        self.assertEqual(self.writes, [("nr_hugepages", "124")])

    def test_enough_are_free(self):
        self.tree.add_pool(total=50, free=50)
        self.reserve_for(outcome(statistics_line(5, 40), (), [{5}]))
        self.assertEqual(self.writes, [])

    def test_says_what_is_not_sure(self):
        self.tree.add_pool()
        out = self.reserve_for(outcome("", [run.Seen(5, True, 1, 3, 4)],
                                       [{5}], status=130), "--dry-run")
        self.assertIn("status 130", out)
        self.assertIn("were sampled", out)
        self.assertIn("Would write 9 to", out)

    def test_persist(self):
        self.tree.add_pool(total=2)
        self.reserve_for(outcome(statistics_line(5, 40), (), [{5}]),
                         "--persist")
        self.assertIn("vm.nr_hugepages = 44", self.tree.read(self.SYSCTL))

    def test_not_root(self):
        # What it needs is known nevertheless.
        self.tree.add_pool()
        with mock.patch.object(reserve.os, "access", return_value=False), \
                mock.patch.object(os, "geteuid", return_value=1000), \
                mock.patch.object(run, "execute", return_value=outcome(
                    statistics_line(5, 40), (), [{5}])):
            self.refuse("--for", "app", pattern="sudo .*reserve 42$")

    def test_no_interpreter(self):
        self.tree.add_pool()
        with mock.patch.object(run, "execute", return_value=outcome()):
            self.refuse("--for", "app", pattern="no process of 'app' was")


@requires_linux
class RealReserveTests(TestCase):
    def test_reserve(self):
        with pool_with(0) as before:
            pages = before.size + 3
            out, _ = self.tool("reserve", "--json", str(pages))
            self.assertEqual(reserve.read_pool().size, pages)
            self.assertEqual(json.loads(out)["after"]["size"], pages)
            self.tool("reserve", str(before.size))
            self.assertEqual(reserve.read_pool().size, pages)
            self.tool("reserve", "--shrink", str(before.size))
            self.assertEqual(reserve.read_pool().size, before.size)

    def test_for(self):
        script = self.path("interpreter.py")
        with open(script, "w") as file:
            file.write("print('output')\n" + INTERPRETER)
        if not os.path.isdir(f"/{POOL}"):
            self.skipTest("needs a kernel with huge pages")
        # Two of those on THP are first arenas.
        expected = 1 + 12 - 2
        out, err = self.tool("reserve", "--json", "--dry-run", "--for",
                             sys.executable, script, "0", "1", "12", "3")
        result = json.loads(out)
        self.assertEqual(err, "output\n")
        self.assertEqual((result["for"]["needed"], result["for"]["margin"]),
                         (expected, 2))


class CommandLineTests(TestCase):
    def test_bad_arguments_are_one_line(self):
        for args in ([], ["nonsense"], ["--nonsense"], ["status", "1", "2"],
                     ["status", "--watch"], ["run"], ["run", "--"],
                     ["run", "--mode"], ["run", "--mode", "x", "true"],
                     ["run", "--bogus", "true"],
                     ["run", "--malloc"], ["run", "--malloc=1", "true"],
                     ["reserve", "--malloc", "5"], ["reserve"],
                     ["reserve", "5", "6"], ["reserve", "--per", "5"]):
            with self.subTest(args):
                self.refuse(*args, pattern=".")

    def test_json_before_and_after_the_command(self):
        for args in (["--json", "status"], ["status", "--json"],
                     ["--json", "reserve", "5"], ["reserve", "5", "--json"],
                     ["--json", "run", "true"], ["run", "--json", "true"]):
            self.assertIs(cli.parse_arguments(args).json, True, args)
        for args in ["status"], ["reserve", "5"], ["run", "--", "a", "--json"]:
            self.assertIs(cli.parse_arguments(args).json, False, args)

    def test_split(self):
        for args, ours, command in [
                ("run a --mode b", "run", "a --mode b"),
                ("run -- a -- b", "run", "a -- b"),
                ("--json run --mode on --output f a", "--json run --mode on "
                 "--output f", "a"),
                ("run --mode=on a --for b", "run --mode=on", "a --for b"),
                ("run --malloc a --malloc", "run --malloc", "a --malloc"),
                ("reserve --persist --for -- a --for", "reserve --persist "
                 "--for", "a --for"),
                ("status --for run -- x", "status --for run -- x", None),
                ("reserve 5 --persist", "reserve 5 --persist", None)]:
            with self.subTest(args):
                self.assertEqual(
                    cli.split_command(args.split()),
                    (ours.split(), command and command.split()))

    def test_options_with_a_value_are_known(self):
        _, parsers = cli.make_parser()
        taking = {name for action in parsers["run"]._actions
                  for name in action.option_strings if action.nargs is None}
        self.assertEqual(set(run.VALUE_OPTIONS), taking)

    def options(self):
        parser, parsers = cli.make_parser()
        return {name for each in [parser, *parsers.values()]
                for action in each._actions for name in action.option_strings}

    def test_manual_has_exactly_the_options(self):
        with open(MANUAL) as file:
            text = file.read().replace("\\-", "-")
        section = re.search(r"\.SH OPTIONS\n(.*?)\.SH ", text, re.S)[1]
        tags = re.findall(r"\.TP\n(.*)\n", section)
        self.assertEqual(set(re.findall(r"(?<!\w)--?[a-z][a-z-]*",
                                        " ".join(tags))), self.options())
        # An option that is named anywhere must exist: here, or the build's.
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        self.assertEqual(named - self.options(), {"--with-pymalloc-hugepages"})

    def test_manual_has_the_sections(self):
        with open(MANUAL) as file:
            found = re.findall(r'^\.SH "?(.*?)"?$', file.read(), re.M)
        self.assertEqual(found, [
            "NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS",
            "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"])

    @unittest.skipUnless(shutil.which("groff"), "needs groff")
    def test_manual_is_clean(self):
        done = subprocess.run(["groff", "-man", "-ww", "-z", MANUAL],
                              stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_help(self):
        out, _ = self.tool("--help")
        for word in "exit status", "130", "141", "126", "reserve", "sudo":
            self.assertIn(word, out)
        for command in "status", "reserve", "run":
            out, _ = self.tool(command, "--help")
            self.assertIn("--json", out)
            self.assertLessEqual(max(map(len, out.splitlines())), 80)

    @requires_linux
    def test_runs_from_anywhere(self):
        os.symlink(TOOL, self.path("link.py"))
        done = subprocess.run([sys.executable, self.path("link.py"), "--help"],
                              cwd="/", stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 0)

    @requires_linux
    def test_output_that_nobody_reads(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open(write_end, "w") as pipe:
            for args in ["--help"], ["status", str(os.getpid())]:
                done = subprocess.run([sys.executable, TOOL, *args],
                                      stdout=pipe, stderr=subprocess.PIPE)
                self.assertEqual((done.returncode, done.stderr), (141, b""))
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, TOOL, "--help"],
                                  stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr.decode(), r"\A.*No space left.*\n\Z")

    @requires_linux
    def test_closed_streams(self):
        for closed in (1,), (2,), (0, 1, 2):
            with self.subTest(closed):
                done = subprocess.run(
                    [sys.executable, TOOL, "nonsense"], stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    preexec_fn=lambda: list(map(os.close, closed)))
                self.assertEqual(done.returncode, 2)
                # The line does not go to where the output belongs.
                self.assertEqual(done.stdout, b"")
                self.assertEqual(bool(done.stderr), 2 not in closed)

    def test_interrupt(self):
        with mock.patch.object(cli, "_select", side_effect=KeyboardInterrupt):
            self.assertEqual(self.main("status"), (130, "", ""))

    def test_other_systems(self):
        with mock.patch.object(sys, "platform", "win32"):
            for args in (["status", "5"], ["reserve", "5"], ["run", "x"],
                         ["reserve", "--for", "x"]):
                status, out, err = self.main(*args)
                self.assertEqual((status, out), (2, ""))
                self.assertRegex(err,
                                 r"\Ahugepages.py: .* is for Linux; .*\n\Z")
            # status without a process is for all.
            module = cli._select(cli.parse_arguments(["status"]))
            self.assertEqual(module.__name__, "hugepages.system_status")

    @requires_linux
    def test_starts_without_what_windows_lacks(self):
        # The library's own modules must not believe that this is Windows.
        program = f"""
import argparse, contextlib, dataclasses, json, os, re, shlex, shutil, signal
import sys, tempfile, threading, time, typing
for name in "geteuid", "fchmod", "posix_spawnp", "wait4", "WNOHANG":
    delattr(os, name)
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE",
             "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
sys.platform = "win32"
sys.path.insert(0, {os.path.dirname(PACKAGE)!r})
from hugepages import cli
sys.exit(cli.main(["reserve", "5"]))
"""
        done = subprocess.run([sys.executable, "-c", program],
                              stderr=subprocess.PIPE, universal_newlines=True)
        self.assertEqual((done.returncode, done.stderr), (
            2, "hugepages.py: reserve is for Linux; on this system there is: "
            "hugepages.py status\n"))
