"""Plans: what a job trains on, from where, and against what it is measured. Made once, kept in its manifest."""

import asyncio
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from feedback import adapters, caps, files, jobs, pairs, votes
from feedback.errors import AdapterUnknown, FileUnknown
from trainer import cost, dataset, hyperparameters, manifest, schedule
from trainer.dataset import Dataset, Least
from trainer.manifest import Base, Frozen, Manifest
from trainer.work import Work


class TrainingFileUnknown(Exception):
    """The job names a training file that this workshop cannot read."""


async def freeze(work: Work) -> Manifest:
    """Freeze the dataset, or find it frozen by an earlier attempt.

    Raises TooFewPairs, TrainingFileUnknown, JobLeaseLost, JobFinished, OSError.
    """
    began = time.monotonic()
    train_file, held_out_file = work.folder / "train.jsonl", work.folder / "heldout.jsonl"
    known = manifest.read(work.folder)
    if known and _is_whole(known, train_file, held_out_file):
        return known
    rows, frozen = await _from_ledger(work) if work.job.training_file == "ledger" else await _from_file(work)
    rows.write(train_file, held_out_file)

    base = await asyncio.to_thread(manifest.describe_base, work.settings.base)
    known = await _plan(work, base, frozen)
    known.seconds["freeze"] = round(time.monotonic() - began, 3)
    known.write(work.folder)
    await work.save(dataset_digest=rows.digest, pairs=len(rows.train), held_out=len(rows.held_out))
    dropped = ", ".join(f"{count} {reason}" for reason, count in known.dataset.dropped.items())
    await work.tell(
        f"Dataset frozen: {len(rows.train)} pairs to train on, {len(rows.held_out)} held out, "
        f"{frozen.replayed} of them old, {dropped or 'none'} dropped",
        data={"stage": "freeze", "seconds": known.seconds["freeze"], "dataset_digest": rows.digest},
    )
    return known


async def rehearse(work: Work) -> None:
    """Keep in the job's record what it would do now: data, start, settings, cost, and which triggers are due.

    Nothing is frozen and no file is written. Raises as `freeze` does.
    """
    rows, frozen = await _from_ledger(work) if work.job.training_file == "ledger" else await _from_file(work)
    known = await _plan(work, await asyncio.to_thread(manifest.describe_base, work.settings.base), frozen)
    told = {
        "dataset": {
            "digest": rows.digest,
            "train": len(rows.train),
            "held_out": len(rows.held_out),
            "by_source": dict(sorted(Counter(pair.source for pair in [*rows.train, *rows.held_out]).items())),
            **frozen.model_dump(include={"replayed", "dropped", "votes", "voters", "file"}),
        },
        "base": known.base.model_dump(include={"revision", "tokenizer", "template"}),
        "parent": known.parent,
        "start": known.start,
        "hyperparameters": known.hyperparameters,
        "cost": (await work.patiently(lambda: cost.estimate(work.ledger, known))).model_dump(),
        "triggers": [
            asdict(each) for each in await work.patiently(lambda: schedule.triggers(work.ledger, work.settings))
        ],
    }
    await work.save(plan=told, dataset_digest=rows.digest, pairs=len(rows.train), held_out=len(rows.held_out))
    await work.tell(
        f"Planned {len(rows.train)} pairs to train on and {len(rows.held_out)} held out; nothing was trained"
    )


async def _from_ledger(work: Work) -> tuple[Dataset, Frozen]:
    """Raises TooFewPairs."""
    least = _least(work)
    ids, replayed, capped = await _select(work, least)
    rows = dataset.build(ids, await work.patiently(lambda: pairs.get_many(work.ledger, ids)))
    dataset.refuse_too_few(rows, least)
    if capped:
        rows.dropped["capped"] = capped
    taught = [*rows.train, *rows.held_out]
    if not work.job.dry_run:
        await work.patiently(lambda: jobs.freeze(work.ledger, work.job.id, work.token, ids))
        await work.patiently(lambda: jobs.note_opinions(work.ledger, work.job.id, work.token, taught))
    opinions = sorted({opinion for pair in taught for opinion in pair.opinions})
    cast = await work.patiently(lambda: votes.get_many(work.ledger, opinions))
    waiting = set(await work.patiently(lambda: pairs.waiting(work.ledger)))
    fresh = [pair.created for pair in taught if pair.id in waiting]
    frozen = _frozen(
        rows,
        ids,
        replayed=replayed,
        votes=len(cast),
        voters=len({opinion.voter for opinion in cast}),
        voted=median(fresh) if fresh else None,
    )
    return rows, frozen


async def _from_file(work: Work) -> tuple[Dataset, Frozen]:
    """An uploaded file: the same bytes give the same dataset, and no vote has a part in it.

    Raises TooFewPairs, TrainingFileUnknown.
    """
    try:
        file = await work.patiently(lambda: files.get(work.ledger, work.job.training_file))
        found = await asyncio.to_thread(files.rows, work.ledger, file)
    except FileUnknown as unknown:
        raise TrainingFileUnknown(str(unknown)) from None
    ids = sorted(pair.id for pair in found)
    rows = dataset.build(ids, found)
    dataset.refuse_too_few(rows, _least(work))
    return rows, _frozen(rows, ids, file=file.id, file_sha256=file.sha256)


def _frozen(rows: Dataset, ids: list[str], **facts: Any) -> Frozen:
    return Frozen(
        digest=rows.digest,
        pairs=ids,
        train=[pair.id for pair in rows.train],
        held_out=[pair.id for pair in rows.held_out],
        dropped={str(reason): count for reason, count in sorted(rows.dropped.items())},
        **facts,
    )


def _least(work: Work) -> Least:
    return Least(work.ledger.settings.min_pairs, work.ledger.settings.min_held_out_pairs)


async def _select(work: Work, least: Least) -> tuple[list[str], int, int]:
    """Ids of the job's pairs, how many of them are replayed, and how many were over a cap.

    A job has those that it froze first; what was capped then is no longer known.
    """
    frozen = await work.patiently(lambda: jobs.frozen(work.ledger, work.job.id))
    if frozen:
        waiting = set(await work.patiently(lambda: pairs.waiting(work.ledger)))
        return frozen, sum(pair_id not in waiting for pair_id in frozen), 0
    await work.patiently(lambda: pairs.settle_and_judge(work.ledger))
    everything = await work.patiently(lambda: pairs.ids(work.ledger))
    selection = dataset.choose(
        await work.patiently(lambda: pairs.get_many(work.ledger, everything)),
        await work.patiently(lambda: pairs.waiting(work.ledger)),
        work.settings.replay,
        work.job.seed,
        least,
        caps.of(work.ledger.settings),
    )
    return selection.ids, len(selection.replayed), selection.capped


async def _plan(work: Work, base: Base, frozen: Frozen) -> Manifest:
    parent = await _live(work, base.revision)
    width = await asyncio.to_thread(_width, base.name)
    return Manifest(
        job=work.job.id,
        served_model=work.ledger.model,
        created=work.ledger.clock(),
        dataset=frozen,
        base=base,
        parent=parent,
        start=parent if work.settings.start == "live" else None,
        hyperparameters=hyperparameters.choose(width, work.settings, work.job),
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
