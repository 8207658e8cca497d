#!/usr/bin/env python3
"""Measure the memory that programs take, in several interpreters side by side.

Each program runs in a process of its own, --runs times; the configurations
take turns.  The table has medians, in MiB: the peak, and what a process holds
after it has dropped its objects.  Pages of the pool count as resident memory
does.  For programs that fork it has the sum of PSS of all processes, where a
page that N processes share counts for an Nth in each.  Needs Linux and Python
3.9 or later, and root for configurations with a pool and the row with a
cgroup.
"""

import ast
import contextlib
import dataclasses
import inspect
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchlib import BenchError, last_line
from benchlib import command, files, machine, measure, memory
from benchlib.process import describe_status, stop_on_signals
from benchlib.progress import Progress


PROGRAM = "bench_memory.py"
MIB = memory.MIB
AUTO_POOL_PAGES = 128
TIMEOUT_SECONDS = 300       # of one run, beside what it is told to wait
SAMPLE_SECONDS = 0.002
POOL_PAUSES = 1, 2, 4       # seconds between tries to change the pool

# --- what runs in the interpreters that are measured ------------------------
#
# Their start must stay small, so they get the text of these functions alone.
# A program returns what it has measured, by the key of the row, in bytes.


def kib(path, *names):
    """The sum of some lines "name:  123 kB" of a file in /proc, in bytes."""
    with open(path) as file:
        return sum(int(line.split()[1]) * 1024 for line in file
                   if line.partition(":")[0] in names)


def held():
    return kib("/proc/self/status", "VmRSS", "HugetlbPages")


def pss(pids):
    """What some processes have together: they share nothing with others."""
    files = [f"/proc/{pid}/smaps_rollup" for pid in pids]
    return (sum(kib(file, "Pss", "Private_Hugetlb") for file in files)
            + sum(kib(file, "Shared_Hugetlb") for file in files) // len(pids))


def objects(mib):
    """Small objects of all sizes that take this many MiB."""
    return [bytes(number % 480) for number in range(mib * 3750)]


def burst(mib, turns=5):
    """Build and drop a structure several times."""
    for _ in range(turns):
        objects(mib)


def work(seconds):
    """Make and drop objects for a while, but only a few at a time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number in range(1000):
            record = {"name": f"{number}-abc", "number": number}


def start():
    return {"held": held()}


def start_modules():
    import asyncio, http.server, json, runpy
    sys.argv[:] = ["ensurepip", "--version"]
    try:
        runpy.run_module("ensurepip", run_name="__main__")
    except SystemExit:
        pass
    return {"held": held()}


def structure(mib=200, seconds=6):
    burst(mib)
    dropped = held()
    work(seconds)
    return {"dropped": dropped, "held": held()}


def alternate(mib=100, turns=20):
    for _ in range(turns):
        objects(mib)
        b"x" * (mib << 20)
    return {"held": held()}


def five_kinds(mib=100, turns=4):
    for _ in range(turns):
        objects(mib)
        b"x" * (mib << 20)
        for size in 900_000, 475_000:
            [[None] * size for _ in range((mib << 17) // size)]
        [bytearray(b"x" * (1 << 20) + bytes(number)) for number in range(mib)]
        [f"{number:600}" for number in range(mib * 1600)]
    return {"held": held()}


def large_blocks(turns=500):
    for _ in range(turns):
        b"x" * 4_000_000
        b"y" * 2_000_000
    return {"held": held()}


def many_lists(count=200):
    kept = [[None for _ in range(135_000)] for _ in range(count)]
    del kept
    return {"held": held()}


def idle_threads(count=100):
    import socket, threading
    threading.stack_size(256 << 10)
    ends = [socket.socketpair() for _ in range(count)]
    for end, _ in ends:
        threading.Thread(target=end.recv, args=(3_000_000,),
                         daemon=True).start()
    time.sleep(0.5)
    return {"held": held()}


def subinterpreters(count=60):
    try:
        import _interpreters
    except ImportError:                     # Python 3.12
        import _xxsubinterpreters as _interpreters
    run = getattr(_interpreters, "exec", None) or _interpreters.run_string
    for _ in range(count):
        interpreter = _interpreters.create()
        run(interpreter, "import json, re, collections")
        _interpreters.destroy(interpreter)
    return {"held": held()}


def idle_workers(mib=200, workers=4, mib_each=0):
    import multiprocessing
    burst(mib)
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, burst, [mib_each]):
        time.sleep(0.5 + mib_each / 20)
        return {"pss": pss([os.getpid(), *(
            process.pid for process in multiprocessing.active_children())])}


def busy_workers(mib=50):
    return idle_workers(0, mib_each=mib)


def preforked(mib=150, workers=4, wait=5):
    kept = objects(mib)
    pids = [os.getpid()]
    for number in range(workers):
        pid = os.fork()
        if pid == 0:
            # Counting a reference writes to an object.
            tenth = len(kept) // 10
            list(kept[number * tenth:(number + 1) * tenth])
            signal.pause()
        pids.append(pid)
    time.sleep(1)
    at_once = pss(pids)
    time.sleep(wait)
    later = pss(pids)
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"pss": at_once, "pss later": later}


def preforked_with_thread(mib=150):
    """The same, while another thread keeps arenas from being moved."""
    import threading
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return preforked(mib, wait=0)


def fill():
    kept = []
    try:
        while True:
            kept.append(bytes(400))
    except MemoryError:
        count = len(kept)
        kept = None
    return {"objects": count * 400}


PROLOGUE = "import os, signal, sys, time\n" + "\n".join(
    map(inspect.getsource,
        (kib, held, pss, objects, burst, work, idle_workers, preforked)))

# At the end, too: the highest resident memory ever, and pages of the pool.
EPILOGUE = """
result["peak"] = kib("/proc/self/status", "VmHWM")
result["pool"] = kib("/proc/self/status", "HugetlbPages")
print("MEASURED", result)
"""

# --- the rows --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Program:
    function: object
    rows: dict                  # words for the table, by the key of a row
    shell: str = ""             # what a shell does before the program starts
    waits: bool = False         # whether it takes --wait

    @property
    def name(self):
        return self.function.__name__


PROGRAMS = [
    Program(start, {"peak": "``-c pass``: peak"}),
    Program(start_modules, {
        "peak": "start of ensurepip, asyncio, json, http.server: peak"}),
    Program(structure, {"peak": "200 MiB of small objects, 5 times: peak",
                        "dropped": "the same, dropped",
                        "held": "the same, after 6 s of small work"}),
    Program(alternate, {
        "peak": "100 MiB of small objects, a 100 MiB block, 20 turns: peak",
        "held": "the same, dropped"}),
    Program(five_kinds, {"peak": "five kinds of 100 MiB in turn: peak",
                         "held": "the same, dropped"}),
    Program(large_blocks, {"peak": "blocks of 4 and 2 MB in turn: peak"}),
    Program(many_lists, {"peak": "200 lists of 135,000 items: peak",
                         "held": "the same, dropped"}),
    Program(idle_threads, {
        "held": "100 idle threads, each with an untouched 3 MB buffer"}),
    Program(subinterpreters, {"held": "60 subinterpreters, destroyed"}),
    Program(idle_workers, {
        "pss": "4 idle multiprocessing workers, 200 MiB dropped before"}),
    Program(busy_workers, {
        "pss": "4 idle multiprocessing workers, 50 MiB dropped in each"}),
    Program(preforked, {"pss": "150 MiB, 4 preforked workers, a tenth used",
                        "pss later": "the same, after {wait} s"}, waits=True),
    Program(preforked_with_thread, {
        "pss": "150 MiB, 4 preforked workers, a second thread"}),
    Program(fill, {"objects": "400-byte objects under ``ulimit -v 400000``"},
            shell="ulimit -v 400000"),
]

# Whether a program lives where memory is limited to what the first
# configuration needs, and 5 % more.
LIMITED = "100 MiB in turns, in a cgroup of {first}'s peak + 5 %: lives"

# --- running ---------------------------------------------------------------


def run(configuration, program, shell="", **arguments):
    """Run a program, and return what was measured, by key, in bytes.

    The kernel does not count the pool's pages in the peak of resident memory,
    so the sum of both is looked at again and again.
    """
    code = (f"{PROLOGUE}\n{inspect.getsource(program.function)}\n"
            f"result = {program.name}(**{arguments!r}){EPILOGUE}")
    shell = "; ".join(filter(None, [program.shell, shell, 'exec "$@"']))
    limit = time.monotonic() + TIMEOUT_SECONDS + arguments.get("wait", 0)
    peak = 0
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            ["sh", "-c", shell, "sh", configuration.path, "-W", "ignore", "-c",
             code], env=configuration.environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                if time.monotonic() > limit:
                    raise BenchError(f"{configuration.label}: {program.name} "
                                     "did not end in time")
                with contextlib.suppress(OSError, ProcessLookupError):
                    peak = max(peak, kib(f"/proc/{process.pid}/status",
                                         "VmRSS", "HugetlbPages"))
                time.sleep(SAMPLE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    line = last_line(text)
    if process.returncode or not line.startswith("MEASURED "):
        raise BenchError(
            f"{configuration.label}: {program.name} failed: "
            + (line or describe_status(process.returncode)))
    result = ast.literal_eval(line.partition(" ")[2])
    return {**result, "peak": max(peak, result["peak"])}


def wants_pool(configuration):
    return configuration.switch in ("on", "1", "hugetlb")


def set_pool(pool, configuration):
    """Set the pool to what a configuration asks for, if it uses the pool."""
    if not wants_pool(configuration):
        return
    pages = {"auto": AUTO_POOL_PAGES, "empty": 0}.get(configuration.pool)
    for seconds in *POOL_PAUSES, None:
        try:
            pool.set_available(int(configuration.pool) if pages is None
                               else pages)
            return
        except (BenchError, OSError) as error:
            # Another process may be changing the pool.
            if seconds is None:
                raise BenchError(f"{configuration.label}: {error}")
            time.sleep(seconds)


@contextlib.contextmanager
def memory_cgroup(limit):
    """Make a cgroup with a limit in bytes, and yield its folder.

    Raise BenchError if that cannot be.
    """
    with open("/proc/self/mountinfo") as file:
        lines = file.readlines()
    for line in lines:
        mount = line.split()[4]
        kind, _, options = line.partition(" - ")[2].split(maxsplit=2)
        if kind == "cgroup" and "memory" in options.strip().split(","):
            name = "memory.limit_in_bytes"
            break
        if kind == "cgroup2":
            with open(f"{mount}/cgroup.subtree_control") as file:
                if "memory" in file.read().split():
                    name = "memory.max"
                    break
    else:
        raise BenchError("there is no cgroup with the memory controller")
    try:
        group = tempfile.mkdtemp(prefix="bench_memory_", dir=mount)
    except OSError as error:
        raise BenchError(f"cannot make a cgroup: {error}")
    try:
        with open(f"{group}/{name}", "w") as file:
            file.write(str(limit))
        yield group
    finally:
        os.rmdir(group)


def lives(configuration, program, limit, **arguments):
    """Whether a program ends as it should where memory is limited."""
    with memory_cgroup(limit) as group:
        try:
            run(configuration, program,
                shell=f"echo $$ >{group}/cgroup.procs", **arguments)
        except BenchError:
            return False
    return True


@contextlib.contextmanager
def busy_khugepaged():
    """Have khugepaged look at all memory in a few seconds, as root; else as
    it does."""
    folder = "/sys/kernel/mm/transparent_hugepage/khugepaged"
    found = {}
    try:
        with contextlib.suppress(OSError):
            for name, value in (("scan_sleep_millisecs", 100),
                                ("pages_to_scan", 65536)):
                with open(f"{folder}/{name}", "r+") as file:
                    found[name] = file.read()
                    file.write(str(value))
        yield
    finally:
        for name, value in found.items():
            with contextlib.suppress(OSError), \
                    open(f"{folder}/{name}", "w") as file:
                file.write(value)


def measure_all(options, pool, progress):
    """Return {(program, key): (words, {label: [value of each run]})}."""
    rows = {}
    turns = [(program, configuration) for program in options.programs
             for _ in range(options.runs)
             for configuration in options.configurations]
    progress.start(len(turns))
    for program, configuration in turns:
        progress.step(f"{program.name} {configuration.label}")
        set_pool(pool, configuration)
        if program.waits:
            with busy_khugepaged():
                result = run(configuration, program, wait=options.wait)
        else:
            result = run(configuration, program)
        for key, words in program.rows.items():
            row = rows.setdefault((program.name, key),
                                  (words.format(wait=options.wait), {}))
            row[1].setdefault(configuration.label, []).append(result[key])
    if options.limited:
        try:
            rows["limited", "lives"] = measure_limited(options, pool)
        except (BenchError, OSError) as error:
            progress.problem(f"limited left out: {error}")
    progress.clear()
    return rows


def measure_limited(options, pool):
    """The same of one program in a cgroup: (words, {label: [bool]})."""
    first = options.configurations[0]
    program = next(each for each in PROGRAMS if each.function is alternate)
    set_pool(pool, first)
    limit = int(1.05 * statistics.median(
        run(first, program)["peak"] for _ in range(options.runs)))
    values = {}
    for configuration in options.configurations:
        set_pool(pool, configuration)
        values[configuration.label] = [lives(configuration, program, limit)
                                       for _ in range(options.runs)]
    return LIMITED.format(first=first.label), values


# --- what comes out --------------------------------------------------------


def cell(values):
    if isinstance(values[0], bool):
        return f"{sum(values)} of {len(values)}"
    mib = statistics.median(values) / MIB
    return f"{mib:.1f}" if mib < 100 else f"{mib:,.0f}"


def table(rows, labels):
    """The rows as a table in reStructuredText."""
    lines = [["", *labels]]
    lines += [[words, *(cell(values[label]) for label in labels)]
              for words, values in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = "  ".join("=" * width for width in widths)
    texts = ["  ".join([line[0].ljust(widths[0]), *(
        text.rjust(width) for text, width in zip(line[1:], widths[1:]))])
        for line in lines]
    # An empty first cell would be the continuation of a row.
    texts[0] = "\\" + texts[0][1:]
    return "\n".join([rule, texts[0], rule, *texts[1:], rule])


def parse_arguments(args):
    names = [program.name for program in PROGRAMS] + ["limited"]
    parser = command.make_parser(PROGRAM, description=__doc__)
    parser.add_argument(
        "--config", action="append", required=True, dest="configurations",
        metavar="LABEL=PATH[,switch=VALUE][,pool=PAGES][,env=NAME=VALUE...]",
        help="an interpreter; the first one's peak is the limit of the cgroup")
    parser.add_argument("--program", action="append", choices=names,
                        metavar="NAME",
                        help="only this one: " + ", ".join(names))
    parser.add_argument("--runs", type=int, default=3, metavar="N",
                        help="runs of each program (default: 3)")
    parser.add_argument("--wait", type=int, default=5, metavar="SECONDS",
                        help="how long preforked workers idle (default: 5)")
    parser.add_argument("--json", metavar="FILE",
                        help="write the value of each run, in bytes")
    options = parser.parse_args(args)
    command.check_least(options, 1, "runs")
    command.check_least(options, 0, "wait")
    options.configurations = measure.parse_configurations(
        options.configurations)
    chosen = options.program or names
    options.programs = [each for each in PROGRAMS if each.name in chosen]
    options.limited = "limited" in chosen
    return options


def measure_and_show(args):
    """Return the exit status."""
    options = parse_arguments(args)
    described = [measure.describe_configuration(configuration)
                 for configuration in options.configurations]
    with memory.Pool() as pool:
        rows = measure_all(options, pool, Progress(program=PROGRAM))
    print(table(rows.values(),
                [each.label for each in options.configurations]))
    if options.json:
        files.save({"machine": machine.describe(), "wait": options.wait,
                    "configurations": described, "rows": [
                        {"program": program, "key": key, "row": words,
                         "values": values}
                        for (program, key), (words, values)
                        in rows.items()]}, options.json)
    return 0


def main(args=None):
    """Return the exit status: 0, or 2 after an error."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
