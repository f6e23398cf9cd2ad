"""Releases: a judged adapter is published, registered, and by policy asked for.

A candidate that the gate refused is released as well, as `rejected`: its job has done what it was asked for and
succeeds with an adapter nobody can promote, which an operator can look at, and its pairs count as learnt from.
(Failing the job instead would train the same pairs to the same end again.)
"""

import asyncio

from feedback import adapters, canary, jobs
from feedback.errors import AdapterIsLive, AdapterNotServable, CanaryRunning, RecordConflict
from feedback.records import Adapter, Golden
from trainer.gate import Decision, Verdict
from trainer.manifest import Manifest
from trainer.publish import publish
from trainer.work import Work


async def release(work: Work, known: Manifest, verdict: Verdict) -> Adapter:
    """Raises PublishedOtherwise, JobLeaseLost, JobFinished, OSError."""
    version = await work.patiently(lambda: jobs.number(work.ledger, work.job.id, work.token))
    async with work.stage(known, "publish"):
        source, shelf = work.folder / ("adapter" if verdict.eta == 1 else "scaled"), work.settings.adapters
        adapter_id, digest = await asyncio.to_thread(publish, source, shelf, f"{work.ledger.model}-v{version}")
        assert adapter_id == Adapter.id_of(work.ledger.model, version, digest)
        known.adapter = adapter_id
    adapter = Adapter(
        id=adapter_id,
        served_model=work.ledger.model,
        version=version,
        digest=digest,
        parent=known.parent,
        base_model=known.base.name,
        base_revision=known.base.revision,
        job=work.job.id,
        dataset_digest=known.dataset.digest,
        pairs=len(set(known.dataset.train)),
        votes=known.dataset.votes,
        voters=known.dataset.voters,
        voted=known.dataset.voted,
        hyperparameters={**known.hyperparameters, "seed": known.seed, "start": known.start},
        metrics=verdict.numbers,
        gate=verdict.model_dump(exclude={"numbers"}),
        golden=[Golden.model_validate(one) for one in known.golden],
        state="rejected" if verdict.decision == "fail" else "candidate",
        created=work.ledger.clock(),
    )
    await work.save(adapter=adapter_id)
    await work.patiently(lambda: adapters.register(work.ledger, adapter, "; ".join(verdict.reasons)))
    data = {"stage": "publish", "seconds": known.seconds["publish"], "adapter": adapter_id}
    await work.tell(f"Adapter {adapter_id} published, state {adapter.state}", data=data)
    return adapter


async def promote(work: Work, adapter: Adapter, decision: Decision) -> None:
    """By policy. A job that was taken up again after its adapter was wanted does not want it a second time."""
    if adapter.state == "rejected":
        await work.tell(f"{adapter.id} will not be served: the gate said no", level="warn")
        return
    settings = work.settings
    is_held = decision == "canary-only" and settings.promote != "eager"
    if settings.promote == "manual" or (is_held and not settings.canary_percent):
        await work.tell(f"{adapter.id} waits for an operator: heed promote {adapter.id}")
        return
    registered = await work.patiently(lambda: adapters.get(work.ledger, adapter.id))
    if registered.state != "candidate":
        return
    # A job that was cancelled in the last moment must not change what is live.
    await work.patiently(lambda: jobs.heartbeat(work.ledger, work.job.id, work.token))
    if is_held:
        await _try(work, adapter)
        return
    await work.patiently(lambda: adapters.want(work.ledger, adapter.id, f"{work.job.id}: the gate says {decision}"))
    await work.tell(f"{adapter.id} is asked to go live")


async def _try(work: Work, adapter: Adapter) -> None:
    percent, reason = work.settings.canary_percent, f"{work.job.id}: the gate says canary-only"
    try:
        await work.patiently(lambda: canary.start(work.ledger, adapter.id, percent, auto=True, reason=reason))
    except (CanaryRunning, AdapterIsLive, AdapterNotServable, RecordConflict) as refusal:
        await work.tell(f"{adapter.id} waits for an operator, as it cannot be tried: {refusal}", level="warn")
        return
    await work.tell(f"{adapter.id} is tried on {percent:g} % of users and conversations: heed canary")
