"""Resampling: how sure a mean is when what it is the mean of comes in bunches.

Ten held-out pairs of one voter are not ten opinions, so voters are drawn and not pairs (cluster bootstrap: Cameron,
Gelbach and Miller 2008). Seeded: the same numbers give the same interval, so a verdict can be repeated.
"""

import random
from collections.abc import Sequence

DRAWS = 1000
LEVEL = 0.90
"""Of the two-sided interval: each of its ends is a one-sided bound of 95 %."""

FEWEST_BUNCHES = 5
"""Under five bunches hardly anything is left to draw; pairs are drawn then, and the interval is too narrow."""


def interval(values: Sequence[float], bunches: Sequence[str], draws: int = DRAWS) -> tuple[float, float]:
    """Of the mean of `values`, each of which belongs to a bunch."""
    if not values:
        return float("-inf"), float("inf")
    sums: dict[str, list[float]] = {}
    named = bunches if len(set(bunches)) >= FEWEST_BUNCHES else [str(index) for index in range(len(values))]
    for value, bunch in zip(values, named, strict=True):
        total = sums.setdefault(bunch, [0.0, 0.0])
        total[0] += value
        total[1] += 1
    groups = list(sums.values())
    chance = random.Random(len(values))
    means = []
    for _ in range(draws):
        drawn = chance.choices(groups, k=len(groups))
        means.append(sum(group[0] for group in drawn) / sum(group[1] for group in drawn))
    means.sort()
    return quantile(means, (1 - LEVEL) / 2), quantile(means, (1 + LEVEL) / 2)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours; of an ascending sequence that is not empty."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
