"""`status` of processes: one a line, and what they have together.

They are searched for again at each look, so that --watch shows those that were
born since.
"""

import dataclasses
import re
import shutil
import sys
import time
import typing

from . import (
    ARENA_SIZE, MIB, ToolError, as_json, metrics, mib, process, table)
from .cli import complain
from .service import Selection, look


# Default of --watch, in seconds.
INTERVAL = 1.0

SWITCH = "PYTHON_PYMALLOC_HUGEPAGES"


# What to say of it.

def _pids(reports):
    pids = [str(each.pid) for each in reports]
    more = f" and {len(pids) - 3:,} more" if len(pids) > 4 else ""
    return ", ".join(pids[:3] if more else pids) + more


def _features(service):
    """What puts arenas on huge pages, and of which interpreters."""
    for feature, name in (("option", "Built --with-pymalloc-hugepages"),
                          ("wheel", "With the wheel's extension")):
        those = [each for each in service.interpreters
                 if each.feature == feature]
        if those:
            yield f"{name}: {_pids(those)}."


def _why_none(service):
    """Why interpreters have nothing on huge pages, and what to do."""
    for name, value in sorted({pair for each in service.interpreters
                               if not each.usage.has_huge_pages
                               for pair in (each.environment or {}).items()}):
        those = _pids(each for each in service.interpreters
                      if (each.environment or {}).get(name) == value
                      and not each.usage.has_huge_pages)
        if name == SWITCH and value in ("off", "0"):
            yield f"Huge pages are off, by {name}={value}: {those}."
        elif name == "PYTHONMALLOC" and not value.startswith("pymalloc"):
            yield f"pymalloc may be off, by {name}={value}: {those}."
    disabled = [each for each in service.interpreters
                if each.thp_enabled is False]
    if disabled:
        yield ("Transparent huge pages are disabled (PR_SET_THP_DISABLE) for: "
               f"{_pids(disabled)}.")
    empty = [each for each in service.interpreters
             if each.feature == "wheel" and each.usage.arenas == 0]
    if empty:
        yield (f"The wheel's extension is loaded, but has no arenas: "
               f"{_pids(empty)}.  Unless the program is small, it may have "
               "refused: `python -m pymalloc_hugepages`, with the same "
               "python, options and variables, says why.")


def _may_use_pool(report, pool):
    """Whether an interpreter uses the pool, of this many pages, or would."""
    if report.usage.hugetlb_size:
        return True
    if not pool or report.environment is None:
        return False
    value = report.environment.get(SWITCH, "on")
    match = re.search("-X ?pymalloc_hugepages=([a-z0-9]+)", report.command)
    return (match[1] if match else value) not in ("thp", "off", "0")


def notes(service):
    """What the figures do not say: reasons and advice, as lines."""
    lines = []
    if service.readable and all(each.patched is False
                                for each in service.readable):
        return [("This is no interpreter" if len(service.rows) == 1
                 else "None is an interpreter")
                + " built --with-pymalloc-hugepages or with the wheel."]
    unknown = [each for each in service.readable if each.unknown is not None]
    if unknown:
        lines.append(
            "The program cannot be read, so it is not known whether it has "
            f"arenas ({unknown[0].unknown}): {_pids(unknown)}.")
    lines += _why_none(service)
    usage = service.arenas
    if service.interpreters and not usage.has_huge_pages:
        if usage.arenas == 0:
            lines.append(
                "A small program has none: its first arenas "
                f"({mib(process.FIRST * ARENA_SIZE)}) are on plain pages "
                "until it needs more.")
        lines.append(f"`{process.own_command()} status` says what this system "
                     "offers; -X pymalloc_hugepages=off, too, turns huge "
                     "pages off.")
    if any(each.usage.is_shared and _may_use_pool(each, service.pool)
           for each in service.interpreters):
        lines.append(
            f"It forks: start it with {SWITCH}=thp, or each fork copies the "
            "arenas that are on the pool.")
    return lines


def as_dict(service):
    """A Service as plain JSON types.  Sizes in bytes."""
    return {
        "time": round(time.time(), 3),
        "service": service.name,
        "processes": [process.as_dict(each) for each in service.reports],
        "total": {
            "processes": len(service.rows),
            "interpreters": len(service.interpreters),
            "unreadable": len(service.unreadable),
            **process.arenas_as_dict(service.arenas),
            "memory": service.memory,
        },
        "notes": notes(service),
    }


# As text.

_HEADINGS = ("", "PID", "ARENAS", "HUGE", "HUGETLB", "RSS", "PSS", "USS",
             "COMMAND")
# What a narrow terminal can do without, in this order.
_SPARE = ("RSS", "HUGETLB", "ARENAS", "USS")


def _size(size):
    """MiB."""
    return f"{size / MIB:.{1 if size < 100 * MIB else 0}f}"


def _percent(usage):
    return "-" if usage.percent is None else f"{usage.percent:.0f}%"


def _cells(report):
    """Of one process: what stands between its mark and its command."""
    if report.problem is not None:
        return [str(report.pid), *["?"] * 6]
    memory, usage = report.memory, report.usage
    if usage is None:
        arenas = ["-", "-"]
    else:
        doubt = "?" if report.patched is None else ""
        arenas = [f"{usage.arenas}{doubt}", _percent(usage) + doubt]
    return [str(report.pid), *arenas, _size(memory.hugetlb),
            _size(memory.rss), _size(memory.pss), _size(memory.uss)]


def _total(service):
    usage, memory = service.arenas, service.memory
    return ["", "total", str(usage.arenas), _percent(usage),
            _size(memory["hugetlb"]), "", _size(memory["pss"]),
            _size(memory["uss"]), f"{len(service.rows):,} processes"]


@dataclasses.dataclass
class Changes:
    """What differs from the look before."""

    # Cells of each process at that look, by (PID, start time); None: there was
    # no look before.
    before: typing.Optional[dict] = None

    def mark(self, service):
        """{PID: mark} of a look, which is then the one before.  "+": is new;
        "*": its figures have changed."""
        now = {(each.pid, each.start): _cells(each)
               for each in service.reports}
        before, self.before = self.before, now
        if before is None:
            return {}
        return {key[0]: "+" if key not in before else "*"
                for key, cells in now.items() if before.get(key) != cells}


def _without_folders(command):
    """A command with the bare names of its program and its script: a terminal
    shows only the beginning."""
    return re.sub(r"(^|(?<= ))/\S*/", "", command, count=2)


def as_lines(service, *, marks=None, width=None, height=None):
    """The table of a Service, in a terminal of that size: None is as wide, or
    as high, as it gets."""
    marks = marks or {}
    rows = [[marks.get(each.pid, ""), *_cells(each),
             "  " * depth + (each.command if width is None
                             else _without_folders(each.command))]
            for depth, each in service.rows]
    more = []
    # The headings, how many are left out, the total.
    if height is not None and len(rows) + 2 > height and len(rows) > 1:
        room = max(1, height - 3)
        # What is new, and what is large, is shown.
        order = sorted(range(len(rows)), key=lambda i: (
            rows[i][0] != "+", -_pss(service.reports[i])))
        more = [f"… and {len(rows) - room:,} more"]
        rows = [rows[i] for i in sorted(order[:room])]
    if len(service.rows) > 1:
        rows.append(_total(service))
    body = table.layout(_HEADINGS, rows, width, _SPARE)
    return body[:-1] + more + body[-1:]


def _pss(report):
    return report.memory.pss if report.memory else 0


def remarks(service, width=None):
    """What stands below the table, as lines."""
    lines = [*_features(service), *notes(service)]
    if service.interpreters:
        lines.append("ARENAS: of 2 MiB; not those on plain pages.  HUGE: "
                     "their part on huge pages.  The others: MiB."
                     + ("  The total counts shared memory once."
                        if len(service.rows) > 1 else ""))
    return [part for line in lines for part in table.wrap(line, width)]


# The command.

def add_arguments(parser):
    parser.add_argument(
        "process", nargs="?", metavar="PID|NAME|UNIT",
        help="show processes and not the system: a PID, a name (of a process, "
        "its program, the script it runs, or a part of its command line), "
        "each with its children, or a systemd unit such as app.service")
    parser.add_argument("--cgroup", metavar="PATH",
                        help="show the processes of a cgroup: a path as in "
                        "/proc/PID/cgroup")
    parser.add_argument(
        "--watch", nargs="?", type=_interval, const=INTERVAL,
        metavar="SECONDS",
        help="show it again every SECONDS (default: 1), until no process is "
        "left or Ctrl-C; + marks a new process, * one that has changed")
    parser.add_argument("--format", choices=("text", "json", "openmetrics"),
                        help="how to print it; --json is --format json")


def _interval(text):
    try:
        value = float(text)
        # time.sleep() takes no more than this everywhere.
        if 0.01 <= value <= 86400:
            return value
    except ValueError:
        pass
    raise ToolError(f"status --watch: not a number of seconds from 0.01 to "
                    f"86400: {text!r}; give the process first: status PID "
                    "--watch")


def _complain(service):
    """One line for all that may not be read."""
    unreadable = service.unreadable
    if len(unreadable) == 1:
        complain(unreadable[0].problem)
    elif unreadable:
        complain(f"{len(unreadable):,} of {len(service.rows):,} processes "
                 "cannot be looked at, such as the first: "
                 f"{unreadable[0].problem}")


def _show_once(selection, form):
    """Show all once.  Return the exit status."""
    service = look(selection)
    if form == "json":
        print(as_json("service", as_dict(service)))
    elif form == "openmetrics":
        print(metrics.of_service(service), end="")
    elif not service.readable:
        raise ToolError(service.unreadable[0].problem)
    else:
        width, _ = _terminal()
        print("\n".join(as_lines(service, width=width)
                        + remarks(service, width)))
    if sys.stdout is not None:
        sys.stdout.flush()
    _complain(service)
    return service.status


def _terminal():
    """(columns, lines) of the terminal that stdout is; None each if it is
    none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None, None
    return shutil.get_terminal_size()


def _watch(selection, form, interval):
    """Show all again and again until nothing is left.  Return 0."""
    changes = Changes()
    service = look(selection)
    if not service.readable:
        raise ToolError(service.unreadable[0].problem)
    try:
        while True:
            if form == "json":
                print(as_json("service", as_dict(service), indent=None))
            else:
                _show_again(service, changes)
            if sys.stdout is not None:
                sys.stdout.flush()
            time.sleep(interval)
            service = look(selection)
    except process.ProcessGone:
        return 0
    except KeyboardInterrupt:
        return 0


def _show_again(service, changes):
    now = time.strftime("%H:%M:%S")
    marks = changes.mark(service)
    width, height = _terminal()
    if width is None:
        for line in as_lines(service, marks=marks):
            print(now, line)
        return
    # The last line of the terminal stays free: there the cursor ends.
    lines = [f"{now}  {service.name}  (Ctrl-C ends)"[:width],
             *as_lines(service, marks=marks, width=width, height=height - 2),
             *remarks(service, width)][:height - 1]
    # Go to the top left, write, and clear what is left of each line and below.
    print("\033[H" + "".join(line + "\033[K\n" for line in lines) + "\033[J",
          end="")


def main(options, root="/"):
    """Return the exit status: 0 if the processes have some memory of arenas on
    huge pages, else 1; 2 if it could not be found out.  With --watch: 0."""
    form = options.format or ("json" if options.json else "text")
    selection = Selection(options.process, options.cgroup, root)
    if options.cgroup is not None and options.process is not None:
        raise ToolError("status: give a process or --cgroup, not both")
    if options.watch is None:
        return _show_once(selection, form)
    if form == "openmetrics":
        raise ToolError("status --watch: a monitor looks again by itself; "
                        "leave --watch out with --format openmetrics")
    return _watch(selection, form, options.watch)
