"""Benchmarks of interpreters with and without huge pages; README.rst, in the
folder above, is the map."""
