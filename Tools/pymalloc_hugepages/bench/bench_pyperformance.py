#!/usr/bin/env python3
"""Compare interpreters by pyperformance, the benchmarks of CPython's authors.

Installs pyperformance and pyperf from PyPI, in a virtual environment, and runs
the benchmarks with one interpreter after the other.  Needs Linux and Python
3.9 or later.  Only root can reserve huge pages.
"""

import os
import signal
import sys
import time

from benchlib import BenchError, Interrupted
from benchlib import command, measure, memory, process, suite
from benchlib.progress import Progress


PROGRAM = "bench_pyperformance.py"

EPILOG = """\
configurations:
  LABEL=PATH[,switch=VALUE][,pool=auto|empty|PAGES][,env=NAME=VALUE...]
  as in bench_driver.py.  pool=auto means 512 pages, but at most a quarter of
  the memory that is available.  Tables compare all configurations with the
  first, whose interpreter also runs pyperformance.

example:
  bench_pyperformance.py --config stock=build/unpatched/python \\
                         --config thp=./python,switch=thp

files:
  DIRECTORY/tool                pyperformance and pyperf
  DIRECTORY/venv                what the benchmarks need, for each interpreter
  DIRECTORY/results-DATE        LABEL.json (pyperf's), logs, what was measured

exit status:
  0    everything asked for was measured and shown
  1    something is missing; a line on stderr and in the report says what
  2    nothing was measured: bad arguments, an interpreter that does not
       start, pyperformance cannot be installed
  130, 129, 143
       stopped by Ctrl-C, SIGHUP or SIGTERM; the runs until then are shown
"""


def parse_arguments(args):
    """The command line, with configurations parsed."""
    parser = command.make_parser(PROGRAM, description=__doc__, epilog=EPILOG)
    command.add_configurations(parser, "FOLDER", "a folder of an earlier run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--benchmark", action="append", metavar="NAME", dest="benchmarks",
        help="run only this benchmark, or these, if given several times "
        f"(default: {', '.join(suite.BENCHMARKS)})")
    which.add_argument("--all", action="store_true",
                       help="run all benchmarks that pyperformance has")
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N",
        help=f"how often to run {suite.PROCESSES_PER_ROUND} processes of "
        "each benchmark with each configuration (default: 10, which makes as "
        "many as pyperf's own)")
    parser.add_argument(
        "--debug-single-value", action="store_true",
        help="measure one value of one process in each round, to see whether "
        "a benchmark runs at all")
    parser.add_argument(
        "--directory", default=os.path.join("build", "pyperformance"),
        help="keep environments and results here (default: %(default)s)")
    options = parser.parse_args(args)

    command.check_least(options, 1, "rounds")
    options.flags = (
        ["--debug-single-value"] if options.debug_single_value
        else ["--processes", str(suite.PROCESSES_PER_ROUND)])
    options.directory = os.path.abspath(options.directory)
    options.configs = measure.parse_configurations(options.configs or ())
    return options


def choose_benchmarks(options, available):
    """Names of the benchmarks to run, and of those wanted by default that this
    pyperformance lacks.  Raise BenchError for one asked for that it lacks."""
    if options.all:
        return available, []
    for name in options.benchmarks or ():
        if name not in available:
            raise BenchError(f"no benchmark {name!r}; there are: "
                             + ", ".join(available))
    wanted = list(dict.fromkeys(options.benchmarks or suite.BENCHMARKS))
    return ([name for name in wanted if name in available],
            [name for name in wanted if name not in available])


def make_folder(directory):
    """Make a folder for the results of this run, and return its path."""
    path = os.path.join(directory, time.strftime("results-%Y%m%d-%H%M%S"))
    try:
        os.makedirs(os.path.join(path, "logs"))
    except OSError as error:
        raise BenchError(f"cannot make {path!r}: {error.strerror}")
    return path


def run_benchmarks(options, progress):
    """Measure.  Return (tool, folder, session, exit status)."""
    progress.step("looking at the interpreters")
    session = suite.new_session(options.configs, options.rounds, options.flags)
    tool = suite.Tool(options.directory, session["configurations"][0])
    progress.step("installing pyperformance")
    tool.install()
    session["benchmarks"], missing = choose_benchmarks(options,
                                                       tool.benchmarks())
    session["problems"] += [f"this pyperformance has no {name}"
                            for name in missing]
    folder = make_folder(options.directory)
    pool = memory.Pool()
    runs = suite.Suite(session, folder, options.configs, tool, pool, progress)
    status = 0
    try:
        with pool:
            runs.check_preloads()
            runs.size_pools()
            runs.measure()
    except Interrupted as interruption:
        name = signal.Signals(interruption.signum).name
        session["problems"].append(f"stopped by {name} before the end")
        status = 128 + interruption.signum
    progress.clear()
    runs.save()
    return tool, folder, session, status


def measure_and_show(args):
    """Return the exit status."""
    if sys.platform != "linux":
        raise BenchError(f"/proc is Linux's; this is {sys.platform}")
    options = parse_arguments(args)
    process.stop_on_signals()
    if options.report:
        session, status = suite.load_session(options.report), 0
        folder = os.path.abspath(options.report)
        tool = suite.Tool(options.directory, session["configurations"][0])
        tool.install()
    else:
        tool, folder, session, status = run_benchmarks(
            options, Progress(program=PROGRAM))
    try:
        print(suite.render(tool, folder, session), end="", flush=True)
    except BenchError as error:
        command.complain(PROGRAM, error)
        status = status or 1
    if options.report:
        return status
    print(f"Results: {folder}")
    if session["problems"] or session["failures"]:
        status = status or 1
    return status


def main(args=None):
    """Return the exit status (see EPILOG)."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    sys.exit(main())
