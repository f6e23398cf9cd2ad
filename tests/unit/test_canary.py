"""Canaries without a ledger: who is on which side, and what follows from counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.canary import Canary, Mark, mark
from feedback.canary_counts import Counts, Side
from feedback.canary_verdict import HOUR_S, judge
from feedback.settings import LedgerSettings

LIMITS = LedgerSettings()
LATER = 2 * HOUR_S
WEEK = 7 * 24 * HOUR_S


def a_canary(percent: float = 10, salt: str = "salt") -> Canary:
    return Canary(trial="trial-1", adapter="heed-v1-00000000", percent=percent, since=0, salt=salt, against="heed-base")


def side(
    answered: int = 1000, up: int = 0, down: int = 0, failed: int = 0, refused: int = 0, tokens: int = 100
) -> Side:
    length = answered * tokens / LIMITS.canary_length_tokens
    return Side(answered=answered, failed=failed, refused=refused, length=length, up=up, down=down)


@given(st.binary(max_size=50), st.floats(0.01, 100), st.floats(0.01, 100))
def test_who_is_in_with_a_small_share_is_in_with_a_greater(who: bytes, one: float, other: float) -> None:
    small, great = sorted((one, other))

    if mark(a_canary(small), who).arm == "canary":
        assert mark(a_canary(great), who).arm == "canary"


def test_a_share_is_a_share_and_another_salt_draws_others() -> None:
    people = [f"user {i}".encode() for i in range(4000)]
    first = {who for who in people if mark(a_canary(25, "a"), who).arm == "canary"}
    second = {who for who in people if mark(a_canary(25, "b"), who).arm == "canary"}

    assert 850 < len(first) < 1150
    assert 150 < len(first & second) < 350
    assert all(mark(a_canary(100), who).arm == "canary" for who in people)


def test_a_mark_is_read_as_it_was_written() -> None:
    one = mark(a_canary(), b"ann")

    assert Mark.read(str(one)) == one
    with pytest.raises(ValueError, match="control or canary; got 'other'"):
        Mark.read("trial-1 other 00")


@pytest.mark.parametrize(
    ("control", "canary", "decision", "words"),
    [
        (side(), side(), "wait", "both sides need some"),
        (side(up=600, down=400), side(up=180, down=20), "promote", "it is better"),
        (side(up=6000, down=4000), side(up=6100, down=3900), "promote", "not worse by more than 5 points"),
        (side(up=600, down=400), side(up=50, down=150), "roll_back", "it is worse"),
        (side(up=600, down=400), side(up=60, down=40), "wait", "neither worse nor surely good enough"),
        (side(), side(failed=100), "roll_back", "failed"),
        (side(up=600, down=400), side(up=150, down=50, refused=300), "roll_back", "was a refusal"),
        (side(tokens=100), side(tokens=400), "roll_back", "surely more than 2 times as long"),
        (side(tokens=400), side(tokens=100), "roll_back", "surely under 1/2 of the length"),
        (side(up=600, down=400), side(answered=60, up=58, down=2), "wait", "it has answered 60 units of the 100"),
    ],
)
def test_the_counts_decide(control: Side, canary: Side, decision: str, words: str) -> None:
    verdict = judge(a_canary(), Counts(control, canary), LIMITS, LATER)

    assert (verdict.decision, words in verdict.reason) == (decision, True), verdict.reason


def test_it_takes_time_to_go_live_and_all_the_time_to_be_undecided() -> None:
    good = Counts(side(up=600, down=400), side(up=150, down=50))
    even = Counts(side(up=600, down=400), side(up=60, down=40))

    assert judge(a_canary(), good, LIMITS, HOUR_S / 2).decision == "wait"
    assert judge(a_canary(), good, LIMITS, WEEK).decision == "promote"
    assert judge(a_canary(), even, LIMITS, WEEK - 1).decision == "wait"
    undecided = judge(a_canary(), even, LIMITS, WEEK)
    assert (undecided.decision, undecided.reason.startswith("undecided after 168 hours")) == ("undecided", True)


def test_a_guard_that_is_kept_says_so() -> None:
    many = Counts(side(answered=20_000), side(answered=5_000))
    outcomes = {one.name: one.outcome for one in judge(a_canary(), many, LIMITS, LATER).questions}

    assert outcomes == {"up_votes": "open", "errors": "within", "refusals": "within", "length": "within"}
