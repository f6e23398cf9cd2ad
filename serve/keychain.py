"""`heed keys`: who may ask this gateway, and how much."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Column, Table

from serve.client import Client, ClientSettings, spoken
from serve.tables import when

keys = typer.Typer(invoke_without_command=True)
console = Console(highlight=False)

Requests = Annotated[
    int | None, typer.Option(min=0, help="Answers a minute; 0 for any number. Default: HEED_KEY_REQUESTS_PER_MINUTE.")
]
Tokens = Annotated[
    int | None, typer.Option(min=0, help="Tokens a minute; 0 for any number. Default: HEED_KEY_TOKENS_PER_MINUTE.")
]
KeyId = Annotated[str, typer.Argument(help="Id of the key, as the list has it.")]


@keys.callback()
@spoken
def show(context: typer.Context) -> None:
    """List API keys, newest first, or create, limit and revoke them."""
    if context.invoked_subcommand is None:
        columns = ("role", "name", "created", "last used", "requests/min", "tokens/min", "revoked")
        table = Table(Column("key", overflow="fold", no_wrap=True), *columns, box=None)
        for key in Client(ClientSettings()).get("/keys")["data"]:
            times = (when(key["created"]), _when(key["last_used"]))
            limits = (_limit(key["requests_per_minute"]), _limit(key["tokens_per_minute"]))
            table.add_row(key["id"], key["role"], key["name"], *times, *limits, _when(key["revoked"]))
        console.print(table)


@keys.command("list")
@spoken
def list_(context: typer.Context) -> None:
    """List API keys, newest first."""
    show(context)


@keys.command()
@spoken
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, in your words.")],
    role: Annotated[str, typer.Option(help="client, annotator or operator.")] = "client",
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
) -> None:
    """Make a key and print it, which cannot be done again."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    made = Client(ClientSettings()).post("/keys", {"name": name, "role": role, **limits})
    console.print(f"{made['id']} is made, for {made['name']}. The key, shown this once:", markup=False)
    typer.echo(made["key"])


@keys.command()
@spoken
def limit(key: KeyId, requests_per_minute: Requests = None, tokens_per_minute: Tokens = None) -> None:
    """Give a key other limits; what is left out is the default again."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    now = Client(ClientSettings()).post(f"/keys/{quote(key, safe='')}", limits)
    told = (_limit(now["requests_per_minute"]), _limit(now["tokens_per_minute"]))
    console.print(f"{now['id']}: {told[0]} requests and {told[1]} tokens a minute.")


@keys.command()
@spoken
def revoke(key: KeyId) -> None:
    """Refuse a key from now on, on every gateway within a second."""
    gone = Client(ClientSettings()).delete(f"/keys/{quote(key, safe='')}")
    console.print(f"{gone['id']} is revoked.", markup=False)


def _when(seconds: Any) -> str:
    return when(seconds) if seconds else "-"


def _limit(per_minute: int | None) -> str:
    return "default" if per_minute is None else f"{per_minute:,}" if per_minute else "any"
