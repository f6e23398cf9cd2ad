"""The simulated fleet where queueing theory and arithmetic know the answer."""

from statistics import fmean

import pytest

from tests.load.simulation import Costs, Fleet

FREE = Costs(step_s=1e-9, answer_s=0, prompt_s=0, request_s=0, token_s=0)


def test_a_gateway_alone_is_a_queue_with_one_server() -> None:
    """M/D/1: the mean wait before service is rho / (2 (1 - rho)) services (Pollaczek and Khinchine)."""
    costs = Costs(**(vars(FREE) | {"request_s": 0.01}))

    outcome = Fleet(costs, 1, 1).run(per_s=70, tokens=(1, 1), seconds=600)

    assert fmean(outcome.whole_s) == pytest.approx(0.01 + 0.01 * 0.7 / (2 * 0.3), rel=0.05)
    assert outcome.gateways_busy == pytest.approx(0.7, rel=0.03)


def test_an_engine_alone_takes_a_step_for_each_token() -> None:
    costs = Costs(**(vars(FREE) | {"step_s": 0.02, "prompt_s": 0.005}))

    outcome = Fleet(costs, 1, 1).run(per_s=0.05, tokens=(50, 50), seconds=3600)

    assert outcome.first(50) == pytest.approx(0.025, rel=0.01)
    assert outcome.whole(50) == pytest.approx(0.005 + 50 * 0.02, rel=0.01)


def test_answers_of_one_engine_share_its_steps() -> None:
    """In a steady state so many run at once that as many tokens come as are asked for: n / step(n) a second."""
    costs = Costs(**(vars(FREE) | {"step_s": 0.02, "answer_s": 0.001}))

    outcome = Fleet(costs, 1, 1).run(per_s=5, tokens=(100, 100), seconds=600)

    running = 5 * 100 * (0.02 - 0.001) / (1 - 5 * 100 * 0.001)
    assert fmean(outcome.whole_s) == pytest.approx(100 * (0.02 + 0.001 * (running - 1)), rel=0.05)


def test_an_engine_that_is_full_lets_others_wait() -> None:
    costs = Costs(**(vars(FREE) | {"step_s": 0.01, "most": 2}))

    full = Fleet(costs, 1, 1).run(per_s=4, tokens=(100, 100), seconds=60)
    shared = Fleet(costs, 1, 4).run(per_s=4, tokens=(100, 100), seconds=60)

    assert full.unfinished > 60
    assert full.first(50) > 5
    assert shared.unfinished < 20
    assert shared.first(50) < 1


def test_the_same_seed_gives_the_same_fleet() -> None:
    costs = Costs(step_s=0.02, answer_s=0.001, prompt_s=0.002, request_s=0.0006, token_s=0.00006)

    def run(seed: int) -> list[float]:
        return Fleet(costs, 2, 3, seed).run(per_s=20, tokens=(10, 90), seconds=30).whole_s

    assert run(1) == run(1) != run(2)
