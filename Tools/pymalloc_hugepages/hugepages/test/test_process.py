"""Tests of status of a process."""

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import types
from unittest import mock

from hugepages import ToolError, process

from .support import (
    EXPECTED, MIB, SMAPS, TOOL, TestCase, end, is_patched, mapping, pool_with,
    requires_linux)


LIBRARY = "/opt/lib/libpython3.13.so.1.0"

MAPS = f"""\
55d0-55d1 r--p 00000000 08:01 1      /opt/bin/python3.13
7f00-7f20 r--p 00000000 08:01 2      {LIBRARY}
7f20-7f40 r-xp 00020000 08:01 2      {LIBRARY}
"""


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
