"""The simulated crowd: its taste, its mistakes, its repeatability; and what the demo shows of it."""

import random
from collections import Counter
from pathlib import Path

import pytest

from trainer.crowd import Crowd, sample
from trainer.habits import HABITS, UNSEEN_TOPICS, VOTED_TOPICS, Habit, answer, classify
from trainer.shares import Shares, draw, table

MODELS = ("heed", "heed-base")


@pytest.mark.parametrize("taste", HABITS)
def test_a_voter_without_mistakes_likes_the_taste_and_nothing_else(taste: Habit) -> None:
    crowd = Crowd(taste, noise=0.0, voters=5, seed=0)
    chance = random.Random(0)

    for errand in crowd.errands(80, MODELS):
        topic = errand.question.topic
        for habit in HABITS:
            shown = classify(answer(topic, habit, chance), topic)
            assert crowd.thumb(errand, shown) == ("up" if habit == taste else "down")
        assert crowd.thumb(errand, classify("Sure, sure, sure.", topic)) == "down"


def test_mistakes_come_at_the_stated_share() -> None:
    errands = Crowd("steps", noise=0.1, voters=5, seed=3).errands(4000, MODELS)

    assert 0.08 < sum(errand.is_noisy for errand in errands) / len(errands) < 0.12


def test_the_same_seed_is_the_same_crowd() -> None:
    crowd = Crowd("lazy", noise=0.1, voters=20, seed=5)

    assert crowd.errands(100, MODELS) == crowd.errands(100, MODELS)
    assert crowd.errands(100, MODELS) != Crowd("lazy", 0.1, 20, seed=6).errands(100, MODELS)


def test_every_prompt_is_put_to_each_model_and_comes_from_the_voted_topics() -> None:
    errands = Crowd("steps", 0.1, 20, 0).errands(200, MODELS)

    asked = Counter((errand.question.prompt, errand.model) for errand in errands)
    assert set(asked.values()) == {1}
    assert len({errand.question.prompt for errand in errands}) == 100
    assert {errand.question.topic for errand in errands} <= set(VOTED_TOPICS)


def test_a_crowd_that_skips_what_was_asked_before_meets_other_prompts() -> None:
    crowd = Crowd("steps", 0.1, 20, 0)

    first = {errand.question.prompt for errand in crowd.errands(400, MODELS)}
    second = {errand.question.prompt for errand in crowd.errands(400, MODELS, skip=200)}

    assert not first & second


def test_the_yardstick_is_spread_evenly_over_topics_that_nobody_votes_on() -> None:
    asked = sample(UNSEEN_TOPICS, 2 * len(UNSEEN_TOPICS), seed=0)

    assert set(Counter(question.topic for question in asked).values()) == {2}
    assert asked == sample(UNSEEN_TOPICS, 2 * len(UNSEEN_TOPICS), seed=0)
    assert not {question.topic for question in asked} & set(VOTED_TOPICS)


def test_the_table_shows_shares_before_and_after_with_the_taste_first_and_broken_text() -> None:
    before = Shares(Counter({"steps": 30, "lazy": 60, "broken": 10}))
    after = Shares(Counter({"steps": 90, "broken": 10}))

    lines = table(before, after, "steps")

    assert lines[1].split() == ["steps", "30.0", "%", "(22", "to", "40)", "90.0", "%", "(83", "to", "94)"]
    assert [line.split()[0] for line in lines[1:]] == ["steps", "lazy", "rude", "rambling", "broken"]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    before, after = Shares(Counter({"steps": 3, "lazy": 7})), Shares(Counter({"steps": 9, "broken": 1}))

    draw(before, after, "steps", [(1, 0.0), (2, 0.4)], "heed-v1-1a2b3c4d", tmp_path / "demo" / "steps.png")

    assert (tmp_path / "demo" / "steps.png").read_bytes().startswith(b"\x89PNG")
