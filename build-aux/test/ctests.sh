#!/bin/sh
# Compile and run the C tests of Objects/hugepages in all their variants.
#
# usage: ctests.sh CPYTHON_SOURCE OUTPUT_DIR
#
# Each variant ends in one line; its whole output is in OUTPUT_DIR/NAME.log,
# and is shown if it failed.  Exit status: 0 if all passed, 1 if not, 2 if they
# could not be run.

set -u

# shellcheck source=build-aux/test/ctests-common.sh
. "$(dirname "$0")/ctests-common.sh"
begin "$0" "$@"

require gcc gcc
require clang clang
require x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64
require wine wine
all_required

as_root=no
if [ "$(id -u)" -eq 0 ]; then
    as_root=yes
fi

# run NAME COMMAND...: run the tests, and tell what came of them.
run() {
    name=$1
    shift
    # Far more than they need: a test that hangs is a test that fails.
    timeout 600 "$@" >"$output/$name.log" 2>&1
    tell "$name" "$output/$name.log" $? $as_root
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

compile gcc linux gcc -O2 \
    && run gcc "$output/gcc"

compile clang linux clang -O2 \
    && run clang "$output/clang"

compile asan-ubsan linux gcc -O1 \
        -fsanitize=address,undefined -fno-sanitize-recover=all \
    && run_unrandomized asan-ubsan "$output/asan-ubsan"

compile tsan linux gcc -O1 -fsanitize=thread \
    && run_unrandomized tsan "$output/tsan" \
        arena_threads

# A prefix of its own, without the parts that would ask to be installed; the
# first start fills it, which takes some seconds.
WINEPREFIX=$output/wine
WINEDLLOVERRIDES='mscoree,mshtml='
WINEDEBUG=-all
export WINEPREFIX WINEDLLOVERRIDES WINEDEBUG
compile mingw.exe windows x86_64-w64-mingw32-gcc -O2 -static \
    && run mingw.exe wine "$output/mingw.exe"

exit "$failed"
