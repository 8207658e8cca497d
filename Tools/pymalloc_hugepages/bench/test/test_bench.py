"""Tests of bench_obmalloc.py, bench_driver.py and bench_malloc.py.

Most run with a stand-in for perf, so that they need neither perf nor its
permissions and know each number beforehand.
"""

import ast
import collections
import contextlib
import gc
import io
import json
import operator
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import unittest
import warnings
from unittest import mock
from xml.etree import ElementTree

from benchlib import (
    BenchError, files, measure, memory, page, perf, profile, plot, report)
from benchlib.progress import Progress
import bench_driver
import bench_malloc
import bench_obmalloc
import bench_programs
import bench_scale
import bench_small
from hugepages import malloc
from hugepages.test.support import call

from .support import (
    BENCH, DRIVER, FakeKernelPool, ProgramTestCase, ScratchDirectory,
    fake_results, run)


TOOLS = BENCH.parent
TOP = TOOLS.parent.parent
SCRIPT = str(TOOLS / "bench_obmalloc.py")
NAMES = ["small_object_churn", "bulk_small_alloc", "dict_churn", "mixed_sizes",
         "fragmentation", "list_of_tuples", "class_instances",
         "arena_pressure", "random_walk"]

# Takes the arguments that the driver gives to perf, runs the command, and
# writes numbers that depend on the event only.  FAKE_PERF says how to fail.
FAKE_PERF = r"""
import os, subprocess, sys, time
args = sys.argv[1:]
if args == ["--version"]:
    print("perf version 0.0.fake")
    sys.exit()
command = args[args.index("--") + 1:] if "--" in args else []
mode = os.environ.get("FAKE_PERF", "")
timed = any("bench_obmalloc" in arg for arg in command)
if mode == "forbidden":
    sys.exit("Error:\nAccess to performance monitoring is limited.\nadvice")
if args[0] == "report":
    if mode == "blind":
        sys.exit("the file has no samples")
    print(" 3000000 |[kernel.kallsyms] |[k] clear_page_erms\n"
          " 6000000 |python            |[.] _PyObject_Malloc")
    sys.exit()
if args[0] == "record":
    assert args[args.index("-e") + 1] == "cpu-clock", args
    if mode == "no clock":
        sys.exit("Error:\nno such clock")
    with open(args[args.index("-o") + 1], "w"):
        sys.exit(subprocess.call(command))
if "instructions" in sys.argv[sys.argv.index("-e") + 1]:
    sys.exit("event syntax error: 'instructions'\n  usage")
if mode.startswith("block="):
    os.makedirs(mode[6:], exist_ok=True)
if mode.startswith("hang=") and timed:
    marker = mode[5:]
    if os.path.exists(marker + ".once"):
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    open(marker + ".once", "w").close()
status = subprocess.call(command)
numbers = {"page-faults": 1234, "duration_time": 250_000_000,
           "user_time": 150_000_000}
if mode.startswith("late=") and timed and not os.path.exists(mode[5:]):
    open(mode[5:], "w").close()
    numbers["duration_time"] = 1500
with open(args[args.index("-o") + 1], "w") as file:
    print("# started on a fine day\n", file=file)
    for event in args[args.index("-e") + 1].split(","):
        value = numbers.get(event, "<not supported>")
        if event == "system_time":
            value = "<not counted>"
        print(f"{value};;{event};1;100.00;;", file=file)
if mode == "bus" and timed:
    print(f"{command[0]}: Bus error", file=sys.stderr)
    status = 0
sys.exit(status)
"""


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
        done = run(SCRIPT, "--loops", "3", "dict_churn")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        turns = [float(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(turns), 3)
        for bad in (["--loops"], ["--loops", "0", "dict_churn"],
                    ["--loops", "x", "dict_churn"]):
            with self.subTest(bad):
                done = run(SCRIPT, *bad)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertRegex(done.stderr, r"\A.*--loops.*\n\Z")

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


class ConfigurationTests(unittest.TestCase):
    def test_parse(self):
        path = sys.executable
        for text, expected in (
                (f"a={path}", ("a", path, None, "empty")),
                (f"a-1.0={path},switch=thp", ("a-1.0", path, "thp", "empty")),
                (f"a={path},pool=auto", ("a", path, None, "auto")),
                (f"a={path},switch=0,pool=12", ("a", path, "0", "12")),
                (f"a={path},env=X=1", ("a", path, None, "empty",
                                       (("X", "1"),))),
                (f"a={path},pool=auto,env=A=b=c:d,env=E=",
                 ("a", path, None, "auto", (("A", "b=c:d"), ("E", ""))))):
            with self.subTest(text):
                self.assertEqual(measure.parse_configuration(text),
                                 measure.Configuration(*expected))

    def test_malloc(self):
        # As in Makefile.in.
        found = measure.parse_configuration(
            f"thp+malloc={sys.executable},switch=thp,pool=empty,"
            f"env=GLIBC_TUNABLES={malloc.as_text()}")
        self.assertEqual(found, measure.Configuration(
            "thp+malloc", sys.executable, "thp", "empty",
            (("GLIBC_TUNABLES", malloc.as_text()),)))
        self.assertEqual(found.environment()["GLIBC_TUNABLES"],
                         malloc.as_text())
        # The variable is no reason to let the environment decide on Python.
        self.assertIn("-I", found.command("startup"))

    def test_makefile_and_pages_have_the_recipe(self):
        recipe = malloc.as_text()
        for path, text in (
                (TOP / "docs/malloc.rst", f"    GLIBC_TUNABLES={recipe}\n"),
                (TOP / "docs/containers.rst",
                 f"    Environment=GLIBC_TUNABLES={recipe}\n"),
                (TOOLS / "hugepages/hugepages.1", recipe),
                (TOP / "Makefile.in", f"\nMALLOC = {recipe}\n")):
            self.assertIn(text, path.read_text())

    def test_bad(self):
        path = sys.executable
        for text in (path, f"={path}", f"a b={path}", "a=", "a=/nonexistent",
                     f"a={path},pool=some", f"a={path},switch=",
                     f"a={path},pool=auto,switch=thp", f"a={path},x=y",
                     f"a={path},env=X", f"a={path},env==1",
                     f"a={path},env=X=1,pool=auto",
                     f"a={BENCH}"):
            with self.subTest(text), self.assertRaises(BenchError):
                measure.parse_configuration(text)

    def test_switch_reaches_every_command(self):
        configuration = measure.Configuration("a", "/python", "thp")
        with mock.patch.dict(os.environ, PYTHONMALLOC="debug",
                             PYTHON_PYMALLOC_HUGEPAGES="0", OTHER="1"):
            env = configuration.environment()
            clean = measure.Configuration("a", "/python").environment()
        self.assertEqual(env["PYTHON_PYMALLOC_HUGEPAGES"], "thp")
        self.assertEqual(env["OTHER"], "1")
        self.assertNotIn("PYTHONMALLOC", env)
        self.assertNotIn("PYTHON_PYMALLOC_HUGEPAGES", clean)
        self.assertEqual(configuration.command("startup"), [
            "/python", "-I", "-X", "pymalloc_hugepages=thp", "-c", "pass"])
        self.assertEqual(configuration.command("dict_churn"),
                         ["/python", SCRIPT, "dict_churn"])

    def test_variables_reach_every_command(self):
        configuration = measure.Configuration(
            "a", "/python", variables=(("PYTHONMALLOC", "malloc"),
                                       ("LD_PRELOAD", "liba.so")))
        with mock.patch.dict(os.environ, PYTHONMALLOC="debug"):
            env = configuration.environment()
        self.assertEqual(env["PYTHONMALLOC"], "malloc")
        self.assertEqual(env["LD_PRELOAD"], "liba.so")
        # -I would ignore the first of them.
        self.assertEqual(configuration.command("startup"),
                         ["/python", "-P", "-s", "-c", "pass"])

    def test_loops(self):
        configuration = measure.Configuration("a", "/python")
        self.assertEqual(configuration.command("dict_churn", 3),
                         ["/python", SCRIPT, "--loops", "3", "dict_churn"])
        self.assertEqual(configuration.command("startup", 3),
                         ["/python", "-I", "-c", "pass"])

    def test_judge_pages(self):
        page = memory.HUGE_PAGE_SIZE

        def judge(switch, hugetlb, thp, pool=10, workload="mixed_sizes"):
            return measure.judge_pages(
                measure.Configuration("a", "/python", switch), workload,
                {"rss": 1, "hugetlb": hugetlb * page, "thp": thp * page}, pool)
        for good in ((None, 0, 0), ("0", 0, 0), ("hugetlb", 1, 0),
                     ("thp", 0, 1), ("on", 0, 1), ("1", 9, 0)):
            self.assertIsNone(judge(*good), good)
        for bad in (("hugetlb", 0, 5), ("thp", 5, 0), ("on", 0, 0)):
            self.assertIn("no huge page", judge(*bad), bad)
        self.assertIn("used up", judge("hugetlb", 10, 0))
        for small in "startup", "thread_server", "dict_churn", "echo_server":
            self.assertIsNone(judge("thp", 0, 0, workload=small))


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


class ReportTests(ScratchDirectory):
    def test_figures(self):
        by_key = report.samples(fake_results())
        self.assertEqual(list(by_key), ["duration_time", "page-faults",
                                        "cycles"])
        self.assertEqual(by_key["duration_time"]["first", "base"],
                         report.Sample(5e8, 4.5e8, 7e8))
        self.assertEqual(by_key["cycles"], {})

    def test_text(self):
        text = report.render(fake_results(problems=["huge: trouble"]), "text")
        lines = [" ".join(line.split()) for line in text.splitlines()]
        self.assertIn("first 0.500 s (0.450-0.700) 0.250 s (0.225-0.275) "
                      "-50.0%", lines)
        self.assertIn("first 1,000 (995-1,005) 100 (100-100) -90.0%", lines)
        self.assertIn("second not run not run -", lines)
        self.assertIn("first not run 3.0 / 4.0 / 0.0", lines)
        self.assertIn("Problem: huge: trouble", lines)
        (uncounted,) = (line for line in lines
                        if line.startswith("Not counted on this machine"))
        self.assertIn("cycles", uncounted)
        self.assertNotIn("page-faults", uncounted)
        self.assertIn("A CPU", text)
        self.assertIn("seed 7", text)

    def test_event_that_one_configuration_has_not_counted(self):
        results = fake_results()
        for run_ in results["runs"]:
            if run_["configuration"] == "huge":
                run_["counts"]["page-faults"] = None
        text = report.render(results, "text")
        self.assertRegex(text, r"first +1,000 \(995-1,005\) +not counted +-")

    def test_units_do_not_mix_in_a_row(self):
        results = fake_results()
        for run_ in results["runs"]:
            run_["counts"]["duration_time"] /= (
                8 if run_["configuration"] == "base" else 1)
        self.assertRegex(report.render(results, "text"),
                         r"first +62\.5 ms \(56\.2-87\.5\) +250\.0 ms")

    def test_geometric_mean(self):
        results = fake_results(workloads=["first", "second", "startup"])
        for run_ in list(results["runs"]):
            # The second workload is not changed by huge pages; startup is
            # not one of the mean.
            for name in "second", "startup":
                results["runs"].append(dict(run_, workload=name, counts={
                    "duration_time": 1e9 if name == "second" or
                    run_["configuration"] == "base" else 9e9}))
        text = report.render(results, "text")
        # The mean of 0.5 and 1.
        self.assertRegex(text, r"geometric mean +-29\.3%\n")
        self.assertEqual(text.count("geometric mean"), 2)
        # Of the page faults there is only one workload's figure.
        self.assertRegex(text, r"geometric mean +-\n")
        self.assertNotIn("geometric mean", report.render(
            fake_results(workloads=["first", "startup"]), "text"))

    def test_turns(self):
        results = fake_results(loops=4)
        for run_ in results["runs"]:
            run_["counts"][measure.TURN_TIME] = 2e8
        lines = report.render(results, "text").splitlines()
        self.assertEqual(lines[0], "One turn in a loop in one process")
        self.assertRegex(lines[4], r"first +0\.200 s .* \+0\.0%")
        self.assertTrue(any("takes 4 turns" in line for line in lines))

    def test_profile(self):
        results = fake_results(profiled=True)
        for run_ in results["runs"]:
            run_["counts"] = dict.fromkeys(profile.PARTS, 5e6)
            if run_["configuration"] == "huge":
                run_["counts"]["zeroing"] = 10e6
        self.assertEqual(
            self.table(results, "Where the processor time goes (ms)"), [
                ["Workload, configuration", "all", *profile.PARTS],
                ["first, base", "20.0"] + ["5.0 (25%)"] * 4,
                ["first, huge", "25.0", "10.0 (40%)"] + ["5.0 (20%)"] * 3,
                ["second, base"] + ["not run"] * 5,
                ["second, huge"] + ["not run"] * 5])
        lines = self.lines(results)
        self.assertIn("first 5.0 ms (5.0-5.0) 10.0 ms (10.0-10.0) +100.0%",
                      lines)
        self.assertFalse([line for line in lines if "Not counted" in line])

    def test_label_with_a_plus(self):
        results = json.loads(json.dumps(fake_results()).replace(
            '"huge"', '"thp+malloc"'))
        results["configurations"][1]["variables"] = [
            ["GLIBC_TUNABLES", malloc.as_text()]]
        header = ["Workload", "base", "thp+malloc", "change"]
        self.assertEqual(self.table(results, "Wall clock")[0], header)
        for style in report.FORMATS:
            text = report.render(results, style)
            self.assertIn("GLIBC_TUNABLES=" + malloc.as_text(), text)
            self.assertRegex(text, r"thp\+malloc +\|? *change")
        self.assertIn(">thp+malloc</text>", plot.render(results))
        self.assertIn("<th scope=\"col\">thp+malloc</th>",
                      page.render(results))

    def test_variables(self):
        results = fake_results()
        results["configurations"][1]["variables"] = [["A", "b"], ["C", "d"]]
        self.assertIn("huge: Python 3.13.5, configure without arguments; "
                      "switch hugetlb; pool 5 huge pages for the largest "
                      "workload; A=b; C=d\n", report.render(results, "text"))

    def lines(self, results):
        return [" ".join(line.split())
                for line in report.render(results, "text").splitlines()]

    def table(self, results, title):
        """Header and rows of the table of that title, as lists of cells."""
        (table,) = (table for table in report.tables(results)
                    if table.title == title)
        return [table.header, *table.rows]

    def test_no_rivals(self):
        self.assertNotIn("rival", report.render(fake_results(), "text"))
        # Two rivals, but neither's opponent.
        results = fake_results()
        results["configurations"][1]["switch"] = None
        self.assertNotIn("rival", report.render(results, "text"))

    def test_rivals_in_one_workload_have_no_mean(self):
        results = fake_results(workloads=["first"])
        results["configurations"].append(dict(
            results["configurations"][0], label="third"))
        titles = [table.title for table in report.tables(results)]
        self.assertIn("Wall clock: change against the fastest rival", titles)
        self.assertNotIn("geometric mean", " ".join(titles))

    def test_rivals(self):
        # Wall clock in seconds, by label: of two workloads, and of start-up.
        seconds = {"base": (4, 8, 1), "other": (5, 4, 2), "huge": (2, 2, 3)}
        names = ["first", "second", "startup"]
        results = fake_results(
            workloads=names, memory=[],
            configurations=[dict(fake_results()["configurations"][0],
                                 label=label, switch=switch)
                            for label, switch in (
                                ("base", None), ("other", None),
                                ("huge", "thp"))],
            runs=[{"configuration": label, "workload": name, "round": 1,
                   "counts": {"duration_time": figures[i] * 1e9}}
                  for label, figures in seconds.items()
                  for i, name in enumerate(names)])
        self.assertEqual(
            self.table(results,
                       "Wall clock: change against the fastest rival"),
            [["Workload", "fastest rival", "base", "other", "huge"],
             ["first", "base", "+0.0%", "+25.0%", "-50.0%"],
             ["second", "other", "+100.0%", "+0.0%", "-50.0%"],
             ["startup", "base", "+0.0%", "+100.0%", "+200.0%"]])
        # Those of 1/2 and 1/4, and of 2/5 and 1/2.
        self.assertEqual(
            self.table(results, "Wall clock: geometric mean of the changes "
                       "against each rival"),
            [["Rival", "huge"], ["base", "-64.6%"], ["other", "-55.3%"]])
        # What was not run is no rival; what is not known has no mean.
        del results["runs"][4]
        self.assertEqual(
            self.table(results, "Wall clock: change against the fastest "
                       "rival")[2],
            ["second", "base", "+0.0%", "-", "-75.0%"])
        self.assertEqual(
            self.table(results, "Wall clock: geometric mean of the changes "
                       "against each rival")[2], ["other", "-"])

    def test_scale(self):
        names = ["arena_pressure_x1", "arena_pressure_x4"]
        results = fake_results(
            workloads=names,
            memory=[{"configuration": "base", "workload": name, "thp": 0,
                     "rss": size << 20, "hugetlb": size << 20}
                    for name, size in zip(names, (50, 200))],
            runs=[{"configuration": "base", "workload": name, "round": 1,
                   "counts": {"page-faults": faults, "duration_time": wall}}
                  for name, faults, wall in zip(names, (25_600, 102_400),
                                                (0.5e9, 2.2e9))])
        self.assertEqual(
            self.table(results, "Wall clock per unit of work (ms)"),
            [["Workload", "base", "against x1", "huge", "against x1"],
             [names[0], "500.0", "+0.0%", "not run", "-"],
             [names[1], "550.0", "+10.0%", "not run", "-"]])
        text = "as much as it needs was touched"
        self.assertNotIn(text, report.render(results, "text"))
        self.assertIn(text, report.render(dict(results, warm_size=1 << 30),
                                          "text"))
        self.assertEqual(
            self.table(results, "Page faults per MiB of peak memory")[1:],
            [[names[0], "256.0", "+0.0%", "not run", "-"],
             [names[1], "256.0", "+0.0%", "not run", "-"]])

    def test_peak_memory_of_several_runs(self):
        title = "Peak memory (MiB: resident and hugetlb pages)"
        results = fake_results(memory=[
            {"configuration": label, "workload": "first", "thp": 0,
             "rss": rss << 20, "hugetlb": hugetlb << 20}
            for label, rss, hugetlb in (("base", 10, 0), ("huge", 3, 6))])
        self.assertNotIn(title, self.lines(results))
        results["memory_runs"] = 9
        self.assertEqual(self.table(results, title)[1:], [
            ["first", "10.0", "9.0", "-10.0%"],
            ["second", "not run", "not run", "-"]])
        self.assertTrue(any("peaks are medians of 9 runs" in line
                            for line in self.lines(results)))

    def test_markdown(self):
        lines = report.render(fake_results(), "markdown").splitlines()
        header = next(i for i, line in enumerate(lines)
                      if line.startswith("| Workload"))
        self.assertEqual({line.count("|") for line in
                          lines[header:header + 4]}, {5})
        self.assertRegex(lines[header + 1], r"\A\| -+ \|( -+: \|)+\Z")
        self.assertTrue(lines[-1].startswith("- "))

    def test_rst(self):
        lines = report.render(fake_results(), "rst").splitlines()
        rule = next(line for line in lines if line.startswith("==="))
        first, header, second, *_ = lines[lines.index(rule):]
        self.assertEqual(first, second)
        # Cells must stay within their columns, or docutils refuses the table.
        for row in lines[lines.index(rule) + 3:]:
            if row == rule:
                break
            for position, mark in enumerate(rule[:len(row)]):
                if mark == " ":
                    self.assertEqual(row[position], " ", row)

    def test_load_refuses_what_is_not_a_result(self):
        for content in ("", "[]", "{}", '{"format": 99}'):
            with open(self.path("x.json"), "w") as file:
                file.write(content)
            with self.assertRaisesRegex(BenchError, "not a result file"):
                measure.load(self.path("x.json"))
        with self.assertRaisesRegex(BenchError, "cannot read"):
            measure.load(self.path("none.json"))

    def test_save_keeps_the_old_file_when_it_fails(self):
        path = self.path("x.json")
        files.save(fake_results(), path)
        with mock.patch("os.replace", side_effect=OSError(28, "full")):
            with self.assertRaisesRegex(BenchError, "full"):
                files.save({}, path)
        self.assertEqual(measure.load(path), fake_results())


class PlotTests(ScratchDirectory):
    def draw(self, results):
        """Draw to a file; return the root of the picture."""
        path = self.path("it's.svg")
        plot.draw(results, path)
        return ElementTree.parse(path).getroot()

    @staticmethod
    def paths(root, kind):
        """The data of all paths of a class, as lists of numbers: x of the
        start, y, then x or y of the end."""
        return [[list(map(float, re.findall(r"[\d.]+", part)))
                 for part in path.get("d").split("M")[1:]]
                for path in root.iter("{http://www.w3.org/2000/svg}path")
                if kind in path.get("class").split()]

    def test_plot(self):
        text = "".join(self.draw(fake_results()).itertext())
        for word in ("first", "second", "base", "huge", "Wall clock",
                     "Page faults"):
            self.assertIn(word, text)
        self.assertNotIn("cycles", text)

    def test_chosen_events(self):
        text = "".join(self.draw(self.many_results()).itertext())
        for title in ("One turn in a loop", "Wall clock", "Page faults",
                      "dTLB-load-misses"):
            self.assertIn(title, text)
        self.assertNotIn("cycles", text)
        self.assertIn("cycles", plot.render(self.many_results(), ["cycles"]))

    def test_marks(self):
        root = self.draw(fake_results(workloads=["first"]))
        # A line at 100 in each panel, and a dot for each configuration in
        # the legend and in each panel.
        [[line], [_]] = self.paths(root, "stock")
        [_], [_], [base], [huge], [_], [_] = self.paths(root, "dot")
        self.assertEqual(base[0], line[0])
        self.assertLess(base[1], huge[1])
        [[base_bar], [huge_bar], *_] = self.paths(root, "bar")
        # The wall clock of one is 0.5 s, quartiles 0.45 s and 0.7 s; of the
        # other 0.25 s.  Twice the way from 50 to 100 is the way from 0.
        zero = 2 * huge[0] - line[0]
        for x, percent in ((base_bar[0], 90), (base_bar[2], 140),
                           (huge_bar[0], 45), (huge_bar[2], 55)):
            self.assertAlmostEqual((x - zero) / (line[0] - zero),
                                   percent / 100, delta=0.01)
        for _, y, _ in base_bar, huge_bar:
            self.assertTrue(line[1] < y < line[2])

    def test_row_with_all_configurations(self):
        results = self.many_results()
        dots = self.paths(self.draw(results), "c1")
        # In the legend, then bars and dots of each panel: one per workload.
        self.assertEqual(len(dots[1]), len(results["workloads"]))
        self.assertEqual(len({y for _, y, *_ in dots[1]}),
                         len(results["workloads"]))

    def test_what_was_not_run_has_no_mark(self):
        root = self.draw(fake_results())
        self.assertEqual([len(dots) for dots in self.paths(root, "dot")],
                         [1] * 6)
        results = fake_results()
        del results["runs"][:3]
        self.assertEqual(len(self.paths(self.draw(results), "dot")), 2)

    def test_fits_every_width(self):
        root = self.draw(self.many_results())
        left, top, width, height = map(float, root.get("viewBox").split())
        self.assertEqual((left, top, width), (0, 0, 400))
        self.assertIsNone(root.get("width"))
        self.assertIsNone(root.get("height"))
        sizes = re.findall(r"(\d+)px", plot.render(fake_results()))
        self.assertTrue(sizes)
        # As many pixels on a phone.
        self.assertGreaterEqual(min(map(int, sizes)), 12)
        for kind in "dot", "bar", "stock", "grid":
            for path in self.paths(root, kind):
                for x, y, *_ in path:
                    self.assertTrue(0 < x < width and 0 < y < height, kind)

    def test_dark_mode(self):
        text = plot.render(fake_results())
        light, dark = text.split("@media (prefers-color-scheme: dark)")
        self.assertIn("color-scheme: light dark", light)
        for rule in r"text \{ fill: (#\w+); \}", r"\.stock .*stroke: (#\w+);":
            for part, background in (light, "#fff"), (dark, "#222"):
                colour = re.search(rule, part)[1]
                self.assertGreater(self.contrast(colour, background), 7)
        # The page behind it shows.
        self.assertNotRegex(text, "<rect|background|#fff|white")

    def test_colours(self):
        self.assertEqual(len(set(plot.COLOURS)), len(plot.COLOURS))
        for colour in plot.COLOURS:
            for background in "#fff", "#111":
                self.assertGreater(self.contrast(colour, background), 3,
                                   (colour, background))

    @staticmethod
    def contrast(*colours):
        """That of two colours as WCAG 2 defines it."""
        def luminance(colour):
            digits = colour[1:]
            if len(digits) == 3:
                digits = "".join(digit * 2 for digit in digits)
            channels = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
            linear = [each / 12.92 if each <= 0.04045
                      else ((each + 0.055) / 1.055) ** 2.4
                      for each in channels]
            return sum(map(operator.mul, (0.2126, 0.7152, 0.0722), linear))
        dark, light = sorted(map(luminance, colours))
        return (light + 0.05) / (dark + 0.05)

    def test_ticks(self):
        for end in 112, 150, 230, 990, 12345:
            ticks = plot._ticks(end)
            self.assertIn(100, ticks)
            self.assertLessEqual(len(ticks), 7, end)
            self.assertGreaterEqual(len(ticks), 2, end)
            self.assertLessEqual(max(ticks), end)
            distances = [b - a for a, b in zip(ticks, ticks[1:])]
            self.assertGreater(min(distances), end / 10, (end, ticks))

    @staticmethod
    def many_results():
        """As many as of make bench-rivals on a machine that counts all."""
        base = fake_results()["configurations"][0]
        labels = ["stock", *(f"a-rival-number-{i}" for i in range(9))]
        return fake_results(
            workloads=NAMES, configurations=[
                dict(base, label=label) for label in labels],
            runs=[{"configuration": label, "workload": name, "round": round_,
                   "counts": {event: 1e8 * round_ + 1e7 * number
                              for event in (*perf.EVENTS, perf.WALL_TIME,
                                         measure.TURN_TIME)}}
                  for number, label in enumerate(labels) for name in NAMES
                  for round_ in (1, 2)])

    def test_is_light(self):
        for results in fake_results(), self.many_results():
            self.assertLess(len(plot.render(results)), 30 << 10)

    def test_strange_names(self):
        results = fake_results(workloads=["a<b>&c"])
        for run_ in results["runs"]:
            run_["workload"] = "a<b>&c"
        self.assertIn("a<b>&c", "".join(self.draw(results).itertext()))

    def test_plot_of_nothing(self):
        with self.assertRaisesRegex(BenchError, "no result"):
            plot.draw(fake_results(runs=[]), self.path("p.svg"))
        self.assertEqual(os.listdir(self.directory), [])

    def test_plot_that_cannot_be_written(self):
        os.mkdir(self.path("p.svg"))
        for name in "p.svg", "none/p.svg":
            with self.assertRaisesRegex(BenchError, "no plot: .*p.svg'"):
                plot.draw(fake_results(), self.path(name))
        self.assertEqual(os.listdir(self.directory), ["p.svg"])


class SessionTests(ScratchDirectory):
    """The order of things, with measurements that are not made."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.dict(
            measure.SCRIPTS, dict.fromkeys(["first", "second"], SCRIPT)))

    def session(self, configurations, **changes):
        results = fake_results(
            runs=[], memory=[], rounds=20, workloads=["first", "second"],
            configurations=[{"label": c.label} for c in configurations])
        results.update(changes)
        pool = FakeKernelPool(self.directory)
        return results, measure.Session(results, configurations, pool,
                                        Progress(io.StringIO()))

    @staticmethod
    def peaks(**mib):
        """Let the peak memory of each workload be so many MiB."""
        return mock.patch.object(memory, "peak_memory", lambda command, env: {
            "rss": mib[command[-1]] * memory.MIB, "hugetlb": 0, "thp": 0})

    @staticmethod
    def stat():
        """Let each run under perf take a nanosecond."""
        return mock.patch.object(perf, "stat",
                                 lambda *args: {"duration_time": 1.0})

    def test_pool_fits_the_need(self):
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b", "hugetlb", "auto"),
                          measure.Configuration("c", "/c", pool="7")]
        results, session = self.session(configurations)
        with self.peaks(first=9, second=4):
            session.size_pools()
        self.assertEqual(
            [c["pool_pages"] for c in results["configurations"]],
            [0, 5 + measure.POOL_MARGIN, 7])
        # Each run has what its workload needs.
        pages = []
        with mock.patch.object(session, "_peak_memory", lambda c, w, n: (
                pages.append((c.label, w, n)),
                dict.fromkeys(("rss", "hugetlb", "thp"), 1))[1]):
            session.check_memory()
        self.assertEqual(pages, [
            ("a", "first", 0), ("a", "second", 0),
            ("b", "first", 5 + measure.POOL_MARGIN),
            ("b", "second", 2 + measure.POOL_MARGIN),
            ("c", "first", 7), ("c", "second", 7)])

    def test_peak_memory_is_a_median(self):
        configuration = measure.Configuration("a", "/a")
        results, session = self.session([configuration], memory_runs=3,
                                        workloads=["first"])
        session.size_pools()
        peaks = iter([{"rss": rss, "hugetlb": 5, "thp": 0}
                      for rss in (30, 90, 40)])
        with mock.patch.object(memory, "peak_memory",
                               lambda *args: next(peaks)):
            session.check_memory()
        self.assertEqual(results["memory"], [{
            "configuration": "a", "workload": "first",
            "rss": 40, "hugetlb": 5, "thp": 0}])

    def test_every_round_has_all_pairs_in_another_order(self):
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b")]
        orders = []
        for seed in (1, 1, 2):
            results, session = self.session(configurations)
            session.size_pools()
            rounds_saved = []
            with self.stat():
                session.measure(random.Random(seed),
                                lambda: rounds_saved.append(1))
            self.assertEqual(len(rounds_saved), 20)
            orders.append([(r["round"], r["configuration"], r["workload"])
                           for r in results["runs"]])
        self.assertEqual(orders[0], orders[1])
        self.assertNotEqual(orders[0], orders[2])
        self.assertEqual(sorted(orders[0]), sorted(orders[2]))
        self.assertEqual(len(set(orders[0])), 20 * 4)
        self.assertGreater(len({tuple(name[1:] for name in orders[0][i:i + 4])
                                for i in range(0, 80, 4)}), 5)

    def test_a_pool_too_small_for_one_workload(self):
        # The kernel has 98 pages to give.
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b", pool="auto")]
        results, session = self.session(configurations)
        with self.peaks(first=300, second=4):
            session.size_pools()
            session.check_memory()
        self.assertEqual([(m["configuration"], m["workload"])
                          for m in results["memory"]],
                         [("a", "first"), ("a", "second"), ("b", "second")])
        (problem,) = results["problems"]
        self.assertRegex(problem, "^b left out of first: .* only 98 of 166")

    def test_as_much_is_warmed_as_the_workload_needs(self):
        configuration = measure.Configuration("a", "/a", pool="90")
        names = ["arena_pressure_x1", "arena_pressure_x4"]
        needed = bench_scale.memory_needed(names)
        pool = 90 * memory.HUGE_PAGE_SIZE
        for asked, expected in (0, {0}), (1 << 30, {1 << 30, needed - pool}):
            results, session = self.session([configuration], workloads=names,
                                            warm_size=asked, rounds=1)
            session.size_pools()
            with mock.patch.object(memory, "warm") as warm, self.stat():
                session.measure(random.Random(1), lambda: None)
            self.assertEqual({call.args for call in warm.call_args_list},
                             {(size, 90) for size in expected})

    def test_memory_that_is_too_short(self):
        pool = FakeKernelPool(self.directory)
        names = ["startup", "arena_pressure_x4", "arena_pressure_x16"]
        needed = bench_scale.memory_needed(names)
        with mock.patch.object(memory, "available_memory", lambda: needed - 1):
            # Free pages of the pool count where they can be had.
            measure.check_available(names, pool)
            pool.writable = False
            measure.check_available(names[:2], pool)
            with self.assertRaisesRegex(
                    BenchError, "arena_pressure_x16 needs 10.9 GiB of memory, "
                    "10.9 GiB are available: stop other programs, or"):
                measure.check_available(names, pool)

    def test_a_pool_that_cannot_be_had_stops_its_configuration_only(self):
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b", pool="500")]
        results, session = self.session(configurations, rounds=2)
        session.size_pools()
        with self.peaks(first=1, second=1), self.stat():
            session.check_memory()
            session.measure(random.Random(1), lambda: None)
        self.assertEqual({r["configuration"] for r in results["runs"]}, {"a"})
        self.assertEqual(len(results["runs"]), 4)
        (problem,) = results["problems"]
        self.assertIn("b left out: the kernel gave only 98 of 500", problem)


class DriverTests(ProgramTestCase):
    """The whole driver as a process, over a stand-in for perf."""

    program = "bench_driver.py"

    def setUp(self):
        super().setUp()
        os.mkdir(self.path("bin"))
        fake = self.path("bin/perf")
        with open(fake, "w") as file:
            file.write(f"#!{sys.executable}\n{FAKE_PERF}")
        os.chmod(fake, 0o755)
        self.env = dict(os.environ, PATH=self.path("bin"))

    def arguments(self, *more, workload="dict_churn"):
        return [DRIVER, "--workload", workload, "--warm", "0", "--runs", "2",
                "--json", self.path("r.json"), *more]

    def drive(self, *more, **kwargs):
        workload = kwargs.pop("workload", "dict_churn")
        return run(*self.arguments(*more, workload=workload),
                   env=dict(self.env, **kwargs))

    def results(self):
        return measure.load(self.path("r.json"))

    def test_measures_and_reports_again(self):
        done = self.drive("--config", f"one={sys.executable}",
                          "--config", f"two={sys.executable}", "--seed", "5")
        self.assertEqual(done.returncode, 0, done.stderr)
        results = self.results()
        self.assertEqual(len(results["runs"]), 4)
        self.assertEqual(len(results["memory"]), 2)
        self.assertEqual(results["seed"], 5)
        self.assertEqual(results["machine"]["perf"], "perf version 0.0.fake")
        self.assertEqual(results["configurations"][0]["version"], sys.version)
        self.assertEqual(results["counted"],
                         ["page-faults", "duration_time", "user_time",
                          "system_time"])
        self.assertIn("instructions", results["not_counted"])
        self.assertEqual(results["runs"][0]["counts"]["system_time"], 0)
        self.assertRegex(done.stdout, r"dict_churn +0\.250 s .* \+0\.0%")
        self.assertRegex(done.stdout, "Not counted on this machine: .*cycles")
        again = run(DRIVER, "--report", self.path("r.json"), env=self.env)
        self.assertEqual((again.returncode, again.stdout), (0, done.stdout))

    def test_startup(self):
        done = self.drive("--config", f"a={sys.executable},switch=0",
                          workload="startup")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"startup +0\.250 s")

    def test_loops(self):
        done = self.drive("--config", f"a={sys.executable}", "--loops", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, "One turn in a loop")
        for run_ in self.results()["runs"]:
            # In nanoseconds: dict_churn takes longer than a millisecond, and
            # never a minute.
            self.assertGreater(run_["counts"]["turn_time"], 1e6)
            self.assertLess(run_["counts"]["turn_time"], 60e9)

    def test_profile(self):
        done = self.drive("--config", f"a={sys.executable}", "--profile")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"dict_churn, a +9\.0 +3\.0 \(33%\) "
                         r"+0\.0 \(0%\) +6\.0 \(67%\) +0\.0 \(0%\)\n")
        self.assertEqual([run_["counts"]["allocator"]
                          for run_ in self.results()["runs"]], [6e6] * 2)
        for mode, message in (("no clock", "no such clock"),
                              ("blind", "the file has no samples")):
            done = self.drive("--config", f"a={sys.executable}", "--profile",
                              FAKE_PERF=mode)
            self.assert_one_line(done, f"a left out: {message}", 1)

    def test_small(self):
        done = run(DRIVER, "--small", "--warm", "0", "--runs", "1",
                   "--memory-runs", "3", "--json", self.path("r.json"),
                   "--config", f"a={sys.executable}", env=self.env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({r["workload"] for r in self.results()["runs"]},
                         {"startup", "thread_server"})
        self.assertEqual(len(self.results()["memory"]), 2)
        self.assertRegex(done.stdout, "Peak memory .MiB: resident and huge")
        self.assertIn("peaks are medians of 3 runs", done.stdout)

    def test_memory_runs(self):
        for arguments, expected in ([], 1), (["--small"], 9), (
                ["--small", "--memory-runs", "2"], 2):
            options = bench_driver.parse_arguments(
                ["--report", "x", *arguments])
            self.assertEqual(options.memory_runs, expected)

    def test_library_that_is_not_preloaded(self):
        done = self.drive(
            "--config", f"good={sys.executable},env=LD_PRELOAD=libc.so.6",
            "--config", f"bad={sys.executable},env=LD_PRELOAD=libnone.so.1")
        self.assert_one_line(done, "bad left out: .*'libnone.so.1'.*Install "
                             "the library", 1)
        self.assertEqual({r["configuration"] for r in self.results()["runs"]},
                         {"good"})

    def test_default_workloads(self):
        programs = list(bench_programs.WORKLOADS)
        small = ["startup", "thread_server"]
        for arguments, expected in (
                (["--small"], small), (["--scale"], list(bench_scale.UNITS)),
                (["--programs", "--small"], [*programs, *small]),
                ([], [*NAMES, "startup"]), (["--loops", "2"], NAMES),
                (["--programs"], programs),
                (["--programs", "--workload", "dict_churn"], ["dict_churn"])):
            with self.subTest(arguments):
                options = bench_driver.parse_arguments(
                    ["--report", "x", *arguments])
                self.assertEqual(options.workloads, expected)

    def test_bad_arguments(self):
        good = "--config", f"a={sys.executable}"
        for arguments, pattern in (
                ((*good, "--workload", "nonsense"), "no workload 'nonsense'"),
                (("--config", "a=/nonexistent"), "'/nonexistent' is no prog"),
                ((*good, *good), "two configurations are called 'a'"),
                ((*good, "--runs", "0"), "--runs must be 1 or more"),
                ((*good, "--warm", "-1"), "--warm must be 0 or more"),
                ((*good, "--loops", "0"), "--loops must be 1 or more"),
                ((*good, "--memory-runs", "0"), "--memory-runs must be 1 or"),
                ((*good, "--json", "/nonexistent/x"), "cannot write"),
                ((*good, "--json", "/"), "it is a directory"),
                (("--report", "/nonexistent"), "cannot read '/nonexistent'")):
            with self.subTest(arguments):
                self.assert_one_line(self.drive(*arguments), pattern)
        self.assertFalse(os.path.exists(self.path("r.json")))

    def test_interpreter_that_does_not_start(self):
        bad = self.path("bin/python")
        with open(bad, "w") as file:
            file.write("#!/bin/sh\necho first >&2\necho broken >&2\nexit 9\n")
        os.chmod(bad, 0o755)
        done = self.drive("--config", f"a={bad}")
        self.assert_one_line(done, "a: .*/bin/python does not start.*broken$")

    def test_no_perf(self):
        os.unlink(self.path("bin/perf"))
        done = self.drive("--config", f"a={sys.executable}")
        self.assert_one_line(done, "perf is not installed.*linux-perf$")

    def test_perf_forbidden(self):
        done = self.drive("--config", f"a={sys.executable}",
                          FAKE_PERF="forbidden")
        self.assert_one_line(done, "Access to performance monitoring is limit"
                             ".*perf_event_paranoid")

    def test_workload_that_dies_of_a_signal(self):
        done = self.drive("--config", f"a={sys.executable}",
                          "--workload", "startup", FAKE_PERF="bus")
        self.assert_one_line(done, "a left out of dict_churn:.*Bus error", 1)
        self.assertEqual([r["workload"] for r in self.results()["runs"]],
                         ["startup"] * 2)
        self.assertRegex(done.stdout, "dict_churn +not run")

    def test_impossible_time_is_measured_again(self):
        done = self.drive("--config", f"a={sys.executable}",
                          FAKE_PERF="late=" + self.path("late"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(os.path.exists(self.path("late")))
        self.assertEqual({r["counts"]["duration_time"]
                          for r in self.results()["runs"]}, {250_000_000})

    def test_switch_without_effect_is_a_problem(self):
        done = self.drive("--config", f"a={sys.executable},switch=hugetlb",
                          "--workload", "mixed_sizes")
        self.assert_one_line(done, "a mixed_sizes: no huge page was used", 1)
        self.assertIn("Problem: a mixed_sizes: no huge page", done.stdout)

    def test_plot(self):
        done = self.drive("--config", f"a={sys.executable}",
                          "--plot", self.path("p.svg"))
        self.assertEqual(done.returncode, 0, done.stderr)
        # The same from the results alone.
        again = run(DRIVER, "--report", self.path("r.json"),
                    "--plot", self.path("again.svg"), env=self.env)
        self.assertEqual((again.returncode, again.stderr), (0, ""))
        drawn, again = ((self.directory / name).read_text()
                        for name in ("p.svg", "again.svg"))
        self.assertIn("dict_churn", drawn)
        self.assertEqual(drawn, again)

    def test_plot_that_cannot_be_drawn_costs_no_result(self):
        plot_ = self.path("p.svg")
        done = self.drive("--config", f"a={sys.executable}", "--plot", plot_,
                          FAKE_PERF=f"block={plot_}")
        self.assert_one_line(done, "no plot: .*p.svg': Is a directory", 1)
        self.assertEqual(len(self.results()["runs"]), 2)
        self.assertIn("Wall clock", done.stdout)

    def stop_driver(self, signum, *more):
        """Start it, send the signal during the second run, and return what it
        has printed."""
        marker = self.path("marker")
        return self.stop(signum, marker, *self.arguments(*more),
                         env=dict(self.env, FAKE_PERF=f"hang={marker}"))

    def test_stopped_by_a_signal(self):
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signum):
                for name in ("marker", "marker.once"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path(name))
                stdout = self.stop_driver(signum, "--config",
                                          f"a={sys.executable}")
                self.assertEqual(len(self.results()["runs"]), 1)
                self.assertRegex(stdout, r"dict_churn +0\.250 s")
                self.assertIn(f"stopped by {signal.Signals(signum).name}",
                              stdout)

    @unittest.skipUnless(memory.Pool().writable, "needs root and a hugetlb "
                         "pool that it may change")
    def test_pool_is_restored_after_a_signal(self):
        with memory.Pool() as pool:
            pool.set_available(2)
            before = pool.available()
            self.stop_driver(signal.SIGTERM, "--config",
                             f"a={sys.executable},pool=5")
            self.assertEqual(pool.available(), before)


class ProgressTests(unittest.TestCase):
    def test_few_lines_where_they_are_not_overwritten(self):
        stream = io.StringIO()
        progress = Progress(stream)
        progress.start(100)
        for number in range(100):
            progress.step(f"step {number}")
        progress.problem("trouble")
        self.assertEqual(stream.getvalue(), "[1/100] step 0\n"
                         "bench_driver.py: trouble\n")

    def test_one_line_on_a_terminal(self):
        stream = io.StringIO()
        stream.isatty = lambda: True
        progress = Progress(stream)
        progress.start(2)
        progress.step("one")
        progress.step("two")
        progress.clear()
        self.assertNotIn("\n", stream.getvalue())
        self.assertTrue(stream.getvalue().endswith("\r\033[K"))
