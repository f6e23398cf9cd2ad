"""What was trained and what is live: look at it, let it speak, take it back. For operators."""

import asyncio
from typing import Any

from fastapi import APIRouter

from feedback import adapters, lineage
from feedback.adapters import base_name
from feedback.connection import Ledger
from feedback.errors import AdapterNotServable, AdapterUnknown, NothingToRollBackTo
from feedback.records import Adapter, Serving
from serve.auth import Operator
from serve.errors import Refused, unavailable
from serve.gateway import After, Gateway, Here, Limit, Model, page
from serve.protocol import ReasonRequest, RollbackRequest

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

LOOK_EVERY_S = 0.05

Json = dict[str, Any]


@router.get("")
async def list_adapters(here: Here, _: Operator, model: Model = None, after: After = None, limit: Limit = 20) -> Json:
    """Newest first."""
    ledger = here.ledger(model)
    found, has_more = await adapters.page(ledger, after, limit)
    serving = await adapters.serving(ledger)
    return {**page([_shown(adapter) for adapter in found], has_more), "serving": _pointer(serving)}


@router.post("/rollback")
async def roll_back(body: RollbackRequest, here: Here, _: Operator) -> Json:
    """Back to what was live before; twice goes back two. A canary ends too. Answers when it is so."""
    ledger = here.ledger(body.model)
    has_ended = await here.canaries.end(ledger.model, f"rolled back by hand: {body.reason}")
    try:
        wanted = (await adapters.roll_back(ledger, body.reason)).wanted
    except NothingToRollBackTo:
        if not has_ended:
            raise
        wanted = (await adapters.serving(ledger)).live
    return await _when_live(here, ledger, wanted)


@router.get("/{adapter_id}")
async def retrieve(adapter_id: str, here: Here, _: Operator) -> Json:
    return _shown(await adapters.get(ledger_of(here, adapter_id), adapter_id))


@router.get("/{adapter_id}/votes")
async def list_votes(adapter_id: str, here: Here, _: Operator, after: After = None, limit: Limit = 20) -> Json:
    """The votes it was trained on (`split` train) and judged by (held_out), in order of id."""
    found, has_more = await lineage.votes_of(ledger_of(here, adapter_id), adapter_id, after, limit)
    return page([{"object": "trained_vote", **vote.model_dump()} for vote in found], has_more)


@router.post("/{adapter_id}/promote")
async def promote(adapter_id: str, here: Here, _: Operator, body: ReasonRequest | None = None) -> Json:
    """Answers when it is live. The base can be promoted too, by its name."""
    ledger = ledger_of(here, adapter_id)
    reason = (body.reason if body else "") or "promoted by the operator"
    if (await adapters.serving(ledger)).live != adapter_id:
        await adapters.want(ledger, adapter_id, reason)
    return await _when_live(here, ledger, adapter_id)


@router.post("/{adapter_id}/retire")
async def retire(adapter_id: str, here: Here, _: Operator, body: ReasonRequest | None = None) -> Json:
    """Mark it as done with. What is live or about to be cannot be retired: promote another or roll back first."""
    ledger = ledger_of(here, adapter_id)
    await adapters.get(ledger, adapter_id)
    serving = await adapters.serving(ledger)
    if adapter_id in (serving.live, serving.wanted):
        raise Refused(
            409, "adapter_is_live", f"{adapter_id} is live or about to be; promote another or roll back first"
        )
    reason = (body.reason if body else "") or "retired by the operator"
    await here.canaries.end(ledger.model, reason, adapter_id, "retired")
    await adapters.enter(ledger, adapter_id, "retired", reason)
    return _shown(await adapters.get(ledger, adapter_id))


def ledger_of(here: Gateway, adapter_id: str) -> Ledger:
    """An adapter's name begins with its served model's. Raises AdapterUnknown."""
    for model, ledger in here.ledgers.items():
        if adapter_id == base_name(model) or here.routing.model_of(adapter_id) == model:
            return ledger
    raise AdapterUnknown(f"no adapter {adapter_id[:60]!r}; list them at /v1/adapters")


async def _when_live(here: Gateway, ledger: Ledger, wanted: str) -> Json:
    """Wait for the hot swap, and until every gateway process answers by it.

    Raises AdapterNotServable; Refused if another is wanted by now or it takes too long.
    """
    try:
        async with asyncio.timeout(here.settings.promote_wait_s):
            while True:
                serving = await adapters.serving(ledger)
                if serving.live == wanted:
                    if here.hotswap.is_seen_everywhere(ledger.model, serving.generation):
                        break
                elif serving.wanted != wanted:
                    await _expect_not_rejected(ledger, wanted)
                    raise Refused(409, "superseded", f"{serving.wanted} is wanted by now instead of {wanted}")
                here.routing.nudge()
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        why = here.hotswap.trouble.get(wanted) or here.hotswap.trouble.get("engine") or "the swap is under way"
        raise unavailable("not_live_yet", f"{wanted} stays wanted and is not live yet: {why}", 10) from None
    if wanted == base_name(ledger.model):
        return {"id": wanted, "object": "adapter", "served_model": ledger.model, "state": "live"} | _pointer(serving)
    return _shown(await adapters.get(ledger, wanted)) | _pointer(serving)


async def _expect_not_rejected(ledger: Ledger, adapter_id: str) -> None:
    if adapter_id == base_name(ledger.model):
        return
    adapter = await adapters.get(ledger, adapter_id)
    if adapter.state == "rejected":
        raise AdapterNotServable(f"{adapter_id} was rejected: {adapter.history[-1].reason}")


def _shown(adapter: Adapter) -> Json:
    history = [{"state": change.state, "at": change.at, "reason": change.reason} for change in adapter.history]
    return {"object": "adapter", **adapter.model_dump(exclude={"v", "history"}), "history": history}


def _pointer(serving: Serving) -> Json:
    return serving.model_dump(exclude={"v"})
