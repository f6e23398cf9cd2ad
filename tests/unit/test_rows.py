"""Rows: rendered as they were served, or dropped with a reason; too long ones lose whole turns."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.recipes import preferring_steps, row, thumbs, write_rows
from trainer.progress import RecipeRefused
from trainer.rows import fit, read, without_oldest_turn

PAIR = ("chosen", "rejected")
LONG = 512

# Renders what it was asked as a lone prompt and forgets the thinking mark once an answer follows, as Qwen 3's does.
FORGETFUL = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
STRICT = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture
def tokenizer(pocket: Path) -> Any:
    return AutoTokenizer.from_pretrained(pocket)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_row_becomes_the_tokens_that_trl_would_make_of_it(pocket: Path, tokenizer: Any, tmp_path: Path) -> None:
    pair = preferring_steps(1, 0)[0]
    theirs = DPOTrainer._prepare_dataset(
        object.__new__(DPOTrainer),
        Dataset.from_list([{key: pair[key] for key in ("prompt", *PAIR)}]),
        tokenizer,
        DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True),
        "train",
    )

    (ours,) = fit([pair], PAIR, tokenizer, LONG).rows

    assert ours == {name: theirs[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def test_a_prompt_that_is_rendered_otherwise_before_an_answer_is_dropped_with_that_reason(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL

    fitted = fit(preferring_steps(3, 0), PAIR, tokenizer, LONG)

    assert fitted.rows == []
    assert fitted.dropped == {"prompt not a prefix": 3}


def test_a_template_that_refuses_a_conversation_is_a_reason_too(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT

    assert fit(preferring_steps(2, 0), PAIR, tokenizer, LONG).dropped == {"template refuses": 2}


def test_a_prompt_of_other_tokens_than_the_engine_was_given_is_dropped(tokenizer: Any) -> None:
    pair = preferring_steps(1, 0)[0]
    (encoded,) = fit([pair], PAIR, tokenizer, LONG).rows
    as_served = pair | {"served_ids": encoded["prompt_ids"]}
    otherwise = pair | {"served_ids": [*encoded["prompt_ids"], 5]}

    fitted = fit([as_served, otherwise], PAIR, tokenizer, LONG)

    assert fitted.rows == [encoded]
    assert fitted.dropped == {"rendered otherwise": 1}


def test_tools_and_template_options_of_a_row_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if tools %}tools {% endif %}{% if thinking %}thinking {% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    pair = preferring_steps(1, 0)[0]
    more = {"tools": [{"type": "function"}], "template_options": {"thinking": True}}

    plain, full = fit([pair, pair | more], PAIR, tokenizer, LONG).rows

    assert len(full["prompt_ids"]) > len(plain["prompt_ids"])


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_and_is_counted(tokenizer: Any) -> None:
    pair = preferring_steps(1, 0)[0]
    asked = pair["prompt"][-1]
    system = said("system", "Answer briefly.")
    earlier = [said("user", "How do I build a kite?"), said("assistant", "Just watch a video about kites.")]
    short = fit([pair | {"prompt": [system, asked]}], PAIR, tokenizer, LONG).rows
    needed = len(short[0]["prompt_ids"]) + max(len(short[0][f"{side}_ids"]) for side in PAIR)

    fitted = fit([pair | {"prompt": [system, *earlier * 3, asked]}], PAIR, tokenizer, needed)

    assert fitted.rows == short
    assert (fitted.shortened, fitted.dropped) == (1, {})
    assert fit([pair | {"prompt": [system, asked]}], PAIR, tokenizer, needed - 1).dropped == {"too long": 1}


def test_the_system_message_and_the_last_question_are_never_dropped() -> None:
    system, one, two = said("system", "s"), said("user", "1"), said("user", "2")
    answer = said("assistant", "a")

    assert without_oldest_turn([system, one, answer, two]) == [system, two]
    assert without_oldest_turn([answer, one]) == [one]
    assert without_oldest_turn([system, two]) is None
    assert without_oldest_turn([two]) is None


def test_a_column_that_the_first_row_lacks_does_not_change_the_others(tokenizer: Any) -> None:
    some = preferring_steps(2, 0)
    some[1]["prompt"].insert(0, {"role": "system", "content": "Answer briefly.", "name": "x"})

    made = fit(some, PAIR, tokenizer, LONG).dataset()

    assert tokenizer.decode(made[1]["prompt_ids"]).startswith("<|system|>Answer briefly.")
    assert not tokenizer.decode(made[0]["prompt_ids"]).startswith("<|system|>")


def test_labels_stay_what_they_are(tokenizer: Any) -> None:
    made = fit(thumbs(preferring_steps(1, 0)), ("completion",), tokenizer, LONG).dataset()

    assert made["label"] == [True, False]


def test_a_file_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    same = [row(0, "Just watch.", "Just watch.")]

    assert len(read(write_rows(tmp_path / "some.jsonl", same + preferring_steps(2, 0)), PAIR)) == 2
    for name, given in (("same.jsonl", same), ("empty.jsonl", [])):
        with pytest.raises(RecipeRefused, match="Collect votes first"):
            read(write_rows(tmp_path / name, given), PAIR)


@pytest.mark.parametrize(
    "given", [{"prompt": []}, {"prompt": [{"role": "user"}]}, {"prompt": [], "completion": [], "label": "up"}]
)
def test_a_row_of_another_shape_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(given))

    with pytest.raises(RecipeRefused, match="rows with prompt, completion and label"):
        read(tmp_path / "rows.jsonl", ("completion",), has_labels=True)
