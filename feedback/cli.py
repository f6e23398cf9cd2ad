"""`heed check`: is the ledger what it promises to be?"""

import asyncio

import typer

from feedback.check import violations
from feedback.connection import open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings

app = typer.Typer()


@app.command()
def check(
    ledger_url: str = typer.Option(
        "", help="Redis of the ledger; default HEED_LEDGER_URL, or that of the running stack."
    ),
    model: str = typer.Option("heed", envvar="HEED_MODELS", help="Served models, separated by commas."),
) -> None:
    """Verify the ledger's invariants; exit 1 if one is broken, naming it."""
    settings = LedgerSettings(ledger_url=ledger_url) if ledger_url else LedgerSettings()
    try:
        broken = asyncio.run(_violations(settings, model.split(",")))
    except LedgerUnavailable as error:
        typer.echo(f"The ledger at {settings.ledger_url} does not answer; is `make run` running? ({error})", err=True)
        raise typer.Exit(2) from None
    for sentence in broken:
        typer.echo(f"broken: {sentence}")
    if broken:
        raise typer.Exit(1)
    typer.echo("The ledger is clean.")


async def _violations(settings: LedgerSettings, models: list[str]) -> list[str]:
    ledger = open_ledger(settings, models[0])
    try:
        return [sentence for model in models async for sentence in violations(ledger.of(model))]
    finally:
        await ledger.close()
