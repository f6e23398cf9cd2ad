"""Erasure: a voter's opinions and a user's completions go, with all that rested on them and nothing else."""

from pathlib import Path
from typing import Any

from feedback import completions, expiry, jobs, lineage, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import AnswerRef, Job, new_id
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import Script, scripted_engine

Json = dict[str, Any]
NOTHING = {
    "object": "erasure",
    "votes": 0,
    "completions": 0,
    "pairs": 0,
    "adapters": [],
    "jobs": [],
    "reward_models": [],
}


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
    taught = [pair.model_copy(update={"split": "train"}) for pair in await pairs.get_many(ledger, ids)]
    for job_id, some in (("ftjob-1", taught), ("ftjob-2", []), (new_id("ftjob"), taught)):
        made = await jobs.create(ledger, Job(id=job_id, served_model="heed", created=ledger.clock()))
        job, token = await jobs.claim(ledger, made.id)
        await jobs.freeze(ledger, job.id, token, [pair.id for pair in some] or ["pair-other"])
        await jobs.note_opinions(ledger, job.id, token, some)
        if job_id in ("ftjob-1", "ftjob-2"):
            await jobs.finish(ledger, job, token, "succeeded")

    erased = await erase(gateway, "voters/ann")

    assert erased == NOTHING | {"votes": 1, "pairs": 1, "adapters": [adapter_id], "jobs": [made.id]}
    assert other_id not in erased["adapters"]
    assert (await lineage.votes_of(ledger, adapter_id))[0] == []


async def test_an_adapter_is_named_for_what_it_trained_on_and_not_for_what_it_was_measured_on_or_came_later(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    """The pair is the same for all three; the lineage knows whose vote stood behind it when it was trained."""
    asked = await answer(gateway, "q", "bad")
    early = await vote(gateway, asked, "ann", "down", correction="good")
    (pair,) = await pairs.get_many(ledger, await standing(ledger))
    trained = {}
    for number, split in ((1, "train"), (2, "held_out")):
        trained[split] = await gateway.register(number, split.encode(), job=f"ftjob-{number}")
        made = await jobs.create(ledger, Job(id=f"ftjob-{number}", served_model="heed", created=ledger.clock()))
        job, token = await jobs.claim(ledger, made.id)
        await jobs.freeze(ledger, job.id, token, [pair.id])
        await jobs.note_opinions(ledger, job.id, token, [pair.model_copy(update={"split": split})])
        await jobs.finish(ledger, job, token, "succeeded")
    await vote(gateway, asked, "bob", "down", correction="good")
    assert (await lineage.of(ledger, early)).jobs != []

    late = await erase(gateway, "voters/bob")
    first = await erase(gateway, "voters/ann")

    assert late == NOTHING | {"votes": 1}
    assert first == NOTHING | {"votes": 1, "pairs": 1, "adapters": [trained["train"]]}
    for job_id in ("ftjob-1", "ftjob-2"):
        assert not await ledger.redis.exists(ledger.keys.job_opinions(job_id))
    assert await clean(ledger)


async def test_a_comparison_that_a_voter_judged_gets_its_lifetime_back_and_a_users_comparison_is_gone(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    shown = await compare(gateway, "ann")
    for voter in ("bob", "carl"):
        judged = await gateway.http.post(f"/v1/comparisons/{shown}/vote", json={"preferred": "a", "voter": voter})
        assert judged.status_code == 200
    key = ledger.keys.comparison(shown)

    assert (await erase(gateway, "voters/bob"))["votes"] == 1
    assert await ledger.redis.ttl(key) == -1
    assert (await erase(gateway, "voters/carl"))["votes"] == 1
    assert await ledger.redis.ttl(key) > 0
    assert not await ledger.redis.exists(ledger.keys.comparison_votes(shown), ledger.keys.voter_opinions("bob"))
    assert await clean(ledger)

    await gateway.http.post(f"/v1/comparisons/{shown}/vote", json={"preferred": "b", "voter": "dora"})
    assert await erase(gateway, "users/ann") == NOTHING | {"votes": 1, "completions": 2, "pairs": 1}
    assert not await ledger.redis.exists(key, ledger.keys.comparisons, ledger.keys.voter_opinions("dora"))
    assert await _nowhere(ledger, "my secret")
    assert await clean(ledger)


async def compare(gateway: RunningGateway, user: str) -> str:
    gateway.engine.scripts += [Script(tokens=("one",)), Script(tokens=("two",))]
    body = {"model": "heed", "messages": [{"role": "user", "content": "my secret"}], "user": user}
    return str((await gateway.http.post("/v1/comparisons", json=body)).json()["id"])


async def test_no_idempotency_key_holds_an_erased_comment(gateway: RunningGateway, ledger: Ledger) -> None:
    body = {
        "completion_id": await answer(gateway, "q", "one"),
        "voter": "ann",
        "rating": "down",
        "comment": "my secret",
        "correction": "my secret wish",
    }
    kept = {"idempotency-key": "k"}
    assert (await gateway.http.post("/v1/votes", json=body, headers=kept)).status_code == 200
    assert await erase(gateway, "voters/ann") == NOTHING | {"votes": 1, "pairs": 1}

    again = await gateway.http.post("/v1/votes", json=body, headers=kept)

    assert again.headers["idempotent-replayed"] == "true"
    assert await _nowhere(ledger, "my secret")
    assert (await votes.page(ledger))[0] == []


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

    swept = await expiry.sweep(later)

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
