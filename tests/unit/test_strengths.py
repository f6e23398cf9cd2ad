"""Strengths of adapters: what is put in comes out, with intervals that hold the truth about as often as they say."""

import random

import pytest

from feedback import strengths
from feedback.proportions import wilson
from feedback.strengths import Strength


def fit(counters: dict[str, int]) -> dict[str, Strength]:
    names = {name for counter in counters for name in counter.split()[1:]}
    return strengths.strengths(strengths.outcomes(counters, names), "heed-base")


def games(truth: dict[str, float], each: int, chance: random.Random, ties: float = 0.0) -> dict[str, int]:
    """Counters of comparisons between all adapters."""
    counters: dict[str, int] = {}
    names = sorted(truth)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            for _ in range(each):
                if chance.random() < ties:
                    name = f"tied {one} {other}"
                elif chance.random() < truth[one] / (truth[one] + truth[other]):
                    name = f"beat {one} {other}"
                else:
                    name = f"beat {other} {one}"
                counters[name] = counters.get(name, 0) + 1
    return counters


def test_two_adapters_win_as_often_as_they_won() -> None:
    counters = {"beat heed-v1-a heed-base": 60, "beat heed-base heed-v1-a": 20, "tied heed-base heed-v1-a": 20}

    found = fit(counters)["heed-v1-a"]

    assert found.share == pytest.approx(0.7, abs=0.01)
    assert (found.of, found.against) == (100, "heed-base")
    low, high = wilson(70, 100)
    assert found.low == pytest.approx(low, abs=0.04)  # ties vary less than wins, so it is a little narrower
    assert found.high == pytest.approx(high, abs=0.04)


def test_an_adapter_is_measured_against_a_base_it_only_met_by_others() -> None:
    truth = {"heed-v1-a": 2.0, "heed-v2-b": 4.0, "heed-base": 1.0}
    counters = games(truth, 4000, random.Random(1))
    apart = {name: n for name, n in counters.items() if not {"heed-v2-b", "heed-base"} <= set(name.split())}

    found = fit(apart)

    assert found["heed-v2-b"].share == pytest.approx(4 / 5, abs=0.02)
    assert found["heed-v2-b"].low < 0.8 < found["heed-v2-b"].high


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    chance = random.Random(3)
    truth = {"heed-v1-a": 1.5, "heed-v2-b": 2.5, "heed-base": 1.0}
    held = tried = 0
    for _ in range(50):
        found = fit(games(truth, 60, chance))
        for name, strength in found.items():
            tried += 1
            held += strength.low <= truth[name] / (truth[name] + 1) <= strength.high

    low, high = wilson(held, tried)
    assert low < 0.95
    assert high > 0.9


def test_who_won_every_time_is_not_infinitely_strong() -> None:
    found = fit({"beat heed-v1-a heed-base": 5})["heed-v1-a"]

    assert 0.8 < found.share < 1.0


def test_who_never_met_the_base_is_measured_against_the_first_it_met() -> None:
    counters = {"beat heed-v2-b heed-v1-a": 30, "beat heed-v3-c heed-base": 30, "beat heed-v4-d heed-v4-d": 9}

    found = fit(counters)

    assert {name: one.against for name, one in found.items()} == {"heed-v2-b": "heed-v1-a", "heed-v3-c": "heed-base"}


def test_the_same_votes_give_the_same_figures() -> None:
    counters = games({"heed-base": 1.0, "heed-v1-a": 2.0}, 50, random.Random(4), ties=0.2)

    one = fit(counters)
    strengths.strengths.cache_clear()

    assert fit(dict(reversed(counters.items()))) == one


@pytest.mark.parametrize("mean", [0, 1, 7, 49, 80, 2000])
def test_resampled_counts_have_the_mean_and_spread_of_poisson_s(mean: int) -> None:
    chance = random.Random(6)
    drawn = [strengths._poisson(mean, chance) for _ in range(4000)]

    average = sum(drawn) / len(drawn)
    spread = sum((n - average) ** 2 for n in drawn) / len(drawn)

    assert average == pytest.approx(mean, abs=5 * (mean / 4000) ** 0.5 + 0.01)
    assert spread == pytest.approx(mean, rel=0.15)
