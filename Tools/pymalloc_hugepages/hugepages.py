#!/usr/bin/env python3
"""Find out whether CPython's small objects are on huge pages, and put them
there.  The manual page is hugepages/pymalloc-hugepages.1; --help tells the
rest.

An old Python must be able to read this file, to say that it is too old: it
has no syntax that Python 2.7 lacks.
"""

import os
import sys


def fail(problem):
    sys.stderr.write("%s: %s\n" % (os.path.basename(sys.argv[0]), problem))
    sys.exit(2)


if sys.version_info < (3, 9):
    fail("needs Python 3.9 or later; this is %d.%d.%d" % sys.version_info[:3])

try:
    # This is the package beside this file: where a folder has both, a package
    # wins over a module of the same name.
    from hugepages.cli import main
except KeyboardInterrupt:
    sys.exit(130)
except ImportError as error:
    if error.name not in ("hugepages", "hugepages.cli"):
        raise
    fail("needs the folder hugepages beside it; \"make tool\" makes one file, "
         "pymalloc-hugepages.pyz, that needs nothing")


if __name__ == "__main__":
    sys.exit(main())
