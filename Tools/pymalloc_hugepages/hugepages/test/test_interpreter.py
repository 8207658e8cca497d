"""Tests of the tool with a patched interpreter, which must run them."""

import contextlib
import json
import mmap
import os
import subprocess
import sys
import unittest

from hugepages import process, reserve, run

from .support import (
    MIB, POOL, TestCase, end, is_patched, pool_with, requires_linux)


@requires_linux
@unittest.skipUnless(is_patched(), "needs to be run by a patched interpreter")
class RealInterpreterTests(TestCase):
    # Objects for at least 20 arenas: 36 of these in each of 128 pools.
    FILL = "objects = [bytes(400) for _ in range(20 * 128 * 36)]\n"
    # Blocks above pymalloc's limit: they are malloc()'s, and no arenas.
    LARGE = ("large = bytes(64 << 20)\n"
             "buffers = [bytearray(i) for i in range(1100, 9000)]\n"
             "lists = [[None] * 300 for _ in range(5_000)]\n")

    def test_status_agrees_with_the_interpreter(self):
        tell = ("import json, sys\n"
                "print(json.dumps(sys._pymalloc_hugepages()), flush=True)\n"
                "sys.stdin.read()\n")
        for switch in run.MODES:
            child = subprocess.Popen(
                [sys.executable, "-X", f"pymalloc_hugepages={switch}", "-c",
                 self.FILL + self.LARGE + tell], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, universal_newlines=True)
            self.addCleanup(end, child)
            told = json.loads(child.stdout.readline())
            report = process.look_at(child.pid)
            self.assertEqual(report.interpreter, os.readlink(
                f"/proc/{child.pid}/exe"))
            self.assertEqual(
                (report.usage.hugetlb_arenas, report.usage.thp_arenas),
                (told["hugetlb"]["now"], told["thp"]["now"]), switch)

    def test_status_after_a_fork(self):
        fork = ("import os\n"
                "if os.fork():\n"
                "    os.wait()\n"
                "    sys.exit()\n")
        tell = ("told = sys._pymalloc_hugepages()\n"
                "print(json.dumps([os.getpid(), told]), flush=True)\n"
                "sys.stdin.read()\n")
        child = subprocess.Popen(
            [sys.executable, "-X", "pymalloc_hugepages=thp", "-c",
             "import json, sys\n" + self.FILL + fork + tell],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True)
        self.addCleanup(end, child)
        pid, told = json.loads(child.stdout.readline())
        for each in child.pid, pid:
            self.assertEqual(process.look_at(each).usage.thp_arenas,
                             told["thp"]["now"])
        self.assertGreaterEqual(told["thp"]["now"], 18)

    def test_run(self):
        for mode, tiers in [("on", {"hugetlb", "thp", "plain"}),
                            ("thp", {"thp", "plain"}), ("off", {"plain"}),
                            ("hugetlb", {"hugetlb", "plain"})]:
            _, err = self.tool("run", "--json", "--mode", mode,
                               sys.executable, "-c", self.FILL)
            result = json.loads(err)
            self.assertEqual([entry["source"] for entry in
                              result["processes"]], ["statistics"])
            peaks = result["peak_arenas"]
            self.assertGreaterEqual(sum(peaks.values()), 20)
            self.assertLessEqual({tier for tier in peaks if peaks[tier]},
                                 tiers)

    def test_run_with_large_blocks(self):
        for mode in run.MODES:
            _, err = self.tool("run", "--json", "--mode", mode,
                               sys.executable, "-c", self.LARGE)
            peaks = json.loads(err)["peak_arenas"]
            self.assertEqual(set(peaks), {"hugetlb", "thp", "plain"})
            self.assertLessEqual(sum(peaks.values()), process.FIRST)

    def test_run_with_malloc(self):
        # What is set is malloc()'s: the arenas get what they get without it.
        _, err = self.tool("run", "--json", "--mode", "thp", "--malloc",
                           sys.executable, "-c", self.FILL)
        peaks = json.loads(err)["peak_arenas"]
        self.assertGreaterEqual(peaks["thp"], 16)

    # Small objects alone, and with what is malloc()'s.
    PROGRAMS = (FILL, FILL + LARGE)
    # Its arenas come and go.
    LOOP = "for i in range(3):\n    " + FILL + "    del objects\n"

    def test_reserve_for(self):
        # Whatever the pool has now, the number is the same, and right: that
        # many pages are enough, and one less is not.
        for program in self.PROGRAMS:
            needed = {self.count_needed(pages, program)
                      for pages in (0, 5, 100)}
            self.assertEqual(len(needed), 1, (program, needed))
            [pages] = needed
            self.assertIn(pages, range(16, 40), program)
            self.assertEqual(self.run_with(pages, program)["refused"], {})
            figures = self.run_with(pages - 1, program)
            self.assertEqual(list(figures["refused"]), ["ENOMEM"], program)

    def test_reserve_for_a_loop(self):
        # It is never too low.
        for pages in 0, 5, 100:
            needed = self.count_needed(pages, self.LOOP)
            self.assertIn(needed, range(17, 30), pages)
            self.assertEqual(self.run_with(needed, self.LOOP)["refused"], {})

    def count_needed(self, pages, program):
        out, _ = self.run_leaving_pool(
            pages, self.tool, "reserve", "--json", "--dry-run", "--for",
            sys.executable, "-c", program)
        return json.loads(out)["for"]["needed"]

    def run_with(self, pages, program):
        """What the pool has given to a program, and refused."""
        path = self.path("statistics")
        self.run_leaving_pool(
            pages, subprocess.run, [sys.executable, "-c", program], check=True,
            env={**os.environ, run.SWITCH: "on", run.STATISTICS: path})
        with open(path) as file:
            return json.loads(file.readlines()[-1])["hugetlb"]

    @staticmethod
    def pool_of(pages, stack):
        """Have exactly this many pages available."""
        stack.enter_context(pool_with(0))
        pool = reserve.read_pool()
        missing = pages - pool.available
        if missing > 0:
            # It is undone with the rest.
            with open(f"/{POOL}/nr_hugepages", "w") as file:
                file.write(str(pool.size + missing))
        elif missing < 0:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 21 << 26
            stack.enter_context(contextlib.closing(
                mmap.mmap(-1, -missing * 2 * MIB, flags=flags)))

    def run_leaving_pool(self, pages, function, *args, **kwargs):
        """Call it with exactly this many pages available, again if another
        process has used the pool meanwhile."""
        for _ in range(20):
            with contextlib.ExitStack() as stack:
                self.pool_of(pages, stack)
                before = reserve.read_pool()
                result = function(*args, **kwargs)
                if before == reserve.read_pool() and before.available == pages:
                    return result
        self.fail("other processes use the pool all the time")

    def test_small_programs_need_none(self):
        out, _ = self.tool("reserve", "--json", "--dry-run", "--for",
                           sys.executable, "-c", self.LARGE)
        self.assertEqual(json.loads(out)["for"]["needed"], 0)
