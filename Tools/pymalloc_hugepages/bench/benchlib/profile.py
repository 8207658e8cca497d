"""Where the processor time of one command goes, by perf record.

perf looks several thousand times a second at what is running.  The clock is
the kernel's, so that this works on virtual machines, which often count no
hardware event.
"""

import os
import re
import subprocess
import tempfile

from . import BenchError, last_line, perf, process


_EVENT = "cpu-clock"

# Looks per second: perf's own default.
_FREQUENCY = 4000

# The parts that the time is divided into; together they are all of it.
PARTS = (
    "zeroing",          # of pages, by the kernel
    "rest of kernel",   # page faults, system calls, the process's end
    "allocator",        # pymalloc, mimalloc, malloc() and the like
    "interpreter",      # everything else
)

# The kernel's functions that zero pages, of one size or another.
_ZEROING = re.compile(
    r"_*(pi_)?clear_(page|huge_page|user|subpage|contig|gigantic)(?!_dirty)"
    r"|folio_zero_|process_huge_page")

# The functions of CPython's allocators, and the C library's.  Those of it that
# have no symbol in a stripped library are counted as the interpreter's.
_ALLOCATOR = re.compile(
    r"_?Py(Mem|Object)_(Raw|Mi|_)?(Malloc|Calloc|Realloc|Free)\b"
    r"|_PyMem_|pymalloc_|hugepages_|_?_mi_|mi_"
    r"|(address_in_range|arena_map_(get|mark_used|is_used)|new_arena"
    r"|allocate_from_new_pool|insert_to_(usedpool|freepool))\b"
    r"|_?_?(libc_)?(malloc|calloc|realloc|c?free)\b|_int_(malloc|free|realloc)"
    r"|(malloc_consolidate|unlink_chunk|sysmalloc|systrim)\b")

# Libraries that are nothing but an allocator.
_ALLOCATOR_LIBRARY = re.compile("lib(jemalloc|tcmalloc|mimalloc)")

# Stands in no name but that of a C++ operator, and names come last.
_SEPARATOR = "|"


def part_of(library, symbol):
    """The one of PARTS that a function belongs to, from perf's names of it and
    of the file that it is in: "[k]" before the symbol is the kernel's."""
    kind, _, name = symbol.partition(" ")
    if kind != "[.]":
        return "zeroing" if _ZEROING.match(name) else "rest of kernel"
    if _ALLOCATOR.match(name) or _ALLOCATOR_LIBRARY.match(library):
        return "allocator"
    return "interpreter"


def parse_report(text):
    """{part: nanoseconds} from lines like "250000|python|[.] _Py_Dealloc"."""
    times = dict.fromkeys(PARTS, 0.0)
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(_SEPARATOR, 2)]
        if len(fields) == 3 and fields[0].isdecimal():
            times[part_of(fields[1], fields[2])] += int(fields[0])
    return times


def record(command, env=None, stdout=subprocess.DEVNULL):
    """Run command (a list) under perf record and return {part: nanoseconds} of
    processor time.

    stdout is a file that takes what the command prints.
    Raise PerfFailed if perf has seen nothing, CommandFailed if the command
    fails, BenchError without perf.
    """
    with tempfile.TemporaryDirectory(prefix="bench-perf-") as directory:
        data = os.path.join(directory, "perf.data")
        try:
            status, stderr = process.run(
                ["perf", "record", "-q", "-e", _EVENT, "-F", str(_FREQUENCY),
                 "-o", data, "--", *command], env=env, stdout=stdout)
        except FileNotFoundError:
            raise BenchError(perf.NOT_INSTALLED)
        message = last_line(stderr) or process.describe_status(status)
        if not os.path.exists(data):
            raise perf.PerfFailed(message)
        if status:
            raise perf.CommandFailed(message)
        done = process.capture(
            ["perf", "report", "-q", "--stdio", "-i", data, "--percent-limit",
             "0", "-F", "period,dso,sym", "-t", _SEPARATOR])
    times = parse_report(done.stdout)
    if done.returncode or not any(times.values()):
        raise perf.PerfFailed(last_line(done.stderr)
                              or "perf record has seen nothing")
    return times
