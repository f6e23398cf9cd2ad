"""`heed canary`: try an adapter on a share of the people, see how it fares, end that."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve.client import CallFailed, Client, ClientSettings

Json = dict[str, Any]

NAMES = {"up_votes": "voted up", "errors": "failed", "refusals": "refused", "length": "tokens"}


def canary(
    adapter: Annotated[str, typer.Argument(help="Id of the adapter to try; without it, show what is tried.")] = "",
    percent: Annotated[float, typer.Option(min=0, max=100, help="Share of users and conversations.")] = 0,
    auto: Annotated[bool, typer.Option("--auto", help="Let it go live, or back, by itself.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="What is live answers everybody again.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in its history.")] = "",
    model: Annotated[str, typer.Option(help="Served model.")] = "heed",
) -> None:
    """Try an adapter on a share of the people, and see what they say of it."""
    console, client = Console(highlight=False), Client(ClientSettings())
    if percent and not adapter:
        raise typer.BadParameter("say which adapter: heed canary ID --percent 10")
    if adapter and not (percent or stop):
        raise typer.BadParameter("say on how many it is tried: --percent 10; or end it: --stop")
    found = client.get("/canary", model=model)
    running = found["running"]
    if stop:
        tried = adapter or (running or {}).get("adapter")
        if not tried:
            raise CallFailed(f"No adapter is tried as a canary of {model}.")
        ended = client.post(_path(tried), {"percent": 0, "reason": reason})
        console.print(f"{ended['adapter']} is no longer tried; {ended['against']} answers everybody.")
    elif percent:
        body = {"percent": percent, "auto": auto, "reason": reason}
        tell(console, client.post(_path(adapter), body))
    elif running or found["last"]:
        tell(console, running or found["last"])
    else:
        console.print("No adapter was tried yet: heed canary ID --percent 10")


def tell(console: Console, trial: Json) -> None:
    how = "goes live or back by itself" if trial["auto"] else "waits for an operator"
    share = f"on {trial['percent']:g} % of users and conversations, against {trial['against']}"
    if trial["ended"] is None:
        console.print(f"{trial['adapter']} is tried {share}; it {how}.", markup=False)
    else:
        console.print(f"{trial['adapter']} was tried {share}: {trial['outcome']}", markup=False, soft_wrap=True)
    table = Table("", "canary", "live", "interval", "", box=None)
    for one in trial["verdict"]["questions"]:
        sides = [_shown(one["name"], one[side]) for side in ("canary", "control")]
        table.add_row(NAMES[one["name"]], *sides, _interval(one), Text(one["outcome"].replace("_", " ")))
    console.print(table)
    if trial["ended"] is None:
        verdict = trial["verdict"]
        console.print(f"{verdict['decision'].replace('_', ' ')}: {verdict['reason']}", markup=False, soft_wrap=True)


def _path(adapter: str) -> str:
    return f"/adapters/{quote(adapter, safe='')}/canary"


def _shown(name: str, share: Json) -> str:
    if share["mean"] is None:
        return "-"
    mean = f"{share['mean']:.0f}" if name == "length" else f"{share['mean']:.1%}"
    return f"{mean} of {share['of']}" if name != "length" else f"{mean}, {share['of']} answers"


def _interval(question: Json) -> str:
    if question["name"] == "length":
        high = "any" if question["high"] is None else f"{question['high']:.2f}"
        return f"{question['low']:.2f} to {high} times"
    return f"{100 * question['low']:+.1f} to {100 * question['high']:+.1f} points"
