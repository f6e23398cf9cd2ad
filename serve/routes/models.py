"""The names a client may ask for: what is live, the base, and each adapter that can be served."""

import time
from typing import Any

from fastapi import APIRouter

from feedback import adapters
from feedback.adapters import base_name
from feedback.errors import LedgerUnavailable
from serve.auth import Client
from serve.errors import model_not_found
from serve.gateway import Gateway, Here

router = APIRouter(prefix="/v1/models", tags=["models"])

STARTED = int(time.time())

Json = dict[str, Any]


@router.get("")
async def list_models(here: Here, _: Client) -> Json:
    return {"object": "list", "data": await _models(here)}


@router.get("/{name}")
async def retrieve(name: str, here: Here, _: Client) -> Json:
    for model in await _models(here):
        if model["id"] == name:
            return model
    raise model_not_found(name)


async def _models(here: Gateway) -> list[Json]:
    shown: list[Json] = []
    for model, ledger in here.ledgers.items():
        live = here.routing.live.get(model)
        shown += [_model(model, STARTED, live), _model(base_name(model), STARTED)]
        try:
            known, _ = await adapters.page(ledger)
            served = [_model(a.id, int(a.created)) for a in known if a.state != "rejected"]
        except LedgerUnavailable:  # then at least those that can be asked right now
            served = [
                _model(name, STARTED) for name in sorted(here.routing.held()) if here.routing.model_of(name) == model
            ]
        shown += served
    return shown


def _model(name: str, created: int, root: str | None = None) -> Json:
    """`root` is the concrete name that answers, as vLLM uses the word."""
    return {"id": name, "object": "model", "created": created, "owned_by": "heed", "root": root or name}
