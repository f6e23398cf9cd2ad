"""Preference: what margins on pairs say. A margin is the reward of the chosen answer less that of the rejected one,
a reward is beta times the log-probability ratio to the base (DPO, equation 5).
"""

from collections.abc import Sequence
from statistics import fmean

from feedback.proportions import Z95
from trainer.measures.numbers import Numbers
from trainer.measures.resampling import interval


class PairScore(Numbers):
    id: str
    before: float
    """Margin under what is live; under the base it is 0 for every pair."""
    after: float
    drift: float = 0.0
    """Change of the chosen answer's log-probability against the base, in nats a token."""


class Estimate(Numbers):
    """A mean, with the ends of its 90 % interval."""

    value: float
    low: float
    high: float


def estimate(values: Sequence[float], bunches: Sequence[str]) -> Estimate:
    low, high = interval(values, bunches)
    return Estimate(value=fmean(values), low=low, high=high)


def accuracy(margins: Sequence[float]) -> float:
    return fmean(margin > 0 for margin in margins)


def gain(scores: Sequence[PairScore], has_live: bool) -> list[float]:
    """For each pair what the candidate gets right more than what is live; against the base, a coin, half of it."""
    return [(score.after > 0) - ((score.before > 0) if has_live else 0.5) for score in scores]


def gap_at_least(train: Sequence[float], held_out: Sequence[float]) -> float:
    """Lower 95 % bound of how much better the pairs trained on are known than others (Newcombe 1998, method 1)."""
    here, there = accuracy(train), accuracy(held_out)
    spread = here * (1 - here) / len(train) + there * (1 - there) / len(held_out)
    return here - there - Z95 * float(spread**0.5)
