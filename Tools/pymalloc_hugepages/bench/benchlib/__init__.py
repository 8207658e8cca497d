"""The parts of the benchmarks.

    command     what their command lines have in common
    process     child processes, and signals that stop the driver
    files       files of results
    machine     what the machine is
    memory      the pool of huge pages, warming free memory, peak memory
    perf        one command under perf stat
    profile     one command under perf record
    measure     which run comes when, and what came out of it
    significance    whether two samples differ by more than chance
    report      tables
    plot        the same as SVG
    page        the same as HTML
    progress    telling the user how far the driver is
    suite       pyperformance's benchmarks: runs, results, comparison

Units everywhere: seconds and bytes, unless a name says otherwise.
"""

import pathlib
import sys

# bench_obmalloc.py, which alone goes into a CPython tree, and the package
# hugepages are in the folder above the benchmarks.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))


class BenchError(Exception):
    """What the user must be told in one line: what, why, what to do."""


class Interrupted(BaseException):
    """A signal asked the driver to stop.  Not an Exception, so that no handler
    of ordinary errors takes it."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


def last_line(text):
    """The last line of text that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
