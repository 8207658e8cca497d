"""The parts of pymalloc-hugepages; hugepages.py in the folder above starts it.

system.py and windows.py find out what the system offers, verdict.py decides
what that means for arenas, process.py looks at a running process with what
smaps.py makes of its memory, service.py finds the processes of a service,
table.py and metrics.py lay out figures, malloc.py has the C library's settings
for large buffers; the other modules are the commands.
"""

import json
import os
import sys


VERSION = "1.0"             # that of the file VERSION of the source

# What the tool may be called by: where it lies, installed, as one file.
NAMES = ("hugepages.py", "pymalloc-hugepages", "pymalloc-hugepages.pyz")

KIB = 1 << 10
MIB = 1 << 20
ARENA_SIZE = 2 * MIB        # and the size of a huge page in the pool

# Of all JSON that the tool prints (hugepages.schema.json).  It grows when an
# item is taken away or changes its meaning, not when one is added.
SCHEMA_VERSION = 1


class ToolError(Exception):
    """What was asked for cannot be done.

    str() is one line: what, why, and what to do.  status is the exit status.
    """

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def program():
    """The name that this tool was called by."""
    called = os.path.basename(sys.argv[0])
    return called if called in NAMES else NAMES[0]


def mib(size):
    """A size in bytes as text."""
    return f"{size / MIB:,.0f} MiB"


def plural(number, noun):
    """"1 page", "2 pages"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def as_json(kind, items, indent=2):
    """What the tool prints as JSON.  kind says which items there are."""
    return json.dumps({"version": SCHEMA_VERSION, "kind": kind, **items},
                      indent=indent)
