"""What /proc/PID/smaps and smaps_rollup tell: memory, and which is arenas.

Seen from outside an arena is a mapping that is private, writable, aligned to
2 MiB and a multiple of it, and that

    is on 2 MiB pages of the pool                       hugetlb
    has the advice to use transparent huge pages        THP

The advice is taken back at a fork, so that the kernel leaves alone what the
two processes share: what must not be put on huge pages counts as THP, too.

Adjacent arenas may be one mapping.  An arena on plain pages looks like any
other memory, so these are not counted, nor guessed; the first arenas of an
interpreter are on plain pages until it needs more.

Each process that shares memory shows all of it.  To count it once, each takes
its part, as the kernel does for Pss: half of what two processes share.
"""

import dataclasses
import re
import typing

from . import ARENA_SIZE, KIB


@dataclasses.dataclass
class Region:
    """One mapping.  Sizes in bytes."""

    start: int
    end: int
    permissions: str
    name: str = ""
    kernel_page_size: int = 0
    rss: int = 0
    pss: int = 0
    # What of rss no other process has.
    private: int = 0
    swap: int = 0
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

    @property
    def size_once(self):
        """This process's part of size.  What was never used is its own."""
        return self.size - self.rss + self.pss

    @property
    def thp_once(self):
        """This process's part of thp.

        A write to a shared huge page splits it.  So where a mapping has both,
        huge pages are among what is shared.
        """
        shared = self.rss - self.private
        if shared <= 0:
            return self.thp
        part = (self.pss - self.private) / shared
        return round(self.thp - (1 - part) * min(self.thp, shared))


_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
_SIZE_FIELDS = {"KernelPageSize": "kernel_page_size",
                "Rss": "rss",
                "Pss": "pss",
                "Private_Clean": "private",
                "Private_Dirty": "private",
                "Swap": "swap",
                "AnonHugePages": "thp",
                "Private_Hugetlb": "hugetlb",
                "Shared_Hugetlb": "hugetlb"}


def parse(file):
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


@dataclasses.dataclass(frozen=True)
class Memory:
    """All memory of a process, or of several.  Sizes in bytes.

    rss, pss and uss do not have pages of the pool.
    """

    rss: int = 0
    pss: int = 0
    # What would be free if the process ended.
    uss: int = 0
    swap: int = 0
    hugetlb: int = 0
    # On transparent huge pages now.
    thp: int = 0


def add_up_memory(regions):
    """Memory of all the regions."""
    regions = list(regions)
    return Memory(*(sum(getattr(region, name) for region in regions)
                    for name in ("rss", "pss", "private", "swap", "hugetlb",
                                 "thp")))


@dataclasses.dataclass
class Usage:
    """Arenas.  Sizes in bytes; the numbers of arenas are sizes / ARENA_SIZE.
    """

    # Arenas on the pool, and what of them has a page.
    hugetlb_size: int = 0
    hugetlb: int = 0
    # Arenas with advice to use THP, and what of them is on huge pages now.
    thp_size: int = 0
    thp: int = 0
    # This process's part of the two, where it shares arenas with others.
    # (An interpreter shares no page of the pool.)
    thp_size_once: int = 0
    thp_once: int = 0

    @property
    def hugetlb_arenas(self):
        return round(self.hugetlb_size / ARENA_SIZE)

    @property
    def thp_arenas(self):
        return round(self.thp_size / ARENA_SIZE)

    @property
    def arenas(self):
        return self.hugetlb_arenas + self.thp_arenas

    @property
    def has_huge_pages(self):
        return self.hugetlb + self.thp > 0

    @property
    def is_shared(self):
        """Whether another process has some of these arenas, after a fork."""
        return self.thp_size_once < self.thp_size

    @property
    def percent(self):
        """Share of these arenas that is on huge pages now; None without any.
        """
        size = self.hugetlb_size + self.thp_size
        return 100 * (self.hugetlb + self.thp) / size if size else None


def add_up(regions):
    """Usage of one process, of all its regions."""
    usage = Usage()
    for region in regions:
        if region.tier == "hugetlb":
            usage.hugetlb_size += region.size
            usage.hugetlb += region.hugetlb
        elif region.tier == "thp":
            usage.thp_size += region.size
            usage.thp += region.thp
            usage.thp_size_once += region.size_once
            usage.thp_once += region.thp_once
    return usage


def count_once(usages):
    """Usage of several processes together: what they share counts once."""
    total = Usage()
    for usage in usages:
        total.hugetlb_size += usage.hugetlb_size
        total.hugetlb += usage.hugetlb
        total.thp_size += usage.thp_size_once
        total.thp += usage.thp_once
    total.thp_size_once, total.thp_once = total.thp_size, total.thp
    return total
