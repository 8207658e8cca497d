#!/usr/bin/env python3
"""Run the tests of this tree and of the CPython that it builds.

A test of CPython that fails is run in the unpatched build, too.  What fails
there as well, because of the machine or because it is CPython's own fault, is
reported, and is not a failure of the patch set.  Nothing is given a second try
in the patched build: a fault that shows now and then is one.

The pinned release is tested in full, and then the other releases of
build-aux/cpython-releases, if get-cpython.sh finds their source.  Others are
skipped; if the name of one, or "all", is among the words of CPYTHON_REQUIRED,
that is a failure.

The last line is "N passed, N failed, N skipped", where tests of this tree are
counted one by one and CPython's by the file.
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

BUILD_AUX = pathlib.Path(__file__).resolve().parent
TOP = BUILD_AUX.parent
START = time.monotonic()

# CPython's tests of what the patch set touches: memory, start-up and its
# configuration, and whatever forks or makes threads and interpreters.
MODULES = """
    test_capi test_embed test_sys test_os test_gc test_threading
    test_subprocess test_interpreters test_multiprocessing_fork
    test_tracemalloc test_cmd_line test_sysconfig
""".split()
# Our own, which are a package: all of its parts.
OWN_PACKAGE = "test.test_capi.test_pymalloc_hugepages"
OWN_MODULES = sorted(
    f"{OWN_PACKAGE}.{path.stem}"
    for path in TOP.glob(f"Lib/{OWN_PACKAGE.replace('.', '/')}/test_*.py"))

# Those that are run on the further releases, too: the allocator, start-up and
# its configuration, and whatever else a hunk of the patch set is in.
RELEASE_MODULES = ["test_capi", "test_embed", "test_gc", "test_sys"]

# Resources of the whole suite: all but what needs the Internet, a display or
# a sound card, or gigabytes.
ALL_RESOURCES = "all,-audio,-gui,-largefile,-network,-urlfetch"

# Enough for the arenas of one test process for each processor, and of some of
# the children that it forks.
POOL_PAGES = 256

# Enough for each of the wheel's tests.
WHEEL_POOL_PAGES = 100

# Of the stress test, which "stress_fork.py --forks 1000" runs at length.
STRESS_FORKS = 150

# Of one test file.  The slowest takes about two minutes on an idle machine.
TIMEOUT_SECONDS = 1200

# How much of a failed program's output the result shows once more.
EXCERPT_LINES = 15


class Tally:
    """Counts, and for each failure what failed and why: lines of its output.

    releases says of each further release whether it was tested.
    """

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []
        self.releases = []

    def add(self, passed, failed, skipped):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped

    def explain(self, what, why=()):
        """A failure that is counted already."""
        self.failures.append((what, [line.rstrip() for line in why]))

    def fail(self, what, why=()):
        self.failed += 1
        self.explain(what, why)


def headline(text):
    minutes, seconds = divmod(int(time.monotonic() - START), 60)
    print(f"\n===== {minutes}:{seconds:02d} {text}", flush=True)


def notice(text):
    print(f"NOTICE: {text}", flush=True)


def run(command, **kwargs):
    """Run command, show its output, and return its status and its output."""
    print("+", *command, flush=True)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=TOP,
                          stderr=subprocess.STDOUT, encoding="utf-8",
                          errors="replace", **kwargs) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                sys.stdout.write(line)
                sys.stdout.flush()
        except KeyboardInterrupt:
            # The command was interrupted, too, and may have a pool to restore.
            process.wait()
            raise
    return process.returncode, lines


def run_unittest(tally, name, command, **kwargs):
    """Run a unittest program and count its tests."""
    headline(name)
    status, lines = run(command, **kwargs)
    counts = {"failures": 0, "errors": 0, "skipped": 0,
              "unexpected successes": 0}
    total = None
    # What tests say on standard output may come after unittest's last line.
    for line in lines[-50:]:
        if match := re.match(r"Ran (\d+) tests? in ", line):
            total = int(match[1])
        elif match := re.match(r"(?:OK|FAILED) \((.*)\)$", line):
            for part in match[1].split(", "):
                key, _, number = part.partition("=")
                counts[key] = int(number)
    if total is None:
        tally.fail(f"{name}: no result, exit status {status}",
                   lines[-EXCERPT_LINES:])
        return
    skipped = counts["skipped"]
    failed = (counts["failures"] + counts["errors"]
              + counts["unexpected successes"])
    if failed or status:
        why = [line for line in lines
               if re.match(r"(FAIL|ERROR): |\w[\w.]*(Error|Exception)\b",
                           line)]
        tally.explain(f"{name}: {failed} of {total} tests",
                      why[-EXCERPT_LINES:])
        failed = max(failed, 1)
    tally.add(max(total - failed - skipped, 0), failed, skipped)
    if skipped and os.geteuid() == 0:
        # Root can set up all that they need.
        tally.fail(
            f"{name}: {skipped} tests were skipped although run by root")


def run_counted(tally, name, command):
    """Run a program that prints a line for each of its parts, and count.

    The lines are "PART: N passed, N failed, N skipped" or, of a part that
    cannot be run here, "PART: skipped: REASON".
    """
    headline(name)
    status, lines = run(command)
    failed = 0
    for line in lines:
        line = line.strip()
        if match := re.fullmatch(
                r".+: (\d+) passed, (\d+) failed, (\d+) skipped", line):
            counts = list(map(int, match.groups()))
            tally.add(*counts)
            failed += counts[1]
        elif re.fullmatch(r"kernel \S+: skipped: .*", line):
            notice(line)
            tally.skipped += 1
    if failed:
        tally.explain(f"{name}: {failed} tests", lines[-EXCERPT_LINES:])
    elif status:
        tally.fail(f"{name}: exit status {status}", lines[-EXCERPT_LINES:])


def c_test_steps(tally, hugepages):
    """The tests and the analysis of the C code by itself."""
    source = (hugepages / "configured-as").read_text().partition("\n")[0]
    output = TOP / "build" / "ctests"
    scripts = BUILD_AUX / "test"
    return [
        lambda: run_counted(tally, "analysis of Objects/hugepages",
                            [str(scripts / "analyze.sh"), source]),
        lambda: run_counted(tally, "C tests of Objects/hugepages",
                            [str(scripts / "ctests.sh"), source, str(output)]),
        lambda: run_counted(tally,
                            "C tests of Objects/hugepages on other kernels",
                            [str(scripts / "kernels.sh"), source,
                             str(output / "kernels")]),
    ]


def run_stress(tally, hugepages):
    """Forks with a pool of any fullness while threads work; see its --help."""
    name = "stress test of forks"
    headline(name)
    if os.geteuid() != 0:
        notice(f"{name}: skipped: only root may change the pool")
        tally.skipped += 1
        return
    status, lines = run([str(hugepages / "python"),
                         str(TOP / "Tools" / "pymalloc_hugepages"
                             / "stress" / "stress_fork.py"),
                         "--forks", str(STRESS_FORKS)])
    if status == 0 and lines:
        tally.passed += 1
    else:
        tally.fail(f"{name}: exit status {status}", lines[-EXCERPT_LINES:])


class SuiteResult:
    """What one run of python -m test said.

    modules  for each of "failed", "skipped", "passed" the set of test files
    cases    the names of the single tests that failed
    """

    def __init__(self, lines, junit_file):
        self.modules = {"failed": set(), "skipped": set(), "passed": set()}
        self.cases = set()
        kind = None
        for line in lines:
            if match := re.match(r"\d+ tests? (.*):$", line):
                kind = match[1]
            elif kind is not None and line.startswith("    "):
                if kind.startswith(("failed", "altered")):
                    self.modules["failed"].update(line.split())
                elif kind.startswith("skipped"):
                    self.modules["skipped"].update(line.split())
            else:
                kind = None
            # How it shows a file that is done: "0:00:04 load avg: 2.79 [ 1/15]
            # test_embed passed"
            if match := re.match(
                    r"\d+:\d\d:\d\d .*\[ *[\d/]+\] (\S+) passed\b", line):
                self.modules["passed"].add(match[1])
        self.modules["passed"] -= self.modules["failed"]
        try:
            tree = xml.etree.ElementTree.parse(junit_file)
        except (OSError, xml.etree.ElementTree.ParseError):
            return
        for case in tree.iter("testcase"):
            if any(case.find(what) is not None
                   for what in ("failure", "error")):
                self.cases.add(case.get("name"))

    def failures_of(self, module):
        """The failed tests of a file, or itself if it failed without any."""
        package = module if module.startswith("test.") else f"test.{module}"
        cases = {case for case in self.cases if f"{package}." in f"{case}."}
        if not cases and module in self.modules["failed"]:
            return {f"{module} as a whole "
                    "(a crash, a hang, a changed environment)"}
        return cases


def jobs():
    """As many as there are processors."""
    return len(os.sched_getaffinity(0))


def run_suite(tree, arguments, pool, own=False):
    """Run python -m test of a build tree, with a pool of this many huge pages.

    A pool of None is the one that the system happens to have.  Our own modules
    are left out, unless own says that the arguments are some of them.  These
    set the pool up as they need it: one at a time.
    """
    ignored = [] if own else [f"--ignore={OWN_PACKAGE}.*"]
    with tempfile.TemporaryDirectory() as directory:
        junit_file = os.path.join(directory, "junit.xml")
        command = [str(tree / "python"), "-m", "test",
                   f"-j{1 if own else jobs()}",
                   f"--timeout={TIMEOUT_SECONDS}", f"--junit-xml={junit_file}",
                   *ignored, *arguments]
        if pool is not None:
            command = [str(BUILD_AUX / "with-pool.sh"), str(pool), *command]
        status, lines = run(command)
        result = SuiteResult(lines, junit_file)
    if not any(result.modules.values()):
        raise RuntimeError(
            f"python -m test gave no result, exit status {status}")
    return result


def count_suite(tally, name, patched, run_unpatched):
    """Count the results of the patched build.

    run_unpatched(modules) gives those of the unpatched one; None: there are
    none, and what fails, fails.
    """
    failed = sorted(patched.modules["failed"])
    tally.add(len(patched.modules["passed"]), 0,
              len(patched.modules["skipped"]))
    if run_unpatched is None:
        for module in failed:
            tally.fail(f"{name}: {module}",
                       sorted(patched.failures_of(module)))
        return
    if not failed:
        return
    headline(f"{name}: the test files that failed, in the unpatched build")
    unpatched = run_unpatched(failed)
    for module in failed:
        before = unpatched.failures_of(module)
        now = patched.failures_of(module)
        for case in sorted(now & before):
            notice(f"fails in the unpatched build, too: {case}")
        for case in sorted(now - before):
            print(f"FAILS IN THE PATCHED BUILD ONLY: {case}", flush=True)
        if now - before:
            tally.fail(f"{name}: {module}", sorted(now - before))
        else:
            notice(f"{module} counts as skipped: "
                   "the unpatched build is no better")
            tally.skipped += 1


def run_selected(tally, unpatched, hugepages, description, pool):
    """CPython's tests of what the patch set touches."""
    name = f"CPython's tests with {description}"
    headline(name)
    patched = run_suite(hugepages, MODULES, pool)
    count_suite(tally, name, patched,
                lambda modules: run_suite(unpatched, modules, pool))


def memory_available():
    """In huge pages of 2 MiB."""
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) // 2048
    return 0


def run_wheel(tally, environment):
    """Test the wheel, with pages in the pool for tests that need some."""
    command = [sys.executable, "-m", "unittest", "discover", "-v",
               "-s", str(TOP / "wheel" / "test")]
    if os.geteuid() == 0:
        command = [str(BUILD_AUX / "with-pool.sh"), str(WHEEL_POOL_PAGES),
                   *command]
    run_unittest(tally, "tests of the wheel", command, env=environment)


def pools_to_test(tally):
    """Pairs of a description and the size of the pool, or None: as it is."""
    if os.geteuid() == 0:
        pages = min(POOL_PAGES, memory_available() // 4)
        return [(f"a pool of {pages} huge pages", pages), ("an empty pool", 0)]
    notice("not root: the pool of huge pages stays as it is, and CPython's "
           "tests run once instead of twice")
    tally.skipped += 1
    return [("the system's pool", None)]


def further_releases():
    """Pairs of a release and the SHA-256 of its source.

    Those of the list but for the first, the pinned one.
    """
    table = (BUILD_AUX / "cpython-releases").read_text()
    return re.findall(r"^(\d\S*)\s+(\S+)", table, re.MULTILINE)[1:]


def required(release):
    """Whether the release may not be skipped."""
    words = os.environ.get("CPYTHON_REQUIRED", "").split()
    return release in words or "all" in words


def run_release(tally, release, checksum, pool):
    """Lay the patch set on another release, build it and test that.

    The build is kept, and done again as far as the patch set has changed.  The
    unpatched one is configured, which tells how to compile a file, and built
    if one of CPython's tests fails in the patched one.
    """
    name = f"CPython {release}"
    headline(f"{name}: source, build")
    status, lines = run([str(BUILD_AUX / "get-cpython.sh"), release])
    if status:
        skipped = (f"SKIPPED {release}: no source (SHA-256 {checksum}); "
                   "give --with-cpython=FILE")
        tally.releases.append(f"{release} not tested")
        if required(release):
            tally.fail(skipped, lines[-EXCERPT_LINES:])
        else:
            print(skipped, flush=True)
            tally.skipped += 1
        return
    source = TOP / "build" / lines[-1].strip()
    patched = f"{source}-patched"
    tree = TOP / "build" / f"hugepages-{release}"
    unpatched = TOP / "build" / f"unpatched-{release}"
    configure = str(BUILD_AUX / "configure-cpython.sh")
    for command in [
        [str(BUILD_AUX / "patchset.sh"), "lay", str(source), patched],
        [configure, patched, str(tree), os.devnull,
         "--with-pymalloc-hugepages"],
        ["make", f"-j{jobs()}", "-C", str(tree)],
        [configure, str(source), str(unpatched), os.devnull],
    ]:
        status, lines = run(command)
        if status:
            tally.releases.append(f"{release} not tested")
            tally.fail(f"{name}: {os.path.basename(command[0])}: "
                       f"exit status {status}", lines[-EXCERPT_LINES:])
            return

    tally.releases.append(f"{release} tested")
    run_unittest(tally, f"{name}: without the option",
                 [sys.executable, "-m", "unittest", "-v",
                  "test_build.WithoutTheOptionTest", "test_build.LayoutTest"],
                 env={**os.environ, "PYTHONPATH": str(BUILD_AUX / "test"),
                      "UNPATCHED_TREE": str(unpatched),
                      "HUGEPAGES_TREE": str(tree)})

    headline(f"{name}: our own tests")
    # CPython as it was released does not have them: what fails is our fault.
    count_suite(tally, f"{name}: our own tests",
                run_suite(tree, OWN_MODULES, pool, own=True), None)

    def run_unpatched(modules):
        status, _ = run(["make", f"-j{jobs()}", "-C", str(unpatched)])
        if status:
            raise RuntimeError(f"{name}: make in {unpatched}: "
                               f"exit status {status}")
        return run_suite(unpatched, modules, pool)

    headline(f"{name}: CPython's tests")
    count_suite(tally, f"{name}: CPython's tests",
                run_suite(tree, RELEASE_MODULES, pool), run_unpatched)


def run_all(tally, unpatched, hugepages):
    """The whole suite of CPython, in both builds."""
    arguments = ["-u", ALL_RESOURCES]
    headline("CPython's whole test suite, unpatched")
    before = run_suite(unpatched, arguments, None)
    for description, pool in pools_to_test(tally):
        name = f"CPython's whole test suite, patched, with {description}"
        headline(name)
        patched = run_suite(hugepages, arguments, pool)
        count_suite(tally, name, patched, lambda modules: before)


def show_result(tally):
    """Return the exit status, too."""
    headline("result")
    for what, why in tally.failures:
        print(f"FAILED: {what}")
        for line in why:
            print(f"    {line}")
    if tally.releases:
        print("further releases:", ", ".join(tally.releases))
    print(f"{tally.passed} passed, {tally.failed} failed, "
          f"{tally.skipped} skipped")
    return 1 if tally.failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true",
                        help="run CPython's whole test suite, and only that")
    parser.add_argument("unpatched", type=pathlib.Path, metavar="UNPATCHED",
                        help="build tree of CPython as it was released")
    parser.add_argument("hugepages", type=pathlib.Path, metavar="HUGEPAGES",
                        help="build tree made with --with-pymalloc-hugepages")
    options = parser.parse_args()
    unpatched = options.unpatched.resolve()
    hugepages = options.hugepages.resolve()

    # A shell ignores SIGINT and SIGQUIT for what it runs in the background,
    # nohup ignores SIGHUP, and CPython's tests need them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # CPython's tests expect its defaults.
    for name in list(os.environ):
        if name.startswith("PYTHON"):
            del os.environ[name]

    tally = Tally()
    if options.all:
        steps = [lambda: run_all(tally, unpatched, hugepages)]
    else:
        environment = {**os.environ, "UNPATCHED_TREE": str(unpatched),
                       "HUGEPAGES_TREE": str(hugepages)}
        steps = [
            lambda: run_unittest(
                tally, "tests of this tree",
                [sys.executable, "-m", "unittest", "discover", "-v",
                 "-s", str(BUILD_AUX / "test")], env=environment),
            lambda: run_unittest(
                tally, "tests of the tools",
                [str(hugepages / "python"), "-m", "unittest", "discover",
                 "-v", "-s", str(TOP / "Tools" / "pymalloc_hugepages")]),
            lambda: run_wheel(tally, environment),
            *c_test_steps(tally, hugepages),
            *(lambda module=module: run_unittest(
                tally, module,
                [str(hugepages / "python"), "-m", "unittest", "-v", module])
              for module in OWN_MODULES),
            lambda: run_stress(tally, hugepages),
        ]
        pools = pools_to_test(tally)
        steps += [
            lambda pool=pool: run_selected(tally, unpatched, hugepages, *pool)
            for pool in pools
        ]
        steps += [
            lambda further=further: run_release(tally, *further, pools[0][1])
            for further in further_releases()
        ]
    for step in steps:
        try:
            step()
        except (OSError, RuntimeError) as error:
            tally.fail(str(error))

    return show_result(tally)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("run_tests.py: interrupted")
