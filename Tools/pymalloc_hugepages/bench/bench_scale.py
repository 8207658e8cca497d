#!/usr/bin/env python3
"""One workload in several sizes: bench_scale.py NAME...

The command line is that of bench_obmalloc.py.  The work is arena_pressure's:
one unit of it is what that workload does.  Whether the cost of a unit stays
the same as the work grows is what these are for.
"""

import sys

import benchlib         # lets bench_obmalloc be found
import bench_obmalloc


# Units of work, by the workload's name.
UNITS = {f"arena_pressure_x{units}": units for units in (1, 4, 16)}

# Bytes that one unit needs: two million buffers of 256 bytes, their objects,
# and ten lists of them.  Measured: 663 MiB at peak, on plain pages.
UNIT_MEMORY = 700 << 20


def arena_pressure(units):
    """Hold two million buffers at once, times units."""
    layers = [[bytearray(256) for _ in range(200_000)]
              for _ in range(10 * units)]


def memory_needed(names):
    """Bytes that each of these workloads can do with; 0 if none is of here."""
    return max((UNITS.get(name, 0) for name in names), default=0) * UNIT_MEMORY


WORKLOADS = {name: (lambda units=units: arena_pressure(units))
             for name, units in UNITS.items()}


if __name__ == "__main__":
    sys.exit(bench_obmalloc.main(sys.argv[1:], WORKLOADS, "bench_scale.py"))
