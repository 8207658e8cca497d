"""Huge pages for the small objects of a stock CPython."""

import sys

if "t" in sys.abiflags:
    # The loader of Python 3.14 would take the extension, which such a build
    # cannot run.
    def refusal():
        """Return why this process does without huge pages."""
        return "a free-threaded build does not use pymalloc"

    def stats():
        """Return an empty dict."""
        return {}
else:
    from _pymalloc_hugepages import refusal, stats

__all__ = ["refusal", "stats"]
