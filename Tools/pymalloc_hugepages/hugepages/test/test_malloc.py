"""Tests of run --malloc."""

import json
import os
import sys
import unittest
from unittest import mock

from hugepages import ToolError, malloc

from .support import TestCase, requires_linux


class MallocTests(unittest.TestCase):
    """What is set for malloc(), in any environment, on any glibc."""

    MMAP, TRIM = "glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold"
    SET = {MMAP: "33554432", TRIM: "8388608"}
    TEXT = f"{MMAP}=33554432:{TRIM}=8388608"

    def test_nothing_is_set_already(self):
        for environment in {}, {"GLIBC_TUNABLES": ""}, {"MALLOC_ARENA_": "1"}:
            found = malloc.settings(environment, (2, 36))
            self.assertEqual(found, malloc.Settings(
                "glibc 2.36", {"GLIBC_TUNABLES": self.TEXT}, self.SET, {}))
        self.assertEqual(found.as_line(),
                         f"malloc: set GLIBC_TUNABLES={self.TEXT}")
        self.assertEqual(malloc.as_text(), self.TEXT)

    def test_others_stay(self):
        for text in ("glibc.malloc.check=3", ":glibc.malloc.check=3:",
                     self.MMAP + "_x=3", f"x.{self.TRIM}=3"):
            found = malloc.settings({"GLIBC_TUNABLES": text}, (2, 36))
            self.assertEqual(found.variables, {
                "GLIBC_TUNABLES": text.strip(":") + ":" + self.TEXT})
            self.assertEqual((found.set, found.kept), (self.SET, {}))

    def test_what_the_user_sets_wins(self):
        for text, value in (
                (f"{self.MMAP}=0", "0"),
                (f"{self.MMAP}=2:glibc.malloc.check=3:{self.MMAP}=0", "0"),
                (f"glibc.malloc.check=3:{self.MMAP}=1", "1")):
            found = malloc.settings({"GLIBC_TUNABLES": text}, (2, 36))
            after = f"{text}:{self.TRIM}=8388608"
            self.assertEqual(found, malloc.Settings(
                "glibc 2.36", {"GLIBC_TUNABLES": after},
                {self.TRIM: "8388608"}, {self.MMAP: value}))
            self.assertEqual(
                found.as_line(), f"malloc: set GLIBC_TUNABLES={after}; "
                f"you have set {self.MMAP}={value}")
        found = malloc.settings({"GLIBC_TUNABLES": self.TEXT}, (2, 36))
        self.assertEqual(found, malloc.Settings("glibc 2.36", {}, {},
                                                self.SET))
        self.assertEqual(found.as_line(), "malloc: set nothing; "
                         f"you have set {self.TEXT}")

    def test_version_that_has_it(self):
        for version in (2, 26), (2, 100), (3, 0):
            self.assertEqual(malloc.settings({}, version).set, self.SET)
        for version, name in (((2, 25), "glibc 2.25"), ((2, 4), "glibc 2.4"),
                              (None, "another C library")):
            with self.assertRaises(ToolError) as caught:
                malloc.settings({"GLIBC_TUNABLES": malloc.as_text()}, version)
            self.assertEqual(
                str(caught.exception), "run --malloc: this needs glibc 2.26 "
                f"or later, and here is {name}; leave --malloc out")
            self.assertEqual(caught.exception.status, 2)

    def test_no_glibc(self):
        for confstr in (
                mock.Mock(side_effect=ValueError("unrecognized name")),
                mock.Mock(side_effect=OSError(22, "Invalid argument")),
                mock.Mock(return_value=None), mock.Mock(return_value=""),
                mock.Mock(return_value="musl 1.2")):
            with mock.patch.object(os, "confstr", confstr, create=True):
                self.assertIsNone(malloc.glibc_version())
        with mock.patch.object(os, "confstr", None, create=True):
            del os.confstr
            self.assertIsNone(malloc.glibc_version())

    def test_version(self):
        for text, version in (("glibc 2.36", (2, 36)), ("glibc 2.9", (2, 9)),
                              ("glibc 2.36.9000", (2, 36))):
            with mock.patch.object(os, "confstr", return_value=text,
                                   create=True):
                self.assertEqual(malloc.glibc_version(), version)


@requires_linux
class RunMallocTests(TestCase):
    SHOW = 'echo "$GLIBC_TUNABLES"'

    def environment(self, **variables):
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("MALLOC_", "GLIBC_"))}
        return {**env, **variables}

    def setUp(self):
        super().setUp()
        version = malloc.glibc_version()
        if version is None or version < malloc.FIRST_VERSION:
            self.skipTest("needs glibc 2.26")

    def test_environment_of_the_command(self):
        for before, after in (
                ({}, malloc.as_text()),
                ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"},
                 "glibc.malloc.perturb=0:" + malloc.as_text())):
            out, err = self.tool("run", "--malloc", "--", "sh", "-c",
                                 self.SHOW, env=self.environment(**before))
            self.assertEqual(out, after + "\n")
            first, second = err.splitlines()
            self.assertEqual(first, "hugepages.py: malloc: set "
                             f"GLIBC_TUNABLES={after}")
            self.assertIn("no interpreter built", second)

    def test_what_the_user_sets_wins(self):
        users = "glibc.malloc.trim_threshold=0"
        out, err = self.tool(
            "run", "--malloc", "--", "sh", "-c", self.SHOW,
            env=self.environment(GLIBC_TUNABLES=users))
        after = f"{users}:glibc.malloc.mmap_threshold=33554432"
        self.assertEqual(out, after + "\n")
        self.assertEqual(err.splitlines()[0], "hugepages.py: malloc: set "
                         f"GLIBC_TUNABLES={after}; you have set {users}")

    def test_not_without_being_asked(self):
        out, err = self.tool("run", "--", "sh", "-c", self.SHOW,
                             env=self.environment(GLIBC_TUNABLES="a.b.c=1"))
        self.assertEqual(out, "a.b.c=1\n")
        self.assertNotIn("malloc: ", err)

    def test_json(self):
        libc = "glibc %d.%d" % malloc.glibc_version()
        text = malloc.as_text()
        for before, expected in (
                ({}, {"libc": libc, "variables": {"GLIBC_TUNABLES": text},
                      "set": malloc.RECIPE, "kept": {}}),
                ({"GLIBC_TUNABLES": text},
                 {"libc": libc, "variables": {}, "set": {},
                  "kept": malloc.RECIPE})):
            _, err = self.tool("run", "--malloc", "--json", "true",
                               env=self.environment(**before))
            self.assertEqual(json.loads(err)["malloc"], expected)

    def test_output_file(self):
        path = self.path("lines")
        out, err = self.tool("run", "--malloc", "--output", path, "true",
                             env=self.environment())
        self.assertEqual((out, err), ("", ""))
        with open(path) as file:
            first, second = file.read().splitlines()
        self.assertIn("malloc: set ", first)
        self.assertIn(" s", second)

    def test_nothing_is_run_without_it(self):
        marker = self.path("marker")
        for version in None, (2, 25):
            with mock.patch.object(malloc, "glibc_version",
                                   return_value=version):
                status, out, err = self.main("run", "--malloc", "touch",
                                             marker)
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Ahugepages\.py: run --malloc: [^\n]+; "
                             r"leave --malloc out\n\Z")
            self.assertFalse(os.path.exists(marker))

    # Buffers of 256 KiB to 1 MiB, one after the other.
    BUFFERS = ("for i in range(2000):\n"
               "    buffer = b'x' * (262144 + i % 4 * 262144)\n")

    def test_buffers_are_not_mapped_each_time(self):
        faults = []
        for options in [], ["--malloc"]:
            _, err = self.tool(
                "run", "--json", "--mode", "off", *options, sys.executable,
                "-c", self.BUFFERS, env=self.environment())
            faults.append(json.loads(err)["page_faults"]["minor"])
        self.assertLess(faults[1], faults[0] / 4, faults)
