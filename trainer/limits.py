"""Limits: how far a candidate may go, by the size of its base, and why.

A pocket model is meant to be turned over by a few hundred votes: a habit goes from 30 % to 94 %, which no real
assistant should do in a round. Its limits are measured (docs/gate.md); those of real models are engineering defaults
with their sources, each of them a setting.
"""

from typing import Final

from pydantic import BaseModel

from trainer.hyperparameters import TINY_WIDTH
from trainer.settings import WorkshopSettings


class Limits(BaseModel):
    tolerance: float
    """Held-out accuracy that may be lost."""
    gap: float
    """How much better pairs trained on may be known than pairs held out, beyond chance."""
    drift: float
    """Nats a token that chosen answers may lose (likelihood displacement: Razin 2410.08847)."""
    divergence: float
    """Nats a token from the base on the adapter's own answers (over-optimisation: Rafailov 2406.02900)."""
    sequence: float
    """Nats of a whole answer, 95th percentile."""
    length: float
    """Factor by which answers may be longer; its inverse, shorter."""
    ended: float
    repeated: float
    marks: float
    win_rate: float
    """Least length-controlled win rate against what is live; under one half, as it need only be no worse."""
    longer_wins: float
    """Share of pairs laid out alike whose chosen answer is surely the longer: length may be all that was voted on."""
    voter_share: float
    """Share of a job's pairs that may rest on one voter for it to go live by itself."""


REAL: Final = Limits(
    tolerance=0.03,
    gap=0.20,
    drift=0.05,
    divergence=0.10,
    sequence=30.0,
    length=1.33,
    ended=0.02,
    repeated=0.02,
    marks=2.0,
    win_rate=0.45,
    longer_wins=0.92,
    voter_share=0.50,
)

TINY: Final = REAL.model_copy(update={"gap": 0.30, "divergence": 0.30, "length": 1.5, "ended": 0.05, "repeated": 0.03})


def by_width(hidden_size: int) -> Limits:
    return TINY if hidden_size <= TINY_WIDTH else REAL


def of(base: str, settings: WorkshopSettings) -> Limits:
    """By the size of the base, as far as the operator does not say otherwise."""
    from trainer.weights import base_config

    asked = {
        "tolerance": settings.gate_tolerance,
        "drift": settings.gate_drift,
        "voter_share": settings.gate_voter_share,
        "win_rate": settings.gate_win_rate,
    }
    if settings.gate_divergence is not None:
        asked["divergence"] = settings.gate_divergence
    return by_width(int(base_config(base)["hidden_size"])).model_copy(update=asked)
