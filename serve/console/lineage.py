"""Adapters as a tree: which one grew from which, how each fares, and why it is where it is.

The line that leads to what is live runs straight, newest first; what branched off it stands below its parent. Names
and reasons come from the API and are escaped here.
"""

import html
from typing import Any

from serve.tables import verdict_of

Json = dict[str, Any]

CSS = """
.heed-tree ul { list-style: none; margin: 0; padding: 0 0 0 0.6em; border-left: 2px solid var(--border-color-primary); }
.heed-tree > ul { max-height: 60vh; overflow: auto; }
.heed-tree li { padding: 0.35em 0 0.35em 0.6em; }
.heed-tree li > ul { margin-left: 1em; }
.heed-tree .heed-facts { font-size: 0.9em; }
.heed-state { border: 1px solid currentColor; border-radius: 1em; padding: 0 0.6em; font-size: 0.85em; }
.heed-live { background: #c2410c; color: white; border-color: transparent; }
"""

SCORES = {"accuracy": "held-out accuracy", "margin": "reward margin", "divergence": "nats from the base"}


def tree(adapters: list[Json], serving: Json, versions: list[Json], base: str) -> str:
    """`versions` are what the votes say of each (GET /v1/stats)."""
    known = {one["id"]: one for one in adapters}
    children: dict[str, list[Json]] = {}
    for one in sorted(adapters, key=lambda one: one["version"]):
        parent = one["parent"] if one["parent"] in known else base
        children.setdefault(parent, []).append(one)
    votes = {one["id"]: one for one in versions}
    drawing = _Drawing(children, _line_of(known, serving["live"]), serving, votes)
    grown = drawing.line(base, drawing.described(base, "the model without an adapter", None))
    return f'<div class="heed-tree"><ul tabindex="0" aria-label="Adapters, newest first">{grown}</ul></div>'


def verdict(adapter: Json) -> str:
    """What its gate found, in words, and its history."""
    changes = "".join(
        f"<li>{html.escape(change['state'])}: {html.escape(change['reason'])}</li>" for change in adapter["history"]
    )
    return f"<p>{html.escape(verdict_of(adapter['gate']))}</p><p>What became of it:</p><ol>{changes}</ol>"


def _line_of(known: dict[str, Json], live: str) -> set[str]:
    """What is live and what it grew from."""
    line: set[str] = set()
    while live in known and live not in line:
        line.add(live)
        live = known[live]["parent"]
    return line


class _Drawing:
    def __init__(
        self, children: dict[str, list[Json]], straight: set[str], serving: Json, votes: dict[str, Json]
    ) -> None:
        self._children, self._straight, self._serving, self._votes = children, straight, serving, votes

    def line(self, name: str, words: str) -> str:
        """This one below its heir and all that follows, with its other children under it."""
        above: list[str] = []
        while True:
            children = self._children.get(name, [])
            heir = self._heir(children)
            aside = "".join(self.line(one["id"], self._of(one)) for one in reversed(children) if one is not heir)
            above.append(f"<li>{words}{f'<ul>{aside}</ul>' if aside else ''}</li>")
            if heir is None:
                return "".join(reversed(above))
            name, words = heir["id"], self._of(heir)

    def _heir(self, children: list[Json]) -> Json | None:
        """Who leads to what is live; else the newest that was not refused."""
        fit = [one for one in children if one["state"] != "rejected"]
        on_line = [one for one in fit if one["id"] in self._straight]
        return next(iter(on_line or fit[-1:]), None)

    def _of(self, one: Json) -> str:
        facts = [f"from {one['parent']}" if one["parent"] else "from the base", f"{one['pairs']} pairs"]
        facts += [f"{words} {one['metrics'][name]:.2f}" for name, words in SCORES.items() if name in one["metrics"]]
        gate = one["gate"]
        if gate:
            facts.append(f"gate: {gate.get('decision') or ('pass' if gate.get('passed') else 'fail')}")
        why = one["history"][-1]["reason"] if one["history"] else ""
        return self.described(one["id"], " · ".join(facts), one["state"], why)

    def described(self, name: str, facts: str, state: str | None, why: str = "") -> str:
        is_live = name == self._serving["live"]
        shown = "live" if is_live else state
        found = self._votes.get(name)
        if found and found["up_rate"]["of"]:
            facts += f" · voted up {found['up_rate']['share']:.0%} of {found['up_rate']['of']}"
        badge = (
            f' <span class="heed-state{" heed-live" if is_live else ""}">{html.escape(shown)}</span>' if shown else ""
        )
        reason = f"<br><em>{html.escape(why)}</em>" if why else ""
        return f'<code>{html.escape(name)}</code>{badge}<div class="heed-facts">{html.escape(facts)}{reason}</div>'
