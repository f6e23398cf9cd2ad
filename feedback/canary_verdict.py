"""What is known of a canary, in numbers and in words, and what follows from it.

Four questions are asked after every look: whether people vote it up as often as what is live, and three guards, whether
it fails, refuses, or goes on longer (or shorter) than it may. All are asked of intervals that hold at all times at once
(feedback/confidence.py), so a verdict may be had as soon as it is there. What is surely worse goes back; what is surely
not worse by more than the margin goes live, once it has met enough people; neither in all the time means undecided.
"""

import math
from typing import Literal

from pydantic import BaseModel, Field

from feedback.canary import Canary
from feedback.canary_counts import Counts, Side
from feedback.confidence import Region, Sample
from feedback.settings import LedgerSettings

Decision = Literal["promote", "roll_back", "undecided", "wait"]
Name = Literal["up_votes", "errors", "refusals", "length"]

GUARDS = 3
HOUR_S = 3600


class Share(BaseModel):
    """A mean and of how many; of `length` in tokens, cut at HEED_CANARY_LENGTH_TOKENS."""

    mean: float | None
    of: int


class Question(BaseModel):
    name: Name
    control: Share
    canary: Share
    low: float = Field(
        description="Of the canary's less the control's share; of length, the canary's by the control's."
    )
    high: float | None = Field(description="None where there is no upper end yet.")
    sure: float = Field(description="The chance that this interval is right at every look there ever is.")
    limit: float = Field(description="What is held against it.")
    outcome: Literal["open", "worse", "not_worse", "better", "too_much", "too_little", "within"]
    words: str


class Verdict(BaseModel):
    decision: Decision
    reason: str
    questions: list[Question]


def judge(canary: Canary, counts: Counts, limits: LedgerSettings, now: float) -> Verdict:
    """What should become of it. Pure: the same counts and time give the same verdict."""
    votes = _votes(counts, limits)
    guards = [
        _share("errors", counts, limits, limits.canary_error_margin),
        _share("refusals", counts, limits, limits.canary_refusal_margin),
        _length(counts, limits),
    ]
    decision, reason = _decide(canary, counts, votes, guards, limits, now)
    return Verdict(decision=decision, reason=reason, questions=[votes, *guards])


def _decide(
    canary: Canary, counts: Counts, votes: Question, guards: list[Question], limits: LedgerSettings, now: float
) -> tuple[Decision, str]:
    for guard in guards:
        if guard.outcome in ("too_much", "too_little"):
            return "roll_back", guard.words
    if votes.outcome == "worse":
        return "roll_back", votes.words
    age_s = now - canary.since
    if votes.outcome in ("better", "not_worse"):
        if counts.canary.units < limits.canary_min_units:
            return (
                "wait",
                f"{votes.words}; it has answered {counts.canary.units} units of the {limits.canary_min_units} it takes",
            )
        if age_s < limits.canary_min_hours * HOUR_S:
            return (
                "wait",
                f"{votes.words}; it has run for {age_s / HOUR_S:.1f} of the {limits.canary_min_hours:g} hours it takes",
            )
        return "promote", votes.words
    if age_s >= limits.canary_max_hours * HOUR_S:
        return "undecided", f"undecided after {limits.canary_max_hours:g} hours: {votes.words}"
    return "wait", votes.words


def _votes(counts: Counts, limits: LedgerSettings) -> Question:
    region = Region(counts.control.votes, counts.canary.votes, limits.canary_level / 2)
    low, high = region.difference()
    margin = limits.canary_margin
    outcome: Literal["open", "worse", "not_worse", "better"] = "open"
    if high < 0:
        outcome = "worse"
    elif low > 0:
        outcome = "better"
    elif low > -margin:
        outcome = "not_worse"
    if not (region.canary.n and region.control.n):
        words = f"it has {region.canary.n} votes and what is live {region.control.n}: both sides need some"
        return _question("up_votes", region, low, high, margin, outcome, words)
    seen = f"{_of(region.canary)} voted it up and {_of(region.control)} what is live"
    meaning = {
        "worse": "it is worse",
        "better": "it is better",
        "not_worse": f"it is not worse by more than {_points(margin)}",
        "open": "which is neither worse nor surely good enough yet",
    }[outcome]
    return _question("up_votes", region, low, high, margin, outcome, f"{seen} ({_between(low, high)}): {meaning}")


def _share(name: Literal["errors", "refusals"], counts: Counts, limits: LedgerSettings, margin: float) -> Question:
    def of(side: Side) -> Sample:
        return side.errors if name == "errors" else side.refusals

    region = Region(of(counts.control), of(counts.canary), limits.canary_level / 2 / GUARDS)
    low, high = region.difference()
    outcome: Literal["open", "too_much", "within"] = (
        "too_much" if low > margin else "within" if high <= margin else "open"
    )
    what = "failed" if name == "errors" else "was a refusal"
    seen = f"of its answers {_of(region.canary)} {what} and of the live ones {_of(region.control)}"
    meaning = {
        "too_much": f"surely more than {_points(margin)} beyond",
        "within": f"surely within {_points(margin)}",
        "open": "nothing is sure yet",
    }[outcome]
    return _question(name, region, low, high, margin, outcome, f"{seen} ({_between(low, high)}): {meaning}")


def _length(counts: Counts, limits: LedgerSettings) -> Question:
    region = Region(counts.control.lengths, counts.canary.lengths, limits.canary_level / 2 / GUARDS)
    low, high = region.ratio()
    most, longest = limits.canary_length_ratio, limits.canary_length_tokens
    outcome: Literal["open", "too_much", "too_little", "within"] = "open"
    if low > most:
        outcome = "too_much"
    elif high < 1 / most:
        outcome = "too_little"
    elif low >= 1 / most and high <= most:
        outcome = "within"
    canary, control = (_tokens(one, longest) for one in (region.canary, region.control))
    seen = f"its answers are {canary} tokens long and the live ones {control} ({low:.2f} to {_end(high)} times)"
    meaning = {
        "too_much": f"surely more than {most:g} times as long",
        "too_little": f"surely under 1/{most:g} of the length",
        "within": f"surely within {most:g} times",
        "open": "nothing is sure yet",
    }[outcome]
    found = _question("length", region, low, high, most, outcome, f"{seen}: {meaning}")
    for share in (found.control, found.canary):
        share.mean = None if share.mean is None else share.mean * longest
    return found


def _question(
    name: Name,
    region: Region,
    low: float,
    high: float,
    limit: float,
    outcome: Literal["open", "worse", "not_worse", "better", "too_much", "too_little", "within"],
    words: str,
) -> Question:
    return Question(
        name=name,
        control=Share(mean=region.control.mean, of=region.control.n),
        canary=Share(mean=region.canary.mean, of=region.canary.n),
        low=low,
        high=high if math.isfinite(high) else None,
        sure=1 - region.level,
        limit=limit,
        outcome=outcome,
        words=words,
    )


def _of(sample: Sample) -> str:
    return f"{sample.total:g} of {sample.n}" + (f" ({sample.mean:.0%})" if sample.mean is not None else "")


def _between(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f} points"


def _points(share: float) -> str:
    return f"{100 * share:g} points"


def _tokens(sample: Sample, longest: int) -> str:
    return "no" if sample.mean is None else f"{sample.mean * longest:.0f}"


def _end(high: float) -> str:
    return f"{high:.2f}" if math.isfinite(high) else "any"
