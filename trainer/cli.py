"""The workshop's part of the command `heed`: the demo and the gate's guards. It loads no torch."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from trainer.habits import HABITS

app = typer.Typer()


@app.command()
def demo(
    taste: Annotated[str, typer.Option(help=f"The habit that the crowd likes: {', '.join(HABITS)}.")] = "steps",
    noise: Annotated[float, typer.Option(min=0, max=0.49, help="Share of thumbs that are turned by mistake.")] = 0.1,
    voters: Annotated[int, typer.Option(min=1, help="How many voters the thumbs come from.")] = 20,
    votes: Annotated[int, typer.Option(min=2, help="Thumbs given in all.")] = 1400,
    measured: Annotated[int, typer.Option(min=1, help="Prompts asked before and after.")] = 130,
    seed: Annotated[int, typer.Option(help="Which questions, voters and mistakes.")] = 0,
    model: Annotated[str, typer.Option(help="The served model.")] = "heed",
    url: Annotated[str, typer.Option(help="The gateway; default that of the running stack.")] = "",
    key: Annotated[str, typer.Option(help="The operator's key; default HEED_OPERATOR_KEY or var/operator.key.")] = "",
    out: Annotated[Path | None, typer.Option(help="The picture; default var/demo/TASTE.png.")] = None,
) -> None:
    """Prove the circle: a simulated crowd votes, a job trains, the adapter goes live, the same prompts are asked again.

    Every prompt that is voted on is answered by the live model and by the base, so that a taste which the live
    adapter hardly shows any more can still be found. In a second run the votes of the first still stand, and new ones
    count more.
    """
    if taste not in HABITS:
        raise typer.BadParameter(f"{taste!r} is no habit of the pocket model; one of {', '.join(HABITS)} is")
    from trainer.crowd import Crowd
    from trainer.demo import Demo, run
    from trainer.visitor import DemoStopped, Visitor

    var = Path(os.environ.get("HEED_VAR") or "var")
    crowd = Crowd(taste, noise, voters, seed)
    plan = Demo(crowd, votes, measured, model, out or var / "demo" / f"{taste}.png")
    url = url or _running_gateway(var)

    async def turn() -> None:
        async with Visitor(url, key or _operator_key(var)) as visitor:
            await run(plan, visitor, typer.echo)

    typer.echo(f"{voters} voters like {taste} best and err in {noise:.0%} of their {votes} votes (seed {seed}).")
    try:
        asyncio.run(turn())
    except DemoStopped as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. What was voted stays, and a job that was asked for goes on.", err=True)
        raise typer.Exit(130) from None


@app.command()
def guards() -> None:
    """List the guards of the gate, and say what is wrong with one that cannot be used."""
    from trainer.guards import GuardsInvalid, read
    from trainer.settings import WorkshopSettings

    try:
        found = read(WorkshopSettings().guard_folders)
    except GuardsInvalid as invalid:
        typer.echo(str(invalid), err=True)
        raise typer.Exit(1) from None
    for guard in found:
        typer.echo(f"{guard.name:24} {guard.kind:12} {'hard' if guard.is_hard else '':5} {guard.why}")


def _running_gateway(var: Path) -> str:
    """`heed up` says in var/stack.json where it listens."""
    try:
        return str(json.loads((var / "stack.json").read_text())["gateway_url"])
    except (OSError, ValueError, KeyError):
        return f"http://127.0.0.1:{os.environ.get('HEED_PORT') or 8000}"


def _operator_key(var: Path) -> str:
    if key := os.environ.get("HEED_OPERATOR_KEY"):
        return key
    try:
        return (var / "operator.key").read_text().strip()
    except OSError:
        return ""
