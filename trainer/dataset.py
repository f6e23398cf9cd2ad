"""Datasets: which lessons a job may learn from, and the bytes of its rows.

A lesson is a pair or a rated answer that is in none. Which of them a job takes, and how often, is sampling's
(trainer/sampling.py). Which half one is on was decided by its conversation (feedback.lessons.split_of), for ever. The
same ids, lessons and method give the same bytes: rows in order of id, one canonical JSON object a line.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from feedback.errors import TooFewPairs
from feedback.records import Completion, Message, Method, Pair, Source, Split, canonical, digest
from feedback.texts import Fault, fault_of, text_of
from trainer.files import write_whole
from trainer.sampling import Least

Drop = Fault | Literal["near identical", "duplicate", "other template", "withdrawn", "capped"]


@dataclass(frozen=True)
class Thumb:
    """A rated answer that is in no pair."""

    id: str
    prompt: list[Message]
    completion: Message
    tools: list[Any] | None
    label: bool
    split: Split
    opinions: list[str]
    completions: list[str]
    voters: list[str]
    needed: list[str]
    keys: list[str]
    weight: float
    created: float
    source: Source = "thumbs"


Lesson = Pair | Thumb


@dataclass(frozen=True)
class Served:
    """How the engine was asked: by which chat template, with what options, and, where recorded, with which tokens."""

    template: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Dataset:
    """A lesson drawn twice is there twice."""

    train: Sequence[Lesson]
    held_out: Sequence[Lesson]
    dropped: dict[Drop, int] = field(default_factory=dict)
    method: Method = "dpo"
    served: Mapping[str, Served] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """How many different lessons there are to train on, and rows to measure by."""
        return len({one.id for one in self.train}), len(self.held_out_bytes.splitlines())

    @property
    def train_bytes(self) -> bytes:
        return _lines(row for lesson in self.train for row in self._rows(lesson))

    @property
    def held_out_bytes(self) -> bytes:
        """Pairs, whatever the method: rated answers are held against each other, liked and disliked in order of id."""
        liked = [one for one in self.held_out if isinstance(one, Thumb) and one.label]
        disliked = [one for one in self.held_out if isinstance(one, Thumb) and not one.label]
        contrasts = (self._contrast(up, down) for up, down in zip(liked, disliked, strict=False))
        return _lines([*(self._pair(one) for one in self.held_out if isinstance(one, Pair)), *contrasts])

    @property
    def digest(self) -> str:
        return digest_of(self.train_bytes, self.held_out_bytes)

    def write(self, train: Path, held_out: Path) -> None:
        write_whole(train, self.train_bytes)
        write_whole(held_out, self.held_out_bytes)

    def _rows(self, lesson: Lesson) -> list[dict[str, Any]]:
        if isinstance(lesson, Thumb):
            return [self._rated(lesson, lesson.completion, lesson.label)]
        match self.method:
            case "dpo" | "reward":
                return [self._pair(lesson)]
            case "supervised":
                return [self._asked(lesson) | {"completion": [_plain(lesson.chosen)]}]
            case "unpaired":
                return [self._rated(lesson, lesson.chosen, True), self._rated(lesson, lesson.rejected, False)]

    def _pair(self, pair: Pair) -> dict[str, Any]:
        return self._asked(pair) | {"chosen": [_plain(pair.chosen)], "rejected": [_plain(pair.rejected)]}

    def _rated(self, lesson: Lesson, completion: Message, label: bool) -> dict[str, Any]:
        return self._asked(lesson) | {"completion": [_plain(completion)], "label": label}

    def _contrast(self, liked: Thumb, disliked: Thumb) -> dict[str, Any]:
        return {
            **self._asked(liked),
            "id": f"{liked.id} {disliked.id}",
            "chosen": [_plain(liked.completion)],
            "rejected": [_plain(disliked.completion)],
            "rejected_prompt": [_plain(message) for message in disliked.prompt],
        }

    def _asked(self, lesson: Lesson) -> dict[str, Any]:
        served = self.served.get(lesson.id, Served())
        asked: dict[str, Any] = {"id": lesson.id, "prompt": [_plain(message) for message in lesson.prompt]}
        more = {"tools": lesson.tools, "template_options": dict(served.options), "served_ids": served.prompt_ids}
        return asked | {name: value for name, value in more.items() if value}


def digest_of(train: bytes, held_out: bytes) -> str:
    """sha256 over both halves."""
    return digest(train.decode(), held_out.decode())


def fit(standing: Iterable[Lesson], near_identical: float) -> tuple[list[Lesson], dict[Drop, int]]:
    """The lessons that can teach, and how many cannot, by why.

    Two answers of nearly the same letters push each other's likelihood down together (Razin 2410.08847). A correction
    is exempt: that it changes little is its worth (Anchored Preference Optimization, 2408.06266). Of lessons about the
    same texts, up to case and white space, the newest stays, whichever way round it is.
    """
    kept: dict[str, Lesson] = {}
    dropped: Counter[Drop] = Counter()
    for lesson in sorted(standing, key=lambda one: (one.created, one.id)):
        if fault := _fault(lesson):
            dropped[fault] += 1
        elif isinstance(lesson, Pair) and lesson.source != "correction" and likeness(lesson) > near_identical:
            dropped["near identical"] += 1
        else:
            said = canonical([lesson.tools, *map(_spelt, lesson.prompt), *sorted(map(_spelt, _answers(lesson)))])
            dropped["duplicate"] += said in kept
            kept[said] = lesson
    return sorted(kept.values(), key=lambda one: one.id), dict(+dropped)


def likeness(pair: Pair) -> float:
    """1 less the edits from one answer to the other, as a share of the longer one's letters."""
    return Levenshtein.normalized_similarity(text_of(pair.chosen) or "", text_of(pair.rejected) or "")


def served(lesson: Lesson, asked: Mapping[str, Completion]) -> Served:
    """As the first of its completions says; they are of one prompt."""
    first = asked.get(lesson.completions[0]) if lesson.completions else None
    if first is None:
        return Served()
    return Served(first.template, first.params.get("chat_template_kwargs") or {}, first.prompt_token_ids)


def build(
    ids: Sequence[str],
    standing: Iterable[Lesson],
    method: Method = "dpo",
    asked: Mapping[str, Completion] | None = None,
    template: str | None = None,
) -> Dataset:
    """The rows of a frozen selection. One that was withdrawn since it was frozen is left out, and counted once.

    With a `template` (its sha256), so are answers that were given under another one: they would be trained on in words
    that the model never sees.
    """
    by_id = {lesson.id: lesson for lesson in standing}
    train: list[Lesson] = []
    held_out: list[Lesson] = []
    served_as: dict[str, Served] = {}
    dropped: Counter[Drop] = Counter()
    for lesson_id, times in sorted(Counter(ids).items()):
        lesson = by_id.get(lesson_id)
        if lesson is None:
            dropped["withdrawn"] += 1
            continue
        how = served(lesson, asked or {})
        if fault := _fault(lesson):
            dropped[fault] += 1
        elif template and how.template and how.template != template:
            dropped["other template"] += 1
        else:
            served_as[lesson_id] = how
            (held_out if lesson.split == "held_out" else train).extend([lesson] * times)
    return Dataset(train, held_out, dict(dropped), method, served_as)


def refuse_too_few(dataset: Dataset, least: Least) -> None:
    """Raises TooFewPairs."""
    train, held_out = dataset.size
    if train < least.train or held_out < least.held_out:
        what = {"unpaired": "pairs and thumbs", "supervised": "corrections"}.get(dataset.method, "pairs")
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items()))
        raise TooFewPairs(
            f"{train} {what} to train on and {held_out} held out are left after dropping what cannot teach "
            f"({reasons or 'nothing'}); at least {least.train} and {least.held_out} are needed, so vote on more prompts"
        )


def _fault(lesson: Lesson) -> Fault | None:
    if isinstance(lesson, Pair):
        return fault_of(lesson)
    said = text_of(lesson.completion)
    if said is None or any(text_of(message) is None for message in lesson.prompt):
        return "not text"
    return None if said.strip() else "empty"


def _answers(lesson: Lesson) -> list[Message]:
    return [lesson.completion] if isinstance(lesson, Thumb) else [lesson.chosen, lesson.rejected]


def _spelt(message: Message) -> str:
    return f"{message.get('role')} {' '.join((text_of(message) or '').casefold().split())}"


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(canonical(row).encode() + b"\n" for row in rows)


def _plain(message: Message) -> dict[str, str]:
    return {"role": str(message.get("role", "user")), "content": text_of(message) or ""}
