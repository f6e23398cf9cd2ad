"""How long first tokens take while a job trains on the same cores, without a bound and with one.

    python -m tests.load.bench_pauses --pocket var/pocket --clients 4 --bound 0.3

The embedded stack with a real vLLM on CPU, streaming clients all the while, and one job of the pocket model: for each
bound the p50 and p95 of the time to first token before the job, and while it trains, and how long that took.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import httpx

from feedback import jobs
from feedback.connection import open_ledger
from feedback.records import Job
from feedback.settings import LedgerSettings
from tests.load.streams import Crowd, Stream
from tests.stack import Stack
from tests.workshop import asked_for, ended, taught, told, until

BEFORE_S = 20.0
TOKENS = 24
EPOCHS = 12
"""So that training takes some minutes and not some seconds."""
PATIENCE_S = 1200


@dataclass
class Figures:
    bound_s: float
    before: list[float]
    during: list[float]
    job: Job

    def row(self) -> str:
        waits = [f"{value:.2f} s" for waits in (self.before, self.during) for value in spread(waits)]
        times = [f"{self.job.seconds.get(name, 0):.0f} s" for name in ("train", "paused")]
        bound = f"{self.bound_s:g} s" if self.bound_s else "none"
        return f"| {' | '.join([bound, *waits, *times])} |"


def spread(waits: Sequence[float]) -> tuple[float, float]:
    """p50 and p95."""
    cuts = quantiles(waits, n=20)
    return cuts[9], cuts[18]


def first_tokens(streams: Sequence[Stream], since: float, until_: float) -> list[float]:
    begun = (stream for stream in streams if since <= stream.began < until_)
    return [stream.first - stream.began for stream in begun if stream.first is not None]


async def measured(stack: Stack, bound_s: float, clients: int) -> Figures:
    ledger = open_ledger(LedgerSettings(ledger_url=stack.env["HEED_LEDGER_URL"], var=stack.var))
    try:
        await taught(ledger)
        async with httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE_S, trust_env=False) as http:
            crowd = Crowd(http, clients, TOKENS)
            began = time.monotonic()
            await asyncio.sleep(BEFORE_S)
            asked = await asked_for(ledger)
            await until(lambda: told(ledger, asked.id, "Training starts"), "training starts", PATIENCE_S)
            starts = time.monotonic()
            await until(lambda: told(ledger, asked.id, "Training done"), "training is done", PATIENCE_S)
            done = time.monotonic()
            await crowd.end()
        await ended(ledger, asked.id)
        before = first_tokens(crowd.streams, began, starts)
        during = first_tokens(crowd.streams, starts, done)
        return Figures(bound_s, before, during, await jobs.get(ledger, asked.id))
    finally:
        await ledger.close()


def run(pocket: Path, bound_s: float, clients: int) -> Figures:
    os.environ |= {"HEED_FIRST_TOKEN_P95_S": str(bound_s), "HEED_EPOCHS": str(EPOCHS), "HEED_CONSOLE": "off"}
    with tempfile.TemporaryDirectory() as var:
        stack = Stack(Path(var), pocket.resolve())
        try:
            stack.start()
            return asyncio.run(measured(stack, bound_s, clients))
        finally:
            stack.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pocket", type=Path, default=Path("var/pocket"))
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--bound", type=float, default=0.3, help="seconds of p95")
    told = parser.parse_args()
    print(f"{told.clients} clients, load before the start: {os.getloadavg()[0]:.1f}\n")
    print(
        "| bound | before: p50 | p95 | while training: p50 | p95 | training | paused |\n|---|---|---|---|---|---|---|"
    )
    for bound_s in (0.0, told.bound):
        print(run(told.pocket, bound_s, told.clients).row(), flush=True)


if __name__ == "__main__":
    main()
