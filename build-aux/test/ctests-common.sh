#!/bin/sh
# shellcheck disable=SC2034  # what the scripts that read this use
# What ctests.sh and kernels.sh share.  It is read by them, not run.

# begin SCRIPT CPYTHON_SOURCE OUTPUT_DIR: look at the command line, and set
# $root, $cpython and $output.
begin() {
    me=$(basename "$1" .sh)
    if [ $# -ne 3 ]; then
        echo "usage: $me.sh CPYTHON_SOURCE OUTPUT_DIR" >&2
        exit 2
    fi
    root=$(cd "$(dirname "$1")/../.." && pwd) || exit 2
    cpython=$2
    if [ ! -f "$cpython/Include/cpython/pyatomic.h" ]; then
        echo "$me: $cpython has no Include/cpython/pyatomic.h:" \
             "give the source of CPython 3.13 or later" >&2
        exit 2
    fi
    mkdir -p "$3" && output=$(cd "$3" && pwd) || exit 2
    missing=0
    failed=0
}

# require PROGRAM PACKAGE: name every tool that is missing, not only the first.
require() {
    if ! command -v "$1" >/dev/null; then
        echo "$me: $1 is missing; install it with: apt-get install $2" >&2
        missing=1
    fi
}

all_required() {
    if [ "$missing" -ne 0 ]; then
        exit 2
    fi
}

# compile NAME LAYER COMPILER [FLAG...]: make OUTPUT_DIR/NAME of the tests of
# that OS layer.
compile() {
    name=$1
    layer=$2
    shift 2
    for file in "$root"/Programs/_testhugepages/*.c; do
        case $layer/${file##*/} in
        linux/test_os_windows.c) ;;
        windows/machine.c|windows/*linux*.c|windows/test_pymalloc.c) ;;
        windows/test_real_fork.c|windows/test_limits.c|windows/test_free.c) ;;
        *) set -- "$@" "$file" ;;
        esac
    done
    if ! "$@" -pthread -std=c11 -Wall -Wextra -Wconversion -Werror -g \
        -I"$root/Include" -I"$root/Include/internal" \
        -isystem "$cpython/Include" \
        -o "$output/$name" >"$output/$name.log" 2>&1
    then
        cat "$output/$name.log"
        echo "$name: cannot be compiled"
        failed=1
        return 1
    fi
}

# tell NAME LOG STATUS ROOT: tell what came of the tests whose output is in the
# file LOG.  ROOT is yes if they were run by root.
tell() {
    result=$(tr -d '\r' <"$2" | tail -n 1)
    if [ "$3" -ne 0 ]; then
        cat "$2"
        echo "$1: FAILED with exit status $3: $result"
        failed=1
        return
    fi
    tr -d '\r' <"$2" | grep '\.\.\. .*skipped: '
    echo "$1: $result"
    case $result in
    *" 0 skipped") ;;
    *)
        if [ "$4" = yes ]; then
            echo "$1: FAILED: as root no test may be skipped"
            failed=1
        fi
        ;;
    esac
}
