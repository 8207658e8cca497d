"""The tables as a picture in SVG: a panel for each event, in it a row for each
workload, in that a mark for each configuration: a dot, or a ring for what is
not significant.

It is 400 units wide, which is the width of a phone, and has no size of its
own: it fills the width that it is given.  It has no background, and its
colours are right on light and on dark ones.
"""

import html

from . import BenchError, files, perf, report


_WIDTH = 400
_MARGIN = 8
_LINE = 16              # of text
_CHARACTER = 7          # more than the mean width of one
_STEP = 10              # from one configuration's mark to the next
_ROW_SPACE = 10         # between two workloads

# The events of the picture of --plot, which a reader can take in: of those
# that the machine has counted.  The page has one for each event.
_CHOSEN = (report.TURN_TIME, perf.WALL_TIME, report.MEMORY, "page-faults",
           "dTLB-load-misses")

# In the order of the configurations, then from the start again.  Each has
# enough contrast with white and with the black of dark pages.
COLOURS = ("#7c7c7c", "#1f83d6", "#d2691e", "#2c8f4a", "#c2589b", "#188f96",
           "#8a68d4", "#83801a", "#d94a4a", "#a0714a")

# Also that of the pictures in a page, which has it once.
STYLE = """\
.plot { color-scheme: light dark; font: 12px system-ui, sans-serif;
        width: 100%; height: auto; }
.plot text { fill: #222; }
.plot .title { font-weight: bold; font-size: 14px; }
.plot .name { text-anchor: end; }
.plot .tick { text-anchor: middle; }
.plot path { fill: none; stroke-linecap: round; }
.plot .bar { stroke-width: 2; }
.plot .dot { stroke-width: 7; }
.plot .ring { stroke-width: 1.5; }
.plot .grid { stroke: #8888; stroke-width: 0.5; }
.plot .stock { stroke: #222; stroke-dasharray: 4 3; stroke-linecap: butt; }
@media (prefers-color-scheme: dark) {
    .plot text { fill: #ddd; }
    .plot .stock { stroke: #ddd; }
}
""" + "".join(f".plot .c{number} {{ stroke: {colour}; }}\n"
              for number, colour in enumerate(COLOURS))


def shown_events(results):
    """The events that can be drawn: the wall clock and every one counted."""
    return [event for event, by_key in report.samples(results).items()
            if by_key and event not in perf.CPU_TIMES]


def _text(x, y, text, kind=""):
    label = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{label}>{html.escape(text)}</text>'


def _path(kind, data):
    return f'<path class="{kind}" d="{data}"/>'


def _colour(number):
    return f"c{number % len(COLOURS)}"


def _percentages(results, by_key):
    """{(workload, label): (median, lower and upper quartile in percent of the
    base's median, whether that may be chance)}, of what is known."""
    bases = report.bases(results)
    found = {}
    for (workload, label), sample in by_key.items():
        base = by_key.get((workload, bases.get(label, label)))
        if base is not None and base.median:
            found[workload, label] = (
                *(value / base.median * 100
                  for value in (sample.median, sample.low, sample.high)),
                report.is_chance(sample, base))
    return found


def _ticks(end):
    """At most seven round numbers from 0 to end, 100 among them."""
    step = next(step * 10 ** power for power in range(1, 20)
                for step in (1, 2, 5) if end <= step * 10 ** power * 5)
    ticks = {number * step for number in range(int(end / step) + 1)}
    # What would be too near to the 100.
    return sorted({tick for tick in ticks if abs(tick - 100) > end / 9}
                  | {100})


def _panel(results, event, by_key, top):
    """One event.  Return (elements, y of the end)."""
    names = report.labels(results)
    workloads = results["workloads"]
    percentages = _percentages(results, by_key)
    end = 1.02 * max([110, *(high for _, _, high, _ in percentages.values())])
    left = 2 * _MARGIN + _CHARACTER * max(map(len, workloads))
    right = _WIDTH - 2 * _MARGIN - _CHARACTER
    height = _STEP * len(names) + _ROW_SPACE
    first = top + 2 * _LINE + _ROW_SPACE / 2
    bottom = first + height * len(workloads)

    def x_of(percent):
        return round(left + (right - left) * percent / end, 1)

    ticks = _ticks(end)
    lines = [_text(_MARGIN, top, report.title(event), "title"),
             _path("grid", "".join(f"M{x_of(tick):g} {first:g}V{bottom:g}"
                                   for tick in ticks)),
             _path("stock", f"M{x_of(100):g} {first:g}V{bottom:g}")]
    lines += [_text(x_of(tick), top + 2 * _LINE - 4, f"{tick:,}", "tick")
              for tick in ticks]
    marks = {kind: [""] * len(names) for kind in ("bar", "dot", "ring")}
    for row, workload in enumerate(workloads):
        y = first + height * row
        lines.append(_text(left - _MARGIN, y + height / 2 + 4, workload,
                           "name"))
        for number, name in enumerate(names):
            if (workload, name) in percentages:
                median, low, high, is_chance = percentages[workload, name]
                x = x_of(median)
                level = y + (_ROW_SPACE + _STEP) / 2 + _STEP * number
                marks["bar"][number] += (f"M{x_of(low):g} {level:g}"
                                         f"H{x_of(high):g}")
                if is_chance:
                    marks["ring"][number] += (f"M{x - 3:g} {level:g}"
                                              "a3 3 0 1 0 6 0a3 3 0 1 0 -6 0")
                else:
                    # A line without length has round ends: a dot.
                    marks["dot"][number] += f"M{x:g} {level:g}h0"
    lines += [_path(f"{kind} {_colour(number)}", data)
              for kind, by_number in marks.items()
              for number, data in enumerate(by_number) if data]
    return lines, bottom


def render(results, events=None, style=STYLE):
    """The picture as text: of the events, or of those chosen.  Raise
    BenchError if there is nothing to draw."""
    if not results["runs"]:
        raise BenchError("no plot: there is no result to draw")
    names = report.labels(results)
    samples = report.samples(results)
    y = _MARGIN + 2 * _LINE
    base = report.base_as_text(results)
    lines = [_text(_MARGIN, y - _LINE, f"In percent of {base}.  Dots are "
                   "medians, rings are such as"),
             _text(_MARGIN, y, "are not significant, bars go from quartile "
                   "to quartile.")]
    for number, name in enumerate(names):
        y += _LINE
        lines += [_path(f"dot {_colour(number)}",
                        f"M{_MARGIN + 4} {y - 4:g}h0"),
                  _text(_MARGIN + 14, y, name)]
    if events is None:
        events = [event for event in shown_events(results)
                  if perf.base_name(event) in _CHOSEN]
    for event in events:
        panel, y = _panel(results, event, samples[event], y + 2 * _LINE)
        lines += panel
    what = (f"{', '.join(map(report.title, events))} of each workload in "
            f"percent of {base}: {', '.join(names)}")
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" class="plot" '
        f'viewBox="0 0 {_WIDTH} {y + _MARGIN:g}" role="img">',
        f"<title>{html.escape(what)}</title>",
        *([f"<style>\n{style}</style>"] if style else ()), *lines,
        "</svg>"]) + "\n"


def draw(results, path):
    """Write the picture to path.  Raise BenchError if that cannot be done; a
    file that was there is then still there."""
    files.write(path, render(results), "no plot:")
