"""Caps: how much of a dataset may rest on one voter, on one key, and on one conversation of a voter.

Whoever brings most of the votes would otherwise decide what the model becomes, and a few rigged answers to one
question would be learnt by heart. A pair weighs one, shared equally among the voters it rests on; of those over a cap
the pairs go that fewest others stand behind. A share is one of the pairs that stay, so that it cannot be stretched by
bringing more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from feedback.records import Pair, conversation_digest, digest
from feedback.settings import LedgerSettings

Owners = Callable[[Pair], list[str]]

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


def within(pairs: Sequence[Pair], caps: Caps) -> set[str]:
    """Ids of the pairs that the caps leave, the same for the same pairs in whatever order they come."""
    kept = sorted(pairs, key=lambda pair: (-len(pair.voters), digest(pair.id)))
    if caps.conversation_pairs is not None:
        kept = _take(kept, _in_conversation, caps.conversation_pairs)
    kept = _within_share(kept, _voters, caps.voter_share, caps.voter_pairs)
    kept = _within_share(kept, _keys, caps.key_share, 0)
    return {pair.id for pair in kept}


def _within_share(pairs: list[Pair], owners: Owners, share: float, least: int) -> list[Pair]:
    loads: dict[str, float] = defaultdict(float)
    unowned = 0
    for pair in pairs:
        names = owners(pair)
        unowned += not names
        for name in names:
            loads[name] += 1 / len(names)
    if not loads:
        return pairs
    allowed = max(share, EQUAL_SHARES / len(loads))
    if allowed >= 1:
        return pairs
    # What stays if nobody has more than their share of it: the largest number that agrees with itself.
    total = float(len(pairs))
    while (left := unowned + sum(min(load, max(least, allowed * total)) for load in loads.values())) < total - 1e-6:
        total = left
    return _take(pairs, owners, max(least, allowed * total))


def _take(pairs: Iterable[Pair], owners: Owners, limit: float) -> list[Pair]:
    """In order, those that take none of their owners over the limit."""
    loads: dict[str, float] = defaultdict(float)
    kept: list[Pair] = []
    for pair in pairs:
        names = owners(pair)
        part = 1 / len(names) if names else 0.0
        if all(loads[name] + part <= limit + 1e-9 for name in names):
            kept.append(pair)
            for name in names:
                loads[name] += part
    return kept


def _voters(pair: Pair) -> list[str]:
    return pair.voters


def _keys(pair: Pair) -> list[str]:
    return pair.keys


def _in_conversation(pair: Pair) -> list[str]:
    conversation = conversation_digest(pair.prompt)
    return [f"{conversation} {voter}" for voter in pair.voters]
