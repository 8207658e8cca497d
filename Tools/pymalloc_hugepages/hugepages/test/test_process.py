"""Tests of what is read of one process."""

import io
import json
import os
from unittest import mock

from hugepages import ToolError, process, smaps

from .support import (
    ALL_HUGETLB, ALL_THP, EXPECTED, EXTENSION, MIB, WITH_WHEEL, TestCase)


LIBRARY = "/opt/lib/libpython3.13.so.1.0"

MAPS = f"""\
55d0-55d1 r--p 00000000 08:01 1      /opt/bin/python3.13
7f00-7f20 r--p 00000000 08:01 2      {LIBRARY}
7f20-7f40 r-xp 00020000 08:01 2      {LIBRARY}
"""


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

    def test_extension(self):
        self.assertEqual(self.find(**WITH_WHEEL), EXTENSION)

    def test_extension_in_an_interpreter_with_the_option(self):
        # It is mapped before the library.
        self.tree.write("proc/5/root" + LIBRARY, process.MARKER)
        self.assertEqual(self.find(
            exe=b"", maps=WITH_WHEEL["maps"] + MAPS), LIBRARY)

    def test_other_libraries(self):
        self.tree.write("proc/5/root/lib/x.so", process.MARKER)
        self.assertIsNone(self.find(
            exe=b"", maps="7f00-7f20 r--p 00000000 08:01 2   /lib/x.so\n"))


class ReportTests(TestCase):
    def report(self, **kwargs):
        self.tree.add_process(5, **kwargs)
        return process.look_at(5, self.root)

    def test_patched(self):
        report = self.report(status="Name:\tx\nTHP_enabled:\t1\n")
        self.assertEqual(report.usage, EXPECTED)
        self.assertIs(report.patched, True)
        result = process.as_dict(report)
        self.assertEqual(result["feature"], "option")
        self.assertEqual(result["hugetlb"], {
            "arenas": 3, "size": 6 * MIB, "on_huge_pages": 6 * MIB})
        self.assertEqual(result["thp"], {
            "arenas": 10, "size": 20 * MIB, "on_huge_pages": 18 * MIB,
            "size_once": 20 * MIB, "on_huge_pages_once": 18 * MIB})
        self.assertEqual(result["huge_percent"], 92.3)
        self.assertIs(result["thp_enabled"], True)
        self.assertEqual(json.loads(json.dumps(result)), result)

    def test_wheel(self):
        for maps in WITH_WHEEL["maps"], WITH_WHEEL["maps"].replace(
                "\n", " (deleted)\n"):
            self.tree.write(f"proc/5/root{EXTENSION} (deleted)",
                            process.MARKER)
            report = self.report(**{**WITH_WHEEL, "maps": maps})
            self.assertEqual(report.usage, EXPECTED)
            result = process.as_dict(report)
            self.assertIs(result["patched"], True)
            self.assertEqual(result["feature"], "wheel")

    def test_not_patched(self):
        report = self.report(exe=b"perl")
        self.assertIs(report.patched, False)
        result = process.as_dict(report)
        self.assertIsNone(result["feature"])
        self.assertIsNone(result["thp"])
        self.assertEqual(result["memory"]["hugetlb"], ALL_HUGETLB)
        self.assertEqual(result["memory"]["thp"], ALL_THP)

    def test_unknown(self):
        report = self.report(exe=b"", maps=MAPS)
        self.assertIsNone(report.patched)
        self.assertIsNone(report.feature)
        self.assertIn("No such file", process.as_dict(report)["problem"])
        self.assertEqual(report.usage, EXPECTED)

    def test_none_on_huge_pages(self):
        report = self.report(smaps="", status="THP_enabled:\t0\n",
                             environ="A=b\0PYTHON_PYMALLOC_HUGEPAGES=off\0"
                             "PYTHONMALLOC=malloc\0")
        self.assertEqual(report.usage, smaps.Usage())
        self.assertIs(report.thp_enabled, False)
        self.assertEqual(report.environment, {
            "PYTHON_PYMALLOC_HUGEPAGES": "off", "PYTHONMALLOC": "malloc"})
        self.assertIsNone(process.as_dict(report)["huge_percent"])

    def test_environment(self):
        for environ, expected in (
                ("", {}), ("A=b\0", {}), ("PYTHONMALLOC=debug\0A=b\0",
                                         {"PYTHONMALLOC": "debug"}),
                # What setproctitle leaves.
                ("\0" * 99, None), ("er [app]\0\0PYTHONMALLOC=x\0", None)):
            self.assertEqual(self.report(environ=environ).environment,
                             expected)

    def test_memory(self):
        rollup = ("1000-2000 ---p 00000000 00:00 0              [rollup]\n"
                  "Rss: 104 kB\nPss: 23 kB\nPss_Dirty: 3 kB\n"
                  "Shared_Clean: 80 kB\nPrivate_Clean: 5 kB\n"
                  "Private_Dirty: 6 kB\nAnonHugePages: 2048 kB\nSwap: 7 kB\n"
                  "SwapPss: 1 kB\nShared_Hugetlb: 2048 kB\n"
                  "Private_Hugetlb: 2048 kB\n")
        self.tree.write("proc/5/smaps_rollup", rollup)
        self.assertEqual(self.report().memory, smaps.Memory(
            rss=104 << 10, pss=23 << 10, uss=11 << 10, swap=7 << 10,
            thp=2 * MIB, hugetlb=4 * MIB))

    def test_memory_before_linux_4_14(self):
        memory = self.report().memory
        self.assertEqual((memory.hugetlb, memory.thp), (ALL_HUGETLB, ALL_THP))
        self.assertEqual(memory.rss, memory.pss)
        self.assertEqual(memory.rss, memory.uss)

    def test_names_do_nothing_to_the_terminal(self):
        command = self.report(arguments=[
            "python", "\033[2J", "a b", "\udcff"[:0]]).command
        self.assertNotIn("\033", command)
        self.assertIn("'a b'", command)

    def test_title(self):
        self.assertEqual(self.report(arguments=["app: worker [x]"]).command,
                         "app: worker [x]")

    def assert_refused(self, pattern, error=ToolError):
        with self.assertRaisesRegex(error, pattern) as caught:
            process.look_at(5, self.root)
        self.assertNotIn("\n", str(caught.exception))

    def test_no_proc(self):
        self.assert_refused("cannot list processes: .*mount it")
        self.tree.write("proc/README", "")
        self.assert_refused("cannot list processes: .*is empty; mount it")

    def test_gone(self):
        self.tree.add_process(6)
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
            return smaps.Usage()
        with mock.patch.object(process, "read_usage", end):
            self.assert_refused("has just ended", process.ProcessGone)

    def test_no_permission(self):
        self.tree.add_process(5)
        with mock.patch.object(process, "read_usage",
                               side_effect=PermissionError):
            with mock.patch.object(os, "geteuid", return_value=1000):
                self.assert_refused("no permission .* sudo .*status 5")
            with mock.patch.object(os, "geteuid", return_value=0):
                self.assert_refused("no permission .* from the host")

    def test_other_error(self):
        self.tree.add_process(5)
        with mock.patch.object(process, "read_usage",
                               side_effect=OSError(5, "Input/output error")):
            self.assert_refused("Input/output error")
