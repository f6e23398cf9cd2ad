"""Limits of a key in one process, by a clock that the test sets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import Refused
from serve.keyring import NOBODY, Caller
from serve.limits import Allowance, Limits, duration, estimated
from serve.metrics import Metrics
from serve.settings import GatewaySettings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(clock: Clock, requests: int = 0, tokens: int = 0) -> Limits:
    settings = GatewaySettings(key_requests_per_minute=requests, key_tokens_per_minute=tokens, var=Path("none"))
    return Limits(settings, Metrics(), clock)


def told(allowance: Allowance) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in allowance.headers}


def test_a_minutes_requests_may_come_at_once_and_no_more(clock: Clock) -> None:
    held = limits(clock, requests=60)

    seen = [told(held.admit(NOBODY, 0)) for _ in range(60)]
    with pytest.raises(Refused) as refused:
        held.admit(NOBODY, 0)

    assert [int(headers["remaining-requests"]) for headers in seen] == list(range(59, -1, -1))
    assert seen[0] == {"limit-requests": "60", "remaining-requests": "59", "reset-requests": "1s"}
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.headers is not None
    assert refused.value.headers["retry-after"] == "1"
    clock.now += 1
    held.admit(NOBODY, 0)


@given(gaps=st.lists(st.floats(0, 20), max_size=200), per_minute=st.integers(1, 100))
def test_in_no_minute_more_than_twice_the_limit_is_admitted_and_over_time_the_limit(
    gaps: list[float], per_minute: int
) -> None:
    clock = Clock()
    held, admitted = limits(clock, requests=per_minute), list[float]()
    for gap in gaps:
        clock.now += gap
        try:
            held.admit(NOBODY, 0)
        except Refused:
            continue
        admitted.append(clock.now)

    for first in admitted:
        assert sum(first <= at < first + 60 for at in admitted) <= 2 * per_minute
    took_min = (clock.now - 1000) / 60
    assert len(admitted) <= per_minute * (1 + took_min) + 1


def test_tokens_are_estimated_first_and_counted_afterwards(clock: Clock) -> None:
    held = limits(clock, tokens=1000)
    first = held.admit(NOBODY, 400)
    assert told(first)["remaining-tokens"] == "600"

    first.settle(100)
    assert told(held.admit(NOBODY, 0))["remaining-tokens"] == "900"
    held.admit(NOBODY, 900).settle(2500)

    with pytest.raises(Refused) as refused:
        held.admit(NOBODY, 1)
    assert refused.value.headers is not None
    assert int(refused.value.headers["retry-after"]) == 97, "what was taken beyond the limit is waited for"


def test_a_request_with_two_answers_is_charged_for_both(clock: Clock) -> None:
    held = limits(clock, requests=10, tokens=1000)

    both = held.admit(NOBODY, 200, requests=2)
    both.settle(150)
    both.settle(250)

    after = told(held.admit(NOBODY, 0))
    assert (after["remaining-requests"], after["remaining-tokens"]) == ("7", "600")


def test_a_refused_request_has_taken_nothing(clock: Clock) -> None:
    held = limits(clock, requests=2, tokens=100)
    held.admit(NOBODY, 90)

    for _ in range(5):
        with pytest.raises(Refused, match="100 tokens a minute"):
            held.admit(NOBODY, 50)

    assert told(held.admit(NOBODY, 10))["remaining-requests"] == "0"


def test_more_than_a_minutes_worth_at_once_is_not_to_be_waited_for(clock: Clock) -> None:
    with pytest.raises(Refused, match="send less") as refused:
        limits(clock, tokens=100).admit(NOBODY, 101)

    assert "retry-after" not in (refused.value.headers or {})


def test_a_keys_own_limits_go_before_the_defaults_and_operators_have_none(clock: Clock) -> None:
    held = limits(clock, requests=60)

    own = told(held.admit(Caller("key-1", "client", requests_per_minute=5), 0))
    free = held.admit(Caller("key-2", "client", requests_per_minute=0), 0)
    operator = held.admit(Caller("key-3", "operator"), 0)

    assert own["remaining-requests"] == "4"
    assert (free.headers, operator.headers) == ([], [])


def test_processes_that_tell_each_other_share_one_limit(clock: Clock) -> None:
    """The ledger's part is played by its sums: what each told, added up."""
    one, other = limits(clock, requests=60), limits(clock, requests=60)
    for _ in range(40):
        one.admit(NOBODY, 0)
    for _ in range(20):
        other.admit(NOBODY, 0)
    all_taken = one.untold()["anonymous:requests"] + other.untold()["anonymous:requests"]
    one.learn({"anonymous:requests": all_taken})
    other.learn({"anonymous:requests": all_taken})

    for held in (one, other):
        with pytest.raises(Refused):
            held.admit(NOBODY, 0)


def test_what_is_taken_while_the_ledger_is_told_is_not_lost(clock: Clock) -> None:
    held = limits(clock, requests=60)
    held.admit(NOBODY, 0)
    underway = held.untold()
    held.admit(NOBODY, 0)
    held.learn(underway)

    assert told(held.admit(NOBODY, 0))["remaining-requests"] == "57"
    assert held.untold() == {"anonymous:requests": 2000.0}


def test_buckets_that_ran_empty_are_forgotten(clock: Clock) -> None:
    held = limits(clock, requests=60)
    held.admit(NOBODY, 0)
    held.untold()
    clock.now += 61

    assert held.untold() == {}
    assert held._buckets == {}


def test_an_estimate_counts_texts_and_leaves_images_to_the_engine() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "x" * 10_000}}
    sent = {"messages": [{"content": "x" * 40}, {"content": [{"type": "text", "text": "y" * 39}, image]}, {}]}

    assert estimated(sent) == 20
    assert estimated({"prompt": "x" * 4}) == 1
    assert estimated({"prompt": ["x" * 4, "y" * 8]}) == 3
    assert estimated({"prompt": [7, 8, 9]}) == 3
    assert estimated({"prompt": [[7, 8], [9]]}) == 3


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0s"), (0.12, "120ms"), (1, "1s"), (8.64, "8.64s"), (59.9996, "1m0s"), (360, "6m0s")]
)
def test_durations_are_told_as_openai_tells_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told
