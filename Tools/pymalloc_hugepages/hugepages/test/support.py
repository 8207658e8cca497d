"""What the tests of the tools share."""

import contextlib
import io


def call(main, *args):
    """Call a main(); return (exit status, stdout, stderr)."""
    with contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(args)
    return status, out.getvalue(), err.getvalue()
