"""`status` without a process: what the system offers, and a verdict per tier.
"""

import dataclasses
import json
import sys

from . import KIB, MIB, mib, system, verdict


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
    yield "huge pages", lines or ["the kernel has none"]

    if found.thp_enabled is None:
        lines = ["the kernel has none"]
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
    lines.append("may change the pool" if found.may_change_pool
                 else "may not change the pool (root may)")
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
        what = "works" if each.works else "would fall back"
        room = ""
        if each.works and each.arenas is not None:
            room = f", room for {each.arenas:,}"
        lines.append(f"  {each.tier + ':':<13}{what}{room}: {each.reason}")
    improvement = verdict.best_improvement(verdicts)
    lines.append("")
    if improvement is None:
        lines.append("Nothing to improve.")
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
    pages, else 1."""
    if sys.platform == "win32":
        from . import windows
        found = windows.scan()
        verdicts = verdict.judge_windows(found)
        facts = _facts_windows(found)
    else:
        found = system.scan(root)
        verdicts = verdict.judge(found)
        facts = _facts(found)
    if options.json:
        print(json.dumps(as_dict(found, verdicts), indent=2))
    else:
        print("\n".join(as_lines(facts, verdicts)))
    return 0 if verdict.would_get_huge_pages(verdicts) else 1
