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

from .support import DRIVER, ScratchDirectory, fake_results, run


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Elements without an end tag.
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Document(html.parser.HTMLParser):
    """What the tests want to know of a page."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.problems = []
        self.images = []
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
        if tag == "img":
            self.images.append(attributes)
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
        self.assertTrue(document.links)
        for link in document.links:
            self.assertTrue(link.startswith("data:"), link[:80])
        self.assertFalse(re.findall(r"@import|url\(", text))
        self.assertFalse([name for name in document.attributes
                          if name.startswith("on")])

    def test_images_say_what_they_show(self):
        for image in Document(page.render(fake_results())).images:
            self.assertIn("of each workload in percent of base", image["alt"])

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
                 "JSON.stringify([[...document.images].map("
                 "i => i.complete && i.naturalWidth > 0 && i.width > 100), "
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
