"""The parts of hugepages.py, the command in the folder above.

system.py and windows.py find out what the system offers, verdict.py decides
what that means for arenas, process.py looks at a running process, malloc.py
has the C library's settings for large buffers; the other modules are the
commands.
"""


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


def mib(size):
    """A size in bytes as text."""
    return f"{size / MIB:,.0f} MiB"


def plural(number, noun):
    """"1 page", "2 pages"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
