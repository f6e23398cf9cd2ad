"""Pairs: from opinions to something a model can learn from.

Rules, per prompt:
- an explicit preference is a pair; contrary preferences between the same two answers go by majority, a draw is none;
- a correction is a pair against the answer it corrects;
- an answer with more ups than downs and one with more downs than ups are a pair, each answer in at most one such pair;
- a lone thumb stays unpaired; answers with the same text never pair.

Voting only notes which prompts are unsettled; `settle` derives their pairs afterwards with the same code for one vote
or a million, so a rule can change without touching a vote.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from feedback import completions, votes
from feedback.connection import Ledger
from feedback.errors import TooFewPairs
from feedback.records import (
    AnswerRef,
    Completion,
    Message,
    Pair,
    Preference,
    Source,
    Split,
    Vote,
    conversation_digest,
    digest,
)

# New opinions may come in while pairs are derived from the old ones; then the count has moved and the prompt stays
# unsettled. KEYS: unsettled, the prompt's pairs, all pairs, waiting pairs, then a key for each pair to write, then one
# for each to delete. ARGV: prompt hash, count seen, how many to write, their ids, records and times, ids to delete.
SETTLE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
local writes = tonumber(ARGV[3])
for i = 1, writes do
  local id, record, at = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
  if redis.call('SADD', KEYS[2], id) == 1 then redis.call('ZADD', KEYS[4], at, id) end
  redis.call('SET', KEYS[4 + i], record)
  redis.call('ZADD', KEYS[3], at, id)
end
for i = 4 + writes + 1, #KEYS do
  local id = ARGV[3 * writes + 3 + i - 4 - writes]
  redis.call('DEL', KEYS[i])
  redis.call('SREM', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
end
return 1
"""

BATCH = 500
"""Records per MGET: large enough to hide the round trip, small enough not to hold Redis up for a millisecond."""


def derive(opinions: Iterable[votes.Opinion], asked: dict[str, Completion], held_out_share: float) -> list[Pair]:
    """The pairs that `opinions` of one prompt amount to; `asked` holds the completions they are about."""
    standing = [o for o in opinions if all(ref.completion_id in asked for ref in votes.refs(o))]
    standing.sort(key=lambda o: (o.created, o.id))
    thumbs = [o for o in standing if isinstance(o, Vote)]
    preferences = [o for o in standing if isinstance(o, Preference)]
    lessons = [*_from_preferences(preferences, asked), *_from_corrections(thumbs, asked)]
    compared = {frozenset((str(p.chosen), str(p.rejected))) for p in preferences}
    lessons += _from_thumbs(thumbs, asked, compared)
    return [lesson.pair(asked, held_out_share) for lesson in lessons if _text(lesson.chosen) != _text(lesson.rejected)]


@dataclass(frozen=True)
class Lesson:
    """What some opinions teach: `chosen` is better than `rejected`. `about` are the answers quoted, best first."""

    source: Source
    chosen: Message
    rejected: Message
    about: list[AnswerRef]
    by: Sequence[votes.Opinion]

    def pair(self, asked: dict[str, Completion], held_out_share: float) -> Pair:
        first = asked[self.about[0].completion_id]
        identity = [self.source, *map(str, self.about)]
        if self.source == "correction":  # a corrected correction is a new pair, to be trained on again
            identity += [self.by[0].id, _text(self.chosen)]
        return Pair(
            id="pair-" + digest(*identity)[:24],
            prompt_hash=first.prompt_hash,
            prompt=first.messages,
            tools=first.tools,
            chosen=trainable(self.chosen),
            rejected=trainable(self.rejected),
            source=self.source,
            split=split_of(first.messages, held_out_share),
            opinions=sorted(o.id for o in self.by),
            completions=sorted({ref.completion_id for ref in self.about}),
            adapters=sorted({asked[ref.completion_id].adapter for ref in self.about}),
            created=max(o.updated for o in self.by),
        )


def _from_preferences(preferences: list[Preference], asked: dict[str, Completion]) -> Iterator[Lesson]:
    sides: dict[frozenset[str], list[Preference]] = defaultdict(list)
    for preference in preferences:
        sides[frozenset((str(preference.chosen), str(preference.rejected)))].append(preference)
    for given in sides.values():
        one, other = given[0].chosen, given[0].rejected
        ahead = sum(1 if p.chosen == one else -1 for p in given)
        if ahead:
            winner, loser = (one, other) if ahead > 0 else (other, one)
            agreeing = [p for p in given if p.chosen == winner]
            yield Lesson("preference", _said(asked, winner), _said(asked, loser), [winner, loser], agreeing)


def _from_corrections(thumbs: list[Vote], asked: dict[str, Completion]) -> Iterator[Lesson]:
    for vote in thumbs:
        if vote.correction:
            wanted = {"role": "assistant", "content": vote.correction}
            yield Lesson("correction", wanted, _said(asked, vote.answer), [vote.answer], [vote])


def _from_thumbs(thumbs: list[Vote], asked: dict[str, Completion], compared: set[frozenset[str]]) -> Iterator[Lesson]:
    by_answer: dict[str, list[Vote]] = defaultdict(list)
    for vote in thumbs:
        by_answer[str(vote.answer)].append(vote)
    disliked = [given for given in by_answer.values() if _net(given) < 0]
    for ups in (given for given in by_answer.values() if _net(given) > 0):
        winner = ups[0].answer
        for downs in disliked:
            loser = downs[0].answer
            same = _text(_said(asked, winner)) == _text(_said(asked, loser))
            if not same and frozenset((str(winner), str(loser))) not in compared:
                agreeing = [v for v in ups if v.rating == "up"] + [v for v in downs if v.rating == "down"]
                yield Lesson("thumbs", _said(asked, winner), _said(asked, loser), [winner, loser], agreeing)
                disliked.remove(downs)
                break


def split_of(messages: Sequence[Message], held_out_share: float) -> Split:
    """By hash of the conversation's first user turn, so all its turns and votes fall on one side for ever."""
    share = int(conversation_digest(list(messages))[:8], 16) / 0x1_0000_0000
    return "held_out" if share < held_out_share else "train"


async def settle(ledger: Ledger) -> int:
    """Derive the pairs of every unsettled prompt; returns how many prompts were settled. Safe to run twice at once."""
    settled = 0
    unsettled = await ledger.reply(ledger.redis.hgetall(ledger.keys.unsettled))
    for prompt_hash, count in unsettled.items():
        members = await ledger.reply(ledger.redis.smembers(ledger.keys.prompt_opinions(prompt_hash)))
        opinions = await votes.get_many(ledger, sorted(members))
        asked = await completions.get_many(ledger, sorted({r.completion_id for o in opinions for r in votes.refs(o)}))
        pairs = derive(opinions, asked, ledger.settings.held_out_share)
        before = await ledger.reply(ledger.redis.smembers(ledger.keys.prompt_pairs(prompt_hash)))
        gone = sorted(before - {p.id for p in pairs})
        keys = [
            ledger.keys.unsettled,
            ledger.keys.prompt_pairs(prompt_hash),
            ledger.keys.pairs,
            ledger.keys.pairs_waiting,
        ]
        keys += [ledger.keys.pair(i) for i in [*(p.id for p in pairs), *gone]]
        args: list[str | int | float] = [prompt_hash, count, len(pairs)]
        for pair in pairs:
            args += [pair.id, pair.model_dump_json(exclude_none=True), pair.created]
        settled += await ledger.run(SETTLE, keys, [*args, *gone])
    return settled


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


async def waiting_since(ledger: Ledger, since: float) -> int:
    """How many pairs wait whose last opinion was given after `since`."""
    return int(await ledger.reply(ledger.redis.zcount(ledger.keys.pairs_waiting, f"({since}", "+inf")))


@dataclass(frozen=True)
class Counts:
    """Standing pairs, by which half they are on and by what they came from."""

    train: int
    held_out: int
    by_source: dict[Source, int]

    @property
    def total(self) -> int:
        return self.train + self.held_out


async def counts(ledger: Ledger) -> Counts:
    standing = await get_many(ledger, await ids(ledger))
    held_out = sum(pair.split == "held_out" for pair in standing)
    return Counts(len(standing) - held_out, held_out, dict(Counter(pair.source for pair in standing)))


async def require_enough(ledger: Ledger) -> Counts:
    """Raises TooFewPairs."""
    found, settings = await counts(ledger), ledger.settings
    if found.train < settings.min_pairs or found.held_out < settings.min_held_out_pairs:
        raise TooFewPairs(
            f"the votes amount to {found.train} pairs to train on and {found.held_out} held out; at least "
            f"{settings.min_pairs} and {settings.min_held_out_pairs} are needed: vote up and down on answers to "
            "the same prompt, prefer one answer to another, or correct some"
        )
    return found


def _said(asked: dict[str, Completion], ref: AnswerRef) -> Message:
    answer = asked[ref.completion_id].answer(ref.choice)
    assert answer is not None, "a vote is only taken for a choice that exists"
    return answer


def trainable(message: Message) -> Message:
    """What training needs of a message: no nulls, no fields of the serving engine."""
    kept = {k: message[k] for k in ("role", "content", "tool_calls") if message.get(k)}
    return {"role": "assistant", "content": "", **kept}


def _text(message: Message) -> str:
    return str(message.get("content") or "").strip() + str(message.get("tool_calls") or "")


def _net(given: list[Vote]) -> int:
    return sum(1 if v.rating == "up" else -1 for v in given)
