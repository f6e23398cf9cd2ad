"""Sampling: which of the standing pairs a job takes, and how often each.

From the base (`Recent`) every pair takes part. How often it is expected is its age, halved every so many pairs that
came after it, times how much its kind of opinion is trusted. The seed and the pair's id decide the rest, so the same
pairs give the same choice and one more vote changes little of it. A job that goes on from the live adapter (`Replay`)
takes what is new and a share of the old.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from feedback import caps
from feedback.caps import Caps
from feedback.records import Source, Split, digest

UNCAPPED = Caps()

# Who chose between two answers, or wrote the better one, compared them. Behind a pair of thumbs are often two people
# who each saw one answer and may mean different things by "good", so it counts half: an estimate, not a measurement.
# Trust is held against the mean of the dataset: thumbs that are all there is lose nothing by it. It reaches training as
# repetition, for TRL's losses have no weight of a row, and a repeated row is as inspectable as any other.
TRUST: Mapping[Source, float] = {"preference": 1.0, "comparison": 1.0, "correction": 1.0, "thumbs": 0.5}

FAINTEST = 1e-12
"""Of the oldest pairs, so that there is an order among them when they are needed to have the least."""

SPLITS: tuple[Split, ...] = ("train", "held_out")


class Lesson(caps.Lesson, Protocol):
    """A pair, or a rated answer that is in none."""

    @property
    def source(self) -> Source: ...
    @property
    def split(self) -> Split: ...
    @property
    def weight(self) -> float: ...
    @property
    def created(self) -> float: ...


@dataclass(frozen=True)
class Recent:
    """All pairs, those that `half_life` others came after half as often; about `most` on a side.

    A pair ages from the end of the round (the start of a job that succeeded) in which it was learnt first: with no new
    vote nothing is older than it was for the last job, and the same seed draws the same lessons.
    """

    half_life: float
    most: int
    rounds: Sequence[float] = ()


@dataclass(frozen=True)
class Replay:
    """All pairs that no adapter has learnt, and so many old ones as a share of them; with nothing new, everything."""

    share: float


@dataclass(frozen=True)
class Least:
    """How many pairs a dataset must have on each side."""

    train: int
    held_out: int


@dataclass(frozen=True)
class Selection:
    """Ids of both halves, an id as often as its pair is to be a row; `capped` pairs would have been among them."""

    ids: list[str]
    replayed: int
    capped: int = 0


def choose(
    standing: Sequence[Lesson],
    waiting: Sequence[str],
    how: Recent | Replay,
    seed: int,
    least: Least,
    limits: Caps = UNCAPPED,
) -> Selection:
    """`standing` are pairs that can teach, `waiting` those of them that no adapter has learnt.

    What is over a cap is left out last, on each side for itself: neither the lessons nor the gate may be one voter's.
    """
    if isinstance(how, Recent):
        copies = _by_age(standing, how, seed, least)
    else:
        copies = _with_replay(standing, waiting, how.share, seed, least)
    kept: set[str] = set()
    for split in SPLITS:
        kept |= caps.within([pair for pair in standing if pair.id in copies and pair.split == split], limits)
    unlearnt = set(waiting)
    return Selection(
        ids=sorted(i for i in kept for _ in range(copies[i])),
        replayed=len(kept - unlearnt),
        capped=len(copies.keys() - kept),
    )


def ages(standing: Sequence[Lesson], rounds: Sequence[float]) -> dict[str, int]:
    """For each pair, how many others came after the round that it was new in."""
    came, ends = sorted(pair.created for pair in standing), sorted(rounds)
    found: dict[str, int] = {}
    for pair in standing:
        end = bisect_left(ends, pair.created)
        found[pair.id] = len(came) - bisect_right(came, ends[end]) if end < len(ends) else 0
    return found


def _by_age(standing: Sequence[Lesson], how: Recent, seed: int, least: Least) -> dict[str, int]:
    age = ages(standing, how.rounds)
    fresh = {pair.id: max(FAINTEST, 0.5 ** (age[pair.id] / how.half_life)) for pair in standing}
    copies: dict[str, int] = {}
    for split, enough in (("train", least.train), ("held_out", least.held_out)):
        side = {pair.id: pair for pair in standing if pair.split == split}
        expected = {i: fresh[i] for i in side}
        if split == "train" and side:  # the other half is what users say now, each of them once
            trust = {i: TRUST[pair.source] * pair.weight for i, pair in side.items()}
            mean = math.fsum(fresh[i] * trust[i] for i in side) / math.fsum(fresh[i] for i in side)
            expected = {i: fresh[i] * trust[i] / mean for i in side}
        scale = min(1.0, how.most / (math.fsum(expected.values()) or 1))
        chance = {i: _chance(seed, i) for i in side}
        taken = {i: math.floor(scale * expected[i] + 1 - chance[i]) for i in side}
        copies |= {i: count for i, count in taken.items() if count}
        left = sorted((chance[i] / expected[i], i) for i, count in taken.items() if not count)
        copies |= {i: 1 for _, i in left[: max(0, enough - len(side) + len(left))]}
    return copies


def _with_replay(
    standing: Sequence[Lesson], waiting: Sequence[str], share: float, seed: int, least: Least
) -> dict[str, int]:
    """Old pairs in an order that the seed shuffles, by the share, and as many more as it takes to have the least."""
    unlearnt = set(waiting)
    new = [pair for pair in standing if pair.id in unlearnt]
    if not new:
        return {pair.id: 1 for pair in standing}
    old = sorted((pair for pair in standing if pair.id not in unlearnt), key=lambda pair: digest(str(seed), pair.id))
    taken = [pair.id for pair in new]
    for split, enough in (("train", least.train), ("held_out", least.held_out)):
        fresh = sum(pair.split == split for pair in new)
        count = max(math.ceil(share * fresh), enough - fresh)
        taken += [pair.id for pair in old if pair.split == split][:count]
    return dict.fromkeys(taken, 1)


def _chance(seed: int, pair_id: str) -> float:
    """Evenly between 0 and 1, never 0, so that a whole number of expected copies is that number."""
    return (int(digest(str(seed), pair_id)[:13], 16) + 1) / 16**13
