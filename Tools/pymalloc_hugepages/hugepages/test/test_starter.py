"""Tests of hugepages.py itself, which starts the tool."""

import ast
import os
import shutil
import subprocess
import sys
import unittest

from .support import TOOL, TestCase


# What a Python of any age parses alike.  Not among it: strings with fields,
# annotations, what only "raise" and "print" of one of them take.
OLD_SYNTAX = """
    Module Expr Import ImportFrom alias FunctionDef arguments arg Call Name
    Attribute Constant Tuple Subscript Slice Load BinOp Mod Compare Eq Lt
    NotIn If Try ExceptHandler Raise
""".split()


class StarterTests(TestCase):
    def start(self, *command, status, pattern):
        done = subprocess.run(command, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True)
        self.assertEqual((done.returncode, done.stdout), (status, ""), done)
        self.assertRegex(done.stderr, rf"\Ahugepages\.py: {pattern}\n\Z")

    def test_old_version(self):
        program = ("import runpy, sys; sys.version_info = (3, 8, 19, 'final', "
                   "0); sys.argv = ['hugepages.py']; runpy.run_path("
                   f"{TOOL!r}, run_name='__main__')")
        self.start(sys.executable, "-c", program, status=2,
                   pattern="needs Python 3.9 or later; this is 3.8.19")

    def test_old_syntax(self):
        with open(TOOL, encoding="ascii") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            self.assertIn(type(node).__name__, OLD_SYNTAX)
            self.assertIsNone(getattr(node, "cause", None))
            self.assertIsNone(getattr(node, "annotation", None))
            self.assertFalse(getattr(node, "kwonlyargs", None))

    def test_old_interpreters(self):
        # Few machines have any: that is no reason to skip a test.
        for series in "2.7", "3.6", "3.7", "3.8":
            python = shutil.which(f"python{series}")
            # One that a version manager has and does not offer fails.
            if python is None or subprocess.call(
                    [python, "-c", ""], stderr=subprocess.DEVNULL) != 0:
                continue
            with self.subTest(series):
                self.start(python, TOOL, status=2, pattern="needs Python 3.9 "
                           rf"or later; this is {series}\.\d+")

    def test_alone(self):
        for name in "hugepages.py", "other/hugepages.py":
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            shutil.copy(TOOL, self.path(name))
            self.start(sys.executable, self.path(name), status=2,
                       pattern="needs the folder hugepages .*")

    def test_broken_package_is_not_called_absent(self):
        shutil.copy(TOOL, self.path("hugepages.py"))
        for name, text in ("__init__.py", ""), ("cli.py", "import nonsense"):
            os.makedirs(self.path("hugepages"), exist_ok=True)
            with open(os.path.join(self.path("hugepages"), name), "w") as file:
                file.write(text)
        done = subprocess.run([sys.executable, self.path("hugepages.py")],
                              stderr=subprocess.PIPE)
        self.assertIn(b"No module named 'nonsense'", done.stderr)


if __name__ == "__main__":
    unittest.main()
