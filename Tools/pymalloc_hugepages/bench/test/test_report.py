"""Tests of the tables, and of files of results."""

import json
from unittest import mock

from benchlib import BenchError, files, measure, page, plot, profile, report
from hugepages import malloc

from .support import ScratchDirectory, fake_results


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
