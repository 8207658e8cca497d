#!/usr/bin/env python3
"""Measure what a fork costs, by the number of arenas and what they sit on.

Before a fork() a process with one thread moves its arenas from explicit huge
pages to transparent ones; one with more threads copies them for the child.
For each count of arenas, and each of

  off        plain pages
  thp        transparent huge pages
  on         explicit huge pages
  on-thread  explicit huge pages, and a thread that does nothing

a process fills the arenas and forks several times.  A line tells how long the
first os.fork() takes, how long the others, and how long it then takes until a
child that writes to every object is gone, as medians with lower and upper
quartile.  Needs Linux, Python 3.9 or later, and root, to change the pool.
"""

import json
import random
import statistics
import sys

from benchlib import BenchError, last_line
from benchlib import command, memory, process


PROGRAM = "bench_fork.py"
KINDS = ("off", "thp", "on", "on-thread")

# Objects of 448 bytes with their header: 36 in a pool of 16 KiB, 128 pools in
# an arena.  Changing an object's count of references writes to it.
CHILD = """
import json, os, sys, threading, time
if sys.argv[3] == "thread":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
objects = [bytes(400) for _ in range(int(sys.argv[1]) * 128 * 36)]
with open("/proc/self/status") as file:
    pages = sum(int(line.split()[1]) // 2048 for line in file
                if line.startswith("HugetlbPages"))
results = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        others = list(objects)
        os._exit(0)
    forked = time.perf_counter()
    status = os.waitpid(pid, 0)[1]
    end = time.perf_counter()
    if status:
        sys.exit(f"the child ended with status {status}")
    results.append([forked - start, end - forked])
print(json.dumps([pages, results]))
"""


def run(python, kind, arenas, forks):
    """Return the pages that the process had, and pairs of seconds."""
    env = process.clean_environment()
    switch, _, thread = kind.partition("-")
    env["PYTHON_PYMALLOC_HUGEPAGES"] = switch
    try:
        result = process.capture(
            [python, "-W", "ignore", "-c", CHILD, str(arenas), str(forks),
             thread], env=env)
    except OSError as exc:
        raise BenchError(f"cannot run {python}: {exc.strerror}")
    if result.returncode != 0:
        raise BenchError(f"{kind} with {arenas} arenas: "
                         + (last_line(result.stderr)
                            or process.describe_status(result.returncode)))
    return json.loads(result.stdout)


def cell(seconds):
    """Median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{middle * 1e3:.2f} ms ({low * 1e3:.2f}-{high * 1e3:.2f})"


def measure(options):
    """Return {(kind, arenas): ([seconds of the first fork of a process],
    [seconds of the others], [seconds after those])}."""
    pairs = [(kind, arenas) for arenas in options.arenas for kind in KINDS]
    results = {pair: ([], [], []) for pair in pairs}
    with memory.Pool() as pool:
        own_pages = {}
        for arenas in options.arenas:
            pool.set_available(arenas + 20)
            own_pages[arenas] = run(options.python, "on", arenas, 1)[0]
            if own_pages[arenas] < arenas:
                raise BenchError(f"{options.python} took {own_pages[arenas]} "
                                 f"huge pages for {arenas} arenas: it must be "
                                 "built --with-pymalloc-hugepages")
        for _ in range(options.runs):
            random.shuffle(pairs)
            for kind, arenas in pairs:
                pages = own_pages[arenas] if kind.startswith("on") else 0
                pool.set_available(pages)
                memory.warm(min(3 * arenas * 2 * memory.MIB + 64 * memory.MIB,
                                memory.available_memory() // 2), pages)
                forks = run(options.python, kind, arenas, options.forks)[1]
                first, others, after = results[kind, arenas]
                first.append(forks[0][0])
                others += [in_fork for in_fork, _ in forks[1:]]
                after += [then for _, then in forks[1:]]
    return results


def parse_arguments(args):
    parser = command.make_parser(PROGRAM, description=__doc__)
    parser.add_argument("python", help="a patched interpreter")
    parser.add_argument("--arenas", type=int, nargs="+", default=[10, 50, 200],
                        metavar="N", help="(default: 10 50 200)")
    parser.add_argument("--runs", type=int, default=5, metavar="N",
                        help="processes of each kind (default: 5)")
    parser.add_argument("--forks", type=int, default=6, metavar="N",
                        help="forks of each process (default: 6)")
    options = parser.parse_args(args)
    command.check_least(options, 2, "runs")
    command.check_least(options, 3, "forks")
    if min(options.arenas) < 1:
        raise BenchError("--arenas must be 1 or more")
    return options


def measure_and_show(args):
    """Return the exit status."""
    results = measure(parse_arguments(args))
    for (kind, arenas), (first, others, after) in sorted(
            results.items(), key=lambda item: (item[0][1],
                                               KINDS.index(item[0][0]))):
        print(f"{arenas:5} arenas  {kind:9}  first os.fork(): {cell(first):27}"
              f"  others: {cell(others):27}  then until the child is gone: "
              f"{cell(after)}")
    return 0


def main(args=None):
    """Return the exit status: 0, or 2 if nothing was measured."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    sys.exit(main())
