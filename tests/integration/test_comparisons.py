"""Blind comparisons over HTTP: two answers, hidden sides, a vote, and then who was who."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from feedback import comparisons, completions, expiry, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import ComparisonVote, prompt_digest
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.processes import free_port, ledger_server
from tests.scripted_engine import Script, ScriptedEngine

Json = dict[str, Any]
ASK: Json = {"messages": [{"role": "user", "content": "How do I fly a kite?"}]}
TELLING = ("heed-base", "heed-v", "chatcmpl", "usage", "fingerprint", "model", "adapter", "logprob")


def says(gateway: RunningGateway, *texts: str) -> None:
    gateway.engine.scripts.extend(Script(tokens=tuple(text.split(" "))) for text in texts)


async def compare(gateway: RunningGateway, *texts: str, **fields: Any) -> Json:
    says(gateway, *texts)
    reply = await gateway.http.post("/v1/comparisons", json=ASK | fields)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def judge(gateway: RunningGateway, comparison_id: str, preferred: str, voter: str = "ann") -> Json:
    body = {"preferred": preferred, "voter": voter}
    return dict((await gateway.http.post(f"/v1/comparisons/{comparison_id}/vote", json=body)).json())


async def code_of(gateway: RunningGateway, **fields: Any) -> tuple[int, str, str | None]:
    reply = await gateway.http.post("/v1/comparisons", json=ASK | fields)
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


def events(text: str) -> list[Json]:
    return [json.loads(event[6:]) for event in text.split("\n\n")[:-1] if event != "data: [DONE]"]


async def broken(ledger: Ledger) -> list[str]:
    return [sentence async for sentence in violations(ledger)]


async def test_a_prompt_is_answered_twice_and_nothing_tells_who_answered(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    shown = await compare(gateway, "good", "bad", temperature=0.5, seed=7, user="ann")

    kept = await comparisons.get(ledger, shown["id"])
    answered = await completions.get_many(ledger, [kept.a.completion_id, kept.b.completion_id])
    assert shown.keys() == {"id", "object", "created", "a", "b"}
    assert (shown["id"][:4], shown["object"]) == ("cmp-", "comparison")
    assert not [word for word in TELLING if word in json.dumps(shown)]
    assert {shown["a"]["message"]["content"], shown["b"]["message"]["content"]} == {"good", "bad"}
    assert answered[kept.a.completion_id].choices[0].message == shown["a"]["message"]
    assert answered[kept.b.completion_id].choices[0].message == shown["b"]["message"]
    assert (kept.adapter_a, kept.adapter_b, kept.user, kept.expected) == ("heed-base", "heed-base", "ann", None)
    assert kept.prompt_hash == prompt_digest(ASK["messages"]) == answered[kept.a.completion_id].prompt_hash
    assert sorted(body["seed"] for body in gateway.engine.bodies[-2:]) == [7, 8]
    assert all(c.comparison == kept.id and c.params["temperature"] == 0.5 for c in answered.values())


async def test_two_named_adapters_answer_once_each_on_sides_that_are_shuffled(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    adapter = await gateway.register(1, b"one")
    sides = set()
    for _ in range(20):
        shown = await compare(gateway, models=["heed-base", adapter], seed=7)
        kept = await comparisons.get(ledger, shown["id"])
        sides.add((kept.adapter_a, kept.adapter_b))

    # Twenty times the same order would come by chance once in half a million runs.
    assert sides == {("heed-base", adapter), (adapter, "heed-base")}
    assert [body["seed"] for body in gateway.engine.bodies[-2:]] == [7, 7]


async def test_both_sides_stream_side_by_side_and_are_in_the_ledger_before_the_end(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    slow, fast = asyncio.Semaphore(0), asyncio.Semaphore(0)
    gateway.engine.scripts.extend(
        [Script(tokens=("slow", " words"), gate=slow), Script(tokens=("fast", " words"), gate=fast)]
    )
    seen: list[Json] = []
    async with gateway.http.stream("POST", "/v1/comparisons", json=ASK | {"stream": True}) as reply:
        slow.release()
        async for line in reply.aiter_lines():
            if not line:
                continue
            if line == "data: [DONE]":
                kept = await comparisons.get(ledger, seen[-1]["id"])
                assert len(await completions.get_many(ledger, [kept.a.completion_id, kept.b.completion_id])) == 2
                break
            seen.append(json.loads(line[6:]))
            word = seen[-1].get("delta", {}).get("content")
            if word == "slow":
                fast.release()
            elif word == "fast":
                slow.release()
            elif word == " words":
                fast.release()

    *chunks, end = seen
    said = {side: "".join(c["delta"].get("content") or "" for c in chunks if c["side"] == side) for side in "ab"}
    spoken = [c["side"] for c in chunks if c["delta"].get("content")]
    assert sorted(said.values()) == ["fast words", "slow words"]
    assert [spoken[0], spoken[2]] == [spoken[0]] * 2
    assert [spoken[1], spoken[3]] == [spoken[1]] * 2
    assert spoken[0] != spoken[1]
    assert {c["object"] for c in chunks} == {"comparison.chunk"}
    assert {c["finish_reason"] for c in chunks} == {None, "stop"}
    assert end["object"] == "comparison"
    assert {side: end[side]["message"]["content"] for side in "ab"} == said
    assert not [word for word in TELLING if word in json.dumps(seen)]


@pytest.mark.parametrize("failing", [Script(breaks_after=1), Script(error_after=1), Script(finish="abort")])
async def test_a_side_that_fails_within_its_answer_is_one_error_and_no_comparison(
    gateway: RunningGateway, ledger: Ledger, failing: Script
) -> None:
    gateway.engine.scripts.extend([Script(), failing])

    reply = await gateway.http.post("/v1/comparisons", json=ASK | {"stream": True})

    told = events(reply.text)
    assert reply.status_code == 200
    assert [event for event in told if "error" in event] == told[-1:]
    assert told[-1]["error"]["code"] == "engine_failed"
    assert "[DONE]" not in reply.text
    assert (await comparisons.page(ledger))[0] == []


async def test_a_side_that_cannot_begin_ends_the_other_one_that_has(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.scripts.append(Script(gate=asyncio.Semaphore(1)))
    async with running_gateway(ledger, tmp_path, engine, spare_adapters=0, engine_wait_s=1) as gateway:
        nowhere = await gateway.register(1, b"one")  # no engine has room for it
        fields = {"stream": True, "models": ["heed-base", nowhere]}
        told = events((await gateway.http.post("/v1/comparisons", json=ASK | fields)).text)

        assert "delta" in told[0]
        assert told[-1]["error"]["code"] == "adapter_not_loaded"
        await until(lambda: engine.aborted and not engine.running, "the other side is given up")
        assert (await comparisons.page(ledger))[0] == []


async def test_a_failure_without_a_stream_is_an_ordinary_refusal(gateway: RunningGateway, ledger: Ledger) -> None:
    held = asyncio.Semaphore(0)
    gateway.engine.scripts.extend([Script(status=500), Script(gate=held)])

    assert await code_of(gateway) == (502, "engine_failed", None)

    await until(lambda: gateway.engine.aborted and not gateway.engine.running, "the other side is given up")
    assert (await comparisons.page(ledger))[0] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_both_sides(gateway: RunningGateway, ledger: Ledger, stream: bool) -> None:
    gate = asyncio.Semaphore(0)
    gateway.engine.scripts.extend([Script(gate=gate), Script(gate=gate)])
    asking = asyncio.create_task(gateway.http.post("/v1/comparisons", json=ASK | {"stream": stream}))
    await until(lambda: len(gateway.engine.running) == 2, "both sides are asked")

    asking.cancel()

    await until(lambda: len(gateway.engine.aborted) == 2, "both are aborted")
    assert gateway.engine.running == []
    assert (await comparisons.page(ledger))[0] == []


async def test_a_vote_reveals_who_was_who_and_the_latest_counts(gateway: RunningGateway, ledger: Ledger) -> None:
    adapter = await gateway.register(1, b"one")
    shown = await compare(gateway, "good", "bad", models=["heed-base", adapter])
    kept = await comparisons.get(ledger, shown["id"])

    first = await judge(gateway, shown["id"], "tie")
    again = await judge(gateway, shown["id"], "tie")
    other = await judge(gateway, shown["id"], "a")

    reveal = {
        "a": {"adapter": kept.adapter_a, "completion_id": kept.a.completion_id},
        "b": {"adapter": kept.adapter_b, "completion_id": kept.b.completion_id},
    }
    wanted = {"object": "comparison_vote", "comparison_id": kept.id, "preferred": "tie", "voter": "ann"}
    assert first.items() >= (wanted | {"changed": True} | reveal).items()
    assert first["id"].startswith("cvote-")
    assert again == first | {"changed": False}
    assert (other["id"], other["preferred"], other["changed"]) == (first["id"], "a", True)
    assert len((await votes.page(ledger))[0]) == 1
    assert await gateway.count('heed_votes_total{kind="comparison"}') == 2
    assert await broken(ledger) == []


async def test_a_vote_sent_again_with_its_key_is_answered_again(gateway: RunningGateway) -> None:
    where = f"/v1/comparisons/{(await compare(gateway, 'good', 'bad'))['id']}/vote"
    key = {"idempotency-key": "once"}

    first = await gateway.http.post(where, json={"preferred": "a"}, headers=key)
    again = await gateway.http.post(where, json={"preferred": "a"}, headers=key)
    other = await gateway.http.post(where, json={"preferred": "b"}, headers=key)

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


async def test_sides_stay_hidden_from_who_has_not_voted(gateway: RunningGateway) -> None:
    shown = await compare(gateway, "good", "bad")
    where = f"/v1/comparisons/{shown['id']}"
    vote_id = (await judge(gateway, shown["id"], "b"))["id"]

    ann = (await gateway.http.get(where, params={"voter": "ann"})).json()
    bob = (await gateway.http.get(where, params={"voter": "bob"})).json()
    boss = (await gateway.operator.get(where)).json()
    vote = (await gateway.http.get(f"/v1/votes/{vote_id}")).json()
    listed = (await gateway.http.get("/v1/chat/completions")).json()["data"]
    listed_whole = (await gateway.operator.get("/v1/chat/completions")).json()["data"]

    assert bob == shown | {"messages": ASK["messages"], "voted": None}
    assert ann["voted"] == "b"
    assert ann["a"].keys() == {"message", "finish_reason", "adapter", "completion_id"}
    assert boss.items() >= {"served_model": "heed", "expected": None, "a": ann["a"], "b": ann["b"]}.items()
    assert not {"a", "b", "model_a", "model_b"} & vote.keys()
    assert vote.items() >= {"object": "comparison_vote", "preferred": "b", "voter": "ann"}.items()
    assert (len(listed), len(listed_whole)) == (0, 2)


async def test_operators_list_comparisons_in_pages_newest_first(gateway: RunningGateway) -> None:
    made = [(await compare(gateway))["id"] for _ in range(3)]

    refused = await gateway.http.get("/v1/comparisons")
    first = (await gateway.operator.get("/v1/comparisons", params={"limit": 2})).json()
    rest = (await gateway.operator.get("/v1/comparisons", params={"limit": 2, "after": first["last_id"]})).json()

    assert refused.status_code == 401
    assert [one["id"] for one in [*first["data"], *rest["data"]]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"][0]["a"]["adapter"] == "heed-base"


async def test_a_choice_becomes_a_pair_until_it_is_withdrawn(gateway: RunningGateway, ledger: Ledger) -> None:
    shown = await compare(gateway, "good", "bad")
    winner = "a" if shown["a"]["message"]["content"] == "good" else "b"
    vote = await judge(gateway, shown["id"], winner)
    await judge(gateway, shown["id"], "tie", voter="bob")
    await pairs.settle(ledger)
    (pair,) = await pairs.get_many(ledger, await pairs.ids(ledger))
    assert await ledger.redis.ttl(ledger.keys.comparison(shown["id"])) == -1

    gone = await gateway.http.delete(f"/v1/votes/{vote['id']}")
    await pairs.settle(ledger)

    assert (pair.chosen["content"], pair.rejected["content"]) == ("good", "bad")
    assert (pair.source, pair.weight, pair.opinions) == ("comparison", 0.5, [vote["id"]])
    assert gone.json()["deleted"] is True
    assert await pairs.ids(ledger) == []
    assert await broken(ledger) == []


async def test_a_comparison_without_votes_expires_again(gateway: RunningGateway, ledger: Ledger) -> None:
    shown = await compare(gateway)
    vote = await judge(gateway, shown["id"], "both_bad")

    await votes.withdraw(ledger, vote["id"])

    kept = await comparisons.get(ledger, shown["id"])
    assert await ledger.redis.ttl(ledger.keys.comparison(kept.id)) > 0
    assert await ledger.redis.ttl(ledger.keys.completion(kept.a.completion_id)) > 0
    await ledger.redis.delete(ledger.keys.comparison(kept.id))
    ledger.clock = lambda: kept.created + 31 * completions.DAY_S
    assert await expiry.sweep(ledger) == 1
    assert (await comparisons.page(ledger))[0] == []


async def test_deleting_an_answer_takes_the_comparison_and_its_votes_along(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    shown = await compare(gateway, "good", "bad")
    vote = await judge(gateway, shown["id"], "a")

    await gateway.http.delete(f"/v1/chat/completions/{vote['a']['completion_id']}")

    missing = await gateway.http.get(f"/v1/comparisons/{shown['id']}")
    late = await judge(gateway, shown["id"], "b")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "comparison_not_found")
    assert late["error"]["code"] == "comparison_not_found"
    assert (await votes.page(ledger))[0] == []
    assert await broken(ledger) == []


async def test_racing_votes_of_one_voter_leave_one(gateway: RunningGateway, ledger: Ledger) -> None:
    shown = await compare(gateway, "good", "bad")

    replies = await asyncio.gather(*(judge(gateway, shown["id"], said) for said in ("a", "b", "tie", "both_bad")))

    (vote,), _ = await votes.page(ledger)
    assert isinstance(vote, ComparisonVote)
    assert any(reply.get("preferred") == vote.preferred for reply in replies)
    assert await broken(ledger) == []


async def test_what_cannot_be_compared_is_refused(gateway: RunningGateway) -> None:
    assert await code_of(gateway, store=False) == (400, "invalid_value", "store")
    assert await code_of(gateway, n=2) == (400, "invalid_value", "n")
    assert await code_of(gateway, models=["heed"]) == (400, "invalid_value", "models")
    assert await code_of(gateway, models=["heed", "gpt-9"]) == (404, "model_not_found", "model")
    assert await code_of(gateway, cache_salt="x") == (400, "unknown_parameter", "cache_salt")
    assert await code_of(gateway, messages=[]) == (400, "invalid_value", "messages")


async def test_two_served_models_are_not_compared(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine, models=("heed", "legal")) as gateway:
        refused = await code_of(gateway, models=["heed-base", "legal-base"])

    assert refused == (400, "models_differ", "models")


async def test_without_a_ledger_there_is_no_comparison(tmp_path: Path, engine: ScriptedEngine) -> None:
    port = free_port()
    settings = LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", ledger_timeout_s=1, var=tmp_path)
    ledger = open_ledger(settings)
    with ledger_server(tmp_path / "redis", port) as server:
        async with running_gateway(ledger, tmp_path, engine) as gateway:
            server.kill()
            server.wait()
            whole = await gateway.http.post("/v1/comparisons", json=ASK)
            streamed = await gateway.http.post("/v1/comparisons", json=ASK | {"stream": True})
    await ledger.close()

    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert events(streamed.text)[-1]["error"]["code"] == "ledger_unavailable"
    assert "[DONE]" not in streamed.text
