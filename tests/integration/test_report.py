"""The report: kept while votes come and go, equal to a full recount, and read without looking at a vote."""

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import adapters, pairs, report, stats, voters, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.errors import VoterBanned
from feedback.records import Adapter, AnswerRef, BestOf, Comparison, ComparisonVote, Completion, Preferred, Rating
from feedback.report import DAY_S
from tests import electorate
from tests.answers import compared
from tests.gateways import running_gateway
from tests.integration.test_commands import heed
from tests.scripted_engine import scripted_engine

V1, BASE = "heed-v1-00000001", "heed-base"


async def asked(ledger: Ledger, count: int, answers: int = 2, adapter: str = BASE, first: int = 0) -> list[Completion]:
    """Answered now, as the retention is counted by the clock."""
    made = [
        electorate.question(number, answers).model_copy(
            update={"id": f"chatcmpl-{adapter}-{number}", "adapter": adapter, "created": time.time()}
        )
        for number in range(first, first + count)
    ]
    await electorate.ask(ledger, made)
    return made


async def act_at_random(ledger: Ledger, made: list[Completion], shown: list[Comparison], chance: random.Random) -> None:
    """Raises VoterBanned now and then."""
    voter = chance.choice(["ann", "bob", "cat", "dan"])
    one = chance.choice(made)
    match chance.randrange(10):
        case 0:
            given, _ = await votes.page(ledger, limit=100)
            if given:
                await votes.withdraw(ledger, chance.choice(given).id)
        case 1 | 2:
            sides = [AnswerRef(completion_id=one.id, choice=choice) for choice in (0, 1)]
            chance.shuffle(sides)
            await votes.prefer(ledger, chosen=sides[0], rejected=sides[1], voter=voter)
        case 3:
            known = await ledger.reply(ledger.redis.exists(ledger.keys.voter_prompts(voter)))
            if known:
                await voters.enter(
                    ledger, voter, chance.choice(["quarantined", "released", "released", "banned"]), "by chance"
                )
        case 4:
            await pairs.settle(ledger)
        case 5 | 6:
            preferred: Preferred = chance.choice(["a", "b", "tie", "both_bad"])
            await votes.judge(ledger, comparison_id=chance.choice(shown).id, preferred=preferred, voter=voter)
        case _:
            rating: Rating = chance.choice(["up", "down"])
            correction = "what was wanted" if chance.random() < 0.2 else None
            await votes.cast(
                ledger,
                completion_id=one.id,
                choice=chance.randrange(2),
                rating=rating,
                voter=voter,
                correction=correction,
            )


@pytest.mark.parametrize("seed", range(3))
async def test_the_counters_are_what_a_full_recount_gives(ledger: Ledger, seed: int) -> None:
    chance = random.Random(seed)
    made = await asked(ledger, 6) + await asked(ledger, 6, adapter=V1)  # twice the same questions
    shown = [await compared(ledger, made[i], made[i + 6], expected) for i, expected in enumerate((None, None, "b"))]

    counted: set[str] = set()
    for _ in range(5):
        for _ in range(40):
            with suppress(VoterBanned):
                await act_at_random(ledger, made, shown, chance)
        assert [sentence async for sentence in violations(ledger)] == []
        counted |= (await report.counters(ledger)).keys()

    assert f"votes {V1}" in counted
    assert counted & {"side a", "side b", f"tied {BASE} {V1}"}


async def test_check_names_a_counter_that_is_wrong(ledger: Ledger) -> None:
    (one,) = await asked(ledger, 1)
    await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann")
    await pairs.settle(ledger)
    await ledger.redis.hincrby(ledger.keys.report, f"ups {BASE}", 1)
    await ledger.redis.hset(ledger.keys.voter_scores, "bob", "[1,0,0,0,0]")

    told = [sentence async for sentence in violations(ledger)]

    assert told == [
        f"the counter 'ups {BASE}' is 2 and counts 1",
        "the score of voter 'bob' is [1, 0, 0, 0, 0] and counts None",
    ]


async def test_what_is_withdrawn_is_counted_no_more(ledger: Ledger) -> None:
    (one,) = await asked(ledger, 1)
    given = [
        (await votes.cast(ledger, completion_id=one.id, choice=choice, rating="up", voter=voter))[0]
        for choice in (0, 1)
        for voter in ("ann", "bob", "cat")
    ]
    await pairs.settle(ledger)
    assert await report.counters(ledger) != {}

    for vote in given:
        await votes.withdraw(ledger, vote.id)
    await pairs.settle(ledger)

    assert await report.kept(ledger) == report.Part({}, {})


async def test_thumbs_on_the_best_of_several_answers_are_told_apart(ledger: Ledger) -> None:
    asked_alone, asked_best, unscored = (electorate.question(number, 2) for number in range(3))
    picked = BestOf(samples=4, chosen=2, rewards=[0.1, 0.2, 0.9, 0.3], reward_model="reward")
    made = [
        one.model_copy(update={"adapter": V1, "created": time.time(), "best_of": best_of})
        for one, best_of in (
            (asked_alone, None),
            (asked_best, picked),
            (unscored, picked.model_copy(update={"rewards": []})),
        )
    ]
    await electorate.ask(ledger, made)
    for one in made:
        await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann")
        await votes.cast(ledger, completion_id=one.id, choice=1, rating="down", voter="ann")
    sides = AnswerRef(completion_id=made[1].id), AnswerRef(completion_id=made[1].id, choice=1)
    await votes.prefer(ledger, chosen=sides[0], rejected=sides[1], voter="bob")
    await pairs.settle(ledger)

    (version,) = (await stats.quality(ledger))["versions"]

    assert (version["votes"], version["up_rate"]["share"]) == (4, 0.5)  # the first of several is as the only one
    assert (version["best_of_up_rate"]["of"], version["best_of_up_rate"]["share"]) == (2, 0.5)
    assert not any(name.startswith("beat") for name in await report.counters(ledger))
    assert [sentence async for sentence in violations(ledger)] == []


async def test_the_report_tells_of_each_version_what_the_votes_said(ledger: Ledger) -> None:
    old, new = await asked(ledger, 4), await asked(ledger, 4, adapter=V1)
    await asked(ledger, 8, first=100)
    for number, (worse, better) in enumerate(zip(old, new, strict=True)):
        await votes.cast(ledger, completion_id=worse.id, choice=1, rating="up" if number == 0 else "down", voter="ann")
        await votes.cast(ledger, completion_id=better.id, rating="up", voter="ann")
        sides = AnswerRef(completion_id=better.id, choice=1), AnswerRef(completion_id=worse.id)
        await votes.prefer(ledger, chosen=sides[0], rejected=sides[1], voter="bob")
    await votes.cast(ledger, completion_id=new[0].id, rating="up", voter="bob")
    await live(ledger, voted_s=90.0)
    await pairs.settle(ledger)

    found = await stats.quality(ledger)

    version, base = found["versions"]
    assert (version["id"], version["votes"], version["up_rate"]["share"]) == (V1, 5, 1.0)
    assert (base["id"], base["votes"], base["up_rate"]["share"]) == (BASE, 4, 0.25)
    assert base["up_rate"]["low"] < 0.25 < base["up_rate"]["high"]
    assert base["win_rate"]["share"] is None
    assert version["win_rate"]["share"] > 0.85
    assert (version["win_rate"]["of"], version["win_rate"]["against"]) == (4, BASE)
    assert version["vote_to_live_s"] == found["vote_to_live_s"]["median"] == pytest.approx(90, abs=5)
    assert found["agreement"] == {"share": 1.0, "of": 1}
    assert found["voted_share"].items() >= {"share": 0.5, "of": 16, "days": 30}.items()
    assert found["pairs"]["by_source"] == {"preference": 4}  # which speaks for the thumbs too
    assert found["voters"] == {"active": 2, "quarantined": 0, "released": 0, "banned": 0}

    await voters.enter(ledger, "ann", "banned", "by the test")
    await pairs.settle(ledger)

    found = await stats.quality(ledger)
    assert [version["votes"] for version in found["versions"]] == [1, 0]
    assert (found["unheard_votes"], found["pairs"]["by_source"]) == (8, {"preference": 4})


async def live(ledger: Ledger, voted_s: float) -> None:
    """V1 goes live, this long after the median vote it was trained on."""
    adapter = Adapter(
        id=V1,
        served_model="heed",
        version=1,
        digest="d",
        base_model="pocket",
        base_revision="r",
        job="ftjob-1",
        dataset_digest="d",
        pairs=1,
        voted=ledger.clock() - voted_s,
        state="candidate",
        created=ledger.clock(),
    )
    await adapters.register(ledger, adapter, "trained")
    await adapters.want(ledger, V1, "promoted")
    await adapters.flip(ledger, V1, BASE, "loaded everywhere")


def test_comparisons_are_counted_by_side_by_winner_and_by_what_they_left_open() -> None:
    made = [
        electorate.question(0).model_copy(update={"id": f"chatcmpl-{name}", "adapter": adapter, "created": 3 * DAY_S})
        for name, adapter in (("a", V1), ("b", BASE))
    ]
    shown = Comparison(
        id="cmp-1",
        served_model="heed",
        created=1,
        messages=made[0].messages,
        prompt_hash=made[0].prompt_hash,
        a=AnswerRef(completion_id="chatcmpl-a"),
        b=AnswerRef(completion_id="chatcmpl-b"),
        adapter_a=V1,
        adapter_b=BASE,
    )
    given: dict[str, Any] = {"ann": "a", "bob": "a", "cat": "b", "dan": "tie", "eve": "both_bad", "bot": "b"}
    opinions = [
        ComparisonVote(
            id=f"cvote-{voter}",
            comparison_id=shown.id,
            preferred=preferred,
            a=shown.a,
            b=shown.b,
            voter=voter,
            prompt_hash=shown.prompt_hash,
            model_a=V1,
            model_b=BASE,
            created=1,
            updated=1,
        )
        for voter, preferred in given.items()
    ]

    part = report.part(opinions, {one.id: one for one in made}, [], {"bot"}, {shown.id: shown})

    honeypot = shown.model_copy(update={"expected": "a"})
    measured = report.part(opinions, {one.id: one for one in made}, [], {"bot"}, {shown.id: honeypot})

    assert measured.counts == {"met": 3, "agreed": 1, "answered 3": 2, "unheard": 1}
    assert part.counts == {
        "side a": 2,
        "side b": 1,
        f"beat {V1} {BASE}": 2,
        f"beat {BASE} {V1}": 1,
        f"tied {BASE} {V1}": 2,
        "neither tie": 1,
        "neither both_bad": 1,
        "met": 3,
        "agreed": 1,
        "answered 3": 2,
        "unheard": 1,
    }


async def test_the_report_and_the_voters_are_shown_in_the_terminal(ledger: Ledger, tmp_path: Path) -> None:
    (one,) = await asked(ledger, 1)
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        for choice, rating in ((0, "up"), (1, "down")):
            body = {"completion_id": one.id, "choice": choice, "rating": rating, "voter": "[b]ann[/b]"}
            assert (await gateway.http.post("/v1/votes", json=body)).status_code == 200

        code, shown = await heed(gateway, "stats")
        listed = await heed(gateway, "voters")
        banned = await heed(gateway, "voters", "--ban", "[b]ann[/b]", "--reason", "spam")
        only = await heed(gateway, "voters", "--state", "banned")
        reply: httpx.Response = await gateway.operator.get("/v1/stats")

    assert code == 0
    assert "heed-base (live)  2      50% (9% to 91%, n = 2)" in shown
    assert "1 active" in shown
    assert "[b]ann[/b]  active  2" in listed[1]
    assert banned == (0, "[b]ann[/b] is banned.\n")
    assert "[b]ann[/b]  banned" in only[1]
    assert reply.json()["unheard_votes"] == 2


async def test_a_look_at_the_report_settles_some_votes_and_tells_of_the_rest(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SETTLE_WITHIN_S", 0)
    for one in await asked(ledger, pairs.PROMPTS + 8):
        await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann")

    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, ready=False) as gateway:
        first = await heed(gateway, "stats")
        second: httpx.Response = await gateway.operator.get("/v1/stats")

    assert "the newest votes on 8 prompts" in first[1]
    assert second.json()["unsettled"] == 0
    assert second.json()["versions"][0]["votes"] == pairs.PROMPTS + 8
