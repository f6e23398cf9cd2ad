"""`heed check`: is the ledger what it promises to be? `heed archive`: move what is old out of Redis now.
`heed backup`: all of it as it is at one moment.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import feedback.archive
import feedback.backup
from feedback.address import without_secrets
from feedback.archive import Moved
from feedback.backup import Manifest
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.errors import ArchiveUnavailable, LedgerUnavailable
from feedback.settings import LedgerSettings
from feedback.snapshot import BackupFailed

app = typer.Typer()

T = TypeVar("T")
LedgerUrl = Annotated[
    str, typer.Option(help="Redis of the ledger (HEED_LEDGER_URL, else that of the stack running in var).")
]
Models = Annotated[str, typer.Option(envvar="HEED_MODELS", help="Served models, separated by commas.")]


@app.command()
def check(ledger_url: LedgerUrl = "", models: Models = "heed") -> None:
    """Verify the ledger's invariants; exit 1 if one is broken, naming it, and 2 if the ledger does not answer."""
    settings = _settings(ledger_url)
    broken = _asked(settings, _violations(settings, models.split(",")))
    for sentence in broken:
        typer.echo(f"broken: {sentence}")
    if broken:
        raise typer.Exit(1)
    typer.echo("The ledger is clean.")


@app.command()
def archive(
    ledger_url: LedgerUrl = "",
    models: Models = "heed",
    after_days: Annotated[
        float | None, typer.Option(min=0, help="Move what is this old (HEED_ARCHIVE_AFTER_DAYS).")
    ] = None,
) -> None:
    """Move old completions with a vote from Redis to the archive (HEED_ARCHIVE); the worker does so every hour.

    They stay readable as before. May be ended and run again at any moment; exit 2 if ledger or archive do not answer.
    """
    settings = _settings(ledger_url)
    if after_days is not None:
        settings = settings.model_copy(update={"archive_after_days": after_days})
    for model in models.split(","):
        moved = _asked(settings, _archive(settings, model))
        typer.echo(_told(model, moved, settings.archive_address))


@app.command()
def backup(
    to: Annotated[str, typer.Argument(metavar="PLACE", help="A new folder, or any address of fsspec.")],
    ledger_url: LedgerUrl = "",
) -> None:
    """Keep one moment of all served models, with their adapters, reward models, archive and uploaded files.

    While they are used. `heed restore PLACE` brings it back; exit 1 if it could not be made, 2 if the ledger does not
    answer.
    """
    settings = _settings(ledger_url)
    began = time.monotonic()
    try:
        made = _asked(settings, _backup(settings, to))
    except BackupFailed as error:
        typer.echo(f"No back-up was made: {error}", err=True)
        raise typer.Exit(1) from None
    for model, counts in made.counts.items():
        typer.echo(f"{model}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for path in made.missing:
        typer.echo(f"not in it, as nobody found it: {path}", err=True)
    typer.echo(
        f"{len(made.files):,} files with {made.total / 1e6:,.1f} MB are at {to} ({time.monotonic() - began:.1f} s, in "
        f"which writers waited for {made.waited_s:.3f} s)."
    )


def _told(model: str, moved: Moved, address: str) -> str:
    told = f"{model}: {moved.completions:,} completions moved to {moved.partitions} new partitions at {address}"
    if moved.expired:
        told += f"; {moved.expired:,} expired there"
    if moved.tidied:
        told += f"; {moved.tidied:,} rows of deleted or changed ones taken out"
    if moved.orphans:
        told += f"; {moved.orphans} unfinished files removed"
    return told + "."


def _settings(ledger_url: str) -> LedgerSettings:
    settings = LedgerSettings()
    url = ledger_url or os.environ.get("HEED_LEDGER_URL") or running_ledger(settings) or settings.ledger_url
    return settings.model_copy(update={"ledger_url": url})


def _asked(settings: LedgerSettings, question: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(question)
    except LedgerUnavailable as error:
        place = without_secrets(settings.ledger_url)
        typer.echo(f"The ledger at {place} does not answer; is `make run` running? ({error})", err=True)
    except ArchiveUnavailable as error:
        typer.echo(f"The archive at {settings.archive_address}: {error} ({error.__cause__})", err=True)
    raise typer.Exit(2)


def running_ledger(settings: LedgerSettings) -> str | None:
    """`heed up` may have taken another port than the usual one; it says so in var/stack.json."""
    try:
        return str(json.loads((settings.var / "stack.json").read_text())["ledger_url"])
    except (OSError, ValueError, KeyError):
        return None


@asynccontextmanager
async def _ledger(settings: LedgerSettings, model: str) -> AsyncIterator[Ledger]:
    ledger = open_ledger(settings, model)
    try:
        yield ledger
    finally:
        await ledger.close()


async def _violations(settings: LedgerSettings, models: list[str]) -> list[str]:
    async with _ledger(settings, models[0]) as ledger:
        return [sentence for model in models async for sentence in violations(ledger.of(model))]


async def _archive(settings: LedgerSettings, model: str) -> Moved:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with _ledger(settings, model) as ledger:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            shown = progress.add_task(f"archiving {model}", total=await feedback.archive.due(ledger))
            return await feedback.archive.run(ledger, lambda moved: progress.advance(shown, moved))


async def _backup(settings: LedgerSettings, to: str) -> Manifest:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with _ledger(settings, "heed") as ledger:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            shown = progress.add_task("copying the ledger", total=await ledger.reply(ledger.redis.dbsize()))
            return await feedback.backup.make(ledger, to, lambda keys: progress.advance(shown, keys))
