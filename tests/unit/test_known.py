"""Answers of honeypots: whole in pieces, and as fast as those that models gave last."""

from hypothesis import given
from hypothesis import strategies as some

from feedback.records import Completion
from serve.known import PIECE
from serve.pace import Pace


@given(some.text())
def test_the_pieces_of_an_answer_are_the_answer(text: str) -> None:
    assert "".join(PIECE.findall(text)) == text


def test_the_pace_follows_what_models_take() -> None:
    pace = Pace()
    answer = Completion(
        id="chatcmpl-1",
        served_model="heed",
        adapter="heed-base",
        created=1,
        messages=[],
        prompt_hash="h",
        choices=[],
        usage={"completion_tokens": 11},
    )

    for _ in range(40):
        pace.saw(first_s=2, whole_s=5, answer=answer)

    waits = [pace.wait_s(11) for _ in range(200)]
    assert 3.4 < min(waits) < 4.2
    assert 5.8 < max(waits) < 6.6
    assert 0.14 < min(pace.gap_s() for _ in range(200)) < 0.2


def test_an_answer_whose_length_is_not_known_says_nothing_of_the_pace() -> None:
    pace = Pace()
    answer = Completion(
        id="chatcmpl-1",
        served_model="heed",
        adapter="heed-base",
        created=1,
        messages=[],
        prompt_hash="h",
        choices=[],
    )

    pace.saw(first_s=2, whole_s=5, answer=answer)

    assert pace == Pace()
