"""Huge pages for the small objects of a stock CPython."""

import sys

# The .pth file asks the same.
if sys.implementation.name != "cpython":
    _why = f"this is {sys.implementation.name}, and not CPython"
elif "t" in sys.abiflags:
    # The loader of Python 3.14 would take the extension, which such a build
    # cannot run.
    _why = "a free-threaded build does not use pymalloc"
else:
    _why = None

if _why is None:
    from _pymalloc_hugepages import refusal, stats
else:
    def refusal():
        """Return why this process does without huge pages."""
        return _why

    def stats():
        """Return an empty dict."""
        return {}

__all__ = ["refusal", "stats"]
