"""Completions: what was asked and what was answered, kept until it can no longer teach.

A completion nobody voted on expires; one with a vote stays, and when it is old its text moves to the archive
(feedback/archive.py): what is left then is a stub, and everything here reads both alike. Recording happens before the
client sees the end of its answer, so a vote that follows always finds it.

A record is a hash: its head in fields, which votes read, and the whole as JSON in `body`, or in a stub where that is in
the archive in `archived`. Before there were hashes it was the JSON alone, as a string; such records are read as they
are, and become hashes when something is to be written to them.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from redis.exceptions import ResponseError

from feedback import partitions
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, CompletionUnknown
from feedback.failures import refused_or_lost
from feedback.partitions import Place
from feedback.records import Completion

DAY_S = 86_400

FORM = "hashes"
"""Another word when records get another shape: then `upgrade` looks at all of them once more."""

# Lua, for scripts that need only the head: returns what is missing, or nil and the head.
HEAD = """
local function head_of(key)
  local head = redis.pcall('HMGET', key, 'object', 'adapter', 'prompt_hash', 'indexes')
  if head.err then return 'old' end
  if not head[1] then return 'unknown' end
  return nil, head[1], cjson.encode(head[2]), head[3], head[4]
end
"""

# KEYS: record, index, live; where there is a user, completions:users and the user's completions.
# ARGV: id, created, lifetime in seconds, then fields and values.
RECORD = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], 'NX', ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
if KEYS[4] then
  redis.call('HSET', KEYS[4], ARGV[1], KEYS[5])
  redis.call('SADD', KEYS[5], ARGV[1])
end
return 1
"""

# One text for each record, as MGET would give it: its JSON, or where that is. KEYS: records.
READ = """
local found = {}
for i, key in ipairs(KEYS) do
  local one = redis.pcall('HMGET', key, 'body', 'archived')
  if one.err then one = {redis.call('GET', key)} end
  found[i] = one[1] or one[2] or false
end
return found
"""

# KEYS: record, live. ARGV: id, created, the string as it was read, then fields and values.
UPGRADE = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[3] then return 0 end
local lifetime_ms = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if lifetime_ms >= 0 then redis.call('PEXPIRE', KEYS[1], math.max(lifetime_ms, 1)) end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 1
"""

# An archived completion that changes comes back, with a lifetime if its votes were withdrawn; the row it was is tidied
# away. KEYS: record, its votes, live, archive:dirty, archive:unvoted. ARGV: id, created, body, lifetime in seconds.
UPDATE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local place = redis.call('HGET', KEYS[1], 'archived')
redis.call('HSET', KEYS[1], 'body', ARGV[3])
if place then
  redis.call('HDEL', KEYS[1], 'archived')
  redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
  redis.call('HINCRBY', KEYS[4], string.match(place, '^%S+'), 1)
  redis.call('ZREM', KEYS[5], ARGV[1])
  if redis.call('SCARD', KEYS[2]) == 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
end
return 1
"""

# KEYS: completion, its votes, completions, live, completions:users, its user's completions (any key where there is no
# user), archive:dirty, archive:unvoted. ARGV: id. A vote may come in while the others are withdrawn.
FORGET = """
if redis.call('SCARD', KEYS[2]) > 0 then
  redis.call('ZREM', KEYS[8], ARGV[1])
  return 0
end
local place = redis.pcall('HGET', KEYS[1], 'archived')
redis.call('DEL', KEYS[1]) -- first: the first write is the one that must not ask for memory
if type(place) == 'string' then redis.call('HINCRBY', KEYS[7], string.match(place, '^%S+'), 1) end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if redis.call('HDEL', KEYS[5], ARGV[1]) == 1 then redis.call('SREM', KEYS[6], ARGV[1]) end
redis.call('ZREM', KEYS[8], ARGV[1])
return 1
"""

# The last member of a batch may be gone, or have moved, when the next is asked for; put back for a moment it shows
# where it stood. KEYS: a zset. ARGV: the last member ('' at the start), the score it had, how many.
NEXT = """
local from = 0
if ARGV[1] ~= '' then
  local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if score ~= ARGV[2] then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
  from = redis.call('ZRANK', KEYS[1], ARGV[1]) + 1
  if not score then
    redis.call('ZREM', KEYS[1], ARGV[1])
    from = from - 1
  elseif score ~= ARGV[2] then
    redis.call('ZADD', KEYS[1], score, ARGV[1])
    if tonumber(score) > tonumber(ARGV[2]) then from = from - 1 end
  end
end
return redis.call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1, 'WITHSCORES')
"""


@dataclass(frozen=True)
class Head:
    """What is known of a completion without its text."""

    id: str
    object: str
    adapter: str
    prompt_hash: str
    indexes: list[int]
    client: str
    user: str | None
    comparison: str | None


HEAD_FIELDS = ("object", "adapter", "prompt_hash", "indexes", "client", "user", "comparison")


@dataclass
class Found:
    """What could be read, and of what could not, why."""

    completions: dict[str, Completion] = field(default_factory=dict)
    unreadable: dict[str, ArchiveUnavailable] = field(default_factory=dict)


def flat(completion: Completion) -> list[str]:
    """The record as a hash: names and values in turn, as HSET takes them."""
    found = {
        "object": completion.object,
        "adapter": completion.adapter,
        "prompt_hash": completion.prompt_hash,
        "indexes": "," + "".join(f"{index}," for index in completion.indexes),
        "client": completion.client,
        "user": completion.user,
        "comparison": completion.comparison,
        "trial": completion.trial,
        "body": completion.model_dump_json(exclude_none=True),
    }
    return [part for name, value in found.items() if value is not None for part in (name, value)]


async def record(ledger: Ledger, completion: Completion) -> Completion:
    """As it is recorded, redacted where that is asked for. Raises TextTooLong.

    Recording what is there changes nothing: an import derives its ids from content.
    """
    completion = await ledger.redaction.completion(completion)
    ttl_s = int(ledger.settings.completion_ttl_days * DAY_S)
    keys = [ledger.keys.completion(completion.id), ledger.keys.completions, ledger.keys.completions_live]
    if completion.user is not None:
        keys += [ledger.keys.completion_users, ledger.keys.user_completions(completion.user)]
    await ledger.run(RECORD, keys, [completion.id, repr(completion.created), ttl_s, *flat(completion)])
    return completion


async def get(ledger: Ledger, completion_id: str, client: str | None = None) -> Completion:
    """With `client`, only if that key asked for it; others learn nothing of it.

    Raises CompletionUnknown, ArchiveUnavailable.
    """
    if client is not None:
        await expect(ledger, completion_id, client)
    found = await get_many(ledger, [completion_id])
    if completion_id not in found:
        raise unknown(ledger, completion_id)
    return found[completion_id]


async def expect(ledger: Ledger, completion_id: str, client: str | None = None) -> None:
    """Raises CompletionUnknown as `get` does, and needs no archive."""
    if client not in (None, (await head(ledger, completion_id)).client):
        raise unknown(ledger, completion_id)


async def head(ledger: Ledger, completion_id: str) -> Head:
    """Needs no archive. Raises CompletionUnknown."""
    key = ledger.keys.completion(completion_id)
    while True:
        pipe = ledger.redis.pipeline(transaction=False)
        pipe.hmget(key, HEAD_FIELDS)
        (found,) = await ledger.reply(pipe.execute(raise_on_error=False))
        if not is_of_another_type(found):
            break
        await upgrade_one(ledger, completion_id)
    kind, adapter, prompt_hash, indexes, client, user, comparison = found
    if kind is None:
        raise unknown(ledger, completion_id)
    numbers = [int(index) for index in indexes.split(",") if index]
    return Head(completion_id, kind, adapter, prompt_hash, numbers, client, user, comparison)


def unknown(ledger: Ledger, completion_id: str) -> CompletionUnknown:
    return CompletionUnknown(
        f"no completion {completion_id!r}: it was not stored, was deleted, or expired without a vote "
        f"after {ledger.settings.completion_ttl_days:g} days"
    )


async def get_many(ledger: Ledger, ids: Iterable[str]) -> dict[str, Completion]:
    """Those of `ids` that exist. Raises ArchiveUnavailable if one of them cannot be read."""
    found = await find(ledger, ids)
    for refusal in found.unreadable.values():
        raise refusal
    return found.completions


async def find(ledger: Ledger, ids: Iterable[str]) -> Found:
    """Those of `ids` that exist, as far as they can be read."""
    found = Found()
    left, tried = list(ids), dict[str, Place]()
    while left:
        places: dict[str, Place] = {}
        for completion_id, text in zip(left, await texts_or_places(ledger, left), strict=True):
            if text is None:
                found.unreadable.pop(completion_id, None)
            elif text.startswith("{"):
                found.completions[completion_id] = Completion.model_validate_json(text)
                found.unreadable.pop(completion_id, None)
            elif tried.get(completion_id) != Place.of(text):
                places[completion_id] = Place.of(text)
        # Between a look at the stub and one into its partition the row may have got another place: then look again.
        left = await _read_archived(ledger, places, found)
        tried |= places
    return found


async def texts_or_places(ledger: Ledger, ids: Iterable[str]) -> list[str | None]:
    """For each its JSON, or where in the archive that is."""
    read = ledger.redis.register_script(READ)
    return list(await ledger.reply(read(keys=[ledger.keys.completion(i) for i in ids])))


async def _read_archived(ledger: Ledger, places: dict[str, Place], found: Found) -> list[str]:
    """Ids of those that could not be read."""
    together: dict[str, list[str]] = defaultdict(list)
    for completion_id, place in places.items():
        together[place.partition].append(completion_id)
    for name, some in together.items():
        try:
            texts = await asyncio.to_thread(partitions.at(ledger).read, name, [places[i].row for i in some])
        except ArchiveUnavailable as refusal:
            found.unreadable |= dict.fromkeys(some, refusal)
            continue
        for completion_id, text in zip(some, texts, strict=True):
            found.completions[completion_id] = Completion.model_validate_json(text)
            found.unreadable.pop(completion_id, None)
    return [completion_id for completion_id in places if completion_id in found.unreadable]


async def existing(ledger: Ledger, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that exist, whether they can be read now or not."""
    pipe = ledger.redis.pipeline(transaction=False)
    asked = list(ids)
    for completion_id in asked:
        pipe.exists(ledger.keys.completion(completion_id))
    there = await ledger.reply(pipe.execute())
    return {completion_id for completion_id, is_there in zip(asked, there, strict=True) if is_there}


async def page(
    ledger: Ledger, after: str | None = None, limit: int = 20, newest_first: bool = False
) -> tuple[list[Completion], bool]:
    """Completions in order of creation, and whether more follow. `after` is the last id of the page before."""
    ids, has_more = await page_of(ledger, ledger.keys.completions, after, limit, newest_first)
    found = await get_many(ledger, ids)
    return [found[i] for i in ids if i in found], has_more


async def page_of(
    ledger: Ledger, index: str, after: str | None, limit: int, newest_first: bool
) -> tuple[list[str], bool]:
    """Members of a zset after `after`, at most `limit`, and whether there are more."""
    start = 0
    if after is not None:
        rank = ledger.redis.zrevrank(index, after) if newest_first else ledger.redis.zrank(index, after)
        position = await ledger.reply(rank)
        start = 0 if position is None else int(position) + 1
    ids = await ledger.reply(ledger.redis.zrange(index, start, start + limit, desc=newest_first))
    return list(ids[:limit]), len(ids) > limit


async def walk(ledger: Ledger, index: str, batch: int) -> AsyncIterator[list[str]]:
    """All members of a zset in order, a batch at a time, whatever leaves meanwhile; one that moves may come twice."""
    last, at = "", "0"
    while found := await ledger.run(NEXT, [index], [last, at, batch]):
        last, at = found[-2:]
        yield found[::2]


async def newest_at(ledger: Ledger) -> float:
    """When the newest completion was asked for; 0 if there is none."""
    found = await ledger.reply(ledger.redis.zrange(ledger.keys.completions, -1, -1, withscores=True))
    return float(found[0][1]) if found else 0.0


async def update_metadata(ledger: Ledger, completion_id: str, metadata: dict[str, str]) -> Completion:
    """One that is archived comes back until it is archived again.

    Raises CompletionUnknown, ArchiveUnavailable, TextTooLong.
    """
    completion = await get(ledger, completion_id)
    await upgrade_one(ledger, completion_id)
    changed = completion.model_copy(update={"metadata": await ledger.redaction.tree(metadata)})
    keys = [
        ledger.keys.completion(completion_id),
        ledger.keys.completion_votes(completion_id),
        ledger.keys.completions_live,
        ledger.keys.archive_dirty,
        ledger.keys.archive_unvoted,
    ]
    text, ttl_s = changed.model_dump_json(exclude_none=True), int(ledger.settings.completion_ttl_days * DAY_S)
    args: list[str | int] = [completion_id, repr(completion.created), text, ttl_s]
    if not await ledger.run(UPDATE, keys, args):
        raise CompletionUnknown(f"completion {completion_id!r} was deleted in the meantime")
    return changed


async def forget(ledger: Ledger, completion_id: str, user: str | None) -> bool:
    """Delete it, unless there are votes on it; whether it is gone. What the archive holds is left to be tidied."""
    owner = ledger.keys.user_completions(user) if user is not None else ledger.keys.completions
    return await _forget(ledger, completion_id, owner)


async def forget_unvoted(ledger: Ledger, completion_id: str) -> bool:
    """As `forget`, for one whose user has to be looked up."""
    owner = await ledger.reply(ledger.redis.hget(ledger.keys.completion_users, completion_id))
    return await _forget(ledger, completion_id, owner or ledger.keys.completions)


async def _forget(ledger: Ledger, completion_id: str, owner: str) -> bool:
    keys = [
        ledger.keys.completion(completion_id),
        ledger.keys.completion_votes(completion_id),
        ledger.keys.completions,
        ledger.keys.completions_live,
        ledger.keys.completion_users,
        owner,
        ledger.keys.archive_dirty,
        ledger.keys.archive_unvoted,
    ]
    return bool(await ledger.keep(FORGET, keys, [completion_id]))


async def upgrade(ledger: Ledger) -> None:
    """Make hashes of all records that are strings, once. Twice at once costs time and changes nothing."""
    if await ledger.reply(ledger.redis.get(ledger.keys.completions_form)) == FORM:
        return
    async for ids in walk(ledger, ledger.keys.completions, 100):
        pipe = ledger.redis.pipeline(transaction=False)
        for completion_id in ids:
            pipe.type(ledger.keys.completion(completion_id))
        kinds = await ledger.reply(pipe.execute())
        old = [completion_id for completion_id, kind in zip(ids, kinds, strict=True) if kind == "string"]
        await asyncio.gather(*(upgrade_one(ledger, completion_id) for completion_id in old))
    await ledger.reply(ledger.redis.set(ledger.keys.completions_form, FORM))


async def upgrade_one(ledger: Ledger, completion_id: str) -> None:
    """Make a hash of a record that is a string; nothing happens to others."""
    key = ledger.keys.completion(completion_id)
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.get(key)
    (text,) = await ledger.reply(pipe.execute(raise_on_error=False))
    if text is None or is_of_another_type(text):
        return
    completion = Completion.model_validate_json(text)
    args = [completion_id, repr(completion.created), text, *flat(completion)]
    await ledger.run(UPGRADE, [key, ledger.keys.completions_live], args)


def is_of_another_type(reply: object) -> bool:
    """Whether Redis says so of the record; raises for every other refusal."""
    if not isinstance(reply, ResponseError):
        return False
    if not str(reply).startswith("WRONGTYPE"):
        raise refused_or_lost(reply) from reply
    return True
