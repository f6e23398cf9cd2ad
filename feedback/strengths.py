"""Strengths: which adapter wins, from choices between two of them at a time.

The model is Bradley and Terry's (1952): i beats j with the chance s_i / (s_i + s_j). Strengths are the maximum of the
likelihood, found by the MM iteration of Hunter (2004, "MM algorithms for generalized Bradley-Terry models", eq. 3); a
tie is half a win for both, and every adapter has tied half a game with an average one, so that one who won them all is
finite. Intervals are of the bootstrap (Efron 1979) in its Poisson form: of outcomes that came n times, Poisson(n) are
drawn, so the cost does not grow with the votes.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, sqrt

RESAMPLES = 200
"""The ends of a 95 % interval are the fifth of these from either side; steady to about a point."""

STEPS = 200
CLOSE = 1e-4
"""Relative change of the strengths at which the iteration ends: a hundredth of a point of a win rate."""

PRIOR = 0.5

Outcomes = tuple[tuple[str, str, int, int], ...]
"""Winner, loser, wins, ties. A tie is named once, by either."""


@dataclass(frozen=True)
class Strength:
    """`share`: chance of beating `against`, in an interval of 95 %; `of`: games this adapter was in."""

    share: float
    low: float
    high: float
    of: int
    against: str


def outcomes(counters: Mapping[str, int]) -> Outcomes:
    """From the report's counters. Two answers of one adapter say nothing of which is better."""
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for name, n in counters.items():
        kind, *names = name.split(" ")
        if kind in ("beat", "tied") and names[0] != names[1]:
            found[names[0], names[1]][kind == "tied"] += n
    return tuple((one, other, wins, ties) for (one, other), (wins, ties) in sorted(found.items()))


@lru_cache(maxsize=16)
def strengths(games: Outcomes, base: str) -> dict[str, Strength]:
    """By adapter, against the base; against the first by name, for those who never met the base, even by others."""
    found: dict[str, Strength] = {}
    for names in _groups(games):
        if len(names) > 1:
            among = tuple(game for game in games if game[0] in names)
            found |= _within(among, base if base in names else min(names))
    return found


def _within(games: Outcomes, reference: str) -> dict[str, Strength]:
    point = _fit(games, {})
    played: dict[str, int] = defaultdict(int)
    for one, other, wins, ties in games:
        played[one] += wins + ties
        played[other] += wins + ties
    chance = random.Random(0)  # the same figures for the same votes
    drawn = [_fit(_resampled(games, chance), point) for _ in range(RESAMPLES)]
    edge = RESAMPLES // 40
    found: dict[str, Strength] = {}
    for name in point:
        if name != reference:
            shares = sorted(_wins(some, name, reference) for some in drawn)
            share = _wins(point, name, reference)
            found[name] = Strength(share, shares[edge], shares[-1 - edge], played[name], reference)
    return found


def _fit(games: Outcomes, start: Mapping[str, float]) -> dict[str, float]:
    won: dict[str, float] = defaultdict(float)
    met: dict[tuple[str, str], int] = defaultdict(int)
    for one, other, wins, ties in games:
        won[one] += wins + ties / 2
        won[other] += ties / 2
        met[min(one, other), max(one, other)] += wins + ties
    now = {name: start.get(name, 1.0) for name in won}
    for _ in range(STEPS):
        weights = {name: PRIOR / (strength + 1) for name, strength in now.items()}
        for (one, other), n in met.items():
            weight = n / (now[one] + now[other])
            weights[one] += weight
            weights[other] += weight
        new = {name: (won[name] + PRIOR / 2) / weights[name] for name in now}
        moved = max(abs(new[name] / now[name] - 1) for name in now)
        now = new
        if moved < CLOSE:
            break
    return now


def _wins(strengths: Mapping[str, float], name: str, other: str) -> float:
    return strengths[name] / (strengths[name] + strengths[other])


def _resampled(games: Outcomes, chance: random.Random) -> Outcomes:
    return tuple((one, other, _poisson(wins, chance), _poisson(ties, chance)) for one, other, wins, ties in games)


def _poisson(mean: int, chance: random.Random) -> int:
    if mean > 50:  # its normal limit is then closer than the bootstrap is to the truth
        return max(0, round(chance.gauss(mean, sqrt(mean))))
    drawn, product, floor = -1, 1.0, exp(-mean)
    while product > floor:
        product *= chance.random()
        drawn += 1
    return drawn if mean else 0


def _groups(games: Outcomes) -> list[set[str]]:
    """Adapters that met, directly or by others."""
    groups: list[set[str]] = []
    for one, other, wins, ties in games:
        if wins + ties:
            touched = [group for group in groups if one in group or other in group]
            groups = [group for group in groups if group not in touched]
            groups.append({one, other}.union(*touched))
    return groups
