"""`reserve`: put huge pages of 2 MiB into the kernel's pool.

`reserve N` makes the pool N pages large, pages in use included: what is in
/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages.  `reserve --for
COMMAND` adds to the pool until as many pages are free as the command needs.  A
pool that is large enough is left alone; only --shrink makes one smaller.  With
--node, all this is about the part of the pool that one NUMA node has.
"""

import dataclasses
import os
import re
import shlex
import sys

from . import (
    ARENA_SIZE, ToolError, as_json, mib, persist, plural, process, run, sudo)
from .pool import (
    NODES, check_memory, check_node, check_permission, pool_name, read_pool,
    resize)


USAGE = ("%(prog)s [-h] [--json] [--node N] [--persist] [--shrink]\n"
         "           [--dry-run] PAGES|SIZE\n"
         "       %(prog)s [-h] [--json] [--node N] [--persist] [--dry-run]\n"
         "           --for COMMAND [ARGUMENT ...]\n"
         "       %(prog)s [-h] [--json] [--dry-run] --forget")

# More than this is never asked of the kernel (a PiB).
_MOST_PAGES = 1 << 29


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
    pool had none, or, where there are no THP, on plain pages.  The first
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
            "--with-pymalloc-hugepages or with the wheel; name one that is, "
            "or a program that starts it")
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
        "pages", nargs="?", metavar="PAGES|SIZE",
        help="what the pool is to have, pages in use included: their number, "
        "such as 128, or their size, such as 256M or 1G (K, M, G, T: powers "
        "of 1,024)")
    parser.add_argument(
        "--for", dest="command", nargs="*", metavar="COMMAND",
        help="run COMMAND, with huge pages on, and reserve as many free pages "
        "as it needs; must be the last option")
    parser.add_argument(
        "--node", type=_node, metavar="N",
        help="reserve pages of NUMA node N")
    parser.add_argument(
        "--persist", action="store_true",
        help="reserve the same at each boot, by a file in /etc/sysctl.d (in "
        "/etc/tmpfiles.d with --node, or where the default huge page is not "
        "2 MiB)")
    parser.add_argument(
        "--forget", action="store_true",
        help="undo --persist: remove the file; leave the pool as it is")
    parser.add_argument("--shrink", action="store_true",
                        help="also make a larger pool smaller")
    parser.add_argument("--dry-run", action="store_true",
                        help="say what would be done, and change nothing")


def _node(text):
    if re.fullmatch("[0-9]{1,5}", text):
        return int(text)
    raise ToolError(f"reserve --node: not a number of a NUMA node: {text!r}; "
                    f"/{NODES} has those of this system")


def parse_pages(text):
    """The pages that a number of them, or a size with a unit, stands for."""
    match = re.fullmatch("([0-9]{1,20})(?:([KMGT])(?:iB)?)?", text,
                         re.IGNORECASE)
    if match is not None:
        pages = int(match[1])
        if match[2]:
            size = pages << 10 * " KMGT".index(match[2].upper())
            pages = -(-size // ARENA_SIZE)
        if pages <= _MOST_PAGES:
            return pages
    raise ToolError(f"reserve: not a number of pages, nor a size: {text!r}; "
                    "give how many huge pages of 2 MiB the pool is to have, "
                    "such as 128, or their size, such as 256M or 1G")


def _measure(options):
    """Run the command.  Return what goes into the result about it."""
    user = sudo.find_caller()
    # With --json, stdout is for JSON only.
    outcome = run.execute(options.command, "on", 2 if options.json else None,
                          user=user)
    needed = count_needed(outcome)
    return {"needed": needed, "margin": margin(needed),
            "user": user and user.name, **run.as_dict(outcome)}


def _say_needed(measured):
    yield (f"{shlex.join(measured['command'])} needs {measured['needed']:,} "
           f"huge pages, and {measured['margin']:,} to be sure.")
    if measured["user"] is not None:
        yield f"It ran as {measured['user']}, who called sudo."
    if measured["status"] != 0:
        yield (f"It ended with status {measured['status']}: this is what it "
               "needed until then.")
    if measured["sampled_processes"]:
        yield (f"{measured['sampled_processes']:,} of its processes wrote no "
               "statistics and were sampled: their arenas on plain pages are "
               "not counted, but their first arenas on THP are.")


def _say_pool(pool, node):
    where = "The pool" if node is None else f"Node {node}"
    line = (f"{where} has {pool.size:,} pages "
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
        path, line = overriding
        yield f"But {path} overrides it; take this line out: {line}"


def _check(options):
    """Raise ToolError if the arguments do not go together."""
    if options.forget:
        given = options.pages, options.command, options.node
        if given != (None, None, None) or options.persist or options.shrink:
            raise ToolError("reserve --forget takes only --json and "
                            "--dry-run; change the pool by a second call")
        return
    if (options.pages is None) == (options.command is None):
        raise ToolError("reserve: give a number of pages, or --for COMMAND, "
                        "which must be last")
    if options.command is not None and not options.command:
        raise ToolError("reserve --for: no command to run; give one: reserve "
                        "--for COMMAND [ARGUMENT ...]")
    if options.command is not None and options.shrink:
        raise ToolError("reserve --for only makes the pool larger; give "
                        "--shrink with a number of pages")


def main(options, root="/"):
    """Return the exit status: 0 if the pool has, or would have, all pages; 1
    if the kernel gave only some."""
    _check(options)
    if options.forget:
        files, lines = persist.forget(options.dry_run, root)
        _show("forget", {"files": files, "dry_run": options.dry_run}, lines,
              options)
        return 0
    node = options.node
    if node is not None:
        check_node(node, root)
    before = read_pool(root, node)
    lines, measured = [], None
    if options.command is None:
        wanted = target = parse_pages(options.pages)
        if not options.pages.isdecimal():
            lines.append(f"{options.pages} is {plural(wanted, 'huge page')} "
                         "of 2 MiB.")
        if target < before.size and not options.shrink:
            target = before.size
    else:
        measured = _measure(options)
        lines += _say_needed(measured)
        before = read_pool(root, node)
        wanted = measured["needed"] + measured["margin"]
        target = before.size + max(0, wanted - before.available)
        wanted = target
    plan = persist.plan(wanted, root, node) if options.persist else None
    overriding = persist.find_overriding(plan, root) if plan else None
    result = {
        "pages": wanted,
        "node": node,
        "dry_run": options.dry_run,
        "for": measured,
        "before": _pool_dict(before),
        "after": None,
        "write": None,
        "persist": plan and {"path": plan.path, "text": plan.text,
                             "remove": plan.remove,
                             "overridden_by": overriding and overriding[0]},
    }
    if target != before.size:
        check_memory(target - before.size, root, node)
        result["write"] = {
            "path": os.path.join(root, f"{pool_name(node)}/nr_hugepages"),
            "value": target}
    if options.dry_run:
        return _dry_run(result, lines, before, plan, overriding, options)

    if target != before.size or plan is not None:
        flags = [flag for flag, given in [
            (f"--node {node}", node is not None),
            ("--persist", options.persist), ("--shrink", options.shrink)]
            if given]
        try:
            check_permission(" ".join([process.own_command(), "reserve",
                                       str(wanted), *flags]), root, node)
        except ToolError:
            if lines and not options.json:
                print("\n".join(lines), flush=True)
            raise
    after, tries = before, 0
    if target != before.size:
        after, tries = resize(target, root, node)
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
    lines.append(_say_pool(after, node))
    if plan is not None:
        try:
            persist.write(plan)
        except ToolError:
            _show("reserve", result, lines, options)
            raise
        lines += _say_plan(plan, overriding, True)
    _show("reserve", result, lines, options)
    return status


def _dry_run(result, lines, before, plan, overriding, options):
    if result["write"] is not None:
        lines.append(f"Would write {result['write']['value']} to "
                     f"{result['write']['path']}.")
    else:
        lines.append("Would leave the pool as it is.")
    lines.append(_say_pool(before, result["node"]))
    if plan is not None:
        lines += _say_plan(plan, overriding, False)
    _show("reserve", result, lines, options)
    return 0


def _pool_dict(pool):
    return {"size": pool.size, "available": pool.available,
            **dataclasses.asdict(pool)}


def _show(kind, result, lines, options):
    if options.json:
        print(as_json(kind, result))
    else:
        print("\n".join(lines))
    if sys.stdout is not None:
        sys.stdout.flush()
