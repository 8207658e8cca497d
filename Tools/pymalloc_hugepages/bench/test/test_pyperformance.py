"""Tests of bench_pyperformance.py.

They run with a stand-in for the environment in which pyperformance and pyperf
are, so that they need no network and know what each run gives.
"""

import io
import json
import os
import pathlib
import shutil
import signal
import sys
import unittest
from unittest import mock

from benchlib import BenchError, measure, memory, suite
from benchlib.progress import Progress
import bench_pyperformance

from .support import (
    BENCH, FakeKernelPool, ProgramTestCase, ScratchDirectory, run,
    setUpModule)


SCRIPT = BENCH / "bench_pyperformance.py"

# The interpreter of the environment: knows the commands of the two modules
# that are used, and tells of FAKE_BENCHMARK as the command of a benchmark.
# FAKE_SUITE says which benchmark fails or hangs, and where.
FAKE_TOOL = r"""
import json, os, shlex, sys
assert sys.argv[1:3] == ["-u", "-m"], sys.argv
module, action, *args = sys.argv[3:]
mode, _, what = os.environ.get("FAKE_SUITE", "").partition("=")
if action == "list":
    print("'all' benchmarks:\n- one\n- two\n- nbody\n\nTotal: 3 benchmarks")
elif action == "run":
    args.remove("--debug-single-value")
    options = dict(zip(args[::2], args[1::2]))
    name = options["--benchmarks"]
    assert os.path.isdir(os.path.dirname(options["--output"])), options
    with open("prepared", "a") as file:
        json.dump([name, os.environ.get("PYTHON_PYMALLOC_HUGEPAGES"),
                   options.get("--inherit-environ", "")], file)
        file.write("\n")
    print("# pip install something")
    print("#", shlex.join([sys.executable, os.path.abspath("a benchmark.py"),
                           name, "--its-own", "two words"]),
          "--debug-single-value --output x")
    if mode == "fail" and name == what:
        print("ModuleNotFoundError: No module named 'nothing'\n"
              f"ERROR: Benchmark {name} failed: Benchmark died\n"
              "RuntimeError: Benchmark died\n\nERROR: No benchmark was run")
        sys.exit(1)
elif action == "convert":
    first, _, second, _, output = args
    with open(first) as a, open(second) as b, open(output, "x") as file:
        json.dump({"names": json.load(a)["names"] + json.load(b)["names"]},
                  file)
elif action == "compare_to":
    files = [os.path.basename(arg) for arg in args if arg[:2] != "--"]
    print("Benchmarks with tag 'x':\n=====\n\nnot this\n\n"
          "All benchmarks:\n===============\n")
    if "--table" in args:
        print("| table of", *files)
    else:
        assert args[:2] == ["--group-by-speed", "--min-speed=1"], args
        if mode == "slower":
            print("Slower (2):\n- one: 1 ms -> 2 ms: 2.00x slower\n"
                  "- two: 1 ms -> 3 ms: 3.00x slower\n")
        print("Faster (1):\n- nbody: 2 ms -> 1 ms: 2.00x faster\n\n"
              "Geometric mean: 1.05x faster")
"""

# A benchmark: keeps a line of each run in "calls", and writes as results its
# name and how often its code ran.  The script of "two" has two benchmarks.
FAKE_BENCHMARK = r"""
import json, os, sys, time
name, *own = sys.argv[1:4]
assert own == ["--its-own", "two words"], own
args = sys.argv[4:]
options = dict(zip(args[::2], args[1::2]))
mode, _, what = os.environ.get("FAKE_SUITE", "").partition("=")
with open("calls", "a") as file:
    json.dump([name, os.environ.get("PYTHON_PYMALLOC_HUGEPAGES"),
               options.get("--inherit-environ", ""),
               {key: value for key, value in options.items() if key in
                ("--processes", "--loops", "--timeout")}], file)
    file.write("\n")
if mode == "hang" and name == what:
    with open("hanging", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
# As pyperf does.
assert not os.path.exists(options["--output"]), options
if mode == "die" and name == what:
    open(options["--output"], "x").close()
    print("ZeroDivisionError: division by zero")
    sys.exit(1)
if mode == "slow" and name == what:
    sys.exit(124)
with open(options["--output"], "w") as file:
    json.dump({"metadata": {"loops": 4}, "names": [name],
               "benchmarks": [{"metadata": {"name": name}}]
                             * (2 if name == "two" else 1)}, file)
"""


class SuiteTests(ProgramTestCase):
    """The whole program as a process."""

    program = "bench_pyperformance.py"

    def setUp(self):
        super().setUp()
        # As the program does, with the path made a plain one.
        configuration = measure.parse_configuration(f"a={sys.executable}")
        tool = suite.Tool(str(self.directory),
                          measure.describe_configuration(configuration))
        python = self.directory / "tool/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!{sys.executable}\n{FAKE_TOOL}")
        python.chmod(0o755)
        pathlib.Path(tool._stamp).write_text(tool._wanted)
        (self.directory / "a benchmark.py").write_text(FAKE_BENCHMARK)
        # Should it be made again nevertheless, that must fail at once, and not
        # measure in earnest.
        self.environment = dict(os.environ, PIP_NO_INDEX="1",
                                PIP_FIND_LINKS="")

    def arguments(self, *more, configs=("base", "huge,switch=thp")):
        command = [SCRIPT, "--directory", self.directory]
        for config in configs:
            label, comma, rest = config.partition(",")
            command += ["--config", f"{label}={sys.executable}{comma}{rest}"]
        return [*command, *more]

    def run_suite(self, *more, configs=("base", "huge,switch=thp"), **env):
        return run(*self.arguments(*more, configs=configs),
                   env=dict(self.environment, **env))

    def lines(self, name):
        return [json.loads(line) for line in
                (self.directory / name).read_text().splitlines()]

    def calls(self):
        return self.lines("calls")

    def folder(self):
        (folder,) = self.directory.glob("results-*")
        return folder

    def results(self, label):
        return json.loads(
            (self.folder() / f"{label}.json").read_text())["names"]

    def test_configurations_take_turns(self):
        done = self.run_suite("--benchmark", "one", "--benchmark", "two",
                              "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            [(name, switch) for name, switch, _, _ in self.calls()],
            [("one", None), ("one", "thp"), ("two", "thp"), ("two", None),
             ("one", "thp"), ("one", None), ("two", None), ("two", "thp")])
        for label in ("base", "huge"):
            self.assertEqual(self.results(label), ["one", "two"] * 2)
        # What is needed is installed once.
        self.assertEqual([(name, switch)
                          for name, switch, _ in self.lines("prepared")],
                         [("one", None), ("one", "thp"),
                          ("two", "thp"), ("two", None)])
        self.assertRegex(done.stdout, r"^\| table of base.json huge.json\n")
        self.assertNotIn("not this", done.stdout)
        self.assertIn("Geometric mean, huge against base: 1.05x faster\n",
                      done.stdout)
        self.assertRegex(done.stdout, "Significantly slower with huge.*: none")
        self.assertIn("pyperformance==", done.stdout)

    def test_options_reach_the_benchmark(self):
        self.run_suite("--benchmark", "one", "--benchmark", "two",
                       "--rounds", "2")
        usual = {"--processes": "2", "--timeout": "600"}
        self.assertEqual(
            [options for name, *_, options in self.calls() if name == "one"],
            [usual] + [usual | {"--loops": "4"}] * 3)
        # What is right for one of several may not be right for another.
        self.assertEqual(
            [options for name, *_, options in self.calls() if name == "two"],
            [usual] * 4)

    def test_environment_reaches_the_benchmark(self):
        self.run_suite("--benchmark", "one", "--rounds", "1",
                       configs=["a", "b,switch=thp,env=LD_PRELOAD=libc.so.6",
                                "c,env=PYTHONMALLOC=malloc"],
                       PIP_INDEX_URL="x", PYTHONMALLOC="debug")
        for file in ("prepared", "calls"):
            inherited = [set(names.split(","))
                         for _, _, names, *_ in self.lines(file)]
            for names in inherited:
                self.assertIn("PIP_INDEX_URL", names)
            self.assertEqual(
                [names & {"PYTHON_PYMALLOC_HUGEPAGES", "LD_PRELOAD",
                          "PYTHONMALLOC"} for names in inherited],
                [set(), {"PYTHON_PYMALLOC_HUGEPAGES", "LD_PRELOAD"},
                 {"PYTHONMALLOC"}])

    def test_slower(self):
        done = self.run_suite("--benchmark", "one", FAKE_SUITE="slower")
        self.assertIn(
            "Significantly slower with huge, by 1 % or more: \n"
            "- one: 1 ms -> 2 ms: 2.00x slower\n"
            "- two: 1 ms -> 3 ms: 3.00x slower\n\n", done.stdout)
        self.assertNotIn("nbody", done.stdout)

    def test_others_go_on_after_a_failure(self):
        for mode, reason in (
                ("fail", "ModuleNotFoundError: No module named 'nothing'"),
                ("die", "ZeroDivisionError: division by zero"),
                ("slow", "a process of it did not end within 600 seconds")):
            with self.subTest(mode):
                done = self.run_suite("--benchmark", "two", "--benchmark",
                                      "one", "--rounds", "2",
                                      FAKE_SUITE=f"{mode}=two")
                self.assertEqual(done.returncode, 1)
                for label in ("base", "huge"):
                    self.assertIn(f"Could not be run: two ({label}): "
                                  f"{reason}\n", done.stdout)
                    self.assertEqual(self.results(label), ["one", "one"])
                # It is not tried again in the second round.
                self.assertEqual([name for name, *_ in self.lines("prepared")]
                                 .count("two"), 2)
                shutil.rmtree(self.folder())
                (self.directory / "prepared").unlink()

    def test_all_and_default(self):
        self.run_suite("--all", "--rounds", "1")
        self.assertEqual(self.results("base"), ["one", "two", "nbody"])
        options = bench_pyperformance.parse_arguments(["--report", "x"])
        chosen, missing = bench_pyperformance.choose_benchmarks(
            options, ["two", "nbody"])
        self.assertEqual(chosen, ["nbody"])
        self.assertIn("json_loads", missing)
        self.assertNotIn("nbody", missing)

    def test_bad_arguments(self):
        for arguments, pattern in (
                (["--benchmark", "three"], "no benchmark 'three'; there are: "
                 "one, two, nbody$"),
                (["--rounds", "0"], "--rounds must be 1 or more, not 0"),
                (["--config", "base=/nonexistent"], "'/nonexistent' is no "),
                (["--config", f"base={sys.executable}"],
                 "two configurations are called 'base'")):
            with self.subTest(arguments):
                self.assert_one_line(self.run_suite(*arguments), pattern)
        self.assertEqual(list(self.directory.glob("results-*")), [])

    def test_bad_folder(self):
        for name in ("nonexistent", "file"):
            folder = self.directory / name
            if name == "file":
                folder.mkdir()
                (folder / suite.SESSION).write_text("[]")
            with self.subTest(name):
                self.assert_one_line(
                    self.run_suite("--report", folder, configs=[]),
                    f"{name}.*give a folder that")

    def test_library_that_is_not_preloaded(self):
        done = self.run_suite("--benchmark", "one", "--rounds", "2", configs=[
            "base", "bad,env=LD_PRELOAD=libnone.so.1"])
        self.assert_one_line(done, "bad left out: .*'libnone.so.1'", 1)
        self.assertEqual([name for name, *_ in self.calls()], ["one"] * 2)
        self.assertIn("Nothing to compare", done.stdout)
        self.assertIn("Problem: bad left out", done.stdout)

    def test_stopped_by_a_signal(self):
        stdout = self.stop(
            signal.SIGINT, self.directory / "hanging",
            *self.arguments("--benchmark", "one", "--benchmark", "two"),
            env=dict(self.environment, FAKE_SUITE="hang=two"))
        for label in ("base", "huge"):
            self.assertEqual(self.results(label), ["one"])
        self.assertIn("| table of base.json huge.json\n", stdout)
        self.assertIn("Problem: stopped by SIGINT before the end", stdout)
        self.assertIn(f"Results: {self.folder()}\n", stdout)
        again = self.run_suite("--report", self.folder(), configs=[])
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(again.stdout + f"Results: {self.folder()}\n", stdout)


# Makes an "environment" or refuses to, and counts how often.
FAKE_INTERPRETER = r"""
here=$(dirname "$0")
test "$2" = venv || exit 3
echo made >>"$here/made"
test ! -e "$here/refuse" || { echo "Error: no ensurepip"; exit 1; }
mkdir -p "$4/bin"
printf '#!/bin/sh\necho "$@" >>%s/pip\n' "$here" >"$4/bin/python"
chmod +x "$4/bin/python"
"""


class ToolTests(ScratchDirectory):
    def setUp(self):
        super().setUp()
        self.interpreter = self.directory / "python"
        self.interpreter.write_text(f"#!/bin/sh\n{FAKE_INTERPRETER}")
        self.interpreter.chmod(0o755)

    def install(self, version="3.13.5"):
        suite.Tool(str(self.directory / "new"),
                   {"path": str(self.interpreter), "version": version}
                   ).install()

    def made(self):
        return (self.directory / "made").read_text().count("made")

    def test_installed_once(self):
        self.install()
        self.install()
        self.assertEqual(self.made(), 1)
        self.assertIn(f"install --requirement {suite.REQUIREMENTS}\n",
                      (self.directory / "pip").read_text())
        # Another interpreter at the same path.
        self.install("3.13.6")
        self.assertEqual(self.made(), 2)

    def test_failure(self):
        (self.directory / "refuse").touch()
        with self.assertRaisesRegex(BenchError, "cannot install pyperformance "
                                    "with .*python: Error: no ensurepip"):
            self.install()
        (self.directory / "refuse").unlink()
        self.install()
        self.assertEqual(self.made(), 2)

    def test_directory_that_cannot_be_made(self):
        (self.directory / "new").write_text("a file")
        with self.assertRaisesRegex(BenchError, "cannot make .*--directory"):
            self.install()

    def test_everything_is_pinned(self):
        names = [line.partition("==")[0] for line in suite.pinned()
                 if "==" in line]
        self.assertEqual(len(names), len(suite.pinned()))
        self.assertLessEqual({"pyperf", "pyperformance"}, set(names))


class ReasonTests(unittest.TestCase):
    def test_reasons(self):
        for output, expected in (
                ("one\nValueError: bad\nERROR: Benchmark x failed: Benchmark "
                 "died\nRuntimeError: Benchmark died\n", "ValueError: bad"),
                ("ValueError: bad\nTraceback:\nRuntimeError: /bin/python "
                 "failed with exit code 1\nERROR: Benchmark x failed: ",
                 "ValueError: bad"),
                ("RuntimeError: /bin/python failed with exit code -6\n"
                 "ERROR: Benchmark x failed: ",
                 "RuntimeError: /bin/python failed with exit code -6"),
                ("ERROR: No matching distribution found for x\n"
                 "a.b.RequirementsInstallationFailedError: x\n",
                 "ERROR: No matching distribution found for x"),
                ("quiet\nERROR: Benchmark x timed out\nTraceback\n",
                 "a process of it did not end within 600 seconds"),
                ("some words\n\n", "some words"), ("", "exit status 7")):
            with self.subTest(output):
                self.assertEqual(suite._reason(output, 7), expected)


class PoolTests(ScratchDirectory):
    def pages(self, pool, available):
        session = {"configurations": [{"label": "a", "pool": pool}],
                   "benchmarks": []}
        runs = suite.Suite(session, "", [], None, None, None)
        with mock.patch.object(memory, "available_memory", lambda: available):
            runs.size_pools()
        return session["configurations"][0]["pool_pages"]

    def test_size(self):
        gib = 1 << 30
        self.assertEqual(self.pages("empty", gib), 0)
        self.assertEqual(self.pages("7", gib), 7)
        self.assertEqual(self.pages("auto", 64 * gib), suite.AUTO_POOL_PAGES)
        self.assertEqual(self.pages("auto", gib), 128)

    def test_pool_that_cannot_be_had_stops_its_configuration_only(self):
        (self.directory / "logs").mkdir()
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b", pool="500")]
        session = {"configurations": [{"label": c.label, "pool": c.pool}
                                      for c in configurations],
                   "benchmarks": ["one", "two"], "rounds": 2, "flags": [],
                   "runs": [], "failures": [], "problems": []}
        tool = mock.Mock()
        tool.run = lambda configuration, command, options, log, results: (
            pathlib.Path(results).write_text('{"benchmarks": []}'))
        runs = suite.Suite(session, self.directory, configurations, tool,
                           FakeKernelPool(self.directory),
                           Progress(io.StringIO()))
        # Merging is pyperf's work.
        with mock.patch.object(runs, "_merge"):
            runs.size_pools()
            runs.measure()
        self.assertEqual([(run["benchmark"], run["configuration"])
                          for run in session["runs"]],
                         [("one", "a"), ("two", "a")] * 2)
        (problem,) = session["problems"]
        self.assertIn("b left out: the kernel gave only 98 of 500", problem)
