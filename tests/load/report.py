"""How long the report takes on many votes: `python -m tests.load.report --votes 200000 --prompts 20000`.

Votes of a crowd on answers of a dozen adapters are written through the ledger's own script and settled; comparisons,
whose cost to the report is their counters alone, are put in as counters. Prints what each step took and what it keeps.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from feedback import pairs, report, stats, strengths, voters
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests import electorate
from tests.electorate import honest
from tests.processes import free_port, ledger_server

VERSIONS = ["heed-base", *(f"heed-v{number}-{number:08x}" for number in range(1, 12))]
LOOKS = 20


async def measure(ledger: Ledger, prompts: int, cast: int, people: int) -> None:
    chance = random.Random(0)
    now = time.time()
    began = time.monotonic()
    per_person = cast // people
    made = [
        electorate.question(number).model_copy(update={"adapter": chance.choice(VERSIONS), "created": now})
        for number in range(prompts)
    ]
    for start in range(0, prompts, 1000):
        await electorate.ask(ledger, made[start : start + 1000])
    answers = [(one, choice) for one in made for choice in (0, 1)]
    for number in range(people):
        seen = chance.sample(answers, per_person)
        await electorate.vote(ledger, electorate.thumbs(f"person-{number:05}", honest(0.2), seen, chance))
    print(f"{cast} votes of {people} voters on {prompts} prompts were cast in {time.monotonic() - began:.0f} s")
    await settle(ledger)
    await add_comparisons(ledger, chance)
    await look(ledger)


async def settle(ledger: Ledger) -> None:
    memory = (await ledger.redis.info("memory"))["used_memory"]
    began = time.monotonic()
    settled = await pairs.settle(ledger)
    took = time.monotonic() - began
    print(f"{settled} prompts were settled in {took:.0f} s, {took / settled * 1e3:.2f} ms each")
    kept = (await ledger.redis.info("memory"))["used_memory"]
    print(f"{memory / 2**20:.0f} MB before settling, {kept / 2**20:.0f} MB after it")
    began = time.monotonic()
    await voters.quarantine_worst(ledger)
    print(f"all voters were judged in {(time.monotonic() - began) * 1e3:.0f} ms")


async def add_comparisons(ledger: Ledger, chance: random.Random) -> None:
    """Each version against the three before it, as live adapters and canaries meet."""
    pipe = ledger.redis.pipeline(transaction=False)
    for place, one in enumerate(VERSIONS):
        for other in VERSIONS[max(0, place - 3) : place]:
            pipe.hincrby(ledger.keys.report, f"beat {one} {other}", chance.randrange(400, 600))
            pipe.hincrby(ledger.keys.report, f"beat {other} {one}", chance.randrange(300, 500))
            pipe.hincrby(ledger.keys.report, f"tied {one} {other}", chance.randrange(50, 150))
    await pipe.execute()


async def look(ledger: Ledger) -> None:
    fresh: list[float] = []
    again: list[float] = []
    for _ in range(LOOKS):
        strengths.strengths.cache_clear()
        for took in (fresh, again):
            began = time.monotonic()
            await stats.totals(ledger)
            await stats.quality(ledger)
            took.append((time.monotonic() - began) * 1e3)
    print(f"{len(await report.counters(ledger))} counters; the report, median (worst) of {LOOKS}:")
    for what, took in (("after new comparisons", fresh), ("else", again)):
        print(f"  {median(took):.0f} ({max(took):.0f}) ms {what}")


async def main(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        with ledger_server(Path(directory), port):
            ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0"))
            await measure(ledger, asked.prompts, asked.votes, asked.voters)
            await ledger.close()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=int, default=20_000)
    options.add_argument("--votes", type=int, default=200_000)
    options.add_argument("--voters", type=int, default=2_000)
    asyncio.run(main(options.parse_args()))
