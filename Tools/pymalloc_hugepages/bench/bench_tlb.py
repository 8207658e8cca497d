#!/usr/bin/env python3
"""Simulate the TLB misses of interpreters, where no machine counts them.

valgrind's lackey traces each access of a workload to memory; tlb_model.c, a
model of a processor's TLBs for data, takes the trace as it comes, and asks the
kernel at each page walk whether the process has a 2 MiB page there: of the
pool or transparent.  Neither perf nor an event counter is needed, but valgrind
3.19, a C compiler, Linux 6.7, and root's rights to change the pool.

The workloads are those of bench_obmalloc.py with a tenth or a fifth of their
objects, which still is twice to three times what the second level reaches with
pages of 4 KiB.  Only the workload is counted: not the interpreter's start.
"""

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchlib import BenchError, Interrupted, last_line
from benchlib import (
    command, files, machine, measure, memory, perf, process, report)
from benchlib.progress import Progress
import bench_obmalloc


PROGRAM = "bench_tlb.py"
MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                     "tlb_model.c")

# Version of the form of the results.
FORMAT = 1

# Entries and ways of the first level for 4 KiB pages, for 2 MiB pages, and of
# the second level: Intel's 64 and IA-32 Architectures Optimization Reference
# Manual, TLB parameters of the Skylake microarchitecture.
PROCESSOR = "Intel Skylake-SP"
GEOMETRY = "64,4,32,4,1536,12"

# What cachegrind can simulate as well: caches with lines of 4 KiB are TLBs, if
# all pages are of that size.  Its second level also has the instructions; all
# of these are kept in a first level that is large enough.
CHECKED_GEOMETRY = "64,4,32,4,2048,16"
CACHEGRIND_OPTIONS = ("--D1=262144,4,4096", "--LL=8388608,16,4096",
                      "--I1=67108864,16,4096")
NO_HUGE_PAGES = "0-0"

# The two may differ by this part of the misses.
TOLERANCE = 0.02

# What the numbers of objects are divided by.
DIVISOR = 10
DIVISORS = {"class_instances": 5}

# Modules that a workload imports, which is not counted.
IMPORTS = {"random_walk": ["random"]}

# Pages of a pool that is to have as many as are of use.
AUTO_POOL_PAGES = 128

# The proposal's changes of dTLB load misses and store misses, in percent, of
# the workloads that it has them of.
PROPOSAL = {
    "fragmentation": (-95.9, -94.7),
    "random_walk": (-93.1, -98.9),
    "bulk_small_alloc": (-91.4, -94.5),
    "list_of_tuples": (-88.0, -93.7),
    "class_instances": (-84.3, -91.8),
    "mixed_sizes": (-80.8, -76.5),
}

# The figures of the tables, by their names in the model's counts.
FIGURES = {
    "load_walks": "Simulated dTLB-load-misses: page walks of loads",
    "store_walks": "Simulated dTLB-store-misses: page walks of stores",
    "load_misses": "Simulated misses of the first level, loads",
    "store_misses": "Simulated misses of the first level, stores",
}

# The switches that promise huge pages.
PROMISING = ("on", "1", "thp", "hugetlb")

# Runs a workload of bench_obmalloc.py, in the same folder, and writes to the
# trace where it begins and ends: to a pipe, so that the lines keep their
# places between those of valgrind.
RUNNER = """\
import gc, sys
import bench_obmalloc

name, *modules = sys.argv[1:]
for module in modules:
    __import__(module)
workload = bench_obmalloc.WORKLOADS[name]
gc.collect()
gc.disable()
print("begin", flush=True)
workload()
print("end", flush=True)
"""

EPILOG = """\
configurations:
  LABEL=PATH[,switch=VALUE][,pool=auto|empty|PAGES][,env=NAME=VALUE...]
  as those of bench_driver.py; tables compare all with the first.

examples:
  bench_tlb.py --config stock=build/unpatched/python \\
               --config hugetlb=./python,switch=on,pool=auto \\
               --config thp=./python,switch=thp
  bench_tlb.py --check --config stock=build/unpatched/python

exit status:
  0    everything asked for was simulated and shown
  1    something is missing, or the model and cachegrind differ
  2    nothing was simulated: bad arguments, valgrind missing
  130, 129, 143
       stopped by Ctrl-C, SIGHUP or SIGTERM; the runs until then are shown and
       written
"""


# --- runs ------------------------------------------------------------------


def build_model(folder):
    """Compile the model into a folder.  Return the program's path."""
    path = os.path.join(folder, "tlb_model")
    compiler = os.environ.get("CC", "cc")
    try:
        status, stderr = process.run([compiler, "-O2", "-o", path, MODEL])
    except OSError as error:
        raise BenchError(f"cannot run the compiler {compiler!r}: "
                         f"{error.strerror}; the variable CC names another")
    if status:
        raise BenchError(f"cannot compile {MODEL}: " + last_line(stderr))
    return path


def divisor_of(workload, divisor=None):
    """What its numbers are divided by: divisor, if that is not None."""
    return divisor or DIVISORS.get(workload, DIVISOR)


def write_workload(folder, divisor):
    """Write bench_obmalloc.py, with fewer objects, and what runs it.  Its
    numbers of objects are those that end in thousands."""
    with open(bench_obmalloc.__file__) as file:
        text = file.read()
    text = re.sub(r"\b\d+(_000)+\b",
                  lambda number: str(int(number[0]) // divisor), text)
    for name, content in (("bench_obmalloc.py", text), ("runner.py", RUNNER)):
        with open(os.path.join(folder, name), "w") as file:
            file.write(content)


def workload_command(path, folder, workload):
    """The command line that runs a workload of write_workload()."""
    return [path, "-S", "-B", os.path.join(folder, "runner.py"), workload,
            *IMPORTS.get(workload, ())]


def environment(configuration):
    """Surroundings in which two runs have the same addresses."""
    return {**configuration.environment(), "PYTHONHASHSEED": "0"}


class Run:
    """A process under lackey, and the model that takes its trace.

    pages is the model's second argument; None is for the pages that the
    process has.  is_marked says whether what the command prints goes into the
    trace.
    """

    def __init__(self, model, geometry, arguments, env, pages=None,
                 is_marked=True):
        read_end, write_end = os.pipe()
        with open(read_end, "rb") as trace:
            self._errors = tempfile.TemporaryFile("w+", errors="replace")
            with open(write_end, "wb") as log:
                self._traced = start(
                    ["valgrind", "-q", "--vgdb=no", "--tool=lackey",
                     "--trace-mem=yes", f"--log-fd={log.fileno()}",
                     *arguments],
                    env=env, stdout=log if is_marked else subprocess.DEVNULL,
                    stderr=self._errors, pass_fds=[log.fileno()])
            try:
                self._model = start(
                    [model, geometry, pages or str(self._traced.pid)],
                    stdin=trace, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
            except BaseException:
                end(self._traced)
                raise

    def is_done(self):
        """Whether both have ended.  Without the model, the process does not
        go on."""
        if self._model.poll() is None:
            return False
        if self._model.returncode:
            end(self._traced)
        return self._traced.poll() is not None

    def counts(self):
        """The model's counts, once both have ended.  Raise BenchError if
        either has failed."""
        output, complaint = self._model.communicate()
        self._errors.seek(0)
        errors = self._errors.read()
        self._errors.close()
        if self._model.returncode:
            raise BenchError(last_line(complaint) or "the model failed: "
                             + process.describe_status(self._model.returncode))
        if self._traced.returncode:
            raise BenchError(
                last_line(errors)
                or process.describe_status(self._traced.returncode))
        return json.loads(output)

    def end(self):
        end(self._traced)
        end(self._model)


def start(arguments, **kwargs):
    """A process that Ctrl-C at the terminal does not reach."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    try:
        return subprocess.Popen(arguments, universal_newlines=True,
                                start_new_session=True, **kwargs)
    except OSError as error:
        raise BenchError(f"cannot run {arguments[0]!r}: {error.strerror}")


def end(child):
    """End a process of start() with all its children, if it still runs."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def finish(runs):
    """Wait for runs.  Return a list of their counts, or of the BenchErrors
    that tell why there are none."""
    try:
        while not all([run.is_done() for run in runs]):
            time.sleep(0.05)
    finally:
        for run in runs:
            run.end()
    outcomes = []
    for run in runs:
        try:
            outcomes.append(run.counts())
        except BenchError as error:
            outcomes.append(error)
    return outcomes


# --- all workloads in all configurations -----------------------------------


def batches(options):
    """Lists of (workload, configuration) that run at the same time: those
    with a pool by themselves, as it has pages for them alone."""
    for workload in options.workloads:
        for has_pool in False, True:
            pairs = [(workload, configuration)
                     for configuration in options.configs
                     if (configuration.pool != "empty") == has_pool]
            for first in range(0, len(pairs), options.jobs):
                yield pairs[first:first + options.jobs]


def pool_pages(configuration):
    """How many pages the pool has for a configuration."""
    return int({"auto": AUTO_POOL_PAGES, "empty": 0}.get(
        configuration.pool, configuration.pool))


def new_results(options):
    """The results before the first run."""
    described = [measure.describe_configuration(configuration)
                 for configuration in options.configs]
    for configuration, description in zip(options.configs, described):
        description["pool_pages"] = pool_pages(configuration)
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(
            datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "processor": PROCESSOR,         # the one that is simulated
        "geometry": GEOMETRY,
        "configurations": described,    # the first one is the baseline
        "workloads": options.workloads,
        "divisors": {name: divisor_of(name, options.divisor)
                     for name in options.workloads},
        # {"configuration", "workload", "counts"}: counts as of tlb_model.c
        "runs": [],
        "problems": [],                 # lines of text
    }


def simulate(options, results, model, pool, progress):
    """Fill the results, and keep them in the file of --json."""
    planned = list(batches(options))
    progress.start(len(planned))
    for batch in planned:
        (workload, _), *_ = batch
        progress.step(f"{workload}: "
                      + ", ".join(each.label for _, each in batch))
        with tempfile.TemporaryDirectory() as folder:
            write_workload(folder, divisor_of(workload, options.divisor))
            outcomes = run_batch(batch, folder, model, pool)
        for (_, configuration), outcome in zip(batch, outcomes):
            problem = judge(configuration, outcome)
            if problem:
                results["problems"].append(
                    f"{configuration.label} {workload}: {problem}")
                progress.problem(results["problems"][-1])
            if not isinstance(outcome, BenchError):
                results["runs"].append({
                    "configuration": configuration.label,
                    "workload": workload, "counts": outcome})
        files.save(results, options.json)


def run_batch(batch, folder, model, pool):
    """What finish() returns of a batch."""
    try:
        pool.set_available(sum(pool_pages(each) for _, each in batch))
    except memory.PoolError as error:
        return [error] * len(batch)
    runs = []
    try:
        for workload, configuration in batch:
            runs.append(Run(
                model, GEOMETRY,
                workload_command(configuration.path, folder, workload),
                environment(configuration)))
    except BaseException:
        for run in runs:
            run.end()
        raise
    return finish(runs)


def judge(configuration, outcome):
    """What is wrong with a run, as text, or None."""
    if isinstance(outcome, BenchError):
        return f"left out: {outcome}"
    if (configuration.switch in PROMISING and not outcome["huge_walks"]
        and outcome["load_walks"]):
        return (f"no huge page was used although the switch is "
                f"{configuration.switch}")
    return None


# --- the check -------------------------------------------------------------


def read_cachegrind(path):
    """{event: number} of the whole program, from a file of cachegrind's."""
    lines = {}
    with open(path) as file:
        for line in file:
            name, _, rest = line.partition(": ")
            lines[name] = rest.split()
    return dict(zip(lines["events"], map(int, lines["summary"])))


def run_cachegrind(arguments, env, folder):
    """read_cachegrind() of a command, with CACHEGRIND_OPTIONS."""
    path = os.path.join(folder, "cachegrind.out")
    status, stderr = process.run(
        ["valgrind", "-q", "--vgdb=no", "--tool=cachegrind",
         "--cache-sim=yes", *CACHEGRIND_OPTIONS,
         f"--cachegrind-out-file={path}", *arguments], env=env)
    if status:
        raise BenchError("cachegrind failed: " + (
            last_line(stderr) or process.describe_status(status)))
    return read_cachegrind(path)


def compare_with_cachegrind(model, arguments, env, folder):
    """Rows of (what, the model's number, cachegrind's), of a whole program
    on 4 KiB pages."""
    run = Run(model, CHECKED_GEOMETRY, arguments, env, NO_HUGE_PAGES,
              is_marked=False)
    try:
        theirs = run_cachegrind(arguments, env, folder)
    except BaseException:
        run.end()
        raise
    (ours,) = finish([run])
    if isinstance(ours, BenchError):
        raise ours
    # An instruction that loads and stores is a load for cachegrind.  Its store
    # never misses.
    return [("loads", ours["load"], theirs["Dr"]),
            ("loads, first level", ours["load_misses"], theirs["D1mr"]),
            ("loads, both levels", ours["load_walks"], theirs["DLmr"]),
            ("stores, first level", ours["store_misses"], theirs["D1mw"]),
            ("stores, both levels", ours["store_walks"], theirs["DLmw"])]


def compare_with_perf(model, arguments, env):
    """Rows of (what, the model's number, perf's), of a whole program on its
    own pages; none where the machine does not count."""
    events = {"dTLB-load-misses": "load_walks",
              "dTLB-store-misses": "store_walks"}
    try:
        counts = {perf.base_name(event): number for event, number in perf.stat(
            list(events), arguments, env).items() if number is not None}
    except BenchError:
        counts = {}
    if not counts:
        return []
    (ours,) = finish([Run(model, GEOMETRY, arguments, env, is_marked=False)])
    if isinstance(ours, BenchError):
        raise ours
    return [(event, ours[name], counts[event])
            for event, name in events.items() if event in counts]


def difference(ours, theirs):
    return abs(ours - theirs) / max(theirs, 1)


def check(options, model):
    """Compare the model with cachegrind, and with perf, by the first workload
    in the first configuration.  Return the exit status."""
    configuration, workload = options.configs[0], options.workloads[0]
    env = environment(configuration)
    with tempfile.TemporaryDirectory() as folder, memory.Pool() as pool:
        pool.set_available(pool_pages(configuration))
        write_workload(folder, divisor_of(workload, options.divisor))
        arguments = workload_command(configuration.path, folder, workload)
        rows = compare_with_cachegrind(model, arguments, env, folder)
        counted = compare_with_perf(model, arguments, env)
    for other, compared in ("cachegrind", rows), ("perf stat", counted):
        if not compared:
            print(f"{other}: this machine does not count TLB misses")
            continue
        table = report.Table(
            f"{workload}, {configuration.label}: simulated, and {other}",
            ["What", "simulated", other, "difference"],
            [[what, f"{ours:,.0f}", f"{theirs:,.0f}",
              f"{difference(ours, theirs):.2%}"]
             for what, ours, theirs in compared])
        print(report.layout([table], [], options.format), end="")
    if any(difference(ours, theirs) > TOLERANCE for _, ours, theirs in rows):
        command.complain(PROGRAM, "the model and cachegrind differ by more "
                         f"than {TOLERANCE:.0%}")
        return 1
    return 0


# --- what comes out --------------------------------------------------------


def tables(results):
    """A table for each of FIGURES: numbers of the first configuration, the
    changes of the others, and the proposal's."""
    counts = {(run["workload"], run["configuration"]): run["counts"]
              for run in results["runs"]}
    first, *others = report.labels(results)
    for index, (name, title) in enumerate(FIGURES.items()):
        has_proposal = index < 2
        rows = []
        for workload in results["workloads"]:
            base = counts.get((workload, first))
            row = [workload, report.NOT_RUN if base is None
                   else f"{base[name]:,}"]
            for label in others:
                found = counts.get((workload, label))
                row.append(change(found and found[name], base and base[name]))
            if has_proposal:
                percent = PROPOSAL.get(workload)
                row.append("-" if percent is None else f"{percent[index]:+}%")
            rows.append(row)
        yield report.Table(title, ["Workload", first, *others,
                                   *["proposal"] * has_proposal], rows)


def change(number, base):
    if number is None:
        return report.NOT_RUN
    return f"{number / base - 1:+.1%}" if base else "-"


def notes(results):
    """Lines that say what was simulated, and how."""
    divisors = results["divisors"]
    walks = lost = 0
    for run in results["runs"]:
        walks += run["counts"]["load_walks"] + run["counts"]["store_walks"]
        lost += run["counts"]["lost_walks"]
    base, base_ways, huge, huge_ways, both, both_ways = (
        results["geometry"].split(","))
    return [
        results["date"], *machine.as_lines(results["machine"]),
        *map(report.configuration_note, results["configurations"]),
        f"Simulated: {results['processor']}, data TLBs of {base} entries for "
        f"4 KiB pages ({base_ways} ways) and {huge} for 2 MiB pages "
        f"({huge_ways} ways), a second level of {both} for both "
        f"({both_ways} ways); that used last stays longest",
        "Pages: as the kernel had them at each simulated walk; "
        f"{lost:,} of {walks:,} walks came when the page was gone, and count "
        "as 4 KiB",
        "Numbers of objects: " + ", ".join(
            f"{name} a {divisor}th" for name, divisor in divisors.items()),
        *(f"Problem: {problem}" for problem in results["problems"])]


def show(results, options):
    width = min(100, shutil.get_terminal_size((100, 25)).columns)
    print(report.layout(list(tables(results)), notes(results), options.format,
                        width), end="", flush=True)


def parse_arguments(args):
    """The command line, with configurations parsed and defaults filled in."""
    parser = command.make_parser(PROGRAM, description=__doc__, epilog=EPILOG)
    command.add_configurations(parser, "FILE", "a file of --json")
    parser.add_argument(
        "--workload", action="append", metavar="NAME", dest="workloads",
        choices=list(bench_obmalloc.WORKLOADS),
        help="only this one, or these: a name of bench_obmalloc.py (default: "
        "the six that the proposal has TLB misses of)")
    parser.add_argument("--divisor", type=int, metavar="N",
                        help="what numbers of objects are divided by (default:"
                        f" {DIVISOR}, class_instances"
                        f" {DIVISORS['class_instances']})")
    parser.add_argument("--jobs", type=int, metavar="N",
                        default=os.cpu_count() or 1,
                        help="processes at the same time (default: one for "
                        "each processor)")
    parser.add_argument(
        "--check", action="store_true",
        help="compare the model with valgrind's cachegrind, which knows one "
        "size of pages, and with perf stat where the machine counts, by the "
        "first workload in the first configuration")
    command.add_results(parser, "bench_tlb.json")
    options = parser.parse_args(args)
    command.check_least(options, 1, "jobs")
    if options.divisor is not None:
        command.check_least(options, 1, "divisor")
    options.workloads = list(dict.fromkeys(options.workloads or PROPOSAL))
    options.configs = measure.parse_configurations(options.configs or ())
    return options


def run_all(options, model):
    """Simulate and show.  Return the exit status."""
    results = new_results(options)
    progress = Progress(program=PROGRAM)
    status = 0
    try:
        with memory.Pool() as pool:
            simulate(options, results, model, pool, progress)
    except Interrupted as interruption:
        name = signal.Signals(interruption.signum).name
        results["problems"].append(f"stopped by {name} before the end")
        status = 128 + interruption.signum
    progress.clear()
    files.save(results, options.json)
    show(results, options)
    return status or (1 if results["problems"] else 0)


def measure_and_show(args):
    """Return the exit status."""
    options = parse_arguments(args)
    if options.report:
        show(files.load(options.report, FORMAT, "a result file of " + PROGRAM,
                        "give one that --json has written"), options)
        return 0
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind is not installed; on Debian: apt-get "
                         "install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(folder)
        return (check if options.check else run_all)(options, model)


def main(args=None):
    """Return the exit status (see EPILOG)."""
    return command.call(PROGRAM, measure_and_show, args)


if __name__ == "__main__":
    process.stop_on_signals()
    sys.exit(main())
