"""Tests of the benchmarks: python3 -m unittest discover, in the folder
pymalloc_hugepages."""

import pathlib
import sys

# The benchmarks are scripts: they import each other without a package's name.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
