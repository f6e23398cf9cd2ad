"""What it costs to look at many votes: the report, the preview and the export, over HTTP through a gateway process.

    python -m tests.load.bench_reads --votes 1000000 --prompts 100000

A crowd made from a seed votes in every way there is, through the ledger's own script, on a real ledger server with
`appendfsync always`. All of it is settled by the same code as the worker's. Times are the client's; CPU is the
gateway's own, by the kernel's count; the peak of its memory is counted anew for each export. With --recount the sums
are held against a recount of everything.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil

from feedback import comparisons, pairs, report, tally
from feedback.connection import Ledger, open_ledger
from feedback.records import (
    AnswerRef,
    Choice,
    Comparison,
    ComparisonVote,
    Completion,
    Preference,
    Vote,
    prompt_digest,
)
from feedback.settings import LedgerSettings
from feedback.votes import Opinion
from tests import electorate
from tests.gateways import OPERATOR
from tests.processes import answers, free_port, ledger_server, running, wait_for

ANSWERS = 3
VOTERS = 2000
WORDS = ["the", "kite", "flies", "when", "wind", "comes", "from", "behind", "and", "you", "run", "slowly", "with", "it"]
LOOKS = 20
MORE_PROMPTS = 100
AT_ONCE = 100  # prompts


class Crowd:
    """Prompts, answers and opinions by a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.voters = [f"voter-{number}" for number in range(VOTERS)]

    def prompt(self, number: int) -> tuple[list[Completion], Comparison]:
        messages = [{"role": "user", "content": f"{number}: {self._text(20)}?"}]
        asked = [
            Completion(
                id=f"chatcmpl-{number:08d}{i:02d}",
                served_model="heed",
                adapter=f"heed-v{1 + i}-0000000{i}",
                created=1000.0 + number,
                messages=messages,
                prompt_hash=prompt_digest(messages),
                choices=[Choice(index=0, message={"role": "assistant", "content": self._text(40)})],
            )
            for i in range(ANSWERS)
        ]
        a, b = asked[:2]
        comparison = Comparison(
            id=f"cmp-{number:08d}",
            served_model="heed",
            created=1000.0 + number,
            messages=messages,
            prompt_hash=a.prompt_hash,
            a=AnswerRef(completion_id=a.id),
            b=AnswerRef(completion_id=b.id),
            adapter_a=a.adapter,
            adapter_b=b.adapter,
        )
        return asked, comparison

    def opinions(self, count: int, asked: list[Completion], comparison: Comparison) -> Iterator[Opinion]:
        """Of as many voters: thumbs, of which some correct; preferences; what was said of the comparison."""
        for voter in self.dice.sample(self.voters, count):
            one, other = self.dice.sample(asked, 2)
            given = {"prompt_hash": one.prompt_hash, "voter": voter, "created": 0, "updated": 0}
            kind = self.dice.random()
            if kind < 0.65:
                wanted = self._text(40) if kind < 0.05 else None
                rating = "down" if wanted else self.dice.choice(["up", "up", "down"])
                about = {"id": Vote.id_of(one.id, 0, voter), "completion_id": one.id, "model": one.adapter}
                yield Vote.model_validate(given | about | {"rating": rating, "correction": wanted})
            elif kind < 0.8:
                chosen, rejected = AnswerRef(completion_id=one.id), AnswerRef(completion_id=other.id)
                sides = {"chosen": chosen, "rejected": rejected}
                yield Preference.model_validate(given | sides | {"id": Preference.id_of(chosen, rejected, voter)})
            else:
                about = {"id": ComparisonVote.id_of(comparison.id, voter), "comparison_id": comparison.id}
                shown = {
                    "a": comparison.a,
                    "b": comparison.b,
                    "model_a": comparison.adapter_a,
                    "model_b": comparison.adapter_b,
                }
                said = self.dice.choice(["a", "a", "b", "tie", "both_bad"])
                yield ComparisonVote.model_validate(given | about | shown | {"preferred": said})

    def _text(self, words: int) -> str:
        return " ".join(self.dice.choices(WORDS, k=words))


async def fill(ledger: Ledger, crowd: Crowd, numbers: range, votes_each: int) -> int:
    """Returns how many votes were cast."""
    cast = 0
    for start in range(numbers.start, numbers.stop, AT_ONCE):
        made = [crowd.prompt(number) for number in range(start, min(start + AT_ONCE, numbers.stop))]
        await electorate.ask(ledger, [answer for asked, _ in made for answer in asked])
        await asyncio.gather(*(comparisons.record(ledger, comparison) for _, comparison in made))
        given = [opinion for asked, comparison in made for opinion in crowd.opinions(votes_each, asked, comparison)]
        await electorate.vote(ledger, given)
        cast += len(given)
    return cast


@dataclass
class Reader:
    """A gateway process, and a client of it."""

    http: httpx.AsyncClient
    process: psutil.Process

    async def look_often(self, path: str) -> str:
        took_ms, cpu_ms = [], []
        for _ in range(LOOKS):
            took, cpu = await self.look(path)
            took_ms.append(took)
            cpu_ms.append(cpu)
        return (
            f"{median(took_ms):.0f} ms, slowest of {LOOKS} {max(took_ms):.0f} ms; {sum(cpu_ms) / LOOKS:.0f} ms of CPU"
        )

    async def look(self, path: str) -> tuple[float, float]:
        """Milliseconds by the clock, and of the gateway's CPU."""
        cpu, began = self._cpu_s(), time.perf_counter()
        (await self.http.get(path)).raise_for_status()
        return (time.perf_counter() - began) * 1e3, (self._cpu_s() - cpu) * 1e3

    async def export(self) -> str:
        before = self.process.memory_info().rss
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # forgets the peak so far
        began, lines, size = time.perf_counter(), 0, 0
        async with self.http.stream("GET", "/v1/pairs") as reply:
            reply.raise_for_status()
            async for part in reply.aiter_bytes():
                lines += part.count(b"\n")
                size += len(part)
        took = time.perf_counter() - began
        grown = (self._peak() - before) / 2**20
        told = f"{lines:,} pairs, {size / 2**20:.0f} MB in {took:.1f} s"
        return f"{told}; the gateway's peak was {grown:.1f} MB above its {before / 2**20:.0f}"

    def _peak(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024

    def _cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@asynccontextmanager
async def reader(folder: Path, ledger_url: str) -> AsyncIterator[Reader]:
    """The gateway has no engine, for no look asks one."""
    port = free_port()
    env = {
        "HEED_LEDGER_URL": ledger_url,
        "HEED_PORT": str(port),
        "HEED_VAR": str(folder),
        "HEED_ENGINES": f"http://127.0.0.1:{free_port()}",
        "HEED_RECONCILE_EVERY_S": "60",
        "HEED_OPERATOR_KEY": OPERATOR,
    }
    with running([sys.executable, "-m", "serve"], folder / "gateway.log", env) as process:
        await asyncio.to_thread(wait_for, lambda: answers(port), "the gateway listens")
        headers = {"authorization": f"Bearer {OPERATOR}"}
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False) as http:
            yield Reader(http, psutil.Process(process.pid))


async def grow(ledger: Ledger, looking: Reader, crowd: Crowd, numbers: range, votes_each: int) -> None:
    began = time.perf_counter()
    cast = await fill(ledger, crowd, numbers, votes_each)
    took, before = time.perf_counter() - began, await memory(ledger)
    print(f"{cast:,} votes on {len(numbers):,} prompts were cast in {took:.0f} s; Redis has {before / 2**20:.0f} MB")
    began = time.perf_counter()
    await pairs.settle(ledger)
    took, after = time.perf_counter() - began, await memory(ledger)
    each_ms, kept = took / len(numbers) * 1e3, (after - before) / cast
    print(f"settled in {took:.0f} s, {each_ms:.2f} ms a prompt; {kept:.0f} bytes a vote")
    print(f"export: {await looking.export()}", flush=True)


async def memory(ledger: Ledger) -> int:
    return int((await ledger.redis.info("memory"))["used_memory"])


async def run(ledger: Ledger, looking: Reader, given: argparse.Namespace) -> None:
    crowd, votes_each, tenth = Crowd(given.seed), given.votes // given.prompts, given.prompts // 10
    await grow(ledger, looking, crowd, range(tenth), votes_each)
    await grow(ledger, looking, crowd, range(tenth, given.prompts), votes_each)
    more = given.prompts
    for name, path in (("stats", "/v1/stats"), ("preview", "/v1/pairs/preview")):
        print(f"{name}: {await looking.look_often(path)}")
        cast = await fill(ledger, crowd, range(more, more + MORE_PROMPTS), votes_each)
        more += MORE_PROMPTS
        took_ms, cpu_ms = await looking.look(path)
        what = f"{name}, the first after {cast:,} more votes on {MORE_PROMPTS} prompts"
        print(f"{what}: {took_ms:.0f} ms; {cpu_ms:.0f} ms of CPU")
        await pairs.settle(ledger)
    if given.recount:
        began = time.perf_counter()
        recounted = await pairs.recount(ledger)
        assert recounted.tally == await tally.read(ledger), "the tally is off"
        assert recounted.report == await report.kept(ledger), "the report is off"
        print(f"a recount of everything agrees; it took {time.perf_counter() - began:.0f} s")


async def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--votes", type=int, default=100_000)
    asking.add_argument("--prompts", type=int, default=10_000)
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--recount", action="store_true")
    given = asking.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with ledger_server(Path(folder) / "ledger", port):
            url = f"redis://127.0.0.1:{port}/0"
            # 500 votes in one pipeline hold the server up for longer than a chat would wait.
            ledger = open_ledger(LedgerSettings(ledger_url=url, ledger_timeout_s=60))
            try:
                async with reader(Path(folder), url) as looking:
                    await run(ledger, looking, given)
            finally:
                await ledger.close()


if __name__ == "__main__":
    asyncio.run(main())
