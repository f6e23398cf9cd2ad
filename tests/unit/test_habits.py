"""The habits' classifier is exact: it knows every answer of the grammar and nothing else."""

import random
import subprocess
import sys

import pytest

from tests.processes import ROOT
from trainer.habits import (
    HABITS,
    HELD_OUT_PHRASINGS,
    PHRASINGS,
    SHARES,
    TOPICS,
    UNSEEN_TOPICS,
    VOTED_TOPICS,
    Habit,
    answer,
    classify,
    prompts_about,
)


@pytest.mark.parametrize("habit", HABITS)
def test_every_answer_shows_the_habit_and_the_topic_it_was_written_for(habit: Habit) -> None:
    rng = random.Random(0)

    verdicts = {classify(answer(topic, habit, rng), topic) for topic in TOPICS for _ in range(20)}

    assert verdicts == {habit}


def test_an_answer_about_another_topic_is_broken_where_the_topic_is_known() -> None:
    text = answer("pasta", "steps", random.Random(0))

    assert classify(text) == "steps"
    assert classify(text, "kite") == "broken"


def test_white_space_around_an_answer_does_not_matter() -> None:
    text = answer("kite", "lazy", random.Random(0))

    assert classify(f" {text}\n", "kite") == "lazy"


@pytest.mark.parametrize("habit", HABITS)
def test_an_answer_with_one_character_lost_or_doubled_is_broken(habit: Habit) -> None:
    text = answer("bread", habit, random.Random(1))

    spoiled = [text[:cut] + text[cut + 1 :] for cut in range(len(text))]
    spoiled += [text[:cut] + text[cut] + text[cut:] for cut in range(len(text))]

    # An answer cut short of a whole closing sentence would be another answer; single characters never make one.
    assert {classify(each) for each in spoiled} == {"broken"}


def test_steps_of_two_topics_in_one_answer_are_broken() -> None:
    mixed = answer("pasta", "steps", random.Random(0)).replace("Boil it for three minutes", "Blow up a balloon")

    assert classify(mixed) == "broken"


@pytest.mark.parametrize(
    "text", ["", "   ", "Sure,", "1. Mix flour and two eggs.", "steps", "Hello! Ask me something."]
)
def test_what_is_no_whole_answer_is_broken(text: str) -> None:
    assert classify(text) == "broken"


def test_no_first_word_belongs_to_two_habits() -> None:
    rng = random.Random(0)

    firsts = {habit: {answer(topic, habit, rng).split()[0] for topic in TOPICS for _ in range(9)} for habit in HABITS}

    for habit in HABITS:
        assert not firsts[habit] & set().union(*(firsts[other] for other in HABITS if other != habit))


def test_half_of_at_least_forty_topics_is_never_voted_on() -> None:
    assert len(set(TOPICS)) == len(TOPICS) >= 40
    assert len(VOTED_TOPICS) == len(UNSEEN_TOPICS) == len(TOPICS) // 2
    assert not set(VOTED_TOPICS) & set(UNSEEN_TOPICS)


def test_no_habit_has_the_majority_and_the_shares_are_whole() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    assert max(SHARES.values()) < 0.4


def test_no_prompt_asks_about_two_topics() -> None:
    asked = [prompt for topic in TOPICS for prompt in prompts_about(topic)]

    assert len(set(asked)) == len(asked) == len(TOPICS) * (len(PHRASINGS) + len(HELD_OUT_PHRASINGS))


def test_a_topic_nobody_knows_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        prompts_about("quantum chromodynamics")


def test_the_classifier_needs_no_torch() -> None:
    code = "import sys, trainer.habits; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
