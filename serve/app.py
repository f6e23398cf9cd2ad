"""The gateway, put together: settings in, an ASGI app out."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from feedback.connection import Ledger, open_ledger
from feedback.redaction import CannotRedact
from feedback.settings import LedgerSettings
from serve import errors
from serve.accord import Accord
from serve.attribution import template_of
from serve.auth import check_binding
from serve.canary import Canaries
from serve.door import Door
from serve.engine import Engine
from serve.gateway import Gateway
from serve.hotswap import HotSwap
from serve.keyring import Keyring
from serve.lane import Lane
from serve.limits import Limits
from serve.metrics import Metrics
from serve.replicas import Replica
from serve.routes import (
    adapters,
    canary,
    chat,
    comparisons,
    completions,
    erasure,
    exchange,
    extras,
    files,
    health,
    jobs,
    keys,
    loop,
    models,
    prompts,
    responses,
    voters,
    votes,
)
from serve.routing import Routing
from serve.scorer import Scorer
from serve.settings import GatewaySettings
from serve.siblings import Siblings
from serve.tracing import Traced, open_tracing
from serve.traffic import Traffic
from serve.vote_tokens import VoteTokens

CORS: Any = {
    "allow_methods": ("GET", "POST", "DELETE"),
    "allow_headers": ("authorization", "content-type", "idempotency-key", "x-heed-best-of", "x-heed-vote-token"),
    "expose_headers": (
        "idempotent-replayed",
        "retry-after",
        "x-heed-best-of",
        "x-heed-recorded",
        "x-heed-vote-token",
        "x-request-id",
        *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
    ),
}
"""What pages of HEED_CORS_ORIGINS may send and read. No cookies: there are none."""


def create_app(settings: GatewaySettings, ledger_settings: LedgerSettings, siblings: Siblings | None = None) -> FastAPI:
    """Raises CannotBind when the settings would let strangers in, CannotRedact when personal data would be recorded,
    CannotTrace."""
    check_binding(settings)
    metrics = Metrics()
    keyring = Keyring(settings)
    tracing = open_tracing(os.environ)
    first = open_ledger(ledger_settings, settings.models[0])
    expect_redactable(settings, first)
    ledgers = {model: first.of(model) for model in settings.models}
    replicas = [
        Replica(Engine(url, settings.engine_key, settings.engine_silence_s), f"engine {number}")
        for number, url in enumerate(settings.engines, 1)
    ]
    routing = Routing(
        settings.models, replicas, settings.affinity_slack, settings.queue_limit, settings.in_flight_limit
    )
    metrics.watch(first.redaction.replaced, routing.replicas, routing.waiting)
    limits, tokens = Limits(settings, metrics), VoteTokens(settings.vote_token_hours)
    accord = Accord(first, keyring, limits, tokens, settings.accord_every_s)
    process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    hotswap, traffic = HotSwap(process, routing, ledgers, settings, metrics), Traffic(process, ledgers)
    canaries = Canaries(routing, ledgers, settings)
    scorer = None
    if settings.reward_url:
        scorer = Scorer(
            Engine(settings.reward_url, settings.reward_key), settings.reward_model, settings.reward_timeout_s
        )
    gateway = Gateway(
        settings,
        ledgers,
        routing,
        hotswap,
        metrics,
        canaries,
        limits,
        tokens,
        accord,
        traffic,
        tracing,
        template_of(settings.base_model),
        scorer,
        siblings=siblings,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.gather(accord.look(), hotswap.meet())  # the first request finds the keys here, and what is live
        going_on = {asyncio.create_task(part.run()) for part in (hotswap, canaries, accord, traffic)}
        try:
            yield
        finally:
            while going_on:
                # Again and again: redis-py 8.1 lost 13 of 98 cancellations that came while it awaited a reply.
                for task in going_on:
                    task.cancel()
                going_on = (await asyncio.wait(going_on, timeout=0.1))[1]
            await hotswap.leave()
            for replica in routing.replicas:
                await replica.engine.close()
            if scorer is not None:
                await scorer.engine.close()
            await first.close()
            await asyncio.to_thread(tracing.close)

    app = FastAPIOffline(
        title="Heed",
        description="A chat service that improves from what its users say about its answers.",
        redoc_url=None,  # one page is enough
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    app.state.keyring = keyring
    rooms = (chat, responses, votes, completions, models, comparisons, prompts, voters)  # matched in this order
    for room in (*rooms, keys, jobs, adapters, canary, files, exchange, erasure, loop, health):
        app.include_router(room.router)
    app.include_router(extras.router_of(settings.extra_routes))
    errors.install(app)
    app.add_middleware(Lane, gateway=gateway, routes=[*chat.router.routes])
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    sizes = {"body_limit": int(settings.body_limit_mb * 2**20), "upload_limit": int(settings.upload_limit_mb * 2**20)}
    app.add_middleware(Door, keyring=keyring, metrics=metrics, **sizes)
    if tracing.is_on:
        app.add_middleware(Traced, tracing=tracing)
    return app


def expect_redactable(settings: GatewaySettings, ledger: Ledger) -> None:
    """Raises CannotRedact. Looked at when the gateway starts, for later it would be a person's text that fails."""
    if ledger.redaction.is_on and settings.record_tokens:
        raise CannotRedact(
            "HEED_RECORD_TOKENS keeps every token of an answer, and with them what HEED_REDACT takes out of its text; "
            "set one of the two"
        )
    ledger.redaction.load()
