"""A simulated electorate at the ledger's level: many voters, answers that are good or bad, and no model.

Votes go through the ledger's own script, many in one round trip, as clients' votes would come from many gateways.
"""

import random
from collections.abc import Callable, Iterable, Sequence

from feedback import completions, votes
from feedback.connection import Ledger
from feedback.records import Choice, ComparisonVote, Completion, Rating, Vote, prompt_digest
from feedback.votes import Opinion, kept_with

AT_ONCE = 500
BORN = 1_000_000.0

ADDED = {"prompt_hash", "model", "created", "updated"}
"""What the ledger's script adds to a vote."""

Rule = Callable[[bool, random.Random], bool]
"""Whether a voter ups an answer, by whether it is good."""


def honest(noise: float) -> Rule:
    return lambda good, chance: good != (chance.random() < noise)


def contrary(good: bool, chance: random.Random) -> bool:
    return not good


def blind(share_up: float) -> Rule:
    return lambda good, chance: chance.random() < share_up


def question(number: int, answers: int = 2) -> Completion:
    """The first half of its answers are good, the others are bad."""
    messages = [{"role": "user", "content": f"question {number}"}]
    texts = [f"{'good' if is_good(i, answers) else 'bad'} answer {i}" for i in range(answers)]
    return Completion(
        id=f"chatcmpl-{number:06}",
        served_model="heed",
        adapter="heed-base",
        created=BORN + number,
        messages=messages,
        prompt_hash=prompt_digest(messages),
        choices=[Choice(index=i, message={"role": "assistant", "content": text}) for i, text in enumerate(texts)],
    )


def is_good(choice: int, answers: int) -> bool:
    return choice < answers // 2


async def ask(ledger: Ledger, asked: Iterable[Completion]) -> None:
    pipe = ledger.redis.pipeline(transaction=False)
    for completion in asked:
        pipe.hset(ledger.keys.completion(completion.id), items=completions.flat(completion))
        pipe.zadd(ledger.keys.completions, {completion.id: completion.created})
        pipe.zadd(ledger.keys.completions_live, {completion.id: completion.created})
    await ledger.reply(pipe.execute())


def thumbs(voter: str, rule: Rule, seen: Iterable[tuple[Completion, int]], chance: random.Random) -> list[Vote]:
    """What a voter says of answers, given by completion and choice."""
    found = []
    for completion, choice in seen:
        rating: Rating = "up" if rule(is_good(choice, len(completion.choices)), chance) else "down"
        found.append(
            Vote(
                id=Vote.id_of(completion.id, choice, voter),
                completion_id=completion.id,
                choice=choice,
                prompt_hash=completion.prompt_hash,
                rating=rating,
                voter=voter,
                model=completion.adapter,
                created=BORN,
                updated=BORN,
            )
        )
    return found


async def vote(ledger: Ledger, given: Sequence[Opinion]) -> None:
    """Each for the first time."""
    script = await ledger.reply(ledger.redis.script_load(votes.CAST))
    for start in range(0, len(given), AT_ONCE):
        pipe = ledger.redis.pipeline(transaction=False)
        for one in given[start : start + AT_ONCE]:
            said = one.model_dump(exclude_none=True, exclude=ADDED)
            kept = kept_with(ledger, one.comparison_id) if isinstance(one, ComparisonVote) else []
            keys, args = votes.cast_call(ledger, said, votes.refs(one), kept, is_paced=False)
            pipe.evalsha(script, len(keys), *keys, *args)
        outcomes = await ledger.reply(pipe.execute())
        assert {outcome.split(" ", 1)[0] for outcome in outcomes} == {"changed"}
