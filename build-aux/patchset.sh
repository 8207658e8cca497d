#!/bin/sh
# Lay this tree's patch set on a CPython source tree, or take it off.
#
# usage: build-aux/patchset.sh list [RELEASE]
#        build-aux/patchset.sh patch [RELEASE]
#        build-aux/patchset.sh dist DIR
#        build-aux/patchset.sh release DIR
#        build-aux/patchset.sh apply DIR
#        build-aux/patchset.sh unapply DIR
#        build-aux/patchset.sh lay PRISTINE PATCHED
#
# list     what the patch set changes: "new PATH" for a file that it adds,
#          "patch PATH PATCHFILE" for one that it changes
# patch    the whole set on standard output, as one patch with a head for
#          "git am" and DEP-3; SOURCE_DATE_EPOCH is its date, if set
# dist     the same for each supported series, into files of DIR
# release  the release of the CPython source in DIR, if it is a supported one
# apply    put the set into the CPython source in DIR; nothing happens if it
#          is there already
# unapply  take it out again; nothing happens if it is not there
# lay      make PATCHED the tree PRISTINE with the set applied; a file of
#          PATCHED that is right already keeps its time stamp
#
# apply, unapply and lay change nothing at all when a part of the set does not
# fit, or fits more than one place.
#
# FILE.patch is for the pinned series.  A newer one that needs another, and those
# after it, have FILE.3.14.patch; an older one, and those before it, have
# FILE.3.12.patch.  Of several the nearest counts.  An empty one says that FILE is
# not changed there.
#
# RELEASE, or its series, is by default the pinned one.

set -eu

me=$0
root=$(cd "$(dirname "$0")/.." && pwd)
releases=$root/build-aux/cpython-releases

# The folders of CPython's tree in which a plain file is a new file.
folders='Doc Include InternalDocs Lib Misc Modules Objects PC PCbuild Parser Programs Python Tools'

# Of the tools, no more than the benchmark goes into a CPython tree: the tool for
# users and what measures and tests it all from outside stay here.  So do the
# tests in C, which no CPython tree compiles: build-aux/test/ctests.sh does.
tools=Tools/pymalloc_hugepages
c_tests=Programs/_testhugepages

die() {
    echo "$me: error: $*" >&2
    exit 1
}

# Git as a patch program: no repository (git apply passes over the files of a
# folder that lies inside another repository), no user's settings.
GIT_DIR=/dev/null GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
GIT_CONFIG_NOSYSTEM=1
export GIT_DIR GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_CONFIG_NOSYSTEM
unset GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX

scratch=$(mktemp -d "${TMPDIR:-/tmp}/patchset.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# supported_series: the major.minor of each supported release, one a line
supported_series() {
    sed -n 's/^\([0-9][0-9]*\.[0-9][0-9]*\)\..*/\1/p' "$releases" | sort -u -V
}

# series_of RELEASE: its major.minor; of a series, itself
series_of() {
    echo "$1" | sed -n 's/^\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p'
}

# why_not RELEASE: why the patch set is not for it; nothing if it is
why_not() {
    if ! supported_series | grep -Fqx "$(series_of "${1:-none}")"; then
        echo "the patch set is for $(supported_series | tr '\n' ' ' | sed 's/ $//; s/ / and /g')"
        return
    fi
    series=$(series_of "$1")
    # A series as such has none.
    micro=$(echo "$1" | sed -n 's/^[0-9]*\.[0-9]*\.\([0-9][0-9]*\).*/\1/p')
    sed -n "s/^refused  *$series\.\([0-9]*\)  *$series\.\([0-9]*\)  */\1 \2 /p" \
        "$releases" | while read -r first last reason; do
        if test "${micro:--1}" -ge "$first" && test "${micro:--1}" -le "$last"
        then
            echo "$series.$first to $series.$last $reason"
        fi
    done
}

# unbuilt RELEASE: a warning if nobody has built any release of its series
unbuilt() {
    series=$(series_of "$1")
    if awk -v series="$series." '
        index($1, series) == 1 { known++ }
        $1 == "untried" && index($2, series) == 1 { untried++ }
        END { exit !known || known != untried }' "$releases"
    then
        echo "nobody has built or tested it with CPython $series yet: see docs/cpython-$series.rst"
    fi
}

# release_of DIR: its release, or an error if it is no supported CPython
release_of() {
    test -n "$1" || die "no directory given: name a CPython source tree"
    test -d "$1" || die "$1: no such directory"
    for file in Include/patchlevel.h Objects/obmalloc.c configure.ac; do
        test -f "$1/$file" ||
            die "$1: not a CPython source tree: it has no $file"
    done
    found=$(sed -n 's/^#define PY_VERSION[[:space:]]*"\([^"]*\)".*/\1/p' \
            "$1/Include/patchlevel.h")
    reason=$(why_not "$found")
    test -z "$reason" ||
        die "$1: CPython ${found:-of an unknown release} is not supported: $reason"
    echo "$found"
}

# set_files: the files of the set and of all its variants, one a line
set_files() {
    (
        cd "$root"
        for patch in *.patch; do
            test ! -f "$patch" || echo "$patch"
        done
        for folder in $folders; do
            test ! -d "$folder" ||
                find "$folder" -name __pycache__ -prune -o \
                    -path $tools -prune -o -path $c_tests -prune -o -type f \
                    ! -name '*~' ! -name '.*.sw?' ! -name '*.orig' \
                    ! -name '*.rej' ! -name '*.py[co]' -print
        done
        echo $tools/bench_obmalloc.py
    )
}

# list_set RELEASE
list_set() {
    set_files | awk -v release="$(series_of "$1")" \
        -v pinned="$(series_of "$pinned")" '
        # A number that grows with the series
        function number(series, part) {
            split(series, part, ".")
            return part[1] * 1000 + part[2]
        }
        function distance(a, b) { return a < b ? b - a : a - b }
        BEGIN { release = number(release); pinned = number(pinned) }
        !/\.patch$/ { print "new", $0; next }
        {
            path = substr($0, 1, length($0) - length(".patch"))
            series = pinned
            if (match(path, /\.[0-9]+\.[0-9]+$/)) {
                series = number(substr(path, RSTART + 1))
                path = substr(path, 1, RSTART - 1)
            }
            # What lies beyond the release, or on the other side of the pinned
            # one, is for others.
            away = distance(series, release)
            if (distance(pinned, series) + away > distance(pinned, release))
                next
            if (!(path in file) || away < nearest[path]) {
                file[path] = $0
                nearest[path] = away
            }
        }
        END { for (path in file) print "patch", path, file[path] }
        ' >"$scratch/chosen"
    LC_ALL=C sort -k 2,2 "$scratch/chosen" | while read -r kind path file; do
        if test "$kind" = new || test -s "$root/$file"; then
            echo "$kind $path${file:+ $file}"
        fi
    done
}

# write_patch RELEASE
write_patch() {
    list_set "$1" >"$scratch/list"
    while read -r kind path file; do
        if test "$kind" = patch; then
            cat "$root/$file"
        else
            status=0
            (cd "$root" &&
             git diff --no-index --no-color --binary /dev/null "$path") ||
                status=$?
            # 1: the two differ
            test $status -eq 1 || die "$path: git could not read it"
        fi
    done <"$scratch/list"
}

# write_dated_patch SERIES: the same with its head, a mail's, whose fields and
# text are those of DEP-3, too
write_dated_patch() {
    version=$(cat "$root/VERSION")
    # The newest commit's date; that of the version in a tree without Git.
    date=${SOURCE_DATE_EPOCH:-$(GIT_DIR=$root/.git git log -1 --format=%ct \
                                2>/dev/null || :)}
    if test -n "$date"; then
        date=@$date
    else
        date=$(sed -n "s/^$version (\(.*\))\$/\1/p" "$root/CHANGELOG.rst")
    fi
    note=$(unbuilt "$1" | sed 's/^n/N/')
    cat <<EOF
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: pymalloc-hugepages maintainers <maintainers@pymalloc-hugepages.invalid>
Date: $(LC_ALL=C date -u -R -d "$date")
Subject: [PATCH] gh-144319: Put pymalloc's arenas on huge pages
Bug: https://github.com/python/cpython/issues/144319
Forwarded: not-needed
Last-Update: $(date -u -d "$date" +%Y-%m-%d)

Add the option --with-pymalloc-hugepages to configure, and the option
--pymalloc-hugepages to PCbuild/build.bat.  Without it, CPython is built as
it was released.

Programs that keep many objects spend much of their time on page faults and
on misses of the TLB.  One huge page of 2 MiB takes one fault and one entry
where 512 plain pages take 512 of each.  So each arena is one huge page: of
the kernel's pool, or a transparent one; or else it has plain pages.
Pymalloc then serves blocks of up to 1,024 bytes.

This is version $version of pymalloc-hugepages for CPython $1.${note:+
$note.}
---
EOF
    write_patch "$1"
}

dist() {
    mkdir -p "$1"
    for series in $(supported_series); do
        output=$1/pymalloc-hugepages-$(cat "$root/VERSION")-cpython-$series.patch
        write_dated_patch "$series" >"$output.new"
        mv -f "$output.new" "$output"
        echo "wrote $output"
    done
}

# try DIR OPTION...: git apply the set in DIR; its messages go to a file
try() {
    dir=$1
    shift
    (cd "$dir" && git apply --whitespace=nowarn "$@" "$scratch/set.patch") \
        >"$scratch/messages" 2>&1
}

# why: the first of git's messages, as the reason of an error
why() {
    sed -n '/^error: /{s///p;q;}' "$scratch/messages"
}

# places SIGN PATCHFILE FILE: the first hunk of the patch whose lines, those of
# its context and those with the sign - or +, do not stand in just one place of
# the file, and the number of places; nothing if there is none
places() {
    # Bytes, whatever the locale: Git compares those, and a file may have any.
    LC_ALL=C awk -v sign="$1" '
        FNR == 1 { file++ }
        file == 2 { line[FNR] = $0; next }
        /^@@ / { hunk++; next }
        hunk && (/^ / || /^$/ || substr($0, 1, 1) == sign) {
            text[hunk, ++size[hunk]] = substr($0, 2)
        }
        END {
            for (h = 1; h <= hunk; h++) {
                found = 0
                first = text[h, 1]
                for (n = 1; n + size[h] <= FNR + 1; n++) {
                    if (line[n] != first) continue
                    for (i = 2; i <= size[h]; i++)
                        if (line[n + i - 1] != text[h, i]) break
                    if (i > size[h]) found++
                }
                if (found != 1) { print h, found; exit }
            }
        }' "$2" "$3"
}

# check_places SIGN DIR ADVICE: each hunk has just one place in DIR, or it is an
# error.  Of several, git apply takes the one that is nearest to the hunk's line
# number and says nothing, and that may be in another function.
check_places() {
    while read -r kind path file; do
        test "$kind" = patch || continue
        bad=$(places "$1" "$root/$file" "$2/$path")
        test -z "$bad" ||
            die "$2: hunk ${bad% *} of $file fits ${bad#* } places of $path in this CPython $release, and nothing was changed: $3"
    done <"$scratch/list"
}

more_context='which one is right, nobody can tell; give that hunk more lines of context, until it fits one place only'

apply() {
    release=$(release_of "$1")
    write_patch "$release" >"$scratch/set.patch"
    if try "$1" --reverse --check; then
        echo "$1: the patch set is applied already"
    elif try "$1" --check; then
        check_places - "$1" "$more_context"
        try "$1" || die "$1: $(why)"
        echo "$1: applied the patch set to CPython $release"
        unbuilt "$release" | sed "s|^|$1: |"
    else
        die "$1: the patch set does not fit this CPython $release, and nothing was changed: $(why)"
    fi
}

unapply() {
    release=$(release_of "$1")
    write_patch "$release" >"$scratch/set.patch"
    if try "$1" --reverse --check; then
        check_places + "$1" "leave one of them in that file, or unpack the release again"
        try "$1" --reverse || die "$1: $(why)"
        echo "$1: took the patch set off CPython $release"
    else
        reason=$(why)
        if try "$1" --check; then
            echo "$1: the patch set is not applied"
        else
            die "$1: the patch set is there only in part or was edited, and nothing was changed: $reason"
        fi
    fi
}

# put FROM TO: make the file TO as FROM, in one step, if it is not so already
put() {
    if ! cmp -s "$1" "$2"; then
        mkdir -p "$(dirname "$2")"
        cp "$1" "$2.new"
        chmod --reference="$1" "$2.new"
        mv -f "$2.new" "$2"
        if $verbose; then
            echo "  $2"
        fi
    fi
}

lay() {
    pristine=$1
    patched=$2
    release=$(release_of "$pristine")
    write_patch "$release" >"$scratch/set.patch"

    # On copies of the files that it touches first: it fits, or we stop here.
    while read -r kind path file; do
        if test "$kind" = patch; then
            test -f "$pristine/$path" ||
                die "$file: CPython $release has no $path"
            mkdir -p "$scratch/tree/$(dirname "$path")"
            cp -p "$pristine/$path" "$scratch/tree/$path"
        elif test -e "$pristine/$path"; then
            die "$path: CPython $release has a file of that name: make it a patch"
        fi
    done <"$scratch/list"
    mkdir -p "$scratch/tree"
    if test -s "$scratch/set.patch" && ! try "$scratch/tree"; then
        die "the patch set does not fit CPython $release in $pristine, and nothing was changed: $(why)"
    fi
    check_places - "$pristine" "$more_context"

    verbose=true
    if ! test -d "$patched"; then
        # It would name the whole set.
        verbose=false
        rm -rf "$patched.tmp"
        cp -a "$pristine" "$patched.tmp"
        mv "$patched.tmp" "$patched"
        : >"$patched.files"
    fi
    # Remember every file that may be touched before any is: an interrupted
    # run is made good by the next.
    cut -d ' ' -f 2 "$scratch/list" >"$scratch/files"
    sort -u "$scratch/files" "$patched.files" >"$scratch/all"
    cp "$scratch/all" "$patched.files.new"
    mv -f "$patched.files.new" "$patched.files"
    while read -r path; do
        if test -f "$scratch/tree/$path"; then
            put "$scratch/tree/$path" "$patched/$path"
        elif test -f "$pristine/$path"; then
            put "$pristine/$path" "$patched/$path"
        else
            rm -f "$patched/$path"
        fi
    done <"$scratch/all"
    cp "$scratch/files" "$patched.files.new"
    mv -f "$patched.files.new" "$patched.files"
}

pinned=$(sed -n '/^[0-9]/{s/[[:space:]].*//p;q;}' "$releases")
command -v git >/dev/null 2>&1 || die "git is missing: install it"

case ${1-} in
list|patch)
    test $# -le 2 || die "$1 takes one release at most"
    release=${2:-$pinned}
    reason=$(why_not "$release")
    test -z "$reason" || die "CPython $release is not supported: $reason"
    if test "$1" = list; then
        list_set "$release"
    else
        write_dated_patch "$(series_of "$release")"
    fi
    ;;
release|apply|unapply|dist)
    test $# -eq 2 || die "$1 takes one directory"
    case $1 in
    release) release_of "$2" ;;
    apply) apply "$2" ;;
    unapply) unapply "$2" ;;
    dist) dist "$2" ;;
    esac
    ;;
lay)
    test $# -eq 3 || die "lay takes a pristine tree and the patched one"
    lay "$2" "$3"
    ;;
*)
    sed -n '/^# usage/,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
