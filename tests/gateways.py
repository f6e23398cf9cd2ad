"""A gateway for tests: the real app on a real uvicorn, beside a scripted engine and a real ledger."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from feedback import adapters
from feedback.adapters import digest_of
from feedback.connection import Ledger
from feedback.records import Adapter, AdapterState, Golden
from feedback.settings import LedgerSettings
from serve.app import create_app
from serve.connections import connection_of
from serve.settings import GatewaySettings
from tests.processes import free_port
from tests.scripted_engine import TINY, ScriptedEngine, write_adapter

OPERATOR = "operator-key-of-tests"
DEADLINE_S = 20


@dataclass
class RunningGateway:
    url: str
    var: Path
    engine: ScriptedEngine
    ledger: Ledger
    http: httpx.AsyncClient
    operator: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def chat(self, prompt: str = "How do I fly a kite?", **fields: Any) -> httpx.Response:
        body = {"model": "heed", "messages": [{"role": "user", "content": prompt}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def stream(self, prompt: str = "How do I fly a kite?", **fields: Any) -> list[str]:
        """The stream's events, each without its blank line."""
        return (await self.chat(prompt, stream=True, **fields)).text.split("\n\n")[:-1]

    async def count(self, sample: str) -> float:
        """A metric's value by its full sample, such as `heed_unrecorded_total`."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample + " ")), 0.0)

    async def register(
        self,
        version: int,
        weights: bytes,
        state: AdapterState = "candidate",
        rank: int = 8,
        job: str = "ftjob-1",
        golden: Sequence[Golden] = (),
        gate: dict[str, Any] | None = None,
        model: str = "heed",
        base: Mapping[str, Any] = TINY,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """An adapter on disk and in the ledger, as the trainer publishes it."""
        return await registered(
            self.ledger,
            self.var,
            version,
            weights,
            state,
            rank,
            job=job,
            golden=golden,
            gate=gate,
            model=model,
            base=base,
            config=config,
        )

    async def promote(self, adapter_id: str) -> httpx.Response:
        return await self.operator.post(f"/v1/adapters/{adapter_id}/promote")


async def registered(
    ledger: Ledger,
    var: Path,
    version: int,
    weights: bytes,
    state: AdapterState = "candidate",
    rank: int = 8,
    *,
    job: str = "ftjob-1",
    golden: Sequence[Golden] = (),
    gate: dict[str, Any] | None = None,
    model: str = "heed",
    base: Mapping[str, Any] = TINY,
    config: Mapping[str, Any] | None = None,
) -> str:
    made = write_adapter(var / f"made-{model}-{version}", weights, rank, base, **(config or {}))
    digest = digest_of(made)
    adapter = Adapter(
        id=Adapter.id_of(model, version, digest),
        served_model=model,
        version=version,
        digest=digest,
        base_model="pocket",
        base_revision="r",
        job=job,
        dataset_digest="d",
        pairs=1,
        state=state,
        golden=list(golden),
        gate=gate or {},
        created=1000.0 + version,
    )
    (var / "adapters").mkdir(exist_ok=True)
    made.rename(var / "adapters" / adapter.id)
    await adapters.register(ledger.of(model), adapter, "trained")
    return adapter.id


async def until(is_so: Callable[[], Awaitable[object] | object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition without holding up the loop that shall bring it about."""
    end = time.monotonic() + deadline_s
    while True:
        found = is_so()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def served(settings: GatewaySettings, ledger_settings: LedgerSettings) -> AsyncIterator[str]:
    """The app on a port of its own, as `python -m serve` runs it; yields its address."""
    config = uvicorn.Config(
        create_app(settings, ledger_settings),
        port=free_port(),
        http=connection_of(settings),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started or serving.done(), "uvicorn listens")
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def running_gateway(
    ledger: Ledger, var: Path, engine: ScriptedEngine, *more: ScriptedEngine, ready: bool = True, **settings: Any
) -> AsyncIterator[RunningGateway]:
    zero = var / "adapters" / "heed-base"
    if not zero.exists():
        write_adapter(zero)
    given: dict[str, Any] = {
        "var": var,
        "engines": ",".join(one.url for one in (engine, *more)),
        "engine_key": engine.key,
        "base_adapter": str(zero),
        "operator_key": OPERATOR,
        "engine_wait_s": 10,
        "reconcile_every_s": 0.05,
        "retire_after_s": 0,
    }
    async with (
        served(GatewaySettings(**(given | settings)), ledger.settings) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        httpx.AsyncClient(base_url=url, timeout=30, headers={"authorization": f"Bearer {OPERATOR}"}) as operator,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=OPERATOR, max_retries=0) as client,
    ):
        gateway = RunningGateway(url, var, engine, ledger, http, operator, client)
        if ready:
            await until(lambda: _is_ready(http), "the gateway is ready")
        yield gateway


async def _is_ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200
