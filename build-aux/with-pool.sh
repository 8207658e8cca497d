#!/bin/sh
# Run a command with a pool of this many 2 MiB huge pages; needs root.
#
# usage: build-aux/with-pool.sh PAGES COMMAND [ARGUMENT...]
#
# The pool is put back to its former size at the end, whatever the end.

set -u

me=$0
pool=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

die() {
    echo "$me: error: $*" >&2
    exit 1
}

test $# -ge 2 || die "usage: with-pool.sh PAGES COMMAND [ARGUMENT...]"
pages=$1
shift
test -f $pool || die "this kernel has no 2 MiB huge pages ($pool is missing)"
test -w $pool || die "the pool of huge pages can be changed by root only"
read -r found <$pool

# A signal of the terminal reaches the command as well, which ends first.
trap 'echo "$found" >$pool' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Memory may have to be moved to make room for whole huge pages.
for attempt in 1 2 3; do
    echo "$pages" >$pool
    read -r got <$pool
    test "$got" -lt "$pages" || break
    test $attempt = 3 || echo 1 >/proc/sys/vm/compact_memory
done
test "$got" -ge "$pages" ||
    die "only $got of $pages huge pages are available: memory is short or in pieces"

"$@"
