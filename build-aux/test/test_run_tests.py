"""What run_tests.py makes of results, and of a release without a source."""

import re
import sys
import unittest
import unittest.mock

import support

sys.path.insert(0, str(support.TOP / "build-aux"))
import run_tests


class ResultTest(unittest.TestCase):

    def test_lines_after_the_result(self):
        lines = ["Ran 7 tests in 1.5s\n", "\n", "OK (skipped=2)\n",
                 *["NOTICE: something\n"] * 9]
        tally = run_tests.Tally()
        with unittest.mock.patch.multiple(
                run_tests, run=lambda command: (0, lines),
                headline=lambda text: None):
            run_tests.run_unittest(tally, "tests", ["program"])
        self.assertEqual((tally.passed, tally.skipped), (5, 2))


class MissingReleaseTest(support.FakeTreeTestCase):

    def setUp(self):
        super().setUp()
        self.make_release("3.14.7", self.directory / "elsewhere")
        table = (self.tree / "build-aux/cpython-releases").read_text()
        checksum = re.search(r"(?m)^3\.14\.7 (\S+)", table)[1]
        self.line = (f"SKIPPED 3.14.7: no source (SHA-256 {checksum}); "
                     "give --with-cpython=FILE")

    def check(self, required, status, closing_line):
        output = self.run_command(
            sys.executable, "-c", "if True:\n"
            "    import run_tests\n"
            "    tally = run_tests.Tally()\n"
            "    [further] = run_tests.further_releases()\n"
            "    run_tests.run_release(tally, *further, None)\n"
            "    raise SystemExit(run_tests.show_result(tally))\n",
            status=status, PYTHONPATH=str(self.tree / "build-aux"),
            CPYTHON_REQUIRED=required)
        lines = output.splitlines()
        self.assertEqual(lines[-2:], ["further releases: 3.14.7 not tested",
                                      closing_line])
        self.assertIn(f"FAILED: {self.line}" if status else self.line, lines)

    def test_skipped(self):
        for required in "", "3.14 3.14.70 13.14.7":
            with self.subTest(required):
                self.check(required, 0, "0 passed, 0 failed, 1 skipped")

    def test_required(self):
        for required in "3.14.7", "3.14.8 3.14.7", "all":
            with self.subTest(required):
                self.check(required, 1, "0 passed, 1 failed, 0 skipped")


if __name__ == "__main__":
    unittest.main()
