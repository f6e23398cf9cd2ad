"""The book: what the service told its voters, and whether it is true.

A voter notes each acknowledged reply. Of a request that was given up without a reply they know nothing: it may have
acted or not, and both are right. In the end everything that stands is compared with the book.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["vote", "preference", "comparison_vote"]

Said = tuple[tuple[str, Any], ...]
"""What an opinion says, in fields that the ledger does not add itself; empty where none stands."""

NOTHING: Said = ()


@dataclass(frozen=True)
class About:
    """What one voter has one opinion of; by content and not by the service's ids, so that it can be told twice."""

    kind: Kind
    answers: tuple[str, ...]
    voter: str


@dataclass
class Audit:
    """The ledger compared with the book."""

    sent: int
    found: int
    duplicates: int
    abandoned: int
    abandoned_acted: int
    answers_sent: int
    answers_found: int
    problems: list[str]


@dataclass
class Book:
    acknowledged: dict[About, Said] = field(default_factory=dict)
    ids: dict[About, str] = field(default_factory=dict)
    abandoned: dict[About, tuple[Said, Said]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    acts: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    retried_acted: int = 0
    """Of the acknowledged: sent more than once; and had acted before, though no answer came."""
    complaints: list[str] = field(default_factory=list)

    def note(self, about: About, said: Said, act: str) -> None:
        self.acknowledged[about] = said
        self.acts[act] += 1

    def abandon(self, about: About, said: Said) -> None:
        """Before or after, nobody knows; whoever abandons a request never acts on the same again."""
        self.abandoned[about] = (self.acknowledged.pop(about, NOTHING), said)

    def audit(self, standing: Iterable[Json], answers: dict[str, str]) -> Audit:
        """`standing` are opinions and `answers` the texts of completions, both as the public API lists them."""
        problems = list(self.complaints)
        stands: dict[About, Said] = {}
        duplicates = 0
        for record in standing:
            about, said = seen(record)
            if about in stands:
                duplicates += 1
                problems.append(f"{record['id']} is a second record of one opinion: {about}")
            if about not in self.acknowledged and about not in self.abandoned:
                problems.append(f"{record['id']} stands and nobody gave it: {about}")
            stands[about] = said
        found = 0
        for about, said in self.acknowledged.items():
            found += stands.get(about, NOTHING) == said
            if stands.get(about, NOTHING) != said:
                problems.append(f"{about} was acknowledged as {said} and stands as {stands.get(about, NOTHING)}")
        acted = 0
        for about, (before, after) in self.abandoned.items():
            acted += stands.get(about, NOTHING) == after != before
            if stands.get(about, NOTHING) not in (before, after):
                problems.append(f"{about} stands as {stands.get(about)}, neither {before} nor {after}")
        kept = sum(answers.get(completion_id) == text for completion_id, text in self.answers.items())
        if kept < len(self.answers):
            problems.append(f"{len(self.answers) - kept} answers that were given cannot be read any more")
        return Audit(
            len(self.acknowledged), found, duplicates, len(self.abandoned), acted, len(self.answers), kept, problems
        )


def seen(record: Json) -> tuple[About, Said]:
    """An opinion as a reply or a list shows it."""
    kind, voter = record["object"], record["voter"]
    if kind == "vote":
        fields = {name: record.get(name) for name in ("rating", "reasons", "comment", "correction")}
        choice = [str(record["choice"])] if record.get("choice") else []  # the crowd votes on first choices only
        return About("vote", (record["completion_id"], *choice), voter), said(**fields)
    if kind == "preference":
        chosen, rejected = record["chosen"]["completion_id"], record["rejected"]["completion_id"]
        return About("preference", tuple(sorted((chosen, rejected))), voter), said(chosen=chosen)
    return About("comparison_vote", (record["comparison_id"],), voter), said(preferred=record["preferred"])


def said(**fields: Any) -> Said:
    """Those that say something, in order."""
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in fields.items() if value)
