"""Stress test of forks; README.rst, in the folder above, is the map."""
