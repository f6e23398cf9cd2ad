"""Votes: what people thought of an answer.

A vote is one voter's latest opinion of one answer. Voting the same way twice changes nothing, so a client may
retry without fear. An act is on disk when its call returns (the ledger runs with `appendfsync always`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import orjson

from feedback import comparisons, completions, voters
from feedback.connection import Ledger
from feedback.errors import (
    ArchiveUnavailable,
    ChoiceUnknown,
    CompletionNotChat,
    CompletionUnknown,
    PromptsDiffer,
    RecordConflict,
    SameAnswer,
    VoteEmpty,
    VoteUnknown,
)
from feedback.records import (
    AnswerRef,
    ComparisonVote,
    Completion,
    Preference,
    Preferred,
    Rating,
    Vote,
)

# One call does it all, for what it looks at may change at any moment and each call costs a trip.
# KEYS: opinion, unsettled, all votes, the voter's opinions and prompts, those of `admit` (feedback/voters.py), then for
# each answer its completion's record and its completion's votes, and for the comparison if it is about one likewise.
# ARGV: id, opinion as JSON, time, what stands before and behind the prompt's hash in the name of its opinions (only the
# record tells the hash; the tag puts that key on the same node), the arguments of `admit`, then for each answer its
# index and '' or its completion's head. Returns what became of it, a space, and the record as it stands or the place of
# the answer refused. Saying the same again is no haste, so it is taken at any pace; from who is banned it is not.
CAST = (
    completions.HEAD
    + voters.ADMIT
    + """
local function same(a, b)
  if type(a) ~= 'table' or type(b) ~= 'table' then return a == b end
  for name, value in pairs(a) do if not same(value, b[name]) then return false end end
  for name in pairs(b) do if a[name] == nil then return false end end
  return true
end

local answers = #ARGV - 9
local objects, indexes, adapter, prompt = {}, {}, nil, nil
local differ = false
for i = 1, answers do
  local missing, hash
  missing, objects[i], adapter, hash, indexes[i] = head_of(KEYS[7 + 2 * i])
  if missing then return missing .. ' ' .. i end
  differ = differ or (prompt and hash ~= prompt)
  prompt = hash
end
for i = 1, answers do
  if objects[i] ~= 'chat.completion' then return 'not_chat ' .. i end
  if not string.find(indexes[i], ',' .. ARGV[9 + i] .. ',', 1, true) then return 'no_choice ' .. i end
end
if differ then return 'differ ' end
for i = 9 + 2 * answers, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 'gone ' end
end

local refused, fill = admit(KEYS[6], ARGV[6], ARGV[7], KEYS[7], ARGV[8], KEYS[8], ARGV[9])
if refused == 'banned' then return refused end
local created = ARGV[3]
local before = redis.call('GET', KEYS[1])
if before then
  local opinion, now = cjson.decode(before), cjson.decode(ARGV[2])
  for _, added in ipairs({'prompt_hash', 'model', 'created', 'updated', 'key'}) do opinion[added] = nil end
  now.key = nil
  if same(opinion, now) then return 'same ' .. before end
  created = string.match(before, '"created":([^,}]+)')
end
if refused then return refused end

local record = string.sub(ARGV[2], 1, -2) .. ',"prompt_hash":"' .. prompt .. '"'
if answers == 1 then record = record .. ',"model":' .. adapter end
record = record .. ',"created":' .. created .. ',"updated":' .. ARGV[3] .. '}'
redis.call('SET', KEYS[1], record) -- first: Redis asks for free memory before a script's first write only
fill()
for i = 9, #KEYS, 2 do
  redis.call('PERSIST', KEYS[i])
  redis.call('SADD', KEYS[i + 1], ARGV[1])
end
redis.call('SADD', ARGV[4] .. prompt .. ARGV[5], ARGV[1])
redis.call('HINCRBY', KEYS[2], prompt, 1)
redis.call('ZADD', KEYS[3], created, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('SADD', KEYS[5], prompt)
return 'changed ' .. record
"""
)

# Withdrawing undoes CAST; a completion left without votes gets its lifetime back. An archived one must not just expire,
# as its row would stay: it is noted for the archive, which looks again when the lifetime is over.
# KEYS: opinion, the prompt's opinions, unsettled, all votes, the voter's opinions, archive:unvoted, then for each
# completion its record and its votes, and for the comparison if it is about one likewise.
# ARGV: id, prompt hash, lifetime in seconds, when that is over, then the ids of the completions.
WITHDRAW = """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[2], 1)
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
for i = 7, #KEYS, 2 do
  redis.call('SREM', KEYS[i + 1], ARGV[1])
  if redis.call('SCARD', KEYS[i + 1]) == 0 then
    if redis.pcall('HEXISTS', KEYS[i], 'archived') == 1 then
      redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1 + (i + 1) / 2])
    else
      redis.call('EXPIRE', KEYS[i], ARGV[3])
    end
  end
end
return 1
"""

Opinion = Vote | Preference | ComparisonVote

Said = dict[str, Any]
"""An opinion as it is told to CAST, which adds what only the ledger knows."""

RETRIES = 5
"""Votes that come in while a completion is deleted with its votes; five times in a row does not happen by chance."""


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
    key: str | None = None,
    is_paced: bool = False,
) -> tuple[Vote, bool]:
    """The vote as stored, and whether this call changed it; `is_paced` holds voter and key to their votes a minute.

    Raises CompletionUnknown, CompletionNotChat, ChoiceUnknown, VoteEmpty, TextTooLong, VoterBanned, VotesTooFast.
    """
    answer = AnswerRef(completion_id=completion_id, choice=choice)
    if correction is not None or (ledger.redaction.is_on and (comment or reasons)):
        about = await _about(ledger, completion_id, choice)
        correction, comment, reasons = await ledger.redaction.said(about, choice, correction, comment, reasons)
        said = str(((about and about.answer(choice)) or {}).get("content") or "").strip()
        if correction is not None and correction.strip() in ("", said):
            but = " once personal data is taken out" if ledger.redaction.is_on else ""
            raise VoteEmpty(f"the correction is empty or repeats the answer{but}; send the text that was wanted")
    opinion: Said = {
        "v": 1,
        "id": Vote.id_of(completion_id, choice, voter),
        "completion_id": completion_id,
        "choice": choice,
        "rating": rating,
        "voter": voter,
        "reasons": list(reasons),
    }
    if comment is not None:
        opinion["comment"] = comment
    if correction is not None:
        opinion["correction"] = correction
    if key is not None:
        opinion["key"] = key
    record, changed = await _cast(ledger, opinion, [answer], is_paced=is_paced)
    return Vote.model_validate_json(record), changed


async def prefer(
    ledger: Ledger,
    *,
    chosen: AnswerRef,
    rejected: AnswerRef,
    voter: str,
    key: str | None = None,
    is_paced: bool = False,
) -> tuple[Preference, bool]:
    """A choice between two answers to one prompt, and whether this call changed it; paced as `cast` is.

    Raises CompletionUnknown, CompletionNotChat, ChoiceUnknown, SameAnswer, PromptsDiffer, VoterBanned, VotesTooFast.
    """
    if chosen == rejected:
        raise SameAnswer(f"chosen and rejected are both {chosen}; name two different answers")
    opinion: Said = {
        "v": 1,
        "id": Preference.id_of(chosen, rejected, voter),
        "chosen": chosen.model_dump(),
        "rejected": rejected.model_dump(),
        "voter": voter,
    }
    if key is not None:
        opinion["key"] = key
    record, changed = await _cast(ledger, opinion, [chosen, rejected], is_paced=is_paced)
    return Preference.model_validate_json(record), changed


async def judge(
    ledger: Ledger,
    *,
    comparison_id: str,
    preferred: Preferred,
    voter: str,
    key: str | None = None,
    is_paced: bool = False,
) -> tuple[ComparisonVote, bool]:
    """What a voter says of a blind comparison, and whether this call changed it; paced as `cast` is.

    Raises ComparisonUnknown, CompletionUnknown, VoterBanned, VotesTooFast.
    """
    shown = await comparisons.get(ledger, comparison_id)
    opinion: Said = {
        "v": 1,
        "id": ComparisonVote.id_of(comparison_id, voter),
        "comparison_id": comparison_id,
        "preferred": preferred,
        "a": shown.a.model_dump(),
        "b": shown.b.model_dump(),
        "voter": voter,
        "model_a": shown.adapter_a,
        "model_b": shown.adapter_b,
    }
    if key is not None:
        opinion["key"] = key
    kept = kept_with(ledger, comparison_id)
    try:
        record, changed = await _cast(ledger, opinion, [shown.a, shown.b], kept, is_paced=is_paced)
    except CompletionUnknown:
        # Whose completions are compared is not for everybody to know.
        raise CompletionUnknown(f"{comparison_id} expired before the vote came in") from None
    return ComparisonVote.model_validate_json(record), changed


async def get(ledger: Ledger, opinion_id: str) -> Opinion:
    """Raises VoteUnknown."""
    found = await get_many(ledger, [opinion_id])
    if not found:
        raise VoteUnknown(f"no vote {opinion_id!r}: it was never given, or it was withdrawn")
    return found[0]


async def get_many(ledger: Ledger, ids: Iterable[str]) -> list[Opinion]:
    """Those of `ids` that stand."""
    asked = list(ids)
    texts = await ledger.reply(ledger.redis.mget([_key(ledger, i) for i in asked])) if asked else []
    return [_shape(i).model_validate_json(text) for i, text in zip(asked, texts, strict=True) if text is not None]


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
    known = await completions.head(ledger, completion_id)
    for _ in range(RETRIES):
        of_it = await ledger.reply(ledger.redis.smembers(ledger.keys.completion_votes(completion_id)))
        for opinion in await get_many(ledger, of_it):
            await _remove(ledger, opinion)
        if known.comparison:
            await comparisons.forget(ledger, known.comparison)
        if await completions.forget(ledger, completion_id, known.user):
            return
    _give_up(completion_id)


def refs(opinion: Opinion) -> list[AnswerRef]:
    """The answers an opinion is about."""
    if isinstance(opinion, Vote):
        return [opinion.answer]
    if isinstance(opinion, ComparisonVote):
        return [opinion.a, opinion.b]
    return [opinion.chosen, opinion.rejected]


async def _about(ledger: Ledger, completion_id: str, choice: int) -> Completion | None:
    """None where the archive does not tell it now, which is no reason to refuse a vote."""
    known = await completions.head(ledger, completion_id)
    if known.object != "chat.completion":
        raise _not_chat(completion_id)
    if choice not in known.indexes:
        raise _no_choice(known, choice)
    try:
        return await completions.get(ledger, completion_id)
    except ArchiveUnavailable:
        return None


def _shape(opinion_id: str) -> type[Opinion]:
    if opinion_id.startswith("vote-"):
        return Vote
    return ComparisonVote if opinion_id.startswith("cvote-") else Preference


def _not_chat(completion_id: str) -> CompletionNotChat:
    return CompletionNotChat(f"{completion_id} is a text completion; only chat completions can be voted on")


def _no_choice(known: completions.Head, choice: int) -> ChoiceUnknown:
    return ChoiceUnknown(f"{known.id} has {len(known.indexes)} choice(s), counted from 0; got {choice}")


def _key(ledger: Ledger, opinion_id: str) -> str:
    shape = _shape(opinion_id)
    if shape is Vote:
        return ledger.keys.vote(opinion_id)
    return ledger.keys.comparison_vote(opinion_id) if shape is ComparisonVote else ledger.keys.preference(opinion_id)


def _keys(ledger: Ledger, opinion_key: str, opinion: Opinion, touched: Iterable[str]) -> list[str]:
    keys = [
        opinion_key,
        ledger.keys.prompt_opinions(opinion.prompt_hash),
        ledger.keys.unsettled,
        ledger.keys.votes,
        ledger.keys.voter_opinions(opinion.voter),
        ledger.keys.archive_unvoted,
    ]
    for completion_id in touched:
        keys += [ledger.keys.completion(completion_id), ledger.keys.completion_votes(completion_id)]
    return keys


def kept_with(ledger: Ledger, comparison_id: str) -> list[str]:
    """A comparison is kept by its votes as a completion is."""
    return [ledger.keys.comparison(comparison_id), ledger.keys.comparison_votes(comparison_id)]


async def _cast(
    ledger: Ledger, opinion: Said, answers: Sequence[AnswerRef], kept: Sequence[str] = (), *, is_paced: bool
) -> tuple[str, bool]:
    """The record as it stands, and whether this call changed it; raises as `cast` and `prefer` do.

    `kept` are keys of a record and its votes that the vote keeps beside its completions.
    """
    while True:
        keys, args = cast_call(ledger, opinion, answers, kept, is_paced=is_paced)
        told = str(await ledger.keep(CAST, keys, args))
        outcome, _, found = told.partition(" ")
        if outcome in ("changed", "same"):
            return found, outcome == "changed"
        if outcome in ("banned", "wait"):
            voters.refuse(told)
        if outcome == "differ":
            one, other = (answer.completion_id for answer in answers)
            raise PromptsDiffer(
                f"{one} and {other} answer different prompts; only answers to the same messages can be compared"
            )
        if outcome == "gone":
            raise completions.unknown(ledger, opinion["id"])
        place = int(found) - 1
        refused = answers[place]
        if outcome == "unknown":
            raise completions.unknown(ledger, refused.completion_id)
        if outcome == "not_chat":
            raise _not_chat(refused.completion_id)
        if outcome == "no_choice":
            raise _no_choice(await completions.head(ledger, refused.completion_id), refused.choice)
        assert outcome == "old", outcome
        await completions.upgrade_one(ledger, refused.completion_id)


def cast_call(
    ledger: Ledger,
    opinion: Said,
    answers: Sequence[AnswerRef],
    kept: Sequence[str] = (),
    *,
    is_paced: bool,
) -> tuple[list[str], list[str | bytes | float]]:
    """Keys and arguments of CAST."""
    own, admitted = voters.admission(ledger, opinion["voter"], opinion.get("key"), is_paced=is_paced)
    keys = [_key(ledger, opinion["id"]), ledger.keys.unsettled, ledger.keys.votes]
    keys += [ledger.keys.voter_opinions(opinion["voter"]), ledger.keys.voter_prompts(opinion["voter"]), *own]
    for answer in answers:
        keys += [ledger.keys.completion(answer.completion_id), ledger.keys.completion_votes(answer.completion_id)]
    keys += kept
    around = ledger.keys.prompt_opinions("\n").split("\n")
    args: list[str | bytes | float] = [opinion["id"], orjson.dumps(opinion), repr(ledger.clock()), *around, *admitted]
    args += [answer.choice for answer in answers]
    return keys, args


async def _remove(ledger: Ledger, opinion: Opinion) -> bool:
    ttl_s = int(ledger.settings.completion_ttl_days * completions.DAY_S)
    touched = dict.fromkeys(ref.completion_id for ref in refs(opinion))
    keys = _keys(ledger, _key(ledger, opinion.id), opinion, touched)
    if isinstance(opinion, ComparisonVote):
        keys += kept_with(ledger, opinion.comparison_id)
    args: list[str | int] = [opinion.id, opinion.prompt_hash, ttl_s, repr(ledger.clock() + ttl_s), *touched]
    return bool(await ledger.keep(WITHDRAW, keys, args))


def _give_up(opinion_id: str) -> NoReturn:
    raise RecordConflict(f"{opinion_id} was changed {RETRIES} times while this request tried to; send it again")
