#!/bin/sh
# Run the C tests of Objects/hugepages on older kernels: a matrix of virtual
# machines whose only program they are.
#
# usage: kernels.sh CPYTHON_SOURCE OUTPUT_DIR
#
# Each kernel is the one that a release of Debian has for virtual machines.  It
# is downloaded with apt-get from the mirror that the system's apt uses, without
# a change of the system's apt settings, and kept in the local cache; remove it
# there to have the newest one.
#
# Each kernel ends in one line; its whole output is in OUTPUT_DIR/NAME.log, and
# is shown if a test failed.  A kernel that cannot be downloaded is a skipped
# test.  Exit status: 0 if no test failed, 1 if some did, 2 if they could not
# be run.

set -u

# shellcheck source=build-aux/test/ctests-common.sh
. "$(dirname "$0")/ctests-common.sh"
begin "$0" "$@"

require gcc gcc
require qemu-system-x86_64 qemu-system-x86
require cpio cpio
all_required

: >"$output/apt.log"
cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pymalloc-hugepages/kernels

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

# private PROGRAM ARGUMENT...: run a program of apt with settings of our own on
# top of the system's (its proxies are needed); what it keeps is under $apt.
private() {
    program=$1
    shift
    "$program" -q \
        -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" \
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 \
        -o APT::Sandbox::User= -o Acquire::Languages=none \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=20 "$@"
}

# download SUITE DIRECTORY: get the package of the suite's kernel.  If that
# cannot be, $why says why.
download() {
    why='this system has no apt-get'
    command -v apt-get >/dev/null || return 1
    keyring=
    for file in /usr/share/keyrings/debian-archive-keyring.gpg \
                /usr/share/keyrings/debian-archive-keyring.pgp; do
        test -n "$keyring" || test ! -r $file || keyring=$file
    done
    why="this system has no keyring of Debian's"
    test -n "$keyring" || return 1
    why='no mirror of Debian is known to apt'
    for mirror in $(debian_mirrors); do
        rm -rf "$apt"
        mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$2"
        : >"$apt/status"
        # The list of a release that is out of support may have expired; it is
        # still signed.
        echo "deb [arch=amd64 check-valid-until=no signed-by=$keyring]" \
             "$mirror $1 main" >"$apt/sources.list"
        why="no mirror that apt uses has Debian's $1, see $output/apt.log"
        private apt-get --error-on=any update >>"$output/apt.log" 2>&1 ||
            continue
        package=$(private apt-cache show linux-image-cloud-amd64 |
                  sed -n 's/^Depends: *\(linux-image-[^ ,]*\).*/\1/p;T;q')
        why="Debian's $1 has no kernel that can be downloaded"
        if test -n "$package" &&
           (cd "$2" && private apt-get download "$package") \
               >>"$output/apt.log" 2>&1
        then
            return 0
        fi
    done
    return 1
}

# get_kernel SUITE: set $image to the suite's kernel, and $release to its
# release.  If that cannot be, $why says why.
get_kernel() {
    package_file=
    for file in "$cache/$1"/*.deb; do
        test ! -f "$file" || package_file=$file
    done
    if test -z "$package_file"; then
        apt=$output/apt
        rm -rf "${output:?}/$1"
        download "$1" "$output/$1" || { rm -rf "$apt"; return 1; }
        rm -rf "$apt"
        for file in "$output/$1"/*.deb; do
            package_file=$file
        done
        # Kept if the cache can be written; whole, for it is moved into place.
        if mkdir -p "$cache" && cp -r "$output/$1" "$cache/$1.$$" &&
           rm -rf "${cache:?}/$1" && mv "$cache/$1.$$" "$cache/$1"
        then
            rm -rf "${output:?}/$1"
            package_file=$cache/$1/${package_file##*/}
        fi 2>/dev/null
    fi
    image=$output/$1.vmlinuz
    why="$package_file has no kernel"
    dpkg-deb --fsys-tarfile "$package_file" |
        tar -xOf - --wildcards './boot/vmlinuz-*' >"$image" || return 1
    release=${package_file##*/linux-image-}
    release=${release%%-cloud*}
}

# boot IMAGE LOG: a machine of two NUMA nodes, so that a policy has something to
# exclude; but the kernel is not to move pages between them by itself, for while
# it does, smaps does not count them as huge.  Accelerated virtualization is not
# available on every machine; without it, clearing a page by a string
# instruction of bytes (erms) takes six times as long as by one of words.  Both
# processors run in one thread of the host: with a thread each, one may go on
# executing code that the other has replaced, and a kernel that patches itself
# (it does when the first cpuset is made) panics once in a long while.  A
# machine needs two minutes on an idle host; the limit only ends one that hangs.
boot() {
    { timeout 900 qemu-system-x86_64 -M pc -accel tcg,thread=single \
        -cpu max,-erms,-fsrm \
        -smp 2 -m 1024 \
        -object memory-backend-ram,id=memory0,size=512M \
        -object memory-backend-ram,id=memory1,size=512M \
        -numa node,nodeid=0,cpus=0,memdev=memory0 \
        -numa node,nodeid=1,cpus=1,memdev=memory1 \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$1" -initrd "$output/initramfs" -append "console=ttyS0 \
            panic=-1 quiet mitigations=off numa_balancing=disable" \
        </dev/null 2>&1
      test $? -ne 124 || echo 'not done after 900 seconds'
    } | tr -d '\r' | grep -v '] reboot: Power down' >"$2"
}

compile init linux gcc -static -O2 || exit 1
(cd "$output" && echo init | cpio -o -H newc --quiet -R 0:0) \
    >"$output/initramfs" || exit 2

# One processor each would keep them busy; they run side by side.
booted=
for suite in bullseye bookworm trixie; do
    if ! get_kernel $suite; then
        echo "kernel $suite: skipped: $why"
        continue
    fi
    boot "$image" "$output/kernel-$release.log" &
    booted="$booted $release"
done
wait

for release in $booted; do
    log=$output/kernel-$release.log
    # The machine has no exit status.  It has passed if it came to its last
    # line, and that is good.
    status=1
    if tail -n 1 "$log" |
       grep -Eqx '[1-9][0-9]* passed, 0 failed, [0-9]+ skipped'
    then
        status=0
    fi
    tell "kernel $release" "$log" $status yes
done

exit "$failed"
