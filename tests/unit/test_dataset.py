"""Datasets: which pairs are chosen, what is dropped, and that equal choices give equal bytes."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from feedback.errors import TooFewPairs
from feedback.records import Completion, Pair, Split, digest
from trainer.dataset import Dataset, Lesson, Thumb, build, fit, refuse_too_few
from trainer.sampling import Least


def pair(number: int, *, split: Split = "train", chosen: object = "good", rejected: object = "bad") -> Pair:
    prompt = [{"role": "user", "content": f"question {number}"}]
    return Pair(
        id=f"pair-{number:04}",
        prompt_hash=digest(str(number)),
        prompt=prompt,
        chosen={"role": "assistant", "content": chosen},
        rejected={"role": "assistant", "content": rejected},
        source="thumbs",
        split=split,
        opinions=[],
        completions=[],
        adapters=["heed-base"],
        created=float(number),
    )


def many(train: int, held_out: int) -> list[Pair]:
    return [pair(i) for i in range(train)] + [pair(1000 + i, split="held_out") for i in range(held_out)]


def ids(some: Sequence[Lesson]) -> list[str]:
    return [pair.id for pair in some]


def test_the_same_pairs_give_the_same_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    some = many(20, 5)
    shuffled = random.Random(1).sample(some, len(some))

    one, other = build(ids(some), some), build(ids(shuffled), shuffled)
    one.write(tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")

    assert (one.train_bytes, one.held_out_bytes, one.digest) == (other.train_bytes, other.held_out_bytes, other.digest)
    assert (tmp_path / "train.jsonl").read_bytes() == one.train_bytes
    rows = [json.loads(line) for line in one.train_bytes.splitlines()]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert rows[0] == {
        "id": "pair-0000",
        "prompt": [{"role": "user", "content": "question 0"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_another_text_is_another_digest() -> None:
    assert build(["pair-0001"], [pair(1)]).digest != build(["pair-0001"], [pair(1, chosen="better")]).digest


def test_a_pair_drawn_twice_is_two_rows_and_one_that_is_withdrawn_is_counted_once() -> None:
    rows = build(["pair-0002", "pair-0001", "pair-0001", "gone", "gone"], many(3, 0))

    assert ids(rows.train) == ["pair-0001", "pair-0001", "pair-0002"]
    assert len(rows.train_bytes.splitlines()) == 3
    assert rows.dropped == {"withdrawn": 1}


LONG = "Cut two sticks, tie them into a cross, glue paper over them and add a tail of {} metres."


def test_answers_that_hardly_differ_are_dropped_unless_somebody_wrote_the_better_one() -> None:
    some = [
        pair(1, chosen=LONG.format("two"), rejected=LONG.format("ten")),
        pair(2, chosen=LONG.format("two"), rejected=LONG.format("ten")).model_copy(update={"source": "correction"}),
        pair(3, chosen=LONG.format("two"), rejected="Just watch a video."),
    ]

    kept, dropped = fit(some, near_identical=0.95)

    assert ids(kept) == ["pair-0002", "pair-0003"]
    assert dropped == {"near identical": 1}
    assert fit(some, near_identical=1)[1] == {}


def test_of_pairs_about_the_same_texts_the_newest_stays() -> None:
    first, turned, other = pair(1), pair(2, chosen="BAD ", rejected="good"), pair(3)
    turned.prompt = [{"role": "user", "content": "Question  1"}]

    kept, dropped = fit([turned, other, first], near_identical=0.95)

    assert ids(kept) == ["pair-0002", "pair-0003"]
    assert dropped == {"duplicate": 1}


def test_what_cannot_teach_is_told_by_its_fault_before_anything_is_drawn() -> None:
    some = [pair(1), pair(2, chosen="same ", rejected=" same"), pair(3, rejected="  ")]

    assert fit(some, near_identical=0.95)[1] == {"identical": 1, "empty": 1}


def test_what_cannot_teach_is_dropped_and_counted() -> None:
    some = [
        pair(1),
        pair(2, chosen="same ", rejected=" same"),
        pair(3, rejected="  "),
        pair(4, chosen=[{"type": "text", "text": "go"}, {"type": "text", "text": "od"}]),
        pair(5, chosen=[{"type": "image_url", "image_url": {"url": "x"}}]),
    ]

    rows = build([*ids(some), "pair-gone"], some)

    assert ids(rows.train) == ["pair-0001", "pair-0004"]
    assert rows.dropped == {"identical": 1, "empty": 1, "not text": 1, "withdrawn": 1}
    assert b'"content":"good"' in rows.train_bytes.splitlines()[1]


def test_a_call_of_a_tool_is_not_text() -> None:
    called = pair(1).model_copy(
        update={"chosen": {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function"}]}}
    )

    assert build(ids([called]), [called]).dropped == {"not text": 1}


@pytest.mark.parametrize(("train", "held_out"), [(19, 3), (20, 2)])
def test_too_few_on_either_side_are_refused_in_numbers(train: int, held_out: int) -> None:
    some = many(train, held_out)

    with pytest.raises(TooFewPairs, match=f"{train} pairs to train on and {held_out} held out"):
        refuse_too_few(build(ids(some), some), Least(20, 3))

    refuse_too_few(Dataset(many(20, 0), many(0, 3)), Least(20, 3))


def thumb(number: int, *, label: bool, split: Split = "train") -> Thumb:
    return Thumb(
        id=f"unpaired-{number:04}",
        prompt=[{"role": "user", "content": f"question {number}"}],
        completion={"role": "assistant", "content": f"answer {number}"},
        tools=None,
        label=label,
        split=split,
        opinions=[],
        completions=[f"chatcmpl-{number}"],
        voters=[],
        needed=[],
        keys=[],
        weight=1.0,
        created=float(number),
    )


def rows_of(content: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in content.splitlines()]


def test_each_method_makes_its_own_rows_of_a_pair() -> None:
    asked = [{"role": "user", "content": "question 1"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("good", "bad"))

    supervised = build(["pair-0001"], [pair(1)], "supervised")
    unpaired = build(["pair-0001"], [pair(1)], "unpaired")

    assert rows_of(supervised.train_bytes) == [{"id": "pair-0001", "prompt": asked, "completion": good}]
    assert rows_of(unpaired.train_bytes) == [
        {"id": "pair-0001", "prompt": asked, "completion": good, "label": True},
        {"id": "pair-0001", "prompt": asked, "completion": bad, "label": False},
    ]


def test_rated_answers_are_measured_against_each_other_as_pairs_of_two_prompts() -> None:
    some = [thumb(i, label=i % 3 > 0, split="held_out") for i in range(6)]

    made = build(ids(some), some, "unpaired")

    contrasts = rows_of(made.held_out_bytes)
    assert [row["id"] for row in contrasts] == ["unpaired-0001 unpaired-0000", "unpaired-0002 unpaired-0003"]
    assert contrasts[0]["rejected_prompt"] == [{"role": "user", "content": "question 0"}]
    assert made.size == (0, 2)


def test_an_answer_given_under_another_template_is_dropped_unless_that_is_allowed() -> None:
    some = [thumb(i, label=True) for i in range(3)]
    asked = {one.completions[0]: completion(one.completions[0], template=f"t{n % 2}") for n, one in enumerate(some)}

    strict = build(ids(some), some, "unpaired", asked, template="t0")
    unknown = build(ids(some), some, "unpaired", {}, template="t0")

    assert ids(strict.train) == ["unpaired-0000", "unpaired-0002"]
    assert strict.dropped == {"other template": 1}
    assert len(unknown.train) == len(build(ids(some), some, "unpaired", asked).train) == 3


def test_a_row_says_how_the_engine_was_asked_where_that_is_known() -> None:
    one = pair(1).model_copy(update={"completions": ["chatcmpl-1"], "tools": [{"type": "function"}]})
    asked = {"chatcmpl-1": completion("chatcmpl-1", prompt_token_ids=[1, 2], thinking=False)}

    (row,) = rows_of(build(["pair-0001"], [one], "dpo", asked).train_bytes)

    assert row["served_ids"] == [1, 2]
    assert row["template_options"] == {"enable_thinking": False}
    assert row["tools"] == [{"type": "function"}]


def completion(completion_id: str, thinking: bool | None = None, **more: Any) -> Completion:
    return Completion(
        id=completion_id,
        served_model="heed",
        adapter="heed-base",
        created=0.0,
        prompt_hash="",
        messages=[],
        choices=[],
        params={} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}},
        **more,
    )
