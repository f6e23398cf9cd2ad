"""Votes: what people thought of an answer.

A vote is one voter's latest opinion of one answer. Voting the same way twice changes nothing, so a client may
retry without fear. An act is on disk when its call returns (the ledger runs with `appendfsync always`).
"""

from collections.abc import Iterable, Sequence
from typing import NoReturn

from pydantic import BaseModel

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import (
    ChoiceUnknown,
    CompletionNotChat,
    CompletionUnknown,
    PromptsDiffer,
    RecordConflict,
    SameAnswer,
    VoteEmpty,
    VoteUnknown,
)
from feedback.records import AnswerRef, Completion, Message, Preference, Rating, Vote

# The completion may expire between our read and our write, and another request of the same voter may come in
# between: so the write looks at both again. KEYS: opinion, the prompt's opinions, unsettled, all votes, the voter's
# opinions, then for each completion its record and its votes. ARGV: opinion before ('' if none), opinion now, id,
# created, prompt hash.
CAST = """
local before = redis.call('GET', KEYS[1]) or ''
if before ~= ARGV[1] then return 'conflict' end
for i = 6, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 'expired' end
end
for i = 6, #KEYS, 2 do
  redis.call('PERSIST', KEYS[i])
  redis.call('SADD', KEYS[i + 1], ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('HINCRBY', KEYS[3], ARGV[5], 1)
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[3])
redis.call('SADD', KEYS[5], ARGV[3])
return 'ok'
"""

# Withdrawing undoes CAST; a completion left without votes gets its lifetime back. KEYS as CAST.
# ARGV: id, prompt hash, lifetime in seconds.
WITHDRAW = """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[2], 1)
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
for i = 6, #KEYS, 2 do
  redis.call('SREM', KEYS[i + 1], ARGV[1])
  if redis.call('SCARD', KEYS[i + 1]) == 0 then redis.call('EXPIRE', KEYS[i], ARGV[3]) end
end
return 1
"""

# KEYS: completion, its votes, all completions, completions:users, its user's completions. ARGV: id.
# A vote may come in while the others are withdrawn.
FORGET = """
if redis.call('SCARD', KEYS[2]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
return 1
"""

Opinion = Vote | Preference

RETRIES = 5
"""Conflicts are one voter racing with themselves; five in a row do not happen by chance."""


async def cast(
    ledger: Ledger,
    *,
    completion_id: str,
    rating: Rating,
    voter: str,
    choice: int = 0,
    reasons: Sequence[str] = (),
    comment: str | None = None,
    correction: str | None = None,
) -> tuple[Vote, bool]:
    """The vote as stored, and whether this call changed it.

    Raises CompletionUnknown, CompletionNotChat, ChoiceUnknown, VoteEmpty, RecordConflict.
    """
    vote_id = Vote.id_of(completion_id, choice, voter)
    for _ in range(RETRIES):
        completion = await completions.get(ledger, completion_id)
        answer = _answer(completion, choice)
        if correction is not None and correction.strip() in ("", str(answer.get("content") or "").strip()):
            raise VoteEmpty("the correction is empty or repeats the answer; send the text that was wanted instead")
        text = await ledger.reply(ledger.redis.get(ledger.keys.vote(vote_id)))
        before = Vote.model_validate_json(text) if text else None
        now = ledger.clock()
        vote = Vote(
            id=vote_id,
            completion_id=completion_id,
            choice=choice,
            prompt_hash=completion.prompt_hash,
            rating=rating,
            voter=voter,
            model=completion.adapter,
            reasons=list(reasons),
            comment=comment,
            correction=correction,
            created=before.created if before else now,
            updated=now,
        )
        if before and before == vote.model_copy(update={"updated": before.updated}):
            return before, False
        if await _write(ledger, ledger.keys.vote(vote_id), text, vote, [completion_id]):
            return vote, True
    _give_up(vote_id)


async def prefer(ledger: Ledger, *, chosen: AnswerRef, rejected: AnswerRef, voter: str) -> tuple[Preference, bool]:
    """A choice between two answers to one prompt, and whether this call changed it.

    Raises CompletionUnknown, CompletionNotChat, ChoiceUnknown, SameAnswer, PromptsDiffer, RecordConflict.
    """
    if chosen == rejected:
        raise SameAnswer(f"chosen and rejected are both {chosen}; name two different answers")
    preference_id = Preference.id_of(chosen, rejected, voter)
    for _ in range(RETRIES):
        one = await completions.get(ledger, chosen.completion_id)
        other = await completions.get(ledger, rejected.completion_id)
        _answer(one, chosen.choice)
        _answer(other, rejected.choice)
        if one.prompt_hash != other.prompt_hash:
            raise PromptsDiffer(
                f"{one.id} and {other.id} answer different prompts; only answers to the same messages can be compared"
            )
        text = await ledger.reply(ledger.redis.get(ledger.keys.preference(preference_id)))
        before = Preference.model_validate_json(text) if text else None
        now = ledger.clock()
        preference = Preference(
            id=preference_id,
            chosen=chosen,
            rejected=rejected,
            prompt_hash=one.prompt_hash,
            voter=voter,
            created=before.created if before else now,
            updated=now,
        )
        if before and before.chosen == chosen:
            return before, False
        touched = list(dict.fromkeys([one.id, other.id]))
        if await _write(ledger, ledger.keys.preference(preference_id), text, preference, touched):
            return preference, True
    _give_up(preference_id)


async def get(ledger: Ledger, opinion_id: str) -> Opinion:
    """Raises VoteUnknown."""
    found = await get_many(ledger, [opinion_id])
    if not found:
        raise VoteUnknown(f"no vote {opinion_id!r}: it was never given, or it was withdrawn")
    return found[0]


async def get_many(ledger: Ledger, ids: Iterable[str]) -> list[Opinion]:
    """Those of `ids` that stand."""
    keys = [_key(ledger, i) for i in ids]
    texts = await ledger.reply(ledger.redis.mget(keys)) if keys else []
    return [
        Vote.model_validate_json(text) if ":vote:" in key else Preference.model_validate_json(text)
        for key, text in zip(keys, texts, strict=True)
        if text is not None
    ]


async def page(
    ledger: Ledger, completion_id: str | None = None, after: str | None = None, limit: int = 20
) -> tuple[list[Opinion], bool]:
    """Opinions in order of their first casting, and whether more follow."""
    if completion_id is None:
        ids, has_more = await completions.page_of(ledger, ledger.keys.votes, after, limit, newest_first=False)
        return await get_many(ledger, ids), has_more
    members = sorted(await ledger.reply(ledger.redis.smembers(ledger.keys.completion_votes(completion_id))))
    members = [m for m in members if after is None or m > after]
    return await get_many(ledger, members[:limit]), len(members) > limit


async def withdraw(ledger: Ledger, opinion_id: str) -> None:
    """Take an opinion out of every future dataset. Raises VoteUnknown."""
    opinion = await get(ledger, opinion_id)
    if not await _remove(ledger, opinion):
        raise VoteUnknown(f"vote {opinion_id!r} was withdrawn in the meantime")


async def forget_completion(ledger: Ledger, completion_id: str) -> None:
    """Delete a completion together with every opinion of it. Raises CompletionUnknown."""
    user = (await completions.get(ledger, completion_id)).user
    keys = [
        ledger.keys.completion(completion_id),
        ledger.keys.completion_votes(completion_id),
        ledger.keys.completions,
        ledger.keys.completion_users,
        ledger.keys.user_completions(user or ""),
    ]
    for _ in range(RETRIES):
        for opinion in await get_many(ledger, await ledger.reply(ledger.redis.smembers(keys[1]))):
            await _remove(ledger, opinion)
        if await ledger.run(FORGET, keys, [completion_id]):
            return
    _give_up(completion_id)


def refs(opinion: Opinion) -> list[AnswerRef]:
    """The answers an opinion is about."""
    if isinstance(opinion, Vote):
        return [opinion.answer]
    return [opinion.chosen, opinion.rejected]


def _answer(completion: Completion, choice: int) -> Message:
    if completion.object != "chat.completion":
        raise CompletionNotChat(f"{completion.id} is a text completion; only chat completions can be voted on")
    answer = completion.answer(choice)
    if answer is None:
        raise ChoiceUnknown(f"{completion.id} has {len(completion.choices)} choice(s), counted from 0; got {choice}")
    return answer


def _key(ledger: Ledger, opinion_id: str) -> str:
    return ledger.keys.vote(opinion_id) if opinion_id.startswith("vote-") else ledger.keys.preference(opinion_id)


def _keys(ledger: Ledger, opinion_key: str, opinion: Opinion, touched: Iterable[str]) -> list[str]:
    keys = [
        opinion_key,
        ledger.keys.prompt_opinions(opinion.prompt_hash),
        ledger.keys.unsettled,
        ledger.keys.votes,
        ledger.keys.voter_opinions(opinion.voter),
    ]
    for completion_id in touched:
        keys += [ledger.keys.completion(completion_id), ledger.keys.completion_votes(completion_id)]
    return keys


async def _write(ledger: Ledger, key: str, before: str | None, opinion: Opinion, touched: list[str]) -> bool:
    """False if another request of the same voter came in between; raises CompletionUnknown if the answer expired."""
    outcome = await ledger.run(
        CAST,
        _keys(ledger, key, opinion, touched),
        [before or "", _text(opinion), opinion.id, opinion.created, opinion.prompt_hash],
    )
    if outcome == "expired":
        raise CompletionUnknown(f"{' or '.join(touched)} expired before the vote came in")
    return bool(outcome == "ok")


async def _remove(ledger: Ledger, opinion: Opinion) -> bool:
    touched = dict.fromkeys(ref.completion_id for ref in refs(opinion))
    ttl_s = int(ledger.settings.completion_ttl_days * completions.DAY_S)
    keys = _keys(ledger, _key(ledger, opinion.id), opinion, touched)
    return bool(await ledger.run(WITHDRAW, keys, [opinion.id, opinion.prompt_hash, ttl_s]))


def _text(record: BaseModel) -> str:
    return record.model_dump_json(exclude_none=True)


def _give_up(opinion_id: str) -> NoReturn:
    raise RecordConflict(f"{opinion_id} was changed {RETRIES} times while this request tried to; send it again")
