"""Plans: what a job trains on, from where, and against what it is measured. Made once, kept in its manifest."""

import asyncio
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from feedback import adapters
from feedback.errors import AdapterUnknown
from trainer import cost, dataset, hyperparameters, manifest, schedule, sources
from trainer.dataset import Dataset
from trainer.manifest import Base, Computing, Frozen, Manifest
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
    base, width, rows, frozen = await gather(work)
    rows.write(train_file, held_out_file)

    known = await _plan(work, base, width, frozen)
    known.seconds["freeze"] = round(time.monotonic() - began, 3)
    known.write(work.folder)
    train, held_out = rows.size
    await work.save(dataset_digest=rows.digest, pairs=train, held_out=held_out, rows=len(rows.train))
    dropped = ", ".join(f"{count} {reason}" for reason, count in known.dataset.dropped.items())
    await work.tell(
        f"Dataset frozen for {frozen.method}: {train} lessons to train on, {held_out} held out, "
        f"{frozen.replayed} of them old, {dropped or 'none'} dropped",
        data={"stage": "freeze", "seconds": known.seconds["freeze"], "dataset_digest": rows.digest},
    )
    return known


async def rehearse(work: Work) -> None:
    """Keep in the job's record what it would do now: data, start, settings, cost, and which triggers are due.

    Nothing is frozen and no file is written. Raises as `freeze` does.
    """
    base, width, rows, frozen = await gather(work)
    known = await _plan(work, base, width, frozen)
    triggers = await work.patiently(lambda: schedule.triggers(work.ledger, work.settings))
    expected = await work.patiently(lambda: cost.estimate(work.ledger, known))
    train, held_out = rows.size
    told = {
        "method": frozen.method,
        "dataset": {
            "digest": rows.digest,
            "train": train,
            "drawn": len(rows.train),
            "held_out": held_out,
            "by_source": dict(sorted(Counter(one.source for one in {o.id: o for o in rows.train}.values()).items())),
            **frozen.model_dump(include={"replayed", "dropped", "votes", "voters", "file"}),
        },
        "base": known.base.model_dump(include={"revision", "tokenizer", "template"}),
        "parent": known.parent,
        "start": known.start,
        "hyperparameters": known.hyperparameters,
        "computing": known.computing.model_dump(),
        "cost": expected.model_dump(),
        "triggers": [asdict(each) for each in triggers],
    }
    await work.save(plan=told, dataset_digest=rows.digest, pairs=train, held_out=held_out)
    await work.tell(f"Planned {train} lessons to train on, {held_out} held out; trained nothing")


async def gather(work: Work) -> tuple[Base, int, Dataset, Frozen]:
    base = await asyncio.to_thread(manifest.describe_base, work.settings.base)
    width = await asyncio.to_thread(_width, base.name)
    if work.job.training_file == "ledger":
        rows, frozen = await sources.from_ledger(work, base, width)
    else:
        rows, frozen = await sources.from_file(work)
    return base, width, rows, frozen


async def _plan(work: Work, base: Base, width: int, frozen: Frozen) -> Manifest:
    parent = await _live(work, base.revision)
    is_warm = work.settings.start == "warm" and frozen.method != "reward"
    return Manifest(
        job=work.job.id,
        served_model=work.ledger.model,
        created=work.ledger.clock(),
        dataset=frozen,
        base=base,
        parent=parent,
        start=parent if is_warm else None,
        half_life_pairs=None if is_warm else hyperparameters.half_life(width, work.settings),
        hyperparameters=hyperparameters.choose(width, work.settings, work.job, frozen.method),
        seed=work.job.seed,
        computing=Computing(
            precision=work.settings.precision,
            qlora=work.settings.qlora,
            processes=work.settings.processes,
            report_to=work.settings.report_to,
        ),
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
