"""Which run comes when, and what came out of it.

The results are one dict of plain JSON types, described at new_results().
"""

import dataclasses
import datetime
import json
import os
import re
import shutil
import statistics
import tempfile
import typing

import bench_obmalloc
import bench_programs
import bench_scale
import bench_small

from . import BenchError, last_line
from . import files, machine, memory, perf, process, profile


# The script of each workload.
SCRIPTS = {name: os.path.abspath(module.__file__)
           for module in (bench_obmalloc, bench_programs, bench_scale,
                          bench_small)
           for name in module.WORKLOADS}

# Start-up time, as a workload beside those of the scripts.
STARTUP = "startup"

# One turn of a workload that takes several in one process: the median of its
# turns, as an event beside those of perf.  In nanoseconds, as perf's times.
TURN_TIME = "turn_time"

# Pages that are added to what a workload was seen to need: arenas are
# not all full, and no two processes have quite the same number of them.
POOL_MARGIN = 16

# How often a run is tried, at most, until its times are possible.
TRIES = 5

# Version of the form of the results.
FORMAT = 1

# The values of PYTHON_PYMALLOC_HUGEPAGES.
SWITCHES = ("on", "1", "thp", "hugetlb", "off", "0")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One interpreter with one setting of its surroundings."""

    label: str
    path: str
    # Value of PYTHON_PYMALLOC_HUGEPAGES, or None for a clean environment.
    switch: typing.Optional[str] = None
    # Huge pages that the pool has: "empty", "auto" (as many as the workloads
    # can use), or a number.
    pool: str = "empty"
    # Variables of the environment, as pairs of name and value.
    variables: typing.Tuple[typing.Tuple[str, str], ...] = ()
    # Label of the configuration to compare this one with, or None for the
    # first.
    base: typing.Optional[str] = None

    def environment(self):
        """The environment of a run."""
        env = process.clean_environment()
        if self.switch is not None:
            env["PYTHON_PYMALLOC_HUGEPAGES"] = self.switch
        env.update(self.variables)
        return env

    def command(self, workload, loops=1):
        """The command line, as a list, that runs the workload, loops times in
        one process."""
        if workload != STARTUP:
            turns = ["--loops", str(loops)] if loops > 1 else []
            return [self.path, SCRIPTS[workload], *turns, workload]
        options = ["-I"]
        if any(name.startswith("PYTHON") for name, _ in self.variables):
            # What -I stands for, but that it ignores the environment.
            options = ["-P", "-s"]
        if self.switch is not None:
            # An interpreter that does not know the option takes no notice.
            options += ["-X", f"pymalloc_hugepages={self.switch}"]
        return [self.path, *options, "-c", "pass"]


_CONFIGURATION = re.compile(
    r"(?P<label>[\w.+-]+)=(?P<path>.+?)"
    r"(,switch=(?P<switch>[\w.-]+))?"
    r"(,pool=(?P<pool>auto|empty|[0-9]+))?"
    r"(,base=(?P<base>[\w.+-]+))?"
    r"(?P<variables>(,env=\w+=[^,]*)*)", re.ASCII)


def parse_configuration(text):
    """Configuration from LABEL=PATH[,switch=VALUE][,pool=auto|empty|PAGES]
    [,base=LABEL][,env=NAME=VALUE...]."""
    match = _CONFIGURATION.fullmatch(text)
    if match is None or re.search(",(switch|pool|base|env)=", match["path"]):
        raise BenchError(
            f"not a configuration: {text!r}; it must be "
            "LABEL=PATH[,switch=VALUE][,pool=auto|empty|PAGES][,base=LABEL]"
            "[,env=NAME=VALUE...]")
    if match["switch"] not in (None, *SWITCHES):
        raise BenchError(f"{match['label']}: no switch {match['switch']!r}; "
                         f"there are: {', '.join(SWITCHES)}")
    path = shutil.which(match["path"])
    if path is None:
        raise BenchError(f"{match['label']}: {match['path']!r} is no program "
                         "that can be run; give an interpreter's path")
    return Configuration(match["label"], os.path.abspath(path),
                         match["switch"], match["pool"] or "empty",
                         tuple(tuple(part.split("=", 1)) for part in
                               match["variables"].split(",env=")[1:]),
                         match["base"])


def parse_configurations(texts, bases=False):
    """A list of configurations, of which no two have the same label.  bases
    says whether they may have a base, which then is one without its own."""
    configurations = [parse_configuration(text) for text in texts]
    labels = [configuration.label for configuration in configurations]
    for label in labels:
        if labels.count(label) > 1:
            raise BenchError(f"two configurations are called {label!r}; "
                             "give each a label of its own")
    can_be_base = [c.label for c in configurations if bases and not c.base]
    for c in configurations:
        if c.base not in (None, *can_be_base):
            raise BenchError(f"{c.label}: {c.base!r} cannot be its base; "
                             f"there are: {', '.join(can_be_base) or 'none'}")
    return configurations


_TELL_BUILD = """\
import json, sys, sysconfig
print(json.dumps([sys.version, sysconfig.get_config_var("CONFIG_ARGS")]))
"""


def describe_configuration(configuration):
    """The configuration and its interpreter as a dict for the results.

    Raise BenchError if the interpreter does not start.
    """
    try:
        done = process.capture([configuration.path, "-c", _TELL_BUILD],
                               env=configuration.environment())
        if done.returncode:
            raise BenchError(last_line(done.stderr)
                             or f"exit status {done.returncode}")
        version, configure_args = json.loads(done.stdout)
    except (BenchError, OSError, ValueError) as error:
        raise BenchError(f"{configuration.label}: {configuration.path} does "
                         f"not start as a Python interpreter: {error}")
    return dict(dataclasses.asdict(configuration), version=version,
                configure_args=configure_args, pool_pages=None)


def preload_problem(configuration):
    """Why what LD_PRELOAD names is not in the interpreter, as text, or None.

    ld.so goes on without it, and says so on stderr alone.  What is measured
    then would be the C library's malloc() under another one's name.
    """
    if not any(name == "LD_PRELOAD" for name, _ in configuration.variables):
        return None
    done = process.capture([configuration.path, "-c", "pass"],
                           env=configuration.environment())
    for line in done.stderr.splitlines():
        if "LD_PRELOAD" in line:
            return f"{line.strip()} Install the library, or give its path"
    return None


def check_available(workloads, pool):
    """Raise BenchError if memory is too short for the largest of workloads.

    The pool's free pages count where the driver may take them.
    """
    largest = max(workloads, key=lambda name: bench_scale.UNITS.get(name, 0))
    needed = bench_scale.memory_needed([largest])
    available = memory.available_memory()
    if pool.writable:
        available += pool.available() * memory.HUGE_PAGE_SIZE
    if needed > available:
        raise BenchError(
            f"{largest} needs {needed / memory.GIB:.1f} GiB of memory, "
            f"{available / memory.GIB:.1f} GiB are available: stop other "
            "programs, or choose smaller workloads (--workload)")


def new_results(configurations, workloads, rounds, seed, warm_size, loops=1,
                memory_runs=1, profiled=False):
    """The results before the first run.

    Raise BenchError if an interpreter does not start or perf cannot work.
    """
    described = [describe_configuration(c) for c in configurations]
    counted, missing = perf.probe(configurations[0].command(STARTUP))
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(
            datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "seed": seed,
        "rounds": rounds,               # as planned
        "warm_size": warm_size,         # bytes touched before each run
        "loops": loops,                 # turns of a workload in a run
        "memory_runs": memory_runs,     # runs whose median is the peak memory
        "profiled": profiled,           # perf record instead of perf stat
        "resumed": [],                  # dates, of runs that were interrupted
        "configurations": described,    # the first one is the baseline
        "workloads": list(workloads),
        "counted": counted,             # events and times, asked of perf
        "not_counted": missing,         # those that this machine lacks
        # {"configuration", "workload", "rss", "hugetlb", "thp"}: peak memory
        # in bytes, of a run that was not timed, or the medians of several
        "memory": [],
        # {"configuration", "workload", "round", "counts"}: one timed run;
        # counts as of perf.parse_stat(), and TURN_TIME if there are turns;
        # or as of profile.record()
        "runs": [],
        "problems": [],                 # lines of text
    }


def _identity(results):
    """What must be the same where one run goes on with another, by name."""
    return json.loads(json.dumps({
        # Pages are counted later, or left by a run that was killed.
        "configurations": [dict(c, pool_pages=None)
                           for c in results["configurations"]],
        "machine": dict(results["machine"], nr_hugepages=None),
        **{key: results[key] for key in ("workloads", "loops", "profiled")}}))


def resume(results, path):
    """Let new results go on with those of an interrupted run in a file: take
    the timed runs, and what decides on the next one.  All that is not timed is
    done again.  Raise BenchError if the two are not runs of the same."""
    earlier = load(path)
    for name, found in _identity(earlier).items():
        if found != _identity(results)[name]:
            raise BenchError(f"cannot resume {path!r}, which has other "
                             f"{name}; start anew, without --resume")
    results["resumed"] = [*earlier.get("resumed", ()), results["date"]]
    for key in ("date", "seed", "warm_size", "runs"):
        results[key] = earlier[key]


class Session:
    """The runs of one benchmark: fills results, keeps what has failed."""

    def __init__(self, results, configurations, pool, progress):
        self._results = results
        self._configurations = configurations
        self._pool = pool
        self._progress = progress
        self._pool_pages = {}           # by (label, workload)
        self._left_out = set()          # pairs of (label, workload)

    def _pairs(self):
        """(configuration, workload) for all that has not failed so far."""
        return [(configuration, workload)
                for configuration in self._configurations
                for workload in self._results["workloads"]
                if (configuration.label, workload) not in self._left_out]

    def _problem(self, text):
        self._results["problems"].append(text)
        self._progress.problem(text)

    def _leave_out(self, configuration, workload, error):
        """Go on without what failed: this workload and, where the pool is too
        small for it, all others of the configuration that need one as large.
        """
        label = configuration.label
        failed = [workload]
        if isinstance(error, memory.PoolError):
            pages = self._pool_pages[label, workload]
            failed = [name for c, name in self._pairs() if c.label == label
                      and self._pool_pages[label, name] >= pages]
        self._leave_out_all(label, failed, error)

    def _leave_out_all(self, label, workloads, reason):
        self._left_out.update((label, name) for name in workloads)
        left = [name for name in self._results["workloads"]
                if (label, name) not in self._left_out]
        what = f" of {', '.join(workloads)}" if left else ""
        self._problem(f"{label} left out{what}: {reason}")

    def check_preloads(self):
        """Leave out what would run without the library that it is to have."""
        for configuration in self._configurations:
            problem = preload_problem(configuration)
            if problem:
                self._leave_out_all(configuration.label,
                                    self._results["workloads"], problem)

    def _peak_memory(self, configuration, workload, pool_pages):
        self._pool.set_available(pool_pages)
        command = configuration.command(workload, self._results["loops"])
        return memory.peak_memory(command, configuration.environment())

    def size_pools(self):
        """Find how many pages the pool must have for each run.

        With an empty pool, arenas are in what the kernel counts as resident,
        so the peak of that is a bound for the number of huge pages.
        """
        for configuration, workload in self._pairs():
            label = configuration.label
            if configuration.pool != "auto":
                self._pool_pages[label, workload] = (
                    0 if configuration.pool == "empty"
                    else int(configuration.pool))
                continue
            self._progress.step(f"sizing the pool: {label} {workload}")
            try:
                peak = self._peak_memory(configuration, workload, 0)
            except BenchError as error:
                self._leave_out(configuration, workload, error)
                continue
            self._pool_pages[label, workload] = POOL_MARGIN + -(
                -(peak["rss"] + peak["hugetlb"]) // memory.HUGE_PAGE_SIZE)
        for described in self._results["configurations"]:
            described["pool_pages"] = max(
                (self._pool_pages[c.label, name] for c, name in self._pairs()
                 if c.label == described["label"]), default=None)

    def check_memory(self):
        """Run everything, not timed: see which pages it really gets.

        Also the warm-up of the interpreters' files and bytecode caches.
        """
        for configuration, workload in self._pairs():
            if (configuration.label, workload) in self._left_out:
                continue                # just now: the pool is missing
            self._progress.step(f"checking: {configuration.label} {workload}")
            pages = self._pool_pages[configuration.label, workload]
            try:
                peaks = [self._peak_memory(configuration, workload, pages)
                         for _ in range(self._results["memory_runs"])]
            except BenchError as error:
                self._leave_out(configuration, workload, error)
                continue
            peak = {kind: round(statistics.median(each[kind]
                                                  for each in peaks))
                    for kind in peaks[0]}
            self._results["memory"].append(dict(
                configuration=configuration.label, workload=workload, **peak))
            problem = judge_pages(configuration, workload, peak, pages)
            if problem:
                self._problem(f"{configuration.label} {workload}: {problem}")

    def measure(self, rng, after_round):
        """Time every pair once per round, in an order that rng shuffles again
        for each; what the results have is not run again.  after_round() is
        called when a round is complete."""
        rounds = self._results["rounds"]
        done = {(run["round"], run["configuration"], run["workload"])
                for run in self._results["runs"] if run["round"] <= rounds}
        self._progress.start(rounds * len(self._pairs()) - len(done))
        for number in range(1, rounds + 1):
            pairs = self._pairs()
            rng.shuffle(pairs)
            for configuration, workload in pairs:
                pair = configuration.label, workload
                if pair in self._left_out or (number, *pair) in done:
                    continue
                self._progress.step(f"round {number} of {rounds}: "
                                    f"{configuration.label} {workload}")
                try:
                    counts = self._timed_run(configuration, workload)
                except BenchError as error:
                    self._leave_out(configuration, workload, error)
                    continue
                self._results["runs"].append({
                    "configuration": configuration.label,
                    "workload": workload, "round": number, "counts": counts})
            after_round()

    def _warm_size(self, workload, pool_pages):
        """Bytes to touch beside the pool: what was asked for, but all that the
        workload needs, if anything.  A large one would else be slow for what
        is beyond, and not for being large."""
        needed = (bench_scale.memory_needed([workload])
                  - pool_pages * memory.HUGE_PAGE_SIZE)
        asked = self._results["warm_size"]
        return max(asked, needed) if asked else 0

    def _timed_run(self, configuration, workload):
        pages = self._pool_pages[configuration.label, workload]
        self._pool.set_available(pages)
        if self._results["profiled"]:
            memory.warm(self._warm_size(workload, pages), pages)
            return profile.record(
                configuration.command(workload, self._results["loops"]),
                configuration.environment())
        # Those of bench_small have threads, which run on all processors.
        threads = (os.cpu_count() or 1
                   if workload in bench_small.WORKLOADS else 1)
        for _ in range(TRIES):
            memory.warm(self._warm_size(workload, pages), pages)
            counts = self._stat(configuration, workload)
            if perf.wall_time_is_possible(counts, threads):
                return counts
        raise BenchError(f"perf gave impossible times {TRIES} times: it gets "
                         "too little processor time; stop other programs")

    def _stat(self, configuration, workload):
        loops = self._results["loops"]
        command = configuration.command(workload, loops)
        with tempfile.TemporaryFile("w+") as stdout:
            counts = perf.stat(self._results["counted"], command,
                               configuration.environment(), stdout)
            if loops > 1 and workload != STARTUP:
                stdout.seek(0)
                counts[TURN_TIME] = 1e9 * statistics.median(
                    float(line) for line in stdout)
        return counts


# The kinds of pages (keys of memory.peak_memory()) that a switch promises,
# any of which will do.
_PROMISED = {"hugetlb": ("hugetlb",), "thp": ("thp",),
             "on": ("hugetlb", "thp"), "1": ("hugetlb", "thp")}


# So small that they may do without a huge page: it would cost more than it
# saves.
_MAY_BE_PLAIN = {STARTUP, "dict_churn", "echo_server",
                 *bench_small.WORKLOADS}


def judge_pages(configuration, workload, peak, pool_pages):
    """What is wrong with the pages that a run got, as text, or None."""
    promised = _PROMISED.get(configuration.switch, ())
    if workload in _MAY_BE_PLAIN:
        promised = ()
    if promised and not any(peak[kind] for kind in promised):
        return (f"no huge page was used although the switch is "
                f"{configuration.switch}: the figures are those of base pages")
    if pool_pages and peak["hugetlb"] >= pool_pages * memory.HUGE_PAGE_SIZE:
        return (f"all {pool_pages} pages of the pool were used up: "
                "give the configuration a larger one")
    return None


def load(path):
    """Results of an earlier run.  Raise BenchError if there are none."""
    return files.load(path, FORMAT, "a result file of this driver",
                      "give one that --json has written")
