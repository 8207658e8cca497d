"""The command line.

The modules of the commands are imported when they are called: status without
a process works on systems that lack what the others need.
"""

import argparse
import os
import sys

from . import VERSION, ToolError, program


DESCRIPTION = """\
Find out whether CPython's small objects are on huge pages, and put them there.
For interpreters built --with-pymalloc-hugepages, and others with the wheel."""

EPILOG = """\
examples:
  what this system offers:           %(prog)s status
  what 1234 and its children have:   %(prog)s status 1234
  the same, again and again:         %(prog)s status app.py --watch
  the same, as data:                 %(prog)s status app --json
  256 MiB of huge pages, now:        sudo %(prog)s reserve 256M
  now and at each boot:              sudo %(prog)s reserve 256M --persist
  how many does a program need?      %(prog)s reserve --dry-run --for app
  run it, then one line of figures:  %(prog)s run -- python app.py
  the same, with large buffers:      %(prog)s run --malloc -- app

exit status:
  0    what was asked for holds: an interpreter started now would get huge
       pages; the processes shown have some; all pages are reserved
  1    it does not, and the output says why
  2    bad arguments, or it could not be found out or done; one line on stderr
       says why, and what to do
  130, 141
       stopped by Ctrl-C; nobody reads the output any more
  run has the status of the command, 128+N if signal N ended it, 126 if it
  cannot be executed, 127 if there is no such command.

The manual page, pymalloc-hugepages(1), has more.
"""

STATUS = """\
Say what this system offers to arenas, with a verdict and, where that would
help, a command that improves it.  With PID, NAME or UNIT, say what of the
arenas of these processes is on huge pages now, and what memory they have, one
process a line."""

RUN = """\
Run a command with the switch set.  At its end print one line: the peak number
of arenas on each kind of page, page faults, wall time.

With --malloc, set the C library's own tunables for buffers above pymalloc's
limit as well, and print one line that says which.  It needs glibc 2.26.
docs/malloc.rst tells what they do and what they cost.

The numbers of arenas are the interpreters' own.  Those of a process that wrote
none (it ran with -E or -I, or ended by os._exit(), exec() or a signal) are
sampled from outside, as the line then says."""

RESERVE = """\
Put huge pages of 2 MiB into the kernel's pool: until it has PAGES, or SIZE,
those in use included.  With --for, run a command to find out how many pages it
needs (its first arenas need none), and put in until that many are free; called
by sudo, the command is run as the user who called it.  Leave a larger pool
alone.  Needs root."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def print_help(self, file=None):
        # argparse's own is silent about errors of writing.
        print(self.format_help(), end="", file=file)

    def error(self, message):
        raise ToolError(f"{message}; see: {self.prog} --help")


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        # argparse's own is silent about errors of writing, too.
        print("pymalloc-hugepages", VERSION)
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser, namespace, shell, *_):
        try:
            import shtab
            # Before 1.5.6 it offered the first of several words only.
            is_new = [*map(int, shtab.__version__.split(".")[:3])] >= [1, 5, 6]
        except (ImportError, ValueError):
            is_new = False
        if not is_new:
            raise ToolError("--completion needs the Python package shtab, "
                            "1.5.6 or later: pip install shtab, or "
                            "python3-shtab of Debian 13")
        parser, commands = make_parser()
        for each in commands.values():
            for action in each._actions:
                if action.metavar in ("COMMAND", "FILE"):
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


def _add_json(parser, default):
    parser.add_argument("--json", action="store_true", default=default,
                        help="print JSON")


def make_parser():
    """The parser, and a dict of the commands' parsers by name."""
    from . import reserve, run, service_status
    parser = Parser(prog=program(), description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0,
                        help="show the version")
    parser.add_argument("--completion", choices=("bash", "zsh"),
                        action=_Completion,
                        help="print what completes the tool's arguments in a "
                        "shell (needs shtab)")
    _add_json(parser, False)
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND",
                                     required=True)
    parsers = {
        "status": commands.add_parser(
            "status", help="what the system offers, or a process has",
            description=STATUS),
        "reserve": commands.add_parser(
            "reserve", help="put huge pages into the kernel's pool",
            description=RESERVE, usage=reserve.USAGE),
        "run": commands.add_parser(
            "run", help="run a command and say what it got",
            description=RUN, usage=run.USAGE),
    }
    for each in parsers.values():
        # The default of the whole command line must survive.
        _add_json(each, argparse.SUPPRESS)
    service_status.add_arguments(parsers["status"])
    reserve.add_arguments(parsers["reserve"])
    run.add_arguments(parsers["run"])
    return parser, parsers


def split_command(args):
    """Cut the command to run off the arguments.

    Return (our arguments, the command as a list or None).  argparse would
    take options of the command for ours.
    """
    from . import run
    args = list(args)
    verb = next((index for index, arg in enumerate(args)
                 if not arg.startswith("-")), len(args))
    start = verb + 1
    if args[verb:start] == ["reserve"]:
        if "--for" not in args[start:]:
            return args, None
        start = args.index("--for", start) + 1
        ours = args[:start]
    elif args[verb:start] == ["run"]:
        while start < len(args) and args[start].startswith("-"):
            if args[start] == "--":
                break
            start += 2 if args[start] in run.VALUE_OPTIONS else 1
        ours = args[:start]
    else:
        return args, None
    command = args[start:]
    if command[:1] == ["--"]:
        del command[0]
    return ours, command


def parse_arguments(args):
    """The command line as a namespace.  Raise ToolError."""
    ours, command = split_command(args)
    parser, _ = make_parser()
    options = parser.parse_args(ours)
    if command is not None:
        options.command = command
    return options


def _select(options):
    """The module whose main() does what is asked for."""
    if (options.verb == "status" and options.process is None
            and options.cgroup is None):
        if options.watch is not None:
            raise ToolError("status --watch: no process to watch; give it "
                            "first: status PID --watch")
        from . import system_status
        return system_status
    if sys.platform != "linux":
        what = ("status of a process" if options.verb == "status"
                else options.verb)
        raise ToolError(f"{what} is for Linux; on this system there is: "
                        f"{program()} status")
    from . import reserve, run, service_status
    return {"status": service_status, "reserve": reserve,
            "run": run}[options.verb]


def _leave_stdout():
    """Let nothing more be written to stdout, which is broken: not by the
    interpreter at its end either."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = None


def main(args=None):
    """Return the exit status (see EPILOG)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Names of files and processes may be anything.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            options = parse_arguments(sys.argv[1:] if args is None else args)
            status = _select(options).main(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except ToolError as error:
        complain(error)
        return error.status
    except BrokenPipeError:
        _leave_stdout()
        return 141
    except OSError as error:
        # All others are dealt with where they arise.
        _leave_stdout()
        complain(f"cannot write the output: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def complain(problem):
    if sys.stderr is None:          # closed; print() would take stdout
        return
    print(f"{program()}: {problem}", file=sys.stderr)
