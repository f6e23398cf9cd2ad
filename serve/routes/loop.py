"""The circle as a whole: what the votes amount to, and how much of everything there is. For operators."""

from typing import Any

from fastapi import APIRouter

from feedback import adapters, pairs, preview, stats, triggers
from serve.auth import Operator
from serve.gateway import Here, Model

router = APIRouter(prefix="/v1", tags=["loop"])

Json = dict[str, Any]


@router.get("/pairs/preview")
async def show_preview(here: Here, _: Operator, model: Model = None) -> Json:
    """What a job would train on now, and why the rest is left out."""
    ledger = here.ledger(model)
    return {"object": "pairs.preview", "model": ledger.model, **(await preview.look(ledger)).model_dump()}


@router.get("/stats")
async def show_stats(here: Here, _: Operator, model: Model = None) -> Json:
    """What is not settled yet is settled first, as far as that takes no time; the rest is told as `unsettled`.

    `triggers` is what would start a job by itself, by the worker that looks every few seconds; empty where none does.
    """
    ledger = here.ledger(model)
    await pairs.settle(ledger, stats.SETTLE_WITHIN_S)
    serving = await adapters.serving(ledger)
    return {
        "object": "stats",
        "model": ledger.model,
        **await stats.totals(ledger),
        **await stats.quality(ledger),
        "serving": serving.model_dump(exclude={"v"}),
        "triggers": await triggers.told(ledger),
    }


@router.get("/engines")
async def show_engines(here: Here, _: Operator) -> Json:
    """Each vLLM as this gateway sees it: up, down or resting after it broke requests, why, and what it holds."""
    data = [{"object": "engine", **replica.described()} for replica in here.routing.replicas]
    return {"object": "list", "data": data}
