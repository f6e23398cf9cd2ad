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
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from tests.load.streams import Crowd, Stream, references, unlike, until
from tests.processes import ROOT, descendants
from tests.stack import Stack

SWAPS, KILL_AFTER, WHOLE_BY, BACK_AFTER = 10, 3, 6, (2, 8)
"""Numbers of swaps: the engine is killed after one and takes traffic again before another, two are taken back and made
again. The last is a canary first."""

STALL_S = 1.5
"""Nothing came on a stream for so long, of an engine that gives a token in some 40 ms."""


class Victim(Protocol):
    """The engine that is killed."""

    async def freeze(self) -> None: ...
    async def kill(self) -> None: ...
    async def restart(self) -> None: ...


@dataclass
class Report:
    streams: list[Stream]
    windows: list[tuple[str, float, float]]
    """What the operator asked for, when, and when the reply came."""
    on_killed: list[Stream]
    disturbed: tuple[float, float]
    """When the engine was stopped, and when it took traffic again."""

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

    def first_s(self) -> list[tuple[list[float], list[float]]]:
        """For each swap: of streams that began while it was under way, and in as long a time before. Without those in
        which the engine was stopped or came back, which cost more than a swap does."""
        pairs = []
        for _, start, end in self.windows:
            before = start - (end - start)
            if not any(before <= moment < end for moment in self.disturbed):
                pairs.append((self._first_s(start, end), self._first_s(before, start)))
        return pairs

    def _first_s(self, start: float, end: float) -> list[float]:
        return [each.first - each.began for each in self.streams if each.first and start <= each.began < end]


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
    stopped = back = 0.0

    async def are_both_up() -> bool:
        engines = (await operator.get("/v1/engines")).json()["data"]
        live = (await operator.get("/v1/adapters")).json()["serving"]["live"]
        return len(engines) == 2 and all(live in engine.get("holds", ()) for engine in engines)

    async def ask(what: str, path: str, **body: object) -> None:
        await crowd.some(clients)
        began = time.perf_counter()
        reply = await operator.post(path, json=body)
        windows.append((what, began, time.perf_counter()))
        assert reply.status_code == 200, f"{what}: {reply.text}"

    try:
        for number, adapter in enumerate(adapters, 1):
            if number == WHOLE_BY:
                while not await are_both_up():  # noqa: ASYNC110 (polled: it is another process)
                    await asyncio.sleep(0.1)
                back = time.perf_counter()
            if number == len(adapters):
                await ask("canary", f"/v1/adapters/{adapter}/canary", percent=50, reason="trial")
                await until(lambda: any(adapters[-1] in each.models for each in crowd.streams), "the canary answers")
            await ask("promote", f"/v1/adapters/{adapter}/promote", reason="trial")
            if number in BACK_AFTER:
                await ask("roll back", "/v1/adapters/rollback", reason="trial")
                await ask("promote", f"/v1/adapters/{adapter}/promote", reason="trial")
            if number == KILL_AFTER:
                await crowd.some(clients)
                stopped = time.perf_counter()
                on_killed = await killed(victim, crowd, stall_s)
        await crowd.some(clients)
    finally:
        await crowd.end()
    return Report(crowd.streams, windows, on_killed, (stopped, back))


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


def p99_ratio(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    within, before = ([wait for pair in pairs for wait in pair[side]] for side in (0, 1))
    return quantiles(within, n=100)[98] / quantiles(before, n=100)[98]


def told(trials: Sequence[Trial]) -> str:
    reports = [trial.report for trial in trials]
    pairs = [pair for report in reports for pair in report.first_s()]
    dice = np.random.default_rng(0)
    # Swaps are drawn anew, each with what was before it (bootstrap; Efron 1979).
    drawn = [p99_ratio([pairs[n] for n in dice.integers(len(pairs), size=len(pairs))]) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    within, before = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    rows = {
        "answers": [str(len(report.streams)) for report in reports],
        "swaps, rollbacks and canaries, the slowest": [
            f"{len(report.windows)}, {max(end - start for _, start, end in report.windows):.1f} s" for report in reports
        ],
        "failed before the first byte": [str(len(report.failed_before)) for report in reports],
        "failed within, and on the killed engine": [
            f"{len(report.failed_within)}, {len(report.on_killed)}, "
            + ("the same" if are_those_of_the_killed(report) else "**others**")
            for report in reports
        ],
        "the killed engine takes traffic again after": [
            f"{report.disturbed[1] - report.disturbed[0]:.0f} s" for report in reports
        ],
        "named by two adapters": [str(len(report.named_twice)) for report in reports],
        "not word for word as alone": [share(trial.report.streams, trial.own) for trial in trials],
        "the same without a swap": [share(trial.undisturbed, trial.own) for trial in trials],
    }
    table = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    ratio = (
        f"p99 of the wait for a first token, {within} that began in {len(pairs)} swaps against {before} in as long "
        f"before each: {p99_ratio(pairs):.2f} times ({low:.2f} to {high:.2f})"
    )
    return "\n".join(["| |" + " |" * len(trials), "|---|" + "---|" * len(trials), *table, "", ratio])


def are_those_of_the_killed(report: Report) -> bool:
    return {*map(id, report.failed_within)} == {*map(id, report.on_killed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40, help="of each answer, at most")
    parser.add_argument("--runs", type=int, default=2, help="each on a stack of its own")
    asked = parser.parse_args()
    os.environ["HEED_REPLICAS"] = "2"
    trials, is_clean = [], True
    for _ in range(asked.runs):
        with tempfile.TemporaryDirectory(prefix="heed-swaps-") as folder:
            stack = Stack(Path(folder), ROOT / "var" / "pocket")
            try:
                stack.start()
                trials.append(asyncio.run(on_real_engines(stack, asked.tokens)))
                checked = stack.run("check", timeout_s=300)
            finally:
                stack.stop()
        report = trials[-1].report
        is_clean = is_clean and not (report.failed_before or report.named_twice or checked.returncode)
        is_clean = is_clean and are_those_of_the_killed(report)
        print(f"`heed check`: {checked.stdout.strip() or checked.stderr.strip()}", flush=True)
    print(f"\n{told(trials)}")
    sys.exit(not is_clean)


if __name__ == "__main__":
    main()
