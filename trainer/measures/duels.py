"""Duels: one prompt, two answers, a judge who says which is better, asked in both orders.

A judge likes the first answer and the longer one for no reason of theirs. The first is met by asking twice: only a
judge who says the same in both orders has said something. The second by a logistic regression on the difference of
lengths, whose intercept is the win rate between answers of one length (AlpacaEval 2, Dubois 2404.04475).
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from trainer.measures.numbers import Numbers
from trainer.measures.preference import Estimate
from trainer.measures.resampling import interval

RIDGE = 0.05
"""Keeps the slope finite when the longer answer always won."""
STEPS = 50


class Duel(Numbers):
    first: float
    """What the candidate got when its answer came first: 1, 0, or 0.5 for a tie."""
    second: float
    longer: float
    """Candidate's length less the other's, in characters."""

    @property
    def score(self) -> float:
        return (self.first + self.second) / 2


def win_rate(duels: Sequence[Duel]) -> Estimate:
    """Length-controlled; its interval is that of the plain scores, laid around it."""
    scores = [duel.score for duel in duels]
    plain = fmean(scores)
    low, high = interval(scores, [str(index) for index in range(len(scores))])
    controlled = at_equal_length(scores, [duel.longer for duel in duels])
    return Estimate(value=controlled, low=controlled + low - plain, high=controlled + high - plain)


def at_equal_length(scores: Sequence[float], longer: Sequence[float]) -> float:
    """Share of wins if all answers were as long as their rivals: sigmoid of the intercept, by Newton's method."""
    spread = pstdev(longer)
    if spread == 0 and not any(longer):
        return fmean(scores)
    scale = spread or max(map(abs, longer))
    lengths = [length / scale for length in longer]
    base = slope = 0.0
    for _ in range(STEPS):
        odds = [1 / (1 + math.exp(-max(-30.0, min(30.0, base + slope * x)))) for x in lengths]
        weights = [max(p * (1 - p), 1e-9) for p in odds]
        down = sum(s - p for s, p in zip(scores, odds, strict=True)) - RIDGE * base
        across = sum((s - p) * x for s, p, x in zip(scores, odds, lengths, strict=True)) - RIDGE * slope
        a = sum(weights) + RIDGE
        b = sum(w * x for w, x in zip(weights, lengths, strict=True))
        c = sum(w * x * x for w, x in zip(weights, lengths, strict=True)) + RIDGE
        determinant = a * c - b * b
        move = (c * down - b * across) / determinant
        base += move
        slope += (a * across - b * down) / determinant
        if abs(move) < 1e-9:
            break
    return 1 / (1 + math.exp(-base))
