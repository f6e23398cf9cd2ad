"""The gateway's part of the command `heed`: `up` starts it all, the others are HTTP clients of what runs."""

import getpass
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from feedback import imports
from serve import exchange, hub
from serve.client import CallFailed, Client, ClientSettings, spoken
from serve.console.cli import console as console_command
from serve.keychain import keys
from serve.restoring import restore
from serve.tables import (
    gate_table,
    plan_table,
    prompts_table,
    verdict_of,
    versions_table,
    voters_table,
    votes_table,
    when,
)
from serve.terminal import TerminalChat
from serve.trial import canary
from serve.up import up

app = typer.Typer()
versions = typer.Typer(invoke_without_command=True)
app.add_typer(versions, name="adapters")
app.add_typer(keys, name="keys")
app.command()(up)
app.command()(restore)
app.command()(console_command)
console = Console(highlight=False)

LEFT_OUT = {
    "lone_thumb": "votes on answers in no pair; they can teach unpaired",
    "tie": "comparisons without a winner",
    "both_bad": "comparisons of two bad answers",
    "draw": "as many voters for as against",
    "outvoted": "votes against the majority; they lower the pair's weight",
    "superseded": "the same voter said something later",
    "covered": "thumbs on answers that a comparison or correction speaks for",
    "same_text": "both answers say the same",
    "honeypot": "comparisons with a known answer",
    "quarantined": "the voter is quarantined or banned",
    "gone": "an answer was deleted",
    "not text": "pairs with images or calls of tools",
    "empty": "pairs with an empty answer",
    "identical": "pairs of the same text",
}

P = ParamSpec("P")
Json = dict[str, Any]
Model = Annotated[str, typer.Option(help="Served model.")]

LOOK_EVERY_S = 0.5
VOTERS_SHOWN = 100
OPEN = ("validating_files", "queued", "running")


def command(act: Callable[P, None]) -> Callable[P, None]:
    acting = spoken(act)
    app.command(act.__name__.strip("_"))(acting)
    return acting


@command
def chat(model: Model = "heed", voter: Annotated[str, typer.Option(help="Who votes; default: you.")] = "") -> None:
    """Chat in the terminal; + and - vote on the last answer."""
    TerminalChat(_client(), model, voter or getpass.getuser(), console).run()


@command
def train(
    model: Model = "heed",
    beta: Annotated[float | None, typer.Option(help="Strength of the tie to the reference model.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the job; default: one of its own.")] = None,
    method: Annotated[
        str, typer.Option(help="dpo, unpaired, supervised or reward; default: dpo, or unpaired where pairs are few.")
    ] = "",
    follow: Annotated[bool, typer.Option(help="Show its progress until it ends.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do and cost; train nothing.")] = False,
) -> None:
    """Ask for a training job on the votes, and follow it. Ctrl-C stops following, not the job."""
    client = _client()
    wishes = {name: value for name, value in (("beta", beta), ("n_epochs", epochs)) if value is not None}
    body: Json = {"model": model, "training_file": "ledger", "seed": seed, "dry_run": dry_run}
    if method:
        body["method"] = {"type": method, method: {"hyperparameters": wishes}}
    elif wishes:
        body["hyperparameters"] = wishes
    job = client.post("/fine_tuning/jobs", body)
    if job["plan"]:
        console.print(plan_table(job["plan"]))
        return
    console.print(f"{job['id']} is queued.")
    if follow:
        try:
            _follow(client, job["id"])
        except KeyboardInterrupt:
            console.print(f"\n{job['id']} goes on; `heed jobs` lists it.")


@command
def jobs(model: Model = "heed", cancel: Annotated[str, typer.Option(help="Cancel the job of this id.")] = "") -> None:
    """List training jobs, newest first, or cancel one."""
    client = _client()
    if cancel:
        console.print(f"{client.post(f'/fine_tuning/jobs/{cancel}/cancel', {})['id']} is cancelled.")
        return
    table = Table(_whole("job"), "created", "status", "pairs", _whole("adapter"), box=None)
    for job in client.get("/fine_tuning/jobs", model=model)["data"]:
        error = f": {job['error']['message']}" if job["error"] else ""
        made = job["fine_tuned_model"] or job["reward_model"]
        table.add_row(job["id"], when(job["created_at"]), job["status"] + error, str(job["pairs"]), made)
    console.print(table)


@versions.callback()
@spoken
def adapters(context: typer.Context, model: Model = "heed") -> None:
    """List adapters, newest first, and which one is live."""
    if context.invoked_subcommand is not None:
        return
    listed = _client().get("/adapters", model=model)
    table = Table(_whole("adapter"), "created", "state", _whole("parent"), "pairs", "why", box=None)
    for one in listed["data"]:
        why = one["history"][-1]["reason"] if one["history"] else ""
        table.add_row(one["id"], when(one["created"]), one["state"], one["parent"], str(one["pairs"]), why)
    console.print(table)
    serving = listed["serving"]
    console.print(f"live: {serving['live']}   before it: {serving['previous'] or 'nothing'}")


@versions.command()
@spoken
def show(adapter: Annotated[str, typer.Argument(help="Id of the adapter.")]) -> None:
    """What the gate found of an adapter, criterion by criterion."""
    one = _client().get(f"/adapters/{quote(adapter, safe='')}")
    console.print(f"{one['id']}, {one['state']}, from {one['pairs']} pairs of {one['voters']} voters")
    console.print(verdict_of(one["gate"]), markup=False)
    console.print(gate_table(one["gate"]))


@versions.command()
@spoken
def push(
    adapter: Annotated[str, typer.Argument(help="Id of the adapter.")],
    name: Annotated[str, typer.Argument(help="Repository on the Hub, as in ann/support-lora.")],
    base: Annotated[str, typer.Option(help="What the Hub calls the base model; default: what it was served by.")] = "",
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; otherwise private.")] = False,
) -> None:
    """Put an adapter on the Hugging Face Hub, with a card that says how it was made."""
    settings = ClientSettings()
    where = hub.push(Client(settings), settings.var, adapter, name, base, is_public=public)
    console.print(f"{adapter} is at {where}", markup=False, soft_wrap=True)


@command
def pairs(model: Model = "heed") -> None:
    """What a job would train on now, and why the rest of the votes is left out."""
    seen = _client().get("/pairs/preview", model=model)
    halves = [("train", seen["train"]), ("held out", seen["held_out"])]
    sources = sorted({source for _, half in halves for source in half["by_source"]})
    table = Table("pairs", *sources, "total", "new", "needed", box=None)
    for name, half in halves:
        by_source = [str(half["by_source"].get(source, 0)) for source in sources]
        table.add_row(name, *by_source, str(half["total"]), str(half["new"]), str(half["needed"]))
    console.print(table)
    if not seen["is_enough"]:
        console.print("A job would be refused: too few pairs.", style="yellow")
    if seen["weights"]["mean"] is not None:
        weights, lengths = seen["weights"], seen["lengths"]
        console.print(f"mean weight {weights['mean']:.2f}, {weights['contested']} pairs with voters against")
        console.print(
            f"mean length {lengths['chosen_mean']:.0f} characters chosen, {lengths['rejected_mean']:.0f} rejected; "
            f"the chosen one is longer in {lengths['chosen_longer_share']:.0%}"
        )
    left = Table("left out", "count", "why", box=None)
    for reason, count in (seen["left_out"] | seen["unfit"]).items():
        left.add_row(reason.replace("_", " "), str(count), LEFT_OUT.get(reason, ""))
    console.print(f"{seen['opinions_used']} votes are in pairs.")
    if left.row_count:
        console.print(left)
    unpaired = seen["unpaired"]
    console.print(f"unpaired answers: {unpaired['up']} liked, {unpaired['down']} disliked")
    if seen["unsettled"]:
        console.print(f"{seen['unsettled']} prompts have votes that are not counted yet; ask again.", style="yellow")


@command
def promote(adapter: str, reason: Annotated[str, typer.Option(help="Kept in its history.")] = "") -> None:
    """Let an adapter answer; returns when it does."""
    console.print(f"{_client().post(f'/adapters/{adapter}/promote', {'reason': reason})['live']} is live.")


@command
def rollback(
    model: Model = "heed", reason: Annotated[str, typer.Option(help="Kept in the history.")] = "asked for"
) -> None:
    """Back to the adapter that was live before; returns when it is."""
    console.print(f"{_client().post('/adapters/rollback', {'model': model, 'reason': reason})['live']} is live.")


command(canary)


@command
def voters(
    model: Model = "heed",
    state: Annotated[str, typer.Option(help="Only these: active, quarantined, released or banned.")] = "",
    release: Annotated[str, typer.Option(help="Hear this voter again, whatever the score says.")] = "",
    quarantine: Annotated[str, typer.Option(help="Keep this voter's votes out of training.")] = "",
    ban: Annotated[str, typer.Option(help="Take no more votes from this voter.")] = "",
    reason: Annotated[str, typer.Option(help="Kept in the voter's history.")] = "asked for",
) -> None:
    """List voters with their scores, or say whose votes are heard."""
    client = _client()
    for act, voter in (("release", release), ("quarantine", quarantine), ("ban", ban)):
        if voter:
            now = client.post(f"/voters/{quote(voter, safe='')}/{act}", {"model": model, "reason": reason})
            console.print(f"{now['id']} is {now['state']}.", markup=False)
    if not (release or quarantine or ban):
        listed = client.get("/voters", model=model, limit=VOTERS_SHOWN, **({"state": state} if state else {}))
        console.print(voters_table(listed["data"]))
        if listed["has_more"]:
            console.print(f"These are the first {VOTERS_SHOWN} by name; --state shows fewer.")


@command
def prompts(
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="JSON Lines of prompts, or of preferences.")
    ] = None,
    model: Model = "heed",
    honeypots: Annotated[bool, typer.Option(help="List these instead of the others.")] = False,
    remove: Annotated[str, typer.Option(help="Id of a prompt that nobody should get any more.")] = "",
) -> None:
    """The queue of prompts that voters judge two answers to: list it, or add to it.

    A line with `prompt` is a prompt; a line with `chosen` and `rejected` as well is a honeypot, which measures whether
    voters look (HEED_HONEYPOT_SHARE).
    """
    client = _client()
    if remove:
        console.print(f"{client.delete(f'/prompts/{quote(remove)}')['id']} is removed.", markup=False)
    elif file:
        if exchange.enqueue(client, file, model, console):
            raise typer.Exit(1)
    else:
        listed = client.get("/prompts", model=model, honeypots=honeypots, limit=VOTERS_SHOWN)
        console.print(prompts_table(listed["data"]))
        if listed["has_more"]:
            console.print(f"These are the first {VOTERS_SHOWN}.")


@command
def stats(model: Model = "heed") -> None:
    """What the votes say of each adapter, and how far they can be trusted."""
    found = _client().get("/stats", model=model)
    console.print(versions_table(found))
    console.print(votes_table(found))


@command
def export(
    format: Annotated[exchange.ExportFormat, typer.Option(help="Of the rows; Parquet has TRL's columns.")] = "trl",
    out: Annotated[Path | None, typer.Option(help="The file; whole when the command ends, or not there.")] = None,
    push_to_hub: Annotated[str, typer.Option(help="Private dataset repository of the Hugging Face Hub.")] = "",
    model: Model = "heed",
) -> None:
    """Write all preference pairs to a file, or to a dataset on the Hub."""
    if (out is None) == (not push_to_hub):
        raise typer.BadParameter("say where to: --out FILE, or --push-to-hub NAME")
    if out is not None:
        exchange.export(_client(), format, out, model, console)
    else:
        exchange.push(_client(), push_to_hub, model, console)


@command
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines, or one JSON array.")],
    format: Annotated[imports.Source, typer.Option(help="Who wrote the file.")],
    score: Annotated[str, typer.Option(help="Langfuse, LangSmith: name of the scores that are votes.")] = "",
    model: Model = "heed",
) -> None:
    """Take in feedback given elsewhere. Names every line it cannot take, and then exits with 1."""
    report = exchange.take_in(_client(), file, format, model, score, console)
    if report.rejected:
        raise typer.Exit(1)


def _follow(client: Client, job_id: str) -> None:
    """Print the job's events as they come, its steps as a bar. Raises CallFailed when the job did not succeed."""
    seen: set[str] = set()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("steps", total=None)
        while True:
            job = client.get(f"/fine_tuning/jobs/{job_id}")
            events = client.get(f"/fine_tuning/jobs/{job_id}/events", limit=100)["data"]
            for event in reversed([event for event in events if event["id"] not in seen]):
                seen.add(event["id"])
                if event["type"] == "metrics":
                    data = event["data"]
                    progress.update(
                        bar, completed=data["step"], total=data["total_steps"], description=event["message"]
                    )
                else:
                    progress.console.print(f"{when(event['created_at'])}  {event['message']}", markup=False)
            if job["status"] not in OPEN:
                break
            time.sleep(LOOK_EVERY_S)
    if job["status"] != "succeeded":
        raise CallFailed(f"{job_id} {job['status']}" + (f": {job['error']['message']}" if job["error"] else ""))
    if job["plan"]:
        console.print(plan_table(job["plan"]))
        return
    console.print(f"{job['fine_tuned_model']} is trained; `heed adapters` tells whether it is live.")


def _client() -> Client:
    return Client(ClientSettings())


def _whole(name: str) -> Column:
    """A column of ids, which are there to be copied: in a narrow terminal the others give way."""
    return Column(name, no_wrap=True)
