#!/bin/sh
# Install the Debian packages that this tree needs, or say which are missing.
#
# usage: build-aux/packages.sh GROUP...
#
# The groups are those of the file "packages" beside this script.  Root gets
# the missing packages installed.  Anybody else is told the apt-get line that
# does it, and the exit status is 1.  A system without dpkg is only asked for
# the programs that nothing works without.

set -eu

here=$(dirname "$0")

# packages_of GROUP...: the groups' packages, one a line
packages_of() {
    for group; do
        sed -n "s/^${group}[[:space:]][[:space:]]*//p" "$here/packages"
    done | tr -s '[:space:]' '\n' | sort -u
}

# missing_of GROUP...: those that are not installed
missing_of() {
    packages_of "$@" | while read -r package; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
            grep -qx installed || echo "$package"
    done
}

if test $# -eq 0; then
    echo "usage: $0 GROUP..." >&2
    exit 2
fi

if ! command -v dpkg-query >/dev/null 2>&1; then
    for program in make cc xz; do
        if ! command -v $program >/dev/null 2>&1; then
            echo "$0: error: $program is missing: install it (this system has no dpkg, so that it is left to you; build-aux/packages lists what Debian calls the rest)" >&2
            exit 1
        fi
    done
    exit 0
fi

missing=$(missing_of "$@" | tr '\n' ' ')
missing=${missing% }
test -n "$missing" || exit 0

if test "$(id -u)" -ne 0; then
    # One line for all: whoever is asked for packages is asked once.
    all=$(missing_of build bench test "$@" | tr '\n' ' ')
    echo "$0: error: Debian packages are missing; as root, run: apt-get install --no-install-recommends ${all% }" >&2
    exit 1
fi

echo "installing Debian packages: $missing"
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
# shellcheck disable=SC2086  # a list of package names
if ! { apt-get -q update &&
       apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends \
           install $missing </dev/null; }
then
    echo "$0: error: apt-get could not install $missing: its own message is above; mend that, or install them by hand, and run this again" >&2
    exit 1
fi
