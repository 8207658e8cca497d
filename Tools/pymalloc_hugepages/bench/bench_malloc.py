#!/usr/bin/env python3
"""Measure what the recipe for large buffers costs in memory (docs/malloc.rst).

Runs an interpreter as it is and with glibc's tunable of hugepages.py run
--malloc, and prints what its processes have in memory, in MiB:

  burst    200 MiB of buffers of 256 KiB to 1 MiB, all dropped at once
  pinned   the same, but the buffer that was made last is kept
  threads  32 threads that each build 8 MiB of buffers of 64 to 512 KiB, drop
           them and then wait
  fork     100 MiB of buffers of 256 KiB to 1 MiB, shared with 4 children that
           do nothing (the sum of all five, a shared page counted once)

Medians of several runs.  What it gains is bench_driver.py's to measure.  Needs
Linux and glibc 2.26.
"""

import json
import statistics
import subprocess
import sys

from benchlib import BenchError, last_line
from benchlib import command, memory, process
from hugepages import malloc


PROGRAM = "bench_malloc.py"

# What each program begins with.  build() makes buffers of sizes from low to
# high KiB until they have this many MiB, and writes to all of their memory;
# done() names the processes to look at, and waits until that was done.
PRELUDE = """
import json, os, random, sys, threading

def build(mib, low, high, seed=1):
    chance = random.Random(seed)
    buffers, left = [], mib << 20
    while left > 0:
        buffers.append(b"x" * chance.randrange(low << 10, high << 10))
        left -= len(buffers[-1])
    return buffers

def done(*pids):
    print(json.dumps([os.getpid(), *pids]), flush=True)
    sys.stdin.read()
"""

PROGRAMS = {
    "burst": """
buffers = build(200, 256, 1024)
del buffers
done()
""",
    "pinned": """
buffers = build(200, 256, 1024)
del buffers[:-1]
done()
""",
    "threads": """
built = threading.Barrier(32)
dropped = threading.Barrier(33)

def work(seed):
    buffers = build(8, 64, 512, seed)
    built.wait()
    del buffers
    dropped.wait()
    threading.Event().wait()

for seed in range(32):
    threading.Thread(target=work, args=(seed,), daemon=True).start()
dropped.wait()
done()
""",
    "fork": """
import signal, time
buffers = build(100, 256, 1024)
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    children.append(pid)
time.sleep(0.5)
done(*children)
for pid in children:
    os.kill(pid, signal.SIGKILL)
""",
}

# What is shown of each program: a name, and the figure in its results.
ROWS = (("burst", "peak", "at most"), ("burst", "rss", "after it"),
        ("pinned", "rss", "after it"),
        ("threads", "peak", "at most"), ("threads", "rss", "after it"),
        ("fork", "pss", "all five"))


def environments(switch, tunables):
    """Two environments: as it is, and with the recipe, given as a value of
    GLIBC_TUNABLES."""
    plain = process.clean_environment("MALLOC_", malloc.TUNABLES)
    if switch is not None:
        plain["PYTHON_PYMALLOC_HUGEPAGES"] = switch
    return [plain, {**plain, malloc.TUNABLES: tunables}]


def run(python, program, env):
    """Run a program.  Return sums over its processes, in bytes, by the names
    that memory.current_memory() has."""
    try:
        child = subprocess.Popen(
            [python, "-c", PRELUDE + program], env=env, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise BenchError(f"cannot run {python!r}: {error.strerror}")
    with child:
        line = child.stdout.readline()
        if not line:
            raise BenchError(f"{python!r} failed: "
                             + last_line(child.stderr.read()))
        found = [memory.current_memory(pid) for pid in json.loads(line)]
    return {name: sum(each[name] for each in found) for name in found[0]}


def measure(options):
    """Return {(program, figure): [MiB as it is, MiB with the recipe]}."""
    results = {}
    for _ in range(options.runs):
        for name, program in PROGRAMS.items():
            for index, env in enumerate(environments(options.switch,
                                                     options.tunables)):
                for figure, size in run(options.python, program, env).items():
                    results.setdefault((name, figure), ([], []))[index].append(
                        size / memory.MIB)
    return {key: [statistics.median(each) for each in both]
            for key, both in results.items()}


def parse_arguments(args):
    """The command line."""
    parser = command.make_parser(PROGRAM, description=__doc__)
    parser.add_argument("python", help="an interpreter")
    parser.add_argument("--switch", metavar="VALUE",
                        help="value of PYTHON_PYMALLOC_HUGEPAGES (default: "
                        "not set)")
    parser.add_argument("--tunables", metavar="TEXT", default=malloc.as_text(),
                        help="the recipe (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, metavar="N",
                        help="runs of each (default: 5)")
    options = parser.parse_args(args)
    command.check_least(options, 1, "runs")
    return options


def measure_and_show(args):
    """Return the exit status."""
    options = parse_arguments(args)
    version = malloc.glibc_version()
    if version is None or version < malloc.FIRST_VERSION:
        raise BenchError("the recipe needs glibc 2.26 or later")
    results = measure(options)
    print(f"{'MiB':<20}{'as it is':>10}{'recipe':>10}")
    for program, figure, what in ROWS:
        before, after = results[program, figure]
        print(f"{program + ', ' + what:<20}{before:10.1f}{after:10.1f}")
    return 0


def main(args=None):
    """Return the exit status: 0, or 2 if nothing was measured."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    sys.exit(main())
