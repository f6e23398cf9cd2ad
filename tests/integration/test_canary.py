"""Canaries: who is answered by one, what is counted of it, and how it ends by itself or by hand."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feedback import adapters, canary, canary_watch, completions, voters
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.processes import free_port, ledger_server
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

Json = dict[str, Any]

QUICK: Json = {"canary_look_s": 0.05, "canary_min_units": 10, "canary_min_hours": 0}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    ledger.settings = ledger.settings.model_copy(update=QUICK)
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def start(gateway: RunningGateway, adapter: str, percent: float, **fields: Any) -> Json:
    reply = await gateway.operator.post(f"/v1/adapters/{adapter}/canary", json={"percent": percent, **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def status(gateway: RunningGateway) -> Json:
    return dict((await gateway.operator.get("/v1/canary")).json())


async def asked(gateway: RunningGateway, users: range, **fields: Any) -> dict[int, Json]:
    """One answer for each of these users."""
    replies = await asyncio.gather(*(gateway.chat(user=f"user {i}", **fields) for i in users))
    return {i: reply.json() for i, reply in zip(users, replies, strict=True)}


async def vote(gateway: RunningGateway, answers: dict[int, Json], ups: dict[str, float]) -> None:
    """Each user votes on their answer; `ups` are shares of up-votes by model."""
    ranks: Counter[str] = Counter()
    for i, answer in answers.items():
        model = answer["model"]
        rank = ranks[model]
        ranks[model] += 1
        is_up = int((rank + 1) * ups[model]) > int(rank * ups[model])
        body = {"completion_id": answer["id"], "rating": "up" if is_up else "down", "voter": f"user {i}"}
        assert (await gateway.http.post("/v1/votes", json=body)).status_code == 200


async def state(gateway: RunningGateway, adapter: str) -> Json:
    return dict((await gateway.operator.get(f"/v1/adapters/{adapter}")).json())


async def has_state(gateway: RunningGateway, adapter: str, wanted: str) -> bool:
    return bool((await state(gateway, adapter))["state"] == wanted)


async def counted(gateway: RunningGateway, side: str, what: str, number: int) -> bool:
    running = (await status(gateway)).get("running")
    return bool(running and running["counts"][side][what] == number)


async def test_a_share_of_the_users_is_answered_by_it_and_each_stays_on_their_side(gateway: RunningGateway) -> None:
    tried = await gateway.register(1, b"one")
    began = await start(gateway, tried, 30)

    first = await asked(gateway, range(60))
    second = await asked(gateway, range(60), messages=[{"role": "user", "content": "Something else?"}])

    sides = {i: answer["model"] for i, answer in first.items()}
    assert (began["adapter"], began["against"], began["percent"]) == (tried, "heed-base", 30)
    assert set(sides.values()) == {tried, "heed-base"}
    assert 6 <= Counter(sides.values())[tried] <= 30
    assert {i: answer["model"] for i, answer in second.items()} == sides
    assert (await state(gateway, tried))["state"] == "canary"


async def test_a_conversation_without_a_user_stays_on_its_side_whatever_its_system_prompt_says(
    gateway: RunningGateway,
) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 50)
    for nth in range(12):
        opening = {"role": "user", "content": f"Question {nth}?"}
        turns: list[Json] = [{"role": "system", "content": "It is noon."}, opening]
        first = (await gateway.chat(messages=turns)).json()
        answered = {"role": "assistant", "content": "An answer."}
        later = [{"role": "system", "content": "It is one."}, opening, answered, {"role": "user", "content": "And?"}]

        assert (await gateway.chat(messages=later)).json()["model"] == first["model"]


async def test_a_greater_share_keeps_those_who_were_in_and_begins_a_new_trial(gateway: RunningGateway) -> None:
    tried = await gateway.register(1, b"one")
    shares, trials = [], []
    for percent in (10, 40, 100):
        trials.append((await start(gateway, tried, percent))["trial"])
        answers = await asked(gateway, range(40))
        shares.append({i for i, answer in answers.items() if answer["model"] == tried})

    assert shares[0] < shares[1] < shares[2] == set(range(40))
    assert len(set(trials)) == 3


async def test_only_the_models_own_name_is_shared_out(gateway: RunningGateway, ledger: Ledger) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 100)
    ours = (await gateway.chat()).json()
    base = (await gateway.chat(model="heed-base")).json()
    named = (await gateway.chat(model=tried)).json()
    compared = (
        await gateway.http.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "Hi"}]})
    ).json()
    side = await gateway.operator.get(f"/v1/comparisons/{compared['id']}")

    assert [one["model"] for one in (ours, base, named)] == [tried, "heed-base", tried]
    assert side.json()["a"]["adapter"] == side.json()["b"]["adapter"] == "heed-base"
    marks = [(await completions.get(ledger, one["id"])).trial for one in (ours, base, named)]
    assert marks[0] is not None
    assert marks[1:] == [None, None]


async def test_its_answers_votes_and_failures_are_counted_apart_and_each_user_once(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 40)
    answers = await asked(gateway, range(30))
    again = await asked(gateway, range(30))
    on_canary = [i for i, answer in answers.items() if answer["model"] == tried]
    on_live = [i for i, answer in answers.items() if answer["model"] == "heed-base"]
    assert len(on_canary) > 3
    await vote(gateway, answers, {tried: 1.0, "heed-base": 0.0})
    await vote(gateway, again, {tried: 0.0, "heed-base": 0.0})
    unstored = (await gateway.chat(user="nobody of them", store=False)).json()
    gateway.engine.scripts.append(Script(status=500))
    failed = await gateway.chat(user="somebody new")

    assert failed.status_code == 502

    async def total(what: str) -> int:
        counts = (await status(gateway))["running"]["counts"]
        return int(counts["control"][what] + counts["canary"][what])

    async def all_is_counted() -> bool:
        return await total("up") + await total("down") == 30 and await total("failed") == 1

    await until(all_is_counted, "votes and answers are counted")
    counts = (await status(gateway))["running"]["counts"]
    assert (counts["canary"]["up"], counts["control"]["down"]) == (len(on_canary), len(on_live))
    assert unstored["object"] == "chat.completion"
    assert (await total("answered"), await total("all_answered"), await total("all_failed")) == (31, 61, 1)
    counted = await gateway.count('heed_answers_total{model="heed",outcome="answered",slot="canary"}')
    assert counted >= 2 * len(on_canary)
    assert [broken async for broken in violations(ledger)] == []


async def test_heed_check_finds_a_second_canary_and_units_that_were_counted_otherwise(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    tried, other = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    trial = (await start(gateway, tried, 100))["trial"]
    await asked(gateway, range(3))
    await until(lambda: counted(gateway, "canary", "answered", 3), "the answers are counted")

    await adapters.enter(ledger, other, "canary", "by a bug")
    await ledger.reply(ledger.redis.hincrby(ledger.keys.canary_counts(trial), "canary answered", 1))
    broken = [one async for one in violations(ledger)]

    assert broken == [
        f"{other} says that it is the canary, and {tried} is",
        f"{trial} has counted 4 units by their answers and 0 by their votes, and has seen 3 and 0",
    ]


async def test_of_one_voter_only_a_few_votes_count_and_of_who_is_not_heard_none(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    tried = await gateway.register(1, b"one")
    earlier = (await gateway.chat()).json()["id"]
    await gateway.http.post("/v1/votes", json={"completion_id": earlier, "rating": "down", "voter": "contrary"})
    await voters.enter(ledger, "contrary", "quarantined", "says the opposite")
    await start(gateway, tried, 100)
    for answer in (await asked(gateway, range(100, 103))).values():
        body = {"completion_id": answer["id"], "rating": "down", "voter": "contrary"}
        await gateway.http.post("/v1/votes", json=body)
    for i, answer in (await asked(gateway, range(12))).items():
        body = {"completion_id": answer["id"], "rating": "up", "voter": "eager" if i < 10 else "another"}
        await gateway.http.post("/v1/votes", json=body)

    await until(lambda: counted(gateway, "canary", "up", 7), "five of the one and two of the other are counted")
    assert await counted(gateway, "canary", "down", 0)


async def test_one_that_people_like_goes_live_by_itself_and_says_why(gateway: RunningGateway, ledger: Ledger) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 50, auto=True)
    await vote(gateway, await asked(gateway, range(160)), {tried: 0.9, "heed-base": 0.3})

    await until(lambda: has_state(gateway, tried, "live"), "it is live")
    history = (await state(gateway, tried))["history"]
    assert [change["state"] for change in history] == ["candidate", "canary", "live"]
    assert "voted it up" in history[-1]["reason"]
    assert "points" in history[-1]["reason"]
    assert (await gateway.chat(user="anybody")).json()["model"] == tried

    async def is_over() -> bool:
        found = await status(gateway)
        return found["running"] is None and found["last"]["adapter"] == tried

    await until(is_over, "the trial is over")
    assert (await status(gateway))["last"]["outcome"].startswith("went live: canary: ")


async def test_one_that_people_dislike_goes_back_by_itself_and_what_is_live_stays(gateway: RunningGateway) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 50, auto=True)
    await vote(gateway, await asked(gateway, range(160)), {tried: 0.2, "heed-base": 0.8})

    await until(lambda: has_state(gateway, tried, "retired"), "it is taken back")
    assert "it is worse" in (await state(gateway, tried))["history"][-1]["reason"]
    await until(lambda: not gateway.engine.running, "nothing runs")
    assert {answer["model"] for answer in (await asked(gateway, range(20))).values()} == {"heed-base"}


async def test_without_auto_the_verdict_is_told_and_nothing_happens(gateway: RunningGateway, ledger: Ledger) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 50)
    await vote(gateway, await asked(gateway, range(160)), {tried: 0.2, "heed-base": 0.8})

    async def is_judged() -> bool:
        return bool((await status(gateway))["running"]["verdict"]["decision"] == "roll_back")

    await until(is_judged, "the verdict is there")
    found = await canary.running(ledger)
    assert found is not None
    assert await canary_watch.look(ledger, set()) is None
    assert (await state(gateway, tried))["state"] == "canary"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(status=500), "failed"),
        (Script(tokens=("I'm sorry,", " I can't help", " with that.")), "was a refusal"),
        (Script(tokens=("word ",) * 900), "times as long"),
    ],
    ids=["failures", "refusals", "length"],
)
async def test_a_guard_takes_it_back_without_a_vote(gateway: RunningGateway, script: Script, words: str) -> None:
    tried = await gateway.register(1, b"one")
    found = await start(gateway, tried, 50, auto=True)
    assert found["verdict"]["decision"] == "wait"
    gateway.engine.habits[tried] = script
    await asked(gateway, range(120))

    await until(lambda: has_state(gateway, tried, "retired"), "it is taken back")
    reason = (await state(gateway, tried))["history"][-1]["reason"]
    assert reason.startswith("rolled back: ")
    assert words in reason


async def test_two_gateways_share_a_canary_and_end_it_once(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    ledger.settings = ledger.settings.model_copy(update=QUICK)
    async with running_gateway(ledger, tmp_path, engine) as one, running_gateway(ledger, tmp_path, engine) as two:
        tried = await one.register(1, b"one")
        await start(one, tried, 50, auto=True)

        async def both_know() -> bool:
            answers = [await asked(gateway, range(40)) for gateway in (one, two)]
            sides = [{i: answer["model"] for i, answer in some.items()} for some in answers]
            return sides[0] == sides[1] and len(set(sides[0].values())) == 2

        await until(both_know, "both put people on the same sides")
        await vote(one, await asked(one, range(100)), {tried: 0.95, "heed-base": 0.1})
        await vote(two, await asked(two, range(100, 200)), {tried: 0.95, "heed-base": 0.1})

        await until(lambda: has_state(two, tried, "live"), "it is live")
        serving = await adapters.serving(ledger)
        assert serving.generation == 1
        assert [change["state"] for change in (await state(one, tried))["history"]] == ["candidate", "canary", "live"]


async def test_a_rollback_by_hand_ends_it_within_a_second(gateway: RunningGateway) -> None:
    tried = await gateway.register(1, b"one")
    await start(gateway, tried, 100)
    assert (await gateway.chat()).json()["model"] == tried
    loop = asyncio.get_running_loop()

    began = loop.time()
    back = await gateway.operator.post("/v1/adapters/rollback", json={"reason": "people complain"})
    after = (await gateway.chat()).json()["model"]
    took_s = loop.time() - began

    assert (back.status_code, back.json()["live"], after) == (200, "heed-base", "heed-base")
    assert took_s < 1
    last = (await state(gateway, tried))["history"][-1]
    assert (last["state"], last["reason"]) == ("candidate", "rolled back by hand: people complain")
    again = await gateway.operator.post("/v1/adapters/rollback", json={"reason": "people complain"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "nothing_to_roll_back_to")


async def test_every_gateway_sees_a_rollback_within_a_second(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    usual: Json = {"reconcile_every_s": 0.3}
    async with (
        running_gateway(ledger, tmp_path, engine, **usual) as one,
        running_gateway(ledger, tmp_path, engine, **usual) as two,
    ):
        tried = await one.register(1, b"one")
        await start(one, tried, 100)

        async def answers_as(adapter: str) -> bool:
            return bool((await two.chat()).json()["model"] == adapter)

        await until(lambda: answers_as(tried), "the other gateway tries it too")
        assert (await one.operator.post("/v1/adapters/rollback", json={"reason": "worse"})).status_code == 200

        await until(lambda: answers_as("heed-base"), "the other gateway has stopped trying it", 1)


async def test_whatever_moves_what_is_live_ends_it(gateway: RunningGateway) -> None:
    tried, other = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    await start(gateway, tried, 100)
    assert (await gateway.promote(other)).status_code == 200

    assert (await gateway.chat()).json()["model"] == other
    await until(lambda: has_state(gateway, tried, "candidate"), "its trial is void")
    assert f"{other} is live now" in (await state(gateway, tried))["history"][-1]["reason"]

    await start(gateway, tried, 100)
    assert (await gateway.promote(tried)).json()["live"] == tried
    assert (await state(gateway, tried))["state"] == "live"


async def test_what_cannot_be_tried_is_refused_in_words(gateway: RunningGateway) -> None:
    live, tried, other = [await gateway.register(i, str(i).encode()) for i in (1, 2, 3)]
    bad = await gateway.register(4, b"four", state="rejected")
    unfit = await gateway.register(5, b"nan")
    await gateway.promote(live)
    await start(gateway, tried, 5)

    async def code(adapter: str, percent: object = 5) -> tuple[int, str]:
        reply = await gateway.operator.post(f"/v1/adapters/{adapter}/canary", json={"percent": percent})
        return reply.status_code, reply.json()["error"]["code"]

    assert await code(live) == (409, "adapter_is_live")
    assert await code(other) == (409, "canary_running")
    assert await code("heed-base") == (409, "adapter_is_live")
    assert await code("heed-v9-00000000") == (404, "adapter_not_found")
    assert await code(tried, 101) == (400, "invalid_value")
    auto = await gateway.operator.post(f"/v1/adapters/{tried}/canary", json={"percent": 100, "auto": True})
    assert "nobody is left to compare it with" in auto.json()["error"]["message"]
    assert (await gateway.operator.delete(f"/v1/adapters/{other}/canary")).status_code == 404
    assert (await gateway.operator.delete(f"/v1/adapters/{tried}/canary")).json()["outcome"] == "ended by the operator"
    assert await code(bad) == (409, "adapter_not_servable")
    assert await code(unfit) == (409, "adapter_not_servable")
    assert (await state(gateway, unfit))["state"] == "rejected"
    assert (await status(gateway))["running"] is None


async def test_it_takes_traffic_while_the_ledger_is_away_and_that_is_counted_afterwards(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    ledger = open_ledger(LedgerSettings(ledger_url=url, var=tmp_path, ledger_timeout_s=1, **QUICK))
    with ledger_server(tmp_path / "redis", port) as server:
        async with running_gateway(ledger, tmp_path, engine) as gateway:
            tried = await gateway.register(1, b"one")
            await start(gateway, tried, 100)
            server.kill()
            server.wait()
            away = await asked(gateway, range(5))

            with ledger_server(tmp_path / "redis", port):
                await until(lambda: counted(gateway, "canary", "answered", 5), "what was answered meanwhile is counted")
    await ledger.close()

    assert {answer["model"] for answer in away.values()} == {tried}
