"""The gate: broken adapters and surely worse ones stay off the air, chance does not decide."""

import random
from typing import Any

import pytest

from feedback.proportions import chance_of_losing, wilson
from trainer.gate import Delta, Evaluation, Score, judge

SOUND = {"finite": True, "shapes": True, "config": True, "changes": True, "reasons": []}


def report(before: list[bool], after: list[bool], **weights: Any) -> Evaluation:
    """Pairs that parent and candidate get right."""
    n = len(after)
    return Evaluation(
        pairs=n,
        weights={**SOUND, **weights},
        before=Score(accuracy=sum(before) / n, margin=0.0),
        after=Score(accuracy=sum(after) / n, margin=1.0),
        deltas=[Delta(before=2 * b - 1, after=2 * a - 1) for b, a in zip(before, after, strict=True)],
    )


def test_a_better_candidate_passes_with_its_numbers() -> None:
    verdict = judge(report([True] * 30 + [False] * 20, [True] * 45 + [False] * 5), 0.03, has_parent=True)

    assert verdict.passed
    assert (verdict.numbers["accuracy_before"], verdict.numbers["accuracy"]) == (0.6, 0.9)
    assert (verdict.numbers["lost"], verdict.numbers["won"]) == (0, 15)
    assert "0.90 against 0.60" in verdict.reasons[0]


def test_a_surely_worse_candidate_is_refused_in_words() -> None:
    verdict = judge(report([True] * 45 + [False] * 5, [True] * 30 + [False] * 20), 0.03, has_parent=True)

    assert not verdict.passed
    assert "lost 15 pairs and won 0" in verdict.reasons[0]


def test_a_loss_that_chance_explains_passes_and_the_verdict_says_so() -> None:
    verdict = judge(report([True] * 10, [True] * 8 + [False] * 2), 0.03, has_parent=True)

    assert verdict.passed
    assert "may be chance" in verdict.reasons[1]
    assert "only show a disaster" in verdict.reasons[-1]


def test_a_loss_within_the_tolerance_passes_however_sure_it_is() -> None:
    before, after = [True] * 1000, [True] * 980 + [False] * 20
    assert chance_of_losing(20, 0) < 1e-5

    assert judge(report(before, after), 0.03, has_parent=True).passed
    assert not judge(report(before, after), 0.01, has_parent=True).passed


def test_without_a_parent_the_candidate_must_not_lose_to_a_coin() -> None:
    half = [True, False] * 25
    none = [False] * 50

    assert judge(report(half, half), 0.03, has_parent=False).passed
    assert not judge(report(half, [True] * 10 + [False] * 40), 0.03, has_parent=False).passed
    assert not judge(report(half, none), 0.03, has_parent=False).passed


@pytest.mark.parametrize("broken", ["finite", "shapes", "config"])
def test_unsound_weights_are_refused_whatever_the_accuracy(broken: str) -> None:
    verdict = judge(report([False] * 50, [True] * 50, **{broken: False}), 0.03, has_parent=True)

    assert not verdict.passed
    assert broken in verdict.reasons[0]


def test_the_reasons_of_the_weights_check_are_the_verdict_s() -> None:
    said = "weights must be finite; 1 of 56 tensors hold NaN or Inf, first x"
    unmeasured = Evaluation(pairs=3, weights={**SOUND, "finite": False, "reasons": [said]})

    verdict = judge(unmeasured, 0.03, has_parent=False)

    assert (verdict.passed, verdict.reasons) == (False, [said])


def test_an_adapter_that_was_not_measured_does_not_pass() -> None:
    assert not judge(Evaluation(pairs=3, weights=SOUND), 0.03, has_parent=False).passed


def test_an_equal_candidate_is_seldom_refused() -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(500):
        before = [chance.random() < 0.7 for _ in range(40)]
        after = [chance.random() < 0.7 for _ in range(40)]
        refused += not judge(report(before, after), 0.03, has_parent=True).passed

    assert refused / 500 < 0.05


def test_the_exact_test_is_the_binomial_tail() -> None:
    assert chance_of_losing(5, 0) == 1 / 32
    assert chance_of_losing(0, 0) == 1.0
    assert chance_of_losing(1, 1) == 0.75


def test_wilson_s_interval_is_the_published_one() -> None:
    low, high = wilson(15, 148)  # Newcombe 1998, table I: 0.0624 to 0.1605

    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
