#!/usr/bin/env python3
"""Run CPython's own tests with the wheel and without it, and compare.

    python3 wheel/test/compare_cpython_tests.py PYTHON...

Each of these stock interpreters gets two virtual environments, and the one
that has the wheel must say that arenas are on huge pages.  Each module of
tests runs in a process of its own in both; the one with the wheel must write
the figures of its arenas when it ends.  Where a test has another outcome with
the wheel, the module runs again in both, three times at most.  A test is flaky
if one of its outcomes then is the same in both, and differs if none is.

Exit status 0 if no test differs, 1 if one does or the wheel was not active, 2
if nothing can be tested.
"""

import argparse
import collections
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import support

# Memory, forks, threads and interpreters.  No release has all of them.
MODULES = """
    test_gc test_sys test_capi test_tracemalloc test_fork1 test_threading
    test_pickle test_interpreters test__interpreters test__xxsubinterpreters
""".split()
MOST_RUNS = 3
TIMEOUT_SECONDS = 600
# How many of the tests that differ are named.
MOST_NAMED = 20
# Beside its tests, each run has an outcome of its own.
WHOLE = "(the run as a whole)"
COLUMNS = ("tests", "passed", "skipped", "failed", "differ", "flaky", "units")


class NotActive(Exception):
    """A process that should have had huge pages had none."""


def modules_of(python, wanted):
    """The modules that an interpreter has."""
    code = """if True:
        import importlib.util as util, sys
        print(*(name for name in sys.argv[1:]
                if util.find_spec("test") and util.find_spec("test." + name)))
        """
    return support.check_call(python, "-I", "-c", code, *wanted).split()


def why_not(python, wanted):
    """Return why an interpreter cannot be tested, or None."""
    try:
        its = support.facts(python)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return "is no Python that runs"
    if tuple(its["version"]) < (3, 10) or its["option"]:
        return "is no stock CPython of 3.10 or later"
    if not modules_of(python, wanted):
        return ("has none of these tests of CPython (in Debian they are in "
                "the package libpython3.x-testsuite)")
    return None


def make_environments(python):
    """The pythons of an environment without the wheel, and of one with it."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=support.scratch()))
    bare = support.make_bare_environment(python, folder / "bare")
    inside = support.make_environment(python, folder / "wheel")
    try:
        support.check_call(inside, "-m", "pymalloc_hugepages")
    except AssertionError as error:
        raise NotActive(str(error)) from None
    return bare, inside


def outcome_of(case):
    """What the XML says of a test."""
    kinds = {each.tag for each in case}
    if kinds & {"failure", "error", "outcome"}:     # an unexpected success
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def run_module(python, module, switch):
    """Return a dict of the outcomes, and how many units of arenas the process
    had at most: None if it has not told."""
    with tempfile.TemporaryDirectory(dir=support.scratch()) as folder:
        junit, stats = (pathlib.Path(folder, name) for name in ("xml", "json"))
        process = subprocess.Popen(
            [python, "-m", "test", "--junit-xml", str(junit), "--tempdir",
             folder, "--timeout", str(TIMEOUT_SECONDS), "--randseed", "1",
             "--fail-env-changed", module],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=support.environment(PYTHON_PYMALLOC_HUGEPAGES=switch,
                                    PYTHON_PYMALLOC_HUGEPAGES_STATS=str(stats))
        )
        outcomes = {WHOLE: f"exit status {process.wait()}"}
        if junit.exists():
            for case in xml.etree.ElementTree.parse(junit).iter("testcase"):
                # One whose subtests fail has no name.
                name = case.get("name", f"a test of {module} with subtests")
                outcomes[name] = outcome_of(case)
        units = None
        for line in stats.read_text().splitlines() if stats.exists() else ():
            told = json.loads(line)
            if told["pid"] == process.pid:
                units = sum(told[kind]["peak"]
                            for kind in ("hugetlb", "thp", "plain"))
        return outcomes, units


def compare(pair, module, switch):
    """Run a module in both environments, and again if need be.

    Return the outcomes of the last run without the wheel, the units of that
    with it, and dicts of the tests that differ and that are flaky: for both
    environments the outcomes of all runs.
    """
    runs = []
    while True:
        (without, _), (active, units) = (
            run_module(python, module, switch) for python in pair)
        if not units and "status -" not in active[WHOLE]:
            raise NotActive(f"{module} has run without huge pages")
        runs.append((without, active))
        differing, flaky = {}, {}
        for name in set().union(*(each for run in runs for each in run)):
            both = [[run[side].get(name, "missing") for run in runs]
                    for side in (0, 1)]
            if not set(both[0]) & set(both[1]):
                differing[name] = both
            elif both[0] != both[1]:
                flaky[name] = both
        if not differing or len(runs) == MOST_RUNS:
            return without, units, differing, flaky


def show_row(name, *cells):
    print(f"{name:24}", *(f"{cell!s:>7}" for cell in cells), flush=True)


def show_tests(title, tests):
    for name, both in sorted(tests.items())[:MOST_NAMED]:
        print(f"  {title}: {name}: ", ", with the wheel ".join(
            " ".join(outcomes) for outcomes in both), sep="")
    if len(tests) > MOST_NAMED:
        print(f"  {title}: {len(tests) - MOST_NAMED} more")


def compare_interpreter(python, wanted, switch):
    """Compare in an interpreter and print a table; return how many tests
    differ."""
    version = ".".join(map(str, support.facts(python)["version"]))
    print(f"\nCPython {version}, {python}")
    show_row("", *COLUMNS)
    pair = make_environments(python)
    total = collections.Counter()
    for module in modules_of(python, wanted):
        outcomes, units, differing, flaky = compare(pair, module, switch)
        row = collections.Counter(outcomes.values())
        row.update(tests=len(outcomes) - 1, differ=len(differing),
                   flaky=len(flaky))
        show_row(module, *(row[name] for name in COLUMNS[:-1]), units)
        show_tests("differs", differing)
        show_tests("flaky", flaky)
        total.update(row)
    show_row("all", *(total[name] for name in COLUMNS[:-1]))
    return total["differ"]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--modules", metavar="NAME,...", default=MODULES,
                        type=lambda text: text.split(","),
                        help="default: " + ",".join(MODULES))
    parser.add_argument("--switch", default="on",
                        choices=["on", "thp", "hugetlb"],
                        help="PYTHON_PYMALLOC_HUGEPAGES (default: on)")
    options = parser.parse_args(arguments)
    for python in options.pythons:
        why = why_not(python, options.modules)
        if why is not None:
            parser.error(f"{python} {why}")
    # A job in the background ignores it, and the tests would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        differing = sum([
            compare_interpreter(python, options.modules, options.switch)
            for python in options.pythons])
    except NotActive as error:
        sys.exit(f"compare_cpython_tests.py: {error}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
