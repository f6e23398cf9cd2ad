"""What people do to answers: votes, corrections, preferences, blind judgements, changes of mind and withdrawals."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.book import NOTHING, About, Book, Said, said

CHANGES_MIND = 0.4
WITHDRAWS = 0.4  # of those who change their mind
RECENT = 50
"""Questions that are voted on: few enough for several voters to meet on each answer, and for minds to change."""
WORDS = ["kite", "wind", "line", "tail", "stick", "paper", "knot", "spool", "field", "cloud", "gust", "ribbon"]


@dataclass(frozen=True)
class Act:
    """One request that makes one opinion say `said`."""

    name: str
    about: About
    said: Said
    method: str
    path: str
    body: dict[str, Any] | None = None
    key: str = ""


@dataclass
class Question:
    """Two answers to one prompt, and a blind comparison of two others."""

    answers: Sequence[str]
    comparison: str


@dataclass
class Mind:
    """One client's choices, all from the seed."""

    seed: str
    voters: Sequence[str]
    given: list[About] = field(default_factory=list)
    keys: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def choose(self, questions: Sequence[Question], book: Book) -> Act:
        if self.given and self.dice.random() < CHANGES_MIND:
            return self._reconsider(self.dice.choice(self.given), book)
        question, voter, kind = self.dice.choice(questions[-RECENT:]), self.dice.choice(self.voters), self.dice.random()
        if kind < 0.2:
            act = self._judge(question.comparison, voter)
        elif kind < 0.4:
            act = self._prefer(question.answers, voter)
        else:
            act = self._vote(self.dice.choice(question.answers), voter)
        self.given.append(act.about)
        return act

    def text(self) -> str:
        return " ".join(self.dice.choices(WORDS, k=8))

    def _reconsider(self, about: About, book: Book) -> Act:
        if book.acknowledged.get(about) and self.dice.random() < WITHDRAWS:
            return Act("withdrawal", about, NOTHING, "DELETE", f"/v1/votes/{book.ids[about]}")
        if about.kind == "vote":
            return self._vote(about.answers[0], about.voter)
        if about.kind == "preference":
            return self._prefer(about.answers, about.voter)
        return self._judge(about.answers[0], about.voter)

    def _vote(self, answer: str, voter: str) -> Act:
        reasons = self.dice.sample(WORDS, 2) if self.dice.random() < 0.3 else []
        comment = self.text() if self.dice.random() < 0.3 else None
        correction = self.text() if self.dice.random() < 0.2 else None
        rating = "down" if correction else self.dice.choice(["up", "up", "down"])
        fields = {"rating": rating, "reasons": reasons, "comment": comment, "correction": correction}
        body = {"completion_id": answer, "voter": voter, **fields}
        name, about = "correction" if correction else "vote", About("vote", (answer,), voter)
        return Act(name, about, said(**fields), "POST", "/v1/votes", body, self._key())

    def _prefer(self, answers: Sequence[str], voter: str) -> Act:
        chosen, rejected = self.dice.sample(answers, 2)
        body = {"chosen": {"completion_id": chosen}, "rejected": {"completion_id": rejected}, "voter": voter}
        about = About("preference", tuple(sorted(answers)), voter)
        return Act("preference", about, said(chosen=chosen), "POST", "/v1/preferences", body, self._key())

    def _judge(self, comparison: str, voter: str) -> Act:
        preferred = self.dice.choice(["a", "a", "b", "tie", "both_bad"])
        about, path = About("comparison_vote", (comparison,), voter), f"/v1/comparisons/{comparison}/vote"
        body = {"preferred": preferred, "voter": voter}
        return Act("judgement", about, said(preferred=preferred), "POST", path, body, self._key())

    def _key(self) -> str:
        self.keys += 1
        return f"{self.seed}/{self.keys}"
