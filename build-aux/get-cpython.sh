#!/bin/sh
# Get the CPython source that is to be patched and built.
#
# usage: build-aux/get-cpython.sh [VERSION|DIR|TARBALL]
#
# Puts the source, as its authors released it, into a folder of build/ and
# prints the folder's name.  A folder that is there is a whole source: it is
# filled under another name and moved into place at the end.
#
# VERSION  a release of the file "cpython-releases" beside this script, or a
#          series: its newest release there; the first release of all if nothing
#          is given.  Its archive comes from the folder $CPYTHON_SOURCES, the
#          local caches, Debian's source package or python.org, whichever has it
#          first, and its SHA-256 is checked.
# DIR      a source tree.  It is copied, without what was built in it, and if
#          the patch set is applied there, it is taken off the copy.
# TARBALL  a source archive.
#
# $CPYTHON_SOURCES, if set, is a folder with archives as python.org names them, and
# with source trees Python-RELEASE or cpython-RELEASE, which are copied.

set -eu

me=$0
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
build=$top/build
downloads=$build/downloads
cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pymalloc-hugepages

say() {
    echo "$me: $*" >&2
}

die() {
    echo "$me: error: $*" >&2
    exit 1
}

# releases: the table, without its comments
releases() {
    sed -n '/^[0-9]/p' "$here/cpython-releases"
}

known_releases() {
    releases | cut -d ' ' -f 1 | tr '\n' ' ' | sed 's/ $//; s/ /, /g'
}

sha256_of() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

# unpack ARCHIVE NAME: unpack to build/NAME; an archive that is not a
# supported CPython leaves nothing behind
unpack() {
    rm -rf "$build/$2.tmp"
    mkdir -p "$build/$2.tmp"
    say "unpacking $1"
    if ! tar -xf "$1" -C "$build/$2.tmp" --strip-components=1 --no-same-owner \
         >"$build/$2.messages" 2>&1
    then
        reason=$(sed -n 1p "$build/$2.messages")
        rm -rf "$build/$2.tmp" "$build/$2.messages"
        die "$1 cannot be unpacked: $reason"
    fi
    rm -f "$build/$2.messages"
    if ! reason=$("$here/patchset.sh" release "$build/$2.tmp" 2>&1); then
        rm -rf "$build/$2.tmp"
        die "$1: ${reason#*"$2.tmp: "}"
    fi
    mv "$build/$2.tmp" "$build/$2"
}

# keep: put the downloaded archive into the cache, if that can be written
keep() {
    if mkdir -p "$cache" && cp "$downloads/$archive" "$cache/$archive.tmp.$$"
    then
        mv -f "$cache/$archive.tmp.$$" "$cache/$archive"
    fi 2>/dev/null
}

# take FILE: make FILE the downloaded archive if its SHA-256 is $sha256
take() {
    sum=$(sha256_of "$1") || return 1
    if test "$sum" = "$sha256"; then
        mkdir -p "$downloads"
        # Not moved over itself: the file may be the download already.
        if test "$1" != "$downloads/$archive"; then
            cp "$1" "$downloads/$archive.tmp"
            mv -f "$downloads/$archive.tmp" "$downloads/$archive"
        fi
        return 0
    fi
    say "$1: its SHA-256 is $sum, not $sha256: not used"
    wrong=yes
    return 1
}

# The mirrors that the system's apt has Debian from, one a line.  Before the
# first "apt-get update" no label is known, so every mirror of a component
# "main" is one that may have it.
debian_mirrors() {
    # shellcheck disable=SC2016  # apt-get's own variables
    {
        apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' &&
        apt-get indextargets --format '$(REPO_URI)' 'Component: main'
    } 2>/dev/null | awk '!seen[$0]++'
}

# apt-get with settings of our own on top of the system's (its proxies are
# needed); what it keeps is under $apt.
private_apt_get() {
    apt-get -q \
        -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" \
        -o Dir::Cache="$apt/cache" -o APT::Sandbox::User= \
        -o Acquire::Languages=none -o Acquire::Retries=2 "$@" >&2
}

# from_debian SUITE PACKAGE RELEASE: download the archive as Debian's source
# package
from_debian() {
    test "$1" != - || return 1
    command -v apt-get >/dev/null 2>&1 || return 1
    keyring=
    for file in /usr/share/keyrings/debian-archive-keyring.gpg \
                /usr/share/keyrings/debian-archive-keyring.pgp; do
        test -n "$keyring" || test ! -r $file || keyring=$file
    done
    test -n "$keyring" || return 1

    apt=$build/apt
    for mirror in $(debian_mirrors); do
        rm -rf "$apt"
        mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" \
            "$apt/download"
        echo "deb-src [signed-by=$keyring] $mirror $1 main" \
            >"$apt/sources.list"
        say "asking Debian's $1 for its source package $2"
        if private_apt_get update &&
           (cd "$apt/download" &&
            private_apt_get source --download-only "$2")
        then
            for file in "$apt"/download/*.orig.tar.*; do
                test -f "$file" || continue
                # Before Debian releases it, a suite goes on to CPython's next
                # release.
                has=${file##*_}
                has=${has%%.orig.tar.*}
                if test "$has" != "$3"; then
                    other="Debian's $1 has $has instead"
                elif take "$file"; then
                    rm -rf "$apt"
                    return 0
                fi
            done
        fi
    done
    rm -rf "$apt"
    return 1
}

# from_python_org RELEASE
from_python_org() {
    url=https://www.python.org/ftp/python/$1/$archive
    file=$downloads/$archive.part
    mkdir -p "$downloads"
    say "downloading $url"
    for program in curl wget python3; do
        command -v $program >/dev/null 2>&1 || continue
        case $program in
        curl) curl -fsSL --connect-timeout 20 --retry 2 -o "$file" "$url" ;;
        wget) wget -q --timeout=20 --tries=3 -O "$file" "$url" ;;
        python3)
            python3 -c 'if True:
                import shutil, sys, urllib.request
                try:
                    with (urllib.request.urlopen(sys.argv[1], timeout=20) as page,
                          open(sys.argv[2], "wb") as file):
                        shutil.copyfileobj(page, file)
                except OSError as error:
                    sys.exit(f"{sys.argv[1]}: {error}")' "$url" "$file" ;;
        esac && take "$file" && rm -f "$file" && return 0
    done >&2
    rm -f "$file"
    return 1
}

# get_release RELEASE SHA256 ARCHIVE SUITE PACKAGE
get_release() {
    name=cpython-$1
    test ! -d "$build/$name" || return 0
    sha256=$2
    archive=$3
    wrong=no
    other=
    for tree in ${CPYTHON_SOURCES:+"$CPYTHON_SOURCES/Python-$1" \
                                  "$CPYTHON_SOURCES/cpython-$1"}; do
        test -d "$tree" || continue
        has=$("$here/patchset.sh" release "$tree") || exit 1
        test "$has" = "$1" || die "$tree is CPython $has"
        # A tree has no checksum.
        say "$tree: taken for CPython $1 as it is"
        copy_tree "$tree" "$name"
        mv "$build/$name.tmp" "$build/$name"
        return 0
    done
    for file in ${CPYTHON_SOURCES:+"$CPYTHON_SOURCES/$archive"} \
                "$downloads/$archive" "$cache/$archive"; do
        if test -f "$file" && take "$file"; then
            unpack "$downloads/$archive" "$name"
            keep
            return 0
        fi
    done
    if from_debian "$4" "$5" "$1" || from_python_org "$1"; then
        unpack "$downloads/$archive" "$name"
        keep
        return 0
    fi
    reason="neither Debian's source package nor python.org could be reached"
    test "$4" != - || reason="python.org could not be reached"
    test -z "$other" ||
        reason="$other, and python.org could not be reached"
    test $wrong = no || reason="what was found has a wrong SHA-256, see above"
    die "no source of CPython $1: $reason; check the network, or get $archive (SHA-256 $2) yourself and give --with-cpython=FILE"
}

# get_tarball FILE
get_tarball() {
    sum=$(sha256_of "$1") || die "$1: cannot be read"
    release=$(releases | awk -v sum="$sum" '$2 == sum { print $1 }')
    if test -n "$release"; then
        name=cpython-$release
    else
        say "$1 has the SHA-256 $sum, which is that of no known release: used as it is"
        name=cpython-tarball-$(echo "$sum" | cut -c 1-8)
    fi
    test -d "$build/$name" || unpack "$1" "$name"
}

# checksums DIR: one line for each file
checksums() {
    (cd "$1" && find . -type f -exec sha256sum {} + | LC_ALL=C sort)
}

# copy_tree DIR NAME: copy the source tree to build/NAME.tmp, without the patch set
# and without what a build in DIR left there
copy_tree() {
    copy=$build/$2.tmp
    say "copying $1"
    rm -rf "$copy"
    mkdir -p "$copy"
    if ! { tar -C "$1" -X "$here/build-products" -cf - . ||
           echo failed >"$copy.failed"; } | tar -xf - -C "$copy" --no-same-owner ||
       test -e "$copy.failed"
    then
        rm -rf "$copy" "$copy.failed"
        die "$1: cannot be copied to $build"
    fi
    "$here/patchset.sh" unapply "$copy" >/dev/null || {
        rm -rf "$copy"
        die "$1: give a CPython source tree without changes in the places that the patch set changes"
    }
}

# get_directory DIR
get_directory() {
    directory=$(cd "$1" && pwd -P)
    "$here/patchset.sh" release "$directory" >/dev/null || exit 1
    name=cpython-dir-$(echo "$directory" | sha256sum | cut -c 1-8)
    copy_tree "$directory" "$name"
    if ! test -d "$build/$name"; then
        mv "$copy" "$build/$name"
        return 0
    fi
    # Bring an older copy up to date file by file, so that make rebuilds what
    # changed and no more.  The patched tree is told by its list of files.
    checksums "$copy" >"$copy.sums"
    checksums "$build/$name" | LC_ALL=C comm -3 - "$copy.sums" |
        sed 's/^\t\{0,1\}[0-9a-f]*  \.\///' | sort -u >"$copy.changed"
    if test -e "$build/$name-patched.files"; then
        cat "$copy.changed" >>"$build/$name-patched.files"
    fi
    while read -r path; do
        if test -f "$copy/$path"; then
            mkdir -p "$(dirname "$build/$name/$path")"
            mv -f "$copy/$path" "$build/$name/$path"
            touch "$build/$name/$path"
        else
            rm -f "$build/$name/$path"
        fi
    done <"$copy.changed"
    rm -rf "$copy" "$copy.sums" "$copy.changed"
}

wanted=${1-}
mkdir -p "$build"
if test -z "$wanted"; then
    wanted=$(known_releases | sed 's/,.*//')
fi

if test -d "$wanted"; then
    get_directory "$wanted"
elif test -f "$wanted"; then
    get_tarball "$wanted"
elif echo "$wanted" | grep -Eqx '[0-9]+(\.[0-9]+)+([a-z]+[0-9]+)?'; then
    reason=$("$here/patchset.sh" list "$wanted" 2>&1 >/dev/null) ||
        die "${reason#*error: }: choose from $(known_releases)"
    # The release itself, or the newest of the series
    line=$(releases | awk -v wanted="$wanted" '
        $1 == wanted || index($1, wanted ".") == 1' | sort -V | tail -n 1)
    test -n "$line" ||
        die "CPython $wanted is not a release that the patch set is for: choose from $(known_releases)"
    # shellcheck disable=SC2086  # the words of the line
    get_release $line
else
    die "$wanted: neither a release ($(known_releases)) nor a directory nor a file"
fi
echo "$name"
