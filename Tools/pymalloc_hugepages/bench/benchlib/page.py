"""The results as one HTML page that needs nothing but itself: the result, the
plots, the tables, how it was measured, and the results in JSON."""

import html
import json
import re

from . import BenchError, files, plot, report


_STYLE = """\
:root { color-scheme: light dark;
        --line: #8886; --good: #0a7a33; --bad: #b3261e; --chance: #6b6b6b; }
@media (prefers-color-scheme: dark) {
    :root { --good: #5dd88a; --bad: #ff8a80; --chance: #a0a0a0; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem;
       max-width: 74rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
        font-size: 0.9rem; }
th, td { padding: 0.25rem 0.5rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0;
                 background: Canvas; }
.less { color: var(--good); }
.more, .problem { color: var(--bad); }
.chance { color: var(--chance); }
.plots { display: grid; gap: 1rem; align-items: start;
         grid-template-columns:
             repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
/* On a phone: of what is compared, the changes alone, under its name. */
@media (max-width: 40rem) {
    body { padding: 0.5rem; }
    table { font-size: 0.8rem; }
    th, td { padding: 0.25rem; white-space: normal; }
    .compared { display: none; }
    [data-of] { font-size: 0; }
    [data-of]::after { content: attr(data-of); font-size: 0.8rem; }
}
"""


def _kind(text):
    """The class of a cell with that text: of a change, whether it is good."""
    match = re.match(rf"({report.CHANCE}?)([-+])(?!0\.0%)[\d.]+%", text)
    if match is None:
        return ""
    return "chance" if match[1] else {"-": "less", "+": "more"}[match[2]]


def _element(name, text, kind="", more=""):
    label = f' class="{kind}"' if kind else ""
    # Names of workloads may break after a "_".
    text = html.escape(text).replace("_", "_<wbr>")
    return f"<{name}{more}{label}>{text}</{name}>"


def _table(table):
    """A report.Table as lines of HTML."""
    def cells(row, is_head=False):
        for column, text in enumerate(row):
            next_head = table.header[column + 1:column + 2]
            kind = ("compared" if next_head == [report.CHANGE]
                    else _kind(text))
            of = (f' data-of="{html.escape(row[column - 1])}"'
                  if is_head and text == report.CHANGE else "")
            yield _element("th" if is_head or column == 0 else "td", text,
                           kind, of)

    yield '<div class="scroll" tabindex="0"><table>'
    yield f"<thead><tr>{''.join(cells(table.header, True))}</tr></thead>"
    yield "<tbody>"
    for row in table.rows:
        yield f"<tr>{''.join(cells(row))}</tr>"
    yield "</tbody></table></div>"


def render(results):
    """The whole page as text.  Raise BenchError without a result to show."""
    if not results["runs"]:
        raise BenchError("no page: there is no result to show")
    title = "CPython's small objects on huge pages"
    result, *others = report.tables(results)
    problems = [f"Problem: {problem}" for problem in results["problems"]]
    lines = [
        "<!DOCTYPE html>", '<html lang="en">', "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, '
        'initial-scale=1">',
        # Nothing may be fetched: a page with results says what it says.
        '<meta http-equiv="Content-Security-Policy" content="default-src '
        "'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title>", f"<style>\n{_STYLE}{plot.STYLE}</style>",
        "</head>", "<body>", "<main>", _element("h1", title),
        _element("h2", result.title), *_table(result),
        _element("p", f"Less is better.  {report.CHANCE_NOTE}."),
        *(_element("p", text, "problem") for text in problems),
        '<div class="plots">',
        *(plot.render(results, [event], style=None)
          for event in plot.shown_events(results)),
        "</div>"]
    for table in others:
        lines += [_element("h2", table.title), *_table(table)]
    lines += [
        "<h2>What was measured</h2>", "<ul>",
        *(_element("li", note) for note in report.notes(results)
          if note not in problems),
        "</ul>", "<p>The element <code>results</code> of this page has all of "
        "it in JSON, for <code>bench_driver.py --report</code>.</p>",
        "</main>",
        '<script type="application/json" id="results">'
        # Without any tag that could end the element.
        + json.dumps(results, indent=1).replace("<", "\\u003c")
        + "</script>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def write(results, path):
    """Write the page to path.  Raise BenchError if that cannot be done; a file
    that was there is then still there."""
    files.write(path, render(results), "no page:")
