"""How long a preview takes when many people have voted on many prompts.

    python -m tests.load.bench_preview --votes 100000 --prompts 10000

A crowd made from a seed votes in every way there is, on a real ledger server with `appendfsync always`. Opinions are
written as votes.CAST leaves them, in pipelines, for the writing is not what is measured. Then: settling everything,
previews of the settled ledger, previews after a few more votes, and with --recount the tally against a recount.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from redis.asyncio.client import Pipeline

from feedback import completions, pairs, preview, tally
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
from feedback.votes import Opinion, refs
from tests.processes import free_port, ledger_server

ANSWERS = 3
VOTERS = 2000
WORDS = [
    "the",
    "kite",
    "flies",
    "when",
    "wind",
    "comes",
    "from",
    "behind",
    "and",
    "you",
    "run",
    "with",
    "it",
    "slowly",
    "until",
    "the",
    "line",
    "is",
    "tight",
]
PREVIEWS = 20
MORE_VOTES = 1000


class Crowd:
    """Prompts, answers and opinions by a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def prompt(self, number: int) -> tuple[list[Completion], Comparison]:
        messages = [{"role": "user", "content": f"{number}: {self._text(20)}?"}]
        answers = [
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
        a, b = answers[:2]
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
        return answers, comparison

    def opinions(self, count: int, answers: list[Completion], comparison: Comparison) -> Iterator[Opinion]:
        for _ in range(count):
            voter, at = f"voter-{self.dice.randrange(VOTERS)}", 1e6 + self.dice.random() * 1e6
            one, other = self.dice.sample(answers, 2)
            given = {"prompt_hash": one.prompt_hash, "voter": voter, "created": at, "updated": at}
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
                shown = {"a": comparison.a, "b": comparison.b, "model_a": "x", "model_b": "y"}
                said = self.dice.choice(["a", "a", "b", "tie", "both_bad"])
                yield ComparisonVote.model_validate(given | about | shown | {"preferred": said})

    def _text(self, words: int) -> str:
        return " ".join(self.dice.choices(WORDS, k=words))


def write(pipe: Pipeline, ledger: Ledger, opinion: Opinion) -> None:
    keys = ledger.keys
    key = keys.comparison_vote if isinstance(opinion, ComparisonVote) else keys.preference
    pipe.set((keys.vote if isinstance(opinion, Vote) else key)(opinion.id), opinion.model_dump_json(exclude_none=True))
    pipe.sadd(keys.prompt_opinions(opinion.prompt_hash), opinion.id)
    pipe.hincrby(keys.unsettled, opinion.prompt_hash, 1)
    pipe.zadd(keys.votes, {opinion.id: opinion.created})
    for ref in refs(opinion):
        pipe.sadd(keys.completion_votes(ref.completion_id), opinion.id)


async def fill(ledger: Ledger, crowd: Crowd, prompts: range, votes_each: int) -> int:
    written = 0
    for start in range(prompts.start, prompts.stop, 100):
        pipe = ledger.redis.pipeline(transaction=False)
        for number in range(start, min(start + 100, prompts.stop)):
            answers, comparison = crowd.prompt(number)
            for answer in answers:
                pipe.hset(ledger.keys.completion(answer.id), items=completions.flat(answer))
                pipe.zadd(ledger.keys.completions, {answer.id: answer.created})
                pipe.zadd(ledger.keys.completions_live, {answer.id: answer.created})
            pipe.set(ledger.keys.comparison(comparison.id), comparison.model_dump_json(exclude_none=True))
            for opinion in crowd.opinions(votes_each, answers, comparison):
                write(pipe, ledger, opinion)
                written += 1
        await ledger.reply(pipe.execute())
    return written


async def memory(ledger: Ledger) -> int:
    return int((await ledger.redis.info("memory"))["used_memory"])


async def look_often(ledger: Ledger) -> str:
    took = []
    for _ in range(PREVIEWS):
        began = time.perf_counter()
        await preview.look(ledger)
        took.append((time.perf_counter() - began) * 1000)
    return f"median {statistics.median(took):.1f} ms, slowest {max(took):.1f} ms of {PREVIEWS}"


async def run(ledger: Ledger, votes: int, prompts: int, seed: int, recount: bool) -> None:
    crowd, began = Crowd(seed), time.perf_counter()
    written = await fill(ledger, crowd, range(prompts), votes // prompts)
    before = await memory(ledger)
    print(
        f"{written} votes on {prompts} prompts written in {time.perf_counter() - began:.0f} s, {before / 2**20:.0f} MiB"
    )
    began = time.perf_counter()
    await pairs.settle(ledger)
    took, after = time.perf_counter() - began, await memory(ledger)
    print(
        f"settled in {took:.1f} s ({written / took:.0f} votes/s); {(after - before) / written:.0f} bytes a vote for it"
    )
    print(f"preview: {await look_often(ledger)}")
    await fill(ledger, crowd, range(prompts, prompts + MORE_VOTES // 10), 10)
    began = time.perf_counter()
    seen = await preview.look(ledger)
    print(f"preview after {MORE_VOTES} more votes, settling them: {(time.perf_counter() - began) * 1000:.0f} ms")
    print(f"{seen.train.total} + {seen.held_out.total} pairs, {seen.unpaired} unpaired, left out {seen.left_out}")
    if recount:
        began = time.perf_counter()
        assert (await pairs.recount(ledger)).tally == await tally.read(ledger), "the tally is off"
        print(f"a recount of everything agrees; it took {time.perf_counter() - began:.1f} s")


async def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--votes", type=int, default=100_000)
    asking.add_argument("--prompts", type=int, default=10_000)
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--recount", action="store_true")
    given = asking.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with ledger_server(Path(folder), port):
            # A script of this length holds the server up for longer than a chat would wait.
            ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", ledger_timeout_s=60))
            try:
                await run(ledger, given.votes, given.prompts, given.seed, given.recount)
            finally:
                await ledger.close()


if __name__ == "__main__":
    asyncio.run(main())
