"""Erasure: a voter's opinions and a user's completions go, with all that rested on them and nothing else."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feedback import completions, jobs, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import AnswerRef, Job, new_id
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import Script, scripted_engine

Json = dict[str, Any]
NOTHING = {"object": "erasure", "votes": 0, "completions": 0, "pairs": 0, "adapters": [], "jobs": []}


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def answer(gateway: RunningGateway, prompt: str, text: str, user: str | None = None) -> str:
    gateway.engine.scripts.append(Script(tokens=(text,)))
    fields = {} if user is None else {"user": user}
    return str((await gateway.chat(prompt, **fields)).json()["id"])


async def vote(gateway: RunningGateway, completion_id: str, voter: str, rating: str, **fields: str) -> str:
    body = {"completion_id": completion_id, "voter": voter, "rating": rating, **fields}
    return str((await gateway.http.post("/v1/votes", json=body)).json()["id"])


async def erase(gateway: RunningGateway, what: str) -> Json:
    reply = await gateway.operator.delete(f"/v1/{what}")
    assert reply.status_code == 200
    return dict(reply.json())


async def standing(ledger: Ledger) -> list[str]:
    await pairs.settle(ledger)
    return await pairs.ids(ledger)


async def clean(ledger: Ledger) -> bool:
    return [sentence async for sentence in violations(ledger)] == []


async def test_a_voters_votes_and_comments_are_gone_and_everybody_elses_stand(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    one, other = await answer(gateway, "q", "good"), await answer(gateway, "q", "bad")
    await vote(gateway, one, "ann", "down", correction="better", comment="my secret")
    await vote(gateway, other, "ann", "down")
    await vote(gateway, one, "bob/of: {sales}", "down", correction="best")
    await gateway.http.post(
        "/v1/preferences",
        json={"chosen": {"completion_id": one}, "rejected": {"completion_id": other}, "voter": "ann"},
    )
    assert len(await standing(ledger)) == 3

    first = await erase(gateway, "voters/ann")
    again = await erase(gateway, "voters/ann")

    assert first == NOTHING | {"votes": 3, "pairs": 2}
    assert again == NOTHING
    left, _ = await votes.page(ledger)
    assert [opinion.voter for opinion in left] == ["bob/of: {sales}"]
    assert len(await standing(ledger)) == 1
    assert not await ledger.redis.exists(ledger.keys.voter_opinions("ann"))
    assert await _nowhere(ledger, "my secret")
    assert await clean(ledger)
    assert (await erase(gateway, "voters/bob%2Fof%3A%20%7Bsales%7D"))["votes"] == 1
    assert await standing(ledger) == []


async def _nowhere(ledger: Ledger, text: str) -> bool:
    """No string of the ledger holds the text."""
    async for key in ledger.redis.scan_iter():
        if await ledger.redis.type(key) == "string" and text in str(await ledger.redis.get(key)):
            return False
    return True


async def test_a_pair_that_others_carry_too_stands_without_the_erased_voter(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    one, other = await answer(gateway, "q", "good"), await answer(gateway, "q", "bad")
    for voter in ("ann", "bob"):
        await vote(gateway, one, voter, "up")
        await vote(gateway, other, voter, "down")
    before = await standing(ledger)

    erased = await erase(gateway, "voters/ann")

    assert (erased["votes"], erased["pairs"]) == (2, 0)
    assert await standing(ledger) == before
    (pair,) = await pairs.get_many(ledger, before)
    assert len(pair.opinions) == 2
    assert await clean(ledger)


async def test_the_adapters_and_open_jobs_that_learn_from_a_pair_are_named(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    asked = await answer(gateway, "q", "bad")
    await vote(gateway, asked, "ann", "down", correction="good")
    ids = await standing(ledger)
    adapter_id = await gateway.register(1, b"one")  # made by ftjob-1
    other_id = await gateway.register(2, b"two", job="ftjob-2")
    for job_id, some in (("ftjob-1", ids), ("ftjob-2", ["pair-other"]), (new_id("ftjob"), ids)):
        made = await jobs.create(ledger, Job(id=job_id, served_model="heed", created=ledger.clock()))
        job, token = await jobs.claim(ledger, made.id)
        await jobs.freeze(ledger, job.id, token, some)
        if job_id in ("ftjob-1", "ftjob-2"):
            await jobs.finish(ledger, job, token, "succeeded")

    erased = await erase(gateway, "voters/ann")

    assert erased == NOTHING | {"votes": 1, "pairs": 1, "adapters": [adapter_id], "jobs": [made.id]}
    assert other_id not in erased["adapters"]


async def test_a_users_completions_go_with_everybodys_votes_on_them(gateway: RunningGateway, ledger: Ledger) -> None:
    mine, also_mine = await answer(gateway, "my secret", "one", "ann"), await answer(gateway, "my secret", "two", "ann")
    theirs = await answer(gateway, "q", "three", "bob")
    await vote(gateway, mine, "carl", "up")
    await vote(gateway, also_mine, "dora", "down")
    kept = await vote(gateway, theirs, "carl", "up")
    assert len(await standing(ledger)) == 1

    first = await erase(gateway, "users/ann")
    again = await erase(gateway, "users/ann")

    assert first == NOTHING | {"votes": 2, "completions": 2, "pairs": 1}
    assert again == NOTHING
    assert await _nowhere(ledger, "my secret")
    assert (await gateway.http.get(f"/v1/chat/completions/{mine}")).status_code == 404
    assert (await gateway.http.get(f"/v1/votes/{kept}")).status_code == 200
    assert await standing(ledger) == []
    assert await clean(ledger)
    assert (await erase(gateway, "voters/carl"))["votes"] == 1


async def test_a_deleted_or_expired_completion_leaves_no_trace_of_its_user(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    deleted, expired = await answer(gateway, "q", "one", "ann"), await answer(gateway, "q", "two", "ann")
    kept = await answer(gateway, "q", "three", "ann")
    await vote(gateway, kept, "bob", "up")
    await gateway.http.delete(f"/v1/chat/completions/{deleted}")
    await ledger.redis.delete(ledger.keys.completion(expired))
    later = open_ledger(ledger.settings, clock=lambda: ledger.clock() + 31 * completions.DAY_S)

    swept = await completions.sweep(later)

    await later.close()
    assert swept == 1
    assert await ledger.redis.smembers(ledger.keys.user_completions("ann")) == {kept}
    assert await ledger.redis.hkeys(ledger.keys.completion_users) == [kept]
    assert (await erase(gateway, "users/ann"))["completions"] == 1
    assert not await ledger.redis.exists(ledger.keys.user_completions("ann"), ledger.keys.completion_users)


async def test_who_withdrew_a_vote_has_nothing_left_to_erase(gateway: RunningGateway, ledger: Ledger) -> None:
    asked = await answer(gateway, "q", "one")
    vote_id = await vote(gateway, asked, "ann", "up")
    await votes.prefer(
        ledger,
        chosen=AnswerRef(completion_id=asked),
        rejected=AnswerRef(completion_id=await answer(gateway, "q", "two")),
        voter="ann",
    )
    await gateway.http.delete(f"/v1/votes/{vote_id}")

    assert (await erase(gateway, "voters/ann"))["votes"] == 1
    assert not await ledger.redis.exists(ledger.keys.voter_opinions("ann"))


async def test_erasure_is_the_operators_and_reaches_every_served_model(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, models=("heed", "other")) as gateway,
    ):
        for model in ("heed", "other"):
            asked = await gateway.chat("q", model=model, user="ann")
            await vote(gateway, asked.json()["id"], "ann", "up")

        stranger = await gateway.http.delete("/v1/voters/ann")
        erased = await erase(gateway, "voters/ann")
        users = await erase(gateway, "users/ann")

        assert stranger.status_code == 401
        assert (erased["votes"], users["completions"]) == (2, 2)
