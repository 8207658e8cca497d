"""Tests of bench_malloc.py."""

import os
import sys
import unittest
from unittest import mock

from benchlib import memory
import bench_malloc
from hugepages import malloc
from hugepages.test.support import call


class MallocCostTests(unittest.TestCase):
    """bench_malloc.py."""

    def test_environments(self):
        with mock.patch.dict(os.environ, PYTHONMALLOC="debug", OTHER="1",
                             GLIBC_TUNABLES="a=1", MALLOC_TRIM_THRESHOLD_="1"):
            plain, recipe = bench_malloc.environments("thp", "b=2:c=3")
        self.assertEqual(plain["OTHER"], "1")
        self.assertEqual(plain["PYTHON_PYMALLOC_HUGEPAGES"], "thp")
        self.assertFalse({"PYTHONMALLOC", "GLIBC_TUNABLES",
                          "MALLOC_TRIM_THRESHOLD_"} & set(plain))
        self.assertEqual(recipe, {**plain, "GLIBC_TUNABLES": "b=2:c=3"})

    def test_table(self):
        def run_program(python, program, env):
            size = 3 if "GLIBC_TUNABLES" in env else 1
            return {"rss": size * memory.MIB, "pss": 10 * size * memory.MIB,
                    "peak": 100 * size * memory.MIB}
        with mock.patch.object(bench_malloc, "run", run_program), \
                mock.patch.object(malloc, "glibc_version",
                                  return_value=(2, 36)):
            status, out, err = call(bench_malloc.main, "python", "--runs",
                                    "2")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([line.split()[-2:] for line in out.splitlines()[1:]],
                         [["100.0", "300.0"], ["1.0", "3.0"], ["1.0", "3.0"],
                          ["100.0", "300.0"], ["1.0", "3.0"],
                          ["10.0", "30.0"]])

    def test_programs(self):
        # Smaller ones of the same kind.
        for name, program in bench_malloc.PROGRAMS.items():
            for large in "build(200", "build(100":
                program = program.replace(large, "build(4")
            program = program.replace("build(8", "build(1")
            found = bench_malloc.run(sys.executable, program,
                                     dict(os.environ))
            self.assertGreater(found["rss"], memory.MIB, name)
            self.assertGreaterEqual(found["peak"], found["rss"], name)

    def test_failures(self):
        for args, pattern in (
                (["/no/such/python"], "cannot run '/no/such/python'"),
                (["false"], "'false' failed"),
                (["python", "--runs", "0"], "--runs must be 1 or more")):
            with mock.patch.object(malloc, "glibc_version",
                                   return_value=(2, 36)):
                status, out, err = call(bench_malloc.main, *args)
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, rf"\Abench_malloc\.py: {pattern}.*\n\Z")
        for version in None, (2, 25):
            with mock.patch.object(malloc, "glibc_version",
                                   return_value=version):
                status, out, err = call(bench_malloc.main, sys.executable)
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Abench_malloc\.py: .*glibc 2\.26 .*\n\Z")
