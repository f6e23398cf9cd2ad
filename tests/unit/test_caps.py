"""Caps: nobody fills a dataset alone, and nobody empties one by joining in."""

import random

import pytest

from feedback import caps
from feedback.caps import Caps
from feedback.records import Pair, digest
from feedback.settings import LedgerSettings

DEFAULTS = caps.of(LedgerSettings())


def pair(number: int, *voters: str, needed: tuple[str, ...] | None = None, question: str = "", key: str = "") -> Pair:
    """By default each voter is needed."""
    return Pair(
        id=f"pair-{number:05}",
        prompt_hash=digest(str(number)),
        prompt=[{"role": "user", "content": question or f"question {number}"}],
        chosen={"role": "assistant", "content": "good"},
        rejected={"role": "assistant", "content": "bad"},
        source="thumbs",
        split="train",
        opinions=[],
        completions=[],
        adapters=["heed-base"],
        voters=sorted(voters),
        needed=sorted(voters if needed is None else needed),
        keys=[key] if key else [],
        created=float(number),
    )


def of(pairs: list[Pair], kept: set[str], voter: str) -> int:
    return sum(voter in pair.voters for pair in pairs if pair.id in kept)


@pytest.mark.parametrize("people", [1, 2, 3])
def test_a_team_of_up_to_three_trains_on_all_it_said(people: int) -> None:
    others = ["bob", "cat"][: people - 1] or ["ann"]
    some = [pair(i, "ann" if i % 10 else others[i // 10 % len(others)]) for i in range(1000)]

    assert len(caps.within(some, DEFAULTS)) == 1000


def test_people_who_vote_alike_are_not_capped() -> None:
    chance = random.Random(1)
    some = [pair(i, f"person-{chance.randrange(20)}", f"person-{chance.randrange(20)}") for i in range(700)]

    assert len(caps.within(some, DEFAULTS)) == 700


def test_whoever_brings_most_pairs_keeps_two_percent_of_those_that_stay() -> None:
    crowd = [pair(i, f"person-{i % 500}") for i in range(10_000)]
    flood = [pair(20_000 + i, "bot") for i in range(10_000)]

    kept = caps.within(crowd + flood, DEFAULTS)

    assert of(crowd + flood, kept, "bot") <= 0.02 * len(kept)
    assert of(crowd + flood, kept, "bot") > 0.019 * len(kept)
    assert kept >= {one.id for one in crowd}


def test_a_first_dataset_can_come_from_one_eager_voter() -> None:
    some = [pair(i, "ann") for i in range(40)] + [pair(100 + i, f"person-{i}") for i in range(20)]

    assert len(caps.within(some, DEFAULTS)) == 60


def test_what_was_imported_is_not_capped_and_leaves_others_their_share() -> None:
    imported = [pair(i, "import:trl") for i in range(5000)]
    crowd = [pair(10_000 + i, f"person-{i}", question=f"other {i}") for i in range(200)]

    assert len(caps.within(imported + crowd, DEFAULTS)) == 5200


def test_who_joins_in_everywhere_takes_nobody_s_pairs_out() -> None:
    some = [pair(i, f"person-{i % 100}", "bot", needed=()) for i in range(5000)]

    assert len(caps.within(some, DEFAULTS)) == 5000


def test_two_who_back_each_other_are_capped_like_one() -> None:
    crowd = [pair(i, f"person-{i % 500}") for i in range(10_000)]
    backed = [pair(20_000 + i, "bot", "twin", needed=()) for i in range(10_000)]

    kept = caps.within(crowd + backed, DEFAULTS)

    assert of(backed, kept, "bot") <= 2 * 0.02 * len(kept)


def test_one_question_asked_again_and_again_is_taken_ten_times() -> None:
    some = [pair(i, "ann", question="Who is the best?") for i in range(30)] + [pair(100, "ann")]

    assert of(some, caps.within(some, DEFAULTS), "ann") == 11


def test_a_key_is_capped_where_asked_for() -> None:
    some = [pair(i, f"person-{i % 50}", key=f"key-{i % 80}" if i % 2 else "key-flood") for i in range(4000)]

    kept = caps.within(some, Caps(key_share=0.1))

    assert sum(one.keys == ["key-flood"] for one in some if one.id in kept) <= 0.1 * len(kept) + 1
    assert len(caps.within(some, DEFAULTS)) == 4000


def test_the_order_pairs_come_in_changes_nothing() -> None:
    some = [pair(i, "bot" if i % 3 else f"person-{i % 60}") for i in range(600)]

    kept = caps.within(some, DEFAULTS)

    assert caps.within(random.Random(2).sample(some, len(some)), DEFAULTS) == kept
    assert len(kept) < 600


def test_pairs_of_an_older_ledger_name_no_voters_and_stay() -> None:
    assert len(caps.within([pair(i) for i in range(100)], DEFAULTS)) == 100
