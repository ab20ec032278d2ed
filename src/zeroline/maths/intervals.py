"""Confidence intervals of what is counted: a share, and a median. No distribution of the values is assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); never outside 0..1, of use for few and for extreme counts too.

    >>> [round(v, 3) for v in wilson(8, 10)]
    [0.49, 0.943]
    """
    if count < 1:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and an interval that holds the population's with at least ``confidence``: two order statistics (infinite values included).

    With k the largest number such that a fair coin shows k or fewer heads in n throws with probability at most (1 - confidence) / 2, the interval is
    from the (k+1)-th smallest value to the (k+1)-th largest; the whole range where n is too small for any.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    (5.5, 2, 9)
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return math.nan, -math.inf, math.inf
    tail, k = 0.0, -1
    while (tail := tail + math.comb(n, k + 1) / 2**n) <= (1 - confidence) / 2:
        k += 1
    low, high = (ordered[k], ordered[n - 1 - k]) if k >= 0 else (ordered[0], ordered[-1])
    a, b = ordered[(n - 1) // 2], ordered[n // 2]
    return (a if a == b else (a + b) / 2), low, high
