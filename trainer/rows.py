"""Rows: what a recipe reads from its file, rendered by the base's chat template and held to its rules.

A row has a prompt and answers to it, each a list of messages. A prompt must be rendered exactly as it was served: the
beginning of prompt and answer, and, where they were recorded, the very tokens the engine was given. A row that is not
is dropped and counted under its reason, never cut or trained on a shortened context, as TRL would with one warning. A
conversation that does not fit loses whole oldest turns; the system message and the last question stay.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, Value
from jinja2 import TemplateError

from trainer.progress import RecipeRefused

Row = dict[str, Any]
Messages = list[dict[str, Any]]
Unfit = Literal["template refuses", "prompt not a prefix", "rendered otherwise", "too long"]


class RowUnfit(Exception):
    def __init__(self, reason: Unfit) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Fitted:
    rows: list[Row]
    dropped: dict[Unfit, int]
    shortened: int
    """Rows that lost turns."""

    @property
    def tokens(self) -> int:
        """What one pass over the rows reads: the prompt once for each answer."""
        return sum(
            len(ids) + len(row["prompt_ids"]) for row in self.rows for name, ids in row.items() if is_answer(name)
        )

    def dataset(self) -> Dataset:
        # Named features: Dataset.from_list would take the columns of the first row and drop what others add.
        kinds = {name: Value("bool") if name == "label" else [Value("int32")] for name in self.rows[0]}
        return Dataset.from_list(self.rows, features=Features(kinds))


def is_answer(column: str) -> bool:
    return column.endswith("_ids") and column != "prompt_ids"


def read(path: Path, answers: Sequence[str], *, has_labels: bool = False) -> list[Row]:
    """The rows that can teach something, in the order of the file; of two equal answers nothing is to be learnt."""
    wanted = ["prompt", *answers, *(["label"] if has_labels else [])]
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        for row in rows:
            _expect(row, answers, has_labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeRefused(
            f"--train must be a JSONL file of rows with {', '.join(wanted[:-1])} and {wanted[-1]}. Reading {path} gave "
            f"{error!r}. `heed export` writes such a file."
        ) from error
    kept = [row for row in rows if len(answers) == 1 or row[answers[0]] != row[answers[1]]]
    if not kept:
        what = "pair of two different answers" if len(answers) > 1 else "answer"
        raise RecipeRefused(
            f"--train must hold at least one {what}. {path} holds {len(rows)} rows and none of them is such a thing. "
            "Collect votes first."
        )
    return kept


def _expect(row: Row, answers: Sequence[str], has_label: bool) -> None:
    """Raises KeyError, TypeError."""
    for name in ("prompt", *answers):
        for message in row[name]:
            message["role"], message["content"]
    if has_label and not isinstance(row["label"], bool):
        raise TypeError(f"label must be true or false, not {row['label']!r}")


def fit(rows: Sequence[Row], answers: Sequence[str], tokenizer: Any, max_length: int) -> Fitted:
    """Rows of token ids: prompt_ids, and ANSWER_ids for each answer; a label stays as it is."""
    kept: list[Row] = []
    dropped: Counter[Unfit] = Counter()
    shortened = 0
    for row in rows:
        try:
            encoded, turns = _fitted(row, answers, tokenizer, max_length)
        except RowUnfit as unfit:
            dropped[unfit.reason] += 1
            continue
        shortened += turns > 0
        kept.append(encoded | ({"label": bool(row["label"])} if "label" in row else {}))
    return Fitted(kept, dict(dropped), shortened)


def _fitted(row: Row, answers: Sequence[str], tokenizer: Any, max_length: int) -> tuple[Row, int]:
    """The encoded row, and how many turns it lost. Raises RowUnfit."""
    prompt, turns = row["prompt"], 0
    encoded = _encoded(row, prompt, answers, tokenizer)
    if row.get("served_ids") and encoded["prompt_ids"] != row["served_ids"]:
        raise RowUnfit("rendered otherwise")
    while _length(encoded) > max_length:
        shorter = without_oldest_turn(prompt)
        if shorter is None:
            raise RowUnfit("too long")
        prompt, turns = shorter, turns + 1
        encoded = _encoded(row, prompt, answers, tokenizer)
    return encoded, turns


def without_oldest_turn(prompt: Messages) -> Messages | None:
    """A turn is a question and what follows up to the next one. None when only the last question is left."""
    roles = [message["role"] for message in prompt]
    first = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    following = [i for i, role in enumerate(roles) if role == "user" and i > first]
    return [*prompt[:first], *prompt[following[0] :]] if following else None


def _encoded(row: Row, prompt: Messages, answers: Sequence[str], tokenizer: Any) -> Row:
    """Raises RowUnfit."""
    options = {"tools": row.get("tools") or None, **(row.get("template_options") or {}), "tokenize": False}
    try:
        opened = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)
        wholes = {name: tokenizer.apply_chat_template([*prompt, *row[name]], **options) for name in answers}
    except (TemplateError, ValueError) as error:
        raise RowUnfit("template refuses") from error
    if not all(whole.startswith(opened) for whole in wholes.values()):
        raise RowUnfit("prompt not a prefix")
    # Apart, as they came to be: the engine was given the prompt's tokens and none that straddle its end.
    encode = tokenizer.encode
    return {
        "prompt_ids": encode(opened, add_special_tokens=False),
        **{f"{name}_ids": encode(whole[len(opened) :], add_special_tokens=False) for name, whole in wholes.items()},
    }


def _length(encoded: Row) -> int:
    return len(encoded["prompt_ids"]) + max(len(ids) for name, ids in encoded.items() if is_answer(name))
