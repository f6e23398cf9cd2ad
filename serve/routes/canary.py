"""Try an adapter on a share of the people, see how it fares, and end that. For operators."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from feedback import adapters, canary, canary_watch
from feedback.canary import Canary
from feedback.connection import Ledger
from feedback.errors import AdapterNotServable
from serve.auth import Operator
from serve.errors import unavailable
from serve.gateway import Gateway, Here, Model
from serve.protocol import CanaryRequest
from serve.routes.adapters import LOOK_EVERY_S, ledger_of

router = APIRouter(prefix="/v1", tags=["adapters"])

Json = dict[str, Any]
Reason = Annotated[str, Query(max_length=500)]


@router.post("/adapters/{adapter_id}/canary")
async def start(adapter_id: str, body: CanaryRequest, here: Here, _: Operator) -> Json:
    """Answers when it takes traffic. Another percent changes the share and begins a new trial; 0 ends it."""
    ledger = ledger_of(here, adapter_id)
    if body.percent == 0:
        return await _stop(here, ledger, adapter_id, body.reason)
    found = await canary.start(ledger, adapter_id, body.percent, auto=body.auto, reason=body.reason)
    await here.canaries.see(ledger.model)
    await _when_held(here, ledger, found)
    return await _shown(ledger, found)


@router.delete("/adapters/{adapter_id}/canary")
async def stop(adapter_id: str, here: Here, _: Operator, reason: Reason = "") -> Json:
    """What is live answers everybody again, at once; it becomes a candidate again."""
    return await _stop(here, ledger_of(here, adapter_id), adapter_id, reason)


@router.get("/canary")
async def show(here: Here, _: Operator, model: Model = None) -> Json:
    """What is tried now, or null, and what was tried last: counts, intervals, and the verdict in words."""
    ledger = here.ledger(model)
    running, last = await canary.running(ledger), await canary.last(ledger)
    return {
        "object": "canary.status",
        "model": ledger.model,
        "running": await _shown(ledger, running) if running else None,
        "last": await _shown(ledger, last) if last else None,
    }


async def _stop(here: Gateway, ledger: Ledger, adapter_id: str, reason: str) -> Json:
    ended = await canary.stop(ledger, reason or "ended by the operator", adapter_id)
    await here.canaries.see(ledger.model)
    return await _shown(ledger, ended)


async def _when_held(here: Gateway, ledger: Ledger, tried: Canary) -> None:
    """Raises AdapterNotServable; Refused if it takes too long."""
    try:
        async with asyncio.timeout(here.settings.promote_wait_s):
            while not here.routing.is_held(tried.adapter):
                adapter = await adapters.get(ledger, tried.adapter)
                if adapter.state == "rejected":
                    raise AdapterNotServable(f"{tried.adapter} was rejected: {adapter.history[-1].reason}")
                here.routing.nudge()
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        why = here.hotswap.trouble.get(tried.adapter) or here.hotswap.trouble.get("engine") or "it is being loaded"
        raise unavailable(
            "not_loaded_yet", f"{tried.adapter} stays the canary and takes no traffic yet: {why}", 10
        ) from None


async def _shown(ledger: Ledger, tried: Canary) -> Json:
    found = await canary_watch.standing(ledger, tried)
    counts = {"control": asdict(found.counts.control), "canary": asdict(found.counts.canary)}
    return {
        "object": "canary",
        **tried.model_dump(exclude={"v", "salt", "asked"}),
        "is_asked_to_go_live": tried.asked is not None,
        "counts": counts,
        "verdict": found.verdict.model_dump(),
    }
