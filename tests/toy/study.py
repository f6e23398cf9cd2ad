"""The study: which lessons are taught in a world, and what they are compared with."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import sqrt
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from tests.toy.exact import Measured

if TYPE_CHECKING:
    from tests.toy.lessons import School

BETAS = (4.0, 2.0, 1.0)
MIDDLE, LOW = BETAS[1:]
FLIPPED = 0.2
NO_BETA = 1e-6
GRID = 60

BASE = "the base"
SFT = "SFT on the chosen"
LEAKY = f"DPO without the SFT term, beta {LOW:g}"
TIGHT_WEIGHT = 0.5
TIGHT = f"DPO with an SFT weight of {TIGHT_WEIGHT:g}, beta {LOW:g}"
NOISY = f"DPO, beta {MIDDLE:g}, {FLIPPED:.0%} of the labels flipped"
NOISY_SFT = f"SFT on the chosen, {FLIPPED:.0%} of the labels flipped"
FIRST = f"round 1, beta {MIDDLE:g}, half of the pairs"
REPLAYED = "round 2 from the base, on both rounds' pairs"
CHAINED = "round 2 from round 1 as base, on the new pairs"


def dpo_at(beta: float) -> str:
    return f"DPO, beta {beta:g}"


WALK = (BASE, *map(dpo_at, BETAS))


@dataclass
class Study:
    """Of one world."""

    lessons: dict[str, Measured] = field(default_factory=dict)
    frontier: list[tuple[float, float]] = field(default_factory=list)
    """Divergence, and the most that can be gained there."""

    @classmethod
    def read(cls, found: dict[str, Any]) -> "Study":
        lessons = {name: Measured(**measured) for name, measured in found["lessons"].items()}
        return cls(lessons, [(at, gain) for at, gain in found["frontier"]])

    def written(self) -> dict[str, Any]:
        return asdict(self)

    def leak_cut(self, name: str) -> float:
        """How many times less goes outside than without the SFT term."""
        return self.lessons[LEAKY].leak / self.lessons[name].leak

    def gained(self, name: str) -> float:
        return self.lessons[name].reward - self.lessons[BASE].reward

    def above_sft(self) -> float:
        """Reward of DPO at SFT's divergence, on the line between the betas around it, less SFT's.

        The line is drawn over the root of the divergence, for near the base the best reward grows as that does.
        """
        sft = self.lessons[SFT]
        walk = [(sqrt(found.divergence), found.reward) for found in map(self.lessons.__getitem__, WALK)]
        for (left, low), (right, high) in pairwise(walk):
            if left <= sqrt(sft.divergence) < right:
                return low + (high - low) * (sqrt(sft.divergence) - left) / (right - left) - sft.reward
        raise AssertionError("SFT went further than DPO at the lowest beta")

    def rises(self) -> bool:
        """Reward and divergence both grow as beta falls."""
        walk = [self.lessons[name] for name in WALK]
        by_reward = sorted(walk, key=lambda found: found.reward)
        by_divergence = sorted(walk, key=lambda found: found.divergence)
        return walk == by_reward == by_divergence


def conduct(school: "School", count: int, *, is_small: bool) -> Iterator[tuple[str, Measured]]:
    """The lessons one by one; the small study has no noise and no rounds."""
    yield BASE, school.yardstick.measure(school.reference)
    pairs = school.pairs(count)
    for beta in BETAS:
        yield dpo_at(beta), school.lesson(pairs, beta=beta)
    yield LEAKY, school.lesson(pairs, beta=LOW, sft_weight=0.0)
    yield TIGHT, school.lesson(pairs, beta=LOW, sft_weight=TIGHT_WEIGHT)
    yield SFT, school.lesson(pairs, beta=NO_BETA, sft_weight=1.0)
    if is_small:
        return
    noisy = school.pairs(count, flipped=FLIPPED)
    yield NOISY, school.lesson(noisy, beta=MIDDLE)
    yield NOISY_SFT, school.lesson(noisy, beta=NO_BETA, sft_weight=1.0)
    yield from _rounds(school, count)


def _rounds(school: "School", count: int) -> Iterator[tuple[str, Measured]]:
    """The second round's pairs are answers of the first round's adapter, as a service gathers them."""
    old = school.pairs(count // 2)
    first = school.teach(old, beta=MIDDLE)
    yield FIRST, school.measure(first)
    new = school.pairs(count // 2, seed=2, policy=school.policy(first))
    yield REPLAYED, school.lesson([*old, *new], beta=MIDDLE)
    base = school.merged(first)
    yield CHAINED, school.measure(school.teach(new, base=base, beta=MIDDLE), base)


def frontier(school: "School", furthest: float) -> list[tuple[float, float]]:
    grid = [furthest * (step / GRID) ** 2 for step in range(GRID + 1)]
    yardstick = school.yardstick
    return [(at, yardstick.reward(yardstick.best_at(at)) - yardstick.start) for at in grid]


def spread(values: list[float], places: int = 2) -> str:
    """Mean and standard deviation over worlds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{places}f} ± {deviation:.{places}f}"
