"""Strengths: which adapter wins, from choices between two of them at a time.

The model is Bradley and Terry's (1952): i beats j with the chance s_i / (s_i + s_j). Strengths are the maximum of the
likelihood, found by the MM iteration of Hunter (2004, "MM algorithms for generalized Bradley-Terry models", eq. 3); a
tie is half a win for both, and every adapter has tied half a game with an average one, so that one who won them all is
finite. Intervals are of the bootstrap (Efron 1979) in its Poisson form: of outcomes that came n times, Poisson(n) are
drawn, so the cost does not grow with the votes.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, sqrt

RESAMPLES = 200
"""The ends of a 95 % interval are the fifth of these from either side; steady to about a point."""

STEPS = 200
CLOSE = 1e-4
"""Relative change of the strengths at which the iteration ends: on a chain of twelve adapters it left the win rates
within a tenth of a point of those at 1e-7, which took sixty times as long."""

PRIOR = 0.5

Outcomes = tuple[tuple[str, str, int, int], ...]
"""Winner, loser, wins, ties. A tie is named once, by either."""

Game = tuple[int, int, int, int]
"""The same by the adapters' places."""


@dataclass(frozen=True)
class Strength:
    """`share`: chance of beating `against`, in an interval of 95 %; `of`: games this adapter was in."""

    share: float
    low: float
    high: float
    of: int
    against: str


def outcomes(counters: Mapping[str, int], among: Iterable[str]) -> Outcomes:
    """From the report's counters, between two of `among`; two answers of one adapter do not tell which is better."""
    some = set(among)
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for name, n in counters.items():
        kind, *names = name.split(" ")
        if kind in ("beat", "tied") and names[0] != names[1] and some.issuperset(names):
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
    names = sorted({name for one, other, _, _ in games for name in (one, other)})
    place = {name: i for i, name in enumerate(names)}
    played = [(place[one], place[other], wins, ties) for one, other, wins, ties in games]
    point = _fit(played, [1.0] * len(names))
    chance = random.Random(0)  # the same figures for the same votes
    drawn = [_fit(_resampled(played, chance), point) for _ in range(RESAMPLES)]
    edge, known = RESAMPLES // 40, place[reference]
    found: dict[str, Strength] = {}
    for i, name in enumerate(names):
        if i != known:
            shares = sorted(some[i] / (some[i] + some[known]) for some in drawn)
            share = point[i] / (point[i] + point[known])
            of = sum(wins + ties for one, other, wins, ties in played if i in (one, other))
            found[name] = Strength(share, shares[edge], shares[-1 - edge], of, reference)
    return found


def _fit(games: Iterable[Game], start: Sequence[float]) -> list[float]:
    """Strengths by place; `start` is a guess at them."""
    won = [PRIOR / 2] * len(start)
    met: dict[tuple[int, int], int] = defaultdict(int)
    for one, other, wins, ties in games:
        won[one] += wins + ties / 2
        won[other] += ties / 2
        met[min(one, other), max(one, other)] += wins + ties
    edges = [(one, other, n) for (one, other), n in met.items()]
    now = list(start)
    for _ in range(STEPS):
        weights = [PRIOR / (strength + 1) for strength in now]
        for one, other, n in edges:
            weight = n / (now[one] + now[other])
            weights[one] += weight
            weights[other] += weight
        new = [wins / weight for wins, weight in zip(won, weights, strict=True)]
        moved = max(abs(after / before - 1) for after, before in zip(new, now, strict=True))
        now = new
        if moved < CLOSE:
            break
    return now


def _resampled(games: Iterable[Game], chance: random.Random) -> list[Game]:
    return [(one, other, _poisson(wins, chance), _poisson(ties, chance)) for one, other, wins, ties in games]


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
