"""Tasks: what a nudge sets off. They take ids and return nothing; each opens the ledger and closes it again."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from feedback.connection import Ledger, open_ledger
from feedback.errors import ArchiveUnavailable, LedgerUnavailable
from trainer import schedule
from trainer.attempt import Outcome, attempt
from trainer.worker import NUDGE_EXPIRES_S, app, ledger_settings, settings, shutdown

log = logging.getLogger(__name__)


@app.task(name="trainer.tick")
def tick() -> None:
    """Look at each served model; nudge a worker for an open job that nobody attends to."""
    try:
        for model, job_id in asyncio.run(_unattended()):
            run_job.apply_async((model, job_id), queue="train", expires=NUDGE_EXPIRES_S)
    except LedgerUnavailable as error:
        log.warning("nothing scheduled: %s", error)


@app.task(name="trainer.sweep")
def sweep() -> None:
    try:
        if swept := asyncio.run(_sweep()):
            log.info("%d expired completions left the index", swept)
    except LedgerUnavailable as error:
        log.warning("nothing swept: %s", error)


@app.task(name="trainer.archive")
def archive() -> None:
    try:
        if moved := asyncio.run(_archive()):
            log.info("%d completions moved to the archive", moved)
    except (LedgerUnavailable, ArchiveUnavailable) as error:
        log.warning("not all is archived: %s", error)


@app.task(name="trainer.run_job")
def run_job(model: str, job_id: str) -> None:
    if shutdown.has_begun:
        return
    try:
        outcome = asyncio.run(_attempt(model, job_id))
    except LedgerUnavailable as error:
        log.warning("%s not claimed: %s", job_id, error)
    else:
        log.info("%s: %s", job_id, outcome)


@asynccontextmanager
async def _ledger(model: str) -> AsyncIterator[Ledger]:
    ledger = open_ledger(ledger_settings, model)
    try:
        yield ledger
    finally:
        await ledger.close()


async def _unattended() -> list[tuple[str, str]]:
    found = []
    for model in settings.names:
        async with _ledger(model) as ledger:
            if job_id := await schedule.look(ledger, settings):
                found.append((model, job_id))
    return found


async def _sweep() -> int:
    swept = 0
    for model in settings.names:
        async with _ledger(model) as ledger:
            swept += await schedule.sweep(ledger)
    return swept


async def _archive() -> int:
    moved = 0
    for model in settings.names:
        async with _ledger(model) as ledger:
            moved += await schedule.archive(ledger)
    return moved


async def _attempt(model: str, job_id: str) -> Outcome:
    leave = shutdown.event()
    try:
        async with _ledger(model) as ledger:
            return await attempt(ledger, settings, job_id, leave)
    finally:
        shutdown.forget(leave)
