"""Tables that fit a terminal."""

import textwrap


# The least that the last column keeps before others are left out.
LEAST = 18


def wrap(text, width):
    """Lines of a sentence."""
    return [text] if width is None else textwrap.wrap(text, width)


def layout(headings, rows, width=None, spare=()):
    """Lines of a table.  The last column is text, the others are numbers, and
    flush right.  Where the table is wider than width, the columns that spare
    names are left out, one after the other, and then the last one is cut."""
    names = list(headings)
    cells = [list(row) for row in (headings, *rows)]

    def widths():
        return [max(map(len, column)) for column in list(zip(*cells))[:-1]]

    def leave_out(index):
        for row in [names, *cells]:
            del row[index]

    for index in reversed(range(len(names) - 1)):
        if not any(row[index] for row in cells):
            leave_out(index)
    for name in spare:
        if width is None or sum(widths()) + len(names) - 1 + LEAST <= width:
            break
        if name in names:
            leave_out(names.index(name))
    lines = []
    for row in cells:
        line = "".join(f"{cell:>{size}} "
                       for cell, size in zip(row, widths())) + row[-1]
        lines.append(line[:width].rstrip())
    return lines
