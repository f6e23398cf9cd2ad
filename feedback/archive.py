"""The archive: old completions with a vote move from Redis into partitions, each exactly once.

What counts is what the ledger names. Whoever moves completions holds a lease whose value is the name of the partition
they write, new for each attempt; the name is noted as dirty before the file exists and until every row of it is named
by a stub. One script turns records that are as they were read into stubs, if the lease still stands. So whatever is
killed at whatever moment leaves either nothing named and a dirty file to remove, or all of it named; whoever lost the
lease can write a file and nothing more. Rows of completions that were deleted or changed make their partition dirty:
tidying writes the rest of it anew and removes it.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from feedback import completions, partitions
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, LedgerUnavailable
from feedback.partitions import Partitions, Place

BYTES = 4 * 2**20
"""Text that moves at once; Redis digests all of it in the moving script, in about 10 ms."""

READ_AT_ONCE = 50
"""Records asked for at once: with token ids and logprobs one may have 100 kB."""

LOOK_EVERY_S = 0.05
"""How often a lease that somebody holds is asked for."""

# Writes here are few and make room, so they are let through where memory is at its limit (allow-oom).
# KEYS: lease, dirty. ARGV: name, lease in milliseconds.
RESERVE = """#!lua flags=allow-oom
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""

# KEYS: lease. ARGV: name, lease in milliseconds, 0 to give it back.
HOLD = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# A record that changed since it was read, lost its last vote or is gone stays as it is, and its row is one to tidy.
# KEYS: lease, partitions, dirty, live, then records in the order of their rows. ARGV: name, then for each record its id
# and the SHA-1 of the text that was written.
MOVE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('SADD', KEYS[2], ARGV[1])
local names = {'object', 'adapter', 'prompt_hash', 'indexes', 'client', 'user', 'comparison', 'body'}
local moved = 0
for i = 1, #KEYS - 4 do
  local key = KEYS[4 + i]
  local values = redis.pcall('HMGET', key, unpack(names))
  local body = values[#names]
  if body and redis.call('PTTL', key) == -1 and redis.sha1hex(body) == ARGV[2 * i + 1] then
    local stub = {'archived', ARGV[1] .. ' ' .. (i - 1)}
    for n = 1, #names - 1 do
      if values[n] then
        stub[#stub + 1] = names[n]
        stub[#stub + 1] = values[n]
      end
    end
    redis.call('DEL', key) -- a hash that once had a long field never takes its small form again
    redis.call('HSET', key, unpack(stub))
    redis.call('ZREM', KEYS[4], ARGV[2 * i])
    moved = moved + 1
  end
end
if moved == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
if moved == #KEYS - 4 then redis.call('SREM', KEYS[3], ARGV[1]) end
return moved
"""

# The rows of a partition that stubs name are now in another. KEYS: lease, partitions, dirty, then stubs. ARGV: name,
# the old one's name, then for each stub its row in the old one; in the new one they are in this order.
REFER = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local moved = 0
for i = 1, #KEYS - 3 do
  if redis.call('HGET', KEYS[3 + i], 'archived') == ARGV[2] .. ' ' .. ARGV[2 + i] then
    redis.call('HSET', KEYS[3 + i], 'archived', ARGV[1] .. ' ' .. (i - 1))
    moved = moved + 1
  end
end
if moved > 0 then redis.call('SADD', KEYS[2], ARGV[1]) end
if moved > 0 and moved == #KEYS - 3 then redis.call('SREM', KEYS[3], ARGV[1]) end
redis.call('SREM', KEYS[2], ARGV[2])
return moved
"""


@dataclass
class Moved:
    """What a run did: completions moved into so many partitions, rows and files taken out, completions expired."""

    completions: int = 0
    partitions: int = 0
    tidied: int = 0
    orphans: int = 0
    expired: int = 0


@dataclass
class Attempt:
    """Whoever has the lease, and the one partition they may write."""

    name: str
    is_written: bool = False

    async def write(self, archive: Partitions, rows: Sequence[tuple[str, str]]) -> None:
        self.is_written = True
        await asyncio.to_thread(archive.write, self.name, rows)

    async def expect_held(self, archive: Partitions, moved: int) -> None:
        """`moved` is what the script said. Raises ArchiveUnavailable."""
        if moved < 0:
            await asyncio.to_thread(archive.delete, self.name)
            raise ArchiveUnavailable("the archive took so long that another attempt began; nothing moved; try again")


Watch = Callable[[int], None]
"""Told how many completions a step moved."""


async def run(ledger: Ledger, watch: Watch | None = None) -> Moved:
    """Move everything that is old enough, and remove what nobody names. Safe to run twice at once.

    Raises ArchiveUnavailable; what was moved before is moved.
    """
    await completions.upgrade(ledger)
    done = Moved(expired=await _expire(ledger), tidied=await tidy(ledger), orphans=await _remove_orphans(ledger))
    passed = 0
    while True:
        async with _lease(ledger) as attempt:
            batch, looked = await _oldest(ledger, passed)
            moved = await _move(ledger, attempt, batch) if batch else 0
        passed += looked - moved
        done.completions += moved
        done.partitions += bool(moved)
        if watch:
            watch(moved)
        if not looked:
            break
    done.tidied += await tidy(ledger)
    return done


async def due(ledger: Ledger) -> int:
    """How many are old enough; those without a vote, which do not move, are among them."""
    await completions.upgrade(ledger)
    return int(await ledger.reply(ledger.redis.zcount(ledger.keys.completions_live, "-inf", _horizon(ledger))))


async def tidy(ledger: Ledger) -> int:
    """Take every row out of the archive whose completion was deleted or changed; returns how many.

    When it returns, nothing is left that was deleted before it was called. Raises ArchiveUnavailable.
    """
    removed = 0
    for dirty in sorted(await ledger.reply(ledger.redis.smembers(ledger.keys.archive_dirty))):
        async with _lease(ledger) as attempt:
            removed += await _tidy(ledger, dirty, attempt)
    return removed


async def _oldest(ledger: Ledger, passed: int) -> tuple[list[tuple[str, str]], int]:
    """Ids and records of the next batch to move, and how many were looked at for it."""
    keys, most = ledger.keys, ledger.settings.archive_batch
    ids = await ledger.reply(
        ledger.redis.zrange(keys.completions_live, "-inf", _horizon(ledger), byscore=True, offset=passed, num=most)
    )
    batch: list[tuple[str, str]] = []
    looked = size = 0
    while looked < len(ids) and size < BYTES:
        some = ids[looked : looked + READ_AT_ONCE]
        pipe = ledger.redis.pipeline(transaction=False)
        for completion_id in some:
            pipe.hget(keys.completion(completion_id), "body")
            pipe.pttl(keys.completion(completion_id))
        found = await ledger.reply(pipe.execute())
        for completion_id, text, lifetime_ms in zip(some, found[::2], found[1::2], strict=True):
            if text is not None and lifetime_ms == -1:
                batch.append((completion_id, text))
                size += len(text)
        looked += len(some)
    return batch, looked


async def _move(ledger: Ledger, attempt: Attempt, batch: Sequence[tuple[str, str]]) -> int:
    archive, keys = partitions.at(ledger), ledger.keys
    await attempt.write(archive, batch)
    args = [attempt.name]
    for completion_id, text in batch:
        args += [completion_id, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()]
    touched = [keys.archive_lease, keys.archive_partitions, keys.archive_dirty, keys.completions_live]
    moved = int(await ledger.run(MOVE, [*touched, *(keys.completion(i) for i, _ in batch)], args))
    await attempt.expect_held(archive, moved)
    return moved


async def _tidy(ledger: Ledger, old: str, attempt: Attempt) -> int:
    archive, keys = partitions.at(ledger), ledger.keys
    if not await ledger.reply(ledger.redis.sismember(keys.archive_dirty, old)):
        return 0
    removed = 0
    if await ledger.reply(ledger.redis.sismember(keys.archive_partitions, old)):
        ids = await asyncio.to_thread(archive.ids, old)
        pipe = ledger.redis.pipeline(transaction=False)
        for completion_id in ids:
            pipe.hget(keys.completion(completion_id), "archived")
        places = await ledger.reply(pipe.execute())
        rows = [row for row, place in enumerate(places) if place == str(Place(old, row))]
        removed = len(ids) - len(rows)
        if not removed:
            await ledger.reply(ledger.redis.srem(keys.archive_dirty, old))
            return 0
        if rows:
            texts = await asyncio.to_thread(archive.read, old, rows)
            kept = [(ids[row], text) for row, text in zip(rows, texts, strict=True)]
            await attempt.write(archive, kept)
        touched = [keys.archive_lease, keys.archive_partitions, keys.archive_dirty]
        stubs = [keys.completion(ids[row]) for row in rows]
        moved = int(await ledger.run(REFER, [*touched, *stubs], [attempt.name, old, *rows]))
        await attempt.expect_held(archive, moved)
    await asyncio.to_thread(archive.delete, old)
    await ledger.reply(ledger.redis.srem(keys.archive_dirty, old))
    return removed


async def _expire(ledger: Ledger) -> int:
    """Archived completions whose last vote was withdrawn a lifetime ago go, as they would have in Redis."""
    unvoted, now = ledger.keys.archive_unvoted, ledger.clock()
    expired = 0
    for completion_id in await ledger.reply(ledger.redis.zrange(unvoted, "-inf", now, byscore=True)):
        if await completions.forget_unvoted(ledger, completion_id):
            expired += 1
    return expired


async def _remove_orphans(ledger: Ledger) -> int:
    """Files of attempts that lost their lease before they were written."""
    archive = partitions.at(ledger)
    # Listed first: a file that is there now has been noted as dirty or as a partition since before.
    found = set(await asyncio.to_thread(archive.names))
    orphans = found - await named(ledger)
    for name in sorted(orphans):
        await asyncio.to_thread(archive.delete, name)
    return len(orphans)


async def named(ledger: Ledger) -> set[str]:
    """Every partition there may be."""
    keys = ledger.keys
    found = await ledger.reply(ledger.redis.sunion([keys.archive_partitions, keys.archive_dirty]))
    return set(found)


@asynccontextmanager
async def _lease(ledger: Ledger) -> AsyncIterator[Attempt]:
    """The right to write one partition; waits for whoever has it now. Raises ArchiveUnavailable."""
    lease, dirty = ledger.keys.archive_lease, ledger.keys.archive_dirty
    lease_ms = int(ledger.settings.job_lease_s * 1000)
    attempt = Attempt(f"{datetime.fromtimestamp(ledger.clock(), UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}")
    loop = asyncio.get_running_loop()
    end = loop.time() + 4 * ledger.settings.job_lease_s
    while not await ledger.run(RESERVE, [lease, dirty], [attempt.name, lease_ms]):
        if loop.time() > end:
            raise ArchiveUnavailable("somebody else has been at work on the archive for long; nothing moved; try again")
        await asyncio.sleep(LOOK_EVERY_S)
    beat = asyncio.create_task(_hold(ledger, attempt.name, lease_ms))
    try:
        yield attempt
    finally:
        beat.cancel()
        with suppress(asyncio.CancelledError):
            await beat
        if not attempt.is_written:
            await ledger.reply(ledger.redis.srem(dirty, attempt.name))
        await ledger.run(HOLD, [lease], [attempt.name, 0])


async def _hold(ledger: Ledger, name: str, lease_ms: int) -> None:
    is_held = True
    while is_held:
        await asyncio.sleep(lease_ms / 3000)
        with suppress(LedgerUnavailable):  # who lost the lease learns it when they commit
            is_held = bool(await ledger.run(HOLD, [ledger.keys.archive_lease], [name, lease_ms]))


def _horizon(ledger: Ledger) -> float:
    return ledger.clock() - ledger.settings.archive_after_days * completions.DAY_S
