"""Files: preference rows that somebody uploaded to train on, kept as they came.

The bytes are in var/files (redacted, where that is asked for), the record in the ledger. Every line is read before the
file is taken, so a job never meets a row it cannot read; a file is whole or not there. The rows' halves are those of
their conversations, as with votes.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import FileUnknown, LedgerUnavailable, TextTooLong, TooFewPairs, UploadInvalid
from feedback.formats import LINE_BYTES, RowRefused, parse, read_preference
from feedback.lessons import split_of
from feedback.records import Pair, TrainingFile, canonical, digest, new_id, prompt_digest


async def store(ledger: Ledger, upload: BinaryIO, filename: str, purpose: str = "fine-tune") -> TrainingFile:
    """Keep JSON Lines of OpenAI's or TRL's preference rows. Raises UploadInvalid with the line, LedgerUnavailable."""
    file_id = new_id("file")
    path = path_of(ledger, file_id)
    beside = path.with_name(f".{path.name}")
    try:
        record = await asyncio.to_thread(_write, ledger, upload, beside, file_id)
        record = record.model_copy(update={"filename": filename, "purpose": purpose})
        beside.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise LedgerUnavailable(
            f"the file could not be kept ({error.strerror}); nothing was stored; try again"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.set(ledger.keys.file(file_id), record.model_dump_json())
    pipe.zadd(ledger.keys.files, {file_id: record.created})
    try:
        await ledger.reply(pipe.execute())
    except BaseException:
        path.unlink(missing_ok=True)  # nobody was told its id
        raise
    return record


async def get(ledger: Ledger, file_id: str) -> TrainingFile:
    """Raises FileUnknown."""
    text = await ledger.reply(ledger.redis.get(ledger.keys.file(file_id)))
    if text is None:
        raise FileUnknown(f"there is no file {file_id[:40]!r}; upload one to /v1/files, or list them there")
    return TrainingFile.model_validate_json(text)


async def page(
    ledger: Ledger, after: str | None = None, limit: int = 100, newest_first: bool = True
) -> tuple[list[TrainingFile], bool]:
    ids, has_more = await completions.page_of(ledger, ledger.keys.files, after, limit, newest_first)
    texts = await ledger.reply(ledger.redis.mget([ledger.keys.file(i) for i in ids])) if ids else []
    return [TrainingFile.model_validate_json(text) for text in texts if text is not None], has_more


async def delete(ledger: Ledger, file_id: str) -> None:
    """A job that has not begun with it will fail. Raises FileUnknown."""
    await get(ledger, file_id)
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.delete(ledger.keys.file(file_id))
    pipe.zrem(ledger.keys.files, file_id)
    await ledger.reply(pipe.execute())
    path_of(ledger, file_id).unlink(missing_ok=True)


def expect_enough(ledger: Ledger, record: TrainingFile) -> None:
    """Raises TooFewPairs."""
    least, least_held_out = ledger.settings.min_pairs, ledger.settings.min_held_out_pairs
    if record.train < least or record.held_out < least_held_out:
        raise TooFewPairs(
            f"{record.id} has {record.train} rows to train on and {record.held_out} that fall on the held-out side; at "
            f"least {least} and {least_held_out} are needed: upload more conversations"
        )


def path_of(ledger: Ledger, file_id: str) -> Path:
    """Where the bytes are; `file_id` must be that of a record, for what a client names could lead elsewhere."""
    return ledger.settings.var / "files" / f"{file_id}.jsonl"


def rows(ledger: Ledger, record: TrainingFile) -> list[Pair]:
    """The file's rows as pairs, each once. Ids follow from content. Raises FileUnknown."""
    path = path_of(ledger, record.id)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileUnknown(f"the bytes of {record.id} are gone from var/files; upload it again") from None
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise FileUnknown(f"the bytes of {record.id} are not what was uploaded; upload it again")
    share = ledger.settings.held_out_share
    found = (_pair(line, record.created, share) for line in content.split(b"\n") if line.strip())
    return list({pair.id: pair for pair in found}.values())


def _write(ledger: Ledger, upload: BinaryIO, path: Path, file_id: str) -> TrainingFile:
    """Copy and read it line by line. Raises UploadInvalid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole, counts, size = hashlib.sha256(), {"train": 0, "held_out": 0}, 0
    with path.open("wb") as out:
        for number, line in enumerate(_lines(upload), 1):
            if line.strip():
                try:
                    line = _redacted(ledger, line)
                    counts[_pair(line, 0, ledger.settings.held_out_share).split] += 1
                except (RowRefused, TextTooLong) as refused:
                    raise UploadInvalid(f"line {number}: {refused}") from None
            out.write(line)
            whole.update(line)
            size += len(line)
        out.flush()
        os.fsync(out.fileno())
    if not sum(counts.values()):
        raise UploadInvalid("the file has no rows; send one JSON object a line, in OpenAI's or TRL's preference format")
    return TrainingFile(
        id=file_id,
        filename="",
        purpose="",
        bytes=size,
        sha256=whole.hexdigest(),
        created=ledger.clock(),
        **counts,
    )


def _redacted(ledger: Ledger, line: bytes) -> bytes:
    """A line in which nothing is replaced stays as it came. Raises RowRefused, TextTooLong."""
    if not ledger.redaction.is_on:
        return line
    row = parse(line)
    redacted = ledger.redaction.row(row)
    return line if redacted == row else orjson.dumps(redacted) + b"\n"


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(upload: BinaryIO) -> Iterator[bytes]:
    while line := upload.readline(LINE_BYTES + 1):
        yield line


def _pair(line: bytes, created: float, held_out_share: float) -> Pair:
    """Raises RowRefused."""
    given = read_preference(parse(line))
    prompt_hash = prompt_digest(given.prompt, given.tools)
    return Pair(
        id="row-" + digest(prompt_hash, canonical(given.chosen), canonical(given.rejected))[:24],
        prompt_hash=prompt_hash,
        prompt=given.prompt,
        tools=given.tools,
        chosen=given.chosen,
        rejected=given.rejected,
        source="preference",
        split=split_of(given.prompt, held_out_share),
        opinions=[],
        completions=[],
        adapters=[],
        created=created,
    )
