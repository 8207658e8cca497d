"""Tests of bench_driver.py.

They run with a stand-in for perf, so that they need neither perf nor its
permissions and know each number beforehand.
"""

import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import unittest
from unittest import mock

from benchlib import measure, memory, report
from benchlib.progress import Progress
import bench_driver
import bench_programs
import bench_scale

from .support import (
    DRIVER, NAMES, ProgramTestCase, fake_results, run, setUpModule)

TOP = pathlib.Path(__file__).resolve().parents[4]


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
        self.assertRegex(done.stdout, r"dict_churn +250 ms .* ~\+0\.0%")
        self.assertRegex(done.stdout, "Not counted on this machine: .*cycles")
        again = run(DRIVER, "--report", self.path("r.json"), env=self.env)
        self.assertEqual((again.returncode, again.stdout), (0, done.stdout))

    def test_startup(self):
        done = self.drive("--config", f"a={sys.executable},switch=0",
                          workload="startup")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"startup +250 ms")

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
        self.assertRegex(done.stdout, r"Peak memory\n")
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

    def test_what_make_asks_for(self):
        # make takes a comma in a call of a function for its own.
        os.symlink(sys.executable, self.path("python"))
        tree = self.path("")
        for args, labels in (
            ("", ["stock", "hugetlb", "thp"]),
            ("--programs", ["stock", "hugetlb", "thp", "thp+malloc"]),
        ):
            with self.subTest(args):
                command = subprocess.run(
                    ["make", "-f", "Makefile.in", f"BENCH_ARGS={args}",
                     "SHELL=/bin/sh", f"UNPATCHED={tree}",
                     f"HUGEPAGES={tree}",
                     "--eval", "show: ; @: $(info $(BENCH))", "show"],
                    cwd=TOP, check=True, capture_output=True, text=True,
                ).stdout.split()
                options = bench_driver.parse_arguments(
                    command[command.index("python3") + 2:])
                self.assertEqual([config.label for config in options.configs],
                                 labels)

    def test_bad_arguments(self):
        good = "--config", f"a={sys.executable}"
        for arguments, pattern in (
                ((*good, "--workload", "nonsense"), "no workload 'nonsense'"),
                (("--config", "a=/nonexistent"), "'/nonexistent' is no prog"),
                (("--config", f"a={sys.executable},switch=foo"),
                 "a: no switch 'foo'; there are: on, 1, thp, hugetlb, off, 0"),
                (("--config", f"a={sys.executable},base=b"),
                 "a: 'b' cannot be its base; there are: none"),
                ((*good, "--resume"), "cannot read .*r.json"),
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

    def test_width(self):
        options = bench_driver.parse_arguments(["--report", "x"])
        for columns, width in ("80", 80), ("90", 90), ("300", 100):
            with mock.patch.dict(os.environ, COLUMNS=columns), \
                 mock.patch.object(report, "render") as render, \
                 contextlib.redirect_stdout(io.StringIO()):
                bench_driver.show(fake_results(), options)
            render.assert_called_once_with(fake_results(), "text", width)

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
                self.assertRegex(stdout, r"dict_churn +250 ms")
                self.assertIn(f"stopped by {signal.Signals(signum).name} "
                              "before the end; --resume goes on there", stdout)

    def test_resume(self):
        configuration = "--config", f"a={sys.executable}"
        self.stop_driver(signal.SIGINT, *configuration)
        (first,) = self.results()["runs"]
        done = self.drive(*configuration, "--workload", "startup", "--resume")
        self.assert_one_line(done, "cannot resume '.*r.json', which has other "
                             "workloads; start anew, without --resume")
        self.assertEqual(self.results()["runs"], [first])
        done = self.drive(*configuration, "--resume")
        self.assertEqual((done.returncode, done.stdout.count("Problem")),
                         (0, 0), done.stderr)
        self.assertEqual(self.results()["runs"],
                         [first, dict(first, round=2)])
        self.assertRegex(done.stdout, ", interrupted and resumed 20..-")

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
