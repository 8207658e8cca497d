"""Tests of the tool: python3 -m unittest discover, in the folder
pymalloc_hugepages.  recorded/ has what status read on nine systems."""
