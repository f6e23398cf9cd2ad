"""What becomes of a judged adapter by policy: live, tried on some, or left to an operator."""

from pathlib import Path
from typing import Any

from feedback import adapters, canary, jobs
from feedback.connection import Ledger
from feedback.records import Adapter, Job, new_id
from trainer.gate import Decision
from trainer.release import promote
from trainer.settings import WorkshopSettings
from trainer.work import Work


async def released(ledger: Ledger, var: Path, version: int, decision: Decision, **settings: Any) -> tuple[str, str]:
    """The adapter, and the last thing its job told."""
    made = await jobs.create(ledger, Job(id=new_id("ftjob"), served_model=ledger.model, created=ledger.clock()))
    job, token = await jobs.claim(ledger, made.id)
    adapter = Adapter(
        id=Adapter.id_of("heed", version, f"{version:064x}"[::-1]),
        served_model="heed",
        version=version,
        digest="d",
        base_model="pocket",
        base_revision="r",
        job=job.id,
        dataset_digest="d",
        pairs=1,
        state="candidate",
        created=ledger.clock(),
    )
    await adapters.register(ledger, adapter, "trained")
    work = Work(ledger, WorkshopSettings(var=var, **settings), job, token)
    await promote(work, adapter, decision)
    await jobs.cancel(ledger, job.id)
    events, _ = await jobs.events(ledger, job.id)
    return adapter.id, next(event.message for event in events if adapter.id in event.message)


async def test_one_that_passed_goes_live_and_one_the_gate_cannot_tell_of_waits(ledger: Ledger, tmp_path: Path) -> None:
    held, told = await released(ledger, tmp_path, 1, "canary-only")
    passed, _ = await released(ledger, tmp_path, 2, "pass", canary_percent=10)

    assert told == f"{held} waits for an operator: heed promote {held}"
    assert (await adapters.serving(ledger)).wanted == passed
    assert await canary.running(ledger) is None


async def test_one_the_gate_cannot_tell_of_is_tried_where_that_is_set(ledger: Ledger, tmp_path: Path) -> None:
    tried, told = await released(ledger, tmp_path, 1, "canary-only", canary_percent=10)
    second, why = await released(ledger, tmp_path, 2, "canary-only", canary_percent=10)
    third, waits = await released(ledger, tmp_path, 3, "canary-only", canary_percent=10, promote="manual")

    found = await canary.running(ledger)
    assert found is not None
    assert (found.adapter, found.percent, found.auto, found.against) == (tried, 10, True, "heed-base")
    assert told == f"{tried} is tried on 10 % of users and conversations: heed canary"
    assert why.startswith(f"{second} waits for an operator, as it cannot be tried: {tried} is the canary")
    assert waits == f"{third} waits for an operator: heed promote {third}"
    assert [(await adapters.get(ledger, one)).state for one in (tried, second, third)] == [
        "canary",
        "candidate",
        "candidate",
    ]
    assert (await adapters.serving(ledger)).wanted == "heed-base"
