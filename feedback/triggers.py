"""Triggers: what would start a job by itself, as the worker that asks every few seconds saw it last.

Only the workshop knows when jobs are due (trainer/schedule.py); it tells here, for whoever operates.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from feedback.connection import Ledger

TOLD_FOR_S = 120
"""Much longer than between two looks, so when nothing is here no worker is looking."""


@dataclass(frozen=True)
class Trigger:
    """`why` is for an operator, whether it is due or not."""

    name: Literal["pairs", "schedule", "idle"]
    is_due: bool
    why: str


async def tell(ledger: Ledger, found: Sequence[Trigger]) -> None:
    text = json.dumps([asdict(each) for each in found])
    await ledger.reply(ledger.redis.set(ledger.keys.triggers, text, ex=TOLD_FOR_S))


async def told(ledger: Ledger) -> list[dict[str, Any]]:
    """Empty where no worker has told lately."""
    text = await ledger.reply(ledger.redis.get(ledger.keys.triggers))
    return list(json.loads(text)) if text else []
