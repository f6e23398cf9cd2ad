"""Training runs in the shapes of OpenAI's fine-tuning API, so that its official client can ask for one."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter

from feedback import files, jobs, methods, pairs
from feedback.connection import Ledger
from feedback.errors import FileUnknown, JobUnknown
from feedback.methods import METHODS
from feedback.records import Job, JobEvent, Method, new_id
from serve.auth import Operator
from serve.errors import Refused
from serve.gateway import After, Gateway, Here, Limit, Model, page
from serve.protocol import JobRequest, Preferential

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])

LOOK_EVERY_S = 0.1

EVENTS_READ = 10_000
"""As many as a job keeps."""

Json = dict[str, Any]


@router.post("")
async def create(body: JobRequest, here: Here, _: Operator) -> Json:
    ledger = here.ledger(body.model)
    method = _expect_known(body)
    await _expect_enough(ledger, body.training_file, method)
    job = Job(
        id=new_id("ftjob"),
        served_model=body.model,
        training_file=body.training_file,
        method=_asked(body, method),
        suffix=body.suffix,
        # A seed of its own unless one is asked for, so that two jobs in a row do not replay the same old pairs.
        seed=int(time.time()) if body.seed is None else body.seed,
        metadata=body.metadata,
        created=ledger.clock(),
        dry_run=body.dry_run,
    )
    await jobs.create(ledger, job)
    return _shown(await _planned(here, ledger, job.id) if body.dry_run else await jobs.get(ledger, job.id))


@router.get("")
async def list_jobs(here: Here, _: Operator, model: Model = None, after: After = None, limit: Limit = 20) -> Json:
    found, has_more = await jobs.page(here.ledger(model), after, limit)
    return page([_shown(job) for job in found], has_more)


@router.get("/{job_id}")
async def retrieve(job_id: str, here: Here, _: Operator) -> Json:
    return _shown(await here.where_known(lambda ledger: jobs.get(ledger, job_id), JobUnknown))


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, here: Here, _: Operator) -> Json:
    return _shown(await here.where_known(lambda ledger: jobs.cancel(ledger, job_id), JobUnknown))


@router.get("/{job_id}/events")
async def events(job_id: str, here: Here, _: Operator, after: After = None, limit: Limit = 20) -> Json:
    """Newest first."""
    told, has_more = await here.where_known(lambda ledger: jobs.events(ledger, job_id, after, limit), JobUnknown)
    return page([_shown_event(event) for event in told], has_more)


@router.get("/{job_id}/checkpoints")
async def checkpoints(job_id: str, here: Here, _: Operator, after: After = None, limit: Limit = 10) -> Json:
    """Newest first. Where an interrupted run would go on from; not adapters that can be served."""
    saved = [event for event in await _told(here, job_id) if event.type == "checkpoint"]
    start = next((i + 1 for i, event in enumerate(saved) if _checkpoint_id(event) == after), 0)
    shown = saved[start : start + limit]
    return page([_shown_checkpoint(event, job_id) for event in shown], len(saved) > start + limit)


async def _planned(here: Gateway, ledger: Ledger, job_id: str) -> Job:
    """As it is when it has its plan, or when that takes longer than somebody should wait: a worker may be training."""
    end = time.monotonic() + here.settings.dry_run_wait_s
    while True:
        job = await jobs.get(ledger, job_id)
        if not job.is_open or time.monotonic() >= end:
            return job
        await asyncio.sleep(LOOK_EVERY_S)


async def _told(here: Gateway, job_id: str) -> list[JobEvent]:
    told, _ = await here.where_known(lambda ledger: jobs.events(ledger, job_id, limit=EVENTS_READ), JobUnknown)
    return told


def _expect_known(body: JobRequest) -> Method | None:
    """The method asked for. Raises Refused (400)."""
    asked = body.method.type if body.method else None
    method = next((one for one in METHODS if one == asked), None)
    if asked and not method:
        words = f"the method is {asked[:40]!r}; a job learns by {', '.join(METHODS)}, or leave it out"
        raise Refused(400, "method_not_supported", words, "method.type")
    if body.training_file != "ledger" and method == "unpaired":
        words = "the method is 'unpaired' and the training file holds pairs; use 'dpo', or train on the ledger"
        raise Refused(400, "method_not_supported", words, "method.type")
    if body.validation_file not in (None, "ledger"):
        words = "a job measures itself on held-out conversations of its own training file; leave it out"
        raise Refused(400, "validation_file_not_supported", words, "validation_file")
    return method


def _asked(body: JobRequest, method: Method | None) -> Json:
    """The job's method as it is kept: `type` is there when it was named, or follows from a file; else a worker adds it,
    when it knows what the votes amount to."""
    if method is None and body.training_file != "ledger":
        method = "dpo"
    told = (getattr(body.method, method) if body.method and method else None) or Preferential()
    wishes = (body.hyperparameters or told.hyperparameters).model_dump(exclude_none=True)
    named = {"type": method} if method else {}
    return {**named, method or "dpo": {"hyperparameters": wishes}}


async def _expect_enough(ledger: Ledger, training_file: str, method: Method | None) -> None:
    """Raises TooFewPairs, Refused (400)."""
    if training_file == "ledger":
        await pairs.settle(ledger)
        await methods.require_enough(ledger, method)
        return
    try:
        files.expect_enough(ledger, await files.get(ledger, training_file))
    except FileUnknown:
        shown = training_file[:40]
        words = f"there is no file {shown!r}; upload one to /v1/files, or send 'ledger' for all votes"
        raise Refused(400, "file_not_found", words, "training_file") from None


def _shown(job: Job) -> Json:
    method = {"type": "dpo", **job.method}
    wishes = (method.get(method["type"]) or {}).get("hyperparameters") or {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "started_at": _whole(job.started),
        "finished_at": _whole(job.finished),
        "estimated_finish": None,
        "model": job.served_model,
        "fine_tuned_model": job.adapter,
        "organization_id": "heed",
        "status": job.status,
        "error": {"code": job.error.code, "message": job.error.message, "param": None} if job.error else None,
        "hyperparameters": {
            name: wishes.get(name, "auto") for name in ("n_epochs", "batch_size", "learning_rate_multiplier")
        },
        "method": method,
        "training_file": job.training_file,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "suffix": job.suffix,
        "metadata": job.metadata,
        "integrations": [],
        # Beyond OpenAI's fields.
        "reward_model": job.reward_model,
        "trigger": job.trigger,
        "attempts": job.attempts,
        "pairs": job.pairs,
        "held_out_pairs": job.held_out,
        "dataset_digest": job.dataset_digest,
        "seconds": job.seconds,
        "dry_run": job.dry_run,
        "plan": job.plan,
    }


def _shown_event(event: JobEvent) -> Json:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created),
        "level": event.level,
        "message": event.message,
        # OpenAI's type has two values; a checkpoint is a message to its client, with its step in `data`.
        "type": "metrics" if event.type == "metrics" else "message",
        "data": event.data,
    }


def _shown_checkpoint(event: JobEvent, job_id: str) -> Json:
    data = event.data or {}
    step, metrics = int(data.get("step", 0)), dict(data.get("metrics") or {})
    if "loss" in metrics:
        metrics["train_loss"] = metrics["loss"]  # OpenAI's name for it, beside TRL's
    return {
        "id": _checkpoint_id(event),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(event.created),
        "fine_tuning_job_id": job_id,
        "fine_tuned_model_checkpoint": f"{job_id}:step-{step}",
        "step_number": step,
        "metrics": {"step": step, **metrics},
    }


def _checkpoint_id(event: JobEvent) -> str:
    return event.id.replace("ftevent-", "ftckpt-")


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
