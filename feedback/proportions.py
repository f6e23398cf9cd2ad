"""Proportions: how sure a share can be that was counted on few."""

from math import comb, sqrt

Z95 = 1.959964
"""Two-sided 95 %."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, score interval): right at 0 and 1 and for small n, where Wald's fails."""
    if n == 0:
        return 0.0, 1.0
    share = hits / n
    scale = 1 + Z95**2 / n
    middle = (share + Z95**2 / (2 * n)) / scale
    half = Z95 / scale * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    # At 0 and 1 an end is the share itself, and rounding would put it beside.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def chance_of_losing(lost: int, won: int) -> float:
    """How often fair coins lose at least this many of `lost + won` tosses: the exact one-sided sign test.

    With the pairs on which two adapters disagree it is McNemar's test (1947) in its exact form, which holds for any n.
    """
    n = lost + won
    return sum(comb(n, k) for k in range(lost, n + 1)) / (1 << n)
