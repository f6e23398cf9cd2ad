"""The archive: old completions with a vote move from Redis into partitions, each exactly once.

What counts is what the ledger names. Whoever moves completions holds a lease whose value is the name of the partition
they write, new for each attempt; the name is noted as dirty before the file exists and until every row of it is named
by a stub. A script turns records that are as they were read into stubs, if the lease still stands. So whatever is
killed at whatever moment leaves each completion in one place, and perhaps a dirty file; whoever lost the lease can
write a file and nothing more. Rows of completions that were deleted or changed make their partition dirty, too: tidying
writes the rest of it anew and removes it.
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
from feedback.partitions import Place

BYTES = 4 * 2**20
"""Text that moves at once; Redis digests it to see whether it changed."""

READ_AT_ONCE = 50
"""Records asked for at once: with token ids and logprobs one may have 100 kB."""

AT_ONCE = 250
"""Records in one script: each takes Redis 30 µs (measured), and votes should not wait for more than 10 ms."""

LOOK_EVERY_S = 0.05
"""How often a lease that somebody holds is asked for."""

WANTED_S = 2
"""How long moving makes way for somebody who asked for the lease to remove something, and asks again meanwhile."""

# Writes here are few and make room, so they are let through where memory is at its limit (allow-oom).
# A person waits for what is erased and nobody for what moves, so who moves lets others go first.
# KEYS: lease, dirty, wanted. ARGV: name, lease in milliseconds, how long it is wanted in seconds, 0 by who moves.
RESERVE = """#!lua flags=allow-oom
if ARGV[3] ~= '0' then
  redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[3])
elseif redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
redis.call('HSET', KEYS[2], ARGV[1], 1)
return 1
"""

# KEYS: lease. ARGV: name, lease in milliseconds, 0 to give it back.
HOLD = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# Every reason for being dirty counts, so one that came after the rows were looked at is not forgotten.
# KEYS: dirty. ARGV: name, the count when the rows were looked at.
CLEAN = """#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""

# A record that changed since it was read, lost its last vote or is gone stays as it is, and its row is one to tidy.
# KEYS: lease, partitions, live, then records in the order of their rows. ARGV: name, the first row, then for each
# record its id and the SHA-1 of the text that was written.
MOVE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local names = {'object', 'adapter', 'prompt_hash', 'indexes', 'client', 'user', 'comparison', 'body'}
local moved = 0
for i = 1, #KEYS - 3 do
  local key = KEYS[3 + i]
  local values = redis.pcall('HMGET', key, unpack(names))
  local body = values[#names]
  if body and redis.call('PTTL', key) == -1 and redis.sha1hex(body) == ARGV[2 * i + 2] then
    local stub = {'archived', ARGV[1] .. ' ' .. (ARGV[2] + i - 1)}
    for n = 1, #names - 1 do
      if values[n] then
        stub[#stub + 1] = names[n]
        stub[#stub + 1] = values[n]
      end
    end
    redis.call('DEL', key) -- a hash that once had a long field never takes its small form again
    redis.call('HSET', key, unpack(stub))
    redis.call('ZREM', KEYS[3], ARGV[2 * i + 1])
    moved = moved + 1
  end
end
if moved > 0 then redis.call('SADD', KEYS[2], ARGV[1]) end
return moved
"""

# The rows of a partition that stubs name are now in another. KEYS: lease, partitions, then stubs. ARGV: name, its first
# row here, the old one's name, then for each stub its row in the old one.
REFER = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local moved = 0
for i = 1, #KEYS - 2 do
  if redis.call('HGET', KEYS[2 + i], 'archived') == ARGV[3] .. ' ' .. ARGV[3 + i] then
    redis.call('HSET', KEYS[2 + i], 'archived', ARGV[1] .. ' ' .. (ARGV[2] + i - 1))
    moved = moved + 1
  end
end
if moved > 0 then redis.call('SADD', KEYS[2], ARGV[1]) end
return moved
"""

# KEYS: lease, partitions. ARGV: the name of whoever has the lease, the one that is no more.
DROP = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('SREM', KEYS[2], ARGV[2])
return 1
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

    ledger: Ledger
    name: str
    is_written: bool = False
    is_named: bool = False

    async def write(self, rows: Sequence[tuple[str, str]]) -> None:
        self.is_written = True
        await asyncio.to_thread(partitions.at(self.ledger).write, self.name, rows)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> int:
        """What a script that asks for the lease says. Raises ArchiveUnavailable."""
        told = int(await self.ledger.run(script, [self.ledger.keys.archive_lease, *keys], [self.name, *args]))
        self.is_named = self.is_named or told > 0
        if told < 0:
            if not self.is_named:  # else whoever has the lease now finds it dirty
                await asyncio.to_thread(partitions.at(self.ledger).delete, self.name)
            raise ArchiveUnavailable("the archive took so long that another attempt began; try again")
        return told

    async def is_complete(self) -> None:
        """Every row is named by a stub; one whose completion was deleted since is noted, and stays so."""
        await self.ledger.run(CLEAN, [self.ledger.keys.archive_dirty], [self.name, 1])


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
        async with _lease(ledger, wanted_s=0) as attempt:
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
    for dirty in sorted(await ledger.reply(ledger.redis.hkeys(ledger.keys.archive_dirty))):
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
    await attempt.write(batch)
    keys, moved = ledger.keys, 0
    for start in range(0, len(batch), AT_ONCE):
        some = batch[start : start + AT_ONCE]
        touched = [keys.archive_partitions, keys.completions_live, *(keys.completion(i) for i, _ in some)]
        seen = [part for completion_id, text in some for part in (completion_id, _sha1(text))]
        moved += await attempt.run(MOVE, touched, [start, *seen])
    if moved == len(batch):
        await attempt.is_complete()
    return moved


async def _tidy(ledger: Ledger, old: str, attempt: Attempt) -> int:
    shelf, keys = partitions.at(ledger), ledger.keys
    count = await ledger.reply(ledger.redis.hget(keys.archive_dirty, old))
    if count is None:  # it was being written, and is complete
        return 0
    removed = 0
    if await ledger.reply(ledger.redis.sismember(keys.archive_partitions, old)):
        ids = await asyncio.to_thread(shelf.ids, old)
        places = await completions.texts_or_places(ledger, ids)
        rows = [row for row, place in enumerate(places) if place == str(Place(old, row))]
        removed = len(ids) - len(rows)
        if not removed:
            await ledger.run(CLEAN, [keys.archive_dirty], [old, count])
            return 0
        if rows:
            texts = await asyncio.to_thread(shelf.read, old, rows)
            await attempt.write([(ids[row], text) for row, text in zip(rows, texts, strict=True)])
        moved = 0
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            stubs = [keys.completion(ids[row]) for row in some]
            moved += await attempt.run(REFER, [keys.archive_partitions, *stubs], [start, old, *some])
        if moved == len(rows):
            await attempt.is_complete()
        await attempt.run(DROP, [keys.archive_partitions], [old])
    await asyncio.to_thread(shelf.delete, old)
    await ledger.reply(ledger.redis.hdel(keys.archive_dirty, old))
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
    """Files of attempts that lost their lease before they were written.

    Raises ArchiveUnavailable where nothing is of what should be there: more must not go into a folder that is only
    the place of one that is not mounted.
    """
    shelf, key = partitions.at(ledger), ledger.keys.archive_partitions
    before = await ledger.reply(ledger.redis.smembers(key))
    # Listed before the names are read: a file that is there now has been noted as dirty or as a partition since.
    found = set(await asyncio.to_thread(shelf.names))
    standing = before & await ledger.reply(ledger.redis.smembers(key))
    if standing and not standing & found:
        raise ArchiveUnavailable(
            f"the archive holds none of the {len(standing)} partitions that were moved to it; is it mounted, and is "
            "HEED_ARCHIVE what it was? Nothing more moves until they are found"
        )
    orphans = found - await named(ledger)
    for name in sorted(orphans):
        await asyncio.to_thread(shelf.delete, name)
    return len(orphans)


async def named(ledger: Ledger) -> set[str]:
    """Every partition there may be."""
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.smembers(ledger.keys.archive_partitions)
    pipe.hkeys(ledger.keys.archive_dirty)
    standing, dirty = await ledger.reply(pipe.execute())
    return set(standing) | set(dirty)


@asynccontextmanager
async def _lease(ledger: Ledger, wanted_s: int = WANTED_S) -> AsyncIterator[Attempt]:
    """The right to write one partition; waits for whoever has it now. Raises ArchiveUnavailable."""
    lease, dirty, wanted = ledger.keys.archive_lease, ledger.keys.archive_dirty, ledger.keys.archive_wanted
    lease_ms = int(ledger.settings.job_lease_s * 1000)
    attempt = Attempt(ledger, f"{datetime.fromtimestamp(ledger.clock(), UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}")
    loop = asyncio.get_running_loop()
    end = loop.time() + 4 * ledger.settings.job_lease_s
    while not await ledger.run(RESERVE, [lease, dirty, wanted], [attempt.name, lease_ms, wanted_s]):
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
            await ledger.reply(ledger.redis.hdel(dirty, attempt.name))
        await ledger.run(HOLD, [lease], [attempt.name, 0])


async def _hold(ledger: Ledger, name: str, lease_ms: int) -> None:
    is_held = True
    while is_held:
        await asyncio.sleep(lease_ms / 3000)
        with suppress(LedgerUnavailable):  # who lost the lease learns it when they commit
            is_held = bool(await ledger.run(HOLD, [ledger.keys.archive_lease], [name, lease_ms]))


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _horizon(ledger: Ledger) -> float:
    return ledger.clock() - ledger.settings.archive_after_days * completions.DAY_S
