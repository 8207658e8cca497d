"""The pool of huge pages of 2 MiB, or the part of it that a NUMA node has.

Every function that reads or writes takes root, the directory that holds proc,
sys and etc, so that the tests can give a tree of their own, and node, the
number of a NUMA node; None stands for the whole pool.
"""

import contextlib
import dataclasses
import os
import re

from . import ARENA_SIZE, KIB, ToolError, mib, process


NODES = "sys/devices/system/node"


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


def pool_name(node=None):
    """The directory of the pool, or of a NUMA node's part of it."""
    folder = "sys/kernel/mm" if node is None else f"{NODES}/node{node}"
    return f"{folder}/hugepages/hugepages-{ARENA_SIZE // KIB}kB"


def check_node(node, root):
    """Raise ToolError if there is no such NUMA node."""
    names = []
    with contextlib.suppress(OSError):
        names = os.listdir(os.path.join(root, NODES))
    nodes = sorted(int(name[4:]) for name in names
                   if re.fullmatch("node[0-9]+", name))
    if node not in nodes:
        has = ", ".join(map(str, nodes)) or "none that the kernel tells"
        raise ToolError(f"reserve --node: there is no NUMA node {node}; this "
                        f"system has: {has}")


def read_pool(root="/", node=None):
    """Pool.  Raise ToolError if the kernel has none of 2 MiB pages."""
    directory = pool_name(node)

    def read(name):
        with open(os.path.join(root, f"{directory}/{name}_hugepages")) as file:
            return int(file.read())
    try:
        # To which node a promised page will belong is not known yet.
        return Pool(read("nr"), read("free"),
                    read("resv") if node is None else 0, read("surplus"))
    except (OSError, ValueError):
        raise ToolError(
            f"this kernel has no pool of 2 MiB huge pages (no /{directory}); "
            f"`{process.own_command()} status` says what there is") from None


def read_meminfo(root, node=None):
    """{name: bytes, or the number where there is no unit} of /proc/meminfo, or
    of that of a node, where "Node N" is before each name."""
    path = ("proc/meminfo" if node is None else f"{NODES}/node{node}/meminfo")
    found = {}
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(root, path)) as file:
            for line in file:
                name, _, value = line.partition(":")
                number, _, unit = value.strip().partition(" ")
                found[name.split()[-1]] = (
                    int(number) * (1024 if unit == "kB" else 1))
    return found


def _available_memory(root, node):
    """In bytes; None if it is not known."""
    meminfo = read_meminfo(root, node)
    if node is None:
        return meminfo.get("MemAvailable")
    # A node's has no such line: what is free, or has the contents of files.
    parts = [meminfo.get(name)
             for name in ("MemFree", "Active(file)", "Inactive(file)")]
    return None if None in parts else sum(parts)


def check_memory(more, root="/", node=None):
    """Raise ToolError if there is not the memory for this many more pages.

    The kernel would try, push everything else out, and kill programs.
    """
    available = _available_memory(root, node)
    if available is not None and more * ARENA_SIZE > available:
        where = "" if node is None else f" on node {node}"
        raise ToolError(
            f"{more:,} more huge pages are {mib(more * ARENA_SIZE)}, "
            f"and only {mib(available)} of memory is available{where}; ask "
            f"for at most {available // ARENA_SIZE:,} more, or stop other "
            "programs")


def check_permission(advice, root="/", node=None):
    """Raise ToolError with the advice, a command line, if this user cannot
    change the pool."""
    path = os.path.join(root, f"{pool_name(node)}/nr_hugepages")
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


def resize(size, root="/", node=None):
    """Set the size of the pool; return (Pool as it is then, number of tries).

    The kernel gives what it finds.  Where that is less, it is told to move
    memory together, and asked once more.
    """
    path = os.path.join(root, f"{pool_name(node)}/nr_hugepages")
    _write(path, f"{size}\n")
    pool = read_pool(root, node)
    if pool.size >= size:
        return pool, 1
    # A kernel without CONFIG_COMPACTION does not have the file.
    compact = os.path.join(root, "proc/sys/vm/compact_memory" if node is None
                    else f"{NODES}/node{node}/compact")
    with contextlib.suppress(ToolError):
        if os.path.exists(compact):
            _write(compact, "1\n")
    _write(path, f"{size}\n")
    return read_pool(root, node), 2
