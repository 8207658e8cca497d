"""The parts of pymalloc-hugepages; hugepages.py in the folder above starts it.

system.py and windows.py find out what the system offers, verdict.py decides
what that means for arenas, process.py looks at a running process, malloc.py
has the C library's settings for large buffers; the other modules are the
commands.
"""

import os
import sys


VERSION = "1.0"             # that of the file VERSION of the source

# What the tool may be called by: where it lies, installed, as one file.
NAMES = ("hugepages.py", "pymalloc-hugepages", "pymalloc-hugepages.pyz")

KIB = 1 << 10
MIB = 1 << 20
ARENA_SIZE = 2 * MIB        # and the size of a huge page in the pool


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
