#!/bin/sh
# Look for mistakes in Objects/hugepages without running it: clang's analyzer
# and cppcheck, on the code as the C tests compile it.
#
# usage: analyze.sh CPYTHON_SOURCE
#
# Exit status: 0 if nothing was found, 1 if something was, 2 if they could not
# be run.

set -u

if [ $# -ne 1 ]; then
    echo "usage: analyze.sh CPYTHON_SOURCE" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
cpython=$(cd "$1" && pwd) || exit 2
for program in clang cppcheck; do
    if ! command -v $program >/dev/null; then
        echo "analyze: $program is missing; install it with: apt-get install $program" >&2
        exit 2
    fi
done

passed=0
failed=0

# check NAME COMMAND...: no output and a status of 0 is a pass.
check() {
    name=$1
    shift
    if output=$("$@" 2>&1) && [ -z "$output" ]; then
        passed=$((passed + 1))
    else
        echo "$output"
        echo "$name: found something"
        failed=$((failed + 1))
    fi
}

cd "$root/Programs/_testhugepages" || exit 2
for file in *.c; do
    # Windows' headers are not for clang on this system.
    case $file in *_windows.c) continue ;; esac
    # The tests call vfork() to see that nothing happens.
    check "clang's analyzer on $file" \
        clang --analyze --analyzer-output text -Xclang -analyzer-werror \
            -Xclang -analyzer-disable-checker \
            -Xclang security.insecureAPI.vfork \
            -std=c11 -I"$root/Include" -I"$root/Include/internal" \
            -isystem "$cpython/Include" "$file"
done
# It goes on without the headers that it is not given, and skips what depends
# on a macro that it does not know.
check "cppcheck" \
    cppcheck --quiet --error-exitcode=1 --std=c11 \
        --enable=warning,performance,portability \
        -I"$root/Include" -I"$root/Include/internal" -D__linux__=1 -D__x86_64__=1 \
        -D__SIZEOF_LONG__=8 -D__SIZEOF_POINTER__=8 \
        -DMAP_HUGETLB=0x40000 -DMADV_HUGEPAGE=14 \
        -i test_os_windows.c .

echo "analyzers: $passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
