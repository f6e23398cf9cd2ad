"""Datasets: which pairs are chosen, what is dropped, and that equal choices give equal bytes."""

import json
import random
from pathlib import Path

import pytest

from feedback.caps import Caps
from feedback.errors import TooFewPairs
from feedback.records import Pair, Split, digest
from trainer.dataset import Dataset, Least, build, choose, refuse_too_few

NONE = Least(0, 0)


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


def test_a_job_takes_what_is_new_and_replays_a_share_of_the_old_on_both_sides() -> None:
    everything = many(100, 20)
    new = ids(everything[:40]) + ids(everything[100:110])

    chosen = choose(everything, new, replay=0.1, seed=7, least=NONE)

    assert chosen.new == new
    replayed = [p for p in everything if p.id in chosen.replayed]
    assert (sum(p.split == "train" for p in replayed), sum(p.split == "held_out" for p in replayed)) == (4, 1)
    assert not set(chosen.replayed) & set(new)


def test_the_seed_chooses_what_is_replayed_and_one_more_old_pair_changes_at_most_one() -> None:
    everything = many(100, 0)
    new = ids(everything[:50])

    first = choose(everything[:-1], new, 0.2, seed=1, least=NONE)

    assert choose(everything[:-1], new, 0.2, seed=1, least=NONE) == first
    assert choose(everything[:-1], new, 0.2, seed=2, least=NONE) != first
    grown = choose(everything, new, 0.2, seed=1, least=NONE)
    assert len(set(first.replayed) - set(grown.replayed)) <= 1


def test_few_new_pairs_are_topped_up_with_old_ones_to_the_least_there_must_be() -> None:
    everything = many(60, 10)
    new = ids(everything[:5])

    chosen = choose(everything, new, replay=0.1, seed=0, least=Least(20, 3))

    rows = build(chosen.ids, everything)
    assert (len(rows.train), len(rows.held_out)) == (20, 3)


def test_with_nothing_new_everything_is_trained_on_again() -> None:
    everything = many(10, 2)

    assert choose(everything, [], replay=0.0, seed=0, least=NONE).ids == sorted(ids(everything))


def test_what_is_over_a_cap_is_left_out_on_each_side_and_counted() -> None:
    def by(voter: str, some: list[Pair]) -> list[Pair]:
        return [one.model_copy(update={"voters": [voter], "needed": [voter]}) for one in some]

    bot = by("bot", [pair(i, split="train" if i % 2 else "held_out") for i in range(200)])
    crowd = [one for i in range(100) for one in by(f"person-{i}", [pair(1000 + i)])]

    chosen = choose([*bot, *crowd], ids([*bot, *crowd]), 0.1, seed=0, least=NONE, limits=Caps(0.02, voter_pairs=10))

    rows = build(chosen.ids, [*bot, *crowd])
    assert chosen.capped == 90  # of 100 to train on; on the other side there is nobody else
    assert (len(rows.train), len(rows.held_out)) == (110, 100)


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
