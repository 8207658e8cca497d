"""python -m pymalloc_hugepages: run a script or a module with huge pages where
no .pth file is read (python -S, a folder in PYTHONPATH), or say whether this
interpreter has them."""

import os
import pkgutil
import runpy
import sys

from . import refusal
from .command import describe

USAGE = """\
usage: python -m pymalloc_hugepages                     say what there is
       python -m pymalloc_hugepages SCRIPT [ARG ...]
       python -m pymalloc_hugepages -m MODULE [ARG ...]
The first has exit status 0 if arenas are on huge pages, else 1."""


def main(args):
    if not args:
        print(describe())
        return 0 if refusal() is None else 1
    if args[0] == "-m" and len(args) > 1:
        sys.argv[:] = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif args[0].startswith("-"):
        print(USAGE)
        return 0 if args[0] in ("-h", "--help") else 2
    else:
        sys.argv[:] = args
        # What python has put there is the folder that it was started in.
        if not getattr(sys.flags, "safe_path", False):
            del sys.path[0]
            if pkgutil.get_importer(args[0]) is None:
                sys.path.insert(0, os.path.dirname(os.path.realpath(args[0])))
        runpy.run_path(args[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
