"""Caps: how much of a dataset may rest on one voter, on one key, and on one conversation of a voter.

Whoever brings most of the votes would otherwise decide what the model becomes, and a few rigged answers to one
question would be learnt by heart. A pair weighs one, shared equally among those without whom it would not stand, or
among all its voters where no single one is needed. Over a cap, the pairs go first that fewest others stand behind. A
share is one of the pairs that stay, so that it cannot be stretched by bringing more. What an operator imported rests on
nobody here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from feedback.records import IMPORTED, Message, conversation_digest, digest
from feedback.settings import LedgerSettings

Borne = tuple[list[str], list[str]]
"""Names of those without whom a pair would not stand, and of all whom it rests on."""


class Lesson(Protocol):
    """A pair, or a rated answer that is in none."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> list[Message]: ...
    @property
    def voters(self) -> list[str]: ...
    @property
    def needed(self) -> list[str]: ...
    @property
    def keys(self) -> list[str]: ...


Bearers = Callable[[Lesson], Borne]

EQUAL_SHARES = 3
"""Among few voters one may bring three times an equal share: so up to three are never capped, and a team that has
one eager member still trains."""


@dataclass(frozen=True)
class Caps:
    """See LedgerSettings for the meanings and defaults."""

    voter_share: float = 1.0
    voter_pairs: int = 0
    key_share: float = 1.0
    conversation_pairs: int | None = None


def of(settings: LedgerSettings) -> Caps:
    return Caps(settings.voter_share, settings.voter_pairs, settings.key_share, settings.voter_pairs_per_conversation)


def within(pairs: Sequence[Lesson], caps: Caps) -> set[str]:
    """Ids of the pairs that the caps leave, the same for the same pairs in whatever order they come."""
    kept = sorted(pairs, key=lambda pair: (bool(pair.needed), -len(pair.voters), digest(pair.id)))
    if caps.conversation_pairs is not None:
        kept = _take(kept, _conversations, caps.conversation_pairs)
    kept = _within_share(kept, _voters, caps.voter_share, caps.voter_pairs)
    kept = _within_share(kept, _keys, caps.key_share, 0)
    return {pair.id for pair in kept}


def _within_share(pairs: Sequence[Lesson], bearers: Bearers, share: float, least: int) -> list[Lesson]:
    loads: dict[str, float] = defaultdict(float)
    unborne = 0
    for pair in pairs:
        needed, others = bearers(pair)
        names = needed or others
        unborne += not names
        for name in names:
            loads[name] += 1 / len(names)
    if not loads:
        return list(pairs)
    allowed = max(share, EQUAL_SHARES / len(loads))
    if allowed >= 1:
        return list(pairs)
    # What stays if nobody has more than their share of it: the largest number that agrees with itself.
    total = float(len(pairs))
    while (left := unborne + sum(min(load, max(least, allowed * total)) for load in loads.values())) < total - 1e-6:
        total = left
    return _take(pairs, bearers, max(least, allowed * total))


def _take(pairs: Iterable[Lesson], bearers: Bearers, limit: float) -> list[Lesson]:
    """In order, those that load nobody over the limit.

    A pair that would stand without any one of its voters is carried by those who have room: else whoever joins in with
    everybody would take everybody's pairs out.
    """
    loads: dict[str, float] = defaultdict(float)
    kept: list[Lesson] = []
    for pair in pairs:
        needed, others = bearers(pair)
        names = needed or [name for name in others if loads[name] + 1 <= limit + 1e-9]
        part = 1 / len(names) if names else 0.0
        if (others and not names) or any(loads[name] + part > limit + 1e-9 for name in names):
            continue
        kept.append(pair)
        for name in names:
            loads[name] += part
    return kept


def _voters(pair: Lesson) -> Borne:
    return _people(pair.needed), _people(pair.voters)


def _keys(pair: Lesson) -> Borne:
    return [], pair.keys


def _conversations(pair: Lesson) -> Borne:
    conversation = conversation_digest(pair.prompt)
    needed, others = _voters(pair)
    return [f"{conversation} {name}" for name in needed], [f"{conversation} {name}" for name in others]


def _people(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(IMPORTED)]
