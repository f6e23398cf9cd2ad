"""The simulated retraining where arithmetic knows the answer."""

import pytest

from tests.load.retraining import KEPT, Training, retrain

TRAINING = Training(pair_s=0.1, around_s=60, epochs=2, every_pairs=500, most_pairs=20_000)


def test_a_job_learns_from_all_pairs_up_to_the_bound() -> None:
    assert TRAINING.job_s(1_000, 1) == pytest.approx(60 + 1_000 * 2 * 0.1)
    assert TRAINING.job_s(10**9, 1) == pytest.approx(60 + 20_000 * 2 * 0.1)


def test_eight_gpus_lose_a_share_at_each_doubling() -> None:
    assert TRAINING.job_s(20_000, 8) == pytest.approx(60 + 4_000 / (8 * KEPT**3))


def test_a_vote_waits_for_enough_others_and_then_for_the_job() -> None:
    """Rare votes, a short job: pairs are 0 to 500 gaps old when it starts."""
    training = Training(pair_s=1e-6, around_s=1)

    ages = retrain(training, pairs_per_s=0.05, gpus=1, seconds=400_000, standing=0)

    assert ages.live(50) == pytest.approx(250 / 0.05, rel=0.1)
    assert ages.jobs == pytest.approx(400_000 * 0.05 / 500, rel=0.1)


def test_many_votes_wait_for_the_job_that_runs_and_for_the_next() -> None:
    """Jobs follow each other: a pair waits 0 to one job, and then one whole."""
    job_s = TRAINING.job_s(20_000, 1)

    ages = retrain(TRAINING, pairs_per_s=500, gpus=1, seconds=20 * job_s, standing=20_000)

    assert ages.live(50) == pytest.approx(1.5 * job_s, rel=0.05)
    assert ages.busy == pytest.approx(1 - 60 / job_s, rel=0.1)
    assert ages.drawn == pytest.approx(20_000 / (500 * job_s), rel=0.1)
