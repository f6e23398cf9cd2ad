"""Reruns: the same manifest gives the same dataset, byte for byte, and on a CPU the same adapter.

The lessons are read from the ledger again, by the ids that the job froze, so a vote that was withdrawn or erased since
is gone from here as well: then the dataset is another one, and that is said instead of training on something else.
"""

import asyncio
from pathlib import Path

from pydantic import BaseModel

from feedback import jobs
from feedback.adapters import digest_of
from feedback.connection import Ledger
from feedback.errors import JobUnknown
from trainer import manifest, plan, stages
from trainer.child import run_recipe
from trainer.files import write_whole
from trainer.manifest import Manifest
from trainer.progress import RecipeRefused, Reporter
from trainer.settings import WorkshopSettings
from trainer.work import Work


class Outcome(BaseModel):
    adapter: str
    dataset_digest: str
    is_same: bool
    other_versions: dict[str, str]


async def rerun(ledger: Ledger, settings: WorkshopSettings, known: Manifest, out: Path, reporter: Reporter) -> Outcome:
    """Writes rows, checkpoints and the adapter into `out`. Raises RecipeRefused, RecipeFailed."""
    try:
        job = await jobs.get(ledger, known.job)
    except JobUnknown as unknown:
        raise RecipeRefused(
            f"the manifest must be of a job of this ledger. It is of {known.job}: {unknown}. "
            "Name the ledger with HEED_LEDGER_URL."
        ) from unknown
    # As a dry run it reads what was frozen and freezes nothing.
    work = Work(ledger, settings, job.model_copy(update={"dry_run": True}), token="")
    _, _, rows, _ = await plan.gather(work)
    if rows.digest != known.dataset.digest:
        missing = {*known.dataset.train, *known.dataset.held_out} - {one.id for one in [*rows.train, *rows.held_out]}
        raise RecipeRefused(
            f"the dataset must be that of the manifest, {known.dataset.digest[:12]}. It is {rows.digest[:12]} now: "
            f"{len(missing)} of its lessons do not stand any more or are others. Ask for a new job instead."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "train.jsonl", rows.train_bytes)

    async def tell(event: dict[str, object]) -> None:
        if event["event"] in ("step", "checkpoint", "resumed"):
            reporter.emit(str(event.pop("event")), **event)

    method = known.dataset.method
    told, log = [method, *stages.flags(known, settings, out)], out / f"{method}.log"
    await run_recipe(told, log, settings.nice, tell, processes=known.computing.processes)
    made, now = digest_of(out / "adapter"), manifest.versions()
    return Outcome(
        adapter=str(out / "adapter"),
        dataset_digest=rows.digest,
        is_same=made == known.trained,
        other_versions={name: was for name, was in known.versions.items() if now.get(name) != was},
    )


def run(manifest_file: Path, out: Path, reporter: Reporter) -> int:
    """Exit code: 0 when the adapter's bytes are the manifest's, 3 when they are others."""
    known = manifest.read(manifest_file.parent if manifest_file.is_file() else manifest_file)
    if known is None:
        raise RecipeRefused(
            f"--manifest must be a job's manifest.json, or the folder with it. {manifest_file} is none. "
            "`heed jobs` lists jobs; their folders are in var/jobs."
        )
    outcome = asyncio.run(_within_ledger(known, out, reporter))
    reporter.emit("done", **outcome.model_dump())
    return 0 if outcome.is_same else 3


async def _within_ledger(known: Manifest, out: Path, reporter: Reporter) -> Outcome:
    from feedback.connection import open_ledger
    from feedback.settings import LedgerSettings

    ledger = open_ledger(LedgerSettings(), known.served_model)
    try:
        return await rerun(ledger, WorkshopSettings(), known, out, reporter)
    finally:
        await ledger.close()
