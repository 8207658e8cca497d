"""What the command lines of the benchmarks have in common."""

import argparse
import signal
import sys

from . import BenchError, Interrupted, report


def make_parser(program, **kwargs):
    """A parser that leaves the lines of its texts as they are."""
    return argparse.ArgumentParser(
        prog=program, formatter_class=argparse.RawDescriptionHelpFormatter,
        **kwargs)


def add_configurations(parser, metavar, results):
    """Let a run either measure configurations or show earlier results."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--config", action="append", metavar="CONFIGURATION", dest="configs",
        help="measure this configuration, or these, if given several times; "
        "see below")
    what.add_argument("--report", metavar=metavar,
                      help=f"measure nothing: show the results in {results}")


def add_results(parser, path):
    """Let the user say where results are written, path otherwise, and what the
    tables look like."""
    parser.add_argument(
        "--json", default=path, metavar="FILE",
        help="write the results here (default: %(default)s)")
    parser.add_argument("--format", choices=report.FORMATS, default="text",
                        help="form of the tables (default: text)")


def check_least(options, least, *names):
    """Raise BenchError for an option whose number is too small."""
    for name in names:
        number = getattr(options, name)
        if number < least:
            raise BenchError(f"--{name.replace('_', '-')} must be {least} or "
                             f"more, not {number}")


def complain(program, error):
    print(f"{program}: {error}", file=sys.stderr)


def call(program, function, args):
    """function(args), which is an exit status; that of an error that it
    raises, which is told in one line."""
    try:
        return function(args)
    except BenchError as error:
        complain(program, error)
        return 2
    except Interrupted as interruption:
        name = signal.Signals(interruption.signum).name
        complain(program, f"stopped by {name}, without a result")
        return 128 + interruption.signum
