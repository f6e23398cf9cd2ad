"""`heed check`: is the ledger what it promises to be?"""

import asyncio
import json
import os
from typing import Annotated

import typer

from feedback.check import violations
from feedback.connection import open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings

app = typer.Typer()


@app.command()
def check(
    ledger_url: Annotated[
        str, typer.Option(help="Redis of the ledger (HEED_LEDGER_URL, else that of the stack running in var).")
    ] = "",
    models: Annotated[str, typer.Option(envvar="HEED_MODELS", help="Served models, separated by commas.")] = "heed",
) -> None:
    """Verify the ledger's invariants; exit 1 if one is broken, naming it, and 2 if the ledger does not answer."""
    settings = LedgerSettings()
    url = ledger_url or os.environ.get("HEED_LEDGER_URL") or running_ledger(settings) or settings.ledger_url
    try:
        broken = asyncio.run(_violations(settings.model_copy(update={"ledger_url": url}), models.split(",")))
    except LedgerUnavailable as error:
        typer.echo(f"The ledger at {url} does not answer; is `make run` running? ({error})", err=True)
        raise typer.Exit(2) from None
    for sentence in broken:
        typer.echo(f"broken: {sentence}")
    if broken:
        raise typer.Exit(1)
    typer.echo("The ledger is clean.")


def running_ledger(settings: LedgerSettings) -> str | None:
    """`heed up` may have taken another port than the usual one; it says so in var/stack.json."""
    try:
        return str(json.loads((settings.var / "stack.json").read_text())["ledger_url"])
    except (OSError, ValueError, KeyError):
        return None


async def _violations(settings: LedgerSettings, models: list[str]) -> list[str]:
    ledger = open_ledger(settings, models[0])
    try:
        return [sentence for model in models async for sentence in violations(ledger.of(model))]
    finally:
        await ledger.close()
