#!/bin/sh
# Record what hugepages.py status reads of this system.
#
# usage: record.sh >FILE
#
# Prints the files below /proc and /sys as this process sees them, each after a
# line "==> PATH": run it in the container or cgroup that is to be recorded.  A
# shell and cat, head and sed are enough.

set -u

copy() {
    test -f "$1" || return 0
    # One mapping of smaps is enough, and of the mounts those of cgroups.
    case $1 in
    */smaps) text=$(head -n 30 "$1") ;;
    */mountinfo) text=$(sed -n '/ - cgroup2\{0,1\} /p' "$1") ;;
    *) text=$(cat "$1" 2>/dev/null) || return 0 ;;
    esac
    printf '==> %s\n%s\n' "$1" "$text"
}

for file in meminfo sys/kernel/osrelease sys/kernel/arch self/limits \
    self/smaps self/status self/cgroup self/mountinfo
do
    copy /proc/$file
done
for file in /sys/kernel/mm/hugepages/*/*_hugepages \
    /sys/devices/system/node/node*/hugepages/*/*_hugepages \
    /sys/kernel/mm/transparent_hugepage/enabled \
    /sys/kernel/mm/transparent_hugepage/defrag \
    /sys/kernel/mm/transparent_hugepage/hpage_pmd_size \
    /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled
do
    copy "$file"
done

# The limits of each cgroup from this process's up to the mount point.
sed -n 's/^\([^ ]* \)\{4\}\([^ ]*\) .* - cgroup2\{0,1\} .*/\2/p' \
    /proc/self/mountinfo |
while read -r mount; do
    sed 's/^[^:]*:[^:]*://' /proc/self/cgroup | while read -r path; do
        while :; do
            for name in hugetlb.2MB hugetlb.2MB.rsvd memory; do
                for file in max current limit_in_bytes usage_in_bytes; do
                    copy "$mount$path/$name.$file"
                done
            done
            case $path in
            */?*) path=${path%/*} ;;
            *) break ;;
            esac
        done
    done
done
