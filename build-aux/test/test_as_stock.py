"""Memory and diagnostics: never worse than the unpatched build.

The programs are those of bench_memory.py, shorter where that tells as much.
"""

import pathlib
import shutil
import sys
import tempfile
import unittest

from support import HUGEPAGES, TOP, UNPATCHED
# The lock is for this module, too.
from test_embedding import Tree, pool_of, setUpModule

sys.path.insert(0, str(TOP / "Tools/pymalloc_hugepages/bench"))

import bench_memory
from bench_memory import MIB, Program
from benchlib import BenchError, memory
from benchlib.measure import Configuration


STOCK = Configuration("stock", str(UNPATCHED / "python"))
OURS = {None: Configuration("thp", str(HUGEPAGES / "python"), "thp"),
        64: Configuration("on", str(HUGEPAGES / "python"), "on", "64")}

# Other programs of this machine, and the C library, may be in the way once.
TRIES = 3


# Two of the pool that are kept for the next request, and one in use.
MOST_POOL = 3 * memory.HUGE_PAGE_SIZE


def peak_limit(stock):
    return max(1.05 * stock, stock + 8 * MIB)


def held_limit(stock):
    return stock + 16 * MIB


def large_blocks_at_once(count=100):
    """The most mappings that blocks of megabytes have made.

    In stock CPython the kernel makes one of neighbours.
    """
    def mappings():
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)

    before = most = mappings()
    for size in 5_000_000, 3_000_000, 5_000_000:
        kept = [bytes(size) for _ in range(count)]
        most = max(most, mappings())
        del kept
        most = max(most, mappings())
    return {"mappings": most - before}


class MemoryTest(unittest.TestCase):

    def problems(self, stock, ours, limits):
        """Yield what is above its limit, in bytes but for mappings."""
        for key, limit in limits.items():
            if ours[key] > limit(stock[key]):
                yield f"{key}: {ours[key]:,}, stock {stock[key]:,}"
        if held_limit in limits.values() and ours["pool"] > MOST_POOL:
            yield f"pages of the pool: {ours['pool'] / MIB:.0f} MiB"

    def check(self, function, limits, **arguments):
        """Compare with stock what a program measures by these keys."""
        program = Program(function, {})
        for pages, configuration in OURS.items():
            with self.subTest(configuration.label), pool_of(pages):
                for _ in range(TRIES):
                    stock = bench_memory.run(STOCK, program, **arguments)
                    ours = bench_memory.run(configuration, program,
                                            **arguments)
                    problems = list(self.problems(stock, ours, limits))
                    if not problems:
                        break
                self.assertEqual(problems, [])

    def test_start(self):
        self.check(bench_memory.start,
                   {"peak": lambda stock: stock + MIB / 2,
                    "held": lambda stock: stock + MIB / 2})

    def test_start_modules(self):
        # Once for the compiled files.
        bench_memory.run(STOCK, Program(bench_memory.start_modules, {}))
        self.check(bench_memory.start_modules,
                   {"peak": lambda stock: stock + 2 * MIB,
                    "held": lambda stock: stock + 2 * MIB})

    def test_structure(self):
        self.check(bench_memory.structure,
                   {"peak": peak_limit, "dropped": held_limit,
                    "held": held_limit}, seconds=1)

    def test_alternate(self):
        self.check(bench_memory.alternate,
                   {"peak": peak_limit, "held": held_limit}, turns=5)

    def test_five_kinds(self):
        self.check(bench_memory.five_kinds,
                   {"peak": peak_limit, "held": held_limit}, turns=2)

    def test_large_blocks(self):
        self.check(bench_memory.large_blocks,
                   {"peak": peak_limit, "held": held_limit}, turns=100)

    def test_mappings(self):
        self.check(large_blocks_at_once,
                   {"mappings": lambda stock: stock + 4})

    def test_many_lists(self):
        self.check(bench_memory.many_lists,
                   {"peak": peak_limit, "held": held_limit})

    def test_idle_threads(self):
        self.check(bench_memory.idle_threads,
                   {"peak": peak_limit, "held": held_limit})

    def test_subinterpreters(self):
        self.check(bench_memory.subinterpreters, {"peak": held_limit},
                   count=20)

    def test_idle_workers(self):
        self.check(bench_memory.idle_workers, {"pss": held_limit})

    def test_busy_workers(self):
        # Five processes, the parent one of them.
        self.check(bench_memory.busy_workers,
                   {"pss": lambda stock: stock + 4 * 16 * MIB})

    def test_preforked(self):
        with bench_memory.busy_khugepaged():
            self.check(bench_memory.preforked,
                       {"pss": peak_limit, "pss later": peak_limit},
                       mib=100, wait=4)

    def test_address_space(self):
        [program] = [program for program in bench_memory.PROGRAMS
                     if program.function is bench_memory.fill]
        stock = bench_memory.run(STOCK, program)
        for pages, configuration in OURS.items():
            with self.subTest(configuration.label), pool_of(pages):
                ours = bench_memory.run(configuration, program)
                self.assertGreaterEqual(ours["objects"],
                                        0.95 * stock["objects"])

    def test_cgroup(self):
        program = Program(bench_memory.alternate, {})
        stock = bench_memory.run(STOCK, program, turns=5)
        limit = int(1.05 * stock["peak"])
        for pages, configuration in OURS.items():
            with self.subTest(configuration.label), pool_of(pages):
                try:
                    self.assertTrue(any(
                        bench_memory.lives(configuration, program, limit,
                                           turns=5)
                        for _ in range(TRIES)))
                except BenchError as error:
                    self.skipTest(str(error))


class DiagnosticsTest(unittest.TestCase):
    """What the C library and tools find in blocks above pymalloc's limit."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.trees = []
        for path in UNPATCHED, HUGEPAGES:
            folder = pathlib.Path(directory.name, path.name)
            folder.mkdir()
            cls.trees.append(Tree(path, folder))

    def check(self, expected, *arguments, **variables):
        """Run the program with both builds: what each says must match."""
        stock, ours = self.trees
        for tree, switch in (stock, None), (ours, "thp"), (ours, "off"):
            with self.subTest(tree=tree.path.name, switch=switch):
                self.assertRegex(tree.run("as_stock", *arguments,
                                          switch=switch, **variables) or "ok",
                                 expected)

    def test_double_free(self):
        self.check("double free", "double-free", 2000)

    def test_malloc_trim(self):
        self.check("^ok$", "trim")

    def test_raw_domain_hooks(self):
        self.check("^ok$", "hook")

    def test_debug_hooks(self):
        for size in 600, 5000:
            with self.subTest(size=size):
                self.check("bad trailing pad byte", "overflow", size,
                           PYTHONMALLOC="debug")

    @unittest.skipUnless(shutil.which("valgrind"), "needs valgrind")
    def test_valgrind(self):
        self.check(r"(?s)Invalid write of size 1\b.*\b"
                   r"0 bytes after a block of size 2,000 alloc'd",
                   "overflow", 2000, prefix=["valgrind", "--error-exitcode=9"])


if __name__ == "__main__":
    unittest.main()
