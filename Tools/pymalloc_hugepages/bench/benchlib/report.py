"""Tables, from results as of measure.new_results()."""

import dataclasses
import statistics
import typing

import bench_scale

from . import machine, perf, profile, significance
from .measure import STARTUP, TURN_TIME
from .memory import MIB


NOT_COUNTED = "not counted"
NOT_RUN = "not run"
GEOMETRIC_MEAN = "geometric mean"
CHANGE = "change"

# Before a change that is not significant, and what a reader is told of it.
CHANCE = "~"
CHANCE_NOTE = (f"{CHANCE}: not significant, chance alone may make such a "
               f"difference (Mann-Whitney U test, p > {significance.LEVEL})")

# Peak memory, as an event beside those of perf: resident and hugetlb pages.
MEMORY = "peak_memory"

_TIMES = (TURN_TIME, *perf.TIMES, *profile.PARTS)

_TITLES = {
    TURN_TIME: "One turn in a loop in one process",
    perf.WALL_TIME: "Wall clock",
    "user_time": "User time",
    "system_time": "System time",
    MEMORY: "Peak memory",
    "page-faults": "Page faults",
    **{part: f"Processor time: {part}" for part in profile.PARTS},
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the runs of one workload in one configuration gave for one event:
    median, lower and upper quartile, and the values, if they are known."""
    median: float
    low: float
    high: float
    values: typing.Sequence[float] = dataclasses.field(
        default=(), compare=False)


def _sample(values):
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1 else values * 3)
    return Sample(median, low, high, values)


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
    order = (*_TIMES, MEMORY, "page-faults", *perf.EVENTS)

    def position(event):
        name = perf.base_name(event)
        return order.index(name) if name in order else len(order), event

    found = {event: {key: _sample(v) for key, v in by_key.items()}
             for event, by_key in values.items()}
    if results["memory"]:
        found[MEMORY] = {
            (m["workload"], m["configuration"]):
            Sample(*[m["rss"] + m["hugetlb"]] * 3) for m in results["memory"]}
    return {event: found[event] for event in sorted(found, key=position)}


def title(event):
    """What a table or plot of the event is called."""
    return _TITLES.get(event, event)


def labels(results):
    """The configurations' labels."""
    return [c["label"] for c in results["configurations"]]


def bases(results):
    """{label: that of the configuration which it is compared with}, for all
    that are: not for the first, nor for one that is another's base."""
    configurations = results["configurations"]
    first = configurations[0]["label"]
    alone = {first, *(c.get("base") for c in configurations)}
    return {c["label"]: c.get("base") or first for c in configurations
            if c.get("base") or c["label"] not in alone}


def base_as_text(results):
    """What all are compared with, as text."""
    first, *others = set(bases(results).values()) or labels(results)[:1]
    return "the base of each" if others else first


def change(sample, baseline):
    """The relative change of the median, as a number, or None."""
    if sample is None or baseline is None or not baseline.median:
        return None
    return sample.median / baseline.median - 1


def is_chance(sample, baseline):
    """Whether two are known to have no significant difference."""
    return (None not in (sample, baseline) and sample is not baseline
            and min(len(sample.values), len(baseline.values)) > 0
            and significance.p_value(sample.values, baseline.values)
            > significance.LEVEL)


def _percent(value):
    return "-" if value is None else f"{value:+.1%}"


def _change(by_key, workload, label, base):
    """The change of one configuration against another, as text."""
    sample = by_key.get((workload, label))
    baseline = by_key.get((workload, base))
    value = change(sample, baseline)
    is_marked = value is not None and is_chance(sample, baseline)
    return (CHANCE if is_marked else "") + _percent(value)


def _scale(event, sample):
    """How to write figures like the sample: (divisor, decimals, unit)."""
    if event == MEMORY:
        return MIB, 1, " MiB"
    if event not in _TIMES:
        return 1, 0, ""
    if sample is None or sample.median >= 1e9:
        return 1e9, 2, " s"
    return 1e6, 0 if sample.median >= 1e8 else 1, " ms"


def _cell(sample, scale, was_run):
    if sample is None:
        return NOT_COUNTED if was_run else NOT_RUN
    divisor, decimals, unit = scale
    median, low, high = (f"{value / divisor:,.{decimals}f}" for value in (
        sample.median, sample.low, sample.high))
    if sample.low == sample.high:
        return f"{median}{unit}"
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


def event_table(results, event, by_key):
    """One event: median and quartiles per configuration, and the change of
    the median against its base; below, the geometric mean of the changes."""
    was_run = {(r["workload"], r["configuration"]) for r in results["runs"]}
    names, base = labels(results), bases(results)

    def cells(workload, name):
        key = workload, name
        first = next((by_key[workload, each] for each in names
                      if (workload, each) in by_key), None)
        yield _cell(by_key.get(key), _scale(event, first),
                    event != MEMORY and key in was_run)
        if name in base:
            yield _change(by_key, workload, name, base[name])

    header, means = ["Workload"], [GEOMETRIC_MEAN]
    for name in names:
        header.append(name)
        means.append("")
        if name in base:
            header.append(CHANGE)
            means.append(_mean(results, by_key, name, base[name]))
    rows = _rows(results["workloads"], names, cells)
    if len(_lasting(results)) > 1 and base:
        rows.append(means)
    return Table(title(event), header, rows)


def _lasting(results):
    """The workloads without start-up, which is short and noisy."""
    return [name for name in results["workloads"] if name != STARTUP]


def _mean(results, by_key, label, base):
    """The geometric mean of all workloads' changes but start-up's, as text;
    "-" if one is not known, CHANCE before it if none is significant."""
    pairs = [(by_key.get((name, label)), by_key.get((name, base)))
             for name in _lasting(results)]
    changes = [change(*pair) for pair in pairs]
    if not changes or None in changes or -1 in changes:
        return _percent(None)
    mark = CHANCE if all(is_chance(*pair) for pair in pairs) else ""
    return mark + _percent(statistics.geometric_mean(
        1 + each for each in changes) - 1)


def summary_table(results, by_event):
    """The result: what run time and memory become with each configuration.
    None where there is nothing to compare."""
    event = TURN_TIME if by_event.get(TURN_TIME) else perf.WALL_TIME
    times, peaks = by_event.get(event), by_event.get(MEMORY, {})
    base, workloads = bases(results), _lasting(results)
    if not times or not base or not workloads:
        return None
    startup = [STARTUP] if STARTUP in results["workloads"] else []
    columns = [[f"Against {base_as_text(results)}", GEOMETRIC_MEAN, "best",
                "worst", *startup, "peak memory"]]
    for label, other in base.items():
        known = sorted((value, name) for name in workloads for value in [
            change(times.get((name, label)), times.get((name, other)))]
            if value is not None)
        columns.append([
            label, _mean(results, times, label, other),
            *([f"{_change(times, name, label, other)} ({name})"
               for _, name in known[:1] + known[-1:]] or ["-", "-"]),
            *(_change(times, name, label, other) for name in startup),
            _mean(results, peaks, label, other)])
    header, *rows = map(list, zip(*columns))
    return Table(f"Result: {title(event).lower()}, and peak memory", header,
                 rows)


def rival_tables(results, event, by_key):
    """Two tables of one event: each configuration's change against the fastest
    rival; and the geometric means, but for start-up, against each rival, if
    there are two workloads.

    Rivals are the configurations without a switch, which are other ways to run
    CPython.  There is no table where there are not two, or nothing to compare
    with them, or more than one base.
    """
    others = [c["label"] for c in results["configurations"]
              if c["switch"] is None]
    ours = [label for label in labels(results) if label not in others]
    if (len(others) < 2 or not ours or not by_key
            or len(set(bases(results).values())) > 1):
        return []
    names = labels(results)
    rows = []
    for workload in results["workloads"]:
        fastest = min(
            (rival for rival in others if (workload, rival) in by_key),
            key=lambda rival: by_key[workload, rival].median, default=None)
        rows.append([workload, fastest or NOT_RUN] + [
            _change(by_key, workload, name, fastest) for name in names])
    found = [Table(f"{title(event)}: change against the fastest rival",
                   ["Workload", "fastest rival", *names], rows)]
    if len(_lasting(results)) > 1:
        found.append(Table(
            f"{title(event)}: {GEOMETRIC_MEAN} of the changes against each "
            "rival", ["Rival", *ours],
            [[rival, *(_mean(results, by_key, label, rival)
                       for label in ours)] for rival in others]))
    return found


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
    peaks = by_event.get(MEMORY, {})

    def time_of_unit(key):
        return times[key].median / units[key[0]] / 1e6

    def faults_per_mib(key):
        return faults[key].median / (peaks[key].median / MIB)

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
    """Which pages the workloads really got at the peak of each."""
    peaks = {(m["workload"], m["configuration"]): m
             for m in results["memory"]}
    names = labels(results)

    def cells(workload, name):
        peak = peaks.get((workload, name))
        yield NOT_RUN if peak is None else " / ".join(
            f"{peak[kind] / MIB:.1f}" for kind in ("rss", "hugetlb", "thp"))

    return Table("Pages really used (MiB: resident / hugetlb / THP)",
                 ["Workload", *names],
                 _rows(results["workloads"], names, cells))


def tables(results):
    """All tables, that of the result first."""
    by_event = samples(results)
    found = [summary_table(results, by_event)]
    if results.get("profiled"):
        found.append(profile_table(results, by_event))
    found += [event_table(results, event, by_key)
              for event, by_key in by_event.items() if by_key]
    for event in (TURN_TIME, perf.WALL_TIME):
        found += rival_tables(results, event, by_event.get(event))
    found += scale_tables(results, by_event)
    if results["memory"]:
        found.append(memory_table(results))
    return [table for table in found if table is not None]


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
    if c.get("base"):
        variables += f"; compared with {c['base']}"
    return (f"{c['label']}: Python {c['version'].split()[0]}, configure "
            f"{built}; switch {switch}; pool {pool}{variables}")


def notes(results):
    """Lines that say what was measured, on what, and how."""
    counted = {perf.base_name(event)
               for event, by_key in samples(results).items() if by_key}
    lines = [f"{results['date']}, seed {results['seed']}"
             + "".join(f", interrupted and resumed {date}"
                       for date in results.get("resumed", ()))]
    lines += machine.as_lines(results["machine"])
    lines += map(configuration_note, results["configurations"])
    lines.append(
        f"Median of {_run_counts(results)} runs (lower-upper quartile); runs "
        "interleaved in random order, "
        + (f"{results['warm_size'] / MIB:.0f} MiB touched and freed before "
           "each" if results["warm_size"] else "memory not warmed"))
    if bases(results):
        lines.append(CHANCE_NOTE)
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
    elif set(perf.EVENTS) - counted:
        lines.append("Not counted on this machine: " + ", ".join(
            event for event in perf.EVENTS if event not in counted))
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


def _fitting(table, width):
    """The table; or, where it is wider, several with the same rows and as many
    columns as fit beside the first.  A change stays with its figure."""
    first, *columns = zip(table.header, *table.rows)
    groups = []
    for column in columns:
        if column[0] == CHANGE or column[0].startswith("against "):
            groups[-1].append(column)
        else:
            groups.append([column])
    parts, left = [], 0
    for group in groups:
        needed = sum(2 + max(map(len, column)) for column in group)
        if not parts or needed > left:
            parts.append([first])
            left = width - max(map(len, first))
        parts[-1] += group
        left -= needed
    for number, part in enumerate(parts):
        header, *rows = map(list, zip(*part))
        yield Table(table.title + " (continued)" * (number > 0), header, rows)


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


def render(results, style, width=100):
    """The whole report as text."""
    return layout(tables(results), notes(results), style, width)


def layout(found, lines, style, width=100):
    """Tables and notes as text; style is one of FORMATS.  Tables of plain text
    are no wider than width, where possible."""
    as_lines, bullet = _STYLES[style]
    if style == "text":
        found = [part for table in found for part in _fitting(table, width)]
    return "\n".join([line for table in found for line in as_lines(table)]
                     + [bullet + line for line in lines]) + "\n"
