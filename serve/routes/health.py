"""Alive, able to answer, and what has been counted. No key is needed: nothing here is anybody's."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from feedback import adapters
from feedback.adapters import base_name
from feedback.errors import LedgerUnavailable
from serve.gateway import Here

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(
    here: Here,
    chat: Annotated[bool, Query(description="Of answers alone, which are given while the ledger is down.")] = False,
) -> JSONResponse:
    """200 when a chat with every served model would be answered and recorded now; else 503 and why."""
    routing, why = here.routing, dict(here.hotswap.trouble)
    if not chat:
        try:
            await adapters.serving(here.ledger())
        except LedgerUnavailable as error:
            why["ledger"] = str(error)
    if not any(replica.is_up for replica in routing.replicas):
        why.setdefault("engine", "none answers yet")
    models: dict[str, Any] = {}
    for model in here.settings.models:
        live = routing.live.get(model)
        models[model] = {"live": live, "is_loaded": bool(live and routing.is_held(live))}
        needed = {base_name(model), live} - {None}
        if not live or not all(routing.is_held(str(name)) for name in needed):
            why.setdefault(model, f"{live or 'what is live'} is not loaded yet")
    if here.hotswap.is_going:
        why["gateway"] = "it is going: it ends what it has begun and takes no new connections"
    needs = {"gateway", *here.settings.models} | (set() if chat else {"ledger"})
    is_ready = not needs & why.keys()
    engines = {replica.name: "up" if replica.is_up else replica.why_down for replica in routing.replicas}
    body = {"status": "ready" if is_ready else "not ready", "models": models, "engines": engines, "trouble": why}
    return JSONResponse(body, 200 if is_ready else 503)


@router.get("/metrics")
async def metrics(here: Here, own: Annotated[bool, Query(description="This process's alone.")] = False) -> Response:
    text = here.metrics.text()
    if here.siblings is not None and not own:
        text = await here.siblings.gather(text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
