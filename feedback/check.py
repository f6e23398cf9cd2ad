"""The ledger's invariants, verified.

A clean ledger has: completions behind every opinion and every pair, opinions behind every pair, indexes that name
only what exists, every archived completion in the row that its stub names and in no other place, a tally and counters
of the report that a recount confirms, no pair in two open jobs, no lease that cannot run out, one adapter or reward
model for each succeeded job, a live adapter that is on disk with the digest it was registered with, and at most one
canary, which has counted each unit once. No restore of a back-up was broken off.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence

from redis.exceptions import ResponseError

from feedback import (
    adapters,
    archive,
    canary,
    canary_counts,
    comparisons,
    completions,
    jobs,
    pairs,
    report,
    tally,
    votes,
)
from feedback.connection import Ledger
from feedback.errors import AdapterUnknown, ArchiveUnavailable, LedgerUnavailable
from feedback.partitions import Place, at
from feedback.records import ComparisonVote


async def violations(ledger: Ledger) -> AsyncIterator[str]:
    """Each broken invariant as a sentence. Old forms and unsettled prompts are work, not damage, and done first."""
    if under_way := await ledger.reply(ledger.redis.get(ledger.keys.restore)):
        yield f"the restore of back-up {under_way} is not complete; begin it again with the same back-up"
        return
    await completions.upgrade(ledger)
    await pairs.settle(ledger)
    for check in (_opinions, _pairs, _archive, _sums, _jobs, _adapters, _canary, _durability):
        try:
            async for broken in check(ledger):
                yield broken
        except ArchiveUnavailable as error:
            yield f"not all of it could be verified: {error}"


async def _opinions(ledger: Ledger) -> AsyncIterator[str]:
    ids = await ledger.reply(ledger.redis.zrange(ledger.keys.votes, 0, -1))
    async for opinion_id, opinion in _each(ledger, ids):
        if opinion is None:
            yield f"opinion {opinion_id} is listed but does not exist"
            continue
        if not await ledger.reply(ledger.redis.sismember(ledger.keys.voter_opinions(opinion.voter), opinion_id)):
            yield f"opinion {opinion_id} is not among its voter's, so an erasure would miss it"
        if isinstance(opinion, ComparisonVote) and not await comparisons.get_many(ledger, [opinion.comparison_id]):
            yield f"opinion {opinion_id} is about comparison {opinion.comparison_id}, which does not exist"
        for ref in votes.refs(opinion):
            if not await ledger.reply(ledger.redis.exists(ledger.keys.completion(ref.completion_id))):
                yield f"opinion {opinion_id} is about completion {ref.completion_id}, which does not exist"
            elif await ledger.reply(ledger.redis.ttl(ledger.keys.completion(ref.completion_id))) != -1:
                yield f"completion {ref.completion_id} has a vote and would still expire"


async def _pairs(ledger: Ledger) -> AsyncIterator[str]:
    ids = await pairs.ids(ledger)
    found = {pair.id: pair for pair in await pairs.get_many(ledger, ids)}
    standing = set(await ledger.reply(ledger.redis.zrange(ledger.keys.votes, 0, -1)))
    for pair_id in ids:
        pair = found.get(pair_id)
        if pair is None:
            yield f"pair {pair_id} is listed but does not exist"
            continue
        for completion_id in set(pair.completions) - await completions.existing(ledger, pair.completions):
            yield f"pair {pair_id} quotes completion {completion_id}, which does not exist"
        for opinion_id in set(pair.opinions) - standing:
            yield f"pair {pair_id} rests on {opinion_id}, which was withdrawn"
    for pair_id in set(await pairs.waiting(ledger)) - set(ids):
        yield f"pair {pair_id} waits for training but does not exist"
    for pair_id in set(await ledger.reply(ledger.redis.smembers(ledger.keys.pairs_held_out))) - set(ids):
        yield f"pair {pair_id} is held out but does not exist"
    listed = await ledger.reply(ledger.redis.zcard(ledger.keys.unpaired))
    readable = len([one async for one in pairs.unpaired(ledger)])
    if listed != readable:
        yield f"{listed} rated answers are listed as unpaired and {readable} of them exist"


async def _archive(ledger: Ledger) -> AsyncIterator[str]:
    keys = ledger.keys
    files = set(await asyncio.to_thread(at(ledger).names))  # first: what is named later may be newer than the list
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    async for ids in completions.walk(ledger, keys.completions, pairs.BATCH):
        pipe = ledger.redis.pipeline(transaction=False)
        for completion_id in ids:
            pipe.hget(keys.completion(completion_id), "archived")
            pipe.hexists(keys.completion(completion_id), "body")
            pipe.zscore(keys.completions_live, completion_id)
        found = await ledger.reply(pipe.execute(raise_on_error=False))
        for nth, completion_id in enumerate(ids):
            place, has_body, live = found[3 * nth : 3 * nth + 3]
            if completions.is_of_another_type(place):
                yield f"completion {completion_id} has the form of the version before; is an old gateway still running?"
                continue
            if place is None and has_body and live is None:
                yield f"completion {completion_id} is not listed as live, so it would never be archived"
            if place is None:
                continue
            if has_body:
                yield f"completion {completion_id} is in Redis and in the archive at once"
            rows[Place.of(place).partition][Place.of(place).row] = completion_id
    for name in sorted({*rows, *await ledger.reply(ledger.redis.smembers(keys.archive_partitions))}):
        async for broken in _partition(ledger, name, rows[name], name in files):
            yield broken
    for name in sorted(files - await archive.named(ledger)):
        yield f"file {name}.parquet of the archive is named by nothing; `heed archive` removes it"


async def _partition(ledger: Ledger, name: str, rows: Mapping[int, str], is_listed: bool) -> AsyncIterator[str]:
    """`rows` are those that stubs named; a partition that was tidied since is passed over, as its rows moved on."""
    keys, partitions = ledger.keys, at(ledger)
    broken: list[str] = []
    if not is_listed and name not in await asyncio.to_thread(partitions.names):
        broken.append(f"partition {name} is missing from the archive, with {len(rows)} completions")
    else:
        ids = await asyncio.to_thread(partitions.ids, name)
        for row, completion_id in rows.items():
            if row >= len(ids) or ids[row] != completion_id:
                broken.append(f"completion {completion_id} is not in row {row} of partition {name}")
        if len(ids) > len(rows) and not await ledger.reply(ledger.redis.hexists(keys.archive_dirty, name)):
            unnamed = len(ids) - len(rows)
            broken.append(f"{unnamed} rows of partition {name} belong to no completion and would never be removed")
    if not await ledger.reply(ledger.redis.sismember(keys.archive_partitions, name)):
        first = next((f"{Place(name, row)}", completion_id) for row, completion_id in rows.items()) if rows else None
        if first is None or await ledger.reply(ledger.redis.hget(keys.completion(first[1]), "archived")) != first[0]:
            return
        broken.append(f"partition {name} holds {len(rows)} completions and is not named by the ledger")
    for sentence in broken:
        yield sentence


async def _sums(ledger: Ledger) -> AsyncIterator[str]:
    kept, told = await tally.read(ledger), await report.kept(ledger)
    recounted = await pairs.recount(ledger)
    if await ledger.reply(ledger.redis.exists(ledger.keys.unsettled)):
        return  # votes came in while we counted
    for name in sorted(kept.keys() | recounted.tally.keys()):
        if kept[name] != recounted.tally[name]:
            yield f"the tally has {kept[name]} for {name}, a recount {recounted.tally[name]}"
    counted = recounted.report
    for name in sorted({*counted.counts, *told.counts}):
        if counted.counts.get(name, 0) != told.counts.get(name, 0):
            yield f"the counter {name!r} is {told.counts.get(name, 0)} and counts {counted.counts.get(name, 0)}"
    for voter in sorted({*counted.scores, *told.scores}):
        if counted.scores.get(voter) != told.scores.get(voter):
            yield f"the score of voter {voter!r} is {told.scores.get(voter)} and counts {counted.scores.get(voter)}"


async def _jobs(ledger: Ledger) -> AsyncIterator[str]:
    claimed: Counter[str] = Counter()
    for job_id in await jobs.open_ids(ledger):
        claimed.update(await jobs.frozen(ledger, job_id))
    for pair_id, times in claimed.items():
        if times > 1:
            yield f"pair {pair_id} is in {times} open jobs"
    by_job: Counter[str] = Counter()
    for adapter_id in await ledger.reply(ledger.redis.zrange(ledger.keys.adapters, 0, -1)):
        by_job[(await adapters.get(ledger, adapter_id)).job] += 1
    for job_id in await ledger.reply(ledger.redis.zrange(ledger.keys.jobs, 0, -1)):
        job = await jobs.get(ledger, job_id)
        lease_ms = await ledger.reply(ledger.redis.pttl(ledger.keys.job_lease(job_id)))
        if lease_ms == -1:
            yield f"the lease on {job_id} never runs out, so no heartbeat keeps it"
        due = 0 if job.dry_run or job.reward_model else 1
        if job.status == "succeeded" and by_job[job_id] != due:
            yield f"{job_id} succeeded and has {by_job[job_id]} adapters instead of {due}"
        elif by_job[job_id] > 1:
            yield f"{job_id} has {by_job[job_id]} adapters"


async def _adapters(ledger: Ledger) -> AsyncIterator[str]:
    serving = await adapters.serving(ledger)
    if serving.live == adapters.base_name(ledger.model):
        return
    try:
        live = await adapters.get(ledger, serving.live)
    except AdapterUnknown:
        yield f"{serving.live} is live but was never registered"
        return
    if live.state != "live":
        yield f"{live.id} is live but its record says {live.state}"
    directory = ledger.settings.var / "adapters" / live.id
    try:
        digest = adapters.digest_of(directory)
    except OSError as error:
        yield f"{live.id} is live but cannot be read at {directory} ({error.strerror})"
        return
    if digest != live.digest:
        yield f"{live.id} is live but its files have digest {digest[:12]}, not {live.digest[:12]}"


async def _canary(ledger: Ledger) -> AsyncIterator[str]:
    running, _ = await canary.tidied(ledger)
    tried = running.adapter if running else None
    for adapter_id in await ledger.reply(ledger.redis.zrange(ledger.keys.adapters, 0, -1)):
        state = await ledger.reply(ledger.redis.hget(ledger.keys.adapter(adapter_id), "state"))
        if state == "canary" and adapter_id != tried:
            yield f"{adapter_id} says that it is the canary, and {tried or 'none'} is"
    if running and (broken := await canary_counts.miscounted(ledger, running.trial)):
        yield broken


async def _durability(ledger: Ledger) -> AsyncIterator[str]:
    promised = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    for name, value in promised.items():
        try:
            found = (await ledger.reply(ledger.redis.config_get(name))).get(name)
        except LedgerUnavailable as error:
            if isinstance(error.__cause__, ResponseError):  # managed services tell nobody
                return
            raise
        if found != value:
            yield f"the ledger's server runs with {name} {found}; votes are only safe with {name} {value}"


async def _each(ledger: Ledger, ids: Sequence[str]) -> AsyncIterator[tuple[str, votes.Opinion | None]]:
    for start in range(0, len(ids), pairs.BATCH):
        some = ids[start : start + pairs.BATCH]
        found = {opinion.id: opinion for opinion in await votes.get_many(ledger, some)}
        for opinion_id in some:
            yield opinion_id, found.get(opinion_id)
