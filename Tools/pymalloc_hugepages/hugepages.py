#!/usr/bin/env python3
"""Find out whether CPython's small objects are on huge pages, and put them
there.  hugepages/hugepages.1 is the manual page; --help tells the rest."""

import sys

try:
    # This is the package beside this file: where a folder has both, a package
    # wins over a module of the same name.
    from hugepages.cli import main
except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())
