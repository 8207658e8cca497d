#!/bin/sh
# Compile and run the C tests of Objects/hugepages in all their variants.
#
# usage: ctests.sh CPYTHON_SOURCE OUTPUT_DIR
#
# Each variant ends in one line; its whole output is in OUTPUT_DIR/NAME.log,
# and is shown if it failed.  Exit status: 0 if all passed, 1 if not, 2 if they
# could not be run.

set -u

if [ $# -ne 2 ]; then
    echo "usage: ctests.sh CPYTHON_SOURCE OUTPUT_DIR" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
cpython=$1
if [ ! -f "$cpython/Include/cpython/pyatomic.h" ]; then
    echo "ctests: $cpython is not the source of CPython 3.13:" \
         "it has no Include/cpython/pyatomic.h" >&2
    exit 2
fi
mkdir -p "$2" && output=$(cd "$2" && pwd) || exit 2

# Name every tool that is missing, not only the first.
missing=0
require() {
    if ! command -v "$1" >/dev/null; then
        echo "ctests: $1 is missing; install it with: apt-get install $2" >&2
        missing=1
    fi
}
require gcc gcc
require clang clang
require x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64
require wine wine
if [ $missing -ne 0 ]; then
    exit 2
fi

failed=0

# compile NAME LAYER COMPILER [FLAG...]: make OUTPUT_DIR/NAME of the tests of
# that OS layer.
compile() {
    name=$1
    layer=$2
    shift 2
    if ! "$@" -std=c11 -Wall -Wextra -Wconversion -Werror -g \
        -I"$root/Include" -isystem "$cpython/Include" \
        "$root/Programs/_testhugepages.c" \
        "$root/Programs/_testhugepages_policy.c" \
        "$root/Programs/_testhugepages_other.c" \
        "$root/Programs/_testhugepages_$layer.c" \
        -o "$output/$name" >"$output/$name.log" 2>&1
    then
        cat "$output/$name.log"
        echo "$name: cannot be compiled"
        failed=1
        return 1
    fi
}

# run NAME COMMAND...: run the tests, and tell what came of them.
run() {
    name=$1
    shift
    # Far more than they need: a test that hangs is a test that fails.
    timeout 600 "$@" >"$output/$name.log" 2>&1
    status=$?
    result=$(tr -d '\r' <"$output/$name.log" | tail -n 1)
    if [ $status -ne 0 ]; then
        cat "$output/$name.log"
        echo "$name: FAILED with exit status $status: $result"
        failed=1
        return
    fi
    grep '\.\.\. .*skipped: ' "$output/$name.log"
    echo "$name: $result"
    case $result in
    *" 0 skipped") ;;
    *)
        if [ "$(id -u)" -eq 0 ]; then
            echo "$name: FAILED: as root no test may be skipped"
            failed=1
        fi
        ;;
    esac
}

# The sanitizers of older compilers cannot live with the address-space
# randomization of newer kernels.  Containers may forbid to switch it off.
run_unrandomized() {
    name=$1
    shift
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        set -- setarch "$(uname -m)" -R "$@"
    fi
    run "$name" "$@"
}

compile gcc linux gcc -O2 -pthread \
    && run gcc "$output/gcc"

compile clang linux clang -O2 -pthread \
    && run clang "$output/clang"

compile asan-ubsan linux gcc -O1 -pthread \
        -fsanitize=address,undefined -fno-sanitize-recover=all \
    && run_unrandomized asan-ubsan "$output/asan-ubsan"

compile tsan linux gcc -O1 -pthread -fsanitize=thread \
    && run_unrandomized tsan "$output/tsan" policy_threads

# A prefix of its own, without the parts that would ask to be installed; the
# first start fills it, which takes some seconds.
WINEPREFIX=$output/wine
WINEDLLOVERRIDES='mscoree,mshtml='
WINEDEBUG=-all
export WINEPREFIX WINEDLLOVERRIDES WINEDEBUG
compile mingw.exe windows x86_64-w64-mingw32-gcc -O2 -static \
    && run mingw.exe wine "$output/mingw.exe"

exit $failed
