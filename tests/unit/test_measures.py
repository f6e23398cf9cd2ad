"""Measures: intervals, looks of answers and duels, on numbers small enough to check by hand."""

import random

import pytest

from feedback.records import Pair
from trainer.electorate import of
from trainer.measures.duels import Duel, at_equal_length, win_rate
from trainer.measures.resampling import interval, quantile
from trainer.measures.speech import Said, repetition, speech, wobble


def pair(pair_id: str, voters: list[str]) -> Pair:
    return Pair(
        id=pair_id,
        prompt_hash=pair_id,
        prompt=[{"role": "user", "content": pair_id}],
        chosen={"role": "assistant", "content": "good"},
        rejected={"role": "assistant", "content": "bad"},
        source="thumbs",
        split="held_out",
        opinions=[],
        completions=[],
        adapters=[],
        voters=voters,
        needed=voters,
        created=1.0,
    )


def said(text: str, ended: bool = True) -> Said:
    return Said(text=text, tokens=len(text.split()), ended=ended)


def test_an_interval_holds_its_mean_in_nine_of_ten_samples() -> None:
    chance = random.Random(1)
    held = 0
    for _ in range(200):
        values = [float(chance.random() < 0.6) for _ in range(60)]
        low, high = interval(values, [str(i) for i in range(60)], draws=200)
        held += low <= 0.6 <= high

    assert 0.83 <= held / 200 <= 0.96


def test_bunches_widen_an_interval_as_far_as_they_agree() -> None:
    values = [1.0] * 30 + [0.0] * 30
    alone = interval(values, [str(i) for i in range(60)])
    bunched = interval(values, [str(i // 10) for i in range(60)])

    assert bunched[1] - bunched[0] > 2 * (alone[1] - alone[0])


def test_an_interval_is_the_same_for_the_same_numbers() -> None:
    values, names = [0.2, 0.9, 0.4, 0.8, 0.1, 0.7], list("abcdef")

    assert interval(values, names) == interval(values, names)


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert quantile([1.0], 0.9) == 1.0


def test_repetition_is_the_share_of_word_fours_said_before() -> None:
    assert repetition("one two three four five six") == 0.0
    assert repetition("so") == 0.0
    assert repetition("go on and on " * 4) == pytest.approx(1 - 4 / 13)


def test_speech_counts_tokens_ends_and_layout() -> None:
    found = speech([said("# Kite\n\n- one\n- two\n1. three **bold** words"), said("plain words", ended=False)])

    assert found.marks == 5 / 2
    assert found.ended == 0.5
    assert found.answers == 2


def test_a_model_wobbles_against_itself_as_much_as_its_answers_differ() -> None:
    steady = wobble([said("a b c")] * 20, [said("d e f")] * 20)
    chance = random.Random(0)
    lengths = [[said("word " * chance.choice((2, 40))) for _ in range(20)] for _ in range(2)]
    loose = wobble(*lengths)

    assert (steady.length_low, steady.length_high) == (1.0, 1.0)
    assert loose.length_low < 0.8
    assert loose.length_high > 1.25


def test_a_judge_that_likes_length_alone_finds_no_winner_at_equal_length() -> None:
    chance = random.Random(0)
    longer = [chance.gauss(100, 80) for _ in range(200)]
    scores = [float(length > 0) for length in longer]
    assert sum(scores) / 200 > 0.8

    assert at_equal_length(scores, longer) == pytest.approx(0.5, abs=0.12)


def test_without_differences_of_length_the_win_rate_is_the_plain_one() -> None:
    duels = [Duel(first=1, second=1, longer=0)] * 3 + [Duel(first=1, second=0, longer=0)] * 2
    found = win_rate(duels)

    assert found.value == pytest.approx(0.8)
    assert found.low < found.value < found.high


def test_an_electorate_knows_the_largest_share_and_no_names() -> None:
    taught = [pair(f"p{i}", voters=["ann"]) for i in range(6)] + [pair("p7", voters=["bob"]), pair("p8", voters=[])]

    found = of(taught, taught, known_voters=2)

    assert (found.pairs, found.voters, found.largest_share) == (7, 2, 6 / 7)
    assert not found.is_sole
    assert found.bunch("p0") == found.bunch("p5") != found.bunch("p7")
    assert found.bunch("p8") == "p8"
    assert "ann" not in found.model_dump_json()


def test_who_is_the_only_voter_there_ever_was_is_sole() -> None:
    taught = [pair("p0", voters=["ann"])]

    assert of(taught, taught, known_voters=1).is_sole
    assert not of(taught, taught, known_voters=2).is_sole
