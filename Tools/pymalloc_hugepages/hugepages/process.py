"""What a running process has: `status PID`, `status NAME`, --watch.

All figures come from /proc/PID/smaps.  An arena is 2 MiB.  Seen from outside
it is a mapping that is private, writable, aligned to 2 MiB and a multiple of
it, and that

    is on 2 MiB pages of the pool                       hugetlb
    was advised to be on transparent huge pages         THP

The advice is taken back at a fork, so that the kernel leaves alone what the
two processes share: what must not be put on huge pages counts as THP, too.

Adjacent arenas may be one mapping.  An arena on plain pages looks like any
other memory, so these are not counted, nor guessed; the first arenas of an
interpreter are on plain pages until it needs more.

Every function that reads /proc takes root, the directory that holds proc, so
that recorded trees can be given.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
import time
import typing

from . import ARENA_SIZE, KIB, MIB, ToolError, mib, plural, program


# How many arenas of an interpreter are plain memory at first
# (Objects/hugepages/pymalloc.c).
FIRST = 2

# A string that every interpreter built with the option contains (in its help
# text) and no other does.
MARKER = b"PYTHON_PYMALLOC_HUGEPAGES=thp"

# Variables of its environment that decide what an interpreter's arenas get.
_VARIABLES = ("PYTHON_PYMALLOC_HUGEPAGES", "PYTHONMALLOC", "PYTHONDEVMODE")

# include/linux/sched.h: the flag of a kernel thread in /proc/PID/stat.
_PF_KTHREAD = 0x200000

# Default of --watch, in seconds.
INTERVAL = 1.0


class ProcessGone(ToolError):
    """There is no such process, or there is none any more."""


# Reading /proc.

@contextlib.contextmanager
def _explain(pid):
    """Turn the OSErrors of reading /proc/PID into a ToolError."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"there is no process {pid}, or it has just ended; "
                          "give the PID or the name of a running one"
                          ) from None
    except PermissionError:
        raise ToolError(f"no permission to look at process {pid}: only its "
                        f"user and root may; run: sudo {own_command()} "
                        f"status {pid}") from None
    except OSError as error:
        raise ToolError(f"cannot look at process {pid}: "
                        f"{error.strerror}") from None


def own_command():
    """How this tool was called, to be put into advice."""
    called = sys.argv[0] or ""
    if os.path.basename(called) != program():
        return program()
    if called == program() and os.path.exists(called):
        called = f"./{called}"          # it need not be in PATH
    return shlex.quote(called)


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


def list_pids(root="/"):
    """The processes that /proc lists, as ints."""
    try:
        names = os.listdir(proc_path(root))
    except OSError as error:
        raise ToolError(f"cannot list processes: {proc_path(root)}: "
                        f"{error.strerror}") from None
    return sorted(int(name) for name in names if name.isdecimal())


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


def _is_called(name, pid, root):
    """Whether a process has the name: its own, that of its command, or that
    of the Python script or module it runs."""
    if os.fsencode(name) == _read(root, pid, "comm").rstrip(b"\n"):
        return True
    arguments = read_arguments(pid, root)
    if not arguments:
        return False
    command = os.path.basename(arguments[0])
    names = {command}
    if command.startswith((b"python", b"pypy")):
        names.add(_script_name(arguments[1:]))
    return os.fsencode(name) in names


def find(text, root="/"):
    """The PIDs that PID or NAME names.  Raise ToolError if there are none."""
    if text.isdecimal() and text.isascii():
        return [int(text)]
    found = []
    for pid in list_pids(root):
        try:
            if pid != os.getpid() and _is_called(text, pid, root):
                found.append(pid)
        except OSError:
            pass            # it ended, or does not let itself be looked at
    if not found:
        raise ToolError(f"no process is called {text!r}; give a PID, the name "
                        "that ps -e shows, or that of a script")
    return found


# Is it an interpreter that was built with the option?

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


def _mapped_libraries(pid, root):
    """Pairs of addresses "START-END" and path of the mapped libpythons."""
    found = {}
    with open(proc_path(root, pid, "maps"), errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and ".so" in fields[5] and (
                    os.path.basename(fields[5]).startswith("libpython")):
                found.setdefault(fields[5], fields[0])
    return [(addresses, path) for path, addresses in found.items()]


def find_interpreter(pid, root="/"):
    """Path of the program or library that makes a process an interpreter built
    with the option; None if it is none.

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


# smaps.

@dataclasses.dataclass
class Region:
    """One mapping of /proc/PID/smaps.  Sizes in bytes."""

    start: int
    end: int
    permissions: str
    name: str = ""
    kernel_page_size: int = 0
    # AnonHugePages: what of it is on transparent huge pages now.
    thp: int = 0
    # Private_Hugetlb and Shared_Hugetlb: what of it has pages of the pool.
    hugetlb: int = 0
    flags: typing.Tuple[str, ...] = ()

    @property
    def size(self):
        return self.end - self.start

    @property
    def is_hugetlb(self):
        return "ht" in self.flags or self.hugetlb > 0

    @property
    def tier(self):
        """"hugetlb" or "thp" if the mapping can be arenas on that, else None.
        """
        if (self.start % ARENA_SIZE or self.size % ARENA_SIZE
                or self.permissions != "rw-p"):
            return None
        if self.is_hugetlb:
            # The kernel's own name for memory of the pool.
            if (self.kernel_page_size == ARENA_SIZE
                    and self.name in ("", "/anon_hugepage",
                                      "/anon_hugepage (deleted)")):
                return "hugetlb"
        elif not self.name and not {"hg", "nh"}.isdisjoint(self.flags):
            return "thp"
        return None


_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
_SIZE_FIELDS = {"KernelPageSize": "kernel_page_size",
                "AnonHugePages": "thp",
                "Private_Hugetlb": "hugetlb",
                "Shared_Hugetlb": "hugetlb"}


def parse_smaps(file):
    """Yield a Region for each mapping in smaps, an open text file.

    Reads line by line.  Lines that it does not know are passed over: kernels
    differ in them.
    """
    region = None
    for line in file:
        name, _, value = line.partition(":")
        attribute = _SIZE_FIELDS.get(name)
        if attribute is not None and region is not None:
            size = int(value.split()[0]) * KIB
            setattr(region, attribute, getattr(region, attribute) + size)
        elif name == "VmFlags" and region is not None:
            region.flags = tuple(value.split())
        elif " " in name:
            match = _HEADER.match(line)
            if match is not None:
                if region is not None:
                    yield region
                region = Region(int(match[1], 16), int(match[2], 16),
                                match[3], match[4].strip())
    if region is not None:
        yield region


@dataclasses.dataclass
class Usage:
    """What a process has on huge pages.  Sizes in bytes; the numbers of arenas
    are sizes / ARENA_SIZE."""

    # Arenas on the pool, and what of them has a page.
    hugetlb_size: int = 0
    hugetlb: int = 0
    # Arenas advised to be on THP, and what of them is on huge pages now.
    thp_size: int = 0
    thp: int = 0
    # On huge pages now, but not in mappings that can be arenas.
    other_hugetlb: int = 0
    other_thp: int = 0

    @property
    def hugetlb_arenas(self):
        return self.hugetlb_size // ARENA_SIZE

    @property
    def thp_arenas(self):
        return self.thp_size // ARENA_SIZE

    @property
    def percent(self):
        """Share of these arenas that is on huge pages now; None without any.
        """
        size = self.hugetlb_size + self.thp_size
        return 100 * (self.hugetlb + self.thp) / size if size else None


def add_up(regions):
    """Usage of all the regions."""
    usage = Usage()
    for region in regions:
        tier = region.tier
        if tier == "hugetlb":
            usage.hugetlb_size += region.size
            usage.hugetlb += region.hugetlb
        elif tier == "thp":
            usage.thp_size += region.size
            usage.thp += region.thp
        else:
            usage.other_hugetlb += region.hugetlb
            usage.other_thp += region.thp
    return usage


def read_usage(pid, root="/"):
    """Usage of a process.  Raise OSError if its smaps cannot be read."""
    with open(proc_path(root, pid, "smaps"), errors="replace") as file:
        return add_up(parse_smaps(file))


# A process as it is shown.

@dataclasses.dataclass(frozen=True)
class Report:
    """All that is shown of one process."""

    pid: int
    name: str
    command: str
    start: int
    # Path of the program or library with the option, or None.
    interpreter: typing.Optional[str]
    # Why that could not be found out, or None.
    unknown: typing.Optional[str]
    usage: Usage
    # THP_enabled of /proc/PID/status (Linux 6.0): False if the process has
    # been forbidden to have any (PR_SET_THP_DISABLE).
    thp_enabled: typing.Optional[bool]
    environment: typing.Dict[str, str]

    @property
    def patched(self):
        """Whether it is an interpreter with the option; None: not known."""
        if self.unknown is not None:
            return None
        return self.interpreter is not None

    @property
    def status(self):
        """The exit status that speaks for this process."""
        if self.patched is None:
            return 2
        has_some = self.usage.hugetlb + self.usage.thp > 0
        return 0 if self.patched and has_some else 1


def _read_thp_enabled(pid, root):
    for line in _read(root, pid, "status").splitlines():
        name, _, value = line.partition(b":")
        if name == b"THP_enabled":
            return value.strip() == b"1"
    return None


def _read_environment(pid, root):
    """The variables of _VARIABLES with which a process was started."""
    try:
        items = _read(root, pid, "environ").split(b"\0")
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in items)
    return {name.decode(): printable(value) for name, _, value in pairs
            if name.decode(errors="replace") in _VARIABLES}


def look_at(pid, root="/"):
    """Report of a process.

    Raise ProcessGone if there is none, ToolError if it has no memory of its
    own or may not be looked at.
    """
    with _explain(pid):
        stat = read_stat(pid, root)
        if stat.flags & _PF_KTHREAD:
            raise ToolError(f"process {pid} ({stat.name}) is a thread of the "
                            "kernel and has no memory of its own; give the "
                            "PID of a program")
        if stat.state in "ZX":
            raise ProcessGone(f"process {pid} ({stat.name}) has ended and "
                              "only waits for its parent to notice; its "
                              "memory is gone")
        arguments = read_arguments(pid, root)
        usage = read_usage(pid, root)
        interpreter = unknown = None
        try:
            interpreter = find_interpreter(pid, root)
        except OSError as error:
            unknown = error.strerror
        thp_enabled = _read_thp_enabled(pid, root)
        environment = _read_environment(pid, root)
        if read_stat(pid, root).state in "ZX":
            # It ended meanwhile: smaps may have been empty already.
            raise ProcessLookupError
    command = " ".join(shlex.quote(printable(argument))
                       for argument in arguments)
    return Report(pid, stat.name, command or f"[{stat.name}]", stat.start,
                  interpreter, unknown, usage, thp_enabled, environment)


def as_dict(report):
    """A Report as plain JSON types.  Sizes in bytes."""
    usage = report.usage
    is_interpreter = report.patched is not False
    result = {
        "pid": report.pid,
        "name": report.name,
        "command": report.command,
        "patched": report.patched,
        "interpreter": report.interpreter,
        "arena_size": ARENA_SIZE,
        "hugetlb": None,
        "thp": None,
        "huge_percent": None,
        "all_hugetlb": usage.hugetlb + usage.other_hugetlb,
        "all_thp": usage.thp + usage.other_thp,
        "thp_enabled": report.thp_enabled,
        "environment": report.environment,
    }
    if is_interpreter:
        result["hugetlb"] = {"arenas": usage.hugetlb_arenas,
                             "size": usage.hugetlb_size,
                             "on_huge_pages": usage.hugetlb}
        result["thp"] = {"arenas": usage.thp_arenas, "size": usage.thp_size,
                         "on_huge_pages": usage.thp}
        if usage.percent is not None:
            result["huge_percent"] = round(usage.percent, 1)
    if report.unknown is not None:
        result["problem"] = report.unknown
    return result


def _arenas(number):
    return plural(number, "arena")


def _advice(report):
    """Lines that say why an interpreter has no arenas on huge pages."""
    for name, value in report.environment.items():
        if name == "PYTHON_PYMALLOC_HUGEPAGES" and value in ("off", "0"):
            yield f"It was started with {name}={value}: huge pages are off."
        elif name == "PYTHONMALLOC" and not value.startswith("pymalloc"):
            yield f"It was started with {name}={value}: pymalloc may be off."
    if report.thp_enabled is False:
        yield ("Transparent huge pages are disabled for it "
               "(PR_SET_THP_DISABLE).")
    if report.usage.hugetlb_size + report.usage.thp_size == 0:
        yield ("A small program has none: its first arenas "
               f"({mib(FIRST * ARENA_SIZE)}) are on plain pages until it "
               "needs more.")
    yield (f"`{own_command()} status` says what this system offers; "
           "-X pymalloc_hugepages=off, too, turns huge pages off.")


def _all_memory(usage):
    """What is on huge pages, of whatever it is."""
    return (f"{mib(usage.hugetlb + usage.other_hugetlb)} hugetlb, "
            f"{mib(usage.thp + usage.other_thp)} transparent")


def as_lines(report):
    """A Report as lines of text."""
    usage = report.usage
    lines = [f"{report.pid} {report.command}"]
    if report.patched is False:
        return lines + [
            "  This is no interpreter built --with-pymalloc-hugepages.",
            f"  All its memory on huge pages: {_all_memory(usage)}."]
    if report.patched:
        lines.append(f"  interpreter  {report.interpreter}, built "
                     "--with-pymalloc-hugepages")
    else:
        lines.append("  interpreter  cannot be read, so it is not known "
                     "whether these are arenas: " + report.unknown)
    lines += [
        f"  hugetlb      {_arenas(usage.hugetlb_arenas)}, "
        f"{mib(usage.hugetlb_size)}",
        f"  THP          {_arenas(usage.thp_arenas)} advised, "
        f"{mib(usage.thp_size)}; {mib(usage.thp)} of it on huge pages now"]
    if usage.percent is not None:
        lines.append(
            f"  huge pages   {usage.percent:.1f} % of these "
            f"{_arenas(usage.hugetlb_arenas + usage.thp_arenas)}")
    if usage.other_hugetlb or usage.other_thp:
        lines.append(f"  besides      {mib(usage.other_hugetlb)} hugetlb, "
                     f"{mib(usage.other_thp)} transparent that are no arenas")
    lines.append("  Arenas on plain pages are not counted: from outside they "
                 "look like other memory.")
    if usage.hugetlb + usage.thp == 0:
        lines += ["  " + line for line in _advice(report)]
    return lines


def _as_one_line(report):
    """A Report in short, for --watch."""
    usage = report.usage
    if report.patched is False:
        return (f"{report.pid} {report.name}: {_all_memory(usage)}; not built "
                "--with-pymalloc-hugepages")
    share = ("none on huge pages" if usage.percent is None
             else f"{usage.percent:.1f} % on huge pages")
    return (f"{report.pid} {report.name}: {_arenas(usage.hugetlb_arenas)} "
            f"hugetlb, {_arenas(usage.thp_arenas)} THP, {share}")


# The command.

def add_arguments(parser):
    parser.add_argument(
        "process", nargs="?", metavar="PID|NAME",
        help="show a process's arenas and not the system: a PID, or the name "
        "of a process, its program, or the script it runs (shows each process "
        "of that name)")
    parser.add_argument(
        "--watch", nargs="?", type=_interval, const=INTERVAL,
        metavar="SECONDS",
        help="show it again every SECONDS (default: 1), until the "
        "process ends or Ctrl-C")


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


def _show_once(pids, options):
    """Show each process that can be.  Return the exit status."""
    reports, problems = [], []
    for pid in pids:
        try:
            reports.append(look_at(pid))
        except ToolError as error:
            problems.append(error)
    if not reports:
        raise problems[0]
    if options.json:
        print(json.dumps({"processes": list(map(as_dict, reports))}, indent=2))
    else:
        print("\n\n".join("\n".join(as_lines(report)) for report in reports))
    problems = [problem for problem in problems
                if not isinstance(problem, ProcessGone)]
    for problem in problems:
        print(f"{program()}: {problem}", file=sys.stderr)
    return max([report.status for report in reports] + [2] * bool(problems))


def _watch(pids, options):
    """Show the processes again and again until all have ended.  Return 0."""
    starts = {}         # PIDs that are still shown, and when they started
    problems = {}
    for pid in pids:
        try:
            starts[pid] = look_at(pid).start
        except ToolError as error:
            problems[pid] = error
    if not starts:
        raise problems[pids[0]]
    try:
        while True:
            reports = []
            for pid, start in list(starts.items()):
                try:
                    report = look_at(pid)
                    if report.start != start:
                        raise ProcessGone("the PID belongs to another process")
                    reports.append(report)
                except ProcessGone:
                    del starts[pid]
            if not starts:
                return 0
            _show_again(reports, options)
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return 0


def _show_again(reports, options):
    now = time.strftime("%H:%M:%S")
    if options.json:
        print(json.dumps({"time": time.time(),
                          "processes": list(map(as_dict, reports))}))
    elif sys.stdout is not None and sys.stdout.isatty():
        blocks = "\n\n".join("\n".join(as_lines(report))
                             for report in reports)
        # Go to the top left, write, and clear what is left below.
        lines = f"{now}  (Ctrl-C ends)\n\n{blocks}\n".replace("\n", "\033[K\n")
        print(f"\033[H{lines}\033[J", end="")
    else:
        for report in reports:
            print(f"{now} {_as_one_line(report)}")
    if sys.stdout is not None:
        sys.stdout.flush()


def main(options):
    """Return the exit status: 0 if each process is an interpreter with the
    option and has some memory of its arenas on huge pages, else 1; 2 if it
    could not be found out.  With --watch: 0."""
    pids = find(options.process)
    if options.watch is not None:
        return _watch(pids, options)
    return _show_once(pids, options)
