"""What the ledger's memory holds: bytes of Redis for each completion, stub, vote, comparison and pair.

`python -m tests.load.memory --count 10000` starts a server of its own, fills it in stages and prints what each stage
added to `used_memory`, so indexes and everything else that comes with a record are in it. Answers are those of
`make bench`: a short chat whose record has 1.9 kB, all of them different.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from statistics import median
from typing import Any

from feedback import archive, comparisons, completions, erasure, pairs, votes
from feedback.connection import Ledger, open_ledger
from feedback.records import AnswerRef, Comparison, Completion, new_id, prompt_digest
from feedback.settings import LedgerSettings
from tests.load.bench_votes import asked
from tests.processes import free_port, ledger_server

AT_ONCE = 100
MONTH_S = 31 * completions.DAY_S


class Stages:
    """Measures what an act adds to the ledger, and prints it for each of so many records."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def stage(self, name: str, count: int, act: Callable[[], Awaitable[object]]) -> None:
        before = await self.used()
        began = time.process_time()
        await act()
        added = (await self.used() - before) / count
        cpu_us = (time.process_time() - began) / count * 1e6
        print(f"| {name} | {added:,.0f} | {added * 1e6 / 2**30:,.2f} | {cpu_us:,.0f} |")

    async def used(self) -> int:
        await self._ledger.redis.memory_purge()
        return int((await self._ledger.redis.info("memory"))["used_memory"])


def answers(count: int) -> list[Completion]:
    """Two to each prompt."""
    made = []
    for number in range(count):
        one = asked()
        one.messages = [
            *one.messages[:-1],
            {"role": "user", "content": f"{number // 2}: {one.messages[-1]['content']}"},
        ]
        one.choices[0].message["content"] = f"{number}: {one.choices[0].message['content']}"
        one.user = f"user-{number % 1000}"
        made.append(one.model_copy(update={"prompt_hash": prompt_digest(one.messages)}))
    return made


async def each(acts: Sequence[Callable[[], Awaitable[object]]]) -> None:
    for start in range(0, len(acts), AT_ONCE):
        await asyncio.gather(*(act() for act in acts[start : start + AT_ONCE]))


async def measure(ledger: Ledger, count: int) -> None:
    made = answers(count)
    shown = [compared(one, other) for one, other in zip(made[::2], made[1::2], strict=True)]

    async def record() -> None:
        await each([lambda one=one: completions.record(ledger, one) for one in made])  # type: ignore[misc]

    async def vote() -> None:
        await each(
            [
                lambda one=one, n=n: votes.cast(  # type: ignore[misc]
                    ledger, completion_id=one.id, rating="down" if n % 2 else "up", voter=f"voter-{n // 2 % 1000}"
                )
                for n, one in enumerate(made)
            ]
        )

    async def compare() -> None:
        await each([lambda one=one: comparisons.record(ledger, one) for one in shown])  # type: ignore[misc]

    async def move() -> None:
        began = ledger.clock()
        ledger.clock = lambda: began + MONTH_S
        assert (await archive.run(ledger)).completions == count

    stages = Stages(ledger)
    print("| what | bytes each | GiB a million | CPU µs each, this side |\n|---|---|---|---|")
    await stages.stage("a completion, live", count, record)
    await stages.stage("a vote", count, vote)
    await stages.stage("a pair, with its share of the tallies", count // 2, lambda: pairs.settle(ledger))
    await stages.stage("a comparison", count // 2, compare)
    await ledger.redis.config_set("slowlog-log-slower-than", 500)
    await ledger.redis.slowlog_reset()
    await stages.stage("an archived completion, against a live one", count, move)
    held_ms = [call["duration"] / 1000 for call in await ledger.redis.slowlog_get(128) if is_moving(call)]
    files = list(Path(ledger.settings.archive_address).rglob("*.parquet"))
    size = sum(path.stat().st_size for path in files)
    stub = await ledger.redis.memory_usage(ledger.keys.completion(made[0].id))
    print(
        f"\nThe key of a stub takes {stub} of its bytes. "
        f"{len(files)} files hold {size / count:,.0f} bytes a completion. Redis moved each of "
        f"{len(held_ms)} partitions in {median(held_ms):.1f} ms (median; {max(held_ms):.1f} at most). "
        f"{await pairs.count(ledger)} pairs."
    )
    for name, step in (("one archived completion", 1), ("a hundred of one partition", 100)):
        began = time.process_time()
        for start in range(0, 20 * step, step):
            await completions.get_many(ledger, [one.id for one in made[start : start + step]])
        print(f"Reading {name} takes {(time.process_time() - began) / 20 * 1000:.1f} ms of CPU time.")
    began = time.process_time()
    for one in made[:20]:
        await erasure.of_completion(ledger, one.id)
    print(f"Deleting an archived completion takes {(time.process_time() - began) / 20 * 1000:.1f} ms of CPU time.")


def is_moving(call: Mapping[str, Any]) -> bool:
    return sha1(archive.MOVE.encode(), usedforsecurity=False).hexdigest().encode() in call["command"]


def compared(one: Completion, other: Completion) -> Comparison:
    return Comparison(
        id=new_id("cmp"),
        served_model="heed",
        created=one.created,
        messages=one.messages,
        prompt_hash=one.prompt_hash,
        a=AnswerRef(completion_id=one.id),
        b=AnswerRef(completion_id=other.id),
        adapter_a=one.adapter,
        adapter_b=other.adapter,
    )


async def run(url: str, folder: Path, count: int) -> None:
    ledger = open_ledger(LedgerSettings(ledger_url=url, var=folder))
    try:
        await measure(ledger, count)
    finally:
        await ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="completions")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with ledger_server(Path(folder), port):
            asyncio.run(run(f"redis://127.0.0.1:{port}/0", Path(folder), count))


if __name__ == "__main__":
    main()
