"""Tests of the report as a page: bench_driver.py --html."""

import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from benchlib import BenchError, page, plot, report

from .support import DRIVER, NAMES, ScratchDirectory, fake_results, run


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Elements without an end tag.
VOID = {"meta", "wbr", "br", "link", "input", "hr"}


class Document(html.parser.HTMLParser):
    """What the tests want to know of a page."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.problems = []
        self.images = []        # what each picture says of itself
        self.order = []         # of what a reader meets
        self.tables = []
        self.headings = []
        self.links = []
        self.attributes = []
        self.json = ""
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("table", "svg", "ul"):
            self.order.append(tag)
        if tag == "svg":
            self.images.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.links += [attributes[name] for name in ("src", "href")
                       if name in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> out of place")

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.json += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open[-2:] == ["svg", "title"]:
            self.images[-1] += data
        elif self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


class PageTest(ScratchDirectory):

    def test_contents(self):
        results = fake_results()
        document = Document(page.render(results))
        self.assertEqual(document.problems, [])
        tables = report.tables(results)
        self.assertEqual(document.tables,
                         [[table.header, *table.rows] for table in tables])
        for table in tables:
            self.assertIn(table.title, document.headings)
        self.assertEqual(len(document.images),
                         len(plot.shown_events(results)))
        self.assertEqual(json.loads(document.json), results)

    def test_stands_alone(self):
        text = page.render(fake_results())
        document = Document(text)
        self.assertEqual(document.links, [])
        self.assertFalse(re.findall(r"@import|url\(", text))
        self.assertFalse([name for name in document.attributes
                          if name.startswith("on")])

    def test_images_say_what_they_show(self):
        images = Document(page.render(fake_results())).images
        for event, text in zip(plot.shown_events(fake_results()), images):
            self.assertEqual(text, f"{report.title(event)} of each workload "
                             "in percent of base: base, huge")

    def test_order(self):
        # The result, what is wrong with it, plots, figures, and then how they
        # came about.
        results = fake_results(problems=["huge: trouble"])
        text = page.render(results)
        self.assertEqual(Document(text).order,
                         ["table"] + ["svg"] * len(plot.shown_events(results))
                         + ["table"] * (len(report.tables(results)) - 1)
                         + ["ul"])
        self.assertEqual(text.count("Problem: huge: trouble"), 1)
        self.assertLess(text.index("huge: trouble"), text.index("<svg"))
        self.assertGreater(text.index("A CPU"), text.rindex("</table>"))

    def test_uncounted_events(self):
        # They are named, and have neither a table nor a picture.
        text = page.render(fake_results())
        self.assertTrue(re.search("Not counted on this machine: .*cycles",
                                  text))
        self.assertNotIn("cycles", " ".join(Document(text).headings))

    def test_strange_text(self):
        evil = "</script><script>alert('&\"')</script><!--"
        results = fake_results(problems=[evil])
        results["configurations"][1]["configure_args"] = evil
        document = Document(page.render(results))
        self.assertEqual(document.problems, [])
        self.assertEqual(json.loads(document.json), results)

    def test_changes(self):
        text = page.render(fake_results())
        self.assertTrue(re.search(r'<td class="less">-\d', text))
        slower = fake_results()
        slower["configurations"].reverse()
        self.assertTrue(re.search(r'<td class="more">\+\d',
                                  page.render(slower)))
        for run_ in slower["runs"]:
            run_["counts"]["duration_time"] *= 9 if run_["round"] > 3 else 1
        text = page.render(slower)
        self.assertTrue(re.search(r'<td class="chance">~\+\d', text))
        for cell, kind in (("+0.1%", "more"), ("-0.1%", "less"), ("-", ""),
                           ("+0.0%", ""), ("-0.0%", ""), ("~-0.1%", "chance"),
                           ("-3.1% (first)", "less"), ("first", ""),
                           ("+1234.5%", "more")):
            self.assertEqual(page._kind(cell), kind, cell)

    def test_write(self):
        path = self.path("page.html")
        page.write(fake_results(), path)
        self.assertEqual(os.listdir(self.directory), ["page.html"])
        with self.assertRaisesRegex(BenchError, "there is no result"):
            page.write(fake_results(runs=[]), path)
        self.assertEqual(os.listdir(self.directory), ["page.html"])
        with self.assertRaisesRegex(BenchError, "no page: "):
            page.write(fake_results(), self.path("none/page.html"))

    def test_driver(self):
        results = self.directory / "results.json"
        results.write_text(json.dumps(fake_results()))
        path = self.directory / "page.html"
        done = run(DRIVER, "--report", results, "--html", path)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(Document(path.read_text()).json),
                         fake_results())
        done = run(DRIVER, "--report", results, "--html",
                   self.path("none/page.html"))
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


class BrowserTest(unittest.TestCase):
    """What a real browser makes of the page."""

    def setUp(self):
        self.browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if self.browser is None:
            self.skipTest("needs one of: " + ", ".join(BROWSERS))
        directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True) \
            if sys.version_info >= (3, 10) else tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def open_page(self, text, *options):
        """Load it in the browser; return what the browser printed."""
        path = self.directory / "page.html"
        path.write_text(text)
        done = subprocess.run(
            [self.browser, "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--no-first-run",
             f"--user-data-dir={self.directory / 'profile'}",
             "--enable-logging=stderr",
             # Nothing can be reached: whatever is asked for fails.
             "--host-resolver-rules=MAP * ~NOTFOUND",
             *options, path.as_uri()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def test_document(self):
        results = fake_results()
        text = page.render(results)
        # Added here alone: it writes into the page what has become of it.
        probe = ("<script>addEventListener('load', () => { document.title = "
                 "JSON.stringify([[...document.querySelectorAll('svg')].map("
                 "i => i.clientWidth > 300 && i.clientHeight > 100), "
                 "JSON.parse(document.getElementById('results').textContent)"
                 ".seed, document.querySelectorAll('tbody tr').length, "
                 "performance.getEntriesByType('resource').filter("
                 "e => !e.name.startsWith('data:')).length]); });</script>")
        text = text.replace("default-src 'none'",
                            "default-src 'none'; script-src 'unsafe-inline'")
        done = self.open_page(text.replace("</head>", probe + "</head>"),
                              "--dump-dom", "--virtual-time-budget=5000")
        title = re.search("<title>(.*?)</title>", done.stdout)[1]
        images, seed, rows, fetched = json.loads(title)
        self.assertEqual(images, [True] * len(plot.shown_events(results)))
        self.assertEqual(seed, results["seed"])
        self.assertEqual(rows, sum(len(table.rows)
                                   for table in report.tables(results)))
        self.assertEqual(fetched, 0)

    def look(self, script, width, *options):
        """What the script finds in `page`, the page's document, in a window of
        that width."""
        results = fake_results(workloads=[*NAMES, "startup"])
        runs = [dict(run_, workload=name) for run_ in results["runs"]
                for name in results["workloads"]]
        results["runs"] = list(runs)
        for label in "thp", "hugetlb":
            results["configurations"].append(
                dict(results["configurations"][1], label=label))
            results["runs"] += [dict(run_, configuration=label)
                                for run_ in runs
                                if run_["configuration"] == "huge"]
        done = self.open_page(
            f"<iframe width={width} height=900 frameborder=0 "
            f'srcdoc="{html.escape(page.render(results))}"></iframe>'
            "<script>addEventListener('load', () => {"
            "const page = frames[0].document;"
            "const style = e => frames[0].getComputedStyle(e);"
            f"document.title = JSON.stringify({script}); }});</script>",
            "--dump-dom", "--virtual-time-budget=5000", *options)
        return json.loads(html.unescape(
            re.search("<title>(.*?)</title>", done.stdout)[1]))

    def test_phone(self):
        # Nothing needs a scroll to the right, and all changes can be seen.  No
        # letter is smaller than 11 pixels.
        width, needed, tables, letters = self.look("""[
            frames[0].innerWidth, page.documentElement.scrollWidth,
            [...page.querySelectorAll('table')].map(table => [
                table.getBoundingClientRect().right, [...table.rows[0].cells]
                .filter(cell => style(cell).display != 'none')
                .map(cell => cell.dataset.of || cell.innerText)]),
            Math.min(...[...page.querySelectorAll('svg text')].map(
                text => 12 * text.getScreenCTM().a))]""", 400)
        self.assertEqual(width, 400)
        self.assertLessEqual(needed, width)
        self.assertEqual(tables[0][1], ["Against base", "huge", "thp",
                                        "hugetlb"])
        self.assertEqual(tables[1][1], ["Workload", "base", "huge", "thp",
                                        "hugetlb"])
        for right, _ in tables:
            self.assertLessEqual(right, 400)
        self.assertGreaterEqual(letters, 11)

    def test_dark(self):
        # The plots have no ground of their own, and ink that can be read.
        script = """[['svg', 'backgroundColor'], ['svg text', 'fill'],
                     ['svg .stock', 'stroke']].map(([selector, name]) => [
            ...new Set([...page.querySelectorAll(selector)].map(
                e => style(e)[name]))])"""
        for scheme, ink in (0, "rgb(221, 221, 221)"), (1, "rgb(34, 34, 34)"):
            grounds, texts, lines = self.look(
                script, 900, f"--blink-settings=preferredColorScheme={scheme}")
            self.assertEqual(grounds, ["rgba(0, 0, 0, 0)"])
            self.assertEqual((texts, lines), ([ink], [ink]))

    def test_console(self):
        # Problems of the page are messages on the console.
        done = self.open_page(page.render(fake_results()), "--dump-dom")
        self.assertNotIn("CONSOLE", done.stderr)
        broken = page.render(fake_results()).replace(
            "<main>", "<main><script>console.error('seen')</script>")
        self.assertIn("CONSOLE", self.open_page(broken, "--dump-dom").stderr)

    def test_picture(self):
        picture = self.directory / "page.png"
        self.open_page(page.render(fake_results()), "--window-size=400,900",
                       f"--screenshot={picture}")
        self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
        self.assertGreater(picture.stat().st_size, 10_000)
