"""The gate: may this adapter speak?

Each criterion (trainer/criteria.py) is one question with its numbers, its limit and its reason. One that fails keeps
the adapter off the air; one that cannot be settled from here makes it wait for an operator; the rest is told. What is
surely wrong is refused and what chance explains is not: at 50 pairs an accuracy of 0.65 is only known to 13 points.
"""

from typing import Literal

from pydantic import BaseModel, Field

from trainer import criteria
from trainer.criteria import Criterion
from trainer.electorate import Electorate
from trainer.evaluation import Evaluation
from trainer.limits import Limits

Decision = Literal["pass", "canary-only", "fail"]


class Verdict(BaseModel):
    decision: Decision
    passed: bool = Field(description="That it may go live by itself.")
    reasons: list[str]
    criteria: list[Criterion] = Field(default_factory=list)
    numbers: dict[str, float] = Field(default_factory=dict)
    eta: float = Field(1.0, description="Share of its strength that it is published with.")


class Preflight(BaseModel):
    """What vLLM's own loader said, and whether it was asked."""

    is_checked: bool = False
    fault: str | None = None
    trouble: str | None = Field(None, description="Why it could not be asked, which is no fault of the adapter.")


def judge(found: Evaluation, limits: Limits, electorate: Electorate, preflight: Preflight) -> Verdict:
    files = criteria.loads(found, preflight.is_checked, preflight.fault, preflight.trouble)
    if files.outcome == "fail":
        return _verdict(found, [files])
    if found.taken is None:
        unmeasured = "the adapter could not be measured on the held-out pairs"
        return _verdict(found, [files.model_copy(update={"outcome": "fail", "reason": unmeasured})])
    return _verdict(
        found,
        [
            criteria.learning(found, limits, electorate),
            files,
            criteria.margin(found, limits, electorate),
            criteria.earlier(found, electorate),
            criteria.voters(electorate, limits),
            criteria.length_votes(found, limits),
            criteria.taught(found),
            criteria.drift(found, limits),
            criteria.divergence(found, limits),
            criteria.looks(found, limits),
            criteria.judged(found, limits),
            criteria.guarded(found, is_hard=False),
            criteria.guarded(found, is_hard=True),
        ],
    )


def _verdict(found: Evaluation, asked: list[Criterion]) -> Verdict:
    outcomes = {one.outcome for one in asked}
    decision: Decision = "fail" if "fail" in outcomes else "canary-only" if "hold" in outcomes else "pass"
    weighty = {"fail": ("fail",), "canary-only": ("hold",), "pass": ("warn",)}[decision]
    eta = found.taken.eta if found.taken else 1.0
    reasons = [one.reason for one in asked if one.outcome in weighty]
    # What it learnt comes first, whatever else there is to say.
    if decision == "pass" and asked[0].reason not in reasons:
        reasons.insert(0, asked[0].reason)
    if eta < 1 and decision != "fail":
        reasons.append(f"at full strength it went too far, so it is published with {eta:.0%} of it")
    return Verdict(
        decision=decision,
        passed=decision == "pass",
        reasons=reasons,
        criteria=sorted(asked, key=lambda one: one.id),
        numbers=_headline(asked) | {"eta": eta},
        eta=eta,
    )


def _headline(asked: list[Criterion]) -> dict[str, float]:
    """The few numbers that lists show: of learning, and how far it went."""
    kept: dict[str, float] = {}
    for one in asked:
        if one.id in ("G1", "G2"):
            kept |= one.numbers
        elif one.id == "G4":
            kept |= {"divergence": one.numbers["per_token"]} if "per_token" in one.numbers else {}
    return kept
