"""Datasets: which pairs are chosen, what is dropped, and that equal choices give equal bytes."""

import json
import random
from pathlib import Path

import pytest

from feedback.errors import TooFewPairs
from feedback.records import Pair, Split, digest
from trainer.dataset import Dataset, build, fit, refuse_too_few
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


def ids(some: list[Pair]) -> list[str]:
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
