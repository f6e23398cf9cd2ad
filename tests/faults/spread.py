"""The house spread out: every part a process that can be hurt alone, as in compose.yaml, under `heed up`'s supervisor.

Beside what `heed up` runs there are a broker of its own, two workers that train, and one that keeps the schedule and
the archive. Engines are real vLLM on the pocket model, or one scripted engine that no fault is meant for.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import httpx
from celery import Celery

from serve.readiness import http_answers, ledger_answers
from serve.stack import Stack, StackSettings, services, shared_env
from serve.supervisor import Service, Supervisor
from tests.faults import house
from tests.faults.house import House, Json
from tests.faults.network import HERE, Network
from tests.gateways import until
from tests.processes import ROOT, free_port
from tests.scripted_engine import ScriptedEngine, scripted_engine, write_adapter

LOOPBACK = "127.0.0.1"
CLIENT = "client-key-of-faults"
"""Where each part has an address of its own, the gateway leaves loopback, and then it asks for a key."""

START_S = 400
"""Two vLLM and four Celery processes on two busy cores."""

SETTLES_WITHIN_S = 60
ANSWERS_WITHIN_S = 5
ASKED_TIMES = 12
TRAINERS = ("worker", "worker-2")
ENGINES = ("engine", "engine-2")
PARTS = ("ledger", "broker", "gateway", *TRAINERS, "archiver", "beat", *ENGINES)
SETTINGS = {
    **house.SETTINGS,
    "HEED_CLIENT_KEYS": CLIENT,
    "HEED_KEY_VOTES_PER_MINUTE": "0",
    "HEED_ARCHIVE_EVERY_S": "1",
    "HEED_TICK_S": "0.5",
    "HEED_JOB_LEASE_S": "6",  # with its 15 s no stop of ten would cost a worker its job
    "HEED_DATASET_PAIRS": "100",  # so that every job takes about as long, however much was voted before
    "HEED_EPOCHS": "2",
    "HEED_CHECKPOINT_STEPS": "2",
    "VLLM_HOST_IP": LOOPBACK,  # it would ask for its route to the internet, and there is none
}


@dataclass(frozen=True)
class SpreadStack(Stack):
    broker_port: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Of each part by its name; on loopback where there is none."""

    def address(self, name: str) -> str:
        return self.addresses.get(name, LOOPBACK)

    @property
    def ledger_url(self) -> str:
        return f"redis://{self.address('ledger')}:{self.ledger_port}/0"

    @property
    def broker_url(self) -> str:
        return f"redis://{self.address('broker')}:{self.broker_port}/0"

    @property
    def engine_urls(self) -> list[str]:
        engines = zip(ENGINES, self.engine_ports, strict=False)
        return [f"http://{self.address(name)}:{port}" for name, port in engines]


@dataclass
class SpreadHouse(House):
    network: Network | None
    parts: Sequence[str]
    """Its processes, by name."""

    def is_up(self, name: str, but_not: int | None = None) -> bool:
        """Whether it is ready, and another process than `but_not`."""
        return name not in self.supervisor.waiting and self.supervisor.pid_of(name) != but_not

    def log(self, name: str) -> bytes:
        return self._log_of(name).read_bytes()

    def logged(self) -> dict[str, int]:
        """How much each part has written to its log."""
        return {name: self._log_of(name).stat().st_size for name in self.parts}

    async def told(self, path: str) -> Json | None:
        """None where the gateway does not answer, or not so."""
        try:
            reply = await self.operator.get(path)
        except httpx.TransportError:
            return None
        return cast(Json, reply.json()) if reply.status_code == 200 else None

    async def ask_for_job(self, seed: int) -> str:
        body = {"model": "heed", "training_file": "ledger", "seed": seed}
        return str((await self.operator.post("/v1/fine_tuning/jobs", json=body)).raise_for_status().json()["id"])

    async def stage_of(self, job: str) -> str:
        """The last that it told of. An evaluation tells its end alone, so it is under way when training is done."""
        events = (await self.told(f"/v1/fine_tuning/jobs/{job}/events?limit=100") or {"data": []})["data"]
        told = [one["data"] for one in events if "stage" in (one.get("data") or {})]
        return f"{told[0]['stage']}{' done' if 'seconds' in told[0] else ''}" if told else "taken up"

    async def unsettled(self) -> list[str]:
        """What is wrong with what answers: the pointer, the record it points at, and the answers themselves."""
        serving: Json = {}

        async def is_settled() -> bool:
            told = await self.told("/v1/adapters?limit=100")
            serving.update(told["serving"] if told else {})
            return bool(serving) and serving["live"] == serving["wanted"]

        try:
            await until(is_settled, "what is wanted is live", SETTLES_WITHIN_S)
        except AssertionError as late:
            return [f"{late}: {serving}"]
        live = [one["id"] for one in await self.listed("/v1/adapters") if one["state"] == "live"]
        wrong = []
        if live != ([] if serving["live"] == "heed-base" else [serving["live"]]):
            wrong.append(f"{serving['live']} is live, and records say so of {live}")
        body = {"model": "heed", "messages": [{"role": "user", "content": "Who answers?"}], "max_tokens": 1}
        reply = await self.operator.post("/v1/chat/completions", json={**body, "store": False})
        if (answered := reply.json().get("model")) != serving["live"]:
            wrong.append(f"{serving['live']} is live and {answered or reply.json()} answers")
        return wrong

    async def absent_workers(self) -> list[str]:
        """Of the Celery workers, none of which has anything to do, those that do not answer by way of the broker.

        One that comes back to the broker only now misses a question that was asked before.
        """
        absent = {f"{name}@heed" for name in (*TRAINERS, "archiver")}

        def ask() -> Mapping[str, object]:
            # A connection of its own: those in Celery's pool may be of a broker that was killed since.
            app = Celery(broker=self.env["HEED_BROKER_URL"], set_as_current=False)
            with app.connection_for_write() as connection:
                inspect = app.control.inspect(sorted(absent), timeout=ANSWERS_WITHIN_S, connection=connection)
                return inspect.ping() or {}

        for _ in range(ASKED_TIMES):
            absent -= (await asyncio.to_thread(ask)).keys()
            if not absent:
                break
        return sorted(absent)


def parts(stack: SpreadStack, network: Network | None, *, is_scripted: bool) -> list[Service]:
    """In the order of their stopping."""
    given = {one.name: one for one in services(stack)}
    worker, ledger = given["worker"], given["ledger"]
    engines = [] if is_scripted else [one for name, one in given.items() if name.startswith("engine")]
    urls = dict(zip((one.name for one in engines), stack.engine_urls, strict=False))
    broker = _told(ledger.command, port=stack.broker_port, dir=stack.var / "broker", appendfsync="everysec")
    spread = [
        given["gateway"],
        *(_taking(worker, name, "train") for name in TRAINERS),
        _taking(worker, "archiver", "schedule"),
        replace(given["beat"], after=["broker"]),
        *(replace(one, is_ready=http_answers(f"{urls[one.name]}/health")) for one in engines),
        replace(ledger, name="broker", command=broker, is_ready=ledger_answers(stack.broker_url)),
        ledger,
    ]
    return [_placed(one, stack, network) for one in spread]


def _taking(worker: Service, name: str, queue: str) -> Service:
    command = [queue if word == "train,schedule" else word for word in worker.command]
    return replace(worker, name=name, command=[*command, "-n", f"{name}@heed"], after=["ledger", "broker"])


def _placed(one: Service, stack: SpreadStack, network: Network | None) -> Service:
    if network is None:
        return one
    command = [stack.address(one.name) if word == LOOPBACK else word for word in one.command]
    if one.name in ("ledger", "broker"):
        command += ["--protected-mode", "no"]
    return replace(one, command=network.within(one.name, command))


def _told(command: Sequence[str], **flags: object) -> list[str]:
    """With other values of these flags."""
    told = list(command)
    for name, value in flags.items():
        told[told.index(f"--{name}") + 1] = str(value)
    return told


@asynccontextmanager
async def spread_house(
    var: Path, *, replicas: int, network: Network | None, env: Mapping[str, str]
) -> AsyncIterator[SpreadHouse]:
    """Without replicas the engine is scripted, and what is trained does not go live there."""
    addresses = dict(network.addresses) if network else {}
    if not replicas and network:
        addresses["engine"] = HERE
    stack = SpreadStack(
        StackSettings(var=var, port=free_port(), host=addresses.get("gateway", LOOPBACK)),
        "cpu",
        free_port(),
        tuple(free_port() for _ in range(max(replicas, 1))),
        broker_port=free_port(),
        addresses=addresses,
    )
    for folder in ("ledger", "broker"):
        (var / folder).mkdir()
    (var / "pocket").symlink_to(ROOT / "var" / "pocket")
    async with AsyncExitStack() as exits:
        engine: ScriptedEngine | None = None
        if replicas:
            await asyncio.to_thread(_make_base_adapter, stack)
        else:
            config = json.loads((Path(stack.base_model) / "config.json").read_text())
            write_adapter(stack.base_adapter, base=config)
            scripted = scripted_engine(port=stack.engine_ports[0], host=stack.address("engine"))
            engine = await exits.enter_async_context(scripted)
        promote = {"HEED_PROMOTE": "eager" if replicas else "manual"}
        given = {**SETTINGS, **promote, "HEED_VAR": str(var), **env}
        placed = parts(stack, network, is_scripted=not replicas)
        kept = [replace(one, env={**one.env, **given}) for one in placed]
        supervisor = Supervisor(kept, var / "logs", lambda *_: None, steady_s=0)
        await exits.enter_async_context(house.run_by(supervisor, START_S))
        operator = await exits.enter_async_context(house.operator_of(stack))
        names = [one.name for one in kept]
        yield SpreadHouse(stack, engine, supervisor, operator, shared_env(stack) | given, network, names)


def _make_base_adapter(stack: Stack) -> None:
    command = [sys.executable, "-m", "trainer", "zero", "--base", stack.base_model, "--out", str(stack.base_adapter)]
    rank = str(stack.settings.max_lora_rank)
    subprocess.run([*command, "--lora-rank", rank], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
