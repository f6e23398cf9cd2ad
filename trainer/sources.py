"""Sources: where a job's rows come from, by its method: the votes in the ledger, or an uploaded file.

`dpo` learns from pairs, `supervised` from what people wrote when they corrected, `unpaired` from pairs and lone thumbs.
A job that names no method takes DPO where there are pairs enough, else the thumbs where there are those: one method a
job, for two in a row would each move the model away from the base.
"""

import asyncio
import functools
from collections.abc import Sequence
from statistics import median
from typing import Any, cast

from feedback import caps, completions, files, jobs, methods, pairs, votes
from feedback.errors import FileUnknown
from feedback.pairs import UnpairedPreference
from feedback.records import Completion, Method, Pair
from feedback.votes import Opinion
from trainer import dataset, hyperparameters, sampling
from trainer.dataset import Dataset, Drop, Lesson, Thumb
from trainer.manifest import Base, Frozen
from trainer.sampling import Least, Recent, Replay
from trainer.work import Work

ROUNDS = 200
"""Jobs whose pairs are told apart by age; whatever is older has long been outnumbered."""


class TrainingFileUnknown(Exception):
    """The job names a training file that this workshop cannot read."""


async def from_ledger(work: Work, base: Base, width: int) -> tuple[Dataset, Frozen]:
    """Raises TooFewPairs."""
    ids = await work.patiently(lambda: jobs.frozen(work.ledger, work.job.id))
    dropped: dict[Drop, int] = {}  # a job has what it froze first; what was left out then is no longer known
    if not ids:
        ids, dropped = await _select(work, width)
    method = _method(work)
    found = await standing(work, sorted(set(ids)))
    template = base.template if work.settings.other_template == "drop" else None
    rows = dataset.build(ids, found, method, await _asked(work, found), template)
    rows.dropped.update(dropped)
    dataset.refuse_too_few(rows, _least(work, method))
    taught = list({one.id: one for one in [*rows.train, *rows.held_out]}.values())
    if not work.job.dry_run:
        await work.patiently(lambda: jobs.freeze(work.ledger, work.job.id, work.token, ids))
        await work.patiently(lambda: jobs.note_opinions(work.ledger, work.job.id, work.token, taught))
    opinions = sorted({opinion for one in taught for opinion in one.opinions})
    cast_votes = await work.patiently(lambda: votes.get_many(work.ledger, opinions))
    waiting = set(await work.patiently(lambda: pairs.waiting(work.ledger)))
    fresh = [one.created for one in taught if one.id in waiting]
    return rows, _frozen(
        rows,
        ids,
        replayed=len({one.id for one in taught if isinstance(one, Pair)} - waiting),
        votes=len(cast_votes),
        voters=len({opinion.voter for opinion in cast_votes}),
        voted=median(fresh) if fresh else None,
    )


async def from_file(work: Work) -> tuple[Dataset, Frozen]:
    """An uploaded file: the same bytes give the same dataset, and no vote has a part in it.

    Raises TooFewPairs, TrainingFileUnknown.
    """
    try:
        file = await work.patiently(lambda: files.get(work.ledger, work.job.training_file))
        found = await asyncio.to_thread(files.rows, work.ledger, file)
    except FileUnknown as unknown:
        raise TrainingFileUnknown(str(unknown)) from None
    fitting, dropped = dataset.fit(found, work.settings.near_identical)
    ids = [one.id for one in fitting]
    method = _method(work)
    rows = dataset.build(ids, fitting, method)
    rows.dropped.update(dropped)
    dataset.refuse_too_few(rows, _least(work, method))
    return rows, _frozen(rows, ids, file=file.id, file_sha256=file.sha256)


def _frozen(rows: Dataset, ids: list[str], **facts: Any) -> Frozen:
    return Frozen(
        digest=rows.digest,
        method=rows.method,
        pairs=ids,
        train=[one.id for one in rows.train],
        held_out=[one.id for one in rows.held_out],
        dropped={str(reason): count for reason, count in sorted(rows.dropped.items())},
        **facts,
    )


def _least(work: Work, method: Method) -> Least:
    # Thumbs were counted, of each kind, before some fell on the held-out side and pairs counted for both kinds: so many
    # lessons in all is what surely is left of that. The recipe refuses those of one kind.
    settings = work.ledger.settings
    train = settings.min_thumbs if method == "unpaired" else settings.min_pairs
    return Least(train, settings.min_held_out_pairs)


async def _select(work: Work, width: int) -> tuple[list[str], dict[Drop, int]]:
    """Ids of the job's lessons, and how many others were left out. Raises TooFewPairs."""
    await work.patiently(lambda: pairs.settle_and_judge(work.ledger))
    if "type" not in work.job.method:
        method = await work.patiently(lambda: methods.method_for(work.ledger))
        await work.save(method={**work.job.method, "type": method})
    method = _method(work)
    waiting = await work.patiently(lambda: pairs.waiting(work.ledger))
    everything = await work.patiently(lambda: pairs.ids(work.ledger))
    if method == "unpaired":
        everything += await work.patiently(lambda: pairs.unpaired_ids(work.ledger))
    fitting, dropped = dataset.fit(await standing(work, everything), work.settings.near_identical)
    if method == "supervised":  # measured by all that was said, taught by what was written
        fitting = [one for one in fitting if one.source == "correction" or one.split == "held_out"]
    limits, how = caps.of(work.ledger.settings), await _how(work, width, method)
    chosen = sampling.choose(fitting, waiting, how, work.job.seed, _least(work, method), limits)
    if chosen.capped:
        dropped["capped"] = chosen.capped
    return chosen.ids, dropped


def _method(work: Work) -> Method:
    return cast(Method, work.job.method.get("type", "dpo"))


async def _how(work: Work, width: int, method: Method) -> Recent | Replay:
    if work.settings.start == "warm" and method != "reward":  # which always starts from the base
        return Replay(work.settings.replay)
    ended, _ = await work.patiently(lambda: jobs.page(work.ledger, limit=ROUNDS))
    rounds = [job.started for job in ended if job.adapter is not None and job.started is not None]
    return Recent(hyperparameters.half_life(width, work.settings), work.settings.dataset_pairs, rounds)


async def standing(work: Work, ids: Sequence[str]) -> list[Lesson]:
    """Those of `ids` that still stand."""
    paired = [i for i in ids if i.startswith("pair-")]
    single = [i for i in ids if i.startswith("unpaired-")]
    found: list[Lesson] = [*await work.patiently(lambda: pairs.get_many(work.ledger, paired))]
    rated = await work.patiently(lambda: pairs.unpaired_of(work.ledger, single))
    opinions = sorted({opinion for one in rated for opinion in one.record.opinions})
    cast_votes = {one.id: one for one in await work.patiently(lambda: votes.get_many(work.ledger, opinions))}
    thumbs = [_thumb(one, [cast_votes[i] for i in one.record.opinions if i in cast_votes]) for one in rated]
    return [*found, *thumbs]


def _thumb(one: UnpairedPreference, agreeing: Sequence[Opinion]) -> Thumb:
    record, names = one.record, sorted({opinion.voter for opinion in agreeing})
    against = round(len(record.opinions) / record.weight) - len(record.opinions)
    return Thumb(
        id=record.id,
        prompt=one.prompt,
        completion=one.completion,
        tools=one.tools,
        label=record.label,
        split=record.split,
        opinions=record.opinions,
        completions=[record.answer.completion_id],
        voters=names,
        needed=names if len(record.opinions) - against == 1 else [],
        keys=sorted({opinion.key for opinion in agreeing if opinion.key}),
        weight=record.weight,
        created=record.created,
    )


async def _asked(work: Work, lessons: Sequence[Lesson]) -> dict[str, Completion]:
    ids = sorted({one.completions[0] for one in lessons if one.completions})
    found: dict[str, Completion] = {}
    for start in range(0, len(ids), pairs.BATCH):
        some = ids[start : start + pairs.BATCH]
        found |= await work.patiently(functools.partial(completions.get_many, work.ledger, some))
    return found
