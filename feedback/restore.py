"""Restore: a back-up's ledger and files, put where nothing is.

All of the back-up is verified before anything is written. A key in the ledger says that a restore is under way, so one
that was interrupted is seen by `heed check`, and can be repeated with the same back-up until it is complete.
Nothing else may be at work on the ledger meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.exceptions import RedisError, ResponseError

from feedback.backup import LEDGER, KeptFile, Manifest, Shelf, copied, read, verify
from feedback.check import violations
from feedback.connection import Ledger
from feedback.failures import refused_or_lost
from feedback.keys import OURS, Keys
from feedback.snapshot import AT_ONCE, BackupFailed, Entry, Watch, batches, connect, counted, entries

READ_ONLY = ("adapters", "rewards")
"""As the trainer publishes them."""

DELETING = "none yet, what was there is being deleted"
"""Stands for the back-up's id: broken off here, only another --replace may go on, as old keys are left."""


async def restore(ledger: Ledger, address: str, replace: bool = False, watch: Watch | None = None) -> Manifest:
    """Into an empty ledger, archive and var; with `replace`, instead of what is there.

    `watch` is told of bytes, of twice the manifest's total. Raises BackupFailed, LedgerUnavailable.
    """
    source = Shelf(address)
    manifest = await asyncio.to_thread(read, source)
    await asyncio.to_thread(verify, source, manifest, watch)
    redis = connect(ledger.settings, ledger.settings.ledger_timeout_s)
    try:
        await _make_room(redis, ledger, manifest, replace)
        for file in manifest.files:
            if file.path != LEDGER:
                await asyncio.to_thread(_put, source, file, ledger)
                if watch:
                    watch(file.bytes)
        await asyncio.to_thread(_close, ledger.settings.var.absolute(), manifest)
        with source.open(LEDGER, "rb") as kept:
            for some in batches(entries(kept)):
                await _write(redis, manifest, some)
                if watch:
                    watch(sum(len(entry.key) + len(entry.value or b"") for entry in some))
        await _compare(redis, manifest)
        await redis.delete(Keys("").restore)
    except RedisError as error:
        raise refused_or_lost(error) from error
    except OSError as error:
        raise BackupFailed(f"{error.filename} cannot be written ({error.strerror})") from error
    finally:
        await redis.aclose()
        await redis.connection_pool.aclose()
    return manifest


async def damage(ledger: Ledger, manifest: Manifest) -> list[str]:
    """What `heed check` says of every served model of the back-up."""
    return [sentence for model in manifest.counts async for sentence in violations(ledger.of(model))]


async def _make_room(redis: Any, ledger: Ledger, manifest: Manifest, replace: bool) -> None:
    """Everything is looked at before anything is removed."""
    mark = Keys("").restore
    under_way = await redis.get(mark)
    is_ours = under_way is not None and under_way.decode() == manifest.id
    others = await asyncio.to_thread(_other_partitions, ledger, manifest)
    if not replace:
        if not is_ours and (first := await _first(redis)):
            what = (
                "holds part of what another restore left" if under_way else f"is not empty (it has {first.decode()!r})"
            )
            raise BackupFailed(
                f"the ledger {what}; restore into an empty one, or with --replace, which deletes what is there"
            )
        if others:
            raise BackupFailed(
                f"the archive is not empty: it has {others[0]}; restore with an empty HEED_ARCHIVE, or with --replace, "
                "which deletes what is there"
            )
    if not (replace or is_ours) and (taken := await asyncio.to_thread(_taken, ledger, manifest)):
        raise BackupFailed(
            f"{taken} is there already and is not what the back-up has; move it away, or restore with --replace, which "
            "writes over it"
        )
    if replace:
        await redis.set(mark, DELETING)
        async for keys in _walk(redis):
            if rest := [key for key in keys if key.decode() != mark]:
                await redis.unlink(*rest)
    await redis.set(mark, manifest.id)
    shelf = Shelf(ledger.settings.archive_address.rstrip("/"))
    for path in others:
        await asyncio.to_thread(shelf.remove, path)


def _other_partitions(ledger: Ledger, manifest: Manifest) -> list[str]:
    """In the archive of the back-up's served models, what is not from the back-up."""
    kept = {file.path.removeprefix("archive/") for file in manifest.files if file.path.startswith("archive/")}
    archive = ledger.settings.archive_address.rstrip("/")
    found = set()
    for folder in (quote(model, safe="") for model in manifest.counts):
        found |= {f"{folder}/{name}" for name in Shelf(f"{archive}/{folder}").names() if name.endswith(".parquet")}
    return sorted(found - kept)


async def _first(redis: Any) -> bytes | None:
    async for keys in _walk(redis):
        return keys[0]
    return None


async def _walk(redis: Any) -> AsyncIterator[list[bytes]]:
    cursor = 0
    while True:
        cursor, keys = await redis.scan(cursor, match=OURS, count=AT_ONCE)
        if keys:
            yield keys
        if not cursor:
            return


def _target(file: KeptFile, ledger: Ledger) -> tuple[Shelf, str]:
    area, _, path = file.path.partition("/")
    folder = ledger.settings.archive_address.rstrip("/") if area == "archive" else ledger.settings.var.absolute() / area
    return Shelf(str(folder)), path


def _is_there(file: KeptFile, ledger: Ledger) -> bool | None:
    """None: something else is."""
    target, path = _target(file, ledger)
    try:
        found = target.digest(path)
    except FileNotFoundError:
        return False
    return True if (found.bytes, found.sha256) == (file.bytes, file.sha256) else None


def _taken(ledger: Ledger, manifest: Manifest) -> str | None:
    """Where something lies that is not what the back-up has there."""
    for file in manifest.files:
        if file.path != LEDGER and _is_there(file, ledger) is None:
            target, path = _target(file, ledger)
            return f"{target.address}/{path}"
    return None


def _put(source: Shelf, file: KeptFile, ledger: Ledger) -> None:
    if _is_there(file, ledger):
        return
    target, path = _target(file, ledger)
    if not file.path.startswith(READ_ONLY):
        copied(source, file.path, target, path)
        return
    here = Path(target.address) / path
    here.parent.mkdir(parents=True, exist_ok=True)
    here.parent.chmod(0o755)  # read-only, if it was there
    beside = here.with_name(f"{here.name}.restoring")
    copied(source, file.path, target, beside.relative_to(target.address).as_posix())
    beside.chmod(0o444)
    beside.replace(here)


def _close(var: Path, manifest: Manifest) -> None:
    """An adapter is immutable, and so is the folder it is in."""
    for folder in {(var / file.path).parent for file in manifest.files if file.path.startswith(READ_ONLY)}:
        folder.chmod(0o555)


async def _write(redis: Any, manifest: Manifest, some: Sequence[Entry]) -> None:
    pipe = redis.pipeline(transaction=False)
    for entry in some:
        if entry.value is None:
            pipe.delete(entry.key)
        else:
            pipe.restore(
                entry.key, entry.expires_ms or 0, entry.value, replace=True, absttl=entry.expires_ms is not None
            )
    for reply in await pipe.execute(raise_on_error=False):
        if isinstance(reply, ResponseError):
            if "payload" not in str(reply).lower() and "bad data" not in str(reply).lower():
                raise reply
            raise BackupFailed(
                f"this ledger's server cannot read the records of {manifest.server}; restore into one of that version "
                "or a newer one"
            ) from reply
        if isinstance(reply, Exception):
            raise reply


async def _compare(redis: Any, manifest: Manifest) -> None:
    for model, counts in manifest.counts.items():
        lists = counted(Keys(model))
        for name, expected in counts.items():
            found = await redis.zcard(lists[name])
            if found != expected:
                raise BackupFailed(
                    f"{model} has {found:,} {name} and should have {expected:,}; is somebody else at work on this "
                    "ledger? Stop it and restore again"
                )
