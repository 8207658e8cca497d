"""Tests of the plot."""

import operator
import os
import re
from xml.etree import ElementTree

from benchlib import BenchError, measure, perf, plot

from .support import NAMES, ScratchDirectory, fake_results


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

    def test_memory(self):
        results = fake_results(workloads=["first"], runs=[
            dict(run_, counts={"duration_time": 1})
            for run_ in fake_results()["runs"]], memory=[
            {"configuration": label, "workload": "first", "thp": 0,
             "rss": rss << 20, "hugetlb": hugetlb << 20}
            for label, rss, hugetlb in (("base", 10, 0), ("huge", 3, 3))])
        root = self.draw(results)
        self.assertIn("Peak memory", "".join(root.itertext()))
        # One figure each, without quartiles, in the second panel.
        *_, [base], [huge] = self.paths(root, "bar")
        self.assertEqual((base[0], huge[0]), (base[2], huge[2]))
        _, [line] = self.paths(root, "stock")
        self.assertEqual(base[0], line[0])
        # From 100 to 60 percent.
        zero, = (float(text.get("x")) for text in root.iter(
            "{http://www.w3.org/2000/svg}text")
            if text.text == "0" and float(text.get("y")) > 200)
        self.assertAlmostEqual((huge[0] - zero) / (line[0] - zero), 0.6,
                               delta=0.01)

    def test_what_is_not_significant_is_a_ring(self):
        results = fake_results(workloads=["first"])
        self.assertEqual(self.paths(self.draw(results), "ring"), [])
        for run_ in results["runs"]:
            # As far apart as before, but from one run to the next as well.
            run_["counts"]["duration_time"] *= 5 if run_["round"] > 3 else 1
        root = self.draw(results)
        [[ring]] = self.paths(root, "ring")
        # Around the place where the dot would be, with its bar through it.
        [_, [bar], *_] = self.paths(root, "bar")
        self.assertEqual(ring[1], bar[1])
        self.assertTrue(bar[0] < ring[0] + 3 < bar[2])
        self.assertEqual(len(self.paths(root, "dot")), 5)
        self.assertIn("rings are such as are not significant",
                      " ".join("".join(root.itertext()).split()))

    def test_chosen_events(self):
        text = "".join(self.draw(self.many_results()).itertext())
        for title in ("One turn in a loop", "Wall clock", "Peak memory",
                      "Page faults", "dTLB-load-misses"):
            self.assertIn(title, text)
        self.assertNotIn("cycles", text)
        self.assertIn("cycles", plot.render(self.many_results(), ["cycles"]))

    def test_marks(self):
        root = self.draw(fake_results(workloads=["first"]))
        # A line at 100 in each panel, and a dot for each configuration in
        # the legend and in each panel.
        [[line], [_], [_]] = self.paths(root, "stock")
        [_], [_], [base], [huge], *others = self.paths(root, "dot")
        self.assertEqual(len(others), 2)
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
        del results["runs"][:5]
        self.assertEqual(len(self.paths(self.draw(results), "dot")), 2)

    def test_fits_every_width(self):
        root = self.draw(self.many_results())
        left, top, width, height = map(float, root.get("viewBox").split())
        self.assertEqual((left, top, width), (0, 0, 400))
        self.assertIsNone(root.get("width"))
        self.assertIsNone(root.get("height"))
        # Opened by itself it must not shrink to the height of the window.
        text = plot.render(fake_results())
        self.assertIn("width: 100%; height: auto;", text)
        sizes = re.findall(r"(\d+)px", text)
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
        for rule in (r"\.plot text \{ fill: (#\w+); \}",
                     r"\.stock .*stroke: (#\w+);"):
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
