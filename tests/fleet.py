"""Gateway processes for tests: several beside one ledger and scripted engines, each of which can be killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from feedback.connection import Ledger
from tests.gateways import OPERATOR, until
from tests.processes import end, free_port, running
from tests.scripted_engine import ScriptedEngine, write_adapter

Json = dict[str, Any]


@dataclass
class GatewayProcess:
    """A gateway, or several workers of one, as `python -m serve` runs them."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    http: httpx.AsyncClient
    operator: httpx.AsyncClient

    async def chat(self, model: str = "heed", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "How do I fly a kite?"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def live(self) -> str:
        """As whom it answers."""
        reply = await self.chat()
        assert reply.status_code == 200, reply.text
        return str(reply.json()["model"])

    async def promote(self, adapter: str) -> httpx.Response:
        return await self.operator.post(f"/v1/adapters/{adapter}/promote")

    async def roll_back(self) -> httpx.Response:
        return await self.operator.post("/v1/adapters/rollback", json={"reason": "test"})

    async def is_ready(self) -> bool:
        try:
            return (await self.http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def gateway_process(
    ledger: Ledger, var: Path, engines: Sequence[ScriptedEngine], name: str = "gateway", **settings: Any
) -> AsyncIterator[GatewayProcess]:
    zero = var / "adapters" / "heed-base"
    if not zero.exists():
        write_adapter(zero)
    port = free_port()
    given = {
        "var": var,
        "port": port,
        "engines": ",".join(engine.url for engine in engines),
        "base_adapter": zero,
        "operator_key": OPERATOR,
        "ledger_url": ledger.settings.ledger_url,
        "engine_wait_s": 20,
        "retire_after_s": 0,
        "spare_adapters": 0,
    }
    env = {f"HEED_{key.upper()}": str(value) for key, value in (given | settings).items()}
    log = var / f"{name}.log"
    url = f"http://127.0.0.1:{port}"
    # `running` waits for the end in this thread, where the engines are: so it is waited for before in another.
    with running([sys.executable, "-m", "serve"], log, env) as process:
        async with (
            httpx.AsyncClient(base_url=url, timeout=30) as http,
            httpx.AsyncClient(base_url=url, timeout=60, headers={"authorization": f"Bearer {OPERATOR}"}) as operator,
        ):
            gateway = GatewayProcess(process, url, log, http, operator)
            try:
                await until(gateway.is_ready, f"{name} is ready", 60)
                yield gateway
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)  # one that a test stopped
                await asyncio.to_thread(end, process)


async def leader_of(ledger: Ledger) -> str:
    """The name of the process that leads, which holds its pid; empty while none does."""
    return await ledger.reply(ledger.redis.get(ledger.keys.gateways_lease)) or ""


async def led_first(ledger: Ledger, fleet: Sequence[GatewayProcess]) -> list[GatewayProcess]:
    """The leader, then the others."""
    leader = await leader_of(ledger)
    return sorted(fleet, key=lambda one: f"-{one.process.pid}-" not in leader)


def children(process: subprocess.Popen[bytes]) -> set[int]:
    """The workers of a parent."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in listed.split()}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
