"""`run`: run a command, and say at its end what its arenas got.

Numbers of arenas come from two sources.  Each process of an interpreter built
with the option appends a line to the file that the environment variable
PYTHON_PYMALLOC_HUGEPAGES_STATS names, when it finalizes: these are exact.  And
the command and its descendants are looked at from outside, see process.py:
these figures stand in for a process that wrote no line.  They miss what a
process had between two looks, and arenas on plain pages.

Page faults are the kernel's (wait4()): of the command and of those descendants
that were waited for.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing

from . import ToolError, as_json, malloc, plural, process, program, smaps


MODES = ("on", "thp", "hugetlb", "off")
SWITCH = "PYTHON_PYMALLOC_HUGEPAGES"
STATISTICS = "PYTHON_PYMALLOC_HUGEPAGES_STATS"
TIERS = ("hugetlb", "thp", "plain")

USAGE = ("%(prog)s [-h] [--json] [--mode {on,thp,hugetlb,off}] [--malloc]\n"
         "           [--output FILE] [--] COMMAND [ARGUMENT ...]")

# Options that take a value: cli.py must know where the command begins.
VALUE_OPTIONS = ("--mode", "--output")

# Seconds between two looks at the processes; but a look never takes more than
# one part in SPARING of the time.
INTERVAL = 0.05
SPARING = 20

# Passed on to the command when another process has sent them.  What the
# terminal sends goes to the command anyway, for it is in the same group.
_FORWARDED = (signal.SIGINT, signal.SIGTERM) + tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGQUIT", "SIGUSR1",
                                       "SIGUSR2") if hasattr(signal, name))

# linux/asm-generic/siginfo.h: the si_code of signals that the kernel sends.
_SI_KERNEL = 0x80


# Looking at the processes from outside.

@dataclasses.dataclass
class Seen:
    """What was seen of one process.  Numbers of arenas, each the highest."""

    pid: int
    patched: bool
    # How often it was looked at.
    looks: int = 0
    hugetlb: int = 0
    thp: int = 0


class Sampler:
    """Looks at a process and its descendants again and again, in a thread.

    A descendant stays known when its parent ends.
    """

    def __init__(self, pid, root="/"):
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Both by (PID, start time), which no two processes share.
        self.seen = {}
        self._alive = {}
        # The different sets of interpreters with the option that were there at
        # the same time.
        self.together = set()
        # The highest number of arenas of all at one time, what they share
        # counted once.
        self.most_arenas = 0
        self._pid = pid

    def start(self):
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join()

    def _run(self):
        pause = 0
        while not self._stop.wait(pause):
            started = time.monotonic()
            self.look()
            pause = max(INTERVAL, SPARING * (time.monotonic() - started))

    def _children(self, pid):
        """PIDs of the children of all threads of a process."""
        tasks = process.proc_path(self._root, pid, "task")
        children = []
        for task in os.listdir(tasks):
            # Only kernels with CONFIG_PROC_CHILDREN have it: all of
            # distributions do.
            with open(os.path.join(tasks, task, "children")) as file:
                children += map(int, file.read().split())
        return children

    def _find_alive(self):
        """{(PID, start time)} of the known processes and their descendants."""
        alive = {}
        pending = [self._pid] + [pid for pid, _ in self._alive]
        while pending:
            pid = pending.pop()
            if pid in alive:
                continue
            try:
                stat = process.read_stat(pid, self._root)
                key = pid, stat.start
                if (pid == self._pid or key in self._alive
                        or stat.parent in alive):
                    alive[pid] = key
                    pending += self._children(pid)
            except OSError:
                pass                # it has ended
        return set(alive.values())

    def look(self):
        """Look at all of them once."""
        self._alive = dict.fromkeys(self._find_alive())
        together = {}
        for key in self._alive:
            try:
                usage = self._look_at(key)
                if usage is not None:
                    together[key] = usage
            except OSError:
                pass                # it has ended, or is another user's
        self.together.add(frozenset(together))
        self.most_arenas = max(self.most_arenas, smaps.count_once(
            together.values()).arenas)

    def _look_at(self, key):
        """Look at one.  Return its Usage if it is an interpreter with the
        option, else None."""
        pid = key[0]
        seen = self.seen.get(key)
        # A process may become another program, or load the library later.
        patched = process.find_interpreter(pid, self._root) is not None
        if seen is None:
            seen = self.seen[key] = Seen(pid, patched)
        seen.patched = seen.patched or patched
        seen.looks += 1
        if not patched:
            return None
        usage = process.read_usage(pid, self._root)
        seen.hugetlb = max(seen.hugetlb, usage.hugetlb_arenas)
        seen.thp = max(seen.thp, usage.thp_arenas)
        return usage


# The lines that the interpreters write.

@dataclasses.dataclass
class Statistics:
    """What one process has written.  Numbers of arenas."""

    # By tier.
    peak: typing.Dict[str, int]
    # The tier of those that the pool had no page for: THP, or plain pages
    # where there are no THP.
    next_tier: str = "thp"
    # How many of that tier had not asked the pool: the first ones.
    never_asked: int = 0


def _count_first(entry):
    """The next tier, and how many arenas of it never asked the pool.

    Each arena that asked and was refused got a page of that tier.  Those
    beyond the number of refusals had not asked; at one time an interpreter has
    process.FIRST of these at most.  Where arenas have come and gone, pages of
    the pool may take the place of first arenas, so that all count as if they
    had asked.  So do those that a process gets after a fork, which do not ask
    either.
    """
    tier = "plain" if entry["thp"].get("unusable") else "thp"
    refused = sum(map(int, entry["hugetlb"].get("refused", {}).values()))
    ever = int(entry[tier]["ever"])
    if ever > int(entry[tier]["peak"]):
        return tier, 0
    return tier, min(process.FIRST, max(0, ever - refused))


def parse_statistics(text):
    """{PID: Statistics} of the lines of a statistics file.

    Whatever is no such line is passed over: a process may have been killed
    while it wrote.  Of several lines with one PID (an interpreter in a program
    may be finalized more than once) the highest numbers count; as the later
    lines go on from the earlier ones, the last one's first arenas.
    """
    found = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            pid = int(entry["pid"])
            peaks = {tier: int(entry[tier]["peak"]) for tier in TIERS}
            next_tier, never_asked = _count_first(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        old = found.setdefault(pid, Statistics(peaks))
        for tier in TIERS:
            old.peak[tier] = max(old.peak[tier], peaks[tier])
        old.next_tier, old.never_asked = next_tier, never_asked
    return found


# Running the command.

@dataclasses.dataclass
class Outcome:
    """What a command did."""

    command: typing.List[str]
    mode: str
    pid: int
    # As the shell has it: its exit status, or 128 + the signal.
    status: int
    wall: float                     # seconds
    minor_faults: int
    major_faults: int
    # By PID, exact.
    statistics: typing.Dict[int, Statistics]
    # Seen of each process that was an interpreter with the option, by (PID,
    # start time).
    seen: typing.Dict[typing.Tuple[int, int], Seen]
    # Sets of keys of seen: which of them were there at the same time.
    together: typing.Set[typing.FrozenSet[typing.Tuple[int, int]]]
    # What was set for malloc(), if anything.
    malloc_settings: typing.Optional[malloc.Settings] = None
    # Sampler.most_arenas.
    most_arenas: int = 0


def start_error(command, error):
    """ToolError for a command that could not be started: the shell's status
    and a line."""
    name = command[0]
    # A directory in PATH that may not be searched is no reason to say that the
    # command may not be executed.
    is_nowhere = "/" not in name and shutil.which(name, os.F_OK) is None
    if is_nowhere or isinstance(error, (FileNotFoundError,
                                        NotADirectoryError)):
        if os.path.exists(name) and "/" in name:
            return ToolError(f"cannot run {name!r}: the interpreter that its "
                             "first line names does not exist", 127)
        return ToolError(f"cannot run {name!r}: there is no such command; "
                         "give its path, or one that is in PATH", 127)
    return ToolError(f"cannot run {name!r}: {error.strerror}; give a program "
                     "that you may execute", 126)


@contextlib.contextmanager
def _blocked(signals):
    """Keep signals pending for the block, and throw away what came late."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield old
    finally:
        while signal.sigtimedwait(signals, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _wait(pid, signals):
    """Wait for the command and pass signals on to it.

    Return (wait status, resource usage).
    """
    while True:
        ended, wait_status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return wait_status, usage
        info = signal.sigwaitinfo(signals)
        if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
            with contextlib.suppress(PermissionError):
                os.kill(pid, info.si_signo)     # not sudo's, for example


def _start(command, variables, stdout, mask, user):
    """Start a command; return its PID."""
    environment = {**os.environ, **variables}
    if user is None:
        # Python ignores SIGPIPE and SIGXFSZ; programs do not expect that.
        return os.posix_spawnp(
            command[0], command, environment, setsigmask=mask,
            file_actions=([] if stdout is None
                          else [(os.POSIX_SPAWN_DUP2, stdout, 1)]),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))

    def prepare():
        user.become()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # posix_spawn() cannot change the user.  Popen does a little more work in
    # the child, which counts as the command's, and sets the same signals.
    child = subprocess.Popen(command, env=environment, stdout=stdout,
                             close_fds=False, preexec_fn=prepare)
    child.returncode = 0            # who calls waits for it
    return child.pid


def execute(command, mode, stdout=None, malloc_settings=None, user=None):
    """Run a command to its end.  Return Outcome.

    It inherits what this process has: standard streams, other descriptors,
    environment, except for the switch, STATISTICS and what malloc_settings, a
    malloc.Settings, has.  stdout is a descriptor that it gets instead of its
    standard output, user the sudo.User that it runs as.  Raise ToolError if it
    cannot be started.
    """
    # A process in the background of a script is not to be stopped by Ctrl-C,
    # nor is one under nohup by SIGHUP: such signals stay ignored.
    signals = {each for each in _FORWARDED
               if signal.getsignal(each) != signal.SIG_IGN}
    # Where it is ignored, which is inherited, children cannot be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signals.add(signal.SIGCHLD)
    variables = {**(malloc_settings.variables if malloc_settings else {}),
                 **(user.variables if user else {}), SWITCH: mode}
    with contextlib.ExitStack() as stack:
        try:
            # A directory: a process that outlives the command cannot make the
            # file again when that is gone.
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="hugepages-"))
            if user is not None:
                os.chown(directory, user.uid, user.gid)
        except OSError as error:
            raise ToolError("cannot make a temporary directory: "
                            f"{error.strerror}; set TMPDIR") from None
        path = os.path.join(directory, "statistics")
        old_mask = stack.enter_context(_blocked(signals))
        started = time.monotonic()
        try:
            pid = _start(command, {**variables, STATISTICS: path}, stdout,
                         old_mask, user)
        except OSError as error:
            raise start_error(command, error) from None
        except ValueError as error:
            raise ToolError(f"cannot run {command[0]!r}: {error}") from None
        sampler = Sampler(pid)
        sampler.start()
        wait_status, usage = _wait(pid, signals)
        wall = time.monotonic() - started
        sampler.stop()
        try:
            with open(path, errors="replace") as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
    status = (128 + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status)
              else os.WEXITSTATUS(wait_status))
    return Outcome(
        command, mode, pid, status, wall, usage.ru_minflt, usage.ru_majflt,
        parse_statistics(text),
        {key: seen for key, seen in sampler.seen.items() if seen.patched},
        sampler.together, malloc_settings, sampler.most_arenas)


# What is said of it.

def processes(outcome):
    """A list of dicts, one for each process that was an interpreter with the
    option: pid, source ("statistics" or "sampled"), peak.  Where it is sampled
    there is looks, too, and peak["plain"] is None.  The command itself is the
    first, if it is there."""
    found = {pid: {"pid": pid, "source": "statistics", "peak": each.peak}
             for pid, each in outcome.statistics.items()}
    for seen in outcome.seen.values():
        found.setdefault(seen.pid, {
            "pid": seen.pid, "source": "sampled", "looks": seen.looks,
            "peak": {"hugetlb": seen.hugetlb, "thp": seen.thp, "plain": None}})
    return sorted(found.values(),
                  key=lambda entry: (entry["pid"] != outcome.pid,
                                     entry["pid"]))


def add_peaks(entries):
    """{tier: sum of the peaks}; None if it is known of none."""
    total = {}
    for tier in TIERS:
        known = [entry["peak"][tier] for entry in entries
                 if entry["peak"][tier] is not None]
        total[tier] = sum(known) if known else None
    return total


def as_dict(outcome):
    """An Outcome as plain JSON types."""
    entries = processes(outcome)
    sampled = sum(entry["source"] == "sampled" for entry in entries)
    return {
        "command": outcome.command,
        "mode": outcome.mode,
        "malloc": (outcome.malloc_settings
                   and outcome.malloc_settings.as_dict()),
        "pid": outcome.pid,
        "status": outcome.status,
        "wall_seconds": round(outcome.wall, 6),
        "page_faults": {"minor": outcome.minor_faults,
                        "major": outcome.major_faults},
        "patched": bool(entries),
        "peak_arenas": add_peaks(entries) if entries else None,
        "most_arenas": outcome.most_arenas,
        "sampled_processes": sampled,
        "processes": entries,
    }


def _tiers(peaks):
    plain = "unknown" if peaks["plain"] is None else f"{peaks['plain']:,}"
    return (f"{peaks['hugetlb']:,} hugetlb, {peaks['thp']:,} THP, "
            f"{plain} plain")


def as_line(outcome):
    """An Outcome as one line of text."""
    entries = processes(outcome)
    if not entries:
        arenas = ("no interpreter built --with-pymalloc-hugepages or with "
                  "the wheel was seen")
    else:
        arenas = "peak arenas: " + _tiers(add_peaks(entries))
        sampled = sum(entry["source"] == "sampled" for entry in entries)
        notes = []
        if len(entries) > 1:
            notes.append(f"sum of {len(entries):,} processes")
            if outcome.most_arenas:
                # At one time; those on plain pages are not seen.
                notes.append(f"{outcome.most_arenas:,} hugetlb and THP at most"
                             " if shared ones count once")
            if entries[0]["pid"] == outcome.pid:
                notes.append("the command itself: "
                             + _tiers(entries[0]["peak"]))
        if sampled == len(entries) == 1:
            notes.append("sampled, " + plural(entries[0]["looks"], "look"))
        elif sampled == len(entries):
            notes.append("sampled")
        elif sampled:
            notes.append(f"{sampled:,} of them sampled")
        if notes:
            arenas += f" ({'; '.join(notes)})"
    faults = (f"{outcome.minor_faults:,} minor and "
              f"{plural(outcome.major_faults, 'major page fault')}")
    return f"{arenas}; {faults}; {outcome.wall:.3f} s"


# The command.

def add_arguments(parser):
    parser.add_argument("--mode", choices=MODES, default="on",
                        help=f"value of {SWITCH} (default: on)")
    parser.add_argument("--malloc", action="store_true",
                        help="set malloc() for large buffers, too, and say "
                        "what is set (glibc 2.26)")
    parser.add_argument("--output", metavar="FILE",
                        help="write the line to FILE and not to stderr")
    parser.add_argument("command", nargs="*", metavar="COMMAND",
                        help="what to run, with its arguments")


def main(options):
    """Return the exit status of the command."""
    if not options.command:
        raise ToolError("run: no command to run; give one: run -- COMMAND "
                        "[ARGUMENT ...]")
    settings = None
    if options.malloc:
        settings = malloc.settings(os.environ, malloc.glibc_version())
    with contextlib.ExitStack() as stack:
        output = sys.stderr
        if options.output is not None:
            try:
                # Line-buffered: no error can be left for close().
                output = stack.enter_context(
                    open(options.output, "w", buffering=1,
                         errors="backslashreplace"))
            except OSError as error:
                raise ToolError(f"cannot write {options.output!r}: "
                                f"{error.strerror}") from None
        if settings is not None and not options.json:
            _say(f"{program()}: {settings.as_line()}", output)
        outcome = execute(options.command, options.mode,
                          malloc_settings=settings)
        _say(as_json("run", as_dict(outcome), None) if options.json
             else f"{program()}: {as_line(outcome)}", output)
    return outcome.status


def _say(line, output):
    """Write a line.  The command's status is what matters, whoever reads it.
    """
    with contextlib.suppress(OSError):
        print(line, file=output)
