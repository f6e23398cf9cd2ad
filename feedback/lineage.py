"""Lineage: what became of a vote, and which votes made an adapter.

What a vote is part of now is kept with its prompt by settling. What it was trained into is noted when a job freezes its
dataset (jobs.note_opinions) and stays when the vote is withdrawn or its pair changes, for what was trained was trained;
only erasure takes it away. A vote cast after the freezing was not trained on, even if its pair was.
"""

from collections.abc import Iterable
from typing import get_args

from pydantic import BaseModel, Field

from feedback import adapters, jobs, pairs, votes
from feedback.connection import Ledger
from feedback.errors import VoteUnknown
from feedback.records import AdapterState, Job, JobStatus, Source, Split

SPLITS: tuple[Split, ...] = get_args(Split)


class TaughtPair(BaseModel):
    """A pair that a vote is part of now."""

    id: str
    source: Source
    split: Split
    weight: float


class TaughtJob(BaseModel):
    """A job with the vote in its dataset. On the held-out side the vote judged the adapter and did not teach it."""

    id: str
    status: JobStatus
    dataset_digest: str | None
    split: Split
    pairs: list[str]
    adapter: str | None


class TaughtAdapter(BaseModel):
    id: str
    job: str
    split: Split
    state: AdapterState
    is_live: bool
    live_since: float | None = Field(description="Unix seconds, while it is live.")


class Lineage(BaseModel):
    id: str
    is_standing: bool = Field(description="False: withdrawn; what had been trained before still says so.")
    pairs: list[TaughtPair]
    unpaired: str | None = Field(description="Id of the unpaired answer it counts for.")
    left_out: str | None = Field(description="Why it is in no pair now, by lessons.Reason.")
    jobs: list[TaughtJob]
    adapters: list[TaughtAdapter]


class TrainedVote(BaseModel):
    """A vote in an adapter's dataset."""

    id: str
    split: Split
    pairs: list[str]


async def of(ledger: Ledger, opinion_id: str) -> Lineage:
    """Costs one look-up for each job there ever was, and reads no other vote. Raises VoteUnknown."""
    found = await votes.get_many(ledger, [opinion_id])
    trained = await _jobs_of(ledger, opinion_id)
    if not found and not trained:
        raise VoteUnknown(f"no vote {opinion_id[:60]!r}: it was never given, or withdrawn before anything learnt of it")
    became = await _became(ledger, found[0]) if found else []
    now = await pairs.get_many(ledger, [i for i in became if i.startswith("pair-")])
    return Lineage(
        id=opinion_id,
        is_standing=bool(found),
        pairs=[TaughtPair.model_validate(pair.model_dump()) for pair in now],
        unpaired=next((i for i in became if i.startswith("unpaired-")), None),
        left_out=next((i for i in became if "-" not in i), None),
        jobs=trained,
        adapters=await _adapters_of(ledger, trained),
    )


async def votes_of(
    ledger: Ledger, adapter_id: str, after: str | None = None, limit: int = 20
) -> tuple[list[TrainedVote], bool]:
    """The votes in the dataset of an adapter in order of id, and whether more follow. Raises AdapterUnknown."""
    key = ledger.keys.job_opinions((await adapters.get(ledger, adapter_id)).job)
    start = f"({_beyond(after)}" if after else "-"
    found: dict[str, TrainedVote] = {}
    while len(found) <= limit:
        links = await ledger.reply(ledger.redis.zrange(key, start, "+", bylex=True, offset=0, num=pairs.BATCH))
        if not links:
            break
        for opinion_id, split, pair_id in map(str.split, links):
            vote = found.setdefault(opinion_id, TrainedVote(id=opinion_id, split=_split(split), pairs=[]))
            vote.pairs.append(pair_id)
        start = f"({links[-1]}"
    return list(found.values())[:limit], len(found) > limit


async def forget(ledger: Ledger, opinion_ids: Iterable[str]) -> set[str]:
    """For an erasure: no job remembers these opinions any more. Returns the jobs that trained on one of them."""
    pipe = ledger.redis.pipeline(transaction=False)
    job_ids = await ledger.reply(ledger.redis.zrange(ledger.keys.jobs, 0, -1))
    asked = [(job_id, f"{opinion_id} {split}") for opinion_id in opinion_ids for job_id in job_ids for split in SPLITS]
    for job_id, link in asked:
        pipe.zremrangebylex(ledger.keys.job_opinions(job_id), f"[{link} ", f"({_beyond(link)}")
    removed = await ledger.reply(pipe.execute())
    return {job_id for (job_id, link), gone in zip(asked, removed, strict=True) if gone and link.endswith(" train")}


async def _became(ledger: Ledger, opinion: votes.Opinion) -> list[str]:
    """Ids of pairs or of an unpaired answer, or a Reason."""
    await pairs.settle_prompt(ledger, opinion.prompt_hash)
    told = await ledger.reply(ledger.redis.hget(ledger.keys.prompt_lessons(opinion.prompt_hash), opinion.id))
    return str(told or "").split()


async def _jobs_of(ledger: Ledger, opinion_id: str) -> list[TaughtJob]:
    job_ids = await ledger.reply(ledger.redis.zrange(ledger.keys.jobs, 0, -1))
    pipe = ledger.redis.pipeline(transaction=False)
    for job_id in job_ids:
        key = ledger.keys.job_opinions(job_id)
        pipe.zrange(key, f"[{opinion_id} ", f"({_beyond(opinion_id)}", bylex=True)
    links = dict(zip(job_ids, await ledger.reply(pipe.execute()), strict=True))
    return [_taught(await jobs.get(ledger, job_id), some) for job_id, some in links.items() if some]


def _taught(job: Job, links: list[str]) -> TaughtJob:
    _, split, _ = links[0].split()
    return TaughtJob(
        id=job.id,
        status=job.status,
        dataset_digest=job.dataset_digest,
        split=_split(split),
        pairs=[link.split()[2] for link in links],
        adapter=job.adapter,
    )


async def _adapters_of(ledger: Ledger, trained: list[TaughtJob]) -> list[TaughtAdapter]:
    live = (await adapters.serving(ledger)).live
    made: list[TaughtAdapter] = []
    for job in trained:
        if job.adapter is None or not await adapters.exists(ledger, job.adapter):
            continue  # it failed, or has not got that far
        adapter = await adapters.get(ledger, job.adapter)
        since = max((change.at for change in adapter.history if change.state == "live"), default=None)
        made.append(
            TaughtAdapter(
                id=adapter.id,
                job=job.id,
                split=job.split,
                state=adapter.state,
                is_live=adapter.id == live,
                live_since=since if adapter.id == live else None,
            )
        )
    return made


def _beyond(begun: str) -> str:
    """The end, in a range by name, of the links that begin with these words: `!` is what follows a space."""
    return f"{begun}!"


def _split(word: str) -> Split:
    return "held_out" if word == "held_out" else "train"
