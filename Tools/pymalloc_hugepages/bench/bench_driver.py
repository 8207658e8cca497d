#!/usr/bin/env python3
"""Measure interpreters with and without huge pages under pymalloc's arenas.

Runs the workloads of bench_obmalloc.py and start-up, or those of
bench_programs.py, bench_scale.py or bench_small.py, with any number of
interpreters and settings, under perf stat or perf record.  Needs Linux, Python
3.9 or later and perf.  Only root can reserve huge pages.
"""

import os
import random
import shutil
import signal
import sys

from benchlib import BenchError, Interrupted
from benchlib import (
    command, files, measure, memory, page, plot, process, report)
from benchlib.progress import Progress
import bench_obmalloc
import bench_programs
import bench_scale
import bench_small


PROGRAM = "bench_driver.py"

# Runs whose median is the peak memory of what --small measures: from one run
# to the next it differs by more than it may from one build to the other.
SMALL_MEMORY_RUNS = 9

EPILOG = """\
configurations:
  LABEL=PATH[,switch=VALUE][,pool=auto|empty|PAGES][,base=LABEL]
            [,env=NAME=VALUE...]
  PATH is an interpreter.  The switch sets PYTHON_PYMALLOC_HUGEPAGES for it
  (on, 1, thp, hugetlb, off or 0); without a switch the variable is not set.
  pool says what the pool of 2 MiB huge pages has for a run: nothing (empty,
  the default), a number of PAGES, or as many as the workload can use (auto).
  The driver puts the pool back as it was at the end, after an error, and after
  Ctrl-C.  env sets a variable of the interpreter's environment; its VALUE has
  no comma.  Tables compare all configurations with the first, but those that
  have a base with that one, and one that is a base with none.  Without a base,
  those without a switch are rivals: where there are several, tables also
  compare the others with the fastest rival and with each.

examples:
  bench_driver.py --config stock=build/unpatched/python \\
                  --config hugetlb=./python,switch=hugetlb,pool=auto \\
                  --config thp=./python,switch=thp
  Two series, each compared with its own stock:
  bench_driver.py --config stock311=python3.11 --config stock314=python3.14 \\
                  --config thp311=311/python,switch=thp,base=stock311 \\
                  --config thp314=314/python,switch=thp,base=stock314

exit status:
  0    everything asked for was measured and shown
  1    something is missing or not what it should be; a line on stderr and in
       the results says what
  2    nothing was measured: bad arguments, an interpreter that does not
       start, perf missing or not permitted
  130, 129, 143
       stopped by Ctrl-C, SIGHUP or SIGTERM; the runs until then are shown and
       written
"""


def parse_arguments(args):
    """The command line, with configurations parsed and defaults filled in."""
    names = [*measure.SCRIPTS, measure.STARTUP]
    parser = command.make_parser(PROGRAM, description=__doc__, epilog=EPILOG)
    command.add_configurations(parser, "FILE", "a file of --json")
    parser.add_argument(
        "--workload", action="append", metavar="NAME", dest="workloads",
        help="measure only this workload, or these, if given several times: "
        f"{', '.join(names)} (default: those of bench_obmalloc.py and "
        "startup)")
    parser.add_argument(
        "--programs", action="store_true",
        help="measure the workloads of bench_programs.py by default")
    parser.add_argument(
        "--scale", action="store_true",
        help="measure those of bench_scale.py by default: one workload in "
        "three sizes, of which the largest needs 11 GiB of memory")
    parser.add_argument(
        "--small", action="store_true",
        help="measure startup and those of bench_small.py by default: what "
        "needs little memory")
    parser.add_argument(
        "--loops", type=int, default=1, metavar="N",
        help="do the workload N times in each run, in one process, and "
        "measure one turn, too (default: 1; not for startup)")
    parser.add_argument(
        "--profile", action="store_true",
        help="measure where the processor time goes, by perf record: zeroing, "
        "the rest of the kernel, the allocator, the interpreter")
    parser.add_argument("--runs", type=int, default=10, metavar="N",
                        help="timed runs of each workload (default: 10)")
    parser.add_argument(
        "--memory-runs", type=int, metavar="N",
        help="untimed runs, whose median is the peak memory (default: 1, "
        f"with --small {SMALL_MEMORY_RUNS})")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, metavar="N",
                       help="seed of the order of runs (default: random)")
    order.add_argument(
        "--resume", action="store_true",
        help="go on with the interrupted run of the same command, whose "
        "results are in the file of --json")
    parser.add_argument(
        "--warm", type=int, metavar="MIB",
        help="memory to touch and free before each run, 0 for none (default: "
        "1536, but at most half of what is available); for a workload of "
        "bench_scale.py as much as it needs, if that is more")
    command.add_results(parser, "bench_obmalloc.json")
    parser.add_argument("--plot", metavar="FILE.svg",
                        help="draw times, page faults and TLB misses, too")
    parser.add_argument("--html", metavar="FILE.html",
                        help="write tables, plots and results as a page, too")
    options = parser.parse_args(args)

    if options.memory_runs is None:
        options.memory_runs = SMALL_MEMORY_RUNS if options.small else 1
    command.check_least(options, 1, "runs", "loops", "memory_runs")
    if options.warm is not None:
        command.check_least(options, 0, "warm")
    options.workloads = options.workloads or default_workloads(options)
    for name in options.workloads:
        if name not in names:
            raise BenchError(f"no workload {name!r}; there are: "
                             + ", ".join(names))
    options.workloads = list(dict.fromkeys(options.workloads))
    options.configs = measure.parse_configurations(options.configs or (),
                                                   bases=True)
    return options


def default_workloads(options):
    """Names of what --programs, --scale and --small ask for, or of what is
    measured without them."""
    names = []
    if options.programs:
        names += bench_programs.WORKLOADS
    if options.scale:
        names += bench_scale.WORKLOADS
    if options.small:
        names += [measure.STARTUP, *bench_small.WORKLOADS]
    if not names:
        names = list(bench_obmalloc.WORKLOADS)
        if options.loops == 1:
            names.append(measure.STARTUP)
    return names


def warm_size(mib):
    """Bytes to warm: the number of MiB asked for, or the default for None."""
    if mib is not None:
        return mib * memory.MIB
    half = memory.available_memory() // 2
    return min(1536 * memory.MIB, half // memory.MIB * memory.MIB)


def check_writable(path):
    """Raise BenchError now if a file cannot be written to path at the end."""
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise BenchError(f"cannot write {path!r}: it is a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise BenchError(f"cannot write {path!r}: {directory} is not a "
                         "directory in which you may write")


def run_benchmark(options):
    """Measure.  Return (results, exit status)."""
    for path in filter(None, (options.json, options.plot, options.html)):
        check_writable(path)
    seed = (random.SystemRandom().randrange(1 << 32)
            if options.seed is None else options.seed)
    progress = Progress()
    progress.step("looking at the interpreters and perf")
    results = measure.new_results(options.configs, options.workloads,
                                  options.runs, seed, warm_size(options.warm),
                                  options.loops, options.memory_runs,
                                  options.profile)
    if options.resume:
        measure.resume(results, options.json)
    status = 0
    try:
        with memory.Pool() as pool:
            measure.check_available(options.workloads, pool)
            session = measure.Session(results, options.configs, pool, progress)
            session.check_preloads()
            session.size_pools()
            session.check_memory()
            session.measure(random.Random(results["seed"]),
                            lambda: files.save(results, options.json))
    except Interrupted as interruption:
        name = signal.Signals(interruption.signum).name
        results["problems"].append(
            f"stopped by {name} before the end; --resume goes on there")
        status = 128 + interruption.signum
    progress.clear()
    return results, status


def show(results, options):
    """Print the tables, draw the plot, write the page."""
    width = min(100, shutil.get_terminal_size((100, 25)).columns)
    print(report.render(results, options.format, width), end="", flush=True)
    if options.plot:
        plot.draw(results, options.plot)
    if options.html:
        page.write(results, options.html)


def measure_and_show(args):
    """Return the exit status."""
    if sys.platform != "linux":
        raise BenchError("perf stat and /proc are Linux's; this is "
                         + sys.platform)
    options = parse_arguments(args)
    if options.report:
        results, status = measure.load(options.report), 0
    else:
        process.stop_on_signals()
        results, status = run_benchmark(options)
    try:
        if not options.report:
            files.save(results, options.json)
        show(results, options)
    except BenchError as error:
        command.complain(PROGRAM, error)
        status = status or 1
    if status == 0 and results["problems"] and not options.report:
        status = 1
    return status


def main(args=None):
    """Return the exit status (see EPILOG)."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    sys.exit(main())
