"""Tables, from results as of measure.new_results()."""

import dataclasses
import statistics
import typing

import bench_scale

from . import machine, perf, profile
from .measure import STARTUP, TURN_TIME
from .memory import MIB


NOT_COUNTED = "not counted"
NOT_RUN = "not run"
GEOMETRIC_MEAN = "geometric mean"

_TIMES = (TURN_TIME, *perf.TIMES, *profile.PARTS)

_TITLES = {
    TURN_TIME: "One turn in a loop in one process",
    perf.WALL_TIME: "Wall clock",
    "user_time": "User time",
    "system_time": "System time",
    "page-faults": "Page faults",
    **{part: f"Processor time: {part}" for part in profile.PARTS},
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the runs of one workload in one configuration gave for one event:
    median, lower and upper quartile."""
    median: float
    low: float
    high: float


def _sample(values):
    if not values:
        return None
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1 else values * 3)
    return Sample(median, low, high)


def samples(results):
    """{event: {(workload, label): Sample}}, in the order of the tables: times
    first, then events.  An event never counted has an empty dict."""
    values = {}
    for run in results["runs"]:
        key = run["workload"], run["configuration"]
        for event, value in run["counts"].items():
            by_key = values.setdefault(event, {})
            if value is not None:
                by_key.setdefault(key, []).append(value)
    order = _TIMES + ("page-faults",) + perf.EVENTS

    def position(event):
        name = perf.base_name(event)
        return order.index(name) if name in order else len(order), event

    return {event: {key: _sample(v) for key, v in values[event].items()}
            for event in sorted(values, key=position)}


def title(event):
    """What a table or plot of the event is called."""
    return _TITLES.get(event, event)


def labels(results):
    """The configurations' labels; the first is the baseline."""
    return [c["label"] for c in results["configurations"]]


def change(sample, baseline):
    """The relative change of the median, as a number, or None."""
    if sample is None or baseline is None or not baseline.median:
        return None
    return sample.median / baseline.median - 1


def _percent(value):
    return "-" if value is None else f"{value:+.1%}"


def _scale(event, baseline):
    """How to write a row's figures: (divisor, decimals, unit)."""
    if event not in _TIMES:
        return 1, 0, ""
    if baseline is not None and baseline.median < 1e8:
        return 1e6, 1, " ms"
    return 1e9, 3, " s"


def _cell(sample, scale, was_run):
    if sample is None:
        return NOT_COUNTED if was_run else NOT_RUN
    divisor, decimals, unit = scale
    median, low, high = (f"{value / divisor:,.{decimals}f}" for value in (
        sample.median, sample.low, sample.high))
    return f"{median}{unit} ({low}-{high})"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.  The first column names the row."""
    title: str
    header: typing.List[str]
    rows: typing.List[typing.List[str]]


def _rows(workloads, names, cells):
    """A row for each workload; cells(workload, name) has the texts of one
    configuration."""
    return [[workload, *(text for name in names
                         for text in cells(workload, name))]
            for workload in workloads]


def _header(names):
    """That of a table which compares each configuration with the first."""
    return ["Workload", names[0]] + [
        text for name in names[1:] for text in (name, "change")]


def event_table(results, event, by_key):
    """One event: median and quartiles per configuration, and the change of
    the median against the first; below, the geometric mean of the changes."""
    was_run = {(r["workload"], r["configuration"]) for r in results["runs"]}
    names = labels(results)

    def cells(workload, name):
        key = workload, name
        sample, baseline = by_key.get(key), by_key.get((workload, names[0]))
        yield _cell(sample, _scale(event, baseline), key in was_run)
        if name != names[0]:
            yield _percent(change(sample, baseline))

    rows = _rows(results["workloads"], names, cells)
    means = _geometric_means(results, by_key)
    if means:
        rows.append([GEOMETRIC_MEAN, ""]
                    + [text for mean in means for text in ("", mean)])
    return Table(title(event), _header(names), rows)


def _geometric_mean(changes):
    """The geometric mean of changes as text; "-" if one is not known."""
    if None in changes or -1 in changes:
        return _percent(None)
    return _percent(statistics.geometric_mean(
        1 + each for each in changes) - 1)


def _geometric_means(results, by_key):
    """For each configuration but the first, the geometric mean of the changes
    of all workloads but start-up, as text.  None if there are not two
    workloads, or one of them has no figure."""
    baseline, *others = labels(results)
    workloads = [name for name in results["workloads"] if name != STARTUP]
    if len(workloads) < 2:
        return None
    return [_geometric_mean([change(by_key.get((workload, label)),
                                    by_key.get((workload, baseline)))
                             for workload in workloads])
            for label in others]


def rivals(results):
    """Labels: of the configurations without a switch, which are other ways to
    run CPython, the baseline among them; and of those with one."""
    found = [], []
    for c in results["configurations"]:
        found[c["switch"] is not None].append(c["label"])
    return found


def rival_tables(results, event, by_key):
    """Two tables of one event: each configuration's change against the fastest
    rival; and the geometric means, but for start-up, against each rival, if
    there are two workloads.

    None of them where there are not two rivals, or nothing to compare with
    them.
    """
    others, ours = rivals(results)
    if len(others) < 2 or not ours or not by_key:
        return []
    names = labels(results)
    workloads = results["workloads"]

    def changes(label, rival, workloads):
        return [change(by_key.get((workload, label)),
                       by_key.get((workload, rival)))
                for workload in workloads]

    rows = []
    for workload in workloads:
        fastest = min(
            (rival for rival in others if (workload, rival) in by_key),
            key=lambda rival: by_key[workload, rival].median, default=None)
        rows.append([workload, fastest or NOT_RUN] + [
            _percent(*changes(name, fastest, [workload])) for name in names])
    found = [Table(f"{title(event)}: change against the fastest rival",
                   ["Workload", "fastest rival", *names], rows)]
    lasting = [name for name in workloads if name != STARTUP]
    if len(lasting) > 1:
        means = [[rival] + [_geometric_mean(changes(label, rival, lasting))
                            for label in ours] for rival in others]
        found.append(Table(f"{title(event)}: {GEOMETRIC_MEAN} of the changes "
                           "against each rival", ["Rival", *ours], means))
    return found


def _peaks(results):
    """{(workload, label): peak memory in MiB, resident and hugetlb pages}."""
    return {(m["workload"], m["configuration"]):
            (m["rss"] + m["hugetlb"]) / MIB for m in results["memory"]}


def scale_tables(results, by_event):
    """What a unit of work costs as there is more of it: time, and page faults
    per MiB of peak memory, each with its change against the first size."""
    units = {name: bench_scale.UNITS[name] for name in results["workloads"]
             if name in bench_scale.UNITS}
    if len(units) < 2:
        return []
    names = labels(results)
    times = by_event.get(perf.WALL_TIME, {})
    faults = next((by_key for event, by_key in by_event.items()
                   if perf.base_name(event) == "page-faults"), {})
    peaks = _peaks(results)

    def time_of_unit(key):
        return times[key].median / units[key[0]] / 1e6

    def faults_per_mib(key):
        return faults[key].median / peaks[key]

    first = next(iter(units))
    header = ["Workload"]
    for name in names:
        header += [name, f"against {first.rpartition('_')[2]}"]
    found = []
    for what, figure, known in (
            ("Wall clock per unit of work (ms)", time_of_unit,
             times.keys()),
            ("Page faults per MiB of peak memory", faults_per_mib,
             faults.keys() & peaks.keys())):
        def cells(workload, name):
            key, base = (workload, name), (first, name)
            yield f"{figure(key):,.1f}" if key in known else NOT_RUN
            yield _percent(figure(key) / figure(base) - 1
                           if {key, base} <= known else None)

        found.append(Table(what, header, _rows(units, names, cells)))
    return found


def profile_table(results, by_event):
    """The medians of the parts that the processor time is divided into, of
    each workload in each configuration, and what part of all they are."""
    rows = []
    for workload in results["workloads"]:
        for name in labels(results):
            times = [by_event[part][workload, name].median / 1e6
                     for part in profile.PARTS
                     if (workload, name) in by_event.get(part, ())]
            total = sum(times)
            rows.append([f"{workload}, {name}"] + (
                [f"{total:.1f}"] + [f"{each:.1f} ({each / total:.0%})"
                                    for each in times]
                if times else [NOT_RUN] * (len(profile.PARTS) + 1)))
    return Table("Where the processor time goes (ms)",
                 ["Workload, configuration", "all", *profile.PARTS], rows)


def memory_table(results):
    """Which pages the workloads really got, and their peak memory."""
    peaks = {(m["workload"], m["configuration"]): m
             for m in results["memory"]}
    names = labels(results)

    def cells(workload, name):
        peak = peaks.get((workload, name))
        yield NOT_RUN if peak is None else " / ".join(
            f"{peak[kind] / MIB:.1f}" for kind in ("rss", "hugetlb", "thp"))

    return Table("Peak memory and pages really used (MiB: resident / hugetlb "
                 "/ transparent huge pages)", ["Workload", *names],
                 _rows(results["workloads"], names, cells))


def peak_table(results):
    """Peak memory in all, and its change against the first configuration."""
    peaks = _peaks(results)
    names = labels(results)

    def cells(workload, name):
        peak = peaks.get((workload, name))
        baseline = peaks.get((workload, names[0]))
        yield NOT_RUN if peak is None else f"{peak:.1f}"
        if name != names[0]:
            yield _percent(peak / baseline - 1 if peak and baseline else None)

    return Table("Peak memory (MiB: resident and hugetlb pages)",
                 _header(names), _rows(results["workloads"], names, cells))


def tables_by_event(results):
    """All tables, as pairs of the event and the Table; the event is None for a
    table that has not just one event's figures."""
    by_event = samples(results)
    found = [(event, event_table(results, event, by_key))
             for event, by_key in by_event.items() if by_key]
    if results.get("profiled"):
        found.insert(0, (None, profile_table(results, by_event)))
    for event in (TURN_TIME, perf.WALL_TIME):
        found += [(None, table) for table in rival_tables(
            results, event, by_event.get(event))]
    found += [(None, table) for table in scale_tables(results, by_event)]
    if results["memory"]:
        if results.get("memory_runs", 1) > 1:
            found.append((None, peak_table(results)))
        found.append((None, memory_table(results)))
    return found


def tables(results):
    """All tables."""
    return [table for _, table in tables_by_event(results)]


def _uncounted(results):
    """Names of the events that no run has a number for."""
    counted = {perf.base_name(event)
               for event, by_key in samples(results).items() if by_key}
    return [event for event in perf.EVENTS if event not in counted]


def configuration_note(c):
    """A line that says what a configuration is."""
    switch = "not set" if c["switch"] is None else c["switch"]
    pool = ("empty" if c["pool_pages"] == 0 else "not found out"
            if c["pool_pages"] is None else f"{c['pool_pages']} huge pages")
    if c["pool"] == "auto" and c["pool_pages"]:
        pool += " for the largest workload"
    built = c["configure_args"] or "without arguments"
    variables = "".join(f"; {name}={value}"
                        for name, value in c.get("variables", ()))
    return (f"{c['label']}: Python {c['version'].split()[0]}, configure "
            f"{built}; switch {switch}; pool {pool}{variables}")


def notes(results):
    """Lines that say what was measured, on what, and how."""
    lines = [f"{results['date']}, seed {results['seed']}"]
    lines += machine.as_lines(results["machine"])
    lines += map(configuration_note, results["configurations"])
    lines.append(
        f"Median of {_run_counts(results)} runs (lower-upper quartile); runs "
        "interleaved in random order, "
        + (f"{results['warm_size'] / MIB:.0f} MiB touched and freed before "
           "each" if results["warm_size"] else "memory not warmed"))
    if results["warm_size"] and bench_scale.memory_needed(
            results["workloads"]) > results["warm_size"]:
        lines.append("Before each run of a workload that needs more memory "
                     "than that, as much as it needs was touched and freed")
    if results.get("loops", 1) > 1:
        lines.append(f"Each run takes {results['loops']} turns in one "
                     "process; the time of one turn is their median")
    if results["memory"]:
        runs = results.get("memory_runs", 1)
        lines.append("Resident memory includes transparent huge pages, but "
                     "not hugetlb pages; peaks are "
                     + ("of a run that was not timed" if runs == 1 else
                        f"medians of {runs} runs that were not timed"))
    if results.get("profiled"):
        lines.append("Processor time from samples of perf's cpu-clock; with "
                     "pages of 4 KiB, a part of their zeroing may be taken "
                     "for the rest of the kernel")
    elif _uncounted(results):
        lines.append("Not counted on this machine: "
                     + ", ".join(_uncounted(results)))
    return lines + [f"Problem: {problem}" for problem in results["problems"]]


def _run_counts(results):
    """"10", or "7-8" where the runs were cut short."""
    counts = {}
    for run in results["runs"]:
        key = run["workload"], run["configuration"]
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return "0"
    low, high = min(counts.values()), max(counts.values())
    return str(low) if low == high else f"{low}-{high}"


def _widths(table):
    return [max(map(len, column)) for column in zip(table.header, *table.rows)]


def _aligned(row, widths, separator):
    """Names to the left, figures to the right."""
    first, *others = zip(row, widths)
    return separator.join([first[0].ljust(first[1]),
                           *(cell.rjust(width) for cell, width in others)])


def _as_text(table):
    widths = _widths(table)
    lines = [_aligned(row, widths, "  ").rstrip()
             for row in [table.header, *table.rows]]
    rule = "-" * max(map(len, lines))
    return [table.title, "", lines[0], rule, *lines[1:], ""]


def _as_markdown(table):
    widths = _widths(table)
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [f"### {table.title}", "",
            *(f"| {_aligned(row, widths, ' | ')} |"
              for row in [table.header, rule, *table.rows]), ""]


def _as_rst(table):
    widths = _widths(table)
    rule = "  ".join("=" * width for width in widths)
    return [table.title, "-" * len(table.title), "", rule,
            _aligned(table.header, widths, "  ").rstrip(), rule,
            *(_aligned(row, widths, "  ").rstrip() for row in table.rows),
            rule, ""]


# Per format: how a table looks, and what a note begins with.
_STYLES = {
    "text": (_as_text, ""),
    "markdown": (_as_markdown, "- "),
    "rst": (_as_rst, "- "),
}
FORMATS = tuple(_STYLES)


def render(results, style):
    """The whole report as text; style is one of FORMATS."""
    as_lines, bullet = _STYLES[style]
    lines = [line for table in tables(results) for line in as_lines(table)]
    lines += [bullet + note for note in notes(results)]
    return "\n".join(lines) + "\n"
