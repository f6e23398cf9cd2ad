"""Scores: does this voter judge like somebody who looks at the answers?

Agreement is measured against chance, as Cohen's kappa does (Cohen 1960, "A coefficient of agreement for nominal
scales"): chance is a voter who gives as many ups as this one and spreads them blindly over the answers. So neither who
votes everything up, nor everything down, nor by a coin, gets credit for agreeing, and who only ever reports bad answers
does, when they are bad. An honest voter is to lie at least half as far above chance as the median voter does; the
median, as neither a flood of votes nor a minority of voters moves it.

A voter is an outlier when it is surely below: by the exact binomial test (Clopper and Pearson 1934), at a level for
`n` ballots of level / (n (n + 1)), which sums to `level` over all n. So a voter who is as good as asked for is ever
quarantined with a chance of `level` at most, however often one looks, and almost all are better than that (the test
takes ballots for independent). Nobody is an outlier before three voters have ten measured ballots each.

A choice in a honeypot (feedback/queue.py) is measured against its known answer and not against the others, and counts
as any other ballot does: so a voter alone with its questions is measured too, and who errs in honeypots as a coin does
falls as far below as one who is outvoted that often. A tie takes no side, is not measured, and trains nothing either.

What it cannot tell: a majority that votes against the truth, and a taste that is rare but honest. An operator's release
stands against the score.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from feedback.ballots import Trial

MEASURED = 10
"""Ballots from which on a voter counts for the median: with fewer its kappa is mostly noise."""

JUDGES = 3
"""Voters so measured without whom there is no median to speak of."""


@dataclass(frozen=True)
class Score:
    """Counts of one voter. `thumbs` and `choices` are ballots that could be measured, `ups` are among the thumbs,
    `known` are the choices in honeypots, of which the voter `missed` some.
    """

    votes: int = 0
    thumbs: int = 0
    ups: int = 0
    choices: int = 0
    agreed: int = 0
    known: int = 0
    missed: int = 0

    @property
    def measured(self) -> int:
        return self.thumbs + self.choices

    @property
    def counts(self) -> list[int]:
        """As they are kept; `Score(*counts)` reads them."""
        return [self.votes, self.thumbs, self.ups, self.choices, self.agreed, self.known, self.missed]


@dataclass(frozen=True)
class Crowd:
    """`liked`: share of decided answers that were voted up. `kappa`: of the median voter; None before it is known."""

    liked: float
    kappa: float | None


@dataclass(frozen=True)
class Verdict:
    """`asked`: the agreement asked for. `chance`: how often a voter that good agrees as rarely as this one did."""

    agreement: float | None
    kappa: float | None
    asked: float | None
    chance: float
    is_outlier: bool


def of(trials: Iterable[Trial], votes: Mapping[str, int]) -> dict[str, Score]:
    """By voter; `votes` is how many each gave."""
    sums = {voter: Score(votes=given).counts for voter, given in votes.items()}
    for trial in trials:
        counts = sums[trial.ballot.voter]
        is_thumb = trial.ballot.kind == "thumb"
        counts[1] += is_thumb
        counts[2] += is_thumb and trial.ballot.side
        counts[3] += not is_thumb
        counts[4] += trial.agreed
        counts[5] += trial.ballot.expected is not None
        counts[6] += trial.ballot.expected is not None and not trial.agreed
    return {voter: Score(*counts) for voter, counts in sums.items()}


def crowd(scores: Iterable[Score], liked: int, disliked: int) -> Crowd:
    """`liked` and `disliked`: how many answers the voters decided on, either way."""
    share = (liked + 1) / (liked + disliked + 2)  # Laplace's rule: never quite 0 or 1, where chance would explain all
    kappas = [_kappa(score, share) for score in scores if score.measured >= MEASURED]
    return Crowd(share, median(kappas) if len(kappas) >= JUDGES else None)


def judge(score: Score, crowd: Crowd, level: float) -> Verdict:
    n = score.measured
    if n == 0 or crowd.kappa is None:
        return Verdict(score.agreed / n if n else None, None, None, 1.0, is_outlier=False)
    blind = _blind(score, crowd.liked)
    asked = blind + (1 - blind) * max(0.0, crowd.kappa) / 2
    chance = at_most(score.agreed, n, asked)
    is_outlier = n >= MEASURED and chance < level / (n * (n + 1))
    return Verdict(score.agreed / n, _kappa(score, crowd.liked), asked, chance, is_outlier)


def worst(verdicts: Mapping[str, Verdict]) -> str | None:
    """The outlier who is surest to be one; quarantining one by one keeps those it framed out of it."""
    outliers: Sequence[tuple[float, float, str]] = sorted(
        (verdict.chance, verdict.agreement or 0.0, voter) for voter, verdict in verdicts.items() if verdict.is_outlier
    )
    return outliers[0][2] if outliers else None


def at_most(hits: int, n: int, share: float) -> float:
    """P(X <= hits) for a binomial X: exact but for rounding, 0 where it is below 1e-300."""
    if hits >= n or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    if hits >= n * share:
        return 1.0  # at or above what is expected: the tail is a half or more, and nobody asks for its digits
    log_odds = math.log(share) - math.log1p(-share)
    term = math.lgamma(n + 1) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    largest = math.exp(term + hits * log_odds + n * math.log1p(-share))
    total, ratio = 0.0, 1.0
    for k in range(hits, -1, -1):  # below the mean the terms shrink, so the tail is summed from its largest
        total += ratio
        ratio *= k / (n - k + 1) / math.exp(log_odds)
        if ratio < total * 1e-16:
            break
    return min(1.0, largest * total)


def _blind(score: Score, liked: float) -> float:
    """The agreement to be expected of somebody who does not look."""
    ups = score.ups
    return (ups * liked + (score.thumbs - ups) * (1 - liked) + score.choices / 2) / score.measured


def _kappa(score: Score, liked: float) -> float:
    blind = _blind(score, liked)
    return (score.agreed / score.measured - blind) / (1 - blind)
