"""The schedule: what is due? Asked every few seconds, by any number of workers at once.

A job is due because an operator asked for it, because enough new pairs came in, or because one has waited for long
enough; one at a time for each served model. Pairs count as new only when they came after the newest job began: a job
that failed is not repeated by itself before there is something new to learn.
"""

from typing import Literal

import feedback.archive
from feedback import expiry, jobs, pairs
from feedback.connection import Ledger
from feedback.records import Job, new_id
from trainer.settings import WorkshopSettings

HOUR_S = 3600


async def look(ledger: Ledger, settings: WorkshopSettings) -> str | None:
    """Settle what was voted, quarantine outliers, create a job if one is due.

    Returns the id of an open job that no worker attends to.
    """
    if await pairs.settle(ledger):  # without new votes nobody looks different, and each look reads all voters
        await pairs.settle_and_judge(ledger)
    if not await jobs.open_ids(ledger) and (trigger := await _due(ledger, settings)):
        # The seed is the time's, so that two jobs in a row do not replay the same old pairs.
        now = ledger.clock()
        job = Job(id=new_id("ftjob"), served_model=ledger.model, trigger=trigger, seed=int(now), created=now)
        await jobs.create_unless_open(ledger, job)
    return await jobs.unattended(ledger)


async def sweep(ledger: Ledger) -> int:
    return await expiry.sweep(ledger)


async def archive(ledger: Ledger) -> int:
    return (await feedback.archive.run(ledger)).completions


async def _due(ledger: Ledger, settings: WorkshopSettings) -> Literal["pairs", "schedule"] | None:
    newest, _ = await jobs.page(ledger, limit=1)
    since = newest[0].created if newest else 0.0
    fresh, oldest = await pairs.waiting_since(ledger, since)
    if oldest is None or fresh < ledger.settings.min_pairs:
        return None
    if settings.train_every_pairs and fresh >= settings.train_every_pairs:
        return "pairs"
    if settings.train_every_hours and ledger.clock() - oldest >= settings.train_every_hours * HOUR_S:
        return "schedule"
    return None
