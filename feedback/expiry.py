"""Expiry: Redis deletes what nobody voted on by itself; here it leaves the indexes."""

from collections.abc import Callable

from feedback import completions
from feedback.connection import Ledger

# An import may record the same completion again just now. KEYS: the index, live (again the index for comparisons),
# completions:users, then for each id its record and its user's completions (again the index where there is no user).
# ARGV: ids.
SWEEP = """
local swept = 0
for i, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[2 * i + 2]) == 0 then
    swept = swept + 1
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    if redis.call('HDEL', KEYS[3], id) == 1 then redis.call('SREM', KEYS[2 * i + 3], id) end
  end
end
return swept
"""


async def sweep(ledger: Ledger, limit: int = 1000) -> int:
    """Take expired completions and comparisons out of their indexes; returns how many. Called by the schedule.

    Old ones with a vote stay; they are passed over, `limit` at a time.
    """
    await completions.upgrade(ledger)
    keys = ledger.keys
    swept = await _sweep(ledger, [keys.completions, keys.completions_live], keys.completion, limit)
    return swept + await _sweep(ledger, [keys.comparisons, keys.comparisons], keys.comparison, limit)


async def _sweep(ledger: Ledger, indexes: list[str], key_of: Callable[[str], str], limit: int) -> int:
    horizon = ledger.clock() - ledger.settings.completion_ttl_days * completions.DAY_S
    passed, swept = 0, 0
    index, live = indexes
    while True:
        old = await ledger.reply(ledger.redis.zrange(live, "-inf", horizon, byscore=True, offset=passed, num=limit))
        if not old:
            return swept
        pipe = ledger.redis.pipeline(transaction=False)
        for member in old:
            pipe.exists(key_of(member))
        there = await ledger.reply(pipe.execute())
        expired = [member for member, is_there in zip(old, there, strict=True) if not is_there]
        if expired:
            owners = await ledger.reply(ledger.redis.hmget(ledger.keys.completion_users, expired))
            keys = [index, live, ledger.keys.completion_users]
            for member, owner in zip(expired, owners, strict=True):
                keys += [key_of(member), owner or index]
            await ledger.run(SWEEP, keys, expired)
        swept += len(expired)
        passed += len(old) - len(expired)
