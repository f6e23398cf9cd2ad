"""How many gateways, engines and trainers: `make scaling` measures costs, checks the simulation against a real run, and
prints a fleet's size.

    python -m tests.load.scaling                       the embedded stack with the pocket model, on this machine
    python -m tests.load.scaling --url URL --key KEY   a stack that runs elsewhere; its gateway's CPU is not seen then

Clients that ask again when they have their answer, 1, 4 and 12 of them with short and long answers, give an engine's
costs before and among two runs in which requests come by chance (Poisson), to the real stack and to the simulated one
(tests/load/simulation.py). Their waits must be within 20 % of each other at the median; ends with code 1 where they are
not.
"""

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, quantiles
from urllib.parse import urlsplit

import numpy as np
import uvloop

from tests.load.asker import TOKENS, Real, Waits
from tests.load.contestants import cpu_s
from tests.load.retraining import Training
from tests.load.simulation import Costs, Fleet, Outcome
from tests.load.sizing import capacity, fleet_table, trainer_table
from tests.processes import ROOT
from tests.stack import Stack

LOOKS = ((1, 56, 6), (4, 16, 16), (4, 96, 8), (12, 16, 48), (12, 96, 24))
"""Clients, tokens of each answer, and answers: of few tokens, so that prompts break in often, and of many."""

STRETCHES = 4
"""Of each run, with a look at the costs after each."""

TOLERANCE = 0.2
RATES = (0.3, 0.6)
"""Of what the engine can do, at which the simulation is held to the real run."""

REQUEST_S = 0.0006
"""Of the gateway's CPU; docs/benchmarks.md, The hop. Streams of one length can't tell it from their tokens."""

ASSUMED = Costs(step_s=0.015, answer_s=0.0001, prompt_s=0.01, request_s=REQUEST_S, token_s=0.0, most=256)
"""What one would hope of a GPU and a model of some billion parameters."""

POCKET_TRAINING = Training(pair_s=0.016, around_s=33, epochs=3)
"""docs/benchmarks.md, Training: 200 pairs are 14,742 tokens, of which a core takes 4,613 a second; of the 46 s of the
circle with 269 pairs the rest is around it."""

ASSUMED_TRAINING = Training(pair_s=0.12, around_s=300, epochs=2)
"""A pair of 1,000 tokens at 8,300 a second: 8e9 parameters, 6 operations each (forward for policy and reference, and
backward to the activations), 400e12 a second."""

LIVE_S = 3600
"""From a vote to its adapter."""


@dataclass
class Probe:
    """Costs by closed loops of a few clients, looked at again and again, for a machine is not always as quick."""

    real: Real
    steps: list[tuple[float, float, float]] = field(default_factory=list)
    """How many other answers ran, how many of their prompts came in a step, and seconds a token."""
    alone_s: list[float] = field(default_factory=list)
    """First tokens of a client that is alone."""
    tokens: int = 0
    answers: int = 0
    gateway_s: float = 0.0

    async def look(self, dice: random.Random) -> None:
        for clients, tokens, answers in LOOKS:
            before = cpu_s(self.real.pid) if self.real.pid else 0.0
            found = await self.real.closed(clients, answers, (tokens, tokens), dice)
            self.gateway_s += (cpu_s(self.real.pid) if self.real.pid else 0.0) - before
            self.answers += answers
            self.tokens += answers * tokens
            self.steps.append((clients - 1, (clients - 1) / tokens, fmean(waits.step_s for waits in found)))
            if clients == 1:
                self.alone_s += [waits.first_s for waits in found]

    def add(self, other: "Probe") -> None:
        self.steps += other.steps
        self.alone_s += other.alone_s
        self.tokens += other.tokens
        self.answers += other.answers
        self.gateway_s += other.gateway_s

    def costs(self, most: int) -> Costs:
        """Least squares over what a token takes beside others' answers and prompts."""
        others, prompts, took_s = np.array(self.steps).T
        (step_s, answer_s, prompt_s), *_ = np.linalg.lstsq(
            np.column_stack([np.ones_like(others), others, prompts]), took_s, rcond=None
        )
        token_s = max(0.0, self.gateway_s - REQUEST_S * self.answers) / self.tokens
        costs = Costs(step_s, max(0.0, answer_s), max(0.0, prompt_s), REQUEST_S, token_s, most=most)
        known_s = costs.step_s + costs.prompt_s + costs.request_s + costs.token_s
        return replace(costs, around_s=max(0.0, median(self.alone_s) - known_s))


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


async def measure_and_check(real: Real, most: int, seconds: float, seed: int) -> tuple[Costs, bool]:
    """Prints how near the simulated waits are to the real ones, each run by the costs of its own minutes."""
    dice = random.Random(seed)
    await real.closed(4, 8, TOKENS, dice)  # connects, compiles
    whole = Probe(real)
    await whole.look(dice)
    print("| requests/s | answers | wait | real, s | simulated, s | simulated / real |\n|---|---|---|---|---|---|")
    is_near = True
    for rate in RATES:
        per_s, waits, probe = rate * capacity(whole.costs(most), sum(TOKENS) / 2), [], Probe(real)
        for _ in range(STRETCHES):
            waits += await real.open(per_s, seconds / STRETCHES, dice)
            await probe.look(dice)
        # Much longer than the real run, so that chance is in one of the two only.
        outcome = Fleet(probe.costs(most), 1, 1).run(per_s, TOKENS, 20 * seconds)
        for what, found, simulated in compared(waits, outcome):
            ratio = simulated / found
            print(f"| {per_s:.1f} | {len(waits)} | {what} | {found:.3f} | {simulated:.3f} | {ratio:.2f} |", flush=True)
            is_near = is_near and ("p95" in what or abs(ratio - 1) <= TOLERANCE)
        whole.add(probe)
    return whole.costs(most), is_near


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
    print(f"\n{fleet_table('As measured', costs, TOKENS, asked.first_s)}")
    assumed = replace(ASSUMED, token_s=costs.token_s)
    print(f"\n{fleet_table('An engine that was assumed and not measured', assumed, (64, 512), 1.0)}")
    print(f"\n{trainer_table('The pocket model on one core', POCKET_TRAINING, LIVE_S)}")
    print(f"\n{trainer_table('A GPU that was assumed and not measured', ASSUMED_TRAINING, LIVE_S)}")
    if not is_near:
        print(f"scaling: a median is more than {TOLERANCE:.0%} off the real one", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
