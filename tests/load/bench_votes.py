"""What a vote costs: 32 clients, `appendfsync always`, one gateway process. `make bench` prints the tables.

In each round, one after the other on the same machine: votes through the gateway; the same Lua call sent to the same
server without a gateway, by redis-benchmark where there is one and else by a loop that pipelines 32 at a time; FastAPI
answering an empty body that it has validated. CPU time is each process's own, by the kernel's count. Wall times share
the cores with the clients.
"""

import argparse
import asyncio
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from redis import Connection

from feedback import completions, votes
from feedback.connection import Ledger, open_ledger
from feedback.errors import LedgerUnavailable
from feedback.records import Choice, Completion, new_id, prompt_digest
from feedback.settings import LedgerSettings
from tests.load import redis_benchmark
from tests.processes import answers, free_port, ledger_server, running, wait_for

CLIENTS = 32
TARGET_US = 330  # 3,000 votes a second of one core
MESSAGES = [
    {"role": "system", "content": "You answer questions of people who build and fly kites. " * 4},
    {"role": "user", "content": "How do I build a kite that flies in little wind, and what do I need for it? " * 3},
]
ANSWER = "Tie two light sticks into a cross, stretch paper over them, and add a tail of ribbon. " * 8
ROOMS = {
    "uvicorn": "uvicorn",
    "starlette": "Starlette and FastAPI",
    "fastapi": "Starlette and FastAPI",
    "redis": "redis-py",
    "feedback": "feedback/",
    "serve": "serve/",
    "prometheus_client": "prometheus_client",
    "asyncio": "asyncio's streams and tasks",
}


@dataclass
class Figures:
    """Of each round."""

    gateway_us: list[float] = field(default_factory=list)
    ledger_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    script_us: list[float] = field(default_factory=list)
    scripts_per_s: list[float] = field(default_factory=list)
    empty_us: list[float] = field(default_factory=list)
    empty_per_s: list[float] = field(default_factory=list)


def asked() -> Completion:
    """A record of 1.9 KB, as short chats are."""
    return Completion(
        id=new_id("chatcmpl"),
        served_model="heed",
        adapter="heed-v3-0a1b2c3d",
        created=time.time(),
        messages=MESSAGES,
        prompt_hash=prompt_digest(MESSAGES),
        choices=[Choice(index=0, message={"role": "assistant", "content": ANSWER}, finish_reason="stop")],
        usage={"prompt_tokens": 120, "completion_tokens": 180, "total_tokens": 300},
        params={"temperature": 0.7},
    )


async def record(ledger: Ledger, count: int) -> list[str]:
    made = [asked() for _ in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(completions.record(ledger, one) for one in made[start : start + 50]))
    return [one.id for one in made]


async def prepare(url: str, count: int) -> tuple[list[bytes], list[bytes]]:
    """Completions are recorded; the votes on them as bodies for the gateway, and on others as commands for Redis."""
    ledger = open_ledger(LedgerSettings(ledger_url=url))
    for_gateway, for_script = await record(ledger, count), await record(ledger, count)
    noted = redis_benchmark.Noted()
    ledger.commits = noted
    for i, completion_id in enumerate(for_script):
        with suppress(LedgerUnavailable):
            await votes.cast(ledger, completion_id=completion_id, rating="up", voter=f"voter-{i}", is_paced=True)
    await ledger.close()
    bodies = [
        json.dumps({"completion_id": completion_id, "rating": "up", "voter": f"voter-{i}"}).encode()
        for i, completion_id in enumerate(for_gateway)
    ]
    noted.acts[0].by_source = True  # the server need not know the script yet
    return bodies, [act.packed() for act in noted.acts]


@contextmanager
def cpu_us(pid: int, acts: int, into: list[float]) -> Iterator[None]:
    process = psutil.Process(pid)
    before = process.cpu_times()
    yield
    after = process.cpu_times()
    into.append((after.user + after.system - before.user - before.system) / acts * 1e6)


def post(port: int, path: str, bodies: Sequence[bytes]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.load.voters", str(port), path, str(CLIENTS)]
    done = subprocess.run(command, input=b"\n".join(bodies), capture_output=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["statuses"] == {"200": len(bodies)}, told["statuses"]
    return told


def run_scripts(port: int, commands: Sequence[bytes]) -> float:
    """Seconds."""
    connection: Any = Connection(port=port)  # type: ignore[no-untyped-call]
    connection.connect()
    began = time.perf_counter()
    for start in range(0, len(commands), CLIENTS):
        group = commands[start : start + CLIENTS]
        connection.send_packed_command([b"".join(group)])
        for _ in group:
            assert connection.read_response().startswith(b"changed ")
    took_s = time.perf_counter() - began
    connection.disconnect()
    return took_s


@dataclass
class Bench:
    ledger_port: int
    ledger_pid: int
    gateway_port: int
    gateway_pid: int
    empty_port: int
    empty_pid: int

    def round(self, count: int, figures: Figures) -> None:
        bodies, commands = asyncio.run(prepare(f"redis://127.0.0.1:{self.ledger_port}/0", count))
        with (
            cpu_us(self.gateway_pid, count, figures.gateway_us),
            cpu_us(self.ledger_pid, count, figures.ledger_us),
        ):
            told = post(self.gateway_port, "/v1/votes", bodies)
        figures.per_s.append(count / told["wall_s"])
        figures.p50_ms.append(told["p50_ms"])
        figures.p99_ms.append(told["p99_ms"])
        url = f"redis://127.0.0.1:{self.ledger_port}/0"
        with cpu_us(self.ledger_pid, count, figures.script_us):
            if redis_benchmark.is_there():
                last = json.loads(bodies[-1])["completion_id"]
                figures.scripts_per_s.append(redis_benchmark.run(self.ledger_port, url, last, count, CLIENTS).per_s)
            else:
                figures.scripts_per_s.append(count / run_scripts(self.ledger_port, commands))
        with cpu_us(self.empty_pid, count, figures.empty_us):
            figures.empty_per_s.append(count / post(self.empty_port, "/", [b"{}"] * count)["wall_s"])


@contextmanager
def started(folder: Path, gateway: Sequence[str]) -> Iterator[Bench]:
    """All three servers; the gateway has no engine, for a vote asks none."""
    ledger_port, gateway_port, empty_port, no_engine = (free_port() for _ in range(4))
    env = {
        "HEED_LEDGER_URL": f"redis://127.0.0.1:{ledger_port}/0",
        "HEED_PORT": str(gateway_port),
        "HEED_VAR": str(folder),
        "HEED_ENGINES": f"http://127.0.0.1:{no_engine}",
        "HEED_RECONCILE_EVERY_S": "60",
    }
    with ExitStack() as stack:
        ledger = stack.enter_context(ledger_server(folder / "ledger", ledger_port))
        serving = stack.enter_context(running([sys.executable, "-m", *gateway], folder / "gateway.log", env))
        empty_command = [sys.executable, "-m", "tests.load.empty_app", str(empty_port)]
        empty = stack.enter_context(running(empty_command, folder / "empty.log"))
        for port in (gateway_port, empty_port):
            wait_for(lambda port=port: answers(port), "the servers listen")  # type: ignore[misc]
        yield Bench(ledger_port, ledger.pid, gateway_port, serving.pid, empty_port, empty.pid)


def table(figures: Figures) -> str:
    loop = f"a loop that pipelines by {CLIENTS} (there is no redis-benchmark here)"
    means = f"redis-benchmark -c {CLIENTS}" if redis_benchmark.is_there() else loop
    rows: list[tuple[str, list[float], list[float] | None]] = [
        ("a vote, gateway", figures.gateway_us, figures.per_s),
        ("a vote, Redis", figures.ledger_us, None),
        (f"the same Lua call, no gateway, {means}, Redis", figures.script_us, figures.scripts_per_s),
        ("FastAPI, an empty validated POST", figures.empty_us, figures.empty_per_s),
    ]
    lines = ["| what | CPU µs each (least to most) | a second, wall |", "|---|---|---|"]
    for name, us, per_s in rows:
        wall = f"{median(per_s):,.0f}" if per_s else ""
        lines.append(f"| {name} | {median(us):.0f} ({min(us):.0f} to {max(us):.0f}) | {wall} |")
    lines.append("")
    vote_us = median(figures.gateway_us)
    verdict = "within" if vote_us <= TARGET_US else "over"
    lines.append(
        f"{1e6 / vote_us:,.0f} votes per second of one core's time in the gateway; {vote_us:.0f} µs each is {verdict} "
        f"the {TARGET_US} µs asked for. A voter waits {median(figures.p50_ms):.1f} ms (p50), "
        f"{median(figures.p99_ms):.1f} ms (p99)."
    )
    return "\n".join(lines)


def shares(profile: Path) -> str:
    """Where the gateway's CPU time goes: each function's own time, by the room or package it is in."""
    found: Counter[str] = Counter()
    for (file, _, name), (_, _, own_s, _, _) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        parts = Path(file).parts
        room = next((label for part, label in ROOMS.items() if part in parts), None)
        if any(library in name for library in ("pydantic_core", "orjson")):
            room = "pydantic and orjson"
        found[room or "built-in functions and the rest"] += own_s
    total = sum(found.values())
    rows = [f"| {room} | {own_s / total:.0%} |" for room, own_s in found.most_common() if own_s / total >= 0.005]
    return "\n".join(["| where | share of CPU time |", "|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=4000, help="in each round")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), ["serve"]) as bench:
        bench.round(500, Figures())  # the first votes also connect, and load the script
        for _ in range(asked.rounds):
            bench.round(asked.votes, figures)
    print(f"## Votes\n\n{asked.rounds} rounds of {asked.votes} votes by {CLIENTS} clients, medians; ", end="")
    print(f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n{table(figures)}")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        with started(Path(folder), ["tests.load.profiled", str(profile)]) as bench:
            bench.round(asked.votes, Figures())
        print("\nA run of its own under cProfile, which makes calls of Python functions look dearer:\n")
        print(shares(profile))


if __name__ == "__main__":
    main()
