"""Datasets: which pairs a job learns from, and their bytes.

A job takes every pair that no adapter has learnt yet and a few old ones, so that old lessons are kept; with nothing
new it takes everything. Which half a pair is on was decided by its conversation (feedback.pairs.split_of), for ever.
The same pairs give the same bytes: rows in order of id, one canonical JSON object a line.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from feedback.errors import TooFewPairs
from feedback.records import Message, Pair, canonical, digest
from trainer.files import write_whole

Drop = Literal["identical", "empty", "not text", "withdrawn"]


@dataclass(frozen=True)
class Selection:
    """Ids of pairs, of both halves, new ones and replayed ones."""

    new: list[str]
    replayed: list[str]

    @property
    def ids(self) -> list[str]:
        return sorted([*self.new, *self.replayed])


@dataclass(frozen=True)
class Dataset:
    train: list[Pair]
    held_out: list[Pair]
    dropped: dict[Drop, int] = field(default_factory=dict)

    @property
    def train_bytes(self) -> bytes:
        return _lines(self.train)

    @property
    def held_out_bytes(self) -> bytes:
        return _lines(self.held_out)

    @property
    def digest(self) -> str:
        return digest_of(self.train_bytes, self.held_out_bytes)

    def write(self, train: Path, held_out: Path) -> None:
        write_whole(train, self.train_bytes)
        write_whole(held_out, self.held_out_bytes)


def digest_of(train: bytes, held_out: bytes) -> str:
    """sha256 over both halves."""
    return digest(train.decode(), held_out.decode())


def choose(everything: Sequence[str], waiting: Sequence[str], replay: float, seed: int) -> Selection:
    """Replayed pairs are those first in an order that the seed shuffles, so one more vote changes one pair."""
    if not waiting:
        return Selection(new=[], replayed=list(everything))
    old = sorted(set(everything) - set(waiting), key=lambda pair_id: digest(str(seed), pair_id))
    return Selection(new=list(waiting), replayed=old[: math.ceil(replay * len(waiting))])


def build(ids: Sequence[str], standing: Iterable[Pair]) -> Dataset:
    """The rows of a frozen selection. A pair that was withdrawn since it was frozen is left out, and counted."""
    by_id = {pair.id: pair for pair in standing}
    train: list[Pair] = []
    held_out: list[Pair] = []
    dropped: dict[Drop, int] = {}
    for pair_id in sorted(ids):
        pair = by_id.get(pair_id)
        fault = "withdrawn" if pair is None else _fault(pair)
        if pair is None or fault is not None:
            assert fault is not None
            dropped[fault] = dropped.get(fault, 0) + 1
            continue
        (held_out if pair.split == "held_out" else train).append(pair)
    return Dataset(train, held_out, dropped)


def refuse_too_few(dataset: Dataset, min_pairs: int) -> None:
    """Raises TooFewPairs."""
    if len(dataset.train) < min_pairs:
        raise TooFewPairs(
            f"{len(dataset.train)} pairs to train on, of which at least {min_pairs} are needed; "
            "vote up and down on answers to the same prompt, or correct some"
        )
    if not dataset.held_out:
        raise TooFewPairs(
            f"none of the {len(dataset.train)} pairs is on a held-out prompt, so what is learnt could not be measured; "
            "vote on more prompts"
        )


def _fault(pair: Pair) -> Drop | None:
    chosen, rejected = _text(pair.chosen), _text(pair.rejected)
    if chosen is None or rejected is None or any(_text(message) is None for message in pair.prompt):
        return "not text"
    if not chosen.strip() or not rejected.strip():
        return "empty"
    if chosen.strip() == rejected.strip():
        return "identical"
    return None


def _lines(some: Iterable[Pair]) -> bytes:
    return b"".join(canonical(_row(pair)).encode() + b"\n" for pair in some)


def _row(pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt": [_plain(message) for message in pair.prompt],
        "chosen": [_plain(pair.chosen)],
        "rejected": [_plain(pair.rejected)],
    }


def _plain(message: Message) -> dict[str, str]:
    return {"role": str(message.get("role", "user")), "content": _text(message) or ""}


def _text(message: Message) -> str | None:
    """The message as text; None where it is not only that: an image, a call of a tool, which DPO cannot score here."""
    if message.get("tool_calls"):
        return None
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return None
