"""Shares with their intervals, drawn as lines of HTML: a name, the numbers in words, and the interval on its axis.

Each line can be read without its picture; what comes from the API is escaped here.
"""

import html
from dataclasses import dataclass
from typing import Any

from serve.tables import share

Json = dict[str, Any]

CSS = """
.heed-drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22em), 1fr)); gap: 0 2.5em; }
.heed-intervals { max-width: 40em; margin: 0 0 1em; }
.heed-interval { margin: 0.5em 0; }
.heed-interval .heed-name { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1em; }
.heed-axis { position: relative; height: 12px; margin-top: 2px; background: var(--border-color-primary);
  border-radius: 3px; overflow: hidden; }
.heed-axis span { position: absolute; top: 0; height: 100%; }
.heed-axis .heed-span { background: var(--color-accent); opacity: 0.45; min-width: 2px; }
.heed-axis .heed-dot { width: 4px; margin-left: -2px; background: var(--color-accent); }
.heed-axis .heed-mark { border-left: 2px dashed var(--body-text-color); }
.heed-ends { display: flex; justify-content: space-between; font-size: 0.8em; opacity: 0.85; }
"""


@dataclass(frozen=True)
class Interval:
    name: str
    words: str
    low: float | None
    high: float | None
    at: float | None = None


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    ends: tuple[str, str]
    marks: tuple[float, ...] = ()
    """Where the question turns: a coin, a limit."""

    def part(self, value: float) -> float:
        """In percent of its length."""
        return 100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


SHARES = Axis(0, 1, ("0 %", "100 %"))
COIN = Axis(0, 1, ("0 %", "100 %; the dashed line is a coin"), (0.5,))


def drawn(title: str, intervals: list[Interval], axis: Axis, note: str = "") -> str:
    """A list under its heading; nothing where there is nothing to draw."""
    if not intervals:
        return ""
    lines = "".join(f'<li class="heed-interval">{_line(one, axis)}</li>' for one in intervals)
    ends = "".join(f"<span>{html.escape(end)}</span>" for end in axis.ends)
    told = f"<p>{html.escape(note)}</p>" if note else ""
    return (
        f'<section class="heed-intervals"><h3>{html.escape(title)}</h3>{told}'
        f'<ul style="list-style: none; padding: 0">{lines}</ul><div class="heed-ends" aria-hidden="true">{ends}</div>'
        "</section>"
    )


def of_share(name: str, found: Json) -> Interval:
    """As the API tells a share: `share`, `low`, `high`, `of`."""
    return Interval(name, share(found), found["low"], found["high"], found["share"])


def _line(one: Interval, axis: Axis) -> str:
    name = f"<span>{html.escape(one.name)}</span><span>{html.escape(one.words)}</span>"
    return f'<div class="heed-name">{name}</div><div class="heed-axis" aria-hidden="true">{_bar(one, axis)}</div>'


def _bar(one: Interval, axis: Axis) -> str:
    marks = "".join(f'<span class="heed-mark" style="left: {axis.part(mark):.1f}%"></span>' for mark in axis.marks)
    if one.low is None:
        return marks
    start, end = axis.part(one.low), axis.part(axis.high if one.high is None else one.high)
    bar = f'<span class="heed-span" style="left: {start:.1f}%; width: {end - start:.1f}%"></span>'
    dot = "" if one.at is None else f'<span class="heed-dot" style="left: {axis.part(one.at):.1f}%"></span>'
    return bar + dot + marks
