"""The queue of prompts for voters, and the honeypots in it, which look like all others until an operator asks."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feedback import comparisons, completions, erasure, pairs, queue, report, voters, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import Comparison, Preferred, QueuedPrompt
from tests.answers import answered, compared
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import ScriptedEngine

Json = dict[str, Any]
TELLING = ("honeypot", "expected", "known", "queue")
GOOD, BAD = "Seven and five are twelve.", "Seven and five are blue."


@pytest.fixture
async def mixing(ledger: Ledger) -> AsyncIterator[Ledger]:
    """Every draw is a honeypot as long as there is one."""
    mixing = open_ledger(ledger.settings.model_copy(update={"honeypot_share": 0.999999}))
    yield mixing
    await mixing.close()


@pytest.fixture
async def gateway(mixing: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(mixing, tmp_path, engine) as gateway:
        yield gateway


def asking(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


async def enqueue(gateway: RunningGateway, text: str, **fields: Any) -> Json:
    reply = await gateway.operator.post("/v1/prompts", json={"messages": asking(text), **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def enqueue_both(gateway: RunningGateway) -> None:
    await enqueue(gateway, "How do I fly a kite?")
    await enqueue(gateway, "What are seven and five?", good=GOOD, bad=BAD)


async def draw(gateway: RunningGateway, voter: str = "ann", **fields: Any) -> Json:
    reply = await gateway.http.post("/v1/comparisons/next", json={"voter": voter, **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def judge(gateway: RunningGateway, comparison_id: str, preferred: str, voter: str = "ann") -> Json:
    body = {"preferred": preferred, "voter": voter}
    reply = await gateway.http.post(f"/v1/comparisons/{comparison_id}/vote", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def expected(ledger: Ledger, comparison_id: str) -> str | None:
    return (await comparisons.get(ledger, comparison_id)).expected


def shape(value: Any) -> Any:
    """What is there, without what it says."""
    if isinstance(value, dict):
        return {name: shape(held) for name, held in value.items()}
    return [shape(held) for held in value[:1]] if isinstance(value, list) else type(value).__name__


def prompt(text: str, good: str | None = None, bad: str | None = None) -> QueuedPrompt:
    said = [{"role": "assistant", "content": answer} if answer else None for answer in (good, bad)]
    return QueuedPrompt(messages=asking(text), good=said[0], bad=said[1], created=1)


async def test_a_voter_gets_each_prompt_once_and_then_hears_that_there_are_none(gateway: RunningGateway) -> None:
    for number in range(3):
        await enqueue(gateway, f"Question {number}?")

    drawn = [await draw(gateway) for _ in range(3)]
    none = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"})
    other = await draw(gateway, "bob")

    assert {one["messages"][0]["content"] for one in drawn} == {f"Question {number}?" for number in range(3)}
    assert (none.status_code, none.json()["error"]["code"]) == (404, "no_prompts")
    assert other["messages"][0]["content"].startswith("Question")
    assert {side for side in drawn[0] if side in "ab"} == {"a", "b"}


async def test_an_ordinary_prompt_is_answered_by_the_engine_and_its_vote_teaches(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    await enqueue(gateway, "How do I fly a kite?")

    shown = await draw(gateway)
    kept = await comparisons.get(ledger, shown["id"])
    await judge(gateway, shown["id"], "a")
    await pairs.settle(ledger)

    assert (kept.is_queued, kept.expected) == (True, None)
    assert [body["messages"] for body in gateway.engine.bodies[-2:]] == [asking("How do I fly a kite?")] * 2
    assert shown["a"]["message"]["content"] == "a scripted answer"
    assert [broken async for broken in violations(ledger)] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_cannot_tell_a_honeypot_from_another_prompt(
    gateway: RunningGateway, ledger: Ledger, stream: bool
) -> None:
    await enqueue_both(gateway)
    seen: dict[bool, list[Any]] = {}
    said: list[str] = []
    for _ in range(2):
        reply = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann", "stream": stream})
        events = [json.loads(event[6:]) for event in reply.text.split("\n\n")[:-2]] if stream else [reply.json()]
        comparison_id = events[-1]["id"]
        before = (await gateway.http.get(f"/v1/comparisons/{comparison_id}?voter=ann")).json()
        vote = await judge(gateway, comparison_id, "a")
        after = (await gateway.http.get(f"/v1/comparisons/{comparison_id}?voter=ann")).json()
        side = (await gateway.http.get(f"/v1/chat/completions/{vote['a']['completion_id']}")).json()
        listed = (await gateway.http.get(f"/v1/votes?completion_id={side['id']}")).json()
        traced = await gateway.http.get(f"/v1/votes/{vote['id']}/lineage")
        liked = {"completion_id": side["id"], "rating": "up", "voter": "ann"}
        thumb = (await gateway.http.post("/v1/votes", json=liked)).json()
        thumbed = (await gateway.http.get(f"/v1/votes/{thumb['id']}/lineage")).json()
        about = [before, vote, after, side, listed, traced.json(), sorted(reply.headers), traced.status_code]
        about += [thumb, thumbed]
        kinds = {json.dumps(shape(event), sort_keys=True) for event in events}
        seen[await expected(ledger, comparison_id) is not None] = [kinds, shape(about), vote["a"]["adapter"]]
        said.append(json.dumps([events, about]))

    assert seen[True] == seen[False]
    assert not [word for word in TELLING[:3] for text in said if word in text.replace("was known before", "")]


async def test_a_streamed_honeypot_comes_in_pieces_after_its_prompt(gateway: RunningGateway, ledger: Ledger) -> None:
    await enqueue_both(gateway)

    reply = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann", "stream": True})

    first, *chunks, end = [json.loads(event[6:]) for event in reply.text.split("\n\n")[:-2]]
    told = {side: "".join(c["delta"].get("content") or "" for c in chunks if c["side"] == side) for side in "ab"}
    assert reply.text.endswith("data: [DONE]\n\n")
    assert (first["object"], first["messages"]) == ("comparison.prompt", asking("What are seven and five?"))
    assert first["id"] == end["id"]
    assert set(told.values()) == {GOOD, BAD}
    assert told == {side: end[side]["message"]["content"] for side in "ab"}
    assert told[str(await expected(ledger, end["id"]))] == GOOD
    assert len(chunks) > 12
    assert gateway.engine.bodies == [body for body in gateway.engine.bodies if body["max_tokens"] == 4]  # probes


async def test_choices_in_honeypots_count_for_the_voter_and_teach_nothing(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    for number in range(3):
        await enqueue(gateway, f"Question {number}?")
        await enqueue(gateway, f"Sum {number}?", good=GOOD, bad=BAD)
    for preferred_is_right in (True, False, None):
        shown = await draw(gateway)
        right = str(await expected(ledger, shown["id"]))
        wrong = "b" if right == "a" else "a"
        chosen = {True: right, False: wrong, None: "tie"}[preferred_is_right]
        vote = await judge(gateway, shown["id"], chosen)
        thumb = {"completion_id": vote["a"]["completion_id"], "rating": "up", "voter": "ann"}
        assert (await gateway.http.post("/v1/votes", json=thumb)).status_code == 200

    await pairs.settle(ledger)

    voter = (await gateway.operator.get("/v1/voters/ann")).json()
    assert voter["honeypots"] == {"answered": 2, "missed": 1}
    assert (voter["votes"], voter["measured"], voter["agreed"]) == (6, 2, 1)
    assert (await pairs.ids(ledger), [one async for one in pairs.unpaired(ledger)]) == ([], [])
    counts = await report.counters(ledger)
    assert not [name for name in counts if name.split(" ")[0] in ("votes", "ups", "beat", "side", "tied")]
    assert [broken async for broken in violations(ledger)] == []


async def test_who_errs_in_honeypots_is_quarantined_and_others_are_not(ledger: Ledger) -> None:
    for voter in ("ann", "bob", "cat", "bot"):
        for number in range(14):
            shown = await judged_honeypot(ledger, number)
            is_a = (shown.expected == "a") != (voter == "bot")
            preferred: Preferred = "a" if is_a else "b"
            await votes.judge(ledger, comparison_id=shown.id, preferred=preferred, voter=voter)

    assert await pairs.settle_and_judge(ledger) == 1

    states = {voter: (await voters.get(ledger, voter)).state for voter in ("ann", "bob", "cat", "bot")}
    assert states == {"ann": "active", "bob": "active", "cat": "active", "bot": "quarantined"}
    assert (await voters.get(ledger, "bot")).score.missed == 14


async def test_scores_kept_before_honeypots_were_counted_are_counted_anew(ledger: Ledger) -> None:
    shown = await judged_honeypot(ledger, 0)
    await votes.judge(ledger, comparison_id=shown.id, preferred="b", voter="ann")
    await pairs.settle(ledger)
    part = json.loads(str(await ledger.redis.get(ledger.keys.prompt_report(shown.prompt_hash))))
    part["scores"]["ann"] = part["scores"]["ann"][:5]
    await ledger.redis.set(ledger.keys.prompt_report(shown.prompt_hash), json.dumps(part))
    await ledger.redis.hset(ledger.keys.voter_scores, "ann", json.dumps(part["scores"]["ann"]))
    await ledger.redis.set(ledger.keys.settled_rules, "4")

    await pairs.settle(ledger)

    assert (await voters.get(ledger, "ann")).score.known == 1
    assert [broken async for broken in violations(ledger)] == []


async def judged_honeypot(ledger: Ledger, number: int) -> Comparison:
    """As the gateway records one."""
    good, bad = [await answered(ledger, f"Sum {number}?", said) for said in (GOOD, BAD)]
    sides = (good, bad) if number % 2 else (bad, good)
    return await compared(ledger, *sides, expected="a" if number % 2 else "b")


async def test_honeypots_are_not_drawn_when_nothing_else_is_left(gateway: RunningGateway) -> None:
    await enqueue(gateway, "Sum?", good=GOOD, bad=BAD)

    reply = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"})

    assert reply.json()["error"]["code"] == "no_prompts"


async def test_the_share_of_honeypots_is_what_was_asked_for(ledger: Ledger) -> None:
    some = open_ledger(ledger.settings.model_copy(update={"honeypot_share": 0.25}))
    for number in range(100):
        await queue.add(some, prompt(f"Question {number}?"))
        await queue.add(some, prompt(f"Sum {number}?", GOOD, BAD))
    chances = [number / 40 for number in range(40)]

    drawn = [await queue.draw(some, "ann", lambda at=at: at) for at in chances]  # type: ignore[misc]

    await some.close()
    assert [one.is_honeypot for one in drawn if one] == [at < 0.25 for at in chances]


async def test_racing_draws_of_one_voter_are_of_different_prompts(ledger: Ledger) -> None:
    for number in range(100):
        await queue.add(ledger, prompt(f"Question {number}?"))

    drawn = await asyncio.gather(*(queue.draw(ledger, "ann") for _ in range(101)))

    assert len({one.id for one in drawn if one}) == 100
    assert drawn.count(None) == 1


async def test_prompts_of_users_are_drawn_only_where_the_operator_says_so(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        await gateway.chat("How do I bake bread?", user="zoe")
        closed = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"})
    opened = open_ledger(ledger.settings.model_copy(update={"queue_traffic": True}))
    async with running_gateway(opened, tmp_path, engine) as gateway:
        shown = await draw(gateway)
        again = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"})
        kept = await comparisons.get(opened, shown["id"])
        gone = await erasure.of_user(opened, "zoe")
        left = (await completions.page(opened))[0]
    await opened.close()

    assert closed.json()["error"]["code"] == "no_prompts"
    assert shown["messages"] == asking("How do I bake bread?")
    assert again.json()["error"]["code"] == "no_prompts"  # the sides of a comparison are no prompts of users
    assert kept.user == "zoe"
    assert (gone.completions, left) == (3, [])
    assert (await comparisons.page(ledger))[0] == []


async def test_an_erased_voter_is_a_new_one(gateway: RunningGateway, mixing: Ledger) -> None:
    await enqueue(gateway, "How do I fly a kite?")
    await draw(gateway)

    await erasure.of_voter(mixing, "ann")

    assert (await draw(gateway))["messages"] == asking("How do I fly a kite?")


async def test_operators_keep_the_queue(gateway: RunningGateway) -> None:
    one = await enqueue(gateway, "How do I fly a kite?")
    again = await enqueue(gateway, "How do I fly a kite?")
    pot = await enqueue(gateway, "Sum?", good=GOOD, bad=BAD)

    refused = await gateway.http.get("/v1/prompts?honeypots=true")
    listed = (await gateway.operator.get("/v1/prompts")).json()["data"]
    pots = (await gateway.operator.get("/v1/prompts?honeypots=true")).json()["data"]
    removed = await gateway.operator.delete(f"/v1/prompts/{pot['id']}")
    gone = await gateway.operator.get(f"/v1/prompts/{pot['id']}")

    assert (one["changed"], again["changed"], again["id"]) == (True, False, one["id"])
    assert refused.status_code == 401
    assert [prompt["id"] for prompt in listed] == [one["id"]]
    assert [(prompt["id"], prompt["good"], prompt["bad"]) for prompt in pots] == [(pot["id"], GOOD, BAD)]
    assert removed.json()["deleted"] is True
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "prompt_not_found")
    assert (await gateway.operator.get("/v1/prompts?honeypots=true")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [], "good": "x", "bad": "y"}, "messages"),
        ({"messages": asking("Sum?"), "good": "x"}, None),
        ({"messages": asking("Sum?"), "good": "x", "bad": "x"}, None),
        ({"messages": asking("Sum?"), "better": "x"}, "better"),
    ],
)
async def test_what_is_no_prompt_is_refused(gateway: RunningGateway, body: Json, param: str | None) -> None:
    reply = await gateway.operator.post("/v1/prompts", json=body)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_a_draw_takes_no_sampling_parameters_which_would_tell_honeypots_apart(gateway: RunningGateway) -> None:
    reply = await gateway.http.post("/v1/comparisons/next", json={"max_tokens": 1})

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize("is_honeypot", [False, True])
async def test_without_an_engine_no_prompt_is_answered(
    mixing: Ledger, tmp_path: Path, engine: ScriptedEngine, is_honeypot: bool
) -> None:
    async with running_gateway(mixing, tmp_path, engine, engine_wait_s=0.3) as gateway:
        await (enqueue_both(gateway) if is_honeypot else enqueue(gateway, "How do I fly a kite?"))
        await engine.stop()
        first = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"})
        second = await gateway.http.post("/v1/comparisons/next", json={"voter": "bob"})

    assert second.status_code == 503
    assert first.status_code in (503, 200)  # the hot swap may not have seen yet that it is gone
