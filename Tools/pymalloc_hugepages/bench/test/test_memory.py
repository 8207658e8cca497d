"""Tests of bench_memory.py."""

import json
import sys
import unittest

from benchlib import BenchError
from benchlib.measure import Configuration
import bench_memory
from bench_memory import MIB, Program
from hugepages.test.support import call

from .support import ScratchDirectory


THIS = Configuration("this", sys.executable)


def raises():
    raise ValueError("no such thing")


def hold(mib):
    kept = b"x" * (mib << 20)
    now = held()        # of bench_memory.py
    del kept
    return {"with": now, "held": held()}


@unittest.skipUnless(sys.platform == "linux", "needs Linux")
class RunTest(ScratchDirectory):

    def test_measures(self):
        result = bench_memory.run(THIS, Program(hold, {}), mib=100)
        self.assertAlmostEqual(result["with"] - result["held"], 100 * MIB,
                               delta=2 * MIB)
        self.assertGreaterEqual(result["peak"], result["with"] - 2 * MIB)
        self.assertLess(result["held"], 50 * MIB)
        self.assertEqual(result["pool"], 0)

    def test_error(self):
        with self.assertRaisesRegex(BenchError, "this: raises failed: "
                                    "ValueError: no such thing"):
            bench_memory.run(THIS, Program(raises, {}))

    def test_limited_address_space(self):
        program = Program(hold, {}, shell="ulimit -v 100000")
        with self.assertRaisesRegex(BenchError, "MemoryError"):
            bench_memory.run(THIS, program, mib=200)

    def test_cgroup(self):
        program = Program(hold, {})
        try:
            lives = [bench_memory.lives(THIS, program, 60 * MIB, mib=mib)
                     for mib in (10, 200)]
        except BenchError as error:
            self.skipTest(str(error))
        self.assertEqual(lives, [True, False])

    def test_command_line(self):
        file = self.directory / "file.json"
        status, output, _ = call(
            bench_memory.main, "--config", f"a={sys.executable}",
            "--config", f"b={sys.executable}", "--program", "start",
            "--program", "preforked", "--runs", "2", "--wait", "0",
            "--json", str(file))
        self.assertEqual(status, 0)
        results = json.loads(file.read_text())
        lines = output.splitlines()
        self.assertRegex(lines[1], r"^\\ +a +b$")
        self.assertRegex(lines[3], r"^``-c pass``: peak +[\d.]+ +[\d.]+$")
        self.assertTrue(lines[5].startswith("the same, after 0 s"), lines)
        self.assertEqual([(row["program"], row["key"])
                          for row in results["rows"]],
                         [("start", "peak"), ("preforked", "pss"),
                          ("preforked", "pss later")])
        for row in results["rows"]:
            self.assertEqual([len(row["values"][label]) for label in "ab"],
                             [2, 2])


class TableTest(unittest.TestCase):

    def test_table(self):
        rows = [("one", {"a": [MIB, 3 * MIB, 2 * MIB], "bb": [2000 * MIB]}),
                ("another", {"a": [True, False, True], "bb": [True]})]
        self.assertEqual(bench_memory.table(rows, ["a", "bb"]), """\
=======  ======  ======
\\             a      bb
=======  ======  ======
one         2.0   2,000
another  2 of 3  1 of 1
=======  ======  ======""")

    def test_width(self):
        """Four configurations fit into the README."""
        words = [words for program in bench_memory.PROGRAMS
                 for words in program.rows.values()]
        words.append(bench_memory.LIMITED.format(first="stock"))
        self.assertLessEqual(max(map(len, words)) + 4 * len("  3 of 3"), 90)

    def test_wrong_arguments(self):
        for arguments in (["--config", "a"], ["--runs", "0"]):
            status, _, errors = call(
                bench_memory.main, "--config", f"x={sys.executable}",
                *arguments)
            self.assertEqual(status, 2)
            self.assertRegex(errors, r"^bench_memory.py: .+\n$")
