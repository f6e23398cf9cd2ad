"""How many gateways, engines and trainers: `make scaling` measures costs, checks the simulation against a real run, and
prints a fleet's size.

    python -m tests.load.scaling                       the embedded stack with the pocket model, on this machine
    python -m tests.load.scaling --url URL --key KEY   a stack that runs elsewhere; its gateway's CPU is not seen then

Three runs with 1, 4 and 12 clients, each asking again when it has its answer, give an engine's costs (least squares
over the time between tokens). Then requests come by chance (Poisson) at two rates, to the real stack and to the
simulated one (tests/load/simulation.py), whose waits must be within 20 % of each other at the median; ends with code 1
where they are not.
"""

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from tests.load.contestants import cpu_s
from tests.load.simulation import Costs, Fleet, Outcome
from tests.processes import ROOT
from tests.stack import Stack

CLIENTS = (1, 4, 12)
TOKENS = (16, 96)
"""Of an answer, from the least to the most."""

TOLERANCE = 0.2
RATES = (0.3, 0.6)
"""Of what the engine can do, at which the simulation is held to the real run."""

VOTED, PAIRED = 0.01, 0.5
"""Votes for each answer, and pairs for each vote."""

ASSUMED = Costs(step_s=0.015, answer_s=0.0001, prompt_s=0.01, request_s=0.0006, token_s=0.0, most=256)
"""For the plan's second table: what one would hope of a GPU and a model of some billion parameters."""

PROMPTS = ("How do I build a kite?", "How do I bake bread?", "How do I mend a bicycle?", "How do I plant a tree?")


class Waits(NamedTuple):
    """Of one answer: from the request's last byte to each token, in seconds."""

    at_s: list[float]

    @property
    def first_s(self) -> float:
        return self.at_s[0]

    @property
    def whole_s(self) -> float:
        return self.at_s[-1]

    @property
    def step_s(self) -> float:
        return (self.at_s[-1] - self.at_s[0]) / (len(self.at_s) - 1)


class Asker(asyncio.Protocol):
    """One streamed answer. By hand, for on two cores the client shares them with what it measures."""

    def __init__(self, request: bytes, tokens: int) -> None:
        self._request = request
        self._tokens = tokens
        self._parser = httptools.HttpResponseParser(self)
        self._at_s: list[float] = []
        self.ended: asyncio.Future[Waits] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)
        self._began = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        # Each token is an event with a logprob; the events of role, end and usage have none.
        self._at_s += [time.perf_counter() - self._began] * data.count(b'"bytes":')

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._transport.close()
        if status == 200 and len(self._at_s) == self._tokens:
            self.ended.set_result(Waits(self._at_s))
        else:
            self.ended.set_exception(AssertionError(f"{status}, {len(self._at_s)} of {self._tokens} tokens"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(f"the connection broke: {error}"))


@dataclass(frozen=True)
class Real:
    """A stack that answers, and the process of its gateway where that is on this machine."""

    host: str
    port: int
    key: str
    pid: int | None

    async def answer(self, tokens: int, prompt: str) -> Waits:
        asked = {
            "model": "heed",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "logprobs": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        body = orjson.dumps(asked)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        if self.key:
            head += f"authorization: Bearer {self.key}\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        _, asker = await asyncio.get_running_loop().create_connection(
            lambda: Asker(request, tokens), self.host, self.port
        )
        return await asker.ended

    async def closed(self, clients: int, answers: int, dice: random.Random) -> list[Waits]:
        """Each client asks again when it has its answer."""
        left = iter(range(answers))

        async def client() -> list[Waits]:
            return [await self.answer(dice.randint(*TOKENS), dice.choice(PROMPTS)) for _ in left]

        found = await asyncio.gather(*(client() for _ in range(clients)))
        return [waits for each in found for waits in each]

    async def open(self, per_s: float, seconds: float, dice: random.Random) -> list[Waits]:
        """Requests that come by chance, whoever still waits."""
        clock, end = time.perf_counter, time.perf_counter() + seconds
        asked = []
        at = clock()
        while (at := at + dice.expovariate(per_s)) < end:
            await asyncio.sleep(max(0.0, at - clock()))
            asked.append(asyncio.create_task(self.answer(dice.randint(*TOKENS), dice.choice(PROMPTS))))
        return (await asyncio.gather(*asked))[len(asked) // 10 :]


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: what y is at x = 0, and how much more for each x."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    by = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - by * mean_x, by


async def measured(real: Real, dice: random.Random) -> Costs:
    await real.closed(4, 8, dice)  # connects, compiles
    steps, firsts, gateway = [], [], []
    for clients in CLIENTS:
        before = cpu_s(real.pid) if real.pid else 0.0
        found = await real.closed(clients, max(24, 12 * clients), dice)
        spent_s = (cpu_s(real.pid) if real.pid else 0.0) - before
        steps.append((clients - 1.0, median(waits.step_s for waits in found)))
        firsts.append(median(waits.first_s for waits in found))
        gateway.append((sum(len(waits.at_s) for waits in found) / len(found), spent_s / len(found)))
        print(
            f"  {clients:3} clients: {steps[-1][1] * 1e3:.1f} ms a token, first {firsts[-1] * 1e3:.0f} ms", flush=True
        )
    step_s, answer_s = slope(steps)
    lengths, spent = zip(*gateway, strict=True)
    request_s = 0.0006  # docs/benchmarks.md, The hop; of one length of answers the two can't be told apart
    token_s = max(0.0, median(spent) - request_s) / median(lengths)
    costs = Costs(step_s, max(0.0, answer_s), 0.0, request_s, token_s)
    # What a first token takes beyond a step: with one client all of it is its own; with more, others' prompts too.
    alone = firsts[0] - costs.step_s - costs.request_s - costs.token_s
    return replace(costs, prompt_s=max(0.0, alone))


def compared(real: list[Waits], simulated: Outcome) -> list[tuple[str, float, float]]:
    def percent(values: list[float], which: int) -> float:
        return quantiles(values, n=100)[which - 1]

    first, whole = [waits.first_s for waits in real], [waits.whole_s for waits in real]
    return [
        ("first token, median", median(first), simulated.first(50)),
        ("first token, p95", percent(first, 95), simulated.first(95)),
        ("whole answer, median", median(whole), simulated.whole(50)),
        ("whole answer, p95", percent(whole, 95), simulated.whole(95)),
    ]


def capacity(costs: Costs, tokens: float) -> float:
    """Answers a second of an engine that is full."""
    step_s = costs.step_s + costs.answer_s * (costs.most - 1)
    return costs.most / (tokens * step_s + costs.most * costs.prompt_s)


@dataclass(frozen=True)
class Size:
    per_s: float
    gateways: int
    engines: int
    outcome: Outcome
    """Of its cell: the eighth engine and those gateways that belong to it are like the ninth."""


CELL = 8
"""Engines that are simulated together; a larger fleet is so many cells. Least-loaded routing over all of them is no
worse than over each cell for itself."""

FULLEST = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of what an engine can do: the first at which people do not wait too long."""

GATEWAY_BUSY = 0.6
"""Of a gateway's CPU: above, the wait for it grows faster than the load."""


def sized(costs: Costs, per_s: float, tokens: tuple[int, int], first_s: float) -> Size:
    """So few machines that 95 of 100 first tokens come within `first_s`. Raises ValueError if none are enough."""
    mean = sum(tokens) / 2
    for fullness in FULLEST:
        engines = math.ceil(per_s / (fullness * capacity(costs, mean)))
        gateways = math.ceil(per_s * (costs.request_s + mean * costs.token_s) / GATEWAY_BUSY)
        share = min(1.0, CELL / engines)
        cell = Fleet(costs, max(1, round(gateways * share)), max(1, round(engines * share)))
        outcome = cell.run(per_s * share, tokens, max(60.0, 10 * mean * costs.step_s))
        if outcome.unfinished < len(outcome.first_s) and outcome.first(95) <= first_s:
            return Size(per_s, gateways, engines, outcome)
    raise ValueError(f"no number of engines gives 95 of 100 first tokens within {first_s:g} s")


def plan(name: str, costs: Costs, tokens: tuple[int, int], first_s: float) -> str:
    lines = [
        f"{name}: {costs.step_s * 1e3:.2f} ms a step, {costs.answer_s * 1e3:.3f} ms for each further answer, "
        f"{costs.prompt_s * 1e3:.1f} ms a prompt, {costs.most} answers at once; gateway {costs.request_s * 1e6:.0f} µs "
        f"a request and {costs.token_s * 1e6:.0f} µs a token; answers of {tokens[0]} to {tokens[1]} tokens, 95 of 100 "
        f"first tokens within {first_s:g} s.",
        "",
        "| requests/s | gateway processes | engines | engines busy | first token, median, p95 | a day: votes, pairs |",
        "|---|---|---|---|---|---|",
    ]
    for per_s in (10, 1_000, 100_000):
        size = sized(costs, per_s, tokens, first_s)
        votes = per_s * VOTED * 86_400
        waits = f"{size.outcome.first(50) * 1e3:.0f}, {size.outcome.first(95) * 1e3:.0f} ms"
        lines.append(
            f"| {per_s:,} | {size.gateways:,} | {size.engines:,} | {size.outcome.engines_busy:.0%} | {waits} "
            f"| {votes:,.0f}, {votes * PAIRED:,.0f} |"
        )
    return "\n".join(lines)


async def check(real: Real, costs: Costs, seconds: float, dice: random.Random) -> bool:
    """Whether the simulated waits are near the real ones; prints them."""
    print("| requests/s | wait | real, s | simulated, s | simulated / real |\n|---|---|---|---|---|")
    is_near = True
    for rate in RATES:
        per_s = rate * capacity(costs, sum(TOKENS) / 2)
        waits = await real.open(per_s, seconds, dice)
        # Much longer than the real run, so that chance is in one of the two only.
        outcome = Fleet(costs, 1, 1).run(per_s, TOKENS, 20 * seconds)
        for what, found, simulated in compared(waits, outcome):
            print(f"| {per_s:.1f} | {what} | {found:.3f} | {simulated:.3f} | {simulated / found:.2f} |", flush=True)
            is_near = is_near and ("p95" in what or abs(simulated / found - 1) <= TOLERANCE)
    return is_near


async def measure_and_check(real: Real, most: int, seconds: float, seed: int) -> tuple[Costs, bool]:
    dice = random.Random(seed)
    costs = replace(await measured(real, dice), most=most)
    print()
    return costs, await check(real, costs, seconds, dice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a gateway that runs already")
    parser.add_argument("--key", default="", help="a client's key for it")
    parser.add_argument("--most", type=int, default=32, help="the engine's --max-num-seqs (32 is the pocket model's)")
    parser.add_argument("--seconds", type=float, default=60, help="of each real run")
    parser.add_argument("--first-s", type=float, default=0.5, help="the wait for a first token that is good enough")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with ExitStack() as at_end:
        if asked.url:
            parts = urlsplit(asked.url)
            real = Real(parts.hostname or "127.0.0.1", parts.port or 80, asked.key, None)
        else:
            folder = at_end.enter_context(tempfile.TemporaryDirectory(prefix="heed-scaling-"))
            stack = Stack(Path(folder), ROOT / "var" / "pocket")
            at_end.callback(stack.stop)
            stack.start()
            real = Real("127.0.0.1", stack.port, "", stack.member("-m serve ").pid)
        costs, is_near = uvloop.run(measure_and_check(real, asked.most, asked.seconds, asked.seed))
    print(f"\n{plan('As measured', costs, TOKENS, asked.first_s)}")
    print(
        f"\n{plan('An engine that was assumed and not measured', replace(ASSUMED, token_s=costs.token_s), (64, 512), 1.0)}"
    )
    if not is_near:
        print(f"scaling: a median is more than {TOLERANCE:.0%} off the real one", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
