"""Tests of the tables, and of files of results."""

import json
import re
from unittest import mock

from benchlib import (
    BenchError, files, measure, page, plot, profile, report, significance)
from hugepages import malloc

from .support import ScratchDirectory, fake_results


# Two samples, and the probability that chance makes such a difference.
SIGNIFICANCE = (
    ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], 0.012185780355344813),
    ([1, 2, 3], [4, 5, 6], 0.08085559837005224),
    ([4, 4, 8, 8, 8, 12], [8, 12, 12, 16, 4, 12, 20], 0.08915882419322943),
    ([10, 11, 12, 17, 18, 19, 11], [11, 13, 10, 19, 20, 18.6, 21],
     0.303475117167465),
    ([5, 5, 5], [5, 5, 5, 5], 1),
    ([1], [2], 1),
)


class ReportTests(ScratchDirectory):
    def test_figures(self):
        by_key = report.samples(fake_results())
        self.assertEqual(list(by_key), ["duration_time", "peak_memory",
                                        "page-faults", "cycles"])
        self.assertEqual(by_key["duration_time"]["first", "base"],
                         report.Sample(5e8, 4.5e8, 7e8))
        self.assertEqual(by_key["cycles"], {})

    def test_text(self):
        text = report.render(fake_results(problems=["huge: trouble"]), "text")
        lines = [" ".join(line.split()) for line in text.splitlines()]
        self.assertIn("first 500 ms (450-700) 250 ms (225-275) -50.0%", lines)
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
        for run_ in results["runs"]:
            run_["counts"]["duration_time"] *= 40
        self.assertRegex(report.render(results, "text"),
                         r"first +2\.50 s \(2\.25-3\.50\) +10\.00 s")

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
        # In the result, and below wall clock, peak memory and page faults.
        self.assertEqual(text.count("geometric mean"), 4)
        # Of the page faults there is only one workload's figure.
        self.assertRegex(text, r"geometric mean +-\n")
        # That of one workload is in the result alone.
        self.assertEqual(report.render(fake_results(
            workloads=["first", "startup"]), "text").count("geometric mean"),
            1)

    def test_turns(self):
        results = fake_results(loops=4)
        for run_ in results["runs"]:
            run_["counts"][measure.TURN_TIME] = 2e8
        result, turns, *_ = report.tables(results)
        self.assertEqual(result.title, "Result: one turn in a loop in one "
                         "process, and peak memory")
        self.assertEqual(turns.title, "One turn in a loop in one process")
        self.assertEqual(turns.rows[0],
                         ["first", "200 ms", "200 ms", "~+0.0%"])
        lines = report.render(results, "text").splitlines()
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
        self.assertIn("first 5.0 ms 10.0 ms +100.0%", lines)
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
        self.assertRegex(page.render(results),
                         "<th[^>]*>thp\\+malloc</th>")

    def result_of(self, seconds, workloads, bases=()):
        """Results with the wall clock of each run, by label and workload, and
        peak memory of as many MiB as the label has letters."""
        first = fake_results()["configurations"][0]
        return fake_results(
            workloads=workloads,
            configurations=[dict(first, label=label, base=dict(bases).get(
                label)) for label in seconds],
            memory=[{"configuration": label, "workload": name, "thp": 0,
                     "rss": len(label) << 20, "hugetlb": 0}
                    for label in seconds for name in workloads],
            runs=[{"configuration": label, "workload": name, "round": i,
                   "counts": {"duration_time": value * 1e9}}
                  for label, by_workload in seconds.items()
                  for name, values in zip(workloads, by_workload)
                  for i, value in enumerate(values)])

    def test_result_comes_first(self):
        exactly_4, about_4 = [4, 4.01, 4.02, 4.03], [2, 3.9, 4.2, 9]
        results = self.result_of({
            "base": [exactly_4, exactly_4, exactly_4],
            "quick": [[1, 1.01, 1.02, 1.03], about_4, [8, 8.1, 8.2, 8.3]]},
            ["first", "second", "startup"])
        result = report.tables(results)[0]
        self.assertEqual(result.title,
                         "Result: wall clock, and peak memory")
        self.assertEqual([result.header, *result.rows], [
            ["Against base", "quick"], ["geometric mean", "-49.5%"],
            ["best", "-74.7% (first)"], ["worst", "~+0.9% (second)"],
            ["startup", "+103.0%"], ["peak memory", "+25.0%"]])
        results["workloads"] = ["first", "second"]
        result = report.tables(results)[0]
        self.assertEqual([row[0] for row in result.rows], [
            "geometric mean", "best", "worst", "peak memory"])
        # What was not run has no figure; what was not measured no table.
        results["runs"] = [run_ for run_ in results["runs"]
                           if run_["configuration"] == "base"]
        self.assertEqual([row[1] for row in report.tables(results)[0].rows],
                         ["-", "-", "-", "+25.0%"])
        del results["configurations"][1]
        self.assertEqual(report.tables(results)[0].title, "Wall clock")
        self.assertNotIn(report.CHANCE, report.render(results, "text"))

    def test_start_up_within_its_own_spread_is_marked(self):
        # A median 55 % higher, and quartiles that overlap.
        results = self.result_of(
            {"base": [[10, 11, 12, 17, 18, 19, 11]],
             "thp": [[11, 13, 10, 19, 20, 18.6, 21]]}, ["startup"])
        self.assertEqual(self.table(results, "Wall clock")[1:], [
            ["startup", "12.00 s (11.00-17.50)", "18.60 s (12.00-19.50)",
             "~+55.0%"]])
        # As is a mean that has nothing else in it.
        results["workloads"] = ["startup", "first"]
        results["runs"] += [dict(run_, workload="first")
                            for run_ in results["runs"]]
        self.assertEqual(report.tables(results)[0].rows[0][1], "~+55.0%")
        self.assertIn(report.CHANCE_NOTE, self.lines(results))
        self.assertIn('<td class="chance">~+55.0%</td>', page.render(results))

    def test_each_is_compared_with_its_base(self):
        def runs(value):
            return [[value, value + 0.01, value + 0.02, value + 0.03]]

        results = self.result_of(
            {"stock11": runs(1), "stock14": runs(10), "thp11": runs(0.5),
             "thp14": runs(9)}, ["first"],
            {"thp14": "stock14", "thp11": "stock11"})
        for c in results["configurations"][2:]:
            c["switch"] = "thp"
        self.assertEqual(self.table(results, "Wall clock")[0],
                         ["Workload", "stock11", "stock14", "thp11", "change",
                          "thp14", "change"])
        self.assertEqual(self.table(results, "Wall clock")[1][-3::2],
                         ["-49.3%", "-10.0%"])
        result = report.tables(results)[0]
        self.assertEqual(result.header,
                         ["Against the base of each", "thp11", "thp14"])
        self.assertEqual(result.rows[0][1:], ["-49.3%", "-10.0%"])
        self.assertEqual(result.rows[-1][1:], ["-28.6%"] * 2)
        text = report.render(results, "text")
        self.assertIn("pool 5 huge pages for the largest workload; compared "
                      "with stock14", text)
        self.assertNotIn("rival", text)
        percent = plot._percentages(
            results, report.samples(results)["duration_time"])
        self.assertAlmostEqual(percent["first", "thp14"][0], 90.0, places=1)
        self.assertEqual(percent["first", "stock14"][0], 100)
        self.assertIn("In percent of the base of each", plot.render(results))
        # The first one, too, may have a base.
        results["configurations"].reverse()
        self.assertEqual(report.bases(results),
                         {"thp14": "stock14", "thp11": "stock11"})
        results["configurations"][1]["base"] = None
        self.assertEqual(report.bases(results), {
            "thp14": "stock14", "thp11": "thp14", "stock11": "thp14"})

    def test_tables_fit_the_terminal(self):
        labels = ["stock", *(f"configuration-{i}" for i in range(6))]
        results = self.result_of(
            {label: [[0.212345, 0.209, 0.25, 0.3]] * 2 for label in labels},
            ["small_object_churn", "startup"])
        whole = self.table(results, "Wall clock")
        for width in 80, 100:
            text = report.render(results, "text", width)
            tables, _ = text.rsplit("\n\n", 1)
            self.assertLessEqual(max(map(len, tables.splitlines())), width)
            # Each column is there once, a change beside its figure.
            parts = [part for part in re.split(r"(?m)^(?=\w.*\n\n)", tables)
                     if part.startswith("Wall clock")]
            self.assertGreater(len(parts), 2)
            header = []
            for number, part in enumerate(parts):
                title, _, head, _, *rows = part.splitlines()
                self.assertEqual(title, "Wall clock" + (
                    " (continued)" if number else ""))
                head, row = (re.split("  +", line) for line in (head, rows[0]))
                self.assertEqual(head[0], "Workload")
                self.assertEqual(row[0], "small_object_churn")
                header += head[1:]
            self.assertEqual(header, whole[0][1:])
        # Others are not cut: a page can scroll.
        self.assertIn(" | ".join(["configuration-4", "change"]), " | ".join(
            report.render(results, "markdown").replace("|", " ").split()))
        # What is wider than all is shown as it is.
        self.assertIn("small_object_churn", report.render(results, "text", 10))

    def test_significance(self):
        # As scipy.stats.mannwhitneyu(..., method="asymptotic") has it.
        for first, second, expected in SIGNIFICANCE:
            self.assertAlmostEqual(significance.p_value(first, second),
                                   expected, places=12)
            self.assertAlmostEqual(significance.p_value(second, first),
                                   expected, places=12)

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
             ["first", "base", "+0.0%", "~+25.0%", "~-50.0%"],
             ["second", "other", "~+100.0%", "+0.0%", "~-50.0%"],
             ["startup", "base", "+0.0%", "~+100.0%", "~+200.0%"]])
        # Those of 1/2 and 1/4, and of 2/5 and 1/2.
        self.assertEqual(
            self.table(results, "Wall clock: geometric mean of the changes "
                       "against each rival"),
            [["Rival", "huge"], ["base", "~-64.6%"], ["other", "~-55.3%"]])
        # What was not run is no rival; what is not known has no mean.
        del results["runs"][4]
        self.assertEqual(
            self.table(results, "Wall clock: change against the fastest "
                       "rival")[2],
            ["second", "base", "+0.0%", "-", "~-75.0%"])
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

    def test_peak_memory(self):
        results = fake_results(memory=[
            {"configuration": label, "workload": "first", "thp": 0,
             "rss": rss << 20, "hugetlb": hugetlb << 20}
            for label, rss, hugetlb in (("base", 10, 0), ("huge", 3, 6))])
        self.assertEqual(self.table(results, "Peak memory")[1:], [
            ["first", "10.0 MiB", "9.0 MiB", "-10.0%"],
            ["second", "not run", "not run", "-"],
            ["geometric mean", "", "", "-"]])
        results["memory_runs"] = 9
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
