"""`heed restore`: a back-up into an empty place; without another ledger's address, into var/ for the next `heed up`.

A ledger in var/ is written by a server of this command's own, under the lock of `heed up`, so the two never meet.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from feedback import restore as restoring
from feedback.backup import Manifest, Shelf, read
from feedback.connection import open_ledger
from feedback.errors import ArchiveUnavailable, LedgerUnavailable
from feedback.settings import LedgerSettings
from feedback.snapshot import BackupFailed
from serve import preflight
from serve.preflight import CannotStart
from serve.stack import Stack, StackSettings, free_port, ledger_command, ledger_server
from serve.supervisor import tether_command
from serve.tables import when

READY_WITHIN_S = 120
"""A server reads what is already in var/ledger before it answers."""


def restore(
    place: Annotated[str, typer.Argument(help="Where `heed backup` wrote to: a folder, or any address of fsspec.")],
    ledger_url: Annotated[
        str, typer.Option(envvar="HEED_LEDGER_URL", help="Redis to restore into; without it, that of var.")
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the ledger and archive that are there, and restore instead.")
    ] = False,
) -> None:
    """Bring a back-up back: ledger, adapters, reward models, archive and files, then `heed check`.

    Refuses a place that is not empty. May be broken off and begun again. Exit 1 if it could not be done or the result
    is not clean, 2 if the ledger does not answer.
    """
    settings = LedgerSettings()
    try:
        if ledger_url:
            made, broken = asyncio.run(_restored(settings, ledger_url, place, replace))
        else:
            with _ledger_of(settings.var) as url:
                made, broken = asyncio.run(_restored(settings, url, place, replace))
    except (BackupFailed, ArchiveUnavailable, CannotStart) as error:
        typer.echo(f"Not restored: {error}", err=True)
        raise typer.Exit(1) from None
    except LedgerUnavailable as error:
        typer.echo(f"Not restored: {error}", err=True)
        raise typer.Exit(2) from None
    for model, counts in made.counts.items():
        typer.echo(f"{model}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for path in made.missing:
        typer.echo(f"was not in the back-up, as nobody found it then: {path}", err=True)
    for sentence in broken:
        typer.echo(f"broken: {sentence}")
    typer.echo(
        f"This is the ledger of {when(made.made)}. What was erased, withdrawn or revoked since is back: erase it again."
    )
    if broken:
        raise typer.Exit(1)
    typer.echo("The ledger is clean.")


async def _restored(settings: LedgerSettings, url: str, place: str, replace: bool) -> tuple[Manifest, list[str]]:
    ledger = open_ledger(settings.model_copy(update={"ledger_url": url}))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            total = 2 * read(Shelf(place)).total  # each byte is verified, then restored
            shown = progress.add_task("restoring", total=total)
            made = await restoring.restore(ledger, place, replace, lambda size: progress.advance(shown, size))
            progress.update(shown, description="checking")
            return made, await restoring.damage(ledger, made)
    finally:
        await ledger.close()


@contextmanager
def _ledger_of(var: Path) -> Iterator[str]:
    """A server for var/ledger alone, gone when the block ends. Raises CannotStart."""
    if ledger_server() is None:
        raise CannotStart("there is no redis-server or valkey-server here; --ledger-url names one that runs elsewhere")
    lock = preflight.hold(var, lambda text: typer.echo(text, err=True))
    stack = Stack(StackSettings(var=var), "cpu", free_port(), ())
    (stack.var / "ledger").mkdir(parents=True, exist_ok=True)
    (stack.var / "logs").mkdir(exist_ok=True)
    log = stack.var / "logs" / "restore.log"
    with log.open("ab") as out:
        command = tether_command("run", str(os.getpid()), *ledger_command(stack))
        server = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=[lock])
    try:
        asyncio.run(_answers(stack.ledger_url, server, log))
        yield stack.ledger_url
    finally:
        server.terminate()
        server.wait()  # what it was told is on disk already
        os.close(lock)


async def _answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    ledger = open_ledger(LedgerSettings(ledger_url=url))
    end = time.monotonic() + READY_WITHIN_S
    try:
        while True:
            try:
                await ledger.reply(ledger.redis.ping())
                return
            except LedgerUnavailable:
                if server.poll() is not None or time.monotonic() > end:
                    raise CannotStart(f"the ledger's server did not start; see {log}") from None
                await asyncio.sleep(0.05)
    finally:
        await ledger.close()
