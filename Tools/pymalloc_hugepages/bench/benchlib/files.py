"""Files of results: read and written as a whole, or not at all."""

import json
import os
import tempfile

from . import BenchError


def write(path, text, failure="cannot write"):
    """Write a text to a file.  Raise BenchError, which begins with failure, if
    that fails; then a file that was there still is."""
    directory, name = os.path.split(os.path.abspath(path))
    try:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            written = os.path.join(temporary, name)
            with open(written, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(written, path)
    except OSError as error:
        raise BenchError(f"{failure} {path!r}: {error.strerror}")


def save(results, path):
    """Write results as JSON.  Raise BenchError if that fails."""
    write(path, json.dumps(results, indent=1) + "\n")


def load(path, form, what, advice):
    """Results that save() has written, of the version form.

    Raise BenchError for a file that is not what is expected, with advice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except OSError as error:
        raise BenchError(f"cannot read {path!r}: {error.strerror}; {advice}")
    except ValueError:
        results = None
    if not isinstance(results, dict) or results.get("format") != form:
        raise BenchError(f"{path!r} is not {what}; {advice}")
    return results
