"""Plans: what a job trains on, from where, and against what it is measured. Made once, kept in its manifest."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from feedback import adapters, caps, files, jobs, pairs, votes
from feedback.errors import AdapterUnknown, FileUnknown
from trainer import dataset, hyperparameters, manifest, sampling
from trainer.dataset import Dataset, Drop
from trainer.manifest import Base, Frozen, Manifest
from trainer.sampling import Least, Recent, Replay
from trainer.work import Work

ROUNDS = 200
"""Jobs whose pairs are told apart by age; whatever is older has long been outnumbered."""


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
    train, held_out = rows.pairs
    await work.save(dataset_digest=rows.digest, pairs=train, held_out=held_out)
    dropped = ", ".join(f"{count} {reason}" for reason, count in known.dataset.dropped.items())
    await work.tell(
        f"Dataset frozen: {train} pairs to train on, {held_out} held out, "
        f"{frozen.replayed} of them old, {dropped or 'none'} dropped",
        data={"stage": "freeze", "seconds": known.seconds["freeze"], "dataset_digest": rows.digest},
    )
    return known


async def _from_ledger(work: Work) -> tuple[Dataset, Frozen]:
    """Raises TooFewPairs."""
    ids, replayed, dropped = await _select(work)
    rows = dataset.build(ids, await work.patiently(lambda: pairs.get_many(work.ledger, sorted(set(ids)))))
    rows.dropped.update(dropped)
    dataset.refuse_too_few(rows, _least(work))
    await work.patiently(lambda: jobs.freeze(work.ledger, work.job.id, work.token, ids))
    taught = list({pair.id: pair for pair in [*rows.train, *rows.held_out]}.values())
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
    found, dropped = dataset.fit(found, work.settings.near_identical)
    ids = sorted(pair.id for pair in found)
    rows = dataset.build(ids, found)
    rows.dropped.update(dropped)
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


async def _select(work: Work) -> tuple[list[str], int, dict[Drop, int]]:
    """Ids of the job's pairs, how many of them are replayed, and how many others were left out.

    A job has those that it froze first; what was left out then is no longer known.
    """
    frozen = await work.patiently(lambda: jobs.frozen(work.ledger, work.job.id))
    waiting = await work.patiently(lambda: pairs.waiting(work.ledger))
    if frozen:
        return frozen, len(set(frozen) - set(waiting)), {}
    await work.patiently(lambda: pairs.settle_and_judge(work.ledger))
    waiting = await work.patiently(lambda: pairs.waiting(work.ledger))
    everything = await work.patiently(lambda: pairs.ids(work.ledger))
    standing = await work.patiently(lambda: pairs.get_many(work.ledger, everything))
    found, dropped = dataset.fit(standing, work.settings.near_identical)
    limits = caps.of(work.ledger.settings)
    chosen = sampling.choose(found, waiting, await _how(work), work.job.seed, _least(work), limits)
    if chosen.capped:
        dropped["capped"] = chosen.capped
    return chosen.ids, chosen.replayed, dropped


async def _how(work: Work) -> Recent | Replay:
    if work.settings.start == "warm":
        return Replay(work.settings.replay)
    width = await asyncio.to_thread(_width, work.settings.base)
    learnt, _ = await work.patiently(lambda: jobs.page(work.ledger, limit=ROUNDS))
    ended = [job.started for job in learnt if job.status == "succeeded" and job.started is not None]
    return Recent(hyperparameters.half_life(width, work.settings), work.settings.dataset_pairs, ended)


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
        start=parent if work.settings.start == "warm" else None,
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
