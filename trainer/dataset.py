"""Datasets: which pairs a job learns from, and their bytes.

A job takes every pair that no adapter has learnt yet and a few old ones, so that old lessons are kept; with nothing
new it takes everything. Which half a pair is on was decided by its conversation (feedback.lessons.split_of), for ever.
The same pairs give the same bytes: rows in order of id, one canonical JSON object a line.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from feedback.errors import TooFewPairs
from feedback.records import Message, Pair, canonical, digest
from feedback.texts import Fault, fault_of, text_of
from trainer.files import write_whole

Drop = Fault | Literal["withdrawn"]


@dataclass(frozen=True)
class Selection:
    """Ids of pairs, of both halves, new ones and replayed ones."""

    new: list[str]
    replayed: list[str]

    @property
    def ids(self) -> list[str]:
        return sorted([*self.new, *self.replayed])


@dataclass(frozen=True)
class Least:
    """How many pairs a dataset must have on each side."""

    train: int
    held_out: int


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


def choose(standing: Sequence[Pair], waiting: Sequence[str], replay: float, seed: int, least: Least) -> Selection:
    """New pairs, old ones by the replay share, and as many more old ones as it takes to have the least.

    Old pairs come in an order that the seed shuffles, so that one more vote changes one pair of the selection.
    """
    unlearnt = set(waiting)
    new = [pair for pair in standing if pair.id in unlearnt]
    if not new:
        return Selection(new=[], replayed=[pair.id for pair in standing])
    taken = {pair.id for pair in new}
    old = [pair for pair in standing if pair.id not in taken and fault_of(pair) is None]
    old.sort(key=lambda pair: digest(str(seed), pair.id))
    replayed: list[str] = []
    for split, enough in (("train", least.train), ("held_out", least.held_out)):
        fresh = sum(pair.split == split for pair in new)
        count = max(math.ceil(replay * fresh), enough - fresh)
        replayed += [pair.id for pair in old if pair.split == split][:count]
    return Selection(new=[pair.id for pair in new], replayed=replayed)


def build(ids: Sequence[str], standing: Iterable[Pair]) -> Dataset:
    """The rows of a frozen selection. A pair that was withdrawn since it was frozen is left out, and counted."""
    by_id = {pair.id: pair for pair in standing}
    train: list[Pair] = []
    held_out: list[Pair] = []
    dropped: dict[Drop, int] = {}
    for pair_id in sorted(ids):
        pair = by_id.get(pair_id)
        fault = "withdrawn" if pair is None else fault_of(pair)
        if pair is None or fault is not None:
            assert fault is not None
            dropped[fault] = dropped.get(fault, 0) + 1
            continue
        (held_out if pair.split == "held_out" else train).append(pair)
    return Dataset(train, held_out, dropped)


def refuse_too_few(dataset: Dataset, least: Least) -> None:
    """Raises TooFewPairs."""
    if len(dataset.train) < least.train or len(dataset.held_out) < least.held_out:
        raise TooFewPairs(
            f"{len(dataset.train)} pairs to train on and {len(dataset.held_out)} held out are left after dropping what "
            f"cannot teach; at least {least.train} and {least.held_out} are needed, so vote on more prompts"
        )


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
    return {"role": str(message.get("role", "user")), "content": text_of(message) or ""}
