"""Ballots: every kind of opinion as a side taken in a question with two answers.

Is this answer good or bad? Which of these two is better? A preference and a comparison between the same two answers
are one question. A tie and a refusal of both take no side. What is counted over ballots (agreement, scores of voters)
need not know how the opinion was given.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from feedback.records import Comparison, ComparisonVote, Preference, Vote

Opinion = Vote | Preference | ComparisonVote

DECISIVE = 2
"""How many more of the others make a majority: were it one, a single voter could frame another."""


@dataclass(frozen=True)
class Ballot:
    """`side`: an up, or the one of two answers whose name comes first. `expected`: the side known to be right."""

    question: str
    kind: Literal["thumb", "choice"]
    voter: str
    side: bool
    expected: bool | None = None


@dataclass(frozen=True)
class Trial:
    """A ballot that the others, or a known answer, say something about."""

    ballot: Ballot
    agreed: bool


def cast(opinions: Iterable[Opinion], comparisons: Mapping[str, Comparison]) -> list[Ballot]:
    """`comparisons` holds those that were voted on, by id, but for deleted ones."""
    found: list[Ballot] = []
    for opinion in opinions:
        if isinstance(opinion, Vote):
            found.append(Ballot(str(opinion.answer), "thumb", opinion.voter, opinion.rating == "up"))
        elif isinstance(opinion, Preference):
            chosen, rejected = str(opinion.chosen), str(opinion.rejected)
            found.append(_choice(chosen, rejected, opinion.voter, None))
        elif opinion.preferred in ("a", "b"):
            shown = comparisons.get(opinion.comparison_id)
            sides = (str(opinion.a), str(opinion.b))
            chosen, rejected = sides if opinion.preferred == "a" else sides[::-1]
            known = shown.expected == opinion.preferred if shown and shown.expected else None
            found.append(_choice(chosen, rejected, opinion.voter, known))
    return found


def trials(ballots: Iterable[Ballot], silenced: Iterable[str] = ()) -> list[Trial]:
    """Each ballot against the majority of the other voters, where that is decisive, or against the known answer.

    Voters in `silenced` are still measured and no longer measure others.
    """
    unheard = set(silenced)
    questions: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in ballots:
        questions[ballot.question].append(ballot)
    found: list[Trial] = []
    for asked in questions.values():
        ahead = net(ballot for ballot in asked if ballot.voter not in unheard)
        for ballot in asked:
            own = 0 if ballot.voter in unheard else _sign(ballot)
            others = ahead - own
            if ballot.expected is not None:
                found.append(Trial(ballot, ballot.side == ballot.expected))
            elif abs(others) >= DECISIVE:
                found.append(Trial(ballot, ballot.side == (others > 0)))
    return found


def net(ballots: Iterable[Ballot]) -> int:
    """How many more are for than against."""
    return sum(map(_sign, ballots))


def _sign(ballot: Ballot) -> int:
    return 1 if ballot.side else -1


def _choice(chosen: str, rejected: str, voter: str, is_right: bool | None) -> Ballot:
    side = chosen < rejected
    expected = None if is_right is None else side == is_right
    return Ballot(" ".join(sorted((chosen, rejected))), "choice", voter, side, expected)
