"""`reserve`: put huge pages of 2 MiB into the kernel's pool.

`reserve N` makes the pool N pages large, pages in use included: what is in
/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages.  `reserve --for
COMMAND` adds to the pool until as many pages are free as the command needs.  A
pool that is large enough is left alone; only --shrink makes one smaller.

Every function that reads or writes takes root, the directory that holds proc,
sys and etc, so that the tests can give a tree of their own.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import tempfile
import typing

from . import ARENA_SIZE, KIB, ToolError, mib, process, run


USAGE = ("%(prog)s [-h] [--json] [--persist] [--shrink] [--dry-run] N\n"
         "       %(prog)s [-h] [--json] [--persist] [--dry-run]\n"
         "           --for COMMAND [ARGUMENT ...]")

_POOL = f"sys/kernel/mm/hugepages/hugepages-{ARENA_SIZE // KIB}kB"
_COMPACT = "proc/sys/vm/compact_memory"
_SYSCTL_FILE = "etc/sysctl.d/60-pymalloc-hugepages.conf"
_TMPFILES_FILE = "etc/tmpfiles.d/pymalloc-hugepages.conf"
_TMPFILES_PROGRAMS = ("usr/bin/systemd-tmpfiles", "bin/systemd-tmpfiles")

# The first line of the files that --persist writes: others are never touched.
HEADER = "# Written by hugepages.py reserve --persist"

# More than this is never asked of the kernel (a PiB).
_MOST_PAGES = 1 << 29


# The pool.

@dataclasses.dataclass(frozen=True)
class Pool:
    """The pool of 2 MiB pages as the kernel tells it.  In pages."""

    total: int
    free: int
    # Promised to mappings that have not touched them yet; these are free, too.
    reserved: int
    # In use, and gone from the pool when freed; these are part of total.
    surplus: int

    @property
    def available(self):
        """Pages that a program can get now."""
        return max(0, self.free - self.reserved)

    @property
    def size(self):
        """Pages that the pool keeps: what nr_hugepages was set to."""
        return self.total - self.surplus


def _path(root, name):
    return os.path.join(root, name)


def read_pool(root="/"):
    """Pool.  Raise ToolError if the kernel has none of 2 MiB pages."""
    def read(name):
        with open(_path(root, f"{_POOL}/{name}")) as file:
            return int(file.read())
    try:
        return Pool(read("nr_hugepages"), read("free_hugepages"),
                    read("resv_hugepages"), read("surplus_hugepages"))
    except (OSError, ValueError):
        raise ToolError(
            f"this kernel has no pool of 2 MiB huge pages (no /{_POOL}); "
            f"`{process.own_command()} status` says what there is") from None


def _read_meminfo(root):
    """{name: bytes, or the number where there is no unit} of /proc/meminfo."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        with open(_path(root, "proc/meminfo")) as file:
            for line in file:
                name, _, value = line.partition(":")
                number, _, unit = value.strip().partition(" ")
                found[name] = int(number) * (1024 if unit == "kB" else 1)
    return found


def check_memory(more, root="/"):
    """Raise ToolError if there is not the memory for this many more pages.

    The kernel would try, push everything else out, and kill programs.
    """
    available = _read_meminfo(root).get("MemAvailable")
    if available is not None and more * ARENA_SIZE > available:
        raise ToolError(
            f"{more:,} more huge pages are {mib(more * ARENA_SIZE)}, "
            f"and only {mib(available)} of memory is available; ask "
            f"for at most {available // ARENA_SIZE:,} more, or stop other "
            "programs")


def check_permission(advice, root="/"):
    """Raise ToolError with the advice, a command line, if this user cannot
    change the pool."""
    path = _path(root, f"{_POOL}/nr_hugepages")
    if os.access(path, os.W_OK):
        return
    if os.geteuid() == 0:
        raise ToolError(f"cannot write {path}, though this is root: /sys is "
                        "read-only, as in a container; reserve the pages on "
                        "the host")
    raise ToolError(f"only root may change the pool; run: sudo {advice}")


def _write(path, text):
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}; run as root, "
                        "and on the host where this is a container") from None


def resize(size, root="/"):
    """Set the size of the pool; return (Pool as it is then, number of tries).

    The kernel gives what it finds.  Where that is less, it is told to move
    memory together, and asked once more.
    """
    path = _path(root, f"{_POOL}/nr_hugepages")
    _write(path, f"{size}\n")
    pool = read_pool(root)
    if pool.size >= size:
        return pool, 1
    # A kernel without CONFIG_COMPACTION does not have the file.
    with contextlib.suppress(ToolError):
        if os.path.exists(_path(root, _COMPACT)):
            _write(_path(root, _COMPACT), "1\n")
    _write(path, f"{size}\n")
    return read_pool(root), 2


# For the next boot.

@dataclasses.dataclass(frozen=True)
class Plan:
    """What --persist does."""

    path: str
    text: str
    # Our file that would contradict, to be removed; or None.
    remove: typing.Optional[str]


def _is_ours(path):
    """Whether a file is one that --persist wrote; None if there is none.
    Raise ToolError if it cannot be read."""
    if os.path.islink(path):
        return False
    try:
        with open(path, errors="replace") as file:
            return file.readline().startswith(HEADER)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ToolError(f"cannot read {path}: {error.strerror}") from None


def plan_persist(size, root="/"):
    """Plan for a pool of that size at each boot.  Raise ToolError.

    vm.nr_hugepages means pages of the default size.  Where that is not 2 MiB,
    systemd-tmpfiles is made to write to /sys at boot.
    """
    sysctl, tmpfiles = (_path(root, name)
                        for name in (_SYSCTL_FILE, _TMPFILES_FILE))
    if _read_meminfo(root).get("Hugepagesize") == ARENA_SIZE:
        path, other = sysctl, tmpfiles
        setting = f"vm.nr_hugepages = {size}"
    else:
        if not any(os.path.exists(_path(root, name))
                   for name in _TMPFILES_PROGRAMS):
            raise ToolError(
                "cannot persist: the default huge page is not 2 MiB, so "
                "sysctl does not reach the pool, and there is no "
                "systemd-tmpfiles; put on the kernel's command line: "
                f"hugepagesz=2M hugepages={size}")
        path, other = tmpfiles, sysctl
        setting = f"w /{_POOL}/nr_hugepages - - - - {size}"
    if _is_ours(path) is False:
        raise ToolError(f"cannot persist: {path} is not a file that this tool "
                        "has written; move it away, or put this line where "
                        f"you want it: {setting}")
    text = (f"{HEADER}: huge pages of 2 MiB\n"
            f"# in the kernel's pool, set at each boot.\n{setting}\n")
    return Plan(path, text, other if _is_ours(other) else None)


def find_overriding(plan, root="/"):
    """Path of a sysctl.d file that is read after ours and sets the same, or
    None."""
    directory, name = os.path.split(plan.path)
    if plan.path != _path(root, _SYSCTL_FILE):
        return None
    with contextlib.suppress(OSError):
        for other in sorted(os.listdir(directory), reverse=True):
            if other <= name or not other.endswith(".conf"):
                continue
            path = os.path.join(directory, other)
            with open(path, errors="replace") as file:
                for line in file:
                    key = line.partition("=")[0].strip(" \t-")
                    if key.replace("/", ".") == "vm.nr_hugepages":
                        return path
    return None


def persist(plan):
    """Do what the plan says.  A file is there as a whole or as it was."""
    directory, name = os.path.split(plan.path)
    temporary = None
    try:
        os.makedirs(directory, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.",
                                                 dir=directory)
        with open(descriptor, "w") as file:
            file.write(plan.text)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.replace(temporary, plan.path)
        temporary = None
        if plan.remove is not None:
            os.unlink(plan.remove)
    except OSError as error:
        raise ToolError(f"cannot write {plan.path}: {error.strerror}; the "
                        "pool is as said above, but only until the next boot"
                        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


# What a command needs.

def margin(pages):
    """Pages on top of what was seen: no two runs have quite the same number of
    arenas.  One for twenty, at least two."""
    return max(2, -(-pages // 20))


def _pages(entry, statistics):
    """How many arenas of one process could have been pages of the pool."""
    peak = entry["peak"]
    if statistics is None:
        return peak["hugetlb"] + peak["thp"]
    # Where that is THP, plain pages are under what is not to be on huge ones.
    next_best = peak[statistics.next_tier] - statistics.never_asked
    return peak["hugetlb"] + max(0, next_best)


def count_needed(outcome):
    """The number of pages that all processes of a command had arenas at one
    time, without margin.  Raise ToolError if none had any.

    Of each process the highest number of arenas counts that could have been
    pages of the pool: those that were, and those that were on THP because the
    pool had none, or, where that cannot be had, on plain pages.  The first
    arenas, which are plain memory before they are put on THP, never are.  It
    is exact for a process that wrote statistics and kept its arenas, the sum
    of the peaks of the tiers, which is never too low, for one whose arenas
    came and went, and sampled for the others, of which all on THP counts.

    Which processes were there at the same time is sampled: the number is the
    highest sum over the processes of one look.  Of those that no look has met,
    which are gone within a blink, the largest is added.
    """
    entries = run.processes(outcome)
    if not entries:
        raise ToolError(
            f"no process of {outcome.command[0]!r} was an interpreter built "
            "--with-pymalloc-hugepages; name one that is, or a program that "
            "starts it")
    peaks = {entry["pid"]: _pages(entry, outcome.statistics.get(entry["pid"]))
             for entry in entries}
    together = max((sum(peaks[pid] for pid, _ in keys)
                    for keys in outcome.together), default=0)
    met = {pid for keys in outcome.together for pid, _ in keys}
    unmet = max((pages for pid, pages in peaks.items() if pid not in met),
                default=0)
    return together + unmet


# The command.

def add_arguments(parser):
    parser.add_argument(
        "pages", nargs="?", metavar="N",
        help="the number of pages of the pool, those in use included")
    parser.add_argument(
        "--for", dest="command", nargs="*", metavar="COMMAND",
        help="run COMMAND, with huge pages on, and reserve as many free pages "
        "as it needs; must be the last option")
    parser.add_argument(
        "--persist", action="store_true",
        help="reserve the same at each boot, by a file in /etc/sysctl.d (in "
        "/etc/tmpfiles.d where the default huge page is not 2 MiB)")
    parser.add_argument("--shrink", action="store_true",
                        help="also make a larger pool smaller")
    parser.add_argument("--dry-run", action="store_true",
                        help="say what would be done, and change nothing")



def _number(text):
    if text.isdecimal() and text.isascii() and int(text) <= _MOST_PAGES:
        return int(text)
    raise ToolError(f"reserve: not a number of pages: {text!r}; give how many "
                    "huge pages of 2 MiB the pool is to have, such as 128")


def _measure(options):
    """Run the command.  Return what goes into the result about it."""
    # With --json, stdout is for JSON only.
    outcome = run.execute(options.command, "on", 2 if options.json else None)
    needed = count_needed(outcome)
    return {"needed": needed, "margin": margin(needed), **run.as_dict(outcome)}


def _say_needed(measured):
    yield (f"{shlex.join(measured['command'])} needs {measured['needed']:,} "
           f"huge pages, and {measured['margin']:,} to be sure.")
    if measured["status"] != 0:
        yield (f"It ended with status {measured['status']}: this is what it "
               "needed until then.")
    if measured["sampled_processes"]:
        yield (f"{measured['sampled_processes']:,} of its processes wrote no "
               "statistics and were sampled: their arenas on plain pages are "
               "not counted, but their first arenas on THP are.")


def _say_pool(pool):
    line = (f"The pool has {pool.size:,} pages "
            f"({mib(pool.size * ARENA_SIZE)}), {pool.available:,} of "
            "them available.")
    if pool.surplus:
        line += (f"  {pool.surplus:,} more are in use and leave it when they "
                 "are freed.")
    return line


def _say_plan(plan, overriding, is_done):
    wrote, removed = (("Wrote", "Removed") if is_done
                      else ("Would write", "Would remove"))
    yield f"{wrote} {plan.path}:"
    for line in plan.text.splitlines():
        yield "    " + line
    if plan.remove is not None:
        yield f"{removed} {plan.remove}, which is for another default size."
    if overriding is not None:
        yield (f"But {overriding} is read later and sets vm.nr_hugepages, "
               "too: take that line out.")


def main(options, root="/"):
    """Return the exit status: 0 if the pool has, or would have, all pages; 1
    if the kernel gave only some."""
    if (options.pages is None) == (options.command is None):
        raise ToolError("reserve: give a number of pages, or --for COMMAND, "
                        "which must be last")
    if options.command is not None and not options.command:
        raise ToolError("reserve --for: no command to run; give one: reserve "
                        "--for COMMAND [ARGUMENT ...]")
    if options.command is not None and options.shrink:
        raise ToolError("reserve --for only makes the pool larger; give "
                        "--shrink with a number of pages")
    before = read_pool(root)
    lines, measured = [], None
    if options.command is None:
        wanted = target = _number(options.pages)
        if target < before.size and not options.shrink:
            target = before.size
    else:
        measured = _measure(options)
        lines += _say_needed(measured)
        before = read_pool(root)
        wanted = measured["needed"] + measured["margin"]
        target = before.size + max(0, wanted - before.available)
        wanted = target
    plan = plan_persist(wanted, root) if options.persist else None
    overriding = find_overriding(plan, root) if plan is not None else None
    result = {
        "pages": wanted,
        "dry_run": options.dry_run,
        "for": measured,
        "before": _pool_dict(before),
        "after": None,
        "write": None,
        "persist": plan and {"path": plan.path, "text": plan.text,
                             "remove": plan.remove,
                             "overridden_by": overriding},
    }
    if target != before.size:
        check_memory(target - before.size, root)
        result["write"] = {"path": _path(root, f"{_POOL}/nr_hugepages"),
                           "value": target}
    if options.dry_run:
        return _dry_run(result, lines, before, plan, overriding, options)

    if target != before.size or plan is not None:
        flags = [flag for flag, given in (("--persist", options.persist),
                                          ("--shrink", options.shrink))
                 if given]
        try:
            check_permission(" ".join([process.own_command(), "reserve",
                                       str(wanted), *flags]), root)
        except ToolError:
            if lines and not options.json:
                print("\n".join(lines), flush=True)
            raise
    after, tries = before, 0
    if target != before.size:
        after, tries = resize(target, root)
    status = 0 if after.size >= target else 1
    result["after"] = _pool_dict(after)
    result["tries"] = tries
    if status:
        lines.append(
            f"The kernel gave only {max(0, after.size - before.size):,} of "
            f"{target - before.size:,} more pages, after it was told to move "
            "memory together: too little free memory is in pieces of 2 MiB.  "
            "The pool keeps what it got.  Reserve at boot (--persist, or "
            "hugepages=N on the kernel's command line), or stop other "
            "programs and try again.")
    elif wanted < before.size and not options.shrink:
        lines.append(f"The pool has more than {wanted:,} pages already, and "
                     "is left as it is; --shrink makes it smaller.")
    lines.append(_say_pool(after))
    if plan is not None:
        try:
            persist(plan)
        except ToolError:
            _show(result, lines, options)
            raise
        lines += _say_plan(plan, overriding, True)
    _show(result, lines, options)
    return status


def _dry_run(result, lines, before, plan, overriding, options):
    if result["write"] is not None:
        lines.append(f"Would write {result['write']['value']} to "
                     f"{result['write']['path']}.")
    else:
        lines.append("Would leave the pool as it is.")
    lines.append(_say_pool(before))
    if plan is not None:
        lines += _say_plan(plan, overriding, False)
    _show(result, lines, options)
    return 0


def _pool_dict(pool):
    return {"size": pool.size, "available": pool.available,
            **dataclasses.asdict(pool)}


def _show(result, lines, options):
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(lines))
    if sys.stdout is not None:
        sys.stdout.flush()
