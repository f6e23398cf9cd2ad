"""Attempts: one worker's try at one job.

A job is claimed with a lease and kept by heartbeats. When the lease is lost or the job cancelled, the recipe is
stopped and nothing more is written; when the worker is asked to leave, the recipe saves and the job is handed back
without the attempt counting. A failed attempt leaves its lease to run out, which is the pause before the next one.
"""

import asyncio
import logging
import time
from typing import Literal

from feedback import jobs
from feedback.connection import Ledger
from feedback.errors import (
    FeedbackError,
    JobAlreadyClaimed,
    JobFinished,
    JobLeaseLost,
    JobUnknown,
    LedgerUnavailable,
    TooFewPairs,
)
from trainer import plan, stages
from trainer.child import RecipeFailed
from trainer.guards import GuardsInvalid
from trainer.publish import PublishedOtherwise
from trainer.settings import WorkshopSettings
from trainer.sources import TrainingFileUnknown
from trainer.work import Work

log = logging.getLogger(__name__)
Outcome = Literal["left alone", "succeeded", "failed", "to be tried again", "cancelled", "lost", "handed back"]

HOPELESS = {
    TooFewPairs: "too_few_pairs",
    TrainingFileUnknown: "training_file_unknown",
    GuardsInvalid: "guards_invalid",
}
"""Refusals that another attempt would meet again."""


async def attempt(ledger: Ledger, settings: WorkshopSettings, job_id: str, leave: asyncio.Event) -> Outcome:
    """Raises LedgerUnavailable only while nothing is claimed yet."""
    try:
        job, token = await jobs.claim(ledger, job_id)
    except (JobUnknown, JobFinished, JobAlreadyClaimed) as reason:
        log.info("%s", reason)
        return "left alone"
    work = Work(ledger, settings, job, token)
    labour = asyncio.create_task(_work(work))
    pulse = asyncio.create_task(_keep_lease(work))
    asked = asyncio.create_task(leave.wait())
    try:
        await asyncio.wait({labour, pulse, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not labour.done():
            labour.cancel()
        await asyncio.wait({labour})
        return await _outcome(work, labour, pulse)
    finally:
        for task in (labour, pulse, asked):
            task.cancel()
        await asyncio.gather(labour, pulse, asked, return_exceptions=True)


async def _work(work: Work) -> Outcome:
    job, most = work.job, work.settings.max_attempts
    if job.attempts > most:
        message = f"{most} attempts ended without a result and without a word, as when memory runs out"
        work.is_ending = True
        await work.patiently(lambda: jobs.fail(work.ledger, work.job, work.token, "training_failed", message))
        work.tidy()
        return "failed"
    if job.started is None:
        await work.save(started=work.ledger.clock())
        await work.tell("A worker took the job up")
    else:
        await work.tell(f"A worker took the job up again, attempt {job.attempts} of {most}", level="warn")
    try:
        if job.dry_run:
            await plan.rehearse(work)
            work.is_ending = True
            await work.patiently(lambda: jobs.finish(work.ledger, work.job, work.token, "succeeded"))
            return "succeeded"
        made = await stages.run(work)
    except (TooFewPairs, TrainingFileUnknown, GuardsInvalid) as refusal:
        code, message = HOPELESS[type(refusal)], str(refusal)
    except (RecipeFailed, PublishedOtherwise, OSError) as failure:
        code, message = "training_failed", _public(work, failure)
    except FeedbackError:
        raise
    except Exception:  # the task's boundary
        log.exception("%s", job.id)
        code, message = "internal_error", "the workshop met an error that nobody foresaw; the worker's log tells it"
    else:
        seconds = work.ledger.clock() - (work.job.started or work.job.created)
        work.is_ending = True
        done = await work.patiently(lambda: jobs.finish(work.ledger, work.job, work.token, "succeeded"))
        data = {"stage": "job", "seconds": round(seconds, 3)}
        data |= {"adapter": done.adapter} if done.adapter else {"reward_model": done.reward_model}
        await work.tell(f"Job succeeded in {seconds:.0f} s with {made}", data=data)
        work.tidy()
        return "succeeded"
    if code not in HOPELESS.values() and job.attempts < most:
        await work.tell(f"Attempt {job.attempts} of {most} failed: {message}", level="warn")
        return "to be tried again"
    work.is_ending = True
    await work.patiently(lambda: jobs.fail(work.ledger, work.job, work.token, code, message))
    work.tidy()
    return "failed"


async def _keep_lease(work: Work) -> None:
    """Ends by JobLeaseLost or JobFinished. A ledger that is away costs the lease only when it is away for as long.

    Ending the job gives up its lease, which is no loss: then there is nothing left to keep.
    """
    lease_s = work.ledger.settings.job_lease_s
    kept_at = time.monotonic()
    while True:
        await asyncio.sleep(lease_s / 3)
        try:
            await jobs.heartbeat(work.ledger, work.job.id, work.token)
            kept_at = time.monotonic()
        except (JobLeaseLost, JobFinished):
            if not work.is_ending:
                raise
        except LedgerUnavailable as error:
            log.warning("%s: no heartbeat: %s", work.job.id, error)
            if time.monotonic() - kept_at > lease_s:
                raise JobLeaseLost(f"the ledger was away for longer than the lease on {work.job.id}") from error


async def _outcome(work: Work, labour: "asyncio.Task[Outcome]", pulse: "asyncio.Task[None]") -> Outcome:
    if not labour.cancelled() and labour.exception() is None:
        return labour.result()
    broken = (pulse.exception() if pulse.done() else None) or (None if labour.cancelled() else labour.exception())
    match broken:
        case None:
            await work.tell("The worker is leaving; the job waits for the next one", level="warn")
            await work.patiently(lambda: jobs.release(work.ledger, work.job.id, work.token, is_spent=False))
            return "handed back"
        case JobFinished():
            log.info("%s was cancelled", work.job.id)
            work.tidy()
            return "cancelled"
        case JobLeaseLost():
            log.warning("%s", broken)
            return "lost"
        case FeedbackError():
            log.warning("%s: %s", work.job.id, broken)
            return "to be tried again"
        case _:
            raise broken


def _public(work: Work, failure: Exception) -> str:
    """Words for the job's events: what happened, without where this machine keeps its files."""
    said = str(failure).replace(str(work.settings.var.resolve()), "var")
    logs = "/".join(("var", "jobs", work.job.id))
    return f"{said}; the whole story is in {logs}/*.log"
