"""Ten swaps, two rollbacks and a canary under 16 streaming clients, while one of two engines is killed: `make swaps`.

The embedded stack with two real vLLM on the pocket model and random adapters; `swap_under_load` is the same for
scripted engines (tests/integration/test_swaps.py). The engine is stopped for a moment before `kill -9`, so that it is
known which streams were on it: those that had begun and got nothing more while the others went on. Each adapter's own
answer, asked for alone before, tells a mixture, and each event names its adapter. vLLM's numbers depend a little on
what else is in the batch, so some answers differ without a swap as well: how many is measured before.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Protocol

import httpx
import numpy as np
import psutil

from feedback.adapter_files import CONFIG, WEIGHTS, adapter_config, expected_shapes, text_config
from feedback.adapters import digest_of, register
from feedback.connection import Ledger, open_ledger
from feedback.records import Adapter
from feedback.settings import LedgerSettings
from tests.processes import ROOT, descendants
from tests.stack import Stack

PROMPTS = ("How do I build a kite?", "How do I bake bread?", "How do I mend a bicycle?", "How do I plant a tree?")
SWAPS, KILL_AFTER, BACK_AFTER = 10, 5, (3, 7)
"""Numbers of swaps: the engine is killed after one, two are taken back and made again. The last is a canary first."""

STALL_S = 1.5
"""Nothing came on a stream for so long, of an engine that gives a token in some 40 ms."""


class Victim(Protocol):
    """The engine that is killed. Its restart is somebody else's, or `killed` begins it."""

    async def freeze(self) -> None: ...
    async def kill(self) -> None: ...
    async def restart(self) -> None: ...


@dataclass(eq=False)
class Stream:
    prompt: str
    began: float
    first: float | None = None
    heard: float = 0.0
    ended: float | None = None
    models: set[str] = field(default_factory=set)
    text: str = ""
    failure: str = ""
    """In the words of the error event, or of the status before the first byte."""


@dataclass
class Report:
    streams: list[Stream]
    windows: list[tuple[str, float, float]]
    """What the operator asked for, when, and when the reply came."""
    on_killed: list[Stream]
    adapters: list[str]

    @property
    def failed_before(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.failure and stream.first is None]

    @property
    def failed_within(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.failure and stream.first is not None]

    @property
    def named_twice(self) -> list[Stream]:
        """Answers whose events name more than one adapter."""
        return [stream for stream in self.streams if len(stream.models) > 1]

    def first_s(self) -> tuple[list[float], list[float]]:
        """Of streams that began while a swap was under way, and in as long a time before each."""
        within, before = [], []
        for _, start, end in self.windows:
            for stream in self.streams:
                if stream.first is not None:
                    if start <= stream.began < end:
                        within.append(stream.first - stream.began)
                    elif start - (end - start) <= stream.began < start:
                        before.append(stream.first - stream.began)
        return within, before


def unlike(streams: Sequence[Stream], own: Mapping[tuple[str, str], str]) -> list[Stream]:
    """Answers that are not their adapter's own, or its beginning where they failed."""

    def is_own(stream: Stream) -> bool:
        text = own[min(stream.models), stream.prompt]
        return text.startswith(stream.text) if stream.failure else text == stream.text

    return [stream for stream in streams if stream.models and not is_own(stream)]


class Crowd:
    def __init__(self, http: httpx.AsyncClient, clients: int, tokens: int, model: str = "heed") -> None:
        self.streams: list[Stream] = []
        self._http = http
        self._model = model
        self._tokens = tokens
        self._is_over = False
        self._clients = [asyncio.create_task(self._go_on(PROMPTS[n % len(PROMPTS)])) for n in range(clients)]

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._clients)

    async def some(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.ended + count
        await until(lambda: self.ended >= wanted, f"{count} more answers")

    @property
    def ended(self) -> int:
        return sum(stream.ended is not None for stream in self.streams)

    @property
    def under_way(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.first is not None and stream.ended is None]

    async def _go_on(self, prompt: str) -> None:
        while not self._is_over:
            stream = Stream(prompt, time.perf_counter())
            self.streams.append(stream)
            await answer(self._http, self._model, stream, self._tokens)


async def answer(http: httpx.AsyncClient, model: str, stream: Stream, tokens: int) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": stream.prompt}],
        "stream": True,
        "temperature": 0,
        "max_tokens": tokens,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            stream.failure = (await reply.aread()).decode()
        is_done = False
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            stream.heard = time.perf_counter()
            stream.first = stream.first or stream.heard
            if is_done := line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                stream.failure = event["error"]["message"]
                continue
            stream.models.add(event["model"])
            for choice in event["choices"]:
                stream.text += choice["delta"].get("content") or ""
    if not is_done and not stream.failure:
        stream.failure = "the stream ended without [DONE]"
    stream.ended = time.perf_counter()


async def references(http: httpx.AsyncClient, adapters: Sequence[str], tokens: int) -> dict[tuple[str, str], str]:
    """What each adapter answers to each prompt, asked alone by its own name."""
    found = {}
    for adapter in adapters:
        for prompt in PROMPTS:
            stream = Stream(prompt, time.perf_counter())
            await answer(http, adapter, stream, tokens)
            assert not stream.failure, stream.failure
            found[adapter, prompt] = stream.text
    return found


async def swap_under_load(
    http: httpx.AsyncClient,
    operator: httpx.AsyncClient,
    adapters: Sequence[str],
    victim: Victim,
    *,
    clients: int = 16,
    tokens: int = 40,
    stall_s: float = STALL_S,
) -> Report:
    """`adapters`: SWAPS of them, as registered. Every swap has a stretch without one before it."""
    crowd = Crowd(http, clients, tokens)
    windows: list[tuple[str, float, float]] = []
    on_killed: list[Stream] = []

    async def ask(what: str, path: str, **body: object) -> None:
        await crowd.some(clients)
        began = time.perf_counter()
        reply = await operator.post(path, json=body)
        windows.append((what, began, time.perf_counter()))
        assert reply.status_code == 200, f"{what}: {reply.text}"

    try:
        for number, adapter in enumerate(adapters, 1):
            if number == len(adapters):
                await ask("canary", f"/v1/adapters/{adapter}/canary", percent=50, reason="trial")
                await until(lambda: any(adapters[-1] in each.models for each in crowd.streams), "the canary answers")
            await ask("promote", f"/v1/adapters/{adapter}/promote", reason="trial")
            if number in BACK_AFTER:
                await ask("roll back", "/v1/adapters/rollback", reason="trial")
                await ask("promote", f"/v1/adapters/{adapter}/promote", reason="trial")
            if number == KILL_AFTER:
                await crowd.some(clients)
                on_killed = await killed(victim, crowd, stall_s)
        await crowd.some(clients)
    finally:
        await crowd.end()
    return Report(crowd.streams, windows, on_killed, list(adapters))


async def killed(victim: Victim, crowd: Crowd, stall_s: float) -> list[Stream]:
    """The streams that were on it."""
    await victim.freeze()
    frozen = time.perf_counter()

    def stalled() -> list[Stream]:
        return [stream for stream in crowd.under_way if stream.heard < frozen + stall_s / 3]

    await until(lambda: time.perf_counter() > frozen + stall_s, "what was on its way has come")
    on_it = stalled()
    await victim.kill()
    await victim.restart()
    return on_it


async def until(is_so: Callable[[], object], what: str, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        await asyncio.sleep(0.01)


class Supervised:
    """The second engine of `heed up`, which starts it again by itself."""

    def __init__(self, stack: Stack) -> None:
        main = stack.member("api_server", "--port", str(stack.engine_port))
        assert stack.process is not None
        engines = [
            each for each in psutil.Process(stack.process.pid).children() if "api_server" in " ".join(each.cmdline())
        ]
        self._main = next(each for each in engines if each.pid != main.pid)

    async def freeze(self) -> None:
        for each in (self._main, *descendants(self._main.pid)):
            each.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        family = [self._main, *descendants(self._main.pid)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)

    async def restart(self) -> None:
        """The supervisor's."""


def write_random_adapter(folder: Path, base: Path, seed: int, rank: int = 8) -> None:
    """For this base; small enough to leave words, large enough to choose others than another seed's."""
    dice = np.random.default_rng(seed)
    header, data, end = {}, b"", 0
    for name, shape in expected_shapes(text_config(base), rank).items():
        values = dice.normal(0, 0.05, shape).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(values)]}
        data, end = data + values, end + len(values)
    told = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(adapter_config(str(base), rank)))
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(told)) + told + data)


async def registered(ledger: Ledger, var: Path, base: Path, number: int) -> str:
    made = var / f"made-{number}"
    write_random_adapter(made, base, number)
    digest = digest_of(made)
    adapter = Adapter(
        id=Adapter.id_of("heed", number, digest),
        served_model="heed",
        version=number,
        digest=digest,
        base_model="pocket",
        base_revision="r",
        job="ftjob-trial",
        dataset_digest="d",
        pairs=1,
        state="candidate",
        created=time.time(),
    )
    (var / "adapters").mkdir(exist_ok=True)
    made.rename(var / "adapters" / adapter.id)
    await register(ledger, adapter, "made for a trial")
    return adapter.id


@dataclass(frozen=True)
class Trial:
    report: Report
    own: dict[tuple[str, str], str]
    undisturbed: list[Stream]
    """Of as many clients, without a swap."""


async def on_real_engines(stack: Stack, tokens: int) -> Trial:
    ledger = open_ledger(LedgerSettings(ledger_url=stack.env["HEED_LEDGER_URL"], var=stack.var))
    key = (stack.var / "operator.key").read_text().strip()
    async with (
        httpx.AsyncClient(base_url=stack.url, timeout=120) as http,
        httpx.AsyncClient(base_url=stack.url, timeout=120, headers={"authorization": f"Bearer {key}"}) as operator,
    ):

        async def both_hold(adapter: str) -> bool:
            engines = (await operator.get("/v1/engines")).json()["data"]
            return len(engines) == 2 and all(adapter in engine.get("holds", ()) for engine in engines)

        while not await both_hold("heed-base"):  # noqa: ASYNC110 (polled: it is another process)
            await asyncio.sleep(0.2)
        ids = [await registered(ledger, stack.var, stack.pocket, number) for number in range(1, SWAPS + 1)]
        own = await references(http, ["heed-base", *ids], tokens)
        undisturbed: list[Stream] = []
        for adapter in ids[-3:]:
            crowd = Crowd(http, 16, tokens, adapter)
            await crowd.some(64)
            await crowd.end()
            undisturbed += crowd.streams
        report = await swap_under_load(http, operator, ids, Supervised(stack), tokens=tokens)
    await ledger.close()
    return Trial(report, own, undisturbed)


def share(streams: Sequence[Stream], own: Mapping[tuple[str, str], str]) -> str:
    return f"{len(unlike(streams, own))} of {len(streams)} ({len(unlike(streams, own)) / len(streams):.1%})"


def p99_ms(waits_s: Sequence[float]) -> float:
    return quantiles(waits_s, n=100)[98] * 1e3


def told(trial: Trial) -> str:
    report = trial.report
    within, before = report.first_s()
    kinds = [what for what, _, _ in report.windows]
    asked = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    slowest = max(end - start for _, start, end in report.windows)
    failed = {id(stream) for stream in report.failed_within}
    are_those = failed == {id(stream) for stream in report.on_killed}
    rows = {
        "answers": f"{len(report.streams)}; {asked}, the slowest {slowest:.1f} s",
        "failed before the first byte": f"{len(report.failed_before)}",
        "failed within": f"{len(failed)}; on the killed engine {len(report.on_killed)}; "
        + ("the same ones" if are_those else "**others**"),
        "named by two adapters": f"{len(report.named_twice)}",
        "not word for word as alone": f"{share(report.streams, trial.own)}; {share(trial.undisturbed, trial.own)} "
        "without a swap",
        "p99 to the first token, ms": f"{p99_ms(within):.0f} of {len(within)} in swaps, {p99_ms(before):.0f} of "
        f"{len(before)} before them, ratio {p99_ms(within) / p99_ms(before):.2f}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40, help="of each answer, at most")
    asked = parser.parse_args()
    os.environ["HEED_REPLICAS"] = "2"
    with tempfile.TemporaryDirectory(prefix="heed-swaps-") as folder:
        stack = Stack(Path(folder), ROOT / "var" / "pocket", engine_key=secrets.token_hex(8))
        try:
            stack.start()
            trial = asyncio.run(on_real_engines(stack, asked.tokens))
            checked = stack.run("check", timeout_s=300)
        finally:
            stack.stop()
    report = trial.report
    print(f"{told(trial)}\n\n`heed check`: {checked.stdout.strip() or checked.stderr.strip()}")
    is_clean = not (report.failed_before or report.named_twice or checked.returncode)
    sys.exit(not (is_clean and {*map(id, report.failed_within)} == {*map(id, report.on_killed)}))


if __name__ == "__main__":
    main()
