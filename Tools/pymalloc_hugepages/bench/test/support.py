"""What the tests of the benchmarks share."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

from benchlib import measure, memory
from hugepages.test.support import lock_pool


BENCH = pathlib.Path(__file__).resolve().parent.parent
TOOLS = BENCH.parent
SCRIPT = str(TOOLS / "bench_obmalloc.py")
DRIVER = str(BENCH / "bench_driver.py")

NAMES = ["small_object_churn", "bulk_small_alloc", "dict_churn", "mixed_sizes",
         "fragmentation", "list_of_tuples", "class_instances",
         "arena_pressure", "random_walk"]


def setUpModule():
    """For modules whose programs set up the real pool, and put it back: let
    other tests that change it wait meanwhile."""
    if memory.Pool().writable:
        lock = contextlib.ExitStack()
        unittest.addModuleCleanup(lock.close)
        lock.enter_context(lock_pool())


def run(*command, **kwargs):
    return subprocess.run([sys.executable, *command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True,
                          **kwargs)


class ScratchDirectory(unittest.TestCase):
    """A test in a folder of its own, self.directory."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def path(self, name):
        return str(self.directory / name)


class ProgramTestCase(ScratchDirectory):
    """A test of a whole program, which is run as a process."""

    program = None      # its name, with which its lines on stderr begin

    def assert_one_line(self, done, pattern, status=2):
        """The program must end with the status and one line on stderr."""
        self.assertEqual(done.returncode, status, done.stderr)
        lines = [line for line in done.stderr.splitlines()
                 if line.startswith(f"{self.program}: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertRegex(lines[0], pattern)
        self.assertNotIn("Traceback", done.stderr)

    def stop(self, signum, marker, *command, env):
        """Start the program, and send it the signal as soon as a child of it
        has written its PID to the file marker.  The child must be gone then.
        Return stdout."""
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True)
        marker = pathlib.Path(marker)
        try:
            deadline = time.monotonic() + 60
            while not marker.exists() or not marker.stat().st_size:
                self.assertIsNone(process.poll())
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
            process.send_signal(signum)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual(process.returncode, 128 + signum, stderr)
        self.assertNotIn("Traceback", stderr)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(marker.read_text()), 0)
        return stdout


class FakeKernelPool(memory.Pool):
    """A pool in plain files, with a kernel that has limit pages to give;
    others of them are used by other processes."""

    def __init__(self, directory, nr=5, others=2, limit=100):
        self._others, self._limit = others, limit
        for name, value in (("nr_hugepages", nr), ("resv_hugepages", 0),
                            ("free_hugepages", nr - others),
                            ("nr_overcommit_hugepages", 3)):
            with open(os.path.join(directory, name), "w") as file:
                file.write(f"{value}\n")
        super().__init__(directory)
        self.writable = True

    def _write(self, name, value):
        if name == "nr_hugepages":
            value = max(self._others, min(value, self._limit))
            super()._write("free_hugepages", value - self._others)
        super()._write(name, value)

    def settings(self):
        return (self._read("nr_hugepages"),
                self._read("nr_overcommit_hugepages"))


def fake_results(**changes):
    """Results of two configurations, two workloads, five rounds."""
    faults = {"base": [1000, 1010, 990, 995, 1005],
              "huge": [100, 101, 99, 99.5, 100.5]}
    wall = {"base": [4e8, 5e8, 9e8, 4.5e8, 7e8],
            "huge": [2e8, 2.5e8, 3e8, 2.25e8, 2.75e8]}
    results = {
        "format": measure.FORMAT, "date": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "A CPU", "virtual": True, "cores": 2,
                    "memory": 4 << 30, "architecture": "x86_64",
                    "kernel": "6.1", "distribution": "Debian",
                    "thp_enabled": "madvise", "thp_defrag": "madvise",
                    "nr_hugepages": "0", "perf": "perf version 6.1"},
        "seed": 7, "rounds": 5, "warm_size": 0, "loops": 1, "memory_runs": 1,
        "profiled": False,
        "configurations": [
            {"label": label, "path": "/python", "switch": switch,
             "pool": "auto", "version": "3.13.5 (main)", "configure_args": "",
             "pool_pages": 5}
            for label, switch in (("base", None), ("huge", "hugetlb"))],
        "workloads": ["first", "second"],
        "counted": ["page-faults", "duration_time"],
        "not_counted": ["cycles"],
        "memory": [{"configuration": "huge", "workload": "first",
                    "rss": 3 << 20, "hugetlb": 4 << 20, "thp": 0}],
        "runs": [{"configuration": label, "workload": "first", "round": i + 1,
                  "counts": {"page-faults": faults[label][i],
                             "duration_time": wall[label][i],
                             "cycles": None}}
                 for label in ("base", "huge") for i in range(5)],
        "problems": [],
    }
    results.update(changes)
    return results
