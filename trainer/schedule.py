"""The schedule: what is due? Asked every few seconds, by any number of workers at once.

A job is due because an operator asked for it, because enough new pairs came in, because one has waited for long
enough, or because nobody is asking anything; one at a time for each served model. Pairs count as new only when they
came after the newest job began: a job that failed is not repeated by itself before there is something new to learn.
Where there are too few pairs, rated answers count instead.
"""

import feedback.archive
from feedback import completions, expiry, jobs, methods, pairs
from feedback.connection import Ledger
from feedback.errors import TooFewPairs
from feedback.records import Job, new_id
from feedback.triggers import Trigger, tell
from trainer.settings import WorkshopSettings

HOUR_S, MINUTE_S = 3600, 60


async def look(ledger: Ledger, settings: WorkshopSettings) -> str | None:
    """Settle what was voted, quarantine outliers, tell what is due, create a job if one is.

    Returns the id of an open job that no worker attends to.
    """
    if await pairs.settle(ledger):  # without new votes nobody looks different, and each look reads all voters
        await pairs.settle_and_judge(ledger)
    found = await triggers(ledger, settings)
    await tell(ledger, found)
    due = [each for each in found if each.is_due]
    if due and not await jobs.open_ids(ledger):
        # The seed is the time's, so that two jobs in a row do not replay the same old pairs.
        now = ledger.clock()
        job = Job(id=new_id("ftjob"), served_model=ledger.model, trigger=due[0].name, seed=int(now), created=now)
        await jobs.create_unless_open(ledger, job)
    return await jobs.unattended(ledger)


async def sweep(ledger: Ledger) -> int:
    return await expiry.sweep(ledger)


async def archive(ledger: Ledger) -> int:
    return (await feedback.archive.run(ledger)).completions


async def triggers(ledger: Ledger, settings: WorkshopSettings) -> list[Trigger]:
    """What may start a job by itself, and whether it would do so now. Jobs that are open are not looked at."""
    since = await jobs.newest_at(ledger)
    fresh, oldest = await pairs.waiting_since(ledger, since)
    enough, kind = ledger.settings.min_pairs, "pairs"
    if fresh < enough and await _learns_from_thumbs(ledger):
        fresh, oldest = await pairs.rated_since(ledger, since)
        enough, kind = 2 * ledger.settings.min_thumbs, "rated answers"
    waited_h = (ledger.clock() - oldest) / HOUR_S if oldest is not None else 0.0
    quiet_m = (ledger.clock() - await completions.newest_at(ledger)) / MINUTE_S
    is_enough = oldest is not None and fresh >= enough
    has = f"{fresh} new {kind}" + ("" if is_enough else f", fewer than the {enough} that a job needs")
    many, hours, quiet = settings.train_every_pairs, settings.train_every_hours, settings.train_when_idle_minutes
    return [
        Trigger("pairs", is_enough and 0 < many <= fresh, f"{has}; {many or 'no number of them'} start a job"),
        Trigger(
            "schedule",
            is_enough and 0 < hours <= waited_h,
            f"{has}, the oldest has waited for {waited_h:.1f} h; {hours:g} h start a job" if hours else "switched off",
        ),
        Trigger(
            "idle",
            is_enough and 0 < quiet <= quiet_m,
            f"{has}, the last answer was {quiet_m:.0f} min ago; {quiet:g} min start a job" if quiet else "switched off",
        ),
    ]


async def _learns_from_thumbs(ledger: Ledger) -> bool:
    try:
        return await methods.method_for(ledger) == "unpaired"
    except TooFewPairs:
        return False
