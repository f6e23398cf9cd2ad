"""One moment of the ledger, copied over the wire while others write to it.

Walking through the keys takes minutes, and no two of them are then of one moment. So the server is asked first to tell
which keys change (CLIENT TRACKING, which hosted Redis has too, unlike SYNC and BGSAVE), and what changed since it was
copied is copied anew until little is left. For that rest writers wait, for a part of a second: if nothing was told to
have changed between the beginning and the end of its copying, then all that was copied is the ledger of that moment.
That proof does not rest on the waiting, which only makes it come true under load.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from feedback.address import open_pool
from feedback.failures import FAILURES, refused_or_lost
from feedback.keys import OURS, Keys, is_of_a_process, model_of
from feedback.settings import LedgerSettings

AT_ONCE = 100
"""Keys read at once: a completion with token ids and logprobs may have 100 kB."""

FEW = 500
"""Changed keys with which writers are asked to wait: reading them takes some 10 ms."""

PASSES = 10
"""How often what changed is copied again before that, where there are never few."""

CUTS = 20
"""How often a moment is tried for."""

_FRAME = struct.Struct(">IqI")
_NEVER, _GONE = -1, -2

Watch = Callable[[int], None]
"""Told how many more were copied."""


class BackupFailed(Exception):
    """A back-up that cannot be made, read or restored; the message says what would work."""


@dataclass(frozen=True)
class Entry:
    """A key's value as DUMP gives it, until when it lasts in unix milliseconds; no value: it is gone since."""

    key: bytes
    expires_ms: int | None
    value: bytes | None


@dataclass
class Named:
    """What the ledger of that moment counts, and the files that it names, by served model."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    partitions: dict[str, list[str]] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class Snapshot:
    """Frames go to `out` in the order of copying; the last one of a key counts."""

    def __init__(self, redis: Any, messages: Any, settings: LedgerSettings, out: BinaryIO) -> None:
        self._redis = redis
        self._messages = messages
        self._settings = settings
        self._out = out
        self._changed: set[bytes] = set()
        self._models: set[str] = set()
        self._is_flushed = False
        self._pong = asyncio.Event()
        self.frames = 0
        self.bytes = 0
        self.waited_s = 0.0

    async def size(self) -> int:
        return int(await self._redis.dbsize())

    async def walk(self, watch: Watch | None = None) -> None:
        """Copy every key once."""
        cursor = 0
        while True:
            cursor, keys = await self._redis.scan(cursor, match=OURS, count=AT_ONCE)
            wanted = [key for key in keys if not is_of_a_process(key.decode())]
            self._models |= {model for key in wanted if (model := model_of(key.decode()))}
            await self._keep(await self._read(wanted))
            if watch:
                watch(len(keys))
            if not cursor:
                return

    async def cut(self) -> Named:
        """Bring the copy to one moment, later than all others before; what the ledger of that moment names.

        Raises BackupFailed where the ledger changes faster than it can be read.
        """
        for _ in range(CUTS):
            await self._catch_up()
            began = asyncio.get_running_loop().time()
            await self._pause()
            try:
                await self._hear_all()
                rest = await self._read(self._take())
                named = await self._named()
                await self._hear_all()
                is_one_moment = not self._changed
            finally:
                await self._resume()
            self.waited_s = asyncio.get_running_loop().time() - began
            await self._keep(rest)
            if is_one_moment:
                return named
        raise BackupFailed(
            f"the ledger changed at each of {CUTS} tries while its last changes were copied; let writers wait for "
            f"longer (HEED_BACKUP_PAUSE_MS, now {self._settings.backup_pause_ms}), or begin again at a quieter time"
        )

    async def listen(self) -> None:
        """Note what the server tells of changes, until it ends the connection."""
        while True:
            told = await self._messages.read_response(timeout=None)
            if told[0] == b"pong":
                self._pong.set()
            elif told[0] == b"message" and told[2] is None:
                self._is_flushed = True
            elif told[0] == b"message":
                names = [(key, key.decode()) for key in told[2]]
                self._changed |= {key for key, name in names if not is_of_a_process(name)}
                self._models |= {model for _, name in names if (model := model_of(name))}

    async def _catch_up(self) -> None:
        for _ in range(PASSES):
            if len(self._changed) <= FEW:
                return
            keys = self._take()
            for start in range(0, len(keys), AT_ONCE):
                await self._keep(await self._read(keys[start : start + AT_ONCE]))

    def _take(self) -> list[bytes]:
        """Before they are read: who changes while it is read has to be read again."""
        keys, self._changed = sorted(self._changed), set()
        return keys

    async def _hear_all(self) -> None:
        """What changed before this call has been heard of when it returns.

        Changes are told at the end of the server's round in which they were made, after the replies of that round, so
        the second ping's reply comes behind them.
        """
        for _ in range(2):
            self._pong.clear()
            await self._messages.send_command("PING")
            try:
                await asyncio.wait_for(self._pong.wait(), self._settings.ledger_timeout_s)
            except TimeoutError:
                raise BackupFailed("the ledger no longer tells what changes; begin the back-up again") from None
        if self._is_flushed:
            raise BackupFailed("the ledger was emptied during the back-up; there is nothing left to keep")

    async def _pause(self) -> None:
        with suppress(ResponseError):  # not everybody may; then a quiet moment has to come by itself
            await self._redis.execute_command("CLIENT", "PAUSE", str(self._settings.backup_pause_ms), "WRITE")

    async def _resume(self) -> None:
        with suppress(ResponseError):
            await self._redis.execute_command("CLIENT", "UNPAUSE")

    async def _read(self, keys: Sequence[bytes]) -> list[Entry]:
        found: list[Entry] = []
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            pipe = self._redis.pipeline(transaction=False)
            for key in some:
                pipe.dump(key)
                pipe.pexpiretime(key)
            replies = await pipe.execute()
            for key, value, expires_ms in zip(some, replies[::2], replies[1::2], strict=True):
                found.append(Entry(key, None if expires_ms < 0 else expires_ms, value))
        return found

    async def _keep(self, entries: Sequence[Entry]) -> None:
        text = b"".join(_framed(entry) for entry in entries)
        try:
            await asyncio.to_thread(self._out.write, text)
        except OSError as error:
            raise BackupFailed(f"the ledger's copy cannot be written: {error.strerror or error}") from error
        self.frames += len(entries)
        self.bytes += len(text)

    async def _named(self) -> Named:
        named = Named()
        for model in sorted(self._models):
            keys = Keys(model)
            pipe = self._redis.pipeline(transaction=False)
            for listed in (lists := counted(keys)).values():
                pipe.zcard(listed)
            pipe.smembers(keys.archive_partitions)
            pipe.zrange(keys.adapters, 0, -1)
            *counts, partitions, adapters = await pipe.execute()
            named.counts[model] = dict(zip(lists, counts, strict=True))
            named.partitions[model] = sorted(name.decode() for name in partitions)
            named.adapters += [adapter_id.decode() for adapter_id in adapters]
        named.files = [file_id.decode() for file_id in await self._redis.zrange(Keys("").files, 0, -1)]
        return named


def counted(keys: Keys) -> dict[str, str]:
    """Lists of a served model whose lengths say whether all of it is there."""
    return {
        "completions": keys.completions,
        "votes": keys.votes,
        "comparisons": keys.comparisons,
        "pairs": keys.pairs,
        "jobs": keys.jobs,
        "adapters": keys.adapters,
    }


def connect(settings: LedgerSettings, timeout_s: float | None) -> Any:
    """Values as bytes, which DUMP's are, and RESP2, in which a second connection is told of changes.

    Any: redis-py types what it replies as text or bytes, whichever was asked for.
    """
    pool = open_pool(
        settings.ledger_url, settings.ledger_timeout_s, settings.redis_ca, protocol=2, socket_timeout=timeout_s
    )
    return Redis(connection_pool=pool)


@asynccontextmanager
async def watching(settings: LedgerSettings, out: BinaryIO) -> AsyncIterator[Snapshot]:
    """Changes are told from here on. Raises BackupFailed, LedgerUnavailable."""
    asking, told = connect(settings, settings.ledger_timeout_s), connect(settings, None)
    one = asking.client()
    try:
        messages = await told.connection_pool.get_connection()
        await messages.send_command("CLIENT", "ID")
        listener = await messages.read_response()
        await messages.send_command("SUBSCRIBE", "__redis__:invalidate")
        await messages.read_response()
        try:
            words = ("TRACKING", "ON", "REDIRECT", str(listener), "BCAST", "PREFIX", OURS.removesuffix("*"))
            await one.execute_command("CLIENT", *words)
        except ResponseError as error:
            raise BackupFailed(
                f"this server does not tell what changes ({error}); a back-up needs CLIENT TRACKING, of Redis 7 or "
                "Valkey, and a user who may call it"
            ) from error
        snapshot = Snapshot(one, messages, settings, out)
        listening = asyncio.create_task(snapshot.listen())
        try:
            yield snapshot
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, RedisError, OSError):
                await listening
    except FAILURES as error:
        raise refused_or_lost(error) from error
    finally:
        await one.aclose()
        for redis in (asking, told):
            await redis.aclose()
            await redis.connection_pool.aclose()


def entries(source: BinaryIO) -> Iterator[Entry]:
    """Raises BackupFailed where the file ends before it should."""
    while head := source.read(_FRAME.size):
        if len(head) < _FRAME.size:
            raise BackupFailed("the ledger's file ends in the middle of a record")
        key_bytes, expires_ms, value_bytes = _FRAME.unpack(head)
        text = source.read(key_bytes + value_bytes)
        if len(text) < key_bytes + value_bytes:
            raise BackupFailed("the ledger's file ends in the middle of a record")
        value = None if expires_ms == _GONE else text[key_bytes:]
        yield Entry(text[:key_bytes], expires_ms if expires_ms >= 0 else None, value)


def batches(found: Iterable[Entry]) -> Iterator[list[Entry]]:
    some: list[Entry] = []
    for entry in found:
        some.append(entry)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _framed(entry: Entry) -> bytes:
    if entry.value is None:
        return _FRAME.pack(len(entry.key), _GONE, 0) + entry.key
    lasts = _NEVER if entry.expires_ms is None else entry.expires_ms
    return _FRAME.pack(len(entry.key), lasts, len(entry.value)) + entry.key + entry.value
