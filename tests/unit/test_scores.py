"""Scores of voters: who does not look at the answers is told from who does, however few or many the votes."""

import random
from collections import Counter
from math import comb

import pytest

from feedback import ballots, scores
from feedback.ballots import Ballot
from feedback.records import AnswerRef, Comparison, ComparisonVote, Preference, Vote
from feedback.scores import Crowd, Score
from tests.electorate import Rule, blind, contrary, honest

LEVEL = 0.005
PEOPLE = [f"person-{i:02}" for i in range(40)]


def election(rules: dict[str, Rule], answers: int, each: int, good: float, seed: int = 0) -> list[Ballot]:
    """Everybody votes on some answers; a share `good` of them is good."""
    chance = random.Random(seed)
    quality = [chance.random() < good for _ in range(answers)]
    return [
        Ballot(f"answer-{i}", "thumb", voter, rule(quality[i], chance))
        for voter, rule in rules.items()
        for i in chance.sample(range(answers), each)
    ]


def outliers(given: list[Ballot]) -> set[str]:
    """As the ledger finds them: the worst first, and then without their votes."""
    found: set[str] = set()
    while True:
        votes = {ballot.voter: 0 for ballot in given}
        measured = scores.of(ballots.trials(given, found), votes)
        ahead: Counter[str] = Counter()
        for ballot in given:
            if ballot.voter not in found:
                ahead[ballot.question] += 1 if ballot.side else -1
        liked = sum(net >= ballots.DECISIVE for net in ahead.values())
        disliked = sum(net <= -ballots.DECISIVE for net in ahead.values())
        crowd = scores.crowd((s for voter, s in measured.items() if voter not in found), liked, disliked)
        verdicts = {v: scores.judge(s, crowd, LEVEL) for v, s in measured.items() if v not in found}
        worst = scores.worst(verdicts)
        if worst is None:
            return found
        found.add(worst)


@pytest.mark.parametrize("good", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("bot", ["contrary", "coin", "up", "down"])
def test_whoever_does_not_look_is_found_and_nobody_else(bot: str, good: float) -> None:
    rule = {"contrary": contrary, "coin": blind(0.5), "up": blind(1.0), "down": blind(0.0)}[bot]
    given = election(dict.fromkeys(PEOPLE, honest(0.1)), answers=1200, each=150, good=good)
    flood = election({"bot": rule}, answers=1200, each=1200, good=good)  # the same seed: the same answers are good

    assert outliers(given) == set()
    assert outliers(given + flood) == {"bot"}


def test_honest_voters_are_quarantined_far_less_often_than_one_in_a_hundred() -> None:
    """Crowds of many kinds, looked at again and again while their votes come in."""
    accused = people = 0
    for seed in range(60):
        chance = random.Random(seed)
        noise = chance.uniform(0.05, 0.35)
        given = election(dict.fromkeys(PEOPLE, honest(noise)), 150, 40, good=chance.uniform(0.2, 0.9), seed=seed)
        chance.shuffle(given)
        found: set[str] = set()
        for seen in range(400, len(given) + 1, 400):
            found |= outliers(given[:seen])
        accused += len(found)
        people += len(PEOPLE)

    assert people == 2400
    assert accused < 0.01 * people


def test_a_voter_at_the_edge_of_what_is_asked_is_rarely_quarantined_however_often_one_looks() -> None:
    chance = random.Random(5)
    crowd = Crowd(liked=0.5, kappa=0.8)
    edge = 0.5 + 0.5 * 0.8 / 2
    ever = 0
    for _ in range(1000):
        agreed = 0
        for n in range(1, 301):
            agreed += chance.random() < edge
            if scores.judge(Score(n, n, n // 2, 0, agreed), crowd, LEVEL).is_outlier:
                ever += 1
                break

    assert ever <= 0.01 * 1000


def test_who_only_reports_bad_answers_is_heard_and_who_calls_everything_bad_is_not() -> None:
    crowd = Crowd(liked=0.5, kappa=0.8)

    reporter = scores.judge(Score(200, 200, 0, 0, 190), crowd, LEVEL)
    grumbler = scores.judge(Score(200, 200, 0, 0, 100), crowd, LEVEL)

    assert (reporter.is_outlier, grumbler.is_outlier) == (False, True)
    assert reporter.kappa == pytest.approx(0.9)
    assert grumbler.kappa == pytest.approx(0.0)


def test_nobody_is_judged_before_there_is_a_crowd() -> None:
    contrarian = Score(50, 50, 25, 0, 0)

    assert scores.crowd([contrarian, Score(50, 50, 25, 0, 50)], 50, 50).kappa is None
    assert not scores.judge(contrarian, Crowd(0.5, None), LEVEL).is_outlier


@pytest.mark.parametrize(("n", "share"), [(10, 0.7), (37, 0.51), (200, 0.9)])
def test_the_tail_is_the_binomial_s(n: int, share: float) -> None:
    for hits in range(int(n * share)):
        exact = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits + 1))
        assert scores.at_most(hits, n, share) == pytest.approx(exact, rel=1e-9)


def test_one_voter_alone_cannot_make_another_disagree_with_the_crowd() -> None:
    given = [Ballot("q", "thumb", "ann", True), Ballot("q", "thumb", "bot", False)]
    joined = [*given, Ballot("q", "thumb", "bob", True)]

    assert ballots.trials(given) == []
    assert [(t.ballot.voter, t.agreed) for t in ballots.trials(joined)] == [("bot", False)]


def test_who_is_silenced_is_measured_and_measures_nobody() -> None:
    given = [Ballot("q", "thumb", voter, side) for voter, side in (("ann", True), ("bob", True), ("bot", False))]

    found = ballots.trials([*given, Ballot("q", "thumb", "cat", True)], silenced={"bot"})

    assert {(t.ballot.voter, t.agreed) for t in found} == {("ann", True), ("bob", True), ("cat", True), ("bot", False)}


def comparison(number: int, expected: str | None = None) -> Comparison:
    return Comparison.model_validate(
        {
            "id": f"cmp-{number}",
            "served_model": "heed",
            "created": 1.0,
            "messages": [],
            "prompt_hash": "h",
            "a": {"completion_id": f"chatcmpl-{number}b"},
            "b": {"completion_id": f"chatcmpl-{number}a"},
            "adapter_a": "heed-v1-00000000",
            "adapter_b": "heed-base",
            "expected": expected,
        }
    )


def compared(number: int, preferred: str, voter: str) -> ComparisonVote:
    return ComparisonVote.model_validate(
        {
            "id": f"cvote-{number}-{voter}",
            "comparison_id": f"cmp-{number}",
            "preferred": preferred,
            "a": {"completion_id": f"chatcmpl-{number}b"},
            "b": {"completion_id": f"chatcmpl-{number}a"},
            "voter": voter,
            "prompt_hash": "h",
            "model_a": "heed-v1-00000000",
            "model_b": "heed-base",
            "created": 1.0,
            "updated": 1.0,
        }
    )


def test_a_comparison_and_a_preference_between_the_same_answers_are_one_question() -> None:
    shown = comparison(1)
    preference = Preference(
        id="pref-1", chosen=shown.a, rejected=shown.b, prompt_hash="h", voter="ann", created=1, updated=1
    )
    given: list[ballots.Opinion] = [
        preference,
        compared(1, "a", "bob"),
        compared(1, "b", "cat"),
        compared(1, "tie", "dan"),
    ]

    found = ballots.cast(given, {shown.id: shown})

    assert len({ballot.question for ballot in found}) == 1
    assert [(b.voter, b.side == found[0].side) for b in found] == [("ann", True), ("bob", True), ("cat", False)]


def test_a_known_answer_counts_without_any_other_voter() -> None:
    known = {f"cmp-{i}": comparison(i, expected="b") for i in range(12)}
    given = [compared(i, "a", "bot") for i in range(12)] + [compared(i, "b", "ann") for i in range(12)]

    measured = scores.of(ballots.trials(ballots.cast(given, known)), {"bot": 12, "ann": 12})

    assert measured["bot"] == Score(votes=12, choices=12, agreed=0, known=12, missed=12)
    assert measured["ann"] == Score(votes=12, choices=12, agreed=12, known=12, missed=0)
    assert scores.judge(measured["bot"], Crowd(0.5, 0.8), LEVEL).is_outlier


def test_votes_are_sides_by_their_rating() -> None:
    vote = Vote(
        id="vote-1",
        completion_id="chatcmpl-1",
        prompt_hash="h",
        rating="down",
        voter="ann",
        model="heed-base",
        created=1,
        updated=1,
    )

    assert ballots.cast([vote], {}) == [Ballot(str(AnswerRef(completion_id="chatcmpl-1")), "thumb", "ann", False)]
