"""The comparison of CPython's tests with the wheel and without it."""

import contextlib
import io
import sys
import unittest
from unittest import mock

import compare_cpython_tests as script
from support import interpreters


class TestCompare(unittest.TestCase):

    def compare(self, without, active, units=3):
        """Compare runs with these outcomes of a test; return how many runs
        there were, and what differs and is flaky."""
        runs = iter([({script.WHOLE: "exit status 0", "test": outcome},
                      [None, units][side])
                     for both in zip(without, active)
                     for side, outcome in enumerate(both)])
        with mock.patch.object(script, "run_module", lambda *_: next(runs)):
            _, told, differing, flaky = script.compare(("a", "b"), "module",
                                                       "on")
        self.assertEqual(told, units)
        return len(without) - len(list(runs)) // 2, differing, flaky

    def test_equal(self):
        for outcome in "passed", "failed", "skipped":
            self.assertEqual(self.compare([outcome] * 3, [outcome] * 3),
                             (1, {}, {}))

    def test_differing(self):
        both = ["passed"] * 3, ["failed", "missing", "failed"]
        self.assertEqual(self.compare(*both), (3, {"test": list(both)}, {}))

    def test_flaky(self):
        both = ["passed", "failed"], ["failed", "failed"]
        self.assertEqual(self.compare(*both), (2, {}, {"test": list(both)}))

    def test_crash(self):
        """The tests are missing, and so are the units."""
        runs = iter([({script.WHOLE: "exit status 0", "test": "passed"}, None),
                     ({script.WHOLE: "exit status -11"}, None)] * 3)
        output = io.StringIO()
        with (mock.patch.object(script, "run_module", lambda *_: next(runs)),
              mock.patch.object(script, "make_environments",
                                return_value=("a", "b")),
              mock.patch.object(script, "modules_of", return_value=["module"]),
              contextlib.redirect_stdout(output)):
            self.assertEqual(
                script.compare_interpreter(sys.executable, ["module"], "on"),
                2)
        row, *differing = output.getvalue().splitlines()[3:-1]
        self.assertEqual(row.split(), ["module", "1", "1", "0", "0", "2", "0",
                                       "None"])
        self.assertEqual(differing, [
            f"  differs: {script.WHOLE}: exit status 0 exit status 0 "
            "exit status 0, with the wheel exit status -11 exit status -11 "
            "exit status -11",
            "  differs: test: passed passed passed, with the wheel missing "
            "missing missing"])

    def test_not_active(self):
        for units in None, 0:
            with self.assertRaises(script.NotActive):
                self.compare(["passed"], ["passed"], units)


class TestCommand(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        # Debian's has its tests in a package of their own.
        cls.python = next(
            (python for python in interpreters().values()
             if script.modules_of(python, ["test_bool"])), None)
        if cls.python is None:
            raise unittest.SkipTest("needs an interpreter with its tests")

    def run_main(self, *arguments):
        """Return its exit status, stdout and stderr."""
        output, errors = io.StringIO(), io.StringIO()
        with (contextlib.redirect_stdout(output),
              contextlib.redirect_stderr(errors)):
            try:
                status = script.main(arguments)
            except SystemExit as exc:
                status = exc.code
        return status, output.getvalue(), errors.getvalue()

    def test_real_module(self):
        status, output, _ = self.run_main(self.python, "--modules",
                                          "test_bool,test_no")
        self.assertEqual(status, 0, output)
        row, total = output.splitlines()[-2:]
        name, tests, passed, *_, units = row.split()
        self.assertEqual((name, tests), ("test_bool", passed))
        self.assertGreater(int(tests), 10)
        self.assertGreater(int(units), 0)
        self.assertEqual(total.split()[:3], ["all", tests, tests])

    def test_bad_input(self):
        for arguments, message in (
                (["/no/python"], "/no/python is no Python that runs"),
                (["/bin/false"], "/bin/false is no Python that runs"),
                ([self.python, "--modules", "test_no"],
                 f"{self.python} has none of these tests of CPython")):
            with self.subTest(arguments):
                status, _, errors = self.run_main(*arguments)
                self.assertEqual(status, 2)
                self.assertIn(f"error: {message}", errors)


if __name__ == "__main__":
    unittest.main()
