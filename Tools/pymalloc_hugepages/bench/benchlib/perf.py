"""One command under perf stat."""

import subprocess
import tempfile

from . import BenchError, last_line, process


# Those of the proposal, in its order.
EVENTS = (
    "dTLB-loads", "dTLB-load-misses", "dTLB-stores", "dTLB-store-misses",
    "iTLB-load-misses", "cache-misses", "cache-references", "instructions",
    "cycles", "page-faults",
)

# perf's own clocks, in nanoseconds.  duration_time is what perf stat shows as
# "seconds time elapsed": from the start of the command to its end, without
# the time that perf needs to start itself.
WALL_TIME = "duration_time"
CPU_TIMES = ("user_time", "system_time")
TIMES = (WALL_TIME, *CPU_TIMES)

NOT_INSTALLED = "perf is not installed; on Debian: apt-get install linux-perf"

_SEPARATOR = ";"        # not a comma: some locales write 1,5


class PerfFailed(BenchError):
    """perf has counted nothing."""


class CommandFailed(BenchError):
    """perf has done its work, but the command that it ran has failed."""


def parse_stat(text):
    """What `perf stat -x ';'` wrote, as a dict: event name -> number.

    The number is None for an event that was not counted.  Names are perf's: on
    CPUs with two kinds of cores each event is there once per kind
    (cpu_core/cycles/), and without the right to count in the kernel it has a
    modifier (cycles:u); only times have their plain names always.  A time is
    in nanoseconds.
    """
    counts = {}
    for line in text.splitlines():
        fields = line.split(_SEPARATOR)
        if line.startswith("#") or len(fields) < 3 or not fields[2]:
            continue                # heading, blank line, or a derived metric
        value, _unit, name = fields[:3]
        if base_name(name) in TIMES:
            name = base_name(name)
        try:
            counts[name] = float(value)
        except ValueError:          # <not supported>, <not counted>
            counts[name] = None
    return counts


def base_name(event):
    """The event's name as in EVENTS: without the kind of core and modifier."""
    if "/" in event:
        event = event.split("/")[1]
    return event.split(":")[0]


def stat(events, command, env=None, stdout=subprocess.DEVNULL):
    """Run command (a list) under perf stat and return parse_stat() of it.

    stdout is a file that takes what the command prints.
    Raise PerfFailed if it cannot count, CommandFailed if the command has an
    exit status that is not 0 or dies of a signal, BenchError without perf.
    """
    with tempfile.NamedTemporaryFile("r", prefix="bench-perf-") as output:
        perf = ["perf", "stat", "-x", _SEPARATOR, "-o", output.name,
                "-e", ",".join(events), "--"]
        try:
            status, stderr = process.run(perf + command, env=env,
                                         stdout=stdout)
        except FileNotFoundError:
            raise BenchError(NOT_INSTALLED)
        counts = parse_stat(output.read())
    if not counts:
        raise PerfFailed(_first_reason(stderr) or f"exit status {status}")
    message = last_line(stderr)
    # perf stat returns 0 for a command that died of a signal, and only names
    # the signal on stderr, after the command's name.
    if status or message.startswith(f"{command[0]}: "):
        raise CommandFailed(message or f"exit status {status}")
    for name in CPU_TIMES:
        if name in events:
            # perf calls a time of 0 not counted, or does not show it.
            counts[name] = counts.get(name) or 0.0
    return counts


def _first_reason(stderr):
    """What perf says of its failure, without the lines of advice below it."""
    for line in stderr.splitlines():
        if line.strip() not in ("", "Error:"):
            return line.strip()
    return ""


def wall_time_is_possible(counts, threads=1):
    """Whether the wall time can be true of a command that has had this many
    threads at work at once, at most.

    perf reads its clock after it has let the command go.  When it loses the
    processor in between (perf 6.1 to its own child: one short command in ten,
    with a millisecond counted as a microsecond), the time is too short: less
    than the processor time of each thread.
    """
    slack = 2e6     # ns; processor time includes the start of perf's child
    cpu_time = sum(counts.get(name, 0.0) for name in CPU_TIMES)
    return (counts[WALL_TIME] or 0.0) >= cpu_time / threads - slack


def probe(command):
    """Which of EVENTS and TIMES can be counted here, for this user.

    command is run for each.  Return (names to count, names that cannot be).
    Raise BenchError if page-faults or the wall time cannot be counted.
    """
    required = "page-faults"
    try:
        stat([required], command)
    except PerfFailed as error:
        raise BenchError(f"perf cannot count page-faults: {error}"
                         + _permission_hint())
    counted, missing = [required], []
    for event in EVENTS + TIMES:
        if event == required:
            continue
        try:
            counts = stat([required, event], command)
        except PerfFailed:
            counts = {}         # this perf does not know it
        if any(value is not None for name, value in counts.items()
               if base_name(name) == event):
            counted.append(event)
        else:
            missing.append(event)
    if WALL_TIME in missing:
        raise BenchError(f"this perf does not have the event {WALL_TIME}; "
                         "install the one of Debian 12 or later")
    return counted, missing


def _permission_hint():
    try:
        with open("/proc/sys/kernel/perf_event_paranoid") as file:
            level = int(file.read())
    except (OSError, ValueError):
        return ""
    return (f" (kernel.perf_event_paranoid is {level}; as root: sysctl "
            "kernel.perf_event_paranoid=1; a container needs CAP_PERFMON)")


def version():
    """perf's version as text, or None without perf."""
    try:
        done = subprocess.run(["perf", "--version"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL,
                              universal_newlines=True)
    except OSError:
        return None
    return done.stdout.strip() or None
