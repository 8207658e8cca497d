"""The command pymalloc-hugepages: the tool, which knows nothing of the
interpreter that runs it, and a word about that one."""

import sys

from . import refusal


def describe():
    """Say in a line whether this interpreter puts arenas on huge pages."""
    why = refusal()
    state = "on huge pages" if why is None else f"not on huge pages: {why}"
    return f"{sys.executable}: arenas {state}"


def main():
    from .tool import cli
    status = cli.main()
    if sys.argv[1:] == ["status"]:
        print(describe())
    return status
