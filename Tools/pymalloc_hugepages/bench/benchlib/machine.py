"""What the machine is: all that a reader needs to judge the figures."""

import os
import platform

from . import perf
from .memory import MIB


def _first_line(path):
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return None


def _chosen(path):
    """The value in brackets of a file like "always [madvise] never"."""
    line = _first_line(path) or ""
    return line.partition("[")[2].partition("]")[0] or None


def _cpu():
    """(model, whether it is virtual), as far as /proc/cpuinfo tells."""
    model, flags = None, []
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and model is None:
                    model = value.strip()
                elif key.strip() == "flags" and not flags:
                    flags = value.split()
    except OSError:
        pass
    return model or platform.machine(), "hypervisor" in flags


def _distribution():
    try:
        with open("/etc/os-release") as file:
            for line in file:
                key, _, value = line.partition("=")
                if key == "PRETTY_NAME":
                    return value.strip().strip('"')
    except OSError:
        pass
    return None


def describe():
    """The description, as a dict that goes into the results."""
    model, is_virtual = _cpu()
    thp = "/sys/kernel/mm/transparent_hugepage/"
    return {
        "cpu": model,
        "virtual": is_virtual,
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "thp_enabled": _chosen(thp + "enabled"),
        "thp_defrag": _chosen(thp + "defrag"),
        "nr_hugepages": _first_line("/proc/sys/vm/nr_hugepages"),
        "perf": perf.version(),
    }


def as_lines(machine):
    """The description as lines of text."""
    kind = ", a virtual machine" if machine["virtual"] else ""
    return [
        f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} "
        f"cores, {machine['memory'] / MIB / 1024:.1f} GiB of memory{kind}",
        f"{machine['distribution']}, Linux {machine['kernel']}, "
        f"{machine['perf']}",
        f"THP: {machine['thp_enabled']}, defrag {machine['thp_defrag']}; "
        f"huge pages in the pool as found: {machine['nr_hugepages']}",
    ]
