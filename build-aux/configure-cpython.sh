#!/bin/sh
# Run CPython's configure in a build tree of its own, unless that was done.
#
# usage: build-aux/configure-cpython.sh SOURCE TREE OPTIONS [OPTION...]
#
# SOURCE is the source tree, TREE the build tree, OPTIONS a file with options
# for configure, quoted for the shell; more may follow.

set -eu

me=$0
source=$(cd "$1" && pwd)
tree=$2
options=$3
shift 3
mkdir -p "$tree"

eval "set -- $(cat "$options") \"\$@\""

# The tree is what this file says, or nobody knows what it is.
stamp=$tree/configured-as
{
    echo "$source"
    sha256sum <"$source/configure"
    for option; do
        printf '%s\n' "$option"
    done
} >"$stamp.new"

if test -f "$tree/Makefile" && cmp -s "$stamp.new" "$stamp"; then
    rm -f "$stamp.new"
    exit 0
fi
rm -f "$stamp"

echo "configuring CPython in $tree"
if ! (cd "$tree" && "$source/configure" "$@"); then
    echo "$me: error: CPython's configure failed in $tree: its own message is above, the details in $tree/config.log" >&2
    exit 1
fi
mv "$stamp.new" "$stamp"
