"""Tests of bench_tlb.py and tlb_model.c."""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from benchlib import BenchError, memory, perf
from benchlib.measure import Configuration
import bench_tlb
from hugepages.test.support import call

from .support import FakeKernelPool, ScratchDirectory, setUpModule


PAGE = 1 << 12
HUGE = 1 << 21

# The addresses of made-up traces that are on 2 MiB pages, from here on.
HUGE_START = 1 << 40
HUGE_RANGE = f"{HUGE_START:x}-{1 << 46:x}"

needs_valgrind = unittest.skipUnless(shutil.which("valgrind"),
                                     "needs valgrind")


def trace(addresses, kind="L", size=8):
    return "".join(f" {kind} {address:08x},{size}\n" for address in addresses)


@unittest.skipUnless(shutil.which("cc"), "needs a compiler")
@unittest.skipUnless(sys.platform == "linux", "needs Linux")
class ModelTestCase(ScratchDirectory):
    """A test with the model, compiled once."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.model = bench_tlb.build_model(folder.name)

    def run_model(self, text, pages=HUGE_RANGE, geometry=bench_tlb.GEOMETRY):
        return subprocess.run([self.model, geometry, pages], input=text,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)

    def counts(self, text, **kwargs):
        done = self.run_model(text, **kwargs)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def assert_loads(self, addresses, misses, walks, **kwargs):
        """What the loads of these addresses, after the same ones have been
        loaded before, must find."""
        once = trace(addresses)
        counts = self.counts(once + "begin\n" + once, **kwargs)
        self.assertEqual(
            (counts["load"], counts["load_misses"], counts["load_walks"]),
            (len(addresses), misses, walks))

    def assert_fails(self, text, pattern, **kwargs):
        done = self.run_model(text, **kwargs)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, rf"\A{pattern}\n\Z")


class ModelTests(ModelTestCase):

    def test_kinds_of_lines(self):
        counts = self.counts("==12== Lackey\nI  04001000,3\n L 1000,8\n"
                             " S 2000,8\n M 3000,4\n S 1008,2\n L 2ff8,8\n"
                             "--12-- warning\n")
        self.assertEqual(counts, {
            "load": 3, "load_misses": 2, "load_walks": 2,
            "store": 3, "store_misses": 1, "store_walks": 1,
            "huge_walks": 0, "lost_walks": 0})

    def test_two_pages(self):
        counts = self.counts(" L 1ffc,8\n L 1000,1\n L 2000,1\n"
                             " S 2ffc,4\n S 2ffd,4\n")
        self.assertEqual((counts["load"], counts["load_walks"]), (3, 1))
        self.assertEqual((counts["store"], counts["store_walks"]), (2, 1))

    def test_marks(self):
        one, two, three = ([base * PAGE for base in range(first, first + 5)]
                           for first in (1, 100, 200))
        counts = self.counts(trace(one) + "begin\n" + trace(one + two)
                             + "end\n" + trace(three))
        self.assertEqual((counts["load"], counts["load_walks"]), (10, 5))
        counts = self.counts(trace(one + two))
        self.assertEqual((counts["load"], counts["load_walks"]), (10, 10))
        counts = self.counts(trace([HUGE_START]) + "begin\nend\n"
                             + trace([HUGE_START + HUGE]))
        self.assertEqual(set(counts.values()), {0})

    def test_first_level(self):
        # 16 sets of 4 ways.
        self.assert_loads([base * PAGE for base in range(64)], 0, 0)
        self.assert_loads([base * PAGE for base in range(65)], 5, 0)
        self.assert_loads([base * PAGE for base in range(80)], 80, 0)
        self.assert_loads([16 * base * PAGE for base in range(4)], 0, 0)
        self.assert_loads([16 * base * PAGE for base in range(5)], 5, 0)

    def test_second_level(self):
        # 128 sets of 12 ways.
        self.assert_loads([base * PAGE for base in range(1536)], 1536, 0)
        self.assert_loads([base * PAGE for base in range(1664)], 1664, 1664)
        self.assert_loads([128 * base * PAGE for base in range(12)], 12, 0)
        self.assert_loads([128 * base * PAGE for base in range(13)], 13, 13)

    def test_huge_pages(self):
        self.assert_loads([HUGE_START + base * PAGE for base in range(512)],
                          0, 0)
        # 8 sets of 4 ways.
        self.assert_loads([HUGE_START + huge * HUGE for huge in range(32)],
                          0, 0)
        self.assert_loads([HUGE_START + huge * HUGE for huge in range(40)],
                          40, 0)
        self.assert_loads([HUGE_START + huge * HUGE for huge in range(1664)],
                          1664, 1664)

    def test_both_sizes(self):
        # Each has its own first level.
        self.assert_loads([base * PAGE for base in range(64)]
                          + [HUGE_START + huge * HUGE for huge in range(32)],
                          0, 0)
        # They share the second: here one set of it.
        for base_pages, huge_pages, walks in ((6, 6, 0), (6, 7, 13)):
            self.assert_loads(
                [128 * base * PAGE for base in range(base_pages)]
                + [HUGE_START + 128 * huge * HUGE
                   for huge in range(huge_pages)],
                base_pages + huge_pages, walks)

    def test_huge_walks(self):
        counts = self.counts(trace([0, HUGE_START, HUGE_START + HUGE - 1],
                                   size=1))
        self.assertEqual((counts["load_walks"], counts["huge_walks"]), (2, 1))

    def test_that_used_last_stays(self):
        pages = [128 * base * PAGE for base in range(13)]
        used = trace(pages[:4] + [pages[0]] + pages[4:12] + [pages[12]])
        # Of the first level's set, and of the second's, the second page went.
        counts = self.counts(used + "begin\n" + trace([pages[0]]))
        self.assertEqual(counts["load_walks"], 1)
        counts = self.counts(
            trace(pages[:12]) + trace([pages[0], pages[12]]) + "begin\n"
            + trace([pages[0]]))
        self.assertEqual(counts["load_walks"], 0)
        counts = self.counts(
            trace(pages[:12]) + trace([pages[0], pages[12]]) + "begin\n"
            + trace([pages[1]]))
        self.assertEqual(counts["load_walks"], 1)

    def test_long_trace(self):
        # Longer than the buffer, with lines across its end.
        counts = self.counts(trace([7 * PAGE] * 30_000)
                             + trace([8 * PAGE] * 1000, "S"))
        self.assertEqual((counts["load"], counts["store"]), (30_000, 1000))
        self.assertEqual(counts["load_walks"] + counts["store_walks"], 2)

    def test_bad_input(self):
        for line in ("hello", " L xyz", " L 1000", " L 1000,", " L 1000,8x",
                     " L 1000,0", " X 1000,8", " L", ""):
            self.assert_fails(f" L 2000,8\n{line}\n L 3000,8\n",
                              f"not a line of a trace: {line}")
        self.assert_fails(" L 1000,8", "not a trace: a line without an end")
        self.assert_fails("x" * 200_000, "not a trace: a line without an end")

    def test_bad_geometry(self):
        for geometry in ("64,4", "64,4,32,4,1536,12,1", "64,5,32,4,1536,12",
                         "0,4,32,4,1536,12", "64,0,32,4,1536,12"):
            self.assert_fails("", "(usage|bad geometry): .+",
                              geometry=geometry)


class PagesTests(ModelTestCase):
    """The pages that a process has: this one."""

    def mapping(self, advice):
        """The address of a 2 MiB range with some advice for it."""
        block = mmap.mmap(-1, 2 * HUGE,
                          flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(advice)
        view = ctypes.c_char.from_buffer(block)
        address = ctypes.addressof(view)
        del view
        self.addCleanup(block.close)
        start = -(-address // HUGE) * HUGE
        return block, start - address, start

    def counts_of_process(self, text):
        try:
            return self.counts(text, pages=str(os.getpid()))
        except AssertionError as error:
            if "Linux 6.7" in str(error):
                self.skipTest("needs Linux 6.7")
            raise

    def test_sizes(self):
        block, at, address = self.mapping(mmap.MADV_HUGEPAGE)
        block[at] = 1
        _, plain_at, plain = mapped = self.mapping(mmap.MADV_NOHUGEPAGE)
        mapped[0][plain_at:plain_at + HUGE:PAGE] = bytes(512)
        counts = self.counts_of_process(
            trace(range(address, address + HUGE, PAGE)))
        if not counts["huge_walks"]:
            self.skipTest("the kernel gave no transparent huge page")
        self.assertEqual(
            (counts["load_walks"], counts["huge_walks"], counts["lost_walks"]),
            (1, 1, 0))
        counts = self.counts_of_process(
            trace(range(plain, plain + HUGE, PAGE)))
        self.assertEqual(
            (counts["load_walks"], counts["huge_walks"], counts["lost_walks"]),
            (512, 0, 0))

    @unittest.skipUnless(memory.Pool().writable, "needs root and a hugetlb "
                         "pool")
    def test_page_of_the_pool(self):
        with memory.Pool() as pool:
            pool.set_available(1)
            block = mmap.mmap(-1, HUGE, flags=mmap.MAP_PRIVATE
                              | mmap.MAP_ANONYMOUS | 0x40000)
            with block:
                block[0] = 1
                first = ctypes.c_char.from_buffer(block)
                address = ctypes.addressof(first)
                counts = self.counts_of_process(
                    trace(range(address, address + HUGE, PAGE)))
                del first
        self.assertEqual((counts["load_walks"], counts["huge_walks"]), (1, 1))

    def test_lost(self):
        _, _, untouched = self.mapping(mmap.MADV_NOHUGEPAGE)
        counts = self.counts_of_process(trace([untouched, 0]))
        self.assertEqual((counts["load_walks"], counts["lost_walks"]), (2, 2))

    def test_process_has_ended(self):
        child = subprocess.Popen(["true"])
        child.wait()
        counts = self.counts(trace([PAGE]), pages=str(child.pid))
        self.assertEqual(counts["lost_walks"], 1)

    def test_page_that_comes_after_its_line(self):
        """The model waits until the access has happened."""
        block, at, address = self.mapping(mmap.MADV_NOHUGEPAGE)
        with subprocess.Popen(
                [self.model, bench_tlb.GEOMETRY, str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, universal_newlines=True) as model:
            model.stdin.write(trace([address]))
            model.stdin.flush()
            time.sleep(0.1)
            block[at] = 1
            output, errors = model.communicate()
        if "Linux 6.7" in errors:
            self.skipTest("needs Linux 6.7")
        self.assertEqual(json.loads(output)["lost_walks"], 0)


@needs_valgrind
class LackeyTests(ModelTestCase):

    def finish(self, *arguments, **kwargs):
        run = bench_tlb.Run(self.model, bench_tlb.GEOMETRY, arguments,
                            dict(os.environ), **kwargs)
        (outcome,) = bench_tlb.finish([run])
        return outcome

    def test_as_cachegrind(self):
        for what, ours, theirs in bench_tlb.compare_with_cachegrind(
                self.model, ["true"], dict(os.environ), str(self.directory)):
            self.assertGreater(ours, 0, what)
            self.assertEqual(ours, theirs, what)

    def test_marked(self):
        whole = self.finish("sh", "-c", "echo begin; echo end",
                            is_marked=False)
        part = self.finish("sh", "-c", "echo begin; echo end")
        self.assertLess(part["load"], whole["load"] / 4)
        self.assertGreater(part["load"], 100)

    def test_failures(self):
        for arguments, pattern in (
                (["sh", "-c", "echo sorry >&2; exit 3"], "^sorry$"),
                (["sh", "-c", "exit 3"], "^exit status 3$"),
                (["sh", "-c", "echo 1"], "^not a line of a trace: 1$"),
                (["/no/such/program"], "/no/such/program")):
            outcome = self.finish(*arguments)
            self.assertIsInstance(outcome, BenchError)
            self.assertRegex(str(outcome), pattern)


class WorkloadTests(ScratchDirectory):

    def test_fewer_objects(self):
        bench_tlb.write_workload(str(self.directory), 10)
        text = (self.directory / "bench_obmalloc.py").read_text()
        self.assertIn("range(100000)", text)
        self.assertIn("range(20000)", text)
        self.assertIn("range(10)", text)        # of layers, not of objects
        self.assertNotIn("_000", text)

    def test_all_run(self):
        bench_tlb.write_workload(str(self.directory), 10_000)
        for name in bench_tlb.bench_obmalloc.WORKLOADS:
            done = subprocess.run(
                bench_tlb.workload_command(sys.executable,
                                           str(self.directory), name),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                universal_newlines=True)
            self.assertEqual((done.returncode, done.stdout),
                             (0, "begin\nend\n"), name)

    def test_environment(self):
        env = bench_tlb.environment(Configuration(
            "a", "python", "thp", variables=(("PYTHONMALLOC", "mimalloc"),)))
        self.assertEqual(
            (env["PYTHON_PYMALLOC_HUGEPAGES"], env["PYTHONMALLOC"],
             env["PYTHONHASHSEED"]), ("thp", "mimalloc", "0"))

    def test_batches(self):
        options = mock.Mock(jobs=2, workloads=["x", "y"], configs=[
            Configuration(label, "python", pool=pool)
            for label, pool in (("a", "empty"), ("b", "auto"), ("c", "empty"),
                                ("d", "7"), ("e", "empty"))])
        self.assertEqual(
            [[(workload, c.label) for workload, c in batch]
             for batch in bench_tlb.batches(options)],
            [[(workload, label) for label in labels] for workload in "xy"
             for labels in ("ac", "e", "bd")])

    def test_judge(self):
        counts = {"load_walks": 5, "huge_walks": 0}
        for switch, pattern in ((None, None), ("off", None),
                                ("thp", "no huge page .* switch is thp")):
            problem = bench_tlb.judge(Configuration("a", "python", switch),
                                      counts)
            if pattern is None:
                self.assertIsNone(problem)
            else:
                self.assertRegex(problem, pattern)
        self.assertEqual(
            bench_tlb.judge(Configuration("a", "python"), BenchError("no")),
            "left out: no")


# A valgrind that traces one program: the same for all, but with more pages
# for a switch.
FAKE_VALGRIND = """\
#!/bin/sh
for argument; do
    case $argument in
    --log-fd=*) fd=${argument#--log-fd=};;
    --cachegrind-out-file=*) out=${argument#*=};;
    esac
done
if [ -n "$out" ]; then
    printf 'events: Ir Dr D1mr DLmr Dw D1mw DLmw\\nsummary: 9 %s\\n' \
        "$FAKE_COUNTS" >"$out"
    exit
fi
echo ' L 1000,8' >&$fd
echo begin
printf ' L 1000,8\\n L 3000,8\\n L 4000,8\\n S 5000,8\\n' >&$fd
if [ -n "$PYTHON_PYMALLOC_HUGEPAGES" ]; then
    printf ' L 6000,8\\n' >&$fd
fi
echo end
case $* in *$FAKE_FAILURE*) echo "no luck" >&2; exit 1;; esac
"""


class ProgramTests(ModelTestCase):
    """bench_tlb.py as a whole, with a valgrind that is none."""

    def setUp(self):
        super().setUp()
        valgrind = self.directory / "valgrind"
        valgrind.write_text(FAKE_VALGRIND)
        valgrind.chmod(0o755)
        self.pools = []

        def pool():
            folder = self.directory / f"pool{len(self.pools)}"
            folder.mkdir()
            self.pools.append(FakeKernelPool(str(folder), limit=1000))
            return self.pools[-1]
        for patch in (
                mock.patch.object(memory, "Pool", pool),
                mock.patch.dict(os.environ, FAKE_FAILURE="nowhere", PATH=(
                    f"{self.directory}:{os.environ['PATH']}"))):
            patch.start()
            self.addCleanup(patch.stop)

    def call(self, *arguments):
        return call(bench_tlb.main, "--json", self.path("tlb.json"), "--jobs",
                    "2", *arguments)

    CONFIGS = ("--config", f"stock={sys.executable}",
               "--config", f"thp={sys.executable},switch=thp",
               "--config", f"hugetlb={sys.executable},switch=on,pool=auto")

    def test_results(self):
        status, output, errors = self.call(*self.CONFIGS)
        # The fake has no huge page, which is a problem.
        self.assertEqual(status, 1)
        self.assertIn("thp fragmentation: no huge page was used", errors)
        self.assertIn("128 huge pages", output)
        self.assertEqual(output.count("\nWorkload "), 4)
        self.assertRegex(output, "(?m)^Simulated dTLB-load-misses: .*\n\n"
                         "Workload +stock +thp +hugetlb +proposal\n-+\n"
                         "fragmentation +2 +[+]50.0% +[+]50.0% +-95.9%$")
        self.assertRegex(output, "(?m)^Simulated dTLB-store-misses: .*\n\n"
                         ".*\n-+\nfragmentation +1 +[+]0.0% +[+]0.0% +-94.7%$")
        for title in output.splitlines():
            if "misses" in title and "%" not in title:
                self.assertIn("imulated", title)
        with open(self.path("tlb.json")) as file:
            results = json.load(file)
        self.assertEqual(len(results["runs"]), 18)
        self.assertEqual(results["runs"][0]["counts"], {
            "load": 3, "load_misses": 2, "load_walks": 2, "store": 1,
            "store_misses": 1, "store_walks": 1, "huge_walks": 0,
            "lost_walks": 3})
        self.assertEqual([pool.settings() for pool in self.pools], [(5, 3)])
        again = call(bench_tlb.main, "--report", self.path("tlb.json"))
        self.assertEqual(again, (0, output, ""))

    def test_one_workload(self):
        status, output, _ = self.call(
            *self.CONFIGS[:2], "--workload", "dict_churn", "--divisor", "7",
            "--format", "rst")
        self.assertEqual(status, 0)
        self.assertRegex(output, "(?m)^dict_churn +2 +-$")
        self.assertIn("dict_churn a 7th", output)

    def test_a_run_that_fails(self):
        with mock.patch.dict(os.environ, FAKE_FAILURE="class_instances"):
            status, output, errors = self.call(*self.CONFIGS[:2])
        self.assertEqual(status, 1)
        self.assertIn("stock class_instances: left out: no luck", errors)
        self.assertRegex(output, "(?m)^class_instances +not run +-84.3%$")
        self.assertRegex(output, "(?m)^mixed_sizes +2 +-80.8%$")

    def test_pool_too_small(self):
        status, output, errors = self.call(
            "--config", f"a={sys.executable},pool=5000", "--workload",
            "dict_churn")
        self.assertEqual(status, 1)
        self.assertIn("a dict_churn: left out: the kernel gave only", errors)
        self.assertEqual([pool.settings() for pool in self.pools], [(5, 3)])

    def test_check(self):
        arguments = [*self.CONFIGS[:2], "--check"]
        with mock.patch.object(perf, "stat", side_effect=BenchError("no")):
            with mock.patch.dict(os.environ, FAKE_COUNTS="4 3 3 1 1 1"):
                status, output, errors = self.call(*arguments)
            self.assertEqual((status, errors), (0, ""))
            self.assertRegex(output,
                             "(?m)^loads, both levels +3 +3 +0.00%$")
            self.assertIn("perf stat: this machine does not count", output)
            with mock.patch.dict(os.environ, FAKE_COUNTS="4 3 2 1 1 1"):
                status, output, errors = self.call(*arguments)
            self.assertEqual(status, 1)
            self.assertRegex(errors, r"\Abench_tlb.py: .* differ .*\n\Z")
            self.assertRegex(output,
                             "(?m)^loads, both levels +3 +2 +50.00%$")

    def test_check_with_perf(self):
        counts = {"cpu_core/dTLB-load-misses/": 4.0,
                  "dTLB-store-misses:u": None}
        with mock.patch.object(perf, "stat", return_value=counts), \
                mock.patch.dict(os.environ, FAKE_COUNTS="4 3 3 1 1 1"):
            status, output, _ = self.call(*self.CONFIGS[:2], "--check")
        self.assertEqual(status, 0)
        self.assertRegex(output, "(?m)^dTLB-load-misses +3 +4 +25.00%$")
        self.assertNotIn("dTLB-store-misses", output)

    def test_ends_the_process_with_the_model(self):
        (self.directory / "valgrind").write_text(
            "#!/bin/sh\nyes nonsense | head -100\nexec sleep 60\n")
        start = time.monotonic()
        (outcome,) = bench_tlb.finish([bench_tlb.Run(
            self.model, bench_tlb.GEOMETRY, [], dict(os.environ))])
        self.assertEqual(str(outcome), "not a line of a trace: nonsense")
        self.assertLess(time.monotonic() - start, 30)

    def test_wrong_arguments(self):
        for arguments, pattern in (
                (["--jobs", "0"], "--jobs must be 1 or more, not 0"),
                (["--divisor", "0"], "--divisor must be 1 or more, not 0"),
                (["--config", "a"], "not a configuration: 'a'.*")):
            status, _, errors = self.call(*self.CONFIGS[:2], *arguments)
            self.assertEqual(status, 2)
            self.assertRegex(errors, rf"\Abench_tlb\.py: {pattern}\n\Z")

    def test_what_is_missing(self):
        with mock.patch.dict(os.environ, CC="/no/such/cc"):
            status, _, errors = self.call(*self.CONFIGS[:2])
        self.assertEqual(status, 2)
        self.assertRegex(errors, r"\Abench_tlb\.py: cannot run the compiler "
                         r"'/no/such/cc': .+; the variable CC .+\n\Z")
        with mock.patch.dict(os.environ, PATH="/nowhere"):
            status, _, errors = self.call(*self.CONFIGS[:2])
        self.assertEqual(status, 2)
        self.assertRegex(errors, r"\Abench_tlb\.py: valgrind is not installed;"
                         r".+\n\Z")
        (self.directory / "empty.json").write_text("{}")
        status, _, errors = call(bench_tlb.main, "--report",
                                 self.path("empty.json"))
        self.assertEqual(status, 2)
        self.assertRegex(errors, r"\Abench_tlb\.py: .*empty.json' is not .+")


if __name__ == "__main__":
    unittest.main()
