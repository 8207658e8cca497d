"""What --persist writes for the next boot, and --forget removes."""

import contextlib
import dataclasses
import os
import tempfile
import typing

from . import ARENA_SIZE, ToolError, process
from .pool import NODES, pool_name, read_meminfo


# The folders of sysctl.d(5): of files of one name, that in the first is read.
_SYSCTL_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d",
                   "usr/lib/sysctl.d", "lib/sysctl.d")
# Either sets the size of the pool of pages of the default size.
_SYSCTL_KEYS = ("vm.nr_hugepages", "vm.nr_hugepages_mempolicy")
_SYSCTL_FILE = "etc/sysctl.d/60-pymalloc-hugepages.conf"
_TMPFILES_FILE = "etc/tmpfiles.d/pymalloc-hugepages.conf"
_TMPFILES_PROGRAMS = ("usr/bin/systemd-tmpfiles", "bin/systemd-tmpfiles")

# The first line of the files that --persist writes: others are never touched.
HEADER = "# Written by pymalloc-hugepages reserve --persist"


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


def _sysctl_reaches_pool(root):
    """Whether vm.nr_hugepages, which means pages of the default size, means
    those of 2 MiB."""
    return read_meminfo(root).get("Hugepagesize") == ARENA_SIZE


def plan(size, root="/", node=None):
    """Plan for a pool of that size at each boot.  Raise ToolError.

    Where sysctl does not reach what is to be set, systemd-tmpfiles is made to
    write to /sys at boot.  Its file may have a line for each of several nodes.
    """
    sysctl, tmpfiles = (os.path.join(root, name)
                        for name in (_SYSCTL_FILE, _TMPFILES_FILE))
    settings = []
    if node is None and _sysctl_reaches_pool(root):
        path, other = sysctl, tmpfiles
        setting = f"vm.nr_hugepages = {size}"
    else:
        if not any(os.path.exists(os.path.join(root, name))
                   for name in _TMPFILES_PROGRAMS):
            why, pages = (
                ("the default huge page is not 2 MiB", size) if node is None
                else ("it is for one node", f"{node}:{size}"))
            raise ToolError(
                f"cannot persist: {why}, so sysctl does not reach the pool, "
                "and there is no systemd-tmpfiles; put on the kernel's "
                f"command line: hugepagesz=2M hugepages={pages}")
        path, other = tmpfiles, sysctl
        start = f"w /{pool_name(node)}/"
        setting = f"{start}nr_hugepages - - - - {size}"
        if node is not None and _is_ours(path):
            with open(path, errors="replace") as file:
                settings = [line for line in file.read().splitlines()
                            if line.startswith(f"w /{NODES}/")
                            and not line.startswith(start)]
    if _is_ours(path) is False:
        raise ToolError(f"cannot persist: {path} is not a file that this tool "
                        "has written; move it away, or put this line where "
                        f"you want it: {setting}")
    settings = "\n".join(sorted([*settings, setting]))
    text = (f"{HEADER}: huge pages of 2 MiB\n"
            "# in the kernel's pool, set at each boot, until reserve "
            f"--forget.\n{settings}\n")
    return Plan(path, text, other if _is_ours(other) else None)


def _sysctl_settings(root):
    """[(path, line)] of what sets the pool at boot: the last one wins.

    Files are read by name, whatever folder they are in.
    """
    paths = {}
    for folder in reversed(_SYSCTL_FOLDERS):
        with contextlib.suppress(OSError):
            for name in os.listdir(os.path.join(root, folder)):
                paths[name] = os.path.join(root, f"{folder}/{name}")
    settings = []
    for name in sorted(paths):
        if not name.endswith(".conf"):
            continue
        with contextlib.suppress(OSError):
            with open(paths[name], errors="replace") as file:
                for line in file:
                    key = line.partition("=")[0].strip(" \t-")
                    if key.replace("/", ".") in _SYSCTL_KEYS:
                        settings.append((paths[name], line.strip()))
    return settings


def find_overriding(plan, root="/"):
    """(path, line) of what sysctl.d sets against the plan; None if it does
    not."""
    if not _sysctl_reaches_pool(root):
        return None
    ours = os.path.join(root, _SYSCTL_FILE)
    for path, line in reversed(_sysctl_settings(root)):
        if path == ours:            # the plan replaces or removes it
            continue
        # Whether systemd-tmpfiles comes before sysctl or after is not said:
        # against a plan for it, all count.
        if (plan.path != ours
                or os.path.basename(path) > os.path.basename(ours)):
            return path, line
    return None


def write(plan):
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


def _find_written(root):
    """(our files, those that have the name of one and are not ours)."""
    paths = [os.path.join(root, name)
             for name in (_SYSCTL_FILE, _TMPFILES_FILE)]
    kinds = [(path, _is_ours(path)) for path in paths]
    return ([path for path, is_ours in kinds if is_ours],
            [path for path, is_ours in kinds if is_ours is False])


def forget(dry_run, root="/"):
    """Undo --persist.  Return (paths of the files, lines of text)."""
    files, others = _find_written(root)
    lines = []
    for path in files:
        if dry_run:
            lines.append(f"Would remove {path}.")
            continue
        try:
            os.unlink(path)
        except OSError as error:
            advice = (f"; run: sudo {process.own_command()} reserve --forget"
                      if os.geteuid() != 0 else "")
            raise ToolError(f"cannot remove {path}: {error.strerror}{advice}"
                            ) from None
        lines.append(f"Removed {path}.")
    for path in others:
        lines.append(f"{path} is not a file that this tool has written, and "
                     "stays.")
    if not files:
        lines.append("There is nothing to forget: no file that --persist has "
                     "written.")
    still = [(path, line) for path, line in _sysctl_settings(root)
             if path not in files] if _sysctl_reaches_pool(root) else []
    if still:
        path, line = still[-1]
        lines.append(f"{path} sets the pool at each boot: {line}")
    lines.append("The pool is left as it is.")
    return files, lines
