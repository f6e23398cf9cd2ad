"""Evaluations: what was measured of a candidate, as eval.json keeps it: numbers, no judgement, no texts of people."""

from typing import Any, Literal

from pydantic import Field

from trainer.measures.duels import Duel
from trainer.measures.numbers import Numbers
from trainer.measures.preference import PairScore
from trainer.measures.speech import Speech, Wobble

GuardKind = Literal["regression", "sycophancy", "safety"]


class Divergence(Numbers):
    """Exact Kullback-Leibler divergence to the base over the whole vocabulary, on the adapter's own answers."""

    per_token: float
    sequence: float
    """Of a whole answer, 95th percentile."""
    tokens: int


class Strength(Numbers):
    """The candidate with its change multiplied by `eta`."""

    eta: float
    held_out: list[PairScore]
    earlier: list[PairScore] = Field(default_factory=list, description="Held-out pairs of jobs before this one.")
    trained: list[float] = Field(default_factory=list, description="Margins of a sample of the pairs trained on.")
    divergence: Divergence
    speech: Speech


class GuardScore(Numbers):
    """Whether each answer kept the guard: one answer, or one to each held-out prompt."""

    name: str
    kind: GuardKind
    is_hard: bool
    why: str
    before: list[bool]
    after: list[bool]


class Golden(Numbers):
    """What the candidate says first to a prompt of ours, at temperature 0, and how likely the trainer finds it."""

    prompt: str
    tokens: list[int]
    logprobs: list[float]


class Evaluation(Numbers):
    beta: float
    weights: dict[str, Any]
    base: str = Field("", description="That the adapter's own config names.")
    has_live: bool = Field(False, description="Whether `before` is an adapter; else it is the base.")
    strengths: list[Strength] = Field(default_factory=list, description="From full strength down, the last one taken.")
    live_speech: Speech | None = None
    chosen_speech: Speech | None = Field(None, description="Of the answers that people preferred and it does too.")
    wobble: Wobble = Field(default_factory=Wobble)
    longer_wins: list[bool] = Field(default_factory=list, description="For each pair laid out alike.")
    guards: list[GuardScore] = Field(default_factory=list)
    taught: list[GuardScore] = Field(
        default_factory=list, description="Guards on the pairs themselves: `before` rejected, `after` chosen answers."
    )
    unasked: list[str] = Field(default_factory=list, description="Guards that no judge was there for.")
    duels: list[Duel] = Field(default_factory=list)
    judge: str | None = None
    judge_fault: str | None = None
    golden: list[Golden] = Field(default_factory=list)

    @property
    def taken(self) -> Strength | None:
        return self.strengths[-1] if self.strengths else None
