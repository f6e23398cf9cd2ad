"""Rows of the tables of the page "Operate", and the lines beside them."""

import html
from typing import Any

from serve.tables import when

Json = dict[str, Any]

JOB_COLUMNS = {"job": 260, "created": 170, "status": 110, "pairs": 70, "adapter": 170, "why": 300}
GATE_COLUMNS = {"": 50, "criterion": 160, "found": 80, "why": 480}
VOTER_COLUMNS = {"voter": 200, "state": 110, "votes": 70, "agreed": 100, "kappa": 70, "honeypots missed": 130}
ENGINE_COLUMNS = {"engine": 220, "state": 80, "in flight": 80, "holds": 360, "why": 300}
"""Names and widths in pixels: on a phone a table is scrolled, not squeezed."""


def job_row(job: Json) -> list[Any]:
    why = job["error"]["message"] if job["error"] else "planned only" if job["dry_run"] else ""
    made = job["fine_tuned_model"] or job["reward_model"] or ""
    return [job["id"], when(job["created_at"]), job["status"], job["pairs"], made, why]


def gate_rows(adapter: Json | None) -> list[list[str]]:
    criteria = (adapter["gate"].get("criteria") if adapter else None) or []
    return [[one["id"], one["name"], one["outcome"], one["reason"]] for one in criteria]


def voter_row(one: Json) -> list[Any]:
    kappa = "-" if one["kappa"] is None else f"{one['kappa']:.2f}"
    agreed, pots = f"{one['agreed']} of {one['measured']}", one["honeypots"]
    state = f"{one['state']} (outlier)" if one["is_outlier"] else one["state"]
    return [one["id"], state, one["votes"], agreed, kappa, f"{pots['missed']} of {pots['answered']}"]


def engine_row(one: Json) -> list[Any]:
    return [one["name"], one["state"], one["in_flight"], ", ".join(one["holds"]), one.get("why", "")]


def electorate(stats: Json) -> str:
    states = ", ".join(f"{count} {state}" for state, count in stats["voters"].items() if count)
    return f"<p>{html.escape(states or 'Nobody has voted yet')}.</p>"


def readiness(ready: Json) -> str:
    if not ready["trouble"]:
        return f"<p>The gateway is {html.escape(ready['status'])}.</p>"
    lines = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in ready["trouble"].items())
    return f"<p>The gateway is {html.escape(ready['status'])}:</p><ul>{lines}</ul>"
