"""Pairs: from opinions to something a model can learn from.

Voting only notes which prompts are unsettled; `settle` derives their pairs afterwards with the same code for one vote
or a million (lessons.py has the rules), so a rule can change without touching a vote.
"""

import asyncio
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from feedback import comparisons, completions, report, tally, voters, votes
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable
from feedback.lessons import Derived, Reason, derive, trainable
from feedback.records import Comparison, ComparisonVote, Completion, Message, Pair, Unpaired
from feedback.report import Part
from feedback.texts import fault_of

RULES = "5"
"""Another number when the rules of lessons.py change: then every prompt is settled anew."""

# New opinions may come in while pairs are derived from the old ones: then the count has moved. Or somebody else has
# settled the prompt meanwhile and the count began again: then it was settled more often. Either way it stays unsettled.
# The prompt's old counts leave the tally and the report and its new ones enter them in the same step, so that both are
# always the sum over settled prompts. KEYS: unsettled; the prompt's settled, pairs, lessons and tally; tally, all
# pairs, waiting pairs, held-out pairs, unpaired answers; the prompt's part of the report, the report, the voters'
# scores; then a key for each record to write, then one for each to delete.
# ARGV: prompt hash, count seen, how often it was settled then, a memory of that in s, plan (see _write), the part of
# the report, records.
SETTLE = (
    report.REPLACE
    + """
local unsettled, settled, own_pairs, lessons, own_tally, tally, all, waiting, held_out, unpaired = unpack(KEYS, 1, 10)
if redis.call('HGET', unsettled, ARGV[1]) ~= ARGV[2] then return 0 end
if (redis.call('GET', settled) or '0') ~= ARGV[3] then return 0 end
redis.call('HDEL', unsettled, ARGV[1])
redis.call('INCR', settled)
redis.call('EXPIRE', settled, ARGV[4])
local plan = cjson.decode(ARGV[5])
local function count(name, by)
  if redis.call('HINCRBY', tally, name, by) == 0 then redis.call('HDEL', tally, name) end
end
local old = redis.call('HGETALL', own_tally)
for i = 1, #old, 2 do count(old[i], -old[i + 1]) end
redis.call('DEL', lessons, own_tally)
for name, by in pairs(plan.tally) do
  redis.call('HSET', own_tally, name, by)
  count(name, by)
end
for opinion, became in pairs(plan.lessons) do redis.call('HSET', lessons, opinion, became) end
for i, one in ipairs(plan.write) do
  redis.call('SET', KEYS[13 + i], ARGV[6 + i])
  if one.kind == 'unpaired' then
    redis.call('ZADD', unpaired, one.at, one.id)
  else
    local is_new = redis.call('SADD', own_pairs, one.id) == 1
    redis.call('ZADD', all, one.at, one.id)
    if is_new and one.kind ~= 'unfit' then redis.call('ZADD', waiting, one.at, one.id) end
    if one.kind == 'held_out' then redis.call('SADD', held_out, one.id) end
  end
end
for i, id in ipairs(plan.delete) do
  redis.call('DEL', KEYS[13 + #plan.write + i])
  redis.call('SREM', own_pairs, id)
  redis.call('ZREM', all, id)
  redis.call('ZREM', waiting, id)
  redis.call('SREM', held_out, id)
  redis.call('ZREM', unpaired, id)
end
replace(KEYS[11], KEYS[12], KEYS[13], ARGV[6])
return 1
"""
)

REMEMBERED_S = 3600
"""How long a prompt remembers how often it was settled: longer than anybody reads before they write."""

BATCH = 500
"""Records per MGET: large enough to hide the round trip, small enough not to hold Redis up for a millisecond."""

PROMPTS = 32
"""Prompts settled side by side: their writes share a flush to disk, and half the connections stay free for votes."""


@dataclass(frozen=True)
class UnpairedPreference:
    """What methods that learn from single ratings take: a prompt, an answer to it, and whether people liked it."""

    record: Unpaired
    prompt: list[Message]
    completion: Message
    tools: list[Any] | None

    @property
    def label(self) -> bool:
        return self.record.label


async def settle(ledger: Ledger, within_s: float = math.inf) -> int:
    """Derive the pairs of every unsettled prompt; returns how many prompts were settled. Safe to run twice at once.

    With `within_s` it stops at about that time and leaves the rest unsettled. Prompts whose answers are in an archive
    that cannot be reached stay unsettled and hold up no other.
    """
    end = time.monotonic() + within_s
    await _heed_changed_rules(ledger)
    unsettled = await ledger.reply(ledger.redis.hkeys(ledger.keys.unsettled))
    settled = 0
    for start in range(0, len(unsettled), PROMPTS):
        settled += await _settle(ledger, unsettled[start : start + PROMPTS])
        if time.monotonic() > end:
            break
    return settled


async def settle_prompt(ledger: Ledger, prompt_hash: str) -> None:
    """Settle this one, if it is unsettled."""
    await _settle(ledger, [prompt_hash])


async def settle_and_judge(ledger: Ledger) -> int:
    """Settle until no outlier is left among the voters who are heard; returns how many were quarantined."""
    quarantined = 0
    await settle(ledger)
    while await voters.quarantine_worst(ledger):
        quarantined += 1
        await settle(ledger)
    return quarantined


async def _heed_changed_rules(ledger: Ledger) -> None:
    """A ledger settled by other rules than ours is settled anew. Doing so twice costs time and changes nothing."""
    if await ledger.reply(ledger.redis.get(ledger.keys.settled_rules)) == RULES:
        return
    standing = await ledger.reply(ledger.redis.zrange(ledger.keys.votes, 0, -1))
    for start in range(0, len(standing), BATCH):
        pipe = ledger.redis.pipeline(transaction=False)
        for opinion in await votes.get_many(ledger, standing[start : start + BATCH]):
            pipe.hincrby(ledger.keys.unsettled, opinion.prompt_hash, 1)
            pipe.sadd(ledger.keys.voter_prompts(opinion.voter), opinion.prompt_hash)  # not noted before "4"
        await ledger.reply(pipe.execute())
    await ledger.reply(ledger.redis.set(ledger.keys.settled_rules, RULES))


@dataclass(frozen=True)
class Prompt:
    """A prompt as it stood before its opinions were read; `lessons` are ids of its pairs and unpaired answers."""

    hash: str
    count: str
    times: str
    opinions: set[str]
    lessons: set[str]


@dataclass(frozen=True)
class Outcome:
    """What the opinions on one prompt amount to: what they teach, and what they add to the report."""

    derived: Derived
    part: Part


@dataclass(frozen=True)
class Recount:
    """The tally and the report as they should be when nothing is unsettled."""

    tally: Counter[str]
    report: Part


async def _settle(ledger: Ledger, prompt_hashes: Iterable[str]) -> int:
    prompts = await _read(ledger, list(prompt_hashes))
    derived = await _derive(ledger, {prompt.hash: prompt.opinions for prompt in prompts})
    readable = [prompt for prompt in prompts if prompt.hash in derived]
    return sum(await asyncio.gather(*(_write(ledger, prompt, derived[prompt.hash]) for prompt in readable)))


async def _read(ledger: Ledger, prompt_hashes: list[str]) -> list[Prompt]:
    """Those that are unsettled."""
    keys = ledger.keys
    pipe = ledger.redis.pipeline(transaction=True)
    for prompt_hash in prompt_hashes:
        pipe.hget(keys.unsettled, prompt_hash)
        pipe.get(keys.prompt_settled(prompt_hash))
        pipe.smembers(keys.prompt_opinions(prompt_hash))
        pipe.smembers(keys.prompt_pairs(prompt_hash))
        pipe.hvals(keys.prompt_lessons(prompt_hash))
    found = await ledger.reply(pipe.execute())
    prompts: list[Prompt] = []
    for nth, prompt_hash in enumerate(prompt_hashes):
        count, times, opinions, own_pairs, became = found[5 * nth : 5 * nth + 5]
        if count is not None:
            single = {i for uses in became for i in uses.split() if i.startswith("unpaired-")}
            prompts.append(Prompt(prompt_hash, count, times or "0", opinions, own_pairs | single))
    return prompts


async def _derive(ledger: Ledger, members: Mapping[str, Iterable[str]]) -> dict[str, Outcome]:
    """For each prompt, what its opinions amount to; without those whose answers the archive does not tell now."""
    opinions = await _opinions(ledger, sorted({i for some in members.values() for i in some}))
    answers = await _answers(ledger, opinions.values())
    asked = answers.completions
    shown = await _shown(ledger, opinions.values())
    # Last: the counts that `_write` compares were read before, and who is silenced from now on moves them.
    silenced = await voters.silenced(ledger, {opinion.voter for opinion in opinions.values()})
    unheard = _unheard(opinions.values(), asked, shown, silenced)
    found: dict[str, Outcome] = {}
    for prompt_hash, some in members.items():
        given = [opinions[i] for i in some if i in opinions]
        if any(ref.completion_id in answers.unreadable for opinion in given for ref in votes.refs(opinion)):
            continue
        heard = derive([o for o in given if o.id not in unheard], asked, ledger.settings.held_out_share)
        left_out = heard.left_out | {o.id: unheard[o.id] for o in given if o.id in unheard}
        part = report.part(given, asked, heard.pairs, silenced, shown)
        found[prompt_hash] = Outcome(replace(heard, left_out=left_out), part)
    return found


async def recount(ledger: Ledger) -> Recount:
    """Every prompt derived again. Reads the whole ledger, and the archive. Raises ArchiveUnavailable."""
    members: dict[str, set[str]] = defaultdict(set)
    standing = await ledger.reply(ledger.redis.zrange(ledger.keys.votes, 0, -1))
    for start in range(0, len(standing), BATCH):
        for opinion in await votes.get_many(ledger, standing[start : start + BATCH]):
            members[opinion.prompt_hash].add(opinion.id)
    counts: Counter[str] = Counter()
    parts: list[Part] = []
    prompts = list(members)
    for start in range(0, len(prompts), PROMPTS):
        some = {prompt_hash: members[prompt_hash] for prompt_hash in prompts[start : start + PROMPTS]}
        derived = await _derive(ledger, some)
        if len(derived) < len(some):
            raise ArchiveUnavailable("answers in the archive cannot be read, so nothing can be counted; try again")
        for outcome in derived.values():
            counts.update(tally.tally_of(outcome.derived))
            parts.append(outcome.part)
    return Recount(counts, report.total(parts))


async def _write(ledger: Ledger, prompt: Prompt, outcome: Outcome) -> int:
    """1 if the prompt is settled now, 0 if opinions on it came in meanwhile, or somebody else settled it."""
    keys, derived = ledger.keys, outcome.derived
    written: list[Pair | Unpaired] = [*derived.pairs, *derived.unpaired]
    gone = sorted(prompt.lessons - {one.id for one in written})
    plan = {
        "tally": tally.tally_of(derived),
        "lessons": {**derived.left_out, **{i: " ".join(uses) for i, uses in derived.uses.items()}},
        "write": [{"id": one.id, "at": repr(one.created), "kind": _kind(one)} for one in written],
        "delete": gone,
    }
    touched = [
        keys.unsettled,
        keys.prompt_settled(prompt.hash),
        keys.prompt_pairs(prompt.hash),
        keys.prompt_lessons(prompt.hash),
        keys.prompt_tally(prompt.hash),
        keys.tally,
        keys.pairs,
        keys.pairs_waiting,
        keys.pairs_held_out,
        keys.unpaired,
        keys.prompt_report(prompt.hash),
        keys.report,
        keys.voter_scores,
        *(_key(ledger, i) for i in [*(one.id for one in written), *gone]),
    ]
    records = [one.model_dump_json(exclude_none=True) for one in written]
    seen: list[str | int] = [prompt.hash, prompt.count, prompt.times, REMEMBERED_S]
    return int(await ledger.run(SETTLE, touched, [*seen, json.dumps(plan), outcome.part.text, *records]))


def _kind(one: Pair | Unpaired) -> str:
    if isinstance(one, Unpaired):
        return "unpaired"
    return "unfit" if fault_of(one) else one.split


def _key(ledger: Ledger, lesson_id: str) -> str:
    is_unpaired = lesson_id.startswith("unpaired-")
    return ledger.keys.unpaired_answer(lesson_id) if is_unpaired else ledger.keys.pair(lesson_id)


async def _opinions(ledger: Ledger, ids: Sequence[str]) -> dict[str, votes.Opinion]:
    found: dict[str, votes.Opinion] = {}
    for start in range(0, len(ids), BATCH):
        found |= {opinion.id: opinion for opinion in await votes.get_many(ledger, ids[start : start + BATCH])}
    return found


async def _answers(ledger: Ledger, opinions: Iterable[votes.Opinion]) -> completions.Found:
    ids = sorted({ref.completion_id for opinion in opinions for ref in votes.refs(opinion)})
    found = completions.Found()
    for start in range(0, len(ids), BATCH):
        some = await completions.find(ledger, ids[start : start + BATCH])
        found.completions |= some.completions
        found.unreadable |= some.unreadable
    return found


async def _shown(ledger: Ledger, opinions: Iterable[votes.Opinion]) -> dict[str, Comparison]:
    """The comparisons that `opinions` are about, by id."""
    ids = sorted({opinion.comparison_id for opinion in opinions if isinstance(opinion, ComparisonVote)})
    found: dict[str, Comparison] = {}
    for start in range(0, len(ids), BATCH):
        found |= {one.id: one for one in await comparisons.get_many(ledger, ids[start : start + BATCH])}
    return found


def _unheard(
    opinions: Iterable[votes.Opinion],
    asked: Mapping[str, Completion],
    shown: Mapping[str, Comparison],
    silenced: Collection[str],
) -> dict[str, Reason]:
    """Opinions that no dataset may rest on, whatever they say, and why."""
    found: dict[str, Reason] = {}
    for opinion in opinions:
        if opinion.voter in silenced:
            found[opinion.id] = "quarantined"
        elif report.is_honeypot(opinion, asked, shown):
            found[opinion.id] = "honeypot"
    return found


async def get_many(ledger: Ledger, ids: Sequence[str]) -> list[Pair]:
    """Those of `ids` that still stand, in the order asked for."""
    found: list[Pair] = []
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        texts = await ledger.reply(ledger.redis.mget([ledger.keys.pair(i) for i in some]))
        found += [Pair.model_validate_json(text) for text in texts if text is not None]
    return found


async def pages(ledger: Ledger) -> AsyncIterator[list[Pair]]:
    """Every pair, oldest first, a batch at a time; one that changes meanwhile may come twice, old and new."""
    async for some in completions.walk(ledger, ledger.keys.pairs, BATCH):
        yield await get_many(ledger, some)


async def count(ledger: Ledger) -> int:
    return int(await ledger.reply(ledger.redis.zcard(ledger.keys.pairs)))


async def ids(ledger: Ledger) -> list[str]:
    """Every pair, oldest first."""
    return list(await ledger.reply(ledger.redis.zrange(ledger.keys.pairs, 0, -1)))


async def waiting(ledger: Ledger) -> list[str]:
    """The pairs no adapter has been trained on yet, oldest first."""
    return list(await ledger.reply(ledger.redis.zrange(ledger.keys.pairs_waiting, 0, -1)))


async def unpaired(ledger: Ledger) -> AsyncIterator[UnpairedPreference]:
    """Every rated answer that is in no pair, oldest first; one that changes meanwhile may come twice, old and new."""
    async for some in completions.walk(ledger, ledger.keys.unpaired, BATCH):
        for one in await unpaired_of(ledger, some):
            yield one


async def unpaired_ids(ledger: Ledger) -> list[str]:
    """Every rated answer that is in no pair, oldest first."""
    return list(await ledger.reply(ledger.redis.zrange(ledger.keys.unpaired, 0, -1)))


async def unpaired_of(ledger: Ledger, ids: Sequence[str]) -> list[UnpairedPreference]:
    """Those of `ids` that still stand, in the order asked for."""
    found: list[UnpairedPreference] = []
    for start in range(0, len(ids), BATCH):
        keys = [ledger.keys.unpaired_answer(i) for i in ids[start : start + BATCH]]
        texts = await ledger.reply(ledger.redis.mget(keys))
        rated = [Unpaired.model_validate_json(text) for text in texts if text is not None]
        asked = await completions.get_many(ledger, sorted({one.answer.completion_id for one in rated}))
        for one in rated:
            completion = asked.get(one.answer.completion_id)
            answer = completion.answer(one.answer.choice) if completion else None
            if completion and answer:
                found.append(UnpairedPreference(one, completion.messages, trainable(answer), completion.tools))
    return found


async def waiting_since(ledger: Ledger, since: float) -> tuple[int, float | None]:
    """How many pairs wait whose last opinion was given after `since`, and when that of the oldest was."""
    return await _since(ledger, ledger.keys.pairs_waiting, since)


async def rated_since(ledger: Ledger, since: float) -> tuple[int, float | None]:
    """The same of rated answers that are in no pair."""
    return await _since(ledger, ledger.keys.unpaired, since)


async def _since(ledger: Ledger, key: str, since: float) -> tuple[int, float | None]:
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.zcount(key, f"({since}", "+inf")
    pipe.zrange(key, f"({since}", "+inf", byscore=True, offset=0, num=1, withscores=True)
    count, oldest = await ledger.reply(pipe.execute())
    return int(count), oldest[0][1] if oldest else None


@dataclass(frozen=True)
class Counts:
    """Standing pairs, by which half they are on and by what they came from."""

    train: int
    held_out: int
    by_source: dict[str, int]

    @property
    def total(self) -> int:
        return self.train + self.held_out


async def counts(ledger: Ledger) -> Counts:
    """Of the pairs a job can learn from."""
    counted = await tally.read(ledger)
    train, held_out = (Counter(tally.under(counted, f"pairs:{split}")) for split in ("train", "held_out"))
    return Counts(train.total(), held_out.total(), dict(train + held_out))
