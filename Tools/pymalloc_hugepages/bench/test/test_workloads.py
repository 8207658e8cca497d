"""Tests of bench_obmalloc.py and the other workloads."""

import ast
import collections
import contextlib
import gc
import io
import os
import resource
import threading
import warnings
from unittest import mock

import bench_obmalloc
import bench_programs
import bench_scale
import bench_small

from .support import BENCH, NAMES, SCRIPT, ScratchDirectory, run


class WorkloadTests(ScratchDirectory):
    def test_list(self):
        done = run(SCRIPT, "--list")
        self.assertEqual((done.returncode, done.stdout.split(), done.stderr),
                         (0, NAMES, ""))

    def test_unknown_name_is_one_line_and_runs_nothing(self):
        with mock.patch.dict(bench_obmalloc.WORKLOADS,
                             dict_churn=lambda: self.fail("was run")):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                status = bench_obmalloc.main(["dict_churn", "nonsense"])
        self.assertEqual(status, 2)
        self.assertRegex(stderr.getvalue(), r"\A.*'nonsense'.*--list.*\n\Z")

    def test_no_name(self):
        done = run(SCRIPT)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r"\Ausage: .*\n\Z")

    def test_several_and_all(self):
        calls = []
        fakes = {name: lambda name=name: calls.append((name, gc.isenabled()))
                 for name in NAMES}
        with mock.patch.dict(bench_obmalloc.WORKLOADS, fakes):
            self.assertEqual(
                bench_obmalloc.main(["random_walk", "dict_churn"]), 0)
            self.assertEqual(calls, [("random_walk", False),
                                     ("dict_churn", False)])
            calls.clear()
            self.assertEqual(bench_obmalloc.main(["all"]), 0)
            self.assertEqual([name for name, _ in calls], NAMES)
        self.assertTrue(gc.isenabled())

    def test_runs_alone_through_a_symlink(self):
        os.symlink(SCRIPT, self.path("link.py"))
        done = run(self.path("link.py"), "dict_churn", cwd="/")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (0, "", ""))

    def test_loops(self):
        for arguments in (["--loops", "3", "dict_churn"],
                          ["dict_churn", "--loops", "3"]):
            with self.subTest(arguments):
                done = run(SCRIPT, *arguments)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                turns = [float(line) for line in done.stdout.splitlines()]
                self.assertEqual(len(turns), 3)
        for bad in (["--loops"], ["--loops", "0", "dict_churn"],
                    ["--loops", "x", "dict_churn"], ["dict_churn", "--loops"],
                    ["dict_churn", "--loops", "0"]):
            with self.subTest(bad):
                done = run(SCRIPT, *bad)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertRegex(done.stderr, r"\A.*--loops.*\n\Z")

    def test_options_after_the_name(self):
        done = run(SCRIPT, "dict_churn", "--list")
        self.assertEqual((done.returncode, done.stdout.split()), (0, NAMES))
        done = run(SCRIPT, "dict_churn", "--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"\Ausage: .*\n\Z")

    def test_programs(self):
        done = run(BENCH / "bench_programs.py", "--list")
        self.assertEqual(done.stdout.split(), list(bench_programs.WORKLOADS))
        for name in bench_programs.WORKLOADS:
            with self.subTest(name):
                done = run(BENCH / "bench_programs.py", name)
                self.assertEqual((done.returncode, done.stdout, done.stderr),
                                 (0, "", ""))

    def test_scale(self):
        done = run(BENCH / "bench_scale.py", "--list")
        self.assertEqual(done.stdout.split(), [
            "arena_pressure_x1", "arena_pressure_x4", "arena_pressure_x16"])
        made = collections.Counter()
        shared = bytearray(1)

        def fake(size):
            made[size] += 1
            return shared

        with mock.patch.object(bench_scale, "bytearray", fake, create=True):
            bench_scale.arena_pressure(2)
        self.assertEqual(made, {256: 4_000_000})
        with mock.patch.object(bench_scale, "arena_pressure") as fake:
            bench_scale.WORKLOADS["arena_pressure_x16"]()
        fake.assert_called_once_with(16)
        self.assertEqual(
            bench_scale.memory_needed(["arena_pressure_x4", "startup"]),
            4 * bench_scale.memory_needed(["arena_pressure_x1"]))
        self.assertEqual(bench_scale.memory_needed(["startup"]), 0)

    def test_thread_server(self):
        # The workload itself checks that all threads are there at its end.
        done = run(BENCH / "bench_small.py", "thread_server")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (0, "", ""))

    def test_thread_server_sees_a_thread_that_ends(self):
        class Short(threading.Thread):
            def run(self):
                self._args[0].recv(1)
                self._args[0].close()

        with mock.patch.object(bench_small, "THREADS", 3), \
             mock.patch.object(threading, "Thread", Short), \
             warnings.catch_warnings():
            # Of the connections that are left open.
            warnings.simplefilter("ignore", ResourceWarning)
            with self.assertRaises((AssertionError, ConnectionError)):
                bench_small.thread_server()

    def test_thread_server_with_few_files(self):
        done = run(BENCH / "bench_small.py", "thread_server",
                   preexec_fn=lambda: resource.setrlimit(
                       resource.RLIMIT_NOFILE, (100, 1000)))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\A.*2100 open files are needed, and "
                         r"1000 are the limit.*\n\Z")

    def test_imports_nothing_that_is_not_loaded_anyway(self):
        with open(SCRIPT) as file:
            tree = ast.parse(file.read())
        imported = {alias.name for node in tree.body
                    if isinstance(node, (ast.Import, ast.ImportFrom))
                    for alias in node.names}
        self.assertEqual(imported, {"gc", "sys"})

    def test_buffers_are_those_of_the_proposal(self):
        # small_object_churn is left out: it takes long.
        def of_twelve(size):
            sizes = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
            return 500_000 // 12 + (sizes.index(size) < 500_000 % 12)

        expected = {
            "bulk_small_alloc": {48: 1_000_000},
            "mixed_sizes": {size: of_twelve(size) for size in (
                8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)},
            "fragmentation": {128: 750_000},
            "arena_pressure": {256: 2_000_000},
            "random_walk": {64: 1_000_000},
        }
        shared = bytearray(1)
        for name, counts in expected.items():
            made = collections.Counter()

            def fake(size):
                made[size] += 1
                return shared

            with self.subTest(name):
                with mock.patch.object(bench_obmalloc, "bytearray", fake,
                                       create=True):
                    bench_obmalloc.WORKLOADS[name]()
                self.assertEqual(made, counts)
