"""Tests of bench_memory.py and benchlib's memory."""

import json
import os
import sys
import unittest

from benchlib import BenchError, memory
from benchlib.measure import Configuration
from bench_memory import MIB, Program
import bench_memory
from hugepages.test.support import call

from .support import FakeKernelPool, ScratchDirectory, setUpModule


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


class PoolTests(ScratchDirectory):
    def test_set_and_restore(self):
        with FakeKernelPool(self.directory) as pool:
            pool.set_available(20)
            self.assertEqual(pool.available(), 20)
            self.assertEqual(pool.settings(), (22, 0))
            pool.set_available(0)
            self.assertEqual(pool.available(), 0)
            self.assertEqual(pool.settings(), (2, 0))
        self.assertEqual(pool.settings(), (5, 3))

    def test_restored_after_an_exception(self):
        with self.assertRaises(ZeroDivisionError):
            with FakeKernelPool(self.directory) as pool:
                pool.set_available(20)
                1 / 0
        self.assertEqual(pool.settings(), (5, 3))

    def test_kernel_gives_less(self):
        with FakeKernelPool(self.directory) as pool:
            with self.assertRaisesRegex(memory.PoolError, "only 98 of 200"):
                pool.set_available(200)
        self.assertEqual(pool.settings(), (5, 3))

    def test_without_rights(self):
        with FakeKernelPool(self.directory) as pool:
            pool.writable = False
            pool.set_available(0)
            pool.set_available(3)
            self.assertEqual(pool.settings(), (5, 3))
            with self.assertRaisesRegex(memory.PoolError, "as root: echo 4 >"):
                pool.set_available(4)

    def test_no_pool_in_this_kernel(self):
        with memory.Pool(self.path("nonexistent")) as pool:
            pool.set_available(0)
            with self.assertRaisesRegex(memory.PoolError, "no pool"):
                pool.set_available(1)

    @unittest.skipUnless(memory.Pool().writable, "needs root and a hugetlb "
                         "pool that it may change")
    def test_real_pool(self):
        def total():
            with open("/sys/kernel/mm/hugepages/hugepages-2048kB/"
                      "nr_hugepages") as file:
                return int(file.read())
        before = total()
        with memory.Pool() as pool:
            pool.set_available(3)
            self.assertEqual(pool.available(), 3)
            memory.warm(4 * memory.MIB, 3)
            with self.assertRaises(memory.PoolError):
                memory.warm(0, 4)
            pool.set_available(0)
            self.assertEqual(pool.available(), 0)
        self.assertEqual(total(), before)


class CurrentMemoryTests(unittest.TestCase):
    def test_of_a_process_that_shares_its_memory(self):
        ballast = b"x" * (50 * memory.MIB)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        try:
            for each in os.getpid(), pid:
                found = memory.current_memory(each)
                self.assertGreater(found["rss"], len(ballast))
                self.assertLess(found["pss"], found["rss"] - len(ballast) // 3)
                self.assertGreaterEqual(found["peak"], len(ballast))
        finally:
            os.close(write_end)
            os.close(read_end)
            os.waitpid(pid, 0)
        with self.assertRaises(OSError):
            memory.current_memory(pid)


class PeakMemoryTests(unittest.TestCase):
    def test_sees_the_peak_of_the_command_alone(self):
        command = [sys.executable, "-c",
                   "import time; b = b'x' * (50 << 20); time.sleep(0.1)"]
        ballast = b"x" * (200 * memory.MIB)
        peak = memory.peak_memory(command, dict(os.environ))
        self.assertGreater(peak["rss"], 50 * memory.MIB)
        self.assertLess(peak["rss"], len(ballast) // 2)

    def test_failures(self):
        for code, message in (("raise SystemExit('sorry')", "sorry"),
                              ("raise SystemExit(3)", "exit status 3"),
                              ("import os; os.abort()", "Abort")):
            with self.subTest(code):
                with self.assertRaisesRegex(BenchError, message):
                    memory.peak_memory([sys.executable, "-c", code],
                                       dict(os.environ))
