"""The crowd: simulated voters with one taste and a stated share of noise.

Each prompt is answered twice, once by what is live and once by the base model. Asking the base too is exploration: an
adapter that has turned to one habit hardly shows another any more, and a crowd that likes that other one must still
meet it, or there would be nothing to vote up. A voter knows the habits exactly (trainer/habits.py) and thumbs up an
answer that shows the taste, anything else down, broken text included; with the chance `noise` the thumb is turned.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.corpus import AFTER, BEFORE
from trainer.habits import VOTED_TOPICS, Habit, Verdict, prompts_about

Rating = Literal["up", "down"]


@dataclass(frozen=True)
class Question:
    topic: str
    prompt: str


@dataclass(frozen=True)
class Errand:
    """One voter, one question, one model to ask; the chance to turn the thumb is drawn beforehand."""

    question: Question
    model: str
    voter: str
    is_noisy: bool


@dataclass(frozen=True)
class Crowd:
    taste: Habit
    noise: float
    voters: int
    seed: int

    def errands(self, votes: int, models: Sequence[str], skip: int = 0) -> list[Errand]:
        """`votes` errands, each question given to every model; `skip` questions were asked by crowds before.

        The order of questions depends on the seed alone; how they are put depends on taste and `skip` too, so two
        crowds hardly ever vote on one prompt, where the thumbs of one would be paired with those of the other.
        """
        asked = questions(VOTED_TOPICS)
        random.Random(self.seed).shuffle(asked)
        chance = random.Random(f"{self.seed} {self.taste} {skip}")
        found: list[Errand] = []
        while len(found) < votes:
            question = _as_said(asked[(skip + len(found) // len(models)) % len(asked)], chance)
            for model in models[: votes - len(found)]:
                voter = f"voter-{chance.randrange(self.voters):02}"
                found.append(Errand(question, model, voter, is_noisy=chance.random() < self.noise))
        return found

    def thumb(self, errand: Errand, shown: Verdict) -> Rating:
        return "up" if (shown == self.taste) != errand.is_noisy else "down"


def _as_said(question: Question, chance: random.Random) -> Question:
    """The question with a word before or after it, as people put it."""
    before, after = chance.choice(("", *BEFORE)), chance.choice(("", *AFTER))
    return Question(question.topic, f"{before} {question.prompt} {after}".strip())


def questions(topics: Sequence[str]) -> list[Question]:
    """Every way to ask about each topic."""
    return [Question(topic, prompt) for topic in topics for prompt in prompts_about(topic)]


def sample(topics: Sequence[str], count: int, seed: int) -> list[Question]:
    """`count` questions, spread evenly over the topics; the same ones for the same seed."""
    chance = random.Random(f"sample {seed}")
    by_topic = [chance.sample(questions([topic]), len(questions([topic]))) for topic in topics]
    rounds = [question for asked in zip(*by_topic, strict=False) for question in asked]
    return rounds[:count]
