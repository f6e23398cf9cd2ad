"""Completions: what was asked and what was answered, kept until it can no longer teach.

A completion nobody voted on expires; one with a vote stays. Recording happens before the client sees the end of
its answer, so a vote that follows always finds it.
"""

from collections.abc import AsyncIterator, Callable, Iterable

from feedback.connection import Ledger
from feedback.errors import CompletionUnknown
from feedback.records import Completion

DAY_S = 86_400

# Lua, for scripts that need little of a completion: its first bytes, for a whole record takes long to parse. Nothing a
# client wrote comes before the end of the pattern. `given` is the head as JSON where the record, older than heads or
# with longer names, does not begin with one. Returns what is missing, or nil and the head.
HEAD = """
local function head_of(key, given)
  if given ~= '' then
    if redis.call('EXISTS', key) == 0 then return 'unknown' end
    local head = cjson.decode(given)
    return nil, head.object, cjson.encode(head.adapter), head.prompt_hash, ',' .. table.concat(head.indexes, ',') .. ','
  end
  local text = redis.call('GETRANGE', key, 0, 2047)
  if text == '' then return 'unknown' end
  local object, adapter, prompt, indexes = string.match(text, '^{"v":1,"id":"[^"]*","object":"([^"]*)",' ..
    '"served_model":"[^"]*","adapter":("[^"]*"),"created":[^,"]+,"prompt_hash":"(%x+)","indexes":%[([%d,]*)%]')
  if not object then return 'headless' end
  return nil, object, adapter, prompt, ',' .. indexes .. ','
end
"""

# An import may record the same completion again just now. KEYS: the index, completions:users, then for each id its
# record and its user's completions (again the index where there is no user, as for comparisons). ARGV: ids.
SWEEP = """
local swept = 0
for i, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[2 * i + 1]) == 0 then
    swept = swept + redis.call('ZREM', KEYS[1], id)
    if redis.call('HDEL', KEYS[2], id) == 1 then redis.call('SREM', KEYS[2 * i + 2], id) end
  end
end
return swept
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


async def record(ledger: Ledger, completion: Completion) -> Completion:
    """As it is recorded, redacted where that is asked for. Raises TextTooLong.

    Recording what is there changes nothing: an import derives its ids from content.
    """
    completion = await ledger.redaction.completion(completion)
    ttl_s = int(ledger.settings.completion_ttl_days * DAY_S)
    text = completion.model_dump_json(exclude_none=True)
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.set(ledger.keys.completion(completion.id), text, ex=ttl_s, nx=True)
    pipe.zadd(ledger.keys.completions, {completion.id: completion.created}, nx=True)
    if completion.user is not None:
        users_completions = ledger.keys.user_completions(completion.user)
        pipe.hset(ledger.keys.completion_users, completion.id, users_completions)
        pipe.sadd(users_completions, completion.id)
    await ledger.reply(pipe.execute())
    return completion


async def get(ledger: Ledger, completion_id: str, client: str | None = None) -> Completion:
    """With `client`, only if that key asked for it; others learn nothing of it. Raises CompletionUnknown."""
    text = await ledger.reply(ledger.redis.get(ledger.keys.completion(completion_id)))
    completion = Completion.model_validate_json(text) if text is not None else None
    if completion is None or client not in (None, completion.client):
        raise unknown(ledger, completion_id)
    return completion


def unknown(ledger: Ledger, completion_id: str) -> CompletionUnknown:
    return CompletionUnknown(
        f"no completion {completion_id!r}: it was not stored, was deleted, or expired without a vote "
        f"after {ledger.settings.completion_ttl_days:g} days"
    )


def head(completion: Completion) -> str:
    """What HEAD takes as `given`."""
    return completion.model_dump_json(include={"object", "adapter", "prompt_hash", "indexes"})


async def get_many(ledger: Ledger, ids: Iterable[str]) -> dict[str, Completion]:
    """Those of `ids` that exist."""
    keys = [ledger.keys.completion(i) for i in ids]
    texts = await ledger.reply(ledger.redis.mget(keys)) if keys else []
    found = (Completion.model_validate_json(text) for text in texts if text is not None)
    return {completion.id: completion for completion in found}


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


async def update_metadata(ledger: Ledger, completion_id: str, metadata: dict[str, str]) -> Completion:
    """Raises CompletionUnknown, TextTooLong."""
    completion = await get(ledger, completion_id)
    changed = completion.model_copy(update={"metadata": await ledger.redaction.tree(metadata)})
    text = changed.model_dump_json(exclude_none=True)
    written = await ledger.reply(ledger.redis.set(ledger.keys.completion(completion_id), text, xx=True, keepttl=True))
    if not written:
        raise CompletionUnknown(f"completion {completion_id!r} was deleted in the meantime")
    return changed


async def sweep(ledger: Ledger, limit: int = 1000) -> int:
    """Take expired completions and comparisons out of their indexes; returns how many. Called by the schedule.

    Old ones with a vote stay; they are passed over, `limit` at a time.
    """
    swept = await _sweep(ledger, ledger.keys.completions, ledger.keys.completion, limit)
    return swept + await _sweep(ledger, ledger.keys.comparisons, ledger.keys.comparison, limit)


async def _sweep(ledger: Ledger, index: str, key_of: Callable[[str], str], limit: int) -> int:
    horizon = ledger.clock() - ledger.settings.completion_ttl_days * DAY_S
    passed, swept = 0, 0
    while True:
        old = await ledger.reply(ledger.redis.zrange(index, "-inf", horizon, byscore=True, offset=passed, num=limit))
        if not old:
            return swept
        texts = await ledger.reply(ledger.redis.mget([key_of(i) for i in old]))
        expired = [i for i, text in zip(old, texts, strict=True) if text is None]
        if expired:
            owners = await ledger.reply(ledger.redis.hmget(ledger.keys.completion_users, expired))
            keys = [index, ledger.keys.completion_users]
            for member, owner in zip(expired, owners, strict=True):
                keys += [key_of(member), owner or index]
            await ledger.run(SWEEP, keys, expired)
        swept += len(expired)
        passed += len(old) - len(expired)
