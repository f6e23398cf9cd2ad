"""A back-up: one moment of the ledger and the files that it names, in a folder or at any fsspec address.

The files are immutable, so they may be copied after that moment; one that was tidied away meanwhile is a reason to take
a later moment. The manifest is written last: what has none is unfinished, and making it again begins anew.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError, field_validator

from feedback.connection import Ledger
from feedback.errors import FeedbackError
from feedback.snapshot import BackupFailed, Named, Snapshot, Watch, watching

A = TypeVar("A")
R = TypeVar("R")

MANIFEST, LEDGER, UNFINISHED = "manifest.json", "ledger.bin", "unfinished"

AREAS = ("adapters", "archive", "files", "rewards")

PIECE = 2**20
"""Bytes copied and digested at a time."""

MOMENTS = 5
"""How often a later moment is taken because a file of the one before was tidied away."""


class KeptFile(BaseModel):
    path: str = Field(description="Where it is, with slashes.")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a back-up holds, so that a restore can tell whether all of it is there."""

    format: Literal[1] = 1
    id: str
    heed: str = Field(description="Version that made it.")
    server: str = Field(description="Version of the ledger's server; an older one may not read its records.")
    made: float = Field(description="Unix seconds of the ledger's moment.")
    counts: dict[str, dict[str, int]] = Field(description="By served model, how many there are of what.")
    frames: int = Field(description="Records in the ledger's file; one that changed meanwhile is there again.")
    waited_s: float = Field(description="How long writers waited at most.")
    files: list[KeptFile]
    missing: list[str] = Field(default_factory=list, description="Files that the ledger names and nobody found.")

    @field_validator("files")
    @classmethod
    def _stay_below(cls, files: list[KeptFile]) -> list[KeptFile]:
        for file in files:
            area, *parts = file.path.split("/")
            if file.path != LEDGER and (area not in AREAS or not parts or not {"", ".", ".."}.isdisjoint(parts)):
                raise ValueError(f"{file.path[:60]!r} is neither {LEDGER} nor in {', '.join(AREAS)}")
        return files

    @property
    def total(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Shelf:
    """A folder or an fsspec address. Methods block, and raise BackupFailed for what cannot be read or written there."""

    address: str

    @contextmanager
    def open(self, path: str, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
        """On disk when it is closed. Raises FileNotFoundError too; what else the block raises stays what it is."""
        with self._reaching() as (files, root):
            if mode == "wb":
                files.makedirs(f"{root}/{path}".rsplit("/", 1)[0], exist_ok=True)
            file = files.open(f"{root}/{path}", mode)
        try:
            yield file
            with self._reaching():
                if mode == "wb" and is_local(files):
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            with self._reaching():
                file.close()

    def names(self) -> set[str]:
        """Paths of all files, relative to the address."""
        with self._reaching() as (files, root):
            files.invalidate_cache()
            found = files.find(root) if files.exists(root) else []
            return {path.removeprefix(root.rstrip("/") + "/") for path in found}

    def remove(self, path: str) -> None:
        with self._reaching() as (files, root):
            files.rm_file(f"{root}/{path}")

    def digest(self, path: str) -> KeptFile:
        whole, size = hashlib.sha256(), 0
        with self.open(path, "rb") as file:
            while piece := self.told(file.read, PIECE):
                whole.update(piece)
                size += len(piece)
        return KeptFile(path=path, bytes=size, sha256=whole.hexdigest())

    def told(self, act: Callable[[A], R], given: A) -> R:
        """Read or write a piece of an open file of this shelf."""
        with self._reaching():
            return act(given)

    @contextmanager
    def _reaching(self) -> Iterator[tuple[Any, str]]:
        try:
            import fsspec

            yield fsspec.core.url_to_fs(self.address)
        except (BackupFailed, FeedbackError, FileNotFoundError):
            raise
        except Exception as error:  # drivers of fsspec raise what they like, and no common class
            why = (
                error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            )
            raise BackupFailed(f"{self.address} cannot be read or written ({why})") from error


def is_local(files: Any) -> bool:
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def copied(source: Shelf, path: str, target: Shelf, to: str) -> KeptFile:
    """Raises FileNotFoundError where the source has none, BackupFailed."""
    whole, size = hashlib.sha256(), 0
    with source.open(path, "rb") as one, target.open(to, "wb") as other:
        while piece := source.told(one.read, PIECE):
            target.told(other.write, piece)
            whole.update(piece)
            size += len(piece)
    return KeptFile(path=to, bytes=size, sha256=whole.hexdigest())


@dataclass(frozen=True)
class Source:
    """Where a file of a running Heed lies, and where it goes."""

    shelf: Shelf
    path: str
    to: str


def sources(ledger: Ledger, named: Named) -> list[Source]:
    """All files that the ledger of a moment names, and the reward models, which no record lists."""
    var, archive = ledger.settings.var, ledger.settings.archive_address.rstrip("/")
    found = []
    for model, names in named.partitions.items():
        folder = quote(model, safe="")
        shelf = Shelf(f"{archive}/{folder}")
        found += [Source(shelf, f"{name}.parquet", f"archive/{folder}/{name}.parquet") for name in names]
    for adapter_id in named.adapters:
        found += _folder(var / "adapters" / adapter_id, f"adapters/{adapter_id}")
    rewards = var / "rewards"
    for folder_ in sorted(rewards.iterdir()) if rewards.is_dir() else []:
        if folder_.is_dir() and not folder_.name.startswith("."):
            found += _folder(folder_, f"rewards/{folder_.name}")
    return found + [
        Source(Shelf(str(var.absolute() / "files")), f"{file_id}.jsonl", f"files/{file_id}.jsonl")
        for file_id in named.files
    ]


def _folder(folder: Path, to: str) -> list[Source]:
    shelf = Shelf(str(folder.absolute()))
    if not folder.is_dir():
        return [Source(shelf, "", to)]  # is found missing
    return [
        Source(shelf, path.relative_to(folder).as_posix(), f"{to}/{path.relative_to(folder).as_posix()}")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


async def make(ledger: Ledger, address: str, watch: Watch | None = None) -> Manifest:
    """Back up all served models of this ledger's server while it is used. Raises BackupFailed, LedgerUnavailable.

    What was erased while it was made may be in it; a restore of it does not bring that back.
    """
    target = Shelf(address)
    await asyncio.to_thread(_begin, target)
    server = await ledger.reply(ledger.redis.info("server"))
    with target.open(LEDGER, "wb") as out:
        async with watching(ledger.settings, out) as snapshot:
            await snapshot.walk(watch)
            named, made, kept, missing = await _consistent(ledger, snapshot, target)
    kept.append(await asyncio.to_thread(target.digest, LEDGER))
    manifest = Manifest(
        id=secrets.token_hex(8),
        heed=version("heed"),
        server=f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        made=made,
        counts=named.counts,
        frames=snapshot.frames,
        waited_s=round(snapshot.waited_s, 3),
        files=sorted(kept, key=lambda file: file.path),
        missing=missing,
    )
    await asyncio.to_thread(_finish, target, manifest)
    return manifest


async def _consistent(
    ledger: Ledger, snapshot: Snapshot, target: Shelf
) -> tuple[Named, float, list[KeptFile], list[str]]:
    """A moment of which every file could be copied, or the same ones could not twice."""
    kept: dict[str, KeptFile] = {}
    missing: list[str] | None = None
    for _ in range(MOMENTS):
        before = missing
        named = await snapshot.cut()
        made = ledger.clock()
        wanted = await asyncio.to_thread(sources, ledger, named)
        missing = []
        for source in wanted:
            if source.to in kept:
                continue
            try:
                kept[source.to] = await asyncio.to_thread(copied, source.shelf, source.path, target, source.to)
            except (FileNotFoundError, IsADirectoryError):
                missing.append(source.to)
        if not missing or missing == before:
            return named, made, [kept[source.to] for source in wanted if source.to in kept], missing
    raise BackupFailed(f"files of the archive were tidied away at each of {MOMENTS} tries; begin again later")


def read(source: Shelf) -> Manifest:
    """Raises BackupFailed."""
    try:
        with source.open(MANIFEST, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        raise BackupFailed(
            f"there is no complete back-up at {source.address}: it has no {MANIFEST}, which is written last"
        ) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise BackupFailed(
            f"{MANIFEST} at {source.address} is not of a back-up that this version ({version('heed')}) can read: "
            f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}; restore it with the version that "
            "made it, or a newer one"
        ) from error


def verify(source: Shelf, manifest: Manifest, watch: Watch | None = None) -> None:
    """That every file is there and as it was written. Raises BackupFailed."""
    for file in manifest.files:
        try:
            found = source.digest(file.path)
        except FileNotFoundError:
            raise BackupFailed(f"the back-up at {source.address} is torn: {file.path} is missing") from None
        if found != file:
            raise BackupFailed(
                f"the back-up at {source.address} is torn: {file.path} has {found.bytes} bytes with sha256 "
                f"{found.sha256[:12]}, and was written with {file.bytes} and {file.sha256[:12]}; use another copy"
            )
        if watch:
            watch(file.bytes)


def _begin(target: Shelf) -> None:
    names = target.names()
    if names and UNFINISHED not in names:
        raise BackupFailed(
            f"{target.address} is not empty; name a new place, such as one with today's date in its name"
        )
    for name in names - {UNFINISHED}:
        target.remove(name)
    with target.open(UNFINISHED, "wb") as out:
        out.write(b"A back-up is being made here, or was broken off. It cannot be restored.\n")


def _finish(target: Shelf, manifest: Manifest) -> None:
    for name in target.names() - {MANIFEST, UNFINISHED} - {file.path for file in manifest.files}:
        target.remove(name)  # of a moment before the one that counts
    with target.open(MANIFEST, "wb") as out:
        out.write(manifest.model_dump_json(indent=2).encode() + b"\n")
    target.remove(UNFINISHED)
