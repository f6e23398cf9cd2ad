"""The gate: may this adapter speak?

It stops what is broken (weights that are not finite, not of the right shape, or say what vLLM cannot serve) and what
is surely worse than its parent on held-out pairs. A candidate may get fewer of those right and still pass when the
difference is what chance gives: at 50 pairs an accuracy of 0.65 is only known to 13 points, so a fixed tolerance
would turn good adapters away at random. It therefore asks two things before it says no: that the loss is larger than
the tolerance, and that an equal adapter would lose as much less than once in twenty times (exact McNemar test).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from feedback.proportions import chance_of_losing

SIGNIFICANCE = 0.05
FEW = 30
"""Below it, even a loss of a quarter of the pairs can be chance; the verdict says so."""


class Score(BaseModel):
    accuracy: float
    margin: float


class Delta(BaseModel):
    """Reward margin of one held-out pair, under the parent and under the candidate."""

    before: float
    after: float


class Evaluation(BaseModel):
    """What the gate reads of eval.json, see trainer/evaluate.py."""

    pairs: int
    weights: dict[str, Any]
    before: Score | None = None
    after: Score | None = None
    deltas: list[Delta] = Field(default_factory=list)


class Verdict(BaseModel):
    passed: bool
    reasons: list[str]
    numbers: dict[str, float] = Field(default_factory=dict)


def judge(report: Evaluation, tolerance: float, has_parent: bool) -> Verdict:
    """Without a parent the candidate is measured against the base, which prefers neither answer: a coin."""
    if unsound := _faults(report.weights):
        return Verdict(passed=False, reasons=unsound)
    if report.before is None or report.after is None:
        return Verdict(passed=False, reasons=["the adapter could not be measured on the held-out pairs"])
    lost, won = _lost_and_won(report.deltas, has_parent)
    chance = chance_of_losing(lost, won)
    drop = report.before.accuracy - report.after.accuracy
    numbers = {
        "pairs": report.pairs,
        "accuracy_before": report.before.accuracy,
        "accuracy": report.after.accuracy,
        "margin_before": report.before.margin,
        "margin": report.after.margin,
        "lost": lost,
        "won": won,
        "chance": chance,
        "tolerance": tolerance,
    }
    compared = (
        f"held-out accuracy {report.after.accuracy:.2f} against {report.before.accuracy:.2f} of "
        f"{'its parent' if has_parent else 'the base, a coin'}, on {report.pairs} pairs"
    )
    if drop > tolerance and chance < SIGNIFICANCE:
        against = f"it lost {lost} pairs and won {won}, which an equal adapter does with a chance of {chance:.1%}"
        return Verdict(passed=False, reasons=[f"{compared}: {against}"], numbers=numbers)
    reasons = [compared]
    if drop > 0:
        reasons.append(f"the loss may be chance ({chance:.0%}) or is within {tolerance:.0%}")
    if report.pairs < FEW:
        reasons.append(f"{report.pairs} held-out pairs can only show a disaster; collect votes on more prompts")
    return Verdict(passed=True, reasons=reasons, numbers=numbers)


def _faults(weights: Mapping[str, Any]) -> list[str]:
    said = [str(reason) for reason in weights.get("reasons") or []]
    for key in ("finite", "shapes", "config"):
        if weights.get(key) is not True and not said:
            said.append(f"the adapter's files did not pass the check {key!r}")
    return said


def _lost_and_won(deltas: Sequence[Delta], has_parent: bool) -> tuple[int, int]:
    right = [(delta.before > 0, delta.after > 0) for delta in deltas]
    if not has_parent:
        return sum(not after for _, after in right), sum(after for _, after in right)
    return sum(b and not a for b, a in right), sum(a and not b for b, a in right)
