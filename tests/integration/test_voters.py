"""Voters over HTTP and in the ledger: paced, quarantined, released and banned."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import erasure, pairs, preview, voters, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.errors import VoterBanned, VoterUnknown, VotesTooFast
from feedback.records import AnswerRef, Completion, Pair, Preferred, VoterState
from feedback.settings import LedgerSettings
from tests import electorate
from tests.answers import answered, compared
from tests.electorate import contrary, honest
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine
from trainer.visitor import Visitor, each


async def standing(ledger: Ledger) -> list[Pair]:
    await pairs.settle(ledger)
    return await pairs.get_many(ledger, await pairs.ids(ledger))


async def say(gateway: RunningGateway, voter: str, act: str, reason: str = "seen") -> httpx.Response:
    return await gateway.operator.post(f"/v1/voters/{voter}/{act}", json={"reason": reason})


async def thumb(http: httpx.AsyncClient, completion: Completion, voter: str, **fields: Any) -> httpx.Response:
    body = {"completion_id": completion.id, "rating": "up", "voter": voter, **fields}
    return await http.post("/v1/votes", json=body)


async def asked(ledger: Ledger, count: int, answers: int = 2) -> list[Completion]:
    made = [electorate.question(number, answers) for number in range(count)]
    await electorate.ask(ledger, made)
    return made


async def test_a_ban_refuses_further_votes_and_takes_the_given_ones_out(gateway: RunningGateway) -> None:
    (one,) = await asked(gateway.ledger, 1)
    await thumb(gateway.http, one, "troll/1")
    await thumb(gateway.http, one, "troll/1", choice=1, rating="down")
    assert len(await standing(gateway.ledger)) == 1

    banned = await say(gateway, "troll%2F1", "ban", "spam")
    again = await thumb(gateway.http, one, "troll/1")
    changed = await thumb(gateway.http, one, "troll/1", rating="down")
    chosen, rejected = ({"completion_id": one.id, "choice": choice} for choice in (0, 1))
    preferred = await gateway.http.post(
        "/v1/preferences", json={"chosen": chosen, "rejected": rejected, "voter": "troll/1"}
    )

    assert (banned.status_code, banned.json()["state"], banned.json()["history"][0]["reason"]) == (
        200,
        "banned",
        "spam",
    )
    for refused in (again, changed, preferred):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "voter_banned")
        assert "troll" not in refused.text
    assert await standing(gateway.ledger) == []
    assert len((await votes.page(gateway.ledger))[0]) == 2
    assert [sentence async for sentence in violations(gateway.ledger)] == []


async def test_a_quarantine_is_lifted_and_told(gateway: RunningGateway) -> None:
    (one,) = await asked(gateway.ledger, 1)
    await thumb(gateway.http, one, "ann")
    await thumb(gateway.http, one, "ann", choice=1, rating="down")
    (before,) = await standing(gateway.ledger)

    await say(gateway, "ann", "quarantine")
    during = await standing(gateway.ledger)
    taken = await thumb(gateway.http, one, "ann", comment="still mine")
    listed = (await gateway.operator.get("/v1/voters", params={"state": "quarantined"})).json()
    released = (await say(gateway, "ann", "release", "a friend")).json()
    (after,) = await standing(gateway.ledger)

    assert during == []
    assert taken.status_code == 200
    assert [(voter["id"], voter["state"]) for voter in listed["data"]] == [("ann", "quarantined")]
    assert (after.id, after.chosen) == (before.id, before.chosen)
    assert await pairs.waiting(gateway.ledger) == [after.id]
    told = [(change["state"], change["by"], change["reason"]) for change in released["history"]]
    assert told == [("quarantined", "operator", "seen"), ("released", "operator", "a friend")]


async def test_voters_are_listed_in_pages_for_operators_only(gateway: RunningGateway) -> None:
    (one,) = await asked(gateway.ledger, 1)
    for voter in ("cat", "ann", "bob"):
        await thumb(gateway.http, one, voter)
    await pairs.settle(gateway.ledger)

    first = (await gateway.operator.get("/v1/voters", params={"limit": 2})).json()
    rest = (await gateway.operator.get("/v1/voters", params={"limit": 2, "after": first["last_id"]})).json()
    unknown = await gateway.operator.get("/v1/voters/nobody")
    wrong = await gateway.operator.get("/v1/voters", params={"state": "angry"})
    reasonless = await gateway.operator.post("/v1/voters/ann/ban", json={})

    assert [voter["id"] for voter in first["data"] + rest["data"]] == ["ann", "bob", "cat"]
    assert (first["has_more"], rest["has_more"], first["data"][0]["votes"]) == (True, False, 1)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "voter_not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_value")
    assert (reasonless.status_code, reasonless.json()["error"]["param"]) == (400, "reason")
    for method, path in (("GET", "/v1/voters"), ("GET", "/v1/voters/ann"), ("POST", "/v1/voters/ann/ban")):
        assert (await gateway.http.request(method, path, json={"reason": "x"})).status_code == 401


async def test_too_many_votes_in_a_minute_are_told_when_to_come_again(ledger: Ledger, tmp_path: Path) -> None:
    slow = replace(ledger, settings=ledger.settings.model_copy(update={"voter_votes_per_minute": 3}))
    made = await asked(ledger, 4)
    async with scripted_engine() as engine, running_gateway(slow, tmp_path, engine) as gateway:
        taken = [await thumb(gateway.http, one, "ann") for one in made[:3]]
        refused = await thumb(gateway.http, made[3], "ann")
        repeated = await thumb(gateway.http, made[0], "ann")
        other = await thumb(gateway.http, made[3], "bob")

    assert [reply.status_code for reply in taken] == [200] * 3
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "vote_rate_limited")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert (repeated.status_code, repeated.json()["changed"]) == (200, False)
    assert other.status_code == 200
    assert len((await votes.page(ledger, limit=100))[0]) == 4


async def test_the_demo_waits_where_its_voters_are_too_fast(ledger: Ledger, tmp_path: Path) -> None:
    slow = replace(ledger, settings=ledger.settings.model_copy(update={"voter_votes_per_minute": 60}))
    made = await asked(ledger, 63)
    async with (
        scripted_engine() as engine,
        running_gateway(slow, tmp_path, engine) as gateway,
        Visitor(gateway.url, "") as visitor,
    ):
        await each(made, lambda one: visitor.vote(one.id, "up", "ann"), lambda: None)

        assert await gateway.count('heed_requests_total{method="POST",status="429"}') >= 1
    assert len((await votes.page(ledger, limit=100))[0]) == 63


async def test_a_pace_is_a_minute_s_votes_at_once_and_then_one_by_one(ledger: Ledger) -> None:
    made = await asked(ledger, 40)
    now = [1_700_000_000.0]
    slow = LedgerSettings(ledger_url=ledger.settings.ledger_url, voter_votes_per_minute=6, key_votes_per_minute=9)
    paced = replace(ledger, settings=slow, clock=lambda: now[0])
    left = iter(made)

    async def burst(voter: str) -> tuple[int, float]:
        """How many votes were taken before one was refused, and the wait it was told."""
        for taken in range(40):
            try:
                await votes.cast(
                    paced, completion_id=next(left).id, rating="up", voter=voter, key="key-1", is_paced=True
                )
            except VotesTooFast as refused:
                return taken, refused.retry_after_s or 0.0
        raise AssertionError("nothing was refused")

    found = [await burst("ann"), await burst("bob")]
    now[0] += 10.0
    found += [await burst("ann"), await burst("cat")]

    assert [taken for taken, _ in found] == [6, 3, 1, 0]
    assert [wait_s for _, wait_s in found][:3] == pytest.approx([10, 60 / 9, 10], abs=0.1)


async def test_votes_on_comparisons_are_held_to_the_same_rules(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    shown = await compared(ledger, good, bad)
    slow = replace(ledger, settings=ledger.settings.model_copy(update={"voter_votes_per_minute": 1}))

    async def judge(preferred: Preferred) -> bool:
        _, changed = await votes.judge(
            slow, comparison_id=shown.id, preferred=preferred, voter="ann", key="key-1", is_paced=True
        )
        return changed

    assert (await judge("a"), await judge("a")) == (True, False)
    with pytest.raises(VotesTooFast):
        await judge("b")
    (pair,) = await standing(ledger)
    await voters.enter(ledger, "ann", "banned", "seen")
    with pytest.raises(VoterBanned):
        await judge("a")
    seen = await preview.look(ledger)

    assert (pair.voters, pair.needed, pair.keys) == (["ann"], ["ann"], ["key-1"])
    assert (seen.left_out, await pairs.ids(ledger)) == ({"quarantined": 1}, [])
    assert [sentence async for sentence in violations(ledger)] == []


async def test_nobody_votes_by_a_name_that_scores_and_caps_exempt(gateway: RunningGateway, ledger: Ledger) -> None:
    (one,) = await asked(ledger, 1)

    refused = await thumb(gateway.http, one, "import:trl")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "voter")
    assert "does not begin with 'import:'" in refused.json()["error"]["message"]
    await votes.cast(ledger, completion_id=one.id, rating="up", voter="import:trl")
    await pairs.settle(ledger)
    assert await voters.page(ledger) == ([], False)


async def test_of_who_is_erased_nothing_is_known_but_a_ban(ledger: Ledger) -> None:
    states: dict[str, VoterState] = {"ann": "quarantined", "bot": "banned"}
    for voter, state in states.items():
        (one,) = await asked(ledger, 1)
        await votes.cast(ledger, completion_id=one.id, rating="up", voter=voter, key="key-1", is_paced=True)
        await voters.enter(ledger, voter, state, "seen")
        erased = await erasure.of_voter(ledger, voter)
        assert erased.votes == 1

    kept = {key.split("}:", 1)[1] async for key in ledger.redis.scan_iter("*voter*")}
    assert kept == {"voters:states"}
    assert await ledger.redis.hgetall(ledger.keys.voter_states) == {"bot": "banned"}
    assert [sentence async for sentence in violations(ledger)] == []


async def test_a_key_named_anew_does_not_make_it_another_vote(ledger: Ledger) -> None:
    (one,) = await asked(ledger, 1)
    first, _ = await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann", key="old")

    again, changed = await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann", key="new")

    assert (again, changed) == (first, False)


async def test_outliers_are_quarantined_by_the_score_and_an_operator_has_the_last_word(ledger: Ledger) -> None:
    made = await asked(ledger, 60, answers=2)
    answers = [(one, choice) for one in made for choice in (0, 1)]
    chance = random.Random(1)
    for person in ("ann", "bob", "cat", "dan"):
        await electorate.vote(ledger, electorate.thumbs(person, honest(0.05), answers, chance))
    await electorate.vote(ledger, electorate.thumbs("contrary", contrary, answers, chance))

    quarantined = await pairs.settle_and_judge(ledger)
    history = await voters.history(ledger, "contrary")
    await voters.enter(ledger, "contrary", "released", "they were right")
    again = await pairs.settle_and_judge(ledger)

    assert (quarantined, again) == (1, 0)
    assert [(change.state, change.by) for change in history] == [("quarantined", "score")]
    assert "of 118 ballots" in history[0].reason
    found = await voters.get(ledger, "contrary")
    assert (found.state, found.verdict.is_outlier) == ("released", True)
    assert await voters.count(ledger) == {"active": 4, "quarantined": 0, "released": 1, "banned": 0}
    with pytest.raises(VoterUnknown):
        await voters.enter(ledger, "nobody", "banned", "a typo")


async def test_a_pair_settled_while_its_voter_is_quarantined_does_not_stand(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await asked(ledger, 1)
    good, bad = (AnswerRef(completion_id=one.id, choice=choice) for choice in (0, 1))
    derive = pairs._derive

    async def derive_late(*about: Any) -> Any:
        """Between reading and writing another settles, and the quarantine makes the prompt as unsettled as it was."""
        monkeypatch.setattr(pairs, "_derive", derive)
        read = await derive(*about)
        await pairs.settle(ledger)
        await voters.enter(ledger, "ann", "quarantined", "seen")
        return read

    await pairs.settle(ledger)  # its first act is to note the rules
    await votes.prefer(ledger, chosen=good, rejected=bad, voter="ann")
    monkeypatch.setattr(pairs, "_derive", derive_late)

    assert await pairs.settle(ledger) == 0  # the count began again and is the same: how often it was settled tells
    await pairs.settle(ledger)
    assert await standing(ledger) == []
