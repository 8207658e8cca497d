"""Tests of the stress test: python3 -m unittest discover, in the folder
pymalloc_hugepages."""
