"""`status` without a process: what the system offers, and a verdict per tier.
"""

import dataclasses
import sys

from . import (
    KIB, MIB, ToolError, as_json, metrics, mib, system, verdict)


def _or_unknown(value):
    return "unknown" if value is None else value


def _size(size):
    """A size in the largest unit that it is a multiple of."""
    for unit, name in (MIB << 10, "GiB"), (MIB, "MiB"), (KIB, "KiB"):
        if size % unit == 0 and size:
            return f"{size // unit:,} {name}"
    return f"{size:,} bytes"


def _count(number):
    return "?" if number is None else f"{number:,}"


def _limit(limit):
    if limit is None:
        return "none"
    return (f"{mib(limit.limit)}, {mib(limit.room)} of it "
            f"left ({limit.path})")


def _facts(found):
    """Pairs of a heading and its lines."""
    machine = found.machine or "unknown machine"
    base = ("" if found.base_page_size is None
            else f", base pages of {_size(found.base_page_size)}")
    yield "kernel", [f"{_or_unknown(found.kernel)} ({machine}){base}"]

    lines = []
    for pool in found.pools:
        default = (", the default size"
                   if pool.page_size == found.default_huge_page_size else "")
        lines.append(f"{_size(pool.page_size)}{default}: "
                     f"{_count(pool.total)} pages, {_count(pool.free)} free, "
                     f"{_count(pool.reserved)} reserved, "
                     f"{_count(pool.surplus)} surplus, "
                     f"{_count(pool.overcommit)} more on demand")
        if len(pool.nodes) > 1:
            lines += [f"  node {node.number}: {_count(node.total)} pages, "
                      f"{_count(node.free)} free" for node in pool.nodes]
    none = ("the kernel has none" if found.has_sys
            else "not known: there is no /sys/kernel/mm to be read")
    yield "huge pages", lines or [none]

    if found.thp_enabled is None:
        lines = [none]
    else:
        size = "" if found.thp_size is None else f", {_size(found.thp_size)}"
        lines = [f"enabled {found.thp_enabled}, defrag "
                 f"{_or_unknown(found.thp_defrag)}{size}"]
        if found.thp_2mib_enabled is not None:
            lines.append(f"of 2 MiB: {found.thp_2mib_enabled}")
        if found.thp_allowed is False:
            lines.append("disabled for this process (PR_SET_THP_DISABLE)")
    yield "transparent huge pages", lines

    if found.cgroup_version is None:
        lines = ["none to be seen"]
    else:
        lines = [f"cgroup {found.cgroup_version}",
                 f"huge pages of 2 MiB: {_limit(found.hugetlb_limit)}"]
        if found.hugetlb_reservation_limit is not None:
            lines.append("reservations of them: "
                         + _limit(found.hugetlb_reservation_limit))
        lines.append(f"memory: {_limit(found.memory_limit)}")
    yield "limits of the container", lines

    lines = []
    if found.memory_available is not None:
        lines.append("available memory: "
                     + mib(found.memory_available))
    if found.allowed_nodes is not None:
        lines.append("memory of NUMA nodes: "
                     + ", ".join(map(str, found.allowed_nodes)))
    for name, limit in (("address space (RLIMIT_AS)",
                         found.address_space_limit),
                        ("data (RLIMIT_DATA)", found.data_limit)):
        if limit is not None:
            lines.append(f"limit of {name}: {_size(limit)}")
    root = ("the host's root" if found.is_confined or not found.has_sys
            else "root")
    lines.append("may change the pool" if found.may_change_pool
                 else f"may not change the pool ({root} may)")
    yield "this process", lines


def _facts_windows(found):
    yield "Windows", [found.version]
    yield "large pages", [_size(found.large_page_minimum)
                          if found.large_page_minimum else "none"]
    held = {None: "unknown", False: "not held",
            True: "held, and enabled" if found.privilege_enabled
                  else "held; the interpreter enables it"}
    yield "SeLockMemoryPrivilege", [held[found.privilege_held]]


def as_lines(facts, verdicts):
    """All of it as lines of text."""
    lines = []
    for heading, details in facts:
        lines.append(f"{heading}:")
        lines += [f"  {line}" for line in details]
    lines += ["", "An interpreter started now, from the best tier down:"]
    for each in verdicts:
        what = {True: "works", False: "would fall back",
                None: "unknown"}[each.works]
        room = ""
        if each.works and each.arenas is not None:
            room = f", room for {each.arenas:,}"
        lines.append(f"  {each.tier + ':':<13}{what}{room}: {each.reason}")
    improvement = verdict.best_improvement(verdicts)
    lines.append("")
    if improvement is None:
        lines.append("Nothing to improve." if verdict.would_get_huge_pages(
            verdicts) else "Nothing here can improve it.")
    else:
        lines += ["To improve it:", f"  {improvement}"]
    return lines


def as_dict(found, verdicts):
    """All of it as plain JSON types.  Sizes in bytes."""
    return {
        "system": dataclasses.asdict(found),
        "verdicts": [dataclasses.asdict(each) for each in verdicts],
        "huge_pages": verdict.would_get_huge_pages(verdicts),
        "improve": verdict.best_improvement(verdicts),
    }


def main(options, root="/"):
    """Return the exit status: 0 if an interpreter started now would get huge
    pages, else 1.  Raise ToolError if that cannot be found out."""
    if sys.platform == "win32":
        from . import windows
        found = windows.scan()
        verdicts = verdict.judge_windows(found)
        facts = _facts_windows(found)
    else:
        found = system.scan(root)
        if root == "/":
            found = dataclasses.replace(found, thp_tried=system.try_thp())
        verdicts = verdict.judge(found)
        facts = _facts(found)
    form = options.format or ("json" if options.json else "text")
    if form == "json":
        print(as_json("system", as_dict(found, verdicts)))
    elif form == "openmetrics":
        print(metrics.of_system(found, verdicts), end="")
    else:
        print("\n".join(as_lines(facts, verdicts)))
    if verdict.would_get_huge_pages(verdicts):
        return 0
    if any(each.works is None for each in verdicts):
        raise ToolError("cannot find out what this system offers: there is no "
                        "/sys/kernel/mm, and /proc tells too little; mount "
                        "both, or ask on the host")
    return 1
