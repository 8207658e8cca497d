"""Tests of benchlib's measure."""

import io
import os
import random
import sys
import unittest
from unittest import mock

from benchlib import BenchError, files, measure, memory, page, perf
from benchlib.progress import Progress
import bench_scale
from hugepages import malloc
from hugepages.test.support import call

from .support import (
    BENCH, SCRIPT, TOOLS, FakeKernelPool, ScratchDirectory, fake_results)


TOP = TOOLS.parent.parent


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
                 ("a", path, None, "auto", (("A", "b=c:d"), ("E", "")))),
                (f"a={path},switch=on,pool=3,base=b-1,env=X=1",
                 ("a", path, "on", "3", (("X", "1"),), "b-1"))):
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
                (TOOLS / "hugepages/pymalloc-hugepages.1", recipe),
                (TOP / "Makefile.in", f"\nMALLOC = {recipe}\n")):
            self.assertIn(text, path.read_text())

    def test_bad(self):
        path = sys.executable
        for text in (path, f"={path}", f"a b={path}", "a=", "a=/nonexistent",
                     f"a={path},pool=some", f"a={path},switch=",
                     f"a={path},pool=auto,switch=thp", f"a={path},x=y",
                     f"a={path},env=X", f"a={path},env==1",
                     f"a={path},env=X=1,pool=auto", f"a={path},base=",
                     f"a={path},base=b,pool=auto", f"a={path},switch=foo",
                     f"a={BENCH}"):
            with self.subTest(text), self.assertRaises(BenchError):
                measure.parse_configuration(text)
        for item in "switch=thp", "pool=auto", "base=b", "env=X=1":
            with self.assertRaisesRegex(BenchError, "not a configuration"):
                measure.parse_configuration(f"a={path},{item},x")

    def test_switch_that_there_is_not(self):
        for value in measure.SWITCHES:
            measure.parse_configuration(f"a={sys.executable},switch={value}")
        with self.assertRaisesRegex(
                BenchError, "^a: no switch 'foo'; there are: "
                "on, 1, thp, hugetlb, off, 0$"):
            measure.parse_configuration(f"a={sys.executable},switch=foo")

    def test_bases(self):
        def parse(**bases):
            return measure.parse_configurations(
                [f"{label}={sys.executable}{base and ',base=' + base}"
                 for label, base in bases.items()], bases=True)

        self.assertEqual([c.base for c in parse(a="", b="", c="b", d="b")],
                         [None, None, "b", "b"])
        for bad in ({"a": "", "b": "c"}, {"a": "", "b": "b"},
                    {"a": "", "b": "a", "c": "b"}):
            with self.assertRaisesRegex(
                    BenchError, "cannot be its base; there are: a$"):
                parse(**bad)
        # Other programs compare with the first alone, or not at all.
        with self.assertRaisesRegex(BenchError, "base; there are: none$"):
            measure.parse_configurations([f"a={sys.executable}",
                                          f"b={sys.executable},base=a"])

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
        """Let the peak memory of each workload be this many MiB."""
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

    def measured(self, results, session, rounds=20):
        """The runs, in their order, after session has measured."""
        results["rounds"] = rounds
        session.size_pools()
        with self.stat():
            session.measure(random.Random(results["seed"]), lambda: None)
        return [(r["round"], r["configuration"], r["workload"])
                for r in results["runs"]]

    def test_resumed_as_if_it_had_not_been_interrupted(self):
        configurations = [measure.Configuration("a", "/a"),
                          measure.Configuration("b", "/b")]
        expected = self.measured(*self.session(configurations))
        path = self.path("r.json")
        for stopped in 0, 1, 4, 9, 80:
            earlier, session = self.session(configurations, seed=7)
            self.measured(earlier, session)
            del earlier["runs"][stopped:]
            earlier["problems"] = ["stopped"]
            for c in earlier["configurations"]:
                c["pool_pages"] = 8
            earlier["machine"]["nr_hugepages"] = "8"
            files.save(earlier, path)
            results, session = self.session(configurations, seed=8,
                                            date="today", warm_size=5)
            for c in results["configurations"]:
                c["pool_pages"] = None
            with mock.patch.object(session, "_timed_run",
                                   return_value={"duration_time": 2.0}):
                measure.resume(results, path)
                self.assertEqual(self.measured(results, session), expected)
            self.assertEqual([r["counts"]["duration_time"]
                              for r in results["runs"]],
                             [1.0] * stopped + [2.0] * (80 - stopped))
            self.assertEqual(results["problems"], [])
            self.assertEqual(
                (results["date"], results["resumed"], results["warm_size"]),
                (earlier["date"], ["today"], earlier["warm_size"]))
        # Once more, with fewer rounds than there are, and with more.
        files.save(results, path)
        for rounds, count in (3, 80), (21, 84):
            results, session = self.session(configurations, date="tomorrow")
            measure.resume(results, path)
            runs = self.measured(results, session, rounds)
            self.assertEqual(len(set(runs)), count)
            self.assertEqual(results["resumed"], ["today", "tomorrow"])

    def test_another_run_is_not_resumed(self):
        path = self.path("r.json")
        files.save(fake_results(), path)
        for name, value in (("workloads", ["first"]), ("loops", 2),
                            ("profiled", True)):
            with self.assertRaisesRegex(
                    BenchError, f"^cannot resume '.*r.json', which has other "
                    f"{name}; start anew, without --resume$"):
                measure.resume(fake_results(**{name: value}), path)
        for change in ("version", "switch", "label"):
            results = fake_results()
            results["configurations"][1][change] = "other"
            with self.assertRaisesRegex(BenchError,
                                        "which has other configurations;"):
                measure.resume(results, path)
        results = fake_results()
        results["machine"]["kernel"] = "7.0"
        with self.assertRaisesRegex(BenchError, "which has other machine;"):
            measure.resume(results, path)

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
            # Free pages of the pool count where they are available.
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
