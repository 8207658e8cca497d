#!/usr/bin/env python3
"""Workloads that allocate many small objects: bench_obmalloc.py NAME [NAME...]

They are those of the proposal for huge pages under pymalloc's arenas.  Each
runs once, with the garbage collector off; "all" runs every one of them, and
--list prints their names.  Nothing is timed here: a run is meant to be
measured from outside, as perf stat does.

With --loops N, each runs N times in this one process, and prints the seconds
that each turn took, a line each.

Nothing is imported but what every interpreter has loaded anyway, so that the
figures are those of the workload.  All objects of a workload die when its
function returns, within the run.
"""

import gc
import sys


def small_object_churn():
    """Keep 200,000 objects, dropping the oldest for each new one."""
    objs = []
    for _ in range(200_000):
        objs.append(bytearray(64))
    for _ in range(200_000):
        objs.append(bytearray(64))
        # Linear in the length of the list: most of the time goes there.
        objs.pop(0)


def bulk_small_alloc():
    """Allocate a million buffers, then write to each in turn."""
    objs = [bytearray(48) for _ in range(1_000_000)]
    for obj in objs:
        obj[0] = 1


def dict_churn():
    """Build and drop one small dict after the other: never a new arena."""
    for _ in range(500_000):
        d = {"a": 1, "b": 2, "c": 3, "d": 4}
        del d


def mixed_sizes():
    """Allocate buffers of twelve sizes in turn."""
    sizes = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    objs = [bytearray(sizes[i % 12]) for i in range(500_000)]


def fragmentation():
    """Free every other buffer, then fill the holes."""
    objs = [bytearray(128) for _ in range(500_000)]
    for i in range(0, len(objs), 2):
        objs[i] = None
    for i in range(0, len(objs), 2):
        objs[i] = bytearray(128)


def list_of_tuples():
    """Build a million tuples of three integers."""
    objs = [(i, i + 1, i + 2) for i in range(1_000_000)]


def class_instances():
    """Build half a million instances with slots."""
    class Point:
        __slots__ = ("x", "y", "z")

        def __init__(self, x, y, z):
            self.x = x
            self.y = y
            self.z = z

    objs = [Point(i, i + 1, i + 2) for i in range(500_000)]


def arena_pressure():
    """Hold two million buffers at once."""
    layers = [[bytearray(256) for _ in range(200_000)] for _ in range(10)]


def random_walk():
    """Write to a million buffers in random, but always the same, order."""
    import random
    random.seed(42)
    objs = [bytearray(64) for _ in range(1_000_000)]
    order = list(range(len(objs)))
    random.shuffle(order)
    for i in order:
        objs[i][0] = i & 0xff


WORKLOADS = {workload.__name__: workload for workload in (
    small_object_churn,
    bulk_small_alloc,
    dict_churn,
    mixed_sizes,
    fragmentation,
    list_of_tuples,
    class_instances,
    arena_pressure,
    random_walk,
)}


def take_turns(workload, loops):
    """Run a workload that many times, and print what each turn took."""
    import time
    seconds = []
    for _ in range(loops):
        start = time.perf_counter()
        workload()
        seconds.append(time.perf_counter() - start)
    for turn in seconds:
        print(f"{turn:.6f}")


def main(args, workloads=WORKLOADS, script="bench_obmalloc.py",
         collector=False):
    """Run the workloads named in args; return the exit status.

    collector says whether the garbage collector is on while they run.
    """
    if "--list" in args:
        print("\n".join(workloads))
        return 0
    loops = 0
    if "--loops" in args:
        at = args.index("--loops")
        number = "".join(args[at + 1:at + 2])
        if not number.isdecimal() or int(number) < 1:
            print(f"{script}: --loops needs a number from 1 on",
                  file=sys.stderr)
            return 2
        loops = int(number)
        args = args[:at] + args[at + 2:]
    if not args or "-h" in args or "--help" in args:
        print(f"usage: {script} [--loops N] NAME [NAME...] | all | --list",
              file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args == ["all"]:
        args = list(workloads)
    for name in args:
        if name not in workloads:
            print(f"{script}: no workload {name!r}; --list prints those "
                  "there are", file=sys.stderr)
            return 2
    for name in args:
        gc.collect()
        if not collector:
            gc.disable()
        if loops:
            take_turns(workloads[name], loops)
        else:
            workloads[name]()
        gc.enable()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
