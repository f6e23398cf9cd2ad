"""The house: the service's own processes under its own supervisor, as `heed up` runs them, with a scripted engine."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from feedback.settings import LedgerSettings
from serve.stack import Stack, StackSettings, services, shared_env
from serve.supervisor import Supervisor
from tests.faults.book import Audit, Book
from tests.gateways import OPERATOR, until
from tests.processes import ROOT, free_port, living
from tests.scripted_engine import ScriptedEngine, scripted_engine, write_adapter
from tests.stack import HEED

START_S = 60
SERVICES = ("gateway", "worker", "beat", "ledger")
SETTINGS = {
    "HEED_OPERATOR_KEY": OPERATOR,
    "HEED_VOTER_VOTES_PER_MINUTE": "0",  # the crowd is faster than people
    "HEED_ARCHIVE_AFTER_DAYS": "0",  # so every completion moves while it is voted on
    "HEED_ARCHIVE_EVERY_S": "0.2",
    "HEED_TRAIN_EVERY_PAIRS": "0",
    "HEED_TRAIN_EVERY_HOURS": "0",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Strike:
    """A kill, as it was: by the monotonic clock, and only after the process was seen to have ended."""

    at: float
    pid: int
    logged: int
    """How much the victim had written to its log."""
    found: str = ""
    """What the victim was at, where that can be told."""


@dataclass
class House:
    stack: Stack
    engine: ScriptedEngine | None
    """None where the engines are real."""
    supervisor: Supervisor
    operator: httpx.AsyncClient
    env: Mapping[str, str]

    @property
    def ledger_settings(self) -> LedgerSettings:
        """As its processes have them."""
        names = {f"HEED_{name.upper()}": name for name in LedgerSettings.model_fields}
        return LedgerSettings.model_validate({names[name]: self.env[name] for name in names.keys() & self.env.keys()})

    async def kill(self, name: str) -> Strike:
        """`kill -9` of a service that is alive, which is asserted."""
        pid = self.supervisor.pid_of(name)
        process = psutil.Process(pid)
        assert living([process]), f"{name} was dead before it was killed"
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not living([process]), f"{name} ends")
        return Strike(time.monotonic(), pid, self._log_of(name).stat().st_size)

    def is_back(self, name: str, strike: Strike) -> bool:
        """Whether another process of this name is ready."""
        return name not in self.supervisor.waiting and self.supervisor.pid_of(name) != strike.pid

    def has_said(self, name: str, words: str, strike: Strike) -> bool:
        """Whether its log holds the words since the strike."""
        return words.encode() in self._log_of(name).read_bytes()[strike.logged :]

    async def audit(self, book: Book) -> Audit:
        """Everything that stands, as the public API lists it, against the book."""
        opinions = await self.listed("/v1/votes")
        answers = {
            one["id"]: one["choices"][0]["message"]["content"] for one in await self.listed("/v1/chat/completions")
        }
        audit = book.audit(opinions, answers)
        counted = (await self.operator.get("/v1/stats")).json()["votes"]
        if counted != len(opinions):
            audit.problems.append(f"/v1/stats counts {counted} votes, and {len(opinions)} stand")
        return audit

    async def check(self) -> list[str]:
        """What `heed check` finds broken."""
        process = await asyncio.create_subprocess_exec(
            HEED, "check", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **self.env}
        )
        told, _ = await process.communicate()
        return [] if process.returncode == 0 else told.decode().splitlines() or [f"exit code {process.returncode}"]

    def _log_of(self, name: str) -> Path:
        return self.stack.var / "logs" / f"{name}.log"

    async def listed(self, path: str) -> list[Json]:
        found: list[Json] = []
        after: dict[str, str] = {}
        while True:
            reply = await self.operator.get(path, params={"limit": 100, **after})
            page = reply.raise_for_status().json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = {"after": page["last_id"]}


@asynccontextmanager
async def house(var: Path, env: Mapping[str, str]) -> AsyncIterator[House]:
    """Ready to be asked; nothing of it is left when the block ends."""
    (var / "ledger").mkdir()
    write_adapter(var / "adapters" / "heed-base")
    async with scripted_engine() as engine:
        stack = Stack(StackSettings(var=var, port=free_port()), "cpu", free_port(), (engine.port,))
        given = SETTINGS | dict(env)
        kept = [replace(one, env={**one.env, **given}) for one in services(stack) if one.name in SERVICES]
        # Each kill is one of a service that was well: without forgiveness, pauses between restarts would grow.
        supervisor = Supervisor(kept, var / "logs", lambda *_: None, steady_s=0)
        async with run_by(supervisor, START_S), operator_of(stack) as operator:
            yield House(stack, engine, supervisor, operator, shared_env(stack) | given)


@asynccontextmanager
async def run_by(supervisor: Supervisor, start_s: float) -> AsyncIterator[None]:
    """Its services are ready when the block begins, and gone when it has ended."""
    ready = asyncio.Event()
    running = asyncio.create_task(supervisor.run(ready.set))
    try:
        await until(lambda: ready.is_set() or running.done(), "the house is ready", start_s)
        if running.done():
            running.result()
        yield
    finally:
        supervisor.stop()
        await running


def operator_of(stack: Stack) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {OPERATOR}"}
    return httpx.AsyncClient(base_url=stack.gateway_url, timeout=60, headers=headers, trust_env=False)
