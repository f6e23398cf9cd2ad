"""The circle as one picture with its live numbers: completion, vote, pair, job, adapter, and back.

An SVG of which the sizes fit a phone as well as half of a desk's screen. Its label says the same in a sentence.
"""

import html
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CSS = """
.heed-circle svg { width: 100%; max-width: 34em; height: auto; display: block; margin: auto; }
.heed-circle rect { fill: var(--background-fill-secondary); stroke: var(--border-color-primary); stroke-width: 1.5; }
.heed-circle .heed-busy rect { stroke: var(--color-accent); stroke-width: 2.5; }
.heed-circle text { fill: var(--body-text-color); text-anchor: middle; font-size: 11px; }
.heed-circle .heed-title { font-size: 12px; opacity: 0.8; }
.heed-circle .heed-number { font-size: 14px; font-weight: 600; }
.heed-circle .heed-arrow { fill: none; stroke: var(--body-text-color); stroke-width: 1.5; opacity: 0.6; }
"""

WIDE, HIGH = 176, 64
LETTERS = 27
"""As many as fit into a box; the whole is in its tooltip."""

BOXES = {"completion": (112, 4), "vote": (220, 104), "pair": (220, 212), "job": (4, 212), "adapter": (4, 104)}
ARROWS = (
    "M288 40 Q320 60 320 98",  # completion to vote
    "M308 168 V206",  # vote to pair
    "M220 244 H186",  # pair to job
    "M92 212 V174",  # job to adapter
    "M80 104 Q80 60 106 42",  # adapter to completion
)


@dataclass(frozen=True)
class Station:
    number: str
    detail: str
    is_busy: bool = False


def circle(stats: Json, job: Json | None, step: Json | None, canary: Json | None, engines: list[Json]) -> str:
    """`job` is the one that runs or waits, if any, and `step` the newest it told of."""
    stations = _stations(stats, job, step, canary, engines)
    label = "The circle. " + " ".join(f"{name}: {one.number}, {one.detail}." for name, one in stations.items())
    arrows = "".join(f'<path class="heed-arrow" marker-end="url(#heed-head)" d="{path}"/>' for path in ARROWS)
    boxes = "".join(_box(name, one) for name, one in stations.items())
    return (
        f'<div class="heed-circle"><svg viewBox="0 0 400 280" role="img" aria-label="{html.escape(label)}">'
        '<defs><marker id="heed-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="currentColor"/></marker></defs>'
        f"{arrows}{boxes}</svg></div>"
    )


def triggers(stats: Json) -> str:
    """What may start the next job by itself, and how far it is."""
    found = stats["triggers"]
    if not found:
        return "<p>No worker has told yet when the next job starts by itself; is one running?</p>"
    names = {"pairs": "by new pairs", "schedule": "by the clock", "idle": "when nobody asks"}
    lines = "".join(
        f"<li><strong>{html.escape(names.get(one['name'], one['name']))}</strong>: "
        f"{'due now; ' if one['is_due'] else ''}{html.escape(one['why'])}</li>"
        for one in found
    )
    return f"<p>The next job starts by itself</p><ul>{lines}</ul>"


def _stations(
    stats: Json, job: Json | None, step: Json | None, canary: Json | None, engines: list[Json]
) -> dict[str, Station]:
    pairs, serving, voted, jobs = stats["pairs"], stats["serving"], stats["voted_share"], stats["jobs"]
    now = sum(one["in_flight"] for one in engines)
    share = "none" if voted["share"] is None else f"{voted['share']:.0%}"
    working = Station("none runs", f"{jobs.get('succeeded', 0)} succeeded, {jobs.get('failed', 0)} failed")
    if job:
        working = Station(job["status"], job["id"], is_busy=True)
    if job and step:
        left = "" if step.get("seconds_left") is None else f"{step['seconds_left']:.0f} s left"
        working = Station(f"step {step['step']} of {step['total_steps']}", left or job["id"], is_busy=True)
    tried = f"canary {canary['adapter']}, {canary['percent']:g} %" if canary else ""
    return {
        "completion": Station(f"{stats['completions']} answers", f"{now} being given now", is_busy=now > 0),
        "vote": Station(f"{stats['votes']} votes", f"on {share} of the answers"),
        "pair": Station(f"{pairs['waiting']} pairs wait", f"of {pairs['total']}; {pairs['held_out']} held out"),
        "job": working,
        "adapter": Station(
            serving["live"], tried or f"before it: {serving['previous'] or 'nothing'}", is_busy=canary is not None
        ),
    }


def _box(name: str, one: Station) -> str:
    left, top = BOXES[name]
    middle = left + WIDE / 2
    lines = (("title", name, 18), ("number", one.number, 37), ("detail", one.detail, 54))
    texts = "".join(
        f'<text class="heed-{kind}" x="{middle:g}" y="{top + down}">{html.escape(_cut(words))}</text>'
        for kind, words, down in lines
    )
    whole = html.escape(f"{name}: {one.number}, {one.detail}")
    busy = ' class="heed-busy"' if one.is_busy else ""
    box = f'<rect x="{left}" y="{top}" width="{WIDE}" height="{HIGH}" rx="10"/>'
    return f"<g{busy}><title>{whole}</title>{box}{texts}</g>"


def _cut(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1]}…"
