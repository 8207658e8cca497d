"""The processes of a service, found by a PID, a name, a systemd unit or a
cgroup, and what they have together.
"""

import dataclasses
import os
import re
import typing

from . import ARENA_SIZE, ToolError, process, smaps, system


# What systemd calls cgroups.
_UNIT_SUFFIXES = (".service", ".scope", ".slice")


# Which processes are meant.

def _script_name(arguments):
    """The base name of the script, or the module, that an interpreter called
    with these arguments runs; None if that is neither."""
    arguments = iter(arguments)
    for argument in arguments:
        if argument == b"--check-hash-based-pycs":
            next(arguments, None)
        elif argument.startswith(b"--"):
            pass
        elif argument == b"-":
            return None
        elif argument.startswith(b"-"):
            # Letters may stand together, and -X, -W, -m and -c take what
            # follows, or the next argument.
            match = re.match(b"-[^XWmc]*([XWmc])(.*)", argument, re.DOTALL)
            if match is None:
                continue
            value = match[2] or next(arguments, None)
            if match[1] == b"m":
                return value
            if match[1] == b"c":
                return None
        else:
            return os.path.basename(argument)
    return None


def _names(stat, arguments):
    """The names of a process, as bytes: its own, that of its command, that of
    the Python script or module it runs, its whole command line, and the first
    word of its title ("gunicorn: worker [app:app]")."""
    names = {os.fsencode(stat.name), b" ".join(arguments)}
    if arguments:
        command = os.path.basename(arguments[0])
        names.add(command)
        if command.startswith((b"python", b"pypy")):
            names.add(_script_name(arguments[1:]))
        if len(arguments) == 1:
            word = re.match(rb"\[?([^\s:\]]*)", arguments[0])[1]
            names.add(os.path.basename(word))
    return names


def _cgroups(pid, root):
    """The paths of a process's cgroups, one in each hierarchy, and the same
    as they are found below /sys/fs/cgroup."""
    with open(process.proc_path(root, pid, "cgroup"),
              errors="surrogateescape") as file:
        for line in file:
            _, name, path = line.rstrip("\n").split(":", 2)
            yield path
            # cgroup v1: "memory", "name=systemd".
            if name:
                yield f"/{name.rpartition('=')[2]}{path}"


class Selection:
    """What is asked for, and how its processes are found."""

    def __init__(self, target=None, cgroup=None, root="/"):
        self.root = root
        self.target = target
        self.cgroup = cgroup
        # When the process of a PID started: the PID may be another's later.
        self._start = None
        if cgroup is not None:
            self._cgroup = "/" + re.sub(
                r"^/sys/fs/cgroup(?=/|$)", "", cgroup).strip("/")

    @property
    def name(self):
        return self.target if self.cgroup is None else self.cgroup

    def _scan(self):
        """{PID: Stat} of all processes but this one."""
        found = {}
        for pid in process.list_pids(self.root):
            try:
                if pid != os.getpid() or str(pid) == self.target:
                    found[pid] = process.read_stat(pid, self.root)
            except OSError:
                pass            # it has ended
        return found

    def _matching(self, stats, test):
        matching = set()
        for pid, stat in stats.items():
            try:
                if test(pid, stat):
                    matching.add(pid)
            except OSError:
                pass            # it has ended
        return matching

    def _find_pid(self, stats):
        pid = int(self.target)
        with process.explain(pid, self.root):
            # A thread's is not listed.
            stat = stats.setdefault(pid, process.read_stat(pid, self.root))
        if self._start not in (None, stat.start):
            raise process.ProcessGone(f"process {pid} has ended, and the PID "
                                      "belongs to another one")
        self._start = stat.start
        return {pid}

    def _is_in_cgroup(self, pid, stat):
        # Kernel threads are in the topmost one.
        if stat.flags & process.PF_KTHREAD:
            return False
        below = self._cgroup.rstrip("/") + "/"
        return any((path + "/").startswith(below)
                   for path in _cgroups(pid, self.root))

    def _is_in_unit(self, pid, stat):
        return any(self.target in path.split("/")
                   for path in _cgroups(pid, self.root))

    def _is_called(self, pid, stat):
        return os.fsencode(self.target) in _names(
            stat, process.read_arguments(pid, self.root))

    def _is_in_command_line(self, pid, stat):
        return os.fsencode(self.target) in b" ".join(
            process.read_arguments(pid, self.root))

    def _find_named(self, stats):
        if not self.target:
            return set()
        named = self._matching(stats, self._is_called)
        if not named:
            # As pgrep --full does; but not what has started this tool.
            named = self._matching(stats, self._is_in_command_line)
            pid = os.getppid()
            while pid in stats:
                named.discard(pid)
                pid = stats[pid].parent
        return named

    def find(self):
        """[(PID, depth)] as a tree: parents before their children, which are
        one deeper.  Raise ToolError if there are none."""
        stats = self._scan()
        if self.cgroup is not None:
            found = self._matching(stats, self._is_in_cgroup)
            problem = (f"no process is in the cgroup {self._cgroup!r}; give a "
                       "path as in /proc/PID/cgroup")
        elif self.target.isdecimal() and self.target.isascii():
            found = _with_children(self._find_pid(stats), stats)
        elif self.target.endswith(_UNIT_SUFFIXES):
            found = self._matching(stats, self._is_in_unit)
            problem = (f"no process is in the unit {self.target!r}; is it "
                       f"active?  systemctl status {self.target}")
        else:
            found = _with_children(self._find_named(stats), stats)
            problem = (f"no process is called {self.target!r}, or has that in "
                       "its command line; give a PID, or a name that ps -ef "
                       "shows")
        if not found:
            raise process.ProcessGone(problem)
        return _as_tree(found, stats)


def _children(stats):
    children = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    return children


def _with_children(pids, stats):
    """These and all their descendants."""
    children = _children(stats)
    pending, found = list(pids), set()
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, ())
    return found


def _as_tree(pids, stats):
    children = _children(stats)
    tree = []

    def add(siblings, depth):
        for pid in sorted(siblings, key=lambda pid: (stats[pid].start, pid)):
            if pid in pids:
                tree.append((pid, depth))
                add(children.get(pid, ()), depth + 1)

    add([pid for pid in pids if stats[pid].parent not in pids], 0)
    return tree


# One look at them.

@dataclasses.dataclass(frozen=True)
class Service:
    """The processes of one look."""

    name: str
    # (depth in the tree, Report)
    rows: typing.Tuple[typing.Tuple[int, process.Report], ...]
    # Pages that the kernel's pool has; None: not known.
    pool: typing.Optional[int]

    @property
    def reports(self):
        return [report for _, report in self.rows]

    @property
    def readable(self):
        return [each for each in self.reports if each.problem is None]

    @property
    def unreadable(self):
        return [each for each in self.reports if each.problem is not None]

    @property
    def interpreters(self):
        """Those with the option, or with the wheel's extension."""
        return [each for each in self.readable if each.patched]

    @property
    def arenas(self):
        """Usage of all together."""
        return smaps.count_once(each.usage for each in self.interpreters)

    @property
    def memory(self):
        """{name: sum} of their Memory.  Without rss and thp, which would count
        what is shared many times."""
        return {name: sum(getattr(each.memory, name)
                          for each in self.readable)
                for name in ("pss", "uss", "swap", "hugetlb")}

    @property
    def status(self):
        """The exit status that speaks for it."""
        if len(self.readable) < len(self.rows) or any(
                each.patched is None for each in self.readable):
            return 2
        return 0 if self.arenas.has_huge_pages else 1


def _look_at(pid, root):
    """Report of a process, with a problem if it may not be looked at.  Raise
    ProcessGone."""
    try:
        return process.look_at(pid, root)
    except process.ProcessGone:
        raise
    except ToolError as error:
        return dataclasses.replace(process.identify(pid, root),
                                   problem=str(error))


def look(selection):
    """Service as it is now.  Raise ToolError if there is no process."""
    rows = []
    gone = None
    for pid, depth in selection.find():
        try:
            rows.append((depth, _look_at(pid, selection.root)))
        except process.ProcessGone as error:
            gone = error
    if not rows:
        raise gone
    pool = system.scan(selection.root).pool(ARENA_SIZE)
    return Service(selection.name, tuple(rows), pool and pool.total)
