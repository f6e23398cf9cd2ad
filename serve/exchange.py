"""What `heed export`, `heed import` and `heed prompts` do: long files in constant memory, through the gateway."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from feedback.errors import UploadInvalid
from feedback.formats import RowRefused, messages, parse, read_preference
from feedback.imports import Report, Source, lines
from feedback.texts import text_of
from serve import hub
from serve.client import CallFailed, CallRefused, Client

ExportFormat = Literal["trl", "openai", "kto", "parquet"]
Json = dict[str, Any]

ROWS_AT_ONCE = 1000
LINES_AT_ONCE = 500
"""A request of this many lines takes under a second or two, so the bar moves, and the gateway lists all its rejects."""

BYTES_AT_ONCE = 8 * 2**20


def export(client: Client, format: ExportFormat, out: Path, model: str, console: Console) -> None:
    """Raises CallFailed; then `out` is as it was."""
    rows = _fetch(client, format, out, model, console)
    console.print(f"{rows} rows are in {out}.", markup=False, soft_wrap=True)


def push(client: Client, name: str, model: str, console: Console) -> None:
    """To a private dataset, as one Parquet file that `datasets.load_dataset` finds. Raises CallFailed."""
    _expect("huggingface_hub")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.parquet"
        rows = _fetch(client, "parquet", file, model, console)
        with hub.reached(name) as api:
            api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
            where = api.upload_file(
                path_or_fileobj=file,
                path_in_repo="data/train-00000-of-00001.parquet",
                repo_id=name,
                repo_type="dataset",
            )
    console.print(f"{rows} rows are at {where}", markup=False, soft_wrap=True)


def take_in(client: Client, file: Path, format: Source, model: str, score: str, console: Console) -> Report:
    """Send the file a part at a time, printing each reject. Raises CallFailed; what was sent by then stays taken."""
    total = Report()
    query = {"format": format, "model": model} | ({"score": score} if score else {})
    size = file.stat().st_size
    with file.open("rb") as content, _progress("importing", size, console) as (progress, task):
        for part in _parts(_readable(lines(content, size))):
            answer = client.send_lines("/import", b"\n".join(line.strip() for _, line in part), **query)
            total.imported += answer["imported"]
            total.duplicates += answer["duplicates"]
            total.rejected += answer["rejected"]
            for reject in answer["rejects"]:
                number = part[reject["line"] - 1][0]
                progress.console.print(f"line {number}: {reject['reason']}", markup=False, soft_wrap=True)
            progress.advance(task, sum(len(line) for _, line in part))
    console.print(
        f"{total.lines} lines: {total.imported} imported, {total.duplicates} were there, {total.rejected} rejected."
    )
    return total


def enqueue(client: Client, file: Path, model: str, console: Console) -> int:
    """Put prompts of the file into the queue; returns how many lines were refused. Raises CallFailed."""
    new = known = refused = 0
    with file.open("rb") as content:
        for number, prompt in prompts_of(content, file.stat().st_size):
            try:
                if isinstance(prompt, str):
                    raise CallRefused(prompt)
                added = client.post("/prompts", prompt | {"model": model})
            except CallRefused as reason:
                refused += 1
                console.print(f"line {number}: {reason}", markup=False, soft_wrap=True)
            else:
                new, known = new + added["changed"], known + (not added["changed"])
    console.print(f"{new} prompts are new in the queue, {known} were there, {refused} lines were refused.")
    return refused


def prompts_of(content: BinaryIO, size: int) -> Iterator[tuple[int, Json | str]]:
    """What /v1/prompts takes of each numbered line, or why it is refused. Raises CallFailed."""
    for number, line in _readable(lines(content, size)):
        try:
            yield number, _prompt(parse(line))
        except RowRefused as reason:
            yield number, str(reason)


def _prompt(row: Json) -> Json:
    """A row of preferences is a honeypot, any other a prompt. Raises RowRefused."""
    if {"chosen", "preferred_output"} & row.keys():
        given = read_preference(row)
        texts = {"good": text_of(given.chosen), "bad": text_of(given.rejected)}
        return {"messages": given.prompt, "tools": given.tools, **texts}
    return {"messages": messages(row.get("prompt", row.get("messages")), "prompt"), "tools": row.get("tools")}


def _fetch(client: Client, format: ExportFormat, out: Path, model: str, console: Console) -> int:
    """Returns how many rows are in the file now. Raises CallFailed; then `out` is as it was."""
    if format == "parquet":
        _expect("pyarrow")
    beside = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with client.lines("/pairs", format="trl" if format == "parquet" else format, model=model) as (headers, found):
            total = int(headers["x-heed-pairs"]) * (2 if format == "kto" else 1)
            with _progress("exporting", total, console) as (progress, task):
                watched = progress.track(found, task_id=task)
                written, left_out = (_write_parquet if format == "parquet" else _write)(watched, beside)
        beside.rename(out)
    except OSError as error:
        raise CallFailed(f"{out} cannot be written ({error.strerror}); name another place with --out") from error
    finally:
        beside.unlink(missing_ok=True)
    if left_out:
        console.print(f"{left_out} pairs hold more than text (images, calls of tools), for which Parquet has no place.")
    return written


def _readable(numbered: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Raises CallFailed for an array that is none."""
    try:
        yield from numbered
    except UploadInvalid as invalid:
        raise CallFailed(str(invalid)) from None


def _parts(numbered: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    part: list[tuple[int, bytes]] = []
    size = 0
    for number, line in numbered:
        if part and (len(part) == LINES_AT_ONCE or size + len(line) > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append((number, line))
        size += len(line)
    if part:
        yield part


def _write(found: Iterable[bytes], out: Path) -> tuple[int, int]:
    written = 0
    with out.open("wb") as file:
        for line in found:
            file.write(line + b"\n")
            written += 1
    return written, 0


def _write_parquet(found: Iterable[bytes], out: Path) -> tuple[int, int]:
    """How many rows were written, and how many left out: a message here is a role and a text."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    conversation = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    columns = [("id", pyarrow.string()), *((name, conversation) for name in ("prompt", "chosen", "rejected"))]
    schema = pyarrow.schema(columns)
    written = left_out = 0
    coming = (json.loads(line) for line in found)
    with ParquetWriter(out, schema) as writer:
        while rows := list(islice(coming, ROWS_AT_ONCE)):
            texts = [row for row in rows if _is_text(row)]
            written += len(texts)
            left_out += len(rows) - len(texts)
            writer.write_table(pyarrow.Table.from_pylist(texts, schema=schema))
    return written, left_out


def _is_text(row: Json) -> bool:
    messages = [*row["prompt"], *row["chosen"], *row["rejected"]]
    return all(isinstance(message.get("content"), str) and not message.get("tool_calls") for message in messages)


def _expect(library: str) -> None:
    """Raises CallFailed."""
    try:
        __import__(library)
    except ModuleNotFoundError as error:
        raise CallFailed(f"{error.name} is not installed here; heed[cpu] and heed[gpu] have it") from error


@contextmanager
def _progress(title: str, total: int, console: Console) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(title, total=total)
