"""The gateway, put together: settings in, an ASGI app out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from feedback.connection import Ledger, open_ledger
from feedback.redaction import CannotRedact
from feedback.settings import LedgerSettings
from serve import errors
from serve.attribution import template_of
from serve.auth import Keys, check_binding
from serve.door import Door
from serve.engine import Engine
from serve.gateway import Gateway
from serve.hotswap import HotSwap
from serve.metrics import Metrics
from serve.routes import (
    adapters,
    chat,
    comparisons,
    completions,
    erasure,
    exchange,
    extras,
    files,
    health,
    jobs,
    loop,
    models,
    prompts,
    responses,
    voters,
    votes,
)
from serve.routing import Replica, Routing
from serve.scorer import Scorer
from serve.settings import GatewaySettings


def create_app(settings: GatewaySettings, ledger_settings: LedgerSettings) -> FastAPI:
    """Raises CannotBind when the settings would let strangers in, CannotRedact when personal data would be recorded."""
    check_binding(settings)
    metrics = Metrics()
    keys = Keys(settings)
    first = open_ledger(ledger_settings, settings.models[0])
    expect_redactable(settings, first)
    metrics.watch(first.redaction.replaced)
    ledgers = {model: first.of(model) for model in settings.models}
    routing = Routing(
        settings.models, [Replica(Engine(settings.engine_url, settings.engine_key, settings.engine_silence_s))]
    )
    hotswap = HotSwap(routing, ledgers, settings, metrics)
    scorer = None
    if settings.reward_url:
        scorer = Scorer(
            Engine(settings.reward_url, settings.reward_key), settings.reward_model, settings.reward_timeout_s
        )
    gateway = Gateway(settings, ledgers, routing, hotswap, metrics, template_of(settings.base_model), scorer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        swapping = asyncio.create_task(gateway.hotswap.run())
        try:
            yield
        finally:
            while not swapping.done():
                # Again and again: redis-py 8.1 lost 13 of 98 cancellations that came while it awaited a reply.
                swapping.cancel()
                await asyncio.wait({swapping}, timeout=0.1)
            for replica in routing.replicas:
                await replica.engine.close()
            if scorer is not None:
                await scorer.engine.close()
            await first.close()

    app = FastAPIOffline(
        title="Heed",
        description="A chat service that improves from what its users say about its answers.",
        redoc_url=None,  # one page is enough
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    app.state.keys = keys
    rooms = (chat, responses, votes, completions, models, comparisons, prompts, voters)  # matched in this order
    for room in (*rooms, jobs, adapters, files, exchange, erasure, loop, health):
        app.include_router(room.router)
    app.include_router(extras.router_of(settings.extra_routes))
    errors.install(app)
    limits = {"body_limit": int(settings.body_limit_mb * 2**20), "upload_limit": int(settings.upload_limit_mb * 2**20)}
    app.add_middleware(Door, keys=keys, metrics=metrics, **limits)
    return app


def expect_redactable(settings: GatewaySettings, ledger: Ledger) -> None:
    """Raises CannotRedact. Looked at when the gateway starts, for later it would be a person's text that fails."""
    if ledger.redaction.is_on and settings.record_tokens:
        raise CannotRedact(
            "HEED_RECORD_TOKENS keeps every token of an answer, and with them what HEED_REDACT takes out of its text; "
            "set one of the two"
        )
    ledger.redaction.load()
