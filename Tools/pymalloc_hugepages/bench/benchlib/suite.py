"""pyperformance's benchmarks: which run comes when, and what came out of it.

A folder of results has, for each configuration, LABEL.json, which is pyperf's,
what each run printed under logs/, and SESSION, which is one dict of plain JSON
types, described at new_session().
"""

import datetime
import json
import os
import re
import shlex
import subprocess
import tempfile

from . import BenchError, last_line
from . import files, machine, measure, memory, process, report


# What is installed; pinned, so that figures of different days can be compared.
REQUIREMENTS = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    "requirements-pyperformance.txt")

# Run by default: what keeps or makes many small objects, for only that can
# gain by huge pages, and what shows that the rest does not lose.
BENCHMARKS = (
    # Text becomes objects that are kept.
    "html5lib", "json_loads", "sqlglot_v2_parse", "tomli_loads",
    "unpickle_pure_python", "xml_etree",
    # Objects become text or bytes: many that live shortly.
    "json_dumps", "pickle_pure_python", "pprint",
    # Structures are copied, rewritten, walked and collected.
    "deepcopy", "dulwich_log", "gc_collect", "gc_traversal",
    "networkx_k_core", "sqlglot_v2_optimize", "sympy",
    # Tasks and frames by the thousand.
    "async_generators", "async_tree", "async_tree_eager_memoization",
    "async_tree_io", "coroutines",
    # Instances, lists and sets that come and go in few arenas.
    "comprehensions", "deltablue", "float", "mdp", "richards",
    # A start must cost nothing.
    "python_startup", "python_startup_no_site",
    # Control: all its objects are floats, which CPython keeps itself.
    "nbody",
)

# Pages of a pool that is to have as many as are of use, which is not known
# beforehand: 1 GiB.  Beyond that arenas get the next kind of page.
AUTO_POOL_PAGES = 512

# Processes in a row before it is another configuration's turn.  pyperf runs 20
# with one and then 20 with the other, which takes minutes; in that time a
# virtual machine can get faster or slower by 5 %.
PROCESSES_PER_ROUND = 2

# Of one process of a benchmark: the slowest takes less than one minute.
TIMEOUT_SECONDS = 600

# The status of a benchmark that pyperf has stopped for that.
_TIMED_OUT = 124

# A difference that is smaller is none that we report, in percent.
MIN_PERCENT = 1

SESSION = "session.json"

# Version of the form of the session.
FORMAT = 1


def new_session(configurations, rounds, flags):
    """The session before the first run.  Raise BenchError if an interpreter
    does not start."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(
            datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "rounds": rounds,               # as planned
        "flags": list(flags),           # options of pyperf's, for each run
        "requirements": pinned(),       # lines like "pyperf==1"
        # The first one is the baseline.
        "configurations": [measure.describe_configuration(c)
                           for c in configurations],
        "benchmarks": [],               # names, in the order of the runs
        # {"benchmark", "configuration", "round"}: one that is in the results
        "runs": [],
        # {"benchmark", "configuration", "reason"}: one that could not be run
        "failures": [],
        "problems": [],                 # lines of text
    }


def load_session(folder):
    """What a run has left in a folder.  Raise BenchError if there is none."""
    return files.load(os.path.join(folder, SESSION), FORMAT,
                      "a session of bench_pyperformance.py",
                      "give a folder that it has written")


def pinned():
    """The lines of REQUIREMENTS."""
    with open(REQUIREMENTS) as file:
        return [line.strip() for line in file
                if line.strip() and not line.startswith("#")]


class Tool:
    """pyperformance and pyperf in a virtual environment under directory.

    It is the baseline's interpreter that runs them: pyperformance leaves out
    the benchmarks that are not for the Python which itself is run by, be it
    only that of the system and not the one to measure.
    """

    def __init__(self, directory, interpreter):
        """interpreter is a dict as of measure.describe_configuration()."""
        self._directory = directory
        self._interpreter = interpreter["path"]
        self._root = os.path.join(directory, "tool")
        self._stamp = os.path.join(self._root, "installed")
        self._wanted = "\n".join([interpreter["path"], interpreter["version"],
                                  *pinned()])
        self._python = os.path.join(self._root, "bin", "python")

    def install(self):
        """Make the environment unless it is there, with the same interpreter
        and the pinned versions.  Raise BenchError if that fails."""
        try:
            with open(self._stamp) as file:
                if file.read() == self._wanted:
                    return
        except OSError:
            pass
        env = process.clean_environment()
        try:
            os.makedirs(self._directory, exist_ok=True)
        except OSError as error:
            raise BenchError(f"cannot make {self._directory!r}: "
                             f"{error.strerror}; give another --directory")
        for command in (
                [self._interpreter, "-m", "venv", "--clear", self._root],
                [self._python, "-m", "pip", "--disable-pip-version-check",
                 "install", "--requirement", REQUIREMENTS]):
            log = os.path.join(self._directory, "install.log")
            with open(log, "w+") as file:
                status, _ = process.run(command, env=env, stdout=file,
                                        stderr=subprocess.STDOUT)
                file.seek(0)
                if status:
                    raise BenchError(
                        "cannot install pyperformance with "
                        f"{self._interpreter}: {_reason(file.read(), status)} "
                        f"({log} has the rest); it needs the modules venv and "
                        "ssl, and PyPI or an index that pip is told of")
        with open(self._stamp, "w") as file:
            file.write(self._wanted)

    def command(self, module, *arguments):
        # Unbuffered, so that what is printed is in the order of events.
        return [self._python, "-u", "-m", module, *arguments]

    def output(self, module, *arguments):
        """What the module prints.  Raise BenchError if it fails."""
        done = process.capture(self.command(module, *arguments),
                               env=process.clean_environment())
        if done.returncode:
            raise BenchError(f"{module} {arguments[0]} failed: "
                             + _reason(done.stdout + done.stderr,
                                       done.returncode))
        return done.stdout

    def benchmarks(self):
        """The names of all benchmarks for the interpreter."""
        return re.findall(r"^- (\S+)$", self.output(
            "pyperformance", "list", "--benchmarks", "all"), re.MULTILINE)

    def prepare(self, configuration, benchmark, log):
        """Install what a benchmark needs, and try it.  Return the command that
        runs it, to which options of pyperf's can be added.  log, an open file,
        has what was printed then.  Raise BenchError if it could not be
        installed or run."""
        env = configuration.environment()
        with tempfile.TemporaryDirectory() as directory:
            # The environments for the interpreters come under the current
            # folder.
            status, _ = process.run(
                self.command(
                    "pyperformance", "run", "--python", configuration.path,
                    "--benchmarks", benchmark, "--debug-single-value",
                    *_common_options(configuration, env,
                                     os.path.join(directory, "results.json"))),
                env=env, stdout=log, stderr=subprocess.STDOUT,
                cwd=self._directory)
        log.seek(0)
        output = log.read()
        commands = _COMMAND.findall(output)
        if status or not commands:
            raise BenchError(_reason(output, status))
        return shlex.split(commands[-1])

    def run(self, configuration, command, options, log, results):
        """Run what prepare() has returned: the results are in the file of that
        name then, and log, an open file, has what was printed.  Raise
        BenchError if it fails."""
        env = configuration.environment()
        status, _ = process.run(
            [*command, *_common_options(configuration, env, results),
             *options],
            env=env, stdout=log, stderr=subprocess.STDOUT,
            cwd=self._directory)
        if status or not os.path.exists(results):
            log.seek(0)
            raise BenchError(_reason(log.read(), status))


# The command of a benchmark, which pyperformance prints, quoted for a shell:
# the interpreter, the script and its own options, then those of pyperf's.
_COMMAND = re.compile("^# (.+?) --debug-single-value ", re.MULTILINE)


def _common_options(configuration, env, results):
    """Options that pyperformance and pyperf share."""
    options = ["--timeout", str(TIMEOUT_SECONDS), "--output", results]
    inherited = _inherited_names(configuration, env)
    if inherited:
        # The environment of a benchmark has nothing but what is named.
        options += ["--inherit-environ", ",".join(inherited)]
    return options


# Variables that pip needs where PyPI is not reached directly.
_FOR_PIP = re.compile("PIP_.*|(https?|all|no)_proxy|(SSL|REQUESTS)_.*",
                      re.IGNORECASE)


def _inherited_names(configuration, env):
    """Names of the variables of env that reach the benchmark and pip."""
    names = {name for name, _ in configuration.variables}
    if configuration.switch is not None:
        names.add("PYTHON_PYMALLOC_HUGEPAGES")
    return sorted(names | set(filter(_FOR_PIP.fullmatch, env)))


# A line with which a program ends that has failed: Python's, pip's, gcc's.
_ERROR = re.compile(r"(ERROR|error|[\w.]+(Error|Exception)): .*")

# Of these, such as tell of an error whose own line stands above.
_SECOND_HAND = re.compile(
    r"RuntimeError: .* failed with exit code .*|.*InstallationFailedError: .*")


def _reason(output, status):
    """The last line of the output, pyperformance's or the benchmark's, that
    says why it has failed."""
    # Its own account comes after what the benchmark has printed.
    output, *account = re.split("^ERROR: Benchmark ", output, maxsplit=1,
                                flags=re.MULTILINE)
    if (status == _TIMED_OUT
        or account and "timed out" in account[0].partition("\n")[0]):
        return f"a process of it did not end within {TIMEOUT_SECONDS} seconds"
    errors = [line.strip() for line in output.splitlines()
              if _ERROR.match(line.strip())]
    first_hand = [line for line in errors if not _SECOND_HAND.match(line)]
    for lines in (first_hand, errors):
        if lines:
            return lines[-1]
    return last_line(output) or f"exit status {status}"


def _result_file(label):
    return f"{label}.json"


def _loops_options(results):
    """Options for another run like that of the results, so that it need not
    find out again how often the code must run for its time to be measured.
    None for a script of several benchmarks: each has a number of its own."""
    with open(results) as file:
        suite = json.load(file)
    if len(suite["benchmarks"]) != 1:
        return []
    (benchmark,) = suite["benchmarks"]
    metadata = {**suite.get("metadata", {}), **benchmark.get("metadata", {})}
    return ["--loops", str(metadata.get("loops", 1))]


class Suite:
    """The runs of one session: fills session and a folder of results."""

    def __init__(self, session, folder, configurations, tool, pool, progress):
        self._session = session
        self._folder = folder
        self._configurations = configurations
        self._tool = tool
        self._pool = pool
        self._progress = progress
        self._left_out = set()          # pairs of (label, benchmark)
        self._commands = {}             # by (label, benchmark): Tool.prepare()
        self._loops = {}                # by benchmark: how often its code runs

    def _leave_out(self, label, reason):
        """Go on without a configuration."""
        self._left_out.update((label, name)
                              for name in self._session["benchmarks"])
        self._session["problems"].append(f"{label} left out: {reason}")
        self._progress.problem(f"{label} left out: {reason}")

    def check_preloads(self):
        """Leave out what would run without the library that it is to have."""
        for configuration in self._configurations:
            problem = measure.preload_problem(configuration)
            if problem:
                self._leave_out(configuration.label, problem)

    def size_pools(self):
        """Say how many pages the pool has for each configuration."""
        quarter = memory.available_memory() // 4 // memory.HUGE_PAGE_SIZE
        auto = min(AUTO_POOL_PAGES, quarter)
        for described in self._session["configurations"]:
            described["pool_pages"] = (
                auto if described["pool"] == "auto" else
                0 if described["pool"] == "empty" else int(described["pool"]))

    def measure(self):
        """Run PROCESSES_PER_ROUND processes of every benchmark per round in
        every configuration, one after the other, and let another configuration
        begin each time."""
        rounds = self._session["rounds"]
        benchmarks = self._session["benchmarks"]
        self._progress.start(
            rounds * len(benchmarks) * len(self._configurations))
        for number in range(1, rounds + 1):
            for position, benchmark in enumerate(benchmarks):
                first = (number - 1 + position) % len(self._configurations)
                for configuration in (self._configurations[first:]
                                      + self._configurations[:first]):
                    self._progress.step(
                        f"round {number} of {rounds}: {benchmark} "
                        f"{configuration.label}")
                    if (configuration.label, benchmark) not in self._left_out:
                        self._run(configuration, benchmark, number)

    def _run(self, configuration, benchmark, number):
        """Run a benchmark and keep its results, or why there are none."""
        label = configuration.label
        new = os.path.join(self._folder, "new.json")
        log = os.path.join(self._folder, "logs",
                           f"{number}-{benchmark}-{label}.log")
        (pages,) = (described["pool_pages"]
                    for described in self._session["configurations"]
                    if described["label"] == label)
        try:
            # pyperf adds to no file, and a script of several benchmarks may
            # have failed after the first.
            if os.path.exists(new):
                os.unlink(new)
            self._pool.set_available(pages)
            with open(log, "w+", errors="replace") as file:
                if (label, benchmark) not in self._commands:
                    self._commands[label, benchmark] = self._tool.prepare(
                        configuration, benchmark, file)
                self._tool.run(
                    configuration, self._commands[label, benchmark],
                    [*self._session["flags"],
                     *self._loops.get(benchmark, ())], file, new)
            if benchmark not in self._loops:
                self._loops[benchmark] = _loops_options(new)
            self._merge(new, label)
        except memory.PoolError as error:
            self._leave_out(label, error)
        except BenchError as error:
            self._left_out.add((label, benchmark))
            self._session["failures"].append({
                "benchmark": benchmark, "configuration": label,
                "reason": str(error)})
            self._progress.problem(f"{label} left out of {benchmark}: {error}")
        else:
            self._session["runs"].append({
                "benchmark": benchmark, "configuration": label,
                "round": number})
        self.save()

    def _merge(self, new, label):
        """Add the results in file new to those of a configuration: all of
        them, or what was there stays."""
        path = os.path.join(self._folder, _result_file(label))
        if os.path.exists(path):
            merged = f"{path}.new"
            self._tool.output("pyperf", "convert", path, "--add", new,
                              "--output", merged)
            os.unlink(new)
            new = merged
        os.replace(new, path)

    def save(self):
        files.save(self._session, os.path.join(self._folder, SESSION))


def _of_all_benchmarks(output):
    """Without the tables by tag that pyperf puts before that of all."""
    return re.split(r"^All benchmarks:\n=+\n", output,
                    flags=re.MULTILINE)[-1].strip("\n")


def _summary(baseline, label, output):
    """Lines from pyperf's list of what is slower and what is faster."""
    mean = re.search("^Geometric mean: (.*)", output, re.MULTILINE)
    if mean:
        yield f"Geometric mean, {label} against {baseline}: {mean[1]}"
    slower = re.search(r"^Slower \(\d+\):\n((- .*\n?)+)", output, re.MULTILINE)
    yield (f"Significantly slower with {label}, by {MIN_PERCENT} % or more: "
           + ("" if slower else "none"))
    if slower:
        yield from slower[1].splitlines()


def render(tool, folder, session):
    """The comparison of all that was measured, and how it was, as text."""
    labels = [c["label"] for c in session["configurations"]]
    files = {label: os.path.join(folder, _result_file(label))
             for label in labels}
    lines = []
    baseline, *others = [label for label in labels
                         if os.path.exists(files[label])] or [None]
    if others and baseline == labels[0]:
        lines += [_of_all_benchmarks(tool.output(
            "pyperf", "compare_to", "--table", files[baseline],
            *(files[label] for label in others))), ""]
        for label in others:
            lines += [*_summary(baseline, label, _of_all_benchmarks(
                tool.output("pyperf", "compare_to", "--group-by-speed",
                            f"--min-speed={MIN_PERCENT}", files[baseline],
                            files[label]))), ""]
    else:
        lines += ["Nothing to compare: there are no results of "
                  f"{labels[0]} and another configuration", ""]
    lines += [session["date"], *machine.as_lines(session["machine"])]
    lines += map(report.configuration_note, session["configurations"])
    lines.append(", ".join(session["requirements"]))
    lines.append(
        f"{len(session['benchmarks'])} benchmarks, rounds: "
        f"{session['rounds']}, each with {' '.join(session['flags'])}; the "
        "configurations take turns, benchmark by benchmark, and another one "
        "begins each time")
    lines += [f"Could not be run: {each['benchmark']} "
              f"({each['configuration']}): {each['reason']}"
              for each in session["failures"]]
    lines += [f"Problem: {problem}" for problem in session["problems"]]
    return "\n".join(lines) + "\n"
