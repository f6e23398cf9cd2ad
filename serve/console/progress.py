"""A job as it goes: how far it is, what it said last, its curves, and what it would do where it only planned."""

import html
from typing import Any

from serve.tables import plan_rows

Json = dict[str, Any]

OPEN = ("validating_files", "queued", "running")
CURVES = {
    "loss": "Loss",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Reward accuracy",
    "tokens_per_second": "Tokens a second",
}
"""TRL's names of what a step tells, and the plot's."""

WORDS_SHOWN = 5


def steps_of(told: list[Json]) -> list[Json]:
    return [event["data"] for event in told if event["type"] == "metrics"]


def progress(job: Json | None, told: list[Json]) -> str:
    """The newest step in numbers, and the newest words."""
    if job is None:
        return "<p>No job yet. One starts by itself when enough votes have come, or by the button.</p>"
    steps = steps_of(told)
    parts = [job["status"]]
    bar = ""
    if steps and job["status"] in OPEN:
        last = steps[-1]
        parts += [f"step {last['step']} of {last['total_steps']}"]
        parts += [f"{name.lower()} {last[metric]:.4g}" for metric, name in CURVES.items() if _is_there(last, metric)]
        parts += [f"{last['seconds_left']:.0f} s left"] if _is_there(last, "seconds_left") else []
        bar = (
            f'<progress style="width: 100%" max="{last["total_steps"]}" value="{last["step"]}" '
            f'aria-label="Steps done"></progress>'
        )
    if job["error"]:
        parts.append(job["error"]["message"])
    words = [event["message"] for event in told if event["type"] != "metrics"][-WORDS_SHOWN:]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in reversed(words))
    said = f"<p><strong>{html.escape(' · '.join(parts))}</strong></p>{bar}"
    return said + (f"<ul>{lines}</ul>" if lines else "") + (plan(job["plan"]) if job["plan"] else "")


def plan(found: Json) -> str:
    """What a dry run found."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align: left">{html.escape(name)}</th><td>{html.escape(words)}</td></tr>'
        for name, words in plan_rows(found)
    )
    return f"<p>What it would do, as things were then; it trained nothing:</p><table>{rows}</table>"


def points(told: list[Json], metric: str) -> list[Json]:
    return [
        {"step": step["step"], CURVES[metric]: float(step[metric])}
        for step in steps_of(told)
        if _is_there(step, metric)
    ]


def _is_there(step: Json, metric: str) -> bool:
    return step.get(metric) is not None
