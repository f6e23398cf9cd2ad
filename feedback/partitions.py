"""Partitions: files of archived completions, in a folder or at any fsspec address.

A partition is one Parquet file, written once under a name that is never used again and not changed after. Whether it
counts is not for the file to say: it does when the ledger names it (feedback/archive.py). Rows are kept in groups, so
that reading one completion does not read them all. Everything here blocks; call it in a thread.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable

SUFFIX = ".parquet"

GROUP = 50
"""Rows in a group: what reading one completion costs at most, 100 kB of short chats; fewer compress worse."""


@dataclass(frozen=True)
class Place:
    """Where a row is; in the ledger it is the text `PARTITION ROW`."""

    partition: str
    row: int

    def __str__(self) -> str:
        return f"{self.partition} {self.row}"

    @staticmethod
    def of(text: str) -> "Place":
        partition, _, row = text.partition(" ")
        return Place(partition, int(row))


@dataclass(frozen=True)
class Partitions:
    """One served model's partitions. Every method raises ArchiveUnavailable."""

    address: str

    def write(self, name: str, rows: Sequence[tuple[str, str]]) -> None:
        """Ids and records as JSON, in this order; on disk when it returns."""
        import pyarrow
        from pyarrow import parquet

        records = [orjson.loads(text) for _, text in rows]
        columns = {
            "id": [completion_id for completion_id, _ in rows],
            "created": [record["created"] for record in records],
            "adapter": [record["adapter"] for record in records],
            "record": [text for _, text in rows],
        }
        with self._reaching("written") as (files, folder):
            files.makedirs(folder, exist_ok=True)
            with files.open(f"{folder}/{name}{SUFFIX}", "wb") as out:
                parquet.write_table(pyarrow.table(columns), out, row_group_size=GROUP, compression="zstd")
                out.flush()
                if _is_local(files):
                    os.fsync(out.fileno())
            if _is_local(files):
                _flush(folder)

    def read(self, name: str, rows: Sequence[int]) -> list[str]:
        """The records of these rows as JSON."""
        from pyarrow import parquet

        with self._reaching("read") as (files, folder), files.open(f"{folder}/{name}{SUFFIX}", "rb") as file:
            source = parquet.ParquetFile(file)
            groups = sorted({row // GROUP for row in rows})
            found = source.read_row_groups(groups, columns=["record"], use_threads=False)["record"].to_pylist()
            first = {group: nth * GROUP for nth, group in enumerate(groups)}
            return [found[first[row // GROUP] + row % GROUP] for row in rows]

    def ids(self, name: str) -> list[str]:
        """Of the completions in it, in order of their rows."""
        from pyarrow import parquet

        with self._reaching("read") as (files, folder), files.open(f"{folder}/{name}{SUFFIX}", "rb") as file:
            return list(parquet.ParquetFile(file).read(columns=["id"], use_threads=False)["id"].to_pylist())

    def names(self) -> list[str]:
        with self._reaching("listed") as (files, folder):
            files.invalidate_cache()
            found = files.ls(folder, detail=False) if files.exists(folder) else []
            return sorted(path.rsplit("/", 1)[-1].removesuffix(SUFFIX) for path in found if path.endswith(SUFFIX))

    def delete(self, name: str) -> None:
        """Nothing happens where there is none."""
        with self._reaching("removed") as (files, folder):
            try:
                files.rm_file(f"{folder}/{name}{SUFFIX}")
            except FileNotFoundError:
                return
            if _is_local(files):
                _flush(folder)

    @contextmanager
    def _reaching(self, verb: str) -> Iterator[tuple[Any, str]]:
        try:
            import fsspec

            yield fsspec.core.url_to_fs(self.address)
        except Exception as error:  # drivers of fsspec raise what they like, and no common class
            raise ArchiveUnavailable(
                f"the archive could not be {verb} ({type(error).__name__}); what is archived stays there; try again, "
                "and tell the operator if that does not help"
            ) from error


def at(ledger: Ledger) -> Partitions:
    return Partitions(f"{ledger.settings.archive_address.rstrip('/')}/{quote(ledger.model, safe='')}")


def _is_local(files: Any) -> bool:
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def _flush(folder: str) -> None:
    """The name of a file is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
