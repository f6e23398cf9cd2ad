"""Lineage: from a vote to what was trained on it, and from an adapter back to its votes."""

import asyncio
from pathlib import Path

import pytest

from feedback import adapters, jobs, lineage, pairs, votes
from feedback.connection import Ledger
from feedback.errors import JobLeaseLost, VoteUnknown
from feedback.records import (
    Adapter,
    AnswerRef,
    Completion,
    Job,
    Preference,
)
from tests.answers import answered
from tests.gateways import running_gateway
from tests.scripted_engine import scripted_engine
from trainer import plan
from trainer.settings import WorkshopSettings
from trainer.work import Work


async def preferred(ledger: Ledger, good: Completion, bad: Completion, voter: str = "ann") -> Preference:
    one, other = (AnswerRef(completion_id=c.id) for c in (good, bad))
    preference, _ = await votes.prefer(ledger, chosen=one, rejected=other, voter=voter)
    return preference


async def claimed(ledger: Ledger, job_id: str) -> tuple[Job, str]:
    await jobs.create(ledger, Job(id=job_id, served_model="heed", created=ledger.clock()))
    return await jobs.claim(ledger, job_id)


async def frozen(ledger: Ledger, job_id: str) -> tuple[Job, str]:
    """A job that has read its dataset: every pair there is."""
    job, token = await claimed(ledger, job_id)
    await pairs.settle(ledger)
    ids = await pairs.ids(ledger)
    await jobs.freeze(ledger, job_id, token, ids)
    await jobs.note_opinions(ledger, job_id, token, await pairs.get_many(ledger, ids))
    return job, token


async def trained(ledger: Ledger, version: int) -> str:
    """A job that succeeded on every pair there is; returns its adapter."""
    job, token = await frozen(ledger, f"ftjob-{version}")
    adapter = Adapter(
        id=Adapter.id_of("heed", version, f"{version:08x}ff"),
        served_model="heed",
        version=version,
        digest=f"{version:08x}ff",
        base_model="pocket",
        base_revision="r",
        job=job.id,
        dataset_digest=f"digest-{version}",
        pairs=1,
        state="candidate",
        created=1.0,
    )
    await adapters.register(ledger, adapter, "trained")
    learnt = {"adapter": adapter.id, "dataset_digest": adapter.dataset_digest}
    await jobs.finish(ledger, job.model_copy(update=learnt), token, "succeeded")
    return adapter.id


async def live(ledger: Ledger, adapter_id: str) -> None:
    await adapters.want(ledger, adapter_id, "promoted")
    await adapters.flip(ledger, adapter_id, (await adapters.serving(ledger)).live, "loaded everywhere")


async def test_a_vote_is_followed_to_its_pair_its_jobs_and_the_adapter_that_is_live(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    vote = await preferred(ledger, good, bad)
    first, second = await trained(ledger, 1), await trained(ledger, 2)
    await live(ledger, first)
    ledger.clock = lambda: 5000.0
    await live(ledger, second)

    found = await lineage.of(ledger, vote.id)

    (pair,) = await pairs.get_many(ledger, await pairs.ids(ledger))
    assert found.is_standing
    assert [(p.id, p.source, p.weight) for p in found.pairs] == [(pair.id, "preference", 1.0)]
    assert [(j.id, j.status, j.dataset_digest, j.pairs, j.adapter) for j in found.jobs] == [
        ("ftjob-1", "succeeded", "digest-1", [pair.id], first),
        ("ftjob-2", "succeeded", "digest-2", [pair.id], second),
    ]
    assert [(a.id, a.job, a.state, a.is_live, a.live_since) for a in found.adapters] == [
        (first, "ftjob-1", "retired", False, None),
        (second, "ftjob-2", "live", True, 5000.0),
    ]
    assert {j.split for j in found.jobs} == {a.split for a in found.adapters} == {pair.split}


async def test_a_vote_that_came_after_the_freezing_was_not_trained_on(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    early = await preferred(ledger, good, bad)
    adapter = await trained(ledger, 1)
    late = await preferred(ledger, good, bad, "bob")

    found = await lineage.of(ledger, late.id)

    assert [pair.id for pair in found.pairs] == await pairs.ids(ledger)
    assert (found.jobs, found.adapters) == ([], [])
    assert [vote.id for vote in (await lineage.votes_of(ledger, adapter))[0]] == [early.id]


async def test_a_withdrawn_vote_still_says_what_was_trained_on_it_until_erasure(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    vote, other = await preferred(ledger, good, bad), await preferred(ledger, good, bad, "bob")
    adapter = await trained(ledger, 1)
    await votes.withdraw(ledger, vote.id)

    withdrawn = await lineage.of(ledger, vote.id)
    await lineage.forget(ledger, [vote.id])

    assert (withdrawn.is_standing, withdrawn.pairs) == (False, [])
    assert [a.id for a in withdrawn.adapters] == [adapter]
    with pytest.raises(VoteUnknown):
        await lineage.of(ledger, vote.id)
    assert [vote.id for vote in (await lineage.votes_of(ledger, adapter))[0]] == [other.id]


async def test_a_vote_nothing_was_made_of_says_why(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    lone, _ = await votes.cast(ledger, completion_id=good.id, rating="up", voter="ann")
    unpaired = await lineage.of(ledger, lone.id)
    for voter in ("bob", "cid"):
        await preferred(ledger, bad, good, voter)
    outvoted = await preferred(ledger, good, bad)

    assert (unpaired.pairs, unpaired.left_out) == ([], None)
    assert (unpaired.unpaired or "").startswith("unpaired-")
    assert (await lineage.of(ledger, outvoted.id)).left_out == "outvoted"
    assert (await lineage.of(ledger, lone.id)).left_out == "covered"
    await votes.withdraw(ledger, lone.id)
    with pytest.raises(VoteUnknown):
        await lineage.of(ledger, lone.id)


async def test_an_adapter_lists_its_votes_in_pages_with_every_pair_of_each(ledger: Ledger) -> None:
    given = set()
    for i in range(5):
        good, bad = await answered(ledger, f"q{i}", "good"), await answered(ledger, f"q{i}", "bad")
        for voter in ("ann", "bob"):
            given.add((await preferred(ledger, good, bad, voter)).id)
        # A correction and a thumb in one vote: two pairs of one opinion.
        vote, _ = await votes.cast(ledger, completion_id=bad.id, rating="down", voter="cid", correction=f"best {i}")
        liked, _ = await votes.cast(
            ledger, completion_id=(await answered(ledger, f"q{i}", "fine")).id, rating="up", voter="cid"
        )
        given |= {vote.id, liked.id}
    adapter = await trained(ledger, 1)

    listed: list[lineage.TrainedVote] = []
    has_more = True
    while has_more:
        some, has_more = await lineage.votes_of(ledger, adapter, listed[-1].id if listed else None, limit=3)
        listed += some

    assert [vote.id for vote in listed] == sorted(given)
    assert sum(len(vote.pairs) == 2 for vote in listed) == 5
    assert {p for vote in listed for p in vote.pairs} == set(await pairs.ids(ledger))


async def test_a_job_taken_up_again_notes_what_it_reads_then(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    vote, other = await preferred(ledger, good, bad), await preferred(ledger, good, bad, "bob")
    _, token = await frozen(ledger, "ftjob-1")
    await ledger.redis.delete(ledger.keys.job_lease("ftjob-1"))
    await votes.withdraw(ledger, vote.id)
    await pairs.settle(ledger)

    _, second = await jobs.claim(ledger, "ftjob-1")
    standing = await pairs.get_many(ledger, await pairs.ids(ledger))
    with pytest.raises(JobLeaseLost):
        await jobs.note_opinions(ledger, "ftjob-1", token, standing)
    await jobs.note_opinions(ledger, "ftjob-1", second, standing)

    (job,) = (await lineage.of(ledger, other.id)).jobs
    assert (job.id, job.status, job.adapter) == ("ftjob-1", "running", None)
    with pytest.raises(VoteUnknown):
        await lineage.of(ledger, vote.id)


async def test_freezing_a_dataset_notes_the_votes_it_rests_on(ledger: Ledger, tmp_path: Path) -> None:
    ledger.settings.min_pairs = ledger.settings.min_held_out_pairs = 1
    given = {
        (await preferred(ledger, await answered(ledger, f"q{i}", "good"), await answered(ledger, f"q{i}", "bad"))).id
        for i in range(40)
    }
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    job, token = await claimed(ledger, "ftjob-1")
    work = Work(ledger, WorkshopSettings(var=tmp_path, base_model=str(base)), job, token)
    work.folder.mkdir(parents=True)

    known = await plan.freeze(work)

    found = [await lineage.of(ledger, vote_id) for vote_id in given]
    splits = {taught.split: 0 for vote in found for taught in vote.jobs}
    for vote in found:
        splits[vote.jobs[0].split] += 1
    assert splits == {"train": len(known.dataset.train), "held_out": len(known.dataset.held_out)}
    assert {taught.dataset_digest for vote in found for taught in vote.jobs} == {known.dataset.digest}
    assert (known.dataset.votes, known.dataset.voters) == (40, 1)


async def test_lineage_over_http_in_both_directions(ledger: Ledger, tmp_path: Path) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    vote = await preferred(ledger, good, bad)
    adapter = await trained(ledger, 1)
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        traced, missing, refused, listed, unknown = await asyncio.gather(
            gateway.http.get(f"/v1/votes/{vote.id}/lineage"),
            gateway.http.get("/v1/votes/vote-none/lineage"),
            gateway.http.get(f"/v1/adapters/{adapter}/votes"),
            gateway.operator.get(f"/v1/adapters/{adapter}/votes"),
            gateway.operator.get("/v1/adapters/heed-v9-00000000/votes"),
        )

    told = traced.json()
    assert (told["object"], told["id"], told["is_standing"]) == ("vote.lineage", vote.id, True)
    assert [made["id"] for made in told["adapters"]] == [adapter]
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "vote_not_found")
    assert refused.status_code == 401
    assert [(one["object"], one["id"]) for one in listed.json()["data"]] == [("trained_vote", vote.id)]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "adapter_not_found")
