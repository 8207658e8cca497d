"""The figures in OpenMetrics' text format, for Prometheus.

All are gauges and have neither exemplars nor timestamps: so it is Prometheus'
older text format as well, which node_exporter reads from files.  There are no
figures of single processes: each PID would be a series of its own for ever.
"""

from . import ARENA_SIZE


_PREFIX = "pymalloc_hugepages_"


def _label(value):
    for char, escaped in ("\\", r"\\"), ('"', r'\"'), ("\n", r"\n"):
        value = value.replace(char, escaped)
    return f'"{value}"'


def _exposition(families):
    """Text of families: (name, help, [(labels, value)])."""
    lines = []
    for name, about, samples in families:
        name = _PREFIX + name
        lines += [f"# TYPE {name} gauge", f"# HELP {name} {about}"]
        for labels, value in samples:
            text = ",".join(f"{key}={_label(label)}"
                            for key, label in labels.items())
            lines.append(f"{name}{{{text}}} {value}")
    return "\n".join([*lines, "# EOF", ""])


def of_service(service):
    """Text of a service.Service."""
    usage, memory = service.arenas, service.memory

    def family(name, about, key, **values):
        return name, about, [({"service": service.name, key: label}, value)
                             for label, value in values.items()]

    readable, interpreters = len(service.readable), len(service.interpreters)
    return _exposition([
        family("processes", "Processes, by what they are.", "state",
               interpreter=interpreters, other=readable - interpreters,
               unreadable=len(service.unreadable)),
        family("arena_bytes", "Arenas, shared ones counted once.", "tier",
               hugetlb=usage.hugetlb_size, thp=usage.thp_size),
        family("arena_huge_bytes", "What of the arenas is on huge pages.",
               "tier", hugetlb=usage.hugetlb, thp=usage.thp),
        family("memory_bytes", "Memory of all processes together.", "kind",
               **{name: memory[name] for name in ("pss", "uss", "hugetlb")})])


def of_system(found, verdicts):
    """Text of a system.System, or of windows.Windows, and its verdicts."""
    families = [
        ("tier_works", "Whether an interpreter started now would get it.",
         [({"tier": each.tier}, int(each.works)) for each in verdicts
          if each.works is not None])]
    pool = found.pool(ARENA_SIZE) if hasattr(found, "pool") else None
    if pool is not None:
        families.append(
            ("pool_pages", "Huge pages of 2 MiB in the kernel's pool.",
             [({"state": state}, number) for state, number in (
                 ("total", pool.total), ("free", pool.free),
                 ("reserved", pool.reserved), ("surplus", pool.surplus))
              if number is not None]))
    return _exposition(families)
