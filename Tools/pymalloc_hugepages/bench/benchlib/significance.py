"""Whether two samples differ by more than chance: the Mann-Whitney U test.

It asks how often a value of one is larger than one of the other, so that no
outlier decides.  Python's own library looks the result up.  A library with the
whole test is scipy, of 150 MB with what it needs; Debian 12 has no pyperf.
"""

import collections
import math
import statistics


# As pyperf's: a difference is significant if chance makes it less often.
LEVEL = 0.05


def p_value(first, second):
    """How often chance alone makes two samples of one quantity differ as much
    as these do, or more: scipy.stats.mannwhitneyu(first, second,
    method="asymptotic").  Of three values each it is above LEVEL."""
    n, m = len(first), len(second)
    larger = sum((x > y) + (x == y) / 2 for x in first for y in second)
    ties = sum(count ** 3 - count
               for count in collections.Counter([*first, *second]).values())
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    if not variance:
        return 1.0
    z = (abs(larger - n * m / 2) - 0.5) / math.sqrt(variance)
    return min(1.0, 2 * statistics.NormalDist().cdf(-z))
