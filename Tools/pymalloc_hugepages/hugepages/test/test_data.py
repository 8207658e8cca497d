"""Tests of the data that the tool prints: JSON against its schema, metrics
with Prometheus' own parsers.

Both come from PyPI (jsonschema, prometheus_client), if they are not there, in
a virtual environment that is gone after the tests.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from hugepages import cli, reserve, run, system_status, windows

from .support import (
    MIB, PACKAGE, WITH_WHEEL, call, outcome, requires_linux, statistics_line)
from .test_service import ServiceTestCase, shared
from .test_system import RECORDED, lay_out


with open(PACKAGE / "hugepages.schema.json") as file:
    SCHEMA = json.load(file)
PACKAGES = "jsonschema", "prometheus_client"


def setUpModule():
    try:
        for name in PACKAGES:
            importlib.import_module(name)
        return
    except ImportError:
        pass
    directory = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(directory.cleanup)
    python = os.path.join(directory.name, "bin", "python")
    subprocess.run([sys.executable, "-m", "venv", directory.name], check=True)
    try:
        subprocess.run([python, "-m", "pip", "install", "--quiet",
                        "--disable-pip-version-check", "--only-binary=:all:",
                        *PACKAGES], check=True)
    except subprocess.CalledProcessError:
        if os.geteuid() == 0:
            raise
        raise unittest.SkipTest("pip cannot get packages (see its error "
                                "above)") from None
    path = subprocess.check_output(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        text=True).strip()
    sys.path.append(path)
    unittest.addModuleCleanup(sys.path.remove, path)
    importlib.invalidate_caches()


def properties(schema):
    """Pairs (name, schema) of all items, how deep ever."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from properties(each)


class SchemaTests(ServiceTestCase):
    def check(self, text, kind):
        """text must be JSON of that kind."""
        jsonschema = importlib.import_module("jsonschema")
        data = json.loads(text)
        self.assertEqual((data["version"], data["kind"]), (1, kind))
        jsonschema.validate(data, SCHEMA)
        return data

    def test_schema(self):
        jsonschema = importlib.import_module("jsonschema")
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def test_each_item_is_documented(self):
        manual = (PACKAGE / "pymalloc-hugepages.1").read_text()
        section = re.search(r"\.SH JSON\n(.*?)\.SH ", manual, re.S)[1]
        named = set(re.findall(r"\w+", section))
        # Of these the schema alone tells.
        elsewhere = set()
        for name in "linux", "windows", "pool", "limit", "ran", "peak":
            elsewhere.update(dict(properties(SCHEMA["$defs"][name])))
        elsewhere.update(dict(properties(
            list(SCHEMA["$defs"]["reserve"]["properties"].values()))))
        elsewhere.update(dict(properties(SCHEMA["$defs"]["reserved"])))
        elsewhere -= set(SCHEMA["$defs"]["ran"]["properties"])
        for name, each in properties(SCHEMA):
            with self.subTest(name):
                if set(each) != {"const"}:
                    self.assertIn("description", each)
                if name not in elsewhere:
                    self.assertIn(name, named)

    def test_nothing_else_is_allowed(self):
        jsonschema = importlib.import_module("jsonschema")
        self.add_service()
        data = self.json("gunicorn")
        jsonschema.validate(data, SCHEMA)
        for change in (lambda data: data.update(more=1),
                       lambda data: data.update(version=2),
                       lambda data: data.update(kind="run"),
                       lambda data: data.pop("notes"),
                       lambda data: data["processes"][3].update(more=1),
                       lambda data: data["processes"][3].pop("memory"),
                       lambda data: data["total"]["memory"].update(rss=1)):
            changed = json.loads(json.dumps(data))
            change(changed)
            with self.assertRaises(jsonschema.ValidationError):
                jsonschema.validate(changed, SCHEMA)

    def test_system(self):
        for path in RECORDED.glob("*.txt"):
            with self.subTest(path.stem):
                root = self.path(path.stem)
                lay_out(path.stem, root)
                options = cli.parse_arguments(["status", "--json"])
                _, out, _ = call(lambda _: system_status.main(options, root))
                self.check(out, "system")

    def test_windows(self):
        found = windows.Windows(2 * MIB, True, False, "10.0.19045")
        options = cli.parse_arguments(["status", "--json"])
        with mock.patch.object(windows, "scan", return_value=found), \
                mock.patch.object(sys, "platform", "win32"):
            _, out, _ = call(lambda _: system_status.main(options))
        self.check(out, "system")

    @requires_linux
    def test_this_system(self):
        status, out, _ = self.main("status", "--json")
        self.assertIn(status, (0, 1))
        self.assertIn(self.check(out, "system")["system"]["thp_tried"],
                      (True, False))

    def test_service(self):
        self.add_service(environ="PYTHON_PYMALLOC_HUGEPAGES=thp\0",
                         status="THP_enabled: 1\n")
        self.tree.add_process(200, "sh", ["sh"], parent=104, exe=b"sh")
        self.tree.add_process(201, "sh", ["sh"], parent=104, exe=b"",
                              maps="7f-8f r--p 0 08:01 2  /libpython3.so\n")
        self.tree.add_process(203, parent=104, **WITH_WHEEL, smaps="")
        self.tree.add_process(202, "kthread", [], parent=104, flags=0x200040)
        out, _ = self.status("gunicorn", "--json", status=2)
        data = self.check(out, "service")
        self.assertEqual({each["feature"] for each in data["processes"]},
                         {"option", "wheel", None})
        self.assertEqual(data["total"]["interpreters"], 10)
        self.assertEqual(data["total"]["processes"], 13)
        self.assertEqual(data["total"]["unreadable"], 1)

    @requires_linux
    def test_this_process(self):
        _, out, _ = self.main("status", "--format", "json", str(os.getpid()))
        [shown] = self.check(out, "service")["processes"]
        self.assertEqual(shown["pid"], os.getpid())
        self.assertGreaterEqual(shown["memory"]["rss"],
                                shown["memory"]["uss"])

    def test_run(self):
        lines = statistics_line(5, 1, 2, 3)
        for each in (outcome(), outcome(lines),
                     outcome(lines, [run.Seen(6, True, 4, 1, 2)])):
            self.check(json.dumps({"version": 1, "kind": "run",
                                   **run.as_dict(each)}), "run")

    @requires_linux
    def test_run_for_real(self):
        _, err = self.tool("run", "--json", "--malloc", sys.executable, "-c",
                           "pass")
        self.check(err, "run")

    def test_reserve(self):
        self.tree.add_pool()
        options = cli.parse_arguments(["reserve", "5", "--json", "--dry-run",
                                       "--persist"])
        _, out, _ = call(lambda _: reserve.main(options, self.root))
        found = self.check(out, "reserve")
        found["for"] = {"needed": 5, "margin": 2, "user": "alice",
                        **run.as_dict(outcome(statistics_line(5, 1, 2, 3)))}
        self.check(json.dumps(found), "reserve")
        options = cli.parse_arguments(["reserve", "--forget", "--json"])
        _, out, _ = call(lambda _: reserve.main(options, self.root))
        self.check(out, "forget")


class MetricsTests(ServiceTestCase):
    def parse(self, text):
        """{(name, labels ...): value} as Prometheus reads it, in both of its
        formats."""
        both = []
        for name in ("prometheus_client.openmetrics.parser",
                     "prometheus_client.parser"):
            parser = importlib.import_module(name)
            families = list(parser.text_string_to_metric_families(text))
            for family in families:
                self.assertEqual(family.type, "gauge")
                self.assertTrue(family.documentation)
            both.append({(sample.name, *sample.labels.values()): sample.value
                         for family in families for sample in family.samples})
        self.assertEqual(*both)
        return both[0]

    def test_service(self):
        self.add_service(smaps=shared(9, written=1))
        self.tree.add_process(200, "sh", ["sh"], parent=104, exe=b"sh")
        found = self.parse(self.status("gunicorn", "--format",
                                       "openmetrics")[0])
        total = self.json("gunicorn")["total"]
        name = "pymalloc_hugepages_"
        for metric, key, expected in (
                ("processes", "interpreter", 9), ("processes", "other", 1),
                ("processes", "unreadable", 0),
                ("arena_bytes", "thp", total["thp"]["size"]),
                ("arena_huge_bytes", "thp", total["thp"]["on_huge_pages"]),
                ("arena_bytes", "hugetlb", 0),
                ("memory_bytes", "pss", total["memory"]["pss"]),
                ("memory_bytes", "uss", total["memory"]["uss"])):
            self.assertEqual(found[name + metric, "gunicorn", key], expected)

    def test_names(self):
        # Whatever a service is called.
        name = 'a "b"\n\\n c\\'
        self.tree.add_process(5, name, [name])
        found = self.parse(self.status(name, "--format", "openmetrics")[0])
        self.assertIn(("pymalloc_hugepages_processes", name, "other"), found)

    def test_system(self):
        for path in RECORDED.glob("*.txt"):
            with self.subTest(path.stem):
                root = self.path(path.stem)
                lay_out(path.stem, root)
                options = cli.parse_arguments(["status", "--format",
                                               "openmetrics"])
                status, out, _ = call(
                    lambda _: system_status.main(options, root))
                found = self.parse(out)
                works = [found["pymalloc_hugepages_tier_works", tier]
                         for tier in ("hugetlb", "thp")]
                self.assertEqual(status, 0 if any(works) else 1)
                self.assertEqual(
                    ("pymalloc_hugepages_pool_pages", "free") in found,
                    path.stem != "no-hugetlb")
