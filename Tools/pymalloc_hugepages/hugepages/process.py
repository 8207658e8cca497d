"""What a running process is and has, from /proc/PID.

Every function that reads /proc takes root, the directory that holds proc, so
that recorded trees can be given.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
import typing

from . import ARENA_SIZE, MIB, ToolError, program, smaps


# How many arenas of an interpreter are plain memory at first
# (Objects/hugepages/pymalloc.c).
FIRST = 2

# A string that every interpreter built with the option contains (in its help
# text), the wheel's extension, and nothing else.
MARKER = b"PYTHON_PYMALLOC_HUGEPAGES=thp"

# The libraries that may contain it: CPython's, and the wheel's extension.
_EXTENSION = "_pymalloc_hugepages"
_LIBRARIES = ("libpython", _EXTENSION)

# Variables of its environment that decide what an interpreter's arenas get.
_VARIABLES = ("PYTHON_PYMALLOC_HUGEPAGES", "PYTHONMALLOC", "PYTHONDEVMODE")

# include/linux/sched.h: the flag of a kernel thread in /proc/PID/stat.
PF_KTHREAD = 0x200000


class ProcessGone(ToolError):
    """There is no such process, or there is none any more."""


# Reading /proc.

def own_command():
    """How this tool was called, to be put into advice."""
    called = sys.argv[0] or ""
    if os.path.basename(called) != program():
        return program()
    if called == program() and os.path.exists(called):
        called = f"./{called}"          # it need not be in PATH
    return shlex.quote(called)


def list_pids(root="/"):
    """The processes that /proc lists, as ints.  Raise ToolError if it lists
    none."""
    try:
        pids = [int(name) for name in os.listdir(proc_path(root))
                if name.isdecimal()]
        why = "is empty"
    except OSError as error:
        pids, why = [], error.strerror
    if not pids:
        raise ToolError(f"cannot list processes: {proc_path(root)}: {why}; "
                        "mount it: mount -t proc proc /proc")
    return sorted(pids)


@contextlib.contextmanager
def explain(pid, root="/"):
    """Turn the OSErrors of reading /proc/PID into a ToolError."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        list_pids(root)
        raise ProcessGone(f"there is no process {pid}, or it has just ended; "
                          "give the PID or the name of a running one"
                          ) from None
    except PermissionError:
        raise ToolError(f"no permission to look at process {pid}: "
                        + (f"only its user and root may; run: sudo "
                           f"{own_command()} status {pid}"
                           if os.geteuid() != 0 else "this root lacks "
                           "CAP_SYS_PTRACE for it, as in a container; look "
                           "from the host")) from None
    except OSError as error:
        raise ToolError(f"cannot look at process {pid}: "
                        f"{error.strerror}") from None


def proc_path(root, *names):
    return os.path.join(root, "proc", *map(str, names))


def _read(root, pid, name):
    with open(proc_path(root, pid, name), "rb") as file:
        return file.read()


@dataclasses.dataclass(frozen=True)
class Stat:
    """Some fields of /proc/PID/stat."""

    name: str
    state: str
    parent: int
    flags: int
    # Ticks after boot.  With the PID it says which process it is.
    start: int


def read_stat(pid, root="/"):
    """Stat of a process.  Raise OSError if there is none."""
    head, _, tail = _read(root, pid, "stat").rpartition(b")")
    fields = tail.split()
    name = head.partition(b"(")[2]
    return Stat(printable(name), fields[0].decode(), int(fields[1]),
                int(fields[6]), int(fields[19]))


def read_arguments(pid, root="/"):
    """The command line as a list of bytes.  Raise OSError."""
    data = _read(root, pid, "cmdline")
    return data.rstrip(b"\0").split(b"\0") if data else []


def printable(data):
    """Bytes as text without anything that a terminal would act on."""
    text = data.decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def read_usage(pid, root="/"):
    """Usage of a process.  Raise OSError if its smaps cannot be read."""
    with open(proc_path(root, pid, "smaps"), errors="replace") as file:
        return smaps.add_up(smaps.parse(file))


def read_memory(pid, root="/"):
    """Memory of a process.  Raise OSError."""
    try:
        file = open(proc_path(root, pid, "smaps_rollup"), errors="replace")
    except FileNotFoundError:           # before Linux 4.14
        file = open(proc_path(root, pid, "smaps"), errors="replace")
    with file:
        return smaps.add_up_memory(smaps.parse(file))


# Is it an interpreter with the option, or the wheel's extension?

_known_files = {}


def _find_in(file, wanted):
    """Whether an open binary file contains some bytes.

    Read piece by piece: a library that is replaced meanwhile would be SIGBUS
    if it were mapped.
    """
    piece = file.read(MIB)
    while piece:
        if wanted in piece:
            return True
        more = file.read(MIB)
        piece = piece[-len(wanted) + 1:] + more if more else b""
    return False


def _contains_marker(path):
    """Whether a file has MARKER in it.  Raise OSError."""
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        key = stat.st_dev, stat.st_ino, stat.st_mtime_ns
        if key not in _known_files:
            _known_files[key] = _find_in(file, MARKER)
        return _known_files[key]


def _is_extension(path):
    return os.path.basename(path).startswith(_EXTENSION)


def _mapped_libraries(pid, root):
    """Pairs of addresses "START-END" and path of mapped _LIBRARIES."""
    found = {}
    with open(proc_path(root, pid, "maps"), errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and ".so" in fields[5] and (
                    os.path.basename(fields[5]).startswith(_LIBRARIES)):
                found.setdefault(fields[5], fields[0])
    # The extension leaves an interpreter with the option alone.
    return [(found[path], path) for path in sorted(found, key=_is_extension)]


def find_interpreter(pid, root="/"):
    """Path of the program or library that makes a process an interpreter with
    the option, or with the wheel's extension; None if it is neither.

    Both are read through /proc, so processes in other containers, and files
    that have been deleted since, are found out about as well.
    Raise OSError if that cannot be found out.
    """
    program = proc_path(root, pid, "exe")
    if _contains_marker(program):
        return os.readlink(program) if os.path.islink(program) else program
    for addresses, path in _mapped_libraries(pid, root):
        # The first needs a capability that even root may lack in a container;
        # the second finds another file, or none, once that one is replaced.
        for name in (proc_path(root, pid, "map_files", addresses),
                     proc_path(root, pid, "root", path.lstrip("/"))):
            try:
                if _contains_marker(name):
                    return path
                break
            except OSError as error:
                problem = error
        else:
            raise problem
    return None


# A process as it is shown.

@dataclasses.dataclass(frozen=True)
class Report:
    """All that is shown of one process.  Of one that may not be looked at,
    only the first five and the problem are known."""

    pid: int
    parent: int
    name: str
    command: str
    start: int
    # Why nothing else is known, or None.
    problem: typing.Optional[str] = None
    # Path of the program or library with the option, or of the wheel's
    # extension, or None.
    interpreter: typing.Optional[str] = None
    # Why that could not be found out, or None.
    unknown: typing.Optional[str] = None
    memory: typing.Optional[smaps.Memory] = None
    # None if it is no interpreter with one of these.
    usage: typing.Optional[smaps.Usage] = None
    # THP_enabled of /proc/PID/status (Linux 5.0): False if the process has
    # been forbidden to have any (PR_SET_THP_DISABLE).
    thp_enabled: typing.Optional[bool] = None
    # Variables that it was started with; None: not known.
    environment: typing.Optional[typing.Dict[str, str]] = None

    @property
    def patched(self):
        """Whether it is an interpreter with the option, or with the wheel's
        extension; None: not known."""
        if self.problem is not None or self.unknown is not None:
            return None
        return self.interpreter is not None

    @property
    def feature(self):
        """Which of the two: "option" or "wheel"; None: neither, or not known.
        """
        if self.interpreter is None:
            return None
        return "wheel" if _is_extension(self.interpreter) else "option"


def _read_thp_enabled(pid, root):
    for line in _read(root, pid, "status").splitlines():
        name, _, value = line.partition(b":")
        if name == b"THP_enabled":
            return value.strip() == b"1"
    return None


def _read_environment(pid, root):
    """The variables of _VARIABLES with which a process was started; None if
    that is not known: a title may have been written over them."""
    try:
        items = _read(root, pid, "environ").split(b"\0")
    except OSError:
        return None
    if len(items) > 1 and b"=" not in items[0]:
        return None
    pairs = (item.partition(b"=") for item in items)
    return {name.decode(): printable(value) for name, _, value in pairs
            if name.decode(errors="replace") in _VARIABLES}


def identify(pid, root="/"):
    """What anybody may know of a process: a Report without figures."""
    with explain(pid, root):
        stat = read_stat(pid, root)
        arguments = read_arguments(pid, root)
    command = shlex.join(printable(argument) for argument in arguments)
    if len(arguments) == 1 and b" " in arguments[0]:
        command = printable(arguments[0])       # a title, as of setproctitle
    return Report(pid, stat.parent, stat.name, command or f"[{stat.name}]",
                  stat.start)


def look_at(pid, root="/"):
    """Report of a process.

    Raise ProcessGone if there is none, ToolError if it has no memory of its
    own or may not be looked at.
    """
    with explain(pid, root):
        stat = read_stat(pid, root)
        if stat.flags & PF_KTHREAD:
            raise ToolError(f"process {pid} ({stat.name}) is a thread of the "
                            "kernel and has no memory of its own; give the "
                            "PID of a program")
        if stat.state in "ZX":
            raise ProcessGone(f"process {pid} ({stat.name}) has ended and "
                              "only waits for its parent to notice; its "
                              "memory is gone")
        memory = read_memory(pid, root)
        interpreter = unknown = usage = None
        try:
            interpreter = find_interpreter(pid, root)
        except OSError as error:
            unknown = error.strerror
        if interpreter is not None or unknown is not None:
            usage = read_usage(pid, root)
        report = dataclasses.replace(
            identify(pid, root), interpreter=interpreter, unknown=unknown,
            memory=memory, usage=usage,
            thp_enabled=_read_thp_enabled(pid, root),
            environment=_read_environment(pid, root))
        if read_stat(pid, root).state in "ZX":
            # It ended meanwhile: smaps may have been empty already.
            raise ProcessLookupError
    return report


def arenas_as_dict(usage):
    """The items of JSON for a Usage, or for None."""
    if usage is None:
        return {"hugetlb": None, "thp": None, "huge_percent": None}
    return {
        "hugetlb": {"arenas": usage.hugetlb_arenas,
                    "size": usage.hugetlb_size,
                    "on_huge_pages": usage.hugetlb},
        "thp": {"arenas": usage.thp_arenas, "size": usage.thp_size,
                "on_huge_pages": usage.thp},
        "huge_percent": usage.percent and round(usage.percent, 1),
    }


def as_dict(report):
    """A Report as plain JSON types.  Sizes in bytes."""
    memory = report.memory and dataclasses.asdict(report.memory)
    arenas = arenas_as_dict(report.usage)
    if report.usage is not None:
        arenas["thp"].update(size_once=report.usage.thp_size_once,
                             on_huge_pages_once=report.usage.thp_once)
    return {
        "pid": report.pid,
        "parent": report.parent,
        "name": report.name,
        "command": report.command,
        "patched": report.patched,
        "feature": report.feature,
        "interpreter": report.interpreter,
        "problem": report.problem or report.unknown,
        "arena_size": ARENA_SIZE,
        **arenas,
        "memory": memory,
        "thp_enabled": report.thp_enabled,
        "environment": report.environment,
    }
