#!/bin/sh
# Write the tool as one file that runs on any machine with Python 3.9 or later.
#
# usage: build-aux/zip-tool.sh OUTPUT INTERPRETER PYTHON...
#
# INTERPRETER is what the first line of OUTPUT names, PYTHON the command that
# makes the file.

set -eu

tool=$(dirname "$0")/../Tools/pymalloc_hugepages
output=$1 interpreter=$2
shift 2

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
mkdir "$files/hugepages"
cp "$tool/hugepages.py" "$files/__main__.py"
cp "$tool"/hugepages/*.py "$tool"/hugepages/*.json "$files/hugepages"
"$@" -m zipapp --python "$interpreter" --output "$output" "$files"
chmod 755 "$output"
