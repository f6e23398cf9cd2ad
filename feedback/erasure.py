"""Erasure: what one person gave, taken out of everything that is still to come.

A voter's opinions go, or a user's completions with everybody's opinions of them; the pairs that rested on these go or
are derived anew from what is left. What an adapter has learnt cannot be taken out of it, so those trained on such
opinions (lineage knows them exactly, until they are erased there too) are named, and reward models, and open jobs that
have frozen such pairs. Erasing twice finds nothing the second time.

What the archive holds of a completion goes with it. Where the archive cannot be reached that is an error, and what it
still holds goes when erasing is asked for again, or with the next run of the archive.

An idempotency key holds nobody's words, only digests and ids, so there is nothing of a person to erase in it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from feedback import adapters, archive, jobs, lineage, pairs, voters, votes
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, CompletionUnknown, VoteUnknown
from feedback.records import Pair

AT_ONCE = 16
"""Withdrawals on their way together share the ledger's fsyncs, and leave most of its connections to live votes."""


@dataclass
class Erased:
    """How many votes, completions and pairs are gone, and what learnt or will learn from such pairs."""

    votes: int = 0
    completions: int = 0
    pairs: int = 0
    adapters: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    reward_models: list[str] = field(default_factory=list)

    def __add__(self, other: "Erased") -> "Erased":
        return Erased(
            self.votes + other.votes,
            self.completions + other.completions,
            self.pairs + other.pairs,
            self.adapters + other.adapters,
            self.jobs + other.jobs,
            self.reward_models + other.reward_models,
        )


async def of_voter(ledger: Ledger, voter: str) -> Erased:
    await pairs.settle(ledger)
    ids = sorted(await ledger.reply(ledger.redis.smembers(ledger.keys.voter_opinions(voter))))
    resting = await _resting_on(ledger, ids)
    erased = Erased()
    for start in range(0, len(ids), AT_ONCE):
        gone = await asyncio.gather(*(_withdraw(ledger, i) for i in ids[start : start + AT_ONCE]))
        erased.votes += sum(gone)
    erased = await _account(ledger, erased, ids, resting)
    await voters.forget(ledger, voter)
    return erased


async def of_completion(ledger: Ledger, completion_id: str) -> None:
    """With every vote on it, and out of the archive. Raises CompletionUnknown, ArchiveUnavailable."""
    await votes.forget_completion(ledger, completion_id)
    await _tidy(ledger)


async def of_user(ledger: Ledger, user: str) -> Erased:
    """The user is the one whom a chat's `user` named. Raises ArchiveUnavailable, see above."""
    await pairs.settle(ledger)
    ids = sorted(await ledger.reply(ledger.redis.smembers(ledger.keys.user_completions(user))))
    opinions: set[str] = set()
    for completion_id in ids:
        opinions |= await ledger.reply(ledger.redis.smembers(ledger.keys.completion_votes(completion_id)))
    resting = await _resting_on(ledger, sorted(opinions))
    erased = Erased(votes=len(opinions))
    for start in range(0, len(ids), AT_ONCE):
        gone = await asyncio.gather(*(_forget(ledger, i) for i in ids[start : start + AT_ONCE]))
        erased.completions += sum(gone)
    await ledger.reply(ledger.redis.srem(ledger.keys.user_completions(user), *ids)) if ids else None
    erased = await _account(ledger, erased, sorted(opinions), resting)
    await _tidy(ledger)
    return erased


async def _resting_on(ledger: Ledger, opinion_ids: Sequence[str]) -> list[Pair]:
    """The pairs that stand on at least one of these opinions."""
    prompts: set[str] = set()
    for start in range(0, len(opinion_ids), pairs.BATCH):
        found = await votes.get_many(ledger, opinion_ids[start : start + pairs.BATCH])
        prompts |= {opinion.prompt_hash for opinion in found}
    pair_ids: set[str] = set()
    for prompt_hash in prompts:
        pair_ids |= await ledger.reply(ledger.redis.smembers(ledger.keys.prompt_pairs(prompt_hash)))
    erased = set(opinion_ids)
    return [pair for pair in await pairs.get_many(ledger, sorted(pair_ids)) if erased & set(pair.opinions)]


async def _account(ledger: Ledger, erased: Erased, opinion_ids: Sequence[str], resting: Sequence[Pair]) -> Erased:
    await pairs.settle(ledger)
    ids = [pair.id for pair in resting]
    erased.pairs = len(ids) - len(await pairs.get_many(ledger, ids))
    learnt: set[str] = set()
    for start in range(0, len(opinion_ids), AT_ONCE):
        learnt |= await lineage.forget(ledger, opinion_ids[start : start + AT_ONCE])
    for adapter_id in await ledger.reply(ledger.redis.zrange(ledger.keys.adapters, 0, -1)) if learnt else []:
        if (await adapters.get(ledger, adapter_id)).job in learnt:
            erased.adapters.append(adapter_id)
    taught = [await jobs.get(ledger, job_id) for job_id in sorted(learnt)]
    erased.reward_models += [job.reward_model for job in taught if job.reward_model]
    for job_id in await jobs.open_ids(ledger):
        # One that has frozen pairs and not yet noted their opinions will hold these, too.
        if job_id in learnt or not set(ids).isdisjoint(await jobs.frozen(ledger, job_id)):
            erased.jobs.append(job_id)
    return erased


async def _withdraw(ledger: Ledger, opinion_id: str) -> bool:
    try:
        await votes.withdraw(ledger, opinion_id)
    except VoteUnknown:  # its voter was faster
        return False
    return True


async def _forget(ledger: Ledger, completion_id: str) -> bool:
    try:
        await votes.forget_completion(ledger, completion_id)
    except CompletionUnknown:  # expired, and not swept yet
        return False
    return True


async def _tidy(ledger: Ledger) -> None:
    try:
        await archive.tidy(ledger)
    except ArchiveUnavailable as error:
        raise ArchiveUnavailable(
            f"deleted from the ledger and not yet from the archive, where it goes with the next run (every hour, or "
            f"`heed archive`): {error}"
        ) from error
