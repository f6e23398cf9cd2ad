"""The confidence sequence: what its region holds, and how often it is wrong when looked at after every number."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.confidence import Region, Sample

LEVEL = 0.05


def sample(hits: int, n: int) -> Sample:
    return Sample(n, hits)


samples = st.integers(0, 300).flatmap(lambda n: st.builds(Sample, st.just(n), st.integers(0, n)))
levels = st.sampled_from([0.2, 0.05, 0.01])


@given(samples, samples, levels)
def test_an_interval_holds_what_was_seen_and_is_wider_where_it_must_be_surer(
    control: Sample, canary: Sample, level: float
) -> None:
    low, high = Region(control, canary, level).difference()
    sure_low, sure_high = Region(control, canary, level / 10).difference()

    assert -1 <= sure_low <= low <= high <= sure_high <= 1
    if control.mean is not None and canary.mean is not None:
        assert low <= canary.mean - control.mean <= high


@given(samples, samples)
def test_exchanging_the_sides_turns_the_interval_round(control: Sample, canary: Sample) -> None:
    low, high = Region(control, canary, LEVEL).difference()
    turned_low, turned_high = Region(canary, control, LEVEL).difference()

    assert (low, high) == pytest.approx((-turned_high, -turned_low), abs=1e-3)


@given(samples, samples, st.floats(-0.9, 0.9))
def test_what_is_outside_of_the_interval_is_excluded_and_what_is_inside_is_not(
    control: Sample, canary: Sample, shift: float
) -> None:
    region = Region(control, canary, LEVEL)
    low, high = region.difference()

    if min(abs(shift - low), abs(shift - high)) > 1e-3:
        assert region.excludes(shift) == (not low < shift < high)


def test_the_evidence_is_that_of_the_mixture_by_numerical_integration() -> None:
    """(s, n) = (3, 5) at p = 0.4: the integral over Beta(1/2, 1/2), by sin² as the quantile, over the likelihood."""
    steps = 20_000
    angles = [(k + 0.5) / steps * math.pi / 2 for k in range(steps)]
    integral = sum(math.sin(a) ** 6 * math.cos(a) ** 4 for a in angles) / steps

    assert sample(3, 5).mixture == pytest.approx(math.log(integral), abs=1e-9)


def test_nothing_is_known_without_numbers_and_little_with_few() -> None:
    assert Region(Sample(), Sample(), LEVEL).difference() == (-1, 1)
    assert Region(Sample(), Sample(), LEVEL).ratio() == (0, math.inf)
    assert not Region(sample(0, 2), sample(2, 2), LEVEL).excludes()
    assert Region(sample(0, 30), sample(30, 30), LEVEL).excludes()


def test_a_ratio_is_found_whatever_its_scale() -> None:
    low, high = Region(Sample(2000, 2000 * 0.04), Sample(2000, 2000 * 0.12), LEVEL).ratio()

    assert 1.5 < low < 3 < high < 6


@pytest.mark.parametrize(("share", "up_rate"), [(0.5, 0.5), (0.1, 0.8)])
def test_looking_after_every_vote_it_is_wrong_less_often_than_its_level(share: float, up_rate: float) -> None:
    random.seed(0)
    runs, wrong = 100, 0
    for _ in range(runs):
        n, ups = [0, 0], [0, 0]
        for _ in range(300):
            arm = int(random.random() < share)
            n[arm] += 1
            ups[arm] += random.random() < up_rate
            if Region(sample(ups[0], n[0]), sample(ups[1], n[1]), LEVEL).excludes():
                wrong += 1
                break

    assert wrong <= LEVEL * runs


def test_one_as_much_worse_as_is_allowed_is_taken_for_better_less_often_than_its_level() -> None:
    random.seed(1)
    margin, runs, wrong = 0.1, 100, 0
    for _ in range(runs):
        n, ups = [0, 0], [0, 0]
        for _ in range(300):
            arm = int(random.random() < 0.5)
            n[arm] += 1
            ups[arm] += random.random() < 0.6 - margin * arm
            is_above = ups[1] * n[0] > (ups[0] - margin * n[0]) * n[1]
            if is_above and Region(sample(ups[0], n[0]), sample(ups[1], n[1]), LEVEL).excludes(-margin):
                wrong += 1
                break

    assert wrong <= LEVEL * runs


def test_a_difference_that_is_there_is_found() -> None:
    random.seed(2)
    found = 0
    for _ in range(50):
        n, ups = [0, 0], [0, 0]
        for _ in range(600):
            arm = int(random.random() < 0.5)
            n[arm] += 1
            ups[arm] += random.random() < (0.5, 0.75)[arm]
        found += Region(sample(ups[0], n[0]), sample(ups[1], n[1]), LEVEL).difference()[0] > 0

    assert found >= 48
