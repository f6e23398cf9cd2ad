"""Datasets: which pairs a job learns from, and their bytes.

Which pairs a job takes, and how often, is sampling's (trainer/sampling.py). Which half a pair is on was decided by its
conversation (feedback.lessons.split_of), for ever. The same ids and pairs give the same bytes: rows in order of id, one
canonical JSON object a line, a pair drawn twice in two lines.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from feedback.errors import TooFewPairs
from feedback.records import Message, Pair, canonical, digest
from feedback.texts import Fault, fault_of, text_of
from trainer.files import write_whole
from trainer.sampling import Least

Drop = Fault | Literal["near identical", "duplicate", "withdrawn", "capped"]


@dataclass(frozen=True)
class Dataset:
    train: list[Pair]
    held_out: list[Pair]
    dropped: dict[Drop, int] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[int, int]:
        """How many different ones there are on each side."""
        return len({pair.id for pair in self.train}), len({pair.id for pair in self.held_out})

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


def fit(standing: Iterable[Pair], near_identical: float) -> tuple[list[Pair], dict[Drop, int]]:
    """The pairs that can teach, and how many cannot, by why.

    Two answers of nearly the same letters push each other's likelihood down together (Razin 2410.08847). A correction
    is exempt: that it changes little is its worth (Anchored Preference Optimization, 2408.06266). Of pairs about the
    same texts, up to case and white space, the newest stays, whichever way round it is.
    """
    kept: dict[str, Pair] = {}
    dropped: Counter[Drop] = Counter()
    for pair in sorted(standing, key=lambda pair: (pair.created, pair.id)):
        if fault := fault_of(pair):
            dropped[fault] += 1
        elif pair.source != "correction" and likeness(pair) > near_identical:
            dropped["near identical"] += 1
        else:
            answers = sorted((_spelt(pair.chosen), _spelt(pair.rejected)))
            said = canonical([pair.tools, *map(_spelt, pair.prompt), *answers])
            dropped["duplicate"] += said in kept
            kept[said] = pair
    return sorted(kept.values(), key=lambda pair: pair.id), dict(+dropped)


def likeness(pair: Pair) -> float:
    """1 less the edits from one answer to the other, as a share of the longer one's letters."""
    return Levenshtein.normalized_similarity(text_of(pair.chosen) or "", text_of(pair.rejected) or "")


def _spelt(message: Message) -> str:
    return f"{message.get('role')} {' '.join((text_of(message) or '').casefold().split())}"


def build(ids: Sequence[str], standing: Iterable[Pair]) -> Dataset:
    """The rows of a frozen selection. A pair that was withdrawn since it was frozen is left out, and counted once."""
    by_id = {pair.id: pair for pair in standing}
    train: list[Pair] = []
    held_out: list[Pair] = []
    dropped: Counter[Drop] = Counter()
    for pair_id, times in sorted(Counter(ids).items()):
        pair = by_id.get(pair_id)
        if pair is None:
            dropped["withdrawn"] += 1
        elif fault := fault_of(pair):
            dropped[fault] += 1
        else:
            (held_out if pair.split == "held_out" else train).extend([pair] * times)
    return Dataset(train, held_out, dict(dropped))


def refuse_too_few(dataset: Dataset, least: Least) -> None:
    """Raises TooFewPairs."""
    train, held_out = dataset.pairs
    if train < least.train or held_out < least.held_out:
        raise TooFewPairs(
            f"{train} pairs to train on and {held_out} held out are left after dropping what "
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
