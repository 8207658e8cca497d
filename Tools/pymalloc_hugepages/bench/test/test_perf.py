"""Tests of benchlib's perf and profile."""

import shutil
import sys
import unittest

from benchlib import BenchError, perf, profile


class PerfTests(unittest.TestCase):
    def test_parse(self):
        text = ("# started on Mon Nov 23 06:18:25 2026\n\n"
                "<not supported>;;dTLB-loads;0;100.00;;\n"
                "<not counted>;;cpu_atom/cycles/;0;0.00;;\n"
                "9000;;cpu_core/cycles/;12965900;42.50;1,2;GHz\n"
                "819;;page-faults:u;12965900;100.00;;\n"
                "30290340;ns;duration_time:u;30290340;100.00;;\n"
                ";;;;;0,5;insn per cycle\n")
        self.assertEqual(perf.parse_stat(text), {
            "dTLB-loads": None, "cpu_atom/cycles/": None,
            "cpu_core/cycles/": 9000, "page-faults:u": 819,
            "duration_time": 30290340})

    def test_base_name(self):
        for event in ("cycles", "cycles:u", "cpu_core/cycles/",
                      "cpu_atom/cycles/u"):
            self.assertEqual(perf.base_name(event), "cycles")

    def test_impossible_wall_time(self):
        def counts(wall):
            return {"duration_time": wall, "user_time": 8e6,
                    "system_time": 4e6}
        self.assertTrue(perf.wall_time_is_possible(counts(12.5e6)))
        self.assertTrue(perf.wall_time_is_possible(counts(11e6)))
        self.assertFalse(perf.wall_time_is_possible(counts(1500)))
        self.assertFalse(perf.wall_time_is_possible(counts(None)))
        self.assertFalse(perf.wall_time_is_possible(counts(7e6)))
        self.assertTrue(perf.wall_time_is_possible(counts(7e6), threads=2))

    @unittest.skipUnless(shutil.which("perf"), "needs perf")
    def test_real_perf(self):
        command = [sys.executable, "-c", "pass"]
        try:
            counted, missing = perf.probe(command)
        except BenchError as error:
            self.skipTest(str(error))
        self.assertCountEqual(counted + missing, perf.EVENTS + perf.TIMES)
        counts = perf.stat(counted, command)
        self.assertGreater(counts["duration_time"], 0)
        self.assertGreater(
            next(value for name, value in counts.items()
                 if perf.base_name(name) == "page-faults"), 100)
        with self.assertRaisesRegex(perf.CommandFailed, "exit status 7"):
            perf.stat(["page-faults"],
                      [sys.executable, "-c", "raise SystemExit(7)"])
        with self.assertRaisesRegex(perf.CommandFailed, "Killed"):
            perf.stat(["page-faults"], [
                sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


class ProfileTests(unittest.TestCase):
    def test_parts(self):
        for part, functions in (
                ("zeroing", [
                    ("[kernel.kallsyms]", "[k] clear_page_erms"),
                    ("[kernel.kallsyms]", "[k] __pi_clear_page"),
                    ("[kernel.kallsyms]", "[k] clear_huge_page"),
                    ("[kernel.kallsyms]", "[k] folio_zero_user")]),
                ("rest of kernel", [
                    ("[kernel.kallsyms]", "[k] clear_page_dirty_for_io"),
                    ("[kernel.kallsyms]", "[k] exc_page_fault"),
                    ("[kernel.kallsyms]", "[k] mi_free"),
                    ("[hypervisor]", "[H] 0x1234")]),
                ("allocator", [
                    ("python", "[.] _PyObject_Free"),
                    ("python", "[.] PyMem_RawMalloc"),
                    ("python", "[.] hugepages_block_malloc"),
                    ("python", "[.] address_in_range"),
                    ("python", "[.] _mi_page_malloc"),
                    ("libc.so.6", "[.] cfree@GLIBC_2.2.5"),
                    ("libc.so.6", "[.] _int_malloc"),
                    ("libjemalloc.so.2", "[.] 0x0000000000001234")]),
                ("interpreter", [
                    ("python", "[.] _PyEval_EvalFrameDefault"),
                    ("python", "[.] PyObject_FreeSomething"),
                    ("python", "[.] minor_collection"),
                    ("libc.so.6", "[.] __memset_avx512_unaligned_erms"),
                    ("[vdso]", "[.] 0x0000000000000986")])):
            for library, symbol in functions:
                with self.subTest(symbol):
                    self.assertEqual(profile.part_of(library, symbol), part)

    def test_parse(self):
        self.assertEqual(
            profile.parse_report(
                "\n# a comment\n"
                " 1500000 |python            |[.] _Py_Dealloc\n"
                "  250000 |python            |[.] operator|(int)\n"
                "  500000 |[kernel.kallsyms] |[k] do_exit\n"),
            {"zeroing": 0, "rest of kernel": 500_000, "allocator": 0,
             "interpreter": 1_750_000})

    @unittest.skipUnless(shutil.which("perf"), "needs perf")
    def test_real_perf(self):
        # Longer than the clock's period, in the interpreter and in pymalloc.
        script = "[bytearray(99) for i in range(300_000)]"
        try:
            times = profile.record([sys.executable, "-c", script])
        except perf.PerfFailed as error:
            self.skipTest(str(error))
        self.assertEqual(set(times), set(profile.PARTS))
        for part in ("allocator", "interpreter"):
            self.assertGreater(times[part], 0)
        # Nanoseconds: it takes more than a millisecond, and never a minute.
        self.assertGreater(sum(times.values()), 1e6)
        self.assertLess(sum(times.values()), 60e9)
        with self.assertRaises(perf.CommandFailed):
            profile.record([sys.executable, "-c", "raise SystemExit(7)"])
        script = "import os; os.kill(os.getpid(), 9)"
        with self.assertRaisesRegex(perf.CommandFailed, "^Killed$"):
            profile.record([sys.executable, "-c", script])
