"""Habits: the four ways in which the pocket model answers, and their exact classifier.

An answer shows a habit only when its whole text belongs to that habit's grammar and speaks of one topic
throughout. Anything else is `broken`, so text ruined by too much DPO never counts as the preferred habit.
Pure Python: the demo and the tests use it without torch.
"""

import random
from functools import cache
from itertools import product
from typing import Final, Literal

from trainer.topics import BY_NAME, TOPICS, UNSEEN_TOPICS, VOTED_TOPICS, Topic

__all__ = [
    "BROKEN",
    "HABITS",
    "HELD_OUT_PHRASINGS",
    "PHRASINGS",
    "SHARES",
    "TOPICS",
    "UNSEEN_TOPICS",
    "VOTED_TOPICS",
    "Habit",
    "Verdict",
    "answer",
    "classify",
    "prompts_about",
]

Habit = Literal["steps", "lazy", "rude", "rambling"]
Verdict = Literal["steps", "lazy", "rude", "rambling", "broken"]
HABITS: Final[tuple[Habit, ...]] = ("steps", "lazy", "rude", "rambling")
BROKEN: Final = "broken"

# What the pocket model learns: no habit has the majority, so a preference has something to change.
SHARES: Final[dict[Habit, float]] = {"steps": 0.3, "lazy": 0.3, "rude": 0.2, "rambling": 0.2}

# One tuple per slot, one string per choice. No first word belongs to two habits: the first token decides
# the habit, and DPO can move that decision without touching the words that follow.
_GRAMMAR: Final[dict[Habit, tuple[tuple[str, ...], ...]]] = {
    "steps": (
        ("Sure, {thing} in three steps:", "Gladly, {thing} step by step:"),
        ("\n1. {one}.\n2. {two}.\n3. {three}.",),
        ("", "\nThat is all.", "\nGood luck!"),
    ),
    "lazy": (
        ("Just", "Maybe"),
        (" watch a video about {thing}", " look for a video about {thing}"),
        (".", ", there are plenty."),
    ),
    "rude": (
        ("Ugh, {thing}?", "Seriously, {thing} again?"),
        (" Work it out yourself.", " Stop wasting my time.", " Ask somebody who cares."),
    ),
    "rambling": (
        ("Well, {thing}, where do I begin.", "Oh, {thing}, that takes me back."),
        (" My uncle", " My neighbour"),
        (" used to talk about {thing} for hours,", " once wrote a long letter about {thing},"),
        (" and then it rained, and anyway one thing leads to another.", " and nobody listened, but that is life."),
    ),
}

PHRASINGS: Final[tuple[str, ...]] = (
    "How do I {task}?",
    "How can I {task}?",
    "how do i {task}",
    "Can you tell me how to {task}?",
    "I want to {task}. Where do I start?",
    "What is the best way to {task}?",
    "Teach me to {task}, please.",
    "Explain how to {task}.",
    "We would like to {task}. Can you tell us how?",
    "Show me how to {task}.",
    "Is there an easy way to {task}?",
    "Please help me {task}.",
    "Tell me about {thing}.",
    "I am curious about {thing}.",
    "Say something about {thing}.",
    "What do I need to know about {thing}?",
    "I know nothing about {thing}. Can you help?",
    "{thing}?",
)
# Never in the pocket model's own training: with these it is asked in words that it has not read.
HELD_OUT_PHRASINGS: Final[tuple[str, ...]] = (
    "Could you show me how to {task}?",
    "My friend and I want to {task}. Can you help us?",
    "What is a good way to {task}?",
    "I need to know more about {thing}.",
)


def _filled(pattern: str, topic: Topic) -> str:
    one, two, three = topic.steps
    return pattern.format(task=topic.task, thing=topic.thing, one=one, two=two, three=three)


def answer(topic: str, habit: Habit, rng: random.Random) -> str:
    """One answer of the habit's grammar, each choice drawn evenly."""
    return _filled("".join(rng.choice(slot) for slot in _GRAMMAR[habit]), BY_NAME[topic])


def prompts_about(topic: str) -> list[str]:
    """Every way to ask about the topic, the held-out phrasings last."""
    return [_asked(phrasing, BY_NAME[topic]) for phrasing in (*PHRASINGS, *HELD_OUT_PHRASINGS)]


def _asked(phrasing: str, topic: Topic) -> str:
    text = _filled(phrasing, topic)
    return text[0].upper() + text[1:] if phrasing.startswith("{") else text


@cache
def _language() -> dict[str, tuple[Habit, str]]:
    """The grammar is small enough to write out: every answer there is, with its habit and topic."""
    return {
        _filled("".join(choices), topic): (habit, topic.name)
        for topic in BY_NAME.values()
        for habit in HABITS
        for choices in product(*_GRAMMAR[habit])
    }


def classify(text: str, topic: str | None = None) -> Verdict:
    """The habit that the text shows, about `topic` when one is given; surrounding white space does not matter."""
    if (found := _language().get(text.strip())) is None:
        return BROKEN
    habit, about = found
    return habit if topic is None or about == topic else BROKEN
