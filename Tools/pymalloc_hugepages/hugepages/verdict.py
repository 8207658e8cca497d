"""What a System means for pymalloc's arenas: a verdict for each tier.

The rules are those of the interpreter (Objects/hugepages/arena.c): an arena of
2 MiB gets a page of the pool if the kernel has pages of that size, then
transparent huge pages if theirs divide an arena and the process may have them,
then plain pages.  The first arenas of a process are on plain pages until it
needs more, then on transparent huge pages.
"""

import dataclasses
import typing

from . import ARENA_SIZE, mib, plural
from .process import own_command


THP_FILE = "/sys/kernel/mm/transparent_hugepage/enabled"

_NO_SYS = "there is no /sys/kernel/mm to be read"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one tier: "hugetlb", "thp", "plain" or, on Windows, "large pages".

    works tells whether an interpreter started now would get it; None: that
    cannot be found out.  arenas is how many it could get, None if nothing
    bounds them but memory.  improve is the one command that would help most,
    or None.
    """

    tier: str
    works: typing.Optional[bool]
    arenas: typing.Optional[int]
    reason: str
    improve: typing.Optional[str] = None


def _write(system, text, path):
    """The command by which the user can write to a file of root's."""
    if system.is_confined:
        return f"on the host: echo {text} | sudo tee {path}"
    if system.user == 0:
        return f"echo {text} >{path}"
    return f"echo {text} | sudo tee {path}"


def _reserve(system):
    # How many pages are needed only the program tells.
    command = f"{own_command()} reserve --for COMMAND"
    if system.is_confined:
        return f"on the host, as root: {command}"
    return command if system.user == 0 else f"sudo {command}"


def _available(pool, allowed_nodes):
    """Pages of the pool that a process on these nodes could get now, without
    and with those that the kernel would get on demand."""
    free = (pool.free or 0) - (pool.reserved or 0)
    if allowed_nodes is not None and pool.nodes:
        free = min(free, sum(node.free or 0 for node in pool.nodes
                             if node.number in allowed_nodes))
    more = max(0, (pool.overcommit or 0) - (pool.surplus or 0))
    return max(0, free), max(0, free) + more


def _raise_limit(limit):
    # The second is cgroup v1's word.
    unlimited = "max" if limit.path.endswith("max") else "-1"
    return ("in Kubernetes, give the container more of the resource "
            f"hugepages-2Mi; else, on the host: echo {unlimited} | sudo tee "
            f"{limit.path}")


def judge_hugetlb(system):
    """Verdict of the pool."""
    pool = system.pool(ARENA_SIZE)
    if pool is None:
        if not system.has_sys and (not system.has_proc or system.pools):
            return Verdict("hugetlb", None, None,
                           f"not known: {_NO_SYS}")
        if system.default_huge_page_size is None and not system.pools:
            reason = "this kernel has no hugetlb pages (CONFIG_HUGETLBFS)"
        else:
            sizes = ", ".join(mib(each.page_size) for each in system.pools)
            reason = ("this kernel has no huge pages of 2 MiB, only of "
                      f"{sizes or 'other sizes'}")
        return Verdict("hugetlb", False, 0, reason)

    free, available = _available(pool, system.allowed_nodes)
    state = (f"the pool has {plural(pool.total or 0, 'page')}, "
             f"{pool.free or 0:,} free, {pool.reserved or 0:,} of those "
             "reserved")
    if available == 0:
        total = pool.total or 0
        on_other_nodes = (pool.free or 0) > (pool.reserved or 0)
        if on_other_nodes:
            reason = (f"{state}, and none on the NUMA nodes that this process "
                      "may use")
            improve = ("reserve pages on an allowed node: " + _write(
                system, "N", "/sys/devices/system/node/node"
                f"{system.allowed_nodes[0]}/hugepages/hugepages-2048kB/"
                "nr_hugepages"))
        else:
            reason = "the pool is empty" if total == 0 else state
            improve = _reserve(system)
        return Verdict("hugetlb", False, 0, reason, improve)

    arenas = available
    limits = [limit for limit in (system.hugetlb_limit,
                                  system.hugetlb_reservation_limit)
              if limit is not None]
    tightest = min(limits, key=lambda limit: limit.room, default=None)
    if tightest is not None and tightest.room // ARENA_SIZE < available:
        arenas = tightest.room // ARENA_SIZE
        left = plural(arenas, "page") if arenas else "none"
        reason = (f"{state}, but the cgroup's limit of {mib(tightest.limit)} "
                  f"({tightest.path}) leaves {left}")
        return Verdict("hugetlb", arenas > 0, arenas, reason,
                       _raise_limit(tightest))
    if free < available:
        state += f"; the kernel would get {available - free:,} more on demand"
    return Verdict("hugetlb", True, arenas, state, _reserve(system))


def judge_thp(system):
    """Verdict of transparent huge pages."""
    if system.thp_allowed is False:
        return Verdict("thp", False, 0, "transparent huge pages are disabled "
                       "for this process and its children "
                       "(PR_SET_THP_DISABLE)", "start it from a process for "
                       "which they are not, for example another systemd unit "
                       "or login")
    if system.thp_enabled is None:
        return (_judge_thp_without_sys(system) if not system.has_sys else
                Verdict("thp", False, 0, "this kernel has no transparent huge "
                        "pages (CONFIG_TRANSPARENT_HUGEPAGE)"))
    if system.thp_size is not None and ARENA_SIZE % system.thp_size != 0:
        return Verdict("thp", False, 0, "a transparent huge page of this "
                       f"kernel has {mib(system.thp_size)} and does not fit "
                       "an arena of 2 MiB")
    # The setting of that size, if there is one, may leave it to the general.
    mode, path = system.thp_2mib_enabled, THP_FILE.replace(
        "enabled", "hugepages-2048kB/enabled")
    if mode in (None, "inherit"):
        mode, path = system.thp_enabled, THP_FILE
    if mode == "never":
        return Verdict("thp", False, 0, f"{path} is \"never\": the memory is "
                       "advised, but stays on base pages",
                       _write(system, "madvise", path))
    reason, improve = f"{path} is \"{mode}\"", None
    if system.thp_tried:
        return Verdict("thp", True, None, f"{reason}, and a trial got one")
    if system.thp_defrag == "never":
        reason += (", and defrag is \"never\": only huge pages that are free "
                   "at the moment are used")
        improve = _write(system, "madvise",
                         THP_FILE.replace("enabled", "defrag"))
    if system.thp_tried is False:
        return Verdict("thp", False, 0, f"{reason}, but a trial got none: no "
                       "memory is free in pieces of 2 MiB, or a limit or the "
                       "sandbox forbids them", improve)
    return Verdict("thp", True, None, reason, improve)


def _judge_thp_without_sys(system):
    mount = "mount /sys (mount -t sysfs sysfs /sys), or ask on the host"
    if system.thp_tried:
        return Verdict("thp", True, None, f"a trial got one ({_NO_SYS})")
    if system.thp_tried is False:
        return Verdict("thp", False, 0, f"a trial got none ({_NO_SYS})", mount)
    return Verdict("thp", None, None, f"not known: {_NO_SYS}", mount)


def judge(system):
    """The verdicts of all tiers, best first."""
    return [judge_hugetlb(system), judge_thp(system),
            Verdict("plain", True, None, "always there")]


def judge_windows(windows):
    """The same of what windows.scan() found."""
    size = windows.large_page_minimum
    if not size:
        large = Verdict("large pages", False, 0, "this system has none")
    elif ARENA_SIZE % size != 0:
        large = Verdict("large pages", False, 0, "a large page has "
                        f"{mib(size)} and does not fit an arena of 2 MiB")
    elif not windows.privilege_held:
        large = Verdict(
            "large pages", False, 0, "this account does not hold the right "
            "\"Lock pages in memory\" (SeLockMemoryPrivilege)",
            "give it the right: secpol.msc, Local Policies, User Rights "
            "Assignment, Lock pages in memory; then log on again")
    else:
        large = Verdict("large pages", True, None, "the account holds the "
                        "right \"Lock pages in memory\"; whether memory is in "
                        "large enough pieces shows when they are asked for")
    return [large, Verdict("plain", True, None, "always there")]


def would_get_huge_pages(verdicts):
    """Whether an interpreter started now would get any."""
    return any(verdict.works for verdict in verdicts
               if verdict.tier != "plain")


def best_improvement(verdicts):
    """The one command that would help most, or None.

    Where transparent huge pages work, a pool adds little (docs/results.rst):
    it is worth its memory only where they do not.
    """
    first = sorted(verdicts, key=lambda verdict: verdict.tier != "thp")
    if first[0].works:
        return first[0].improve
    return next((verdict.improve for verdict in first
                 if verdict.improve is not None), None)
