#!/usr/bin/env python3
"""Find out whether CPython's small objects are on huge pages, and put them
there.  hugepages.1 is the manual page; --help tells the rest."""

import sys

try:
    from hugepageslib.cli import main
except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())
