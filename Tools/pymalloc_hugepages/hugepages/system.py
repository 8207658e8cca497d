"""What this kernel, container and account offer to arenas.

scan() reads what the kernel says and draws no conclusion: that is
verdict.py's work.  Every path is below a root, so that recorded trees can be
given.  What is missing, unreadable or senseless is None.  Sizes are in bytes,
unless a name says pages.
"""

import dataclasses
import mmap
import os
import re
import typing

from . import ARENA_SIZE, KIB, smaps


# What the kernel shows for "no limit": "max" in cgroup v2; in v1 the largest
# multiple of a page that a signed 64-bit number can hold.
_NO_LIMIT = 1 << 62

_HUGEPAGES = "sys/kernel/mm/hugepages"
_NODES = "sys/devices/system/node"
_THP = "sys/kernel/mm/transparent_hugepage"


@dataclasses.dataclass(frozen=True)
class Node:
    """Pages of one size on one NUMA node (hugepages-*kB below
    /sys/devices/system/node/node*)."""

    number: int
    total: typing.Optional[int]
    free: typing.Optional[int]
    surplus: typing.Optional[int]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pages of one size (hugepages-*kB below /sys/kernel/mm/hugepages).

    total includes surplus pages.  Reserved pages are free and promised to
    somebody.  overcommit is how many surplus pages there may be: pages that
    the kernel gets when they are asked for."""

    page_size: int
    total: typing.Optional[int]
    free: typing.Optional[int]
    reserved: typing.Optional[int]
    surplus: typing.Optional[int]
    overcommit: typing.Optional[int]
    nodes: typing.Tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Limit:
    """The limit of a cgroup: the one that leaves least of those on the way
    from this process's cgroup up to where the hierarchy is mounted."""

    limit: int
    used: typing.Optional[int]
    path: str

    @property
    def room(self):
        """What is left of it."""
        return max(0, self.limit - (self.used or 0))


@dataclasses.dataclass(frozen=True)
class System:
    # Whether /proc/self and /sys/kernel/mm are there to be read.
    has_proc: bool
    has_sys: bool
    # /proc/sys/kernel/osrelease and arch (the latter since Linux 6.1).
    kernel: typing.Optional[str]
    machine: typing.Optional[str]
    # KernelPageSize of the first mapping in /proc/self/smaps.
    base_page_size: typing.Optional[int]
    # Hugepagesize in /proc/meminfo; None: no hugetlb pages at all.
    default_huge_page_size: typing.Optional[int]
    memory_available: typing.Optional[int]
    # By size.
    pools: typing.Tuple[Pool, ...]
    # The chosen words of enabled and defrag below
    # /sys/kernel/mm/transparent_hugepage, and hpage_pmd_size.  All None, and
    # has_sys: the kernel has no transparent huge pages.
    thp_enabled: typing.Optional[str]
    thp_defrag: typing.Optional[str]
    thp_size: typing.Optional[int]
    # The chosen word of hugepages-2048kB/enabled (Linux 6.8): "inherit" means
    # thp_enabled.
    thp_2mib_enabled: typing.Optional[str]
    # THP_enabled in /proc/self/status (Linux 5.0): False after
    # PR_SET_THP_DISABLE.
    thp_allowed: typing.Optional[bool]
    hugetlb_limit: typing.Optional[Limit]
    # The same for reservations (Linux 5.7).
    hugetlb_reservation_limit: typing.Optional[Limit]
    memory_limit: typing.Optional[Limit]
    # "v1", "v2", "hybrid" (v1 controllers beside a v2 hierarchy), or None.
    cgroup_version: typing.Optional[str]
    # Mems_allowed_list in /proc/self/status: node numbers.
    allowed_nodes: typing.Optional[typing.Tuple[int, ...]]
    # /proc/self/limits; None: unlimited, or not known.
    address_space_limit: typing.Optional[int]
    data_limit: typing.Optional[int]
    user: typing.Optional[int]
    # Whether this process may write nr_hugepages of the 2 MiB pool.
    may_change_pool: bool
    # Whether root of here could not change it, nor the setting of transparent
    # huge pages: in a user namespace, or where /sys is mounted read-only.
    is_confined: bool
    # Whether memory that was advised just now got a transparent huge page; see
    # try_thp().  None: not tried.
    thp_tried: typing.Optional[bool] = None

    def pool(self, page_size):
        """The Pool of that page size, or None."""
        for pool in self.pools:
            if pool.page_size == page_size:
                return pool
        return None


class _Tree:
    """Reads files below a root.  None stands for whatever goes wrong."""

    def __init__(self, root):
        self.root = root

    def path(self, name):
        return os.path.join(self.root, name.lstrip("/"))

    def text(self, name):
        try:
            with open(self.path(name), errors="replace") as file:
                return file.read()
        except (OSError, ValueError):
            return None

    def line(self, name):
        text = self.text(name)
        return text.strip() if text and text.strip() else None

    def number(self, name):
        return _number(self.line(name))

    def names(self, name):
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError:
            return []

    def fields(self, name):
        """{key: value} of the lines "key: value"."""
        found = {}
        for line in (self.text(name) or "").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
        return found

    def chosen(self, name):
        """The word in brackets: "always [madvise] never"."""
        match = re.search(r"\[(\S+?)\]", self.line(name) or "")
        return match[1] if match else None


def _number(text):
    """A number that is not negative, or None."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _kib(text):
    """Bytes of "2048 kB", or None."""
    number = _number(re.sub(" kB$", "", text or ""))
    return None if number is None else number * KIB


def parse_list(text):
    """The numbers of a kernel list such as "0-2,5", as a tuple; None if it is
    none."""
    numbers = []
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        first, last = _number(first), _number(last or first)
        # No system has that many nodes; a wrong file may say anything.
        if first is None or last is None or not first <= last < first + 4096:
            return None
        numbers += range(first, last + 1)
    return tuple(numbers)


# Pools.

def _size_of(name):
    match = re.fullmatch(r"hugepages-(\d+)kB", name)
    return int(match[1]) * KIB if match else None


def _scan_nodes(tree, name):
    nodes = []
    for node in tree.names(_NODES):
        match = re.fullmatch(r"node(\d+)", node)
        if match is None:
            continue
        base = f"{_NODES}/{node}/hugepages/{name}"
        total = tree.number(f"{base}/nr_hugepages")
        if total is not None:
            nodes.append(Node(int(match[1]), total,
                              tree.number(f"{base}/free_hugepages"),
                              tree.number(f"{base}/surplus_hugepages")))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _pools_of_meminfo(tree, meminfo):
    """The pool of the default size, as /proc alone has it."""
    size = _kib(meminfo.get("Hugepagesize"))
    if not size:
        return ()
    values = (_number(meminfo.get(f"HugePages_{name}"))
              for name in ("Total", "Free", "Rsvd", "Surp"))
    return (Pool(size, *values,
                 tree.number("proc/sys/vm/nr_overcommit_hugepages"), ()),)


def _scan_pools(tree):
    pools = []
    for name in tree.names(_HUGEPAGES):
        size = _size_of(name)
        if size is None:
            continue
        values = (tree.number(f"{_HUGEPAGES}/{name}/{file}") for file in (
            "nr_hugepages", "free_hugepages", "resv_hugepages",
            "surplus_hugepages", "nr_overcommit_hugepages"))
        pools.append(Pool(size, *values, _scan_nodes(tree, name)))
    return tuple(sorted(pools, key=lambda pool: pool.page_size))


# Control groups.

def _unescape(text):
    """A path of mountinfo, where spaces and the like are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _scan_mounts(tree):
    """[(type, root, mount point, options)] of the cgroup file systems."""
    mounts = []
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if len(fields) >= 5 and kind and kind[0] in ("cgroup", "cgroup2"):
            mounts.append((kind[0], _unescape(fields[3]), _unescape(fields[4]),
                           kind[-1].split(",")))
    return mounts


def _scan_memberships(tree):
    """{controller: path}, with "" for cgroup v2, of /proc/self/cgroup."""
    paths = {}
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                paths[controller] = fields[2]
    return paths


def _levels(mount_root, mount_point, path):
    """The directories of a cgroup, from its own up to the mount point.

    A container may see only a part of the hierarchy mounted: what mountinfo
    calls root is the cgroup that is at the mount point.  If the process is not
    below it, only the mount point is known to be of use.
    """
    if mount_root not in ("", "/"):
        if path == mount_root or path.startswith(mount_root + "/"):
            path = path[len(mount_root):]
        else:
            path = "/"
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    for count in range(len(parts), -1, -1):
        yield "/".join([mount_point.rstrip("/"), *parts[:count]])


def _lowest(tree, levels, limit_name, used_name):
    """The Limit of those directories that leaves least, or None."""
    lowest = None
    for level in levels:
        name = f"{level}/{limit_name}"
        limit = tree.number(name)
        if limit is None or limit >= _NO_LIMIT:
            continue
        found = Limit(limit, tree.number(f"{level}/{used_name}"), name)
        if lowest is None or found.room < lowest.room:
            lowest = found
    return lowest


def _scan_cgroups(tree):
    """The limits and the version, as keyword arguments of System."""
    mounts = _scan_mounts(tree)
    paths = _scan_memberships(tree)
    found = {"hugetlb_limit": None, "hugetlb_reservation_limit": None,
             "memory_limit": None, "cgroup_version": None}
    versions = set()
    for kind, mount_root, mount_point, options in mounts:
        if kind == "cgroup2":
            names = [("hugetlb_limit", "", "hugetlb.2MB.max",
                      "hugetlb.2MB.current"),
                     ("hugetlb_reservation_limit", "", "hugetlb.2MB.rsvd.max",
                      "hugetlb.2MB.rsvd.current"),
                     ("memory_limit", "", "memory.max", "memory.current")]
            versions.add("v2")
        else:
            names = [("hugetlb_limit", "hugetlb",
                      "hugetlb.2MB.limit_in_bytes",
                      "hugetlb.2MB.usage_in_bytes"),
                     ("hugetlb_reservation_limit", "hugetlb",
                      "hugetlb.2MB.rsvd.limit_in_bytes",
                      "hugetlb.2MB.rsvd.usage_in_bytes"),
                     ("memory_limit", "memory", "memory.limit_in_bytes",
                      "memory.usage_in_bytes")]
            versions.add("v1")
        for key, controller, limit_name, used_name in names:
            path = paths.get(controller)
            if path is None or controller not in ("", *options):
                continue
            limit = _lowest(tree, _levels(mount_root, mount_point, path),
                            limit_name, used_name)
            if limit is not None and (found[key] is None
                                      or limit.room < found[key].room):
                found[key] = limit
    if versions:
        found["cgroup_version"] = ("hybrid" if len(versions) == 2
                                   else versions.pop())
    return found


# The process.

def _scan_limits(tree):
    """(address space, data) of /proc/self/limits: the soft ones."""
    values = {}
    for line in (tree.text("proc/self/limits") or "").splitlines():
        match = re.match(r"Max (address space|data size) +(\d+) ", line)
        if match:
            values[match[1]] = int(match[2])
    return values.get("address space"), values.get("data size")


def _scan_base_page_size(tree):
    try:
        with open(tree.path("proc/self/smaps"), errors="replace") as file:
            for line in file:
                if line.startswith("KernelPageSize:"):
                    return _kib(line.partition(":")[2].strip())
    except OSError:
        pass
    return None


def _is_confined(tree, files):
    if any(os.access(tree.path(name), os.W_OK) for name in files):
        return False
    # "0 0 4294967295" is the first namespace's: all users of the host.
    users = (tree.line("proc/self/uid_map") or "").split()
    if users and users != ["0", "0", "4294967295"]:
        return True
    try:
        return bool(os.statvfs(tree.path("sys")).f_flag & os.ST_RDONLY)
    except (OSError, AttributeError):
        return False


def try_thp():
    """Whether memory that is advised now gets a transparent huge page: a trial
    with 4 MiB of this process.  None if it cannot be found out."""
    def on_huge_pages():
        with open("/proc/self/smaps", errors="replace") as file:
            return smaps.add_up_memory(smaps.parse(file)).thp
    try:
        before = on_huge_pages()
        with mmap.mmap(-1, 2 * ARENA_SIZE, mmap.MAP_PRIVATE
                       | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            for offset in range(0, len(memory), mmap.PAGESIZE):
                memory[offset] = 1
            return on_huge_pages() >= before + ARENA_SIZE
    except (OSError, AttributeError):
        return None


def scan(root="/"):
    """Find out about the system that is below root.  Return System; never
    fails."""
    tree = _Tree(root)
    meminfo = tree.fields("proc/meminfo")
    status = tree.fields("proc/self/status")
    address_space_limit, data_limit = _scan_limits(tree)
    machine = tree.line("proc/sys/kernel/arch")
    if machine is None and root == "/" and hasattr(os, "uname"):
        machine = os.uname().machine
    user = (status.get("Uid") or "").split()
    nr_hugepages = f"{_HUGEPAGES}/hugepages-2048kB/nr_hugepages"
    has_sys = os.path.isdir(tree.path("sys/kernel/mm"))
    return System(
        has_proc=tree.text("proc/self/status") is not None,
        has_sys=has_sys,
        kernel=tree.line("proc/sys/kernel/osrelease"),
        machine=machine,
        base_page_size=_scan_base_page_size(tree),
        default_huge_page_size=_kib(meminfo.get("Hugepagesize")),
        memory_available=_kib(meminfo.get("MemAvailable")),
        pools=(_scan_pools(tree) if has_sys
               else _pools_of_meminfo(tree, meminfo)),
        thp_enabled=tree.chosen(f"{_THP}/enabled"),
        thp_defrag=tree.chosen(f"{_THP}/defrag"),
        thp_size=tree.number(f"{_THP}/hpage_pmd_size"),
        thp_2mib_enabled=tree.chosen(f"{_THP}/hugepages-2048kB/enabled"),
        thp_allowed={"0": False, "1": True}.get(status.get("THP_enabled")),
        **_scan_cgroups(tree),
        allowed_nodes=parse_list(status.get("Mems_allowed_list")),
        address_space_limit=address_space_limit,
        data_limit=data_limit,
        user=_number(user[1]) if len(user) > 1 else None,
        may_change_pool=os.access(tree.path(nr_hugepages), os.W_OK),
        is_confined=_is_confined(tree, (nr_hugepages, f"{_THP}/enabled")),
    )
