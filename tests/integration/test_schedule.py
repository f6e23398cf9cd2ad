"""When a job is due, on a real ledger and an injected clock."""

import pytest

from feedback import jobs, votes
from feedback.connection import Ledger
from feedback.records import Rating, new_id
from feedback.triggers import told
from tests.answers import answered
from trainer.schedule import look, triggers
from trainer.settings import WorkshopSettings

HOUR_S = 3600


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(ledger: Ledger) -> Clock:
    clock = Clock()
    ledger.clock = clock
    ledger.settings = ledger.settings.model_copy(update={"min_pairs": 3})
    return clock


async def corrected(ledger: Ledger, prompts: int) -> None:
    """As many new pairs as prompts."""
    for _ in range(prompts):
        made = await answered(ledger, new_id("question"), "No.")
        await votes.cast(ledger, completion_id=made.id, rating="down", voter="ann", correction="Yes.")


def settings(pairs: int = 0, hours: float = 0, idle_minutes: float = 0) -> WorkshopSettings:
    return WorkshopSettings(train_every_pairs=pairs, train_every_hours=hours, train_when_idle_minutes=idle_minutes)


async def test_enough_new_pairs_start_a_job_and_only_one(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 4)
    too_few = await look(ledger, settings(pairs=5))
    await corrected(ledger, 1)

    started = await look(ledger, settings(pairs=5))
    again = await look(ledger, settings(pairs=5))

    assert too_few is None
    assert started is not None
    assert again == started
    assert (await jobs.get(ledger, started)).trigger == "pairs"


async def test_no_pair_waits_longer_than_the_schedule_says(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 3)
    clock.now += 23 * HOUR_S
    early = await look(ledger, settings(hours=24))
    clock.now += HOUR_S

    due = await look(ledger, settings(hours=24))

    assert early is None
    assert due is not None
    assert (await jobs.get(ledger, due)).trigger == "schedule"


async def test_silence_starts_a_job_on_what_is_new(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 3)
    clock.now += 29 * 60
    await answered(ledger, "Is anybody still asking?", "Yes.")
    clock.now += 29 * 60
    early = await look(ledger, settings(idle_minutes=30))
    clock.now += 60

    due = await look(ledger, settings(idle_minutes=30))

    assert early is None
    assert due is not None
    assert (await jobs.get(ledger, due)).trigger == "idle"


async def test_each_trigger_says_why_it_is_due_or_not(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 4)
    await look(ledger, settings())
    clock.now += 2 * HOUR_S

    found = await triggers(ledger, settings(pairs=5, hours=1))

    assert [(each.name, each.is_due) for each in found] == [("pairs", False), ("schedule", True), ("idle", False)]
    assert [each.why for each in found] == [
        "4 new pairs; 5 start a job",
        "4 new pairs, the oldest has waited for 2.0 h; 1 h start a job",
        "switched off",
    ]


async def test_each_look_tells_what_would_start_a_job(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 4)

    await look(ledger, settings(pairs=500))

    assert (await told(ledger))[0] == {"name": "pairs", "is_due": False, "why": "4 new pairs; 500 start a job"}


async def test_the_schedule_waits_for_as_many_pairs_as_training_needs(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 2)
    clock.now += 48 * HOUR_S

    assert await look(ledger, settings(hours=24)) is None


async def test_thumbs_of_both_kinds_are_scheduled_where_pairs_are_too_few(ledger: Ledger, clock: Clock) -> None:
    ledger.settings.min_thumbs = 3
    for number in range(5):
        await rated(ledger, "up" if number % 2 else "down")
    clock.now += 48 * HOUR_S
    too_few = await look(ledger, settings(hours=24))
    await rated(ledger, "up")

    due = await look(ledger, settings(hours=24))

    assert too_few is None
    assert due is not None


async def rated(ledger: Ledger, rating: Rating) -> None:
    made = await answered(ledger, new_id("question"), "Perhaps.")
    await votes.cast(ledger, completion_id=made.id, rating=rating, voter="ann")


async def test_a_job_that_failed_is_not_repeated_before_there_is_something_new(ledger: Ledger, clock: Clock) -> None:
    await corrected(ledger, 5)
    first = await look(ledger, settings(pairs=5, hours=24))
    assert first is not None
    job, token = await jobs.claim(ledger, first)
    clock.now += 1
    await jobs.fail(ledger, job, token, "training_failed", "it was not to be")
    clock.now += 100 * HOUR_S

    assert await look(ledger, settings(pairs=5, hours=24)) is None
    await corrected(ledger, 5)
    assert await look(ledger, settings(pairs=5, hours=24)) not in (None, first)
