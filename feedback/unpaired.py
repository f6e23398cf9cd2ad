"""Unpaired answers: rated, and in no pair; for methods that learn from single answers (KTO).

The rating is the majority's; a draw is none. An answer counts once, however many people rated it.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from feedback import completions, pairs, votes
from feedback.connection import Ledger
from feedback.formats import Rated
from feedback.records import Message, Pair, Rating, Vote


async def pages(ledger: Ledger) -> AsyncIterator[list[Rated]]:
    """In order of the first votes, a batch at a time. Pairs must be settled."""
    async for ids in completions.walk(ledger, ledger.keys.votes, pairs.BATCH):
        thumbs = [opinion for opinion in await votes.get_many(ledger, ids) if isinstance(opinion, Vote)]
        asked = await completions.get_many(ledger, {thumb.completion_id for thumb in thumbs})
        given = await _given(ledger, sorted(asked))
        taught = await _taught(ledger, sorted({thumb.prompt_hash for thumb in thumbs}))
        found = []
        for thumb in thumbs:
            completion, on_it = asked.get(thumb.completion_id), given[str(thumb.answer)]
            said = completion.answer(thumb.choice) if completion else None
            if completion is None or said is None or thumb.id != min(on_it, key=_when, default=thumb).id:
                continue
            ahead = sum(1 if vote.rating == "up" else -1 for vote in on_it)
            if ahead and not _is_in(said, taught[thumb.prompt_hash]):
                rating: Rating = "up" if ahead > 0 else "down"
                found.append(Rated(completion.messages, pairs.trainable(said), rating, completion.tools))
        yield found


async def _given(ledger: Ledger, completion_ids: Sequence[str]) -> dict[str, list[Vote]]:
    """All votes on each answer of these completions, by the answer's name."""
    members = await _members(ledger, [ledger.keys.completion_votes(i) for i in completion_ids])
    by_answer: dict[str, list[Vote]] = defaultdict(list)
    for opinion in await votes.get_many(ledger, sorted(set().union(*members))):
        if isinstance(opinion, Vote):
            by_answer[str(opinion.answer)].append(opinion)
    return by_answer


async def _taught(ledger: Ledger, prompt_hashes: Sequence[str]) -> dict[str, list[Pair]]:
    """The pairs of each prompt."""
    members = await _members(ledger, [ledger.keys.prompt_pairs(i) for i in prompt_hashes])
    by_prompt: dict[str, list[Pair]] = defaultdict(list)
    for pair in await pairs.get_many(ledger, sorted(set().union(*members))):
        by_prompt[pair.prompt_hash].append(pair)
    return by_prompt


async def _members(ledger: Ledger, sets: Sequence[str]) -> list[set[str]]:
    pipe = ledger.redis.pipeline(transaction=False)
    for key in sets:
        pipe.smembers(key)
    return list(await ledger.reply(pipe.execute()))


def _is_in(said: Message, some: Sequence[Pair]) -> bool:
    return any(pairs.trainable(said) in (pair.chosen, pair.rejected) for pair in some)


def _when(vote: Vote) -> tuple[float, str]:
    return vote.created, vote.id
