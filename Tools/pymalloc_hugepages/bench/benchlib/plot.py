"""The tables as one SVG picture, drawn by gnuplot."""

import os
import subprocess
import tempfile

from . import BenchError, last_line, perf, report


_PANEL_HEIGHT = 380     # pixels
_WIDTH = 1000


def _quoted(text):
    """text as a string of gnuplot's that is taken literally."""
    return "'" + text.replace("'", "''") + "'"


def _data(results, name, by_key):
    """A data block: per workload and configuration the median and both
    quartiles, in percent of the baseline's median."""
    names = report.labels(results)
    lines = [f"${name} << EOD"]
    for workload in results["workloads"]:
        baseline = by_key.get((workload, names[0]))
        fields = [workload]
        for label in names:
            sample = by_key.get((workload, label))
            if sample is None or baseline is None or not baseline.median:
                fields += ["NaN"] * 3
            else:
                fields += [f"{value / baseline.median * 100:.2f}" for value in
                           (sample.median, sample.low, sample.high)]
        lines.append(" ".join(fields))
    return lines + ["EOD"]


def shown_events(results):
    """The events that have a plot: the wall clock and every one counted."""
    return [event for event, by_key in report.samples(results).items()
            if by_key and event not in perf.CPU_TIMES]


def script(results, path, events=None):
    """The gnuplot script that draws the results to path: the events, or all of
    shown_events()."""
    samples = report.samples(results)
    shown = [(report.title(event), samples[event])
             for event in events or shown_events(results)]
    names = report.labels(results)
    lines = [
        f"set terminal svg size {_WIDTH},{_PANEL_HEIGHT * len(shown)} "
        "noenhanced font 'sans,12' background 'white'",
        f"set output {_quoted(path)}",
        "set style data histogram",
        "set style histogram errorbars gap 1",
        "set errorbars small front linecolor rgb 'black'",
        "set style fill solid 0.8 noborder",
        "set xtics rotate by -30 nomirror",
        "set yrange [0:*]",
        "set grid ytics",
        "set key outside top center horizontal",
        f"set ylabel {_quoted('% of ' + names[0])}",
    ]
    for number, (_, by_key) in enumerate(shown):
        lines += _data(results, f"panel{number}", by_key)
    lines.append(f"set multiplot layout {len(shown)},1")
    for number, (title, _) in enumerate(shown):
        lines.append(f"set title {_quoted(title + ': median and quartiles')}")
        lines.append("plot " + ", ".join(
            f"$panel{number} using {2 + 3 * i}:{3 + 3 * i}:{4 + 3 * i}"
            f":xtic(1) title {_quoted(name)}"
            for i, name in enumerate(names)))
    lines.append("unset multiplot")
    return "\n".join(lines) + "\n"


def draw(results, path, events=None):
    """Write the picture to path; events as for script().  Raise BenchError if
    that cannot be done; a file that was there is then still there."""
    if not results["runs"]:
        raise BenchError("no plot: there is no result to draw")
    directory = os.path.dirname(os.path.abspath(path))
    try:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            drawn = os.path.join(temporary, "plot.svg")
            done = subprocess.run(
                ["gnuplot", "-"], input=script(results, drawn, events),
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                universal_newlines=True)
            if done.returncode or not os.path.exists(drawn):
                raise BenchError(f"gnuplot failed: {last_line(done.stderr)}")
            os.replace(drawn, path)
    except FileNotFoundError as error:
        if error.filename == "gnuplot":
            raise BenchError("no plot: gnuplot is not installed; on Debian: "
                             "apt-get install gnuplot-nox")
        raise BenchError(f"no plot: {path!r}: {error.strerror}")
    except OSError as error:
        raise BenchError(f"no plot: {path!r}: {error.strerror}")
