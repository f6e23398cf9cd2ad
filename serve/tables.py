"""Tables of the report in the terminal: a share with its interval, or a dash where nothing was counted."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.table import Column, Table
from rich.text import Text

Json = dict[str, Any]


def versions_table(stats: Json) -> Table:
    table = Table("adapter", "votes", "up-rate", "win rate", "against", "vote to live", box=None)
    has_picked = any(one["best_of_up_rate"]["of"] for one in stats["versions"])
    if has_picked:
        table.add_column("up-rate, best of n")
    for one in stats["versions"]:
        name = f"{one['id']} (live)" if one["id"] == stats["serving"]["live"] else one["id"]
        wins = one["win_rate"]
        wait = _duration(one["vote_to_live_s"])
        cells = [name, str(one["votes"]), share(one["up_rate"]), share(wins), wins["against"] or "-", wait]
        table.add_row(*cells, *([share(one["best_of_up_rate"])] if has_picked else []))
    return table


def votes_table(stats: Json) -> Table:
    sides = stats["position_bias"]
    states = ", ".join(f"{n} {state}" for state, n in stats["voters"].items() if n)
    table = Table(show_header=False, box=None)
    table.add_row("answers voted on", f"{share(stats['voted_share'])}, last {stats['voted_share']['days']} days")
    table.add_row("voters", states or "none")
    table.add_row("votes not heard", str(stats["unheard_votes"]))
    if stats["unsettled"]:
        table.add_row("not counted yet", f"the newest votes on {stats['unsettled']} prompts")
    table.add_row("voters agree", _plain(stats["agreement"]))
    table.add_row("side a wins", f"{share(sides)}; {sides['ties']} ties, {sides['both_bad']} both bad")
    table.add_row("the longer answer wins", share(stats["length_bias"]))
    table.add_row("vote to live", _duration(stats["vote_to_live_s"]["median"]))
    return table


def voters_table(voters: Iterable[Json]) -> Table:
    table = Table("voter", "state", "votes", "agreed", "kappa", "asked", "chance", "honeypots missed", box=None)
    for one in voters:
        agreed = f"{one['agreed']} of {one['measured']}"
        kappa = "-" if one["kappa"] is None else f"{one['kappa']:.2f}"
        asked = "-" if one["asked"] is None else f"{one['asked']:.0%}"
        state = f"{one['state']} (outlier)" if one["is_outlier"] else one["state"]
        # A voter's name is a client's text, and no markup.
        pots = one["honeypots"]
        missed = f"{pots['missed']} of {pots['answered']}" if pots["answered"] else "-"
        table.add_row(Text(one["id"]), state, str(one["votes"]), agreed, kappa, asked, f"{one['chance']:.1g}", missed)
    return table


def prompts_table(prompts: Iterable[Json]) -> Table:
    table = Table(Column("id", no_wrap=True), "prompt", "good", "bad", box=None)
    for one in prompts:
        last = one["messages"][-1].get("content")
        cells = [last if isinstance(last, str) else "…", one["good"] or "-", one["bad"] or "-"]
        table.add_row(one["id"], *(Text(cell, overflow="ellipsis", no_wrap=True) for cell in cells))
    return table


def plan_table(plan: Json) -> Table:
    table = Table(show_header=False, box=None)
    for name, words in plan_rows(plan):
        table.add_row(name, Text(words))
    return table


def plan_rows(plan: Json) -> list[tuple[str, str]]:
    """What a dry run found."""
    data, cost = plan["dataset"], plan["cost"]
    tokens = "" if cost["tokens"] is None else f", {cost['tokens']} tokens"
    wait = "no job has shown yet how long they take"
    if cost["from_jobs"]:
        wait = f"about {_duration(cost['seconds'])} by the last {cost['from_jobs']} jobs"
    return [
        ("method", plan["method"]),
        ("train on", f"{data['train']} lessons and {data['held_out']} held out, {data['replayed']} of them old"),
        ("they come from", _counts(data["by_source"])),
        ("left out", _counts(data["dropped"])),
        ("votes", f"{data['votes']} of {data['voters']} voters"),
        ("start", plan["start"] or "the base model"),
        ("settings", ", ".join(f"{name} {value:g}" for name, value in plan["hyperparameters"].items())),
        ("cost", f"{cost['steps']} steps{tokens}, {wait}"),
        *(
            (f"by {trigger['name']}", f"{'due' if trigger['is_due'] else 'not due'}: {trigger['why']}")
            for trigger in plan["triggers"]
        ),
    ]


def gate_table(gate: Json) -> Table:
    table = Table("", "criterion", "found", "why", box=None)
    for one in gate.get("criteria") or []:
        table.add_row(one["id"], one["name"], one["outcome"], Text(one["reason"]))
    return table


def verdict_of(gate: Json) -> str:
    if not gate:
        return "It was not examined."
    decision = gate.get("decision") or ("pass" if gate.get("passed") else "fail")
    said = {"pass": "lets it pass", "canary-only": "leaves it to an operator", "fail": "says no"}
    eta = gate.get("eta", 1.0)
    scaled = f" It is published with {eta:.0%} of its strength." if eta < 1 else ""
    return f"The gate {said[decision]}: {'; '.join(gate.get('reasons') or [])}.{scaled}"


def share(found: Json) -> str:
    if found["share"] is None:
        return "-"
    return f"{found['share']:.0%} ({found['low']:.0%} to {found['high']:.0%}, n = {found['of']})"


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def _plain(found: Json) -> str:
    return "-" if found["share"] is None else f"{found['share']:.0%} of {found['of']} meetings"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
