"""The results as one HTML page that needs nothing but itself: tables, plots,
the machine, the pages really used, and the results in JSON."""

import base64
import html
import json

from . import BenchError, files, plot, report


_STYLE = """\
:root { color-scheme: light dark;
        --line: #8886; --good: #0a7a33; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
    :root { --good: #5dd88a; --bad: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem;
       max-width: 70rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
        font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
.less { color: var(--good); }
.more { color: var(--bad); }
img { display: block; width: 100%; max-width: 40rem; height: auto;
      margin: 0 0 1rem; }
"""


def _cell(name, text, is_change):
    if not is_change:
        return f"<{name}>{html.escape(text)}</{name}>"
    kind = {"-": "less", "+": "more"}.get(text[:1], "")
    if text in ("-", "-0.0%", "+0.0%"):
        kind = ""
    label = f' class="{kind}"' if kind else ""
    return f"<{name}{label}>{html.escape(text)}</{name}>"


def _table(table):
    """A report.Table as lines of HTML."""
    yield '<div class="scroll" tabindex="0">'
    yield "<table>"
    yield ("<thead><tr>" + "".join(f'<th scope="col">{html.escape(text)}</th>'
                                   for text in table.header) + "</tr></thead>")
    yield "<tbody>"
    for first, *others in table.rows:
        cells = "".join(
            _cell("td", text, title == "change")
            for title, text in zip(table.header[1:], others))
        yield f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _picture(results, event, title):
    """The plot of one event as an HTML image."""
    picture = plot.render(results, [event])
    data = base64.b64encode(picture.encode()).decode("ascii")
    names = report.labels(results)
    text = (f"{title} of each workload in percent of {names[0]}: median and "
            "quartiles.  The table below has the figures.")
    return (f'<img alt="{html.escape(text)}" '
            f'src="data:image/svg+xml;base64,{data}">')


def _json(results):
    """The results as JSON that may stand in a script element."""
    return json.dumps(results, indent=1).replace("<", "\\u003c")


def render(results):
    """The whole page as text.  Raise BenchError if there is nothing to show.
    """
    if not results["runs"]:
        raise BenchError("no page: there is no result to show")
    title = ("CPython's small objects on huge pages: "
             f"{len(results['workloads'])} workloads, "
             f"{', '.join(report.labels(results))}")
    lines = [
        "<!DOCTYPE html>", '<html lang="en">', "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, '
        'initial-scale=1">',
        # Nothing may be fetched: a page with results says what it says.
        '<meta http-equiv="Content-Security-Policy" content="default-src '
        "'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{_STYLE}</style>", "</head>", "<body>", "<main>",
        f"<h1>{html.escape(title)}</h1>",
        "<h2>What was measured</h2>", "<ul>",
        *(f"<li>{html.escape(note)}</li>" for note in report.notes(results)),
        "</ul>"]
    shown = plot.shown_events(results)
    for event, table in report.tables_by_event(results):
        lines += ["<section>", f"<h2>{html.escape(table.title)}</h2>"]
        if event in shown:
            lines.append(_picture(results, event, table.title))
        lines += [*_table(table), "</section>"]
    lines += [
        "<h2>Raw results</h2>",
        "<p>All results in JSON, as <code>bench_driver.py --report</code> "
        "takes them, are in the source of this page, in the element "
        "<code>results</code>.</p>", "</main>",
        f'<script type="application/json" id="results">{_json(results)}'
        "</script>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def write(results, path):
    """Write the page to path.  Raise BenchError if that cannot be done; a file
    that was there is then still there."""
    try:
        files.write(path, render(results))
    except OSError as error:
        raise BenchError(f"no page: {path!r}: {error.strerror}")
