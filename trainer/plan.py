"""Plans: what a job trains on, from where, and against what it is measured. Made once, kept in its manifest."""

import asyncio
import time
from pathlib import Path

from feedback import adapters
from feedback.errors import AdapterUnknown
from trainer import dataset, hyperparameters, manifest, sources
from trainer.manifest import Base, Frozen, Manifest
from trainer.work import Work


async def freeze(work: Work) -> Manifest:
    """Freeze the dataset, or find it frozen by an earlier attempt.

    Raises TooFewPairs, TrainingFileUnknown, JobLeaseLost, JobFinished, OSError.
    """
    began = time.monotonic()
    train_file, held_out_file = work.folder / "train.jsonl", work.folder / "heldout.jsonl"
    known = manifest.read(work.folder)
    if known and _is_whole(known, train_file, held_out_file):
        return known
    base = await asyncio.to_thread(manifest.describe_base, work.settings.base)
    width = await asyncio.to_thread(_width, base.name)
    if work.job.training_file == "ledger":
        rows, frozen = await sources.from_ledger(work, base, width)
    else:
        rows, frozen = await sources.from_file(work)
    rows.write(train_file, held_out_file)

    known = await _plan(work, base, width, frozen)
    known.seconds["freeze"] = round(time.monotonic() - began, 3)
    known.write(work.folder)
    train, held_out = rows.size
    await work.save(dataset_digest=rows.digest, pairs=train, held_out=held_out)
    dropped = ", ".join(f"{count} {reason}" for reason, count in known.dataset.dropped.items())
    await work.tell(
        f"Dataset frozen for {frozen.method}: {train} lessons to train on, {held_out} held out, "
        f"{frozen.replayed} of them old, {dropped or 'none'} dropped",
        data={"stage": "freeze", "seconds": known.seconds["freeze"], "dataset_digest": rows.digest},
    )
    return known


async def _plan(work: Work, base: Base, width: int, frozen: Frozen) -> Manifest:
    parent = await _live(work, base.revision)
    return Manifest(
        job=work.job.id,
        served_model=work.ledger.model,
        created=work.ledger.clock(),
        dataset=frozen,
        base=base,
        parent=parent,
        start=parent if work.settings.start == "warm" else None,
        half_life_pairs=None if work.settings.start == "warm" else hyperparameters.half_life(width, work.settings),
        hyperparameters=hyperparameters.choose(width, work.settings, work.job, frozen.method),
        seed=work.job.seed,
        versions=manifest.versions(),
    )


async def _live(work: Work, base_revision: str) -> str | None:
    """The live adapter, if there is one that belongs to this base and whose files are here."""
    serving = await work.patiently(lambda: adapters.serving(work.ledger))
    if serving.live == adapters.base_name(work.ledger.model):
        return None
    try:
        live = await work.patiently(lambda: adapters.get(work.ledger, serving.live))
    except AdapterUnknown:
        return None  # `heed check` tells
    if live.base_revision != base_revision:
        await work.tell(f"{live.id} belongs to another base model, so training starts afresh", level="warn")
        return None
    if not (work.settings.adapters / live.id).is_dir():
        await work.tell(f"The files of {live.id} are gone, so training starts afresh", level="warn")
        return None
    return live.id


def _width(base: str) -> int:
    from trainer.weights import base_config

    return int(base_config(base)["hidden_size"])


def _is_whole(known: Manifest, train_file: Path, held_out_file: Path) -> bool:
    try:
        return dataset.digest_of(train_file.read_bytes(), held_out_file.read_bytes()) == known.dataset.digest
    except OSError:
        return False
