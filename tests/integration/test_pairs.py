"""Settling on a real server: the tally against a recount, the preview, unpaired answers, changed rules."""

import asyncio
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from feedback import jobs, methods, pairs, preview, tally, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.errors import CompletionUnknown, FeedbackError, TooFewPairs
from feedback.lessons import Reason
from feedback.records import (
    AnswerRef,
    Completion,
    Job,
    Preferred,
    Rating,
)
from feedback.texts import Fault
from serve.cli import LEFT_OUT
from tests.answers import answered, compared
from tests.gateways import running_gateway
from tests.scripted_engine import scripted_engine


async def thumb(ledger: Ledger, answer: Completion, rating: Rating, voter: str = "ann") -> str:
    vote, _ = await votes.cast(ledger, completion_id=answer.id, rating=rating, voter=voter)
    return vote.id


async def prefer(ledger: Ledger, chosen: Completion, rejected: Completion, voter: str = "ann") -> str:
    one, other = (AnswerRef(completion_id=c.id) for c in (chosen, rejected))
    preference, _ = await votes.prefer(ledger, chosen=one, rejected=other, voter=voter)
    return preference.id


async def broken(ledger: Ledger) -> list[str]:
    return [sentence async for sentence in violations(ledger)]


async def left(ledger: Ledger, pattern: str) -> list[str]:
    return [key async for key in ledger.redis.scan_iter(match=f"heed:*:{pattern}")]


@pytest.mark.parametrize("seed", range(3))
async def test_the_tally_is_what_a_recount_finds_whatever_people_do(ledger: Ledger, seed: int) -> None:
    dice = random.Random(seed)
    answers = [await answered(ledger, f"q{i}", text) for i in range(4) for text in ("yes", "no", "yes", "perhaps")]
    shown = [await compared(ledger, answers[i], answers[i + 1]) for i in range(0, 16, 4)]

    async def act() -> None:
        one = dice.choice(answers)
        other = dice.choice([c for c in answers if c.prompt_hash == one.prompt_hash and c is not one])
        voter = dice.choice(["ann", "bob", "cid"])
        what = dice.random()
        if what < 0.35:
            rating: Rating = dice.choice(["up", "down"])
            correction = dice.choice([None, None, "certainly"])
            await votes.cast(ledger, completion_id=one.id, rating=rating, voter=voter, correction=correction)
        elif what < 0.6:
            await prefer(ledger, one, other, voter)
        elif what < 0.8:
            said: Preferred = dice.choice(["a", "b", "tie", "both_bad"])
            await votes.judge(ledger, comparison_id=dice.choice(shown).id, preferred=said, voter=voter)
        elif what < 0.98:
            standing, _ = await votes.page(ledger, limit=100)
            if standing:
                await votes.withdraw(ledger, dice.choice(standing).id)
        else:
            await votes.forget_completion(ledger, one.id)

    for _ in range(60):
        outcomes = await asyncio.gather(*(act() for _ in range(4)), pairs.settle(ledger), return_exceptions=True)
        # Refusals are part of life here: an answer deleted by one act is voted on by another.
        assert all(isinstance(o, FeedbackError) for o in outcomes if isinstance(o, BaseException)), outcomes
    await pairs.settle(ledger)

    assert await tally.read(ledger) == (await pairs.recount(ledger)).tally != {}
    assert await broken(ledger) == []

    for opinion in (await votes.page(ledger, limit=1000))[0]:
        await votes.withdraw(ledger, opinion.id)
    await pairs.settle(ledger)

    assert await left(ledger, "tally") == []
    assert {key.rsplit(":", 1)[1] for key in await left(ledger, "prompt:*")} == {"settled"}  # for an hour
    assert await left(ledger, "unpaired*") == await left(ledger, "pair*") == []


async def test_who_settles_late_does_not_overwrite_who_settled_meanwhile(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    await pairs.settle(ledger)
    await prefer(ledger, good, bad)
    derive = pairs._derive

    async def derive_late(*about: Any) -> Any:
        """Between reading and writing another settles, and one more vote makes the prompt as unsettled as it was."""
        monkeypatch.setattr(pairs, "_derive", derive)
        read = await derive(*about)
        await pairs.settle(ledger)
        await prefer(ledger, good, bad, "bob")
        return read

    monkeypatch.setattr(pairs, "_derive", derive_late)

    assert await pairs.settle(ledger) == 0

    await pairs.settle(ledger)
    (pair,) = await pairs.get_many(ledger, await pairs.ids(ledger))
    assert len(pair.opinions) == 2


async def test_check_sees_a_tally_that_is_off(ledger: Ledger) -> None:
    await thumb(ledger, await answered(ledger, "q", "yes"), "up")
    assert await broken(ledger) == []

    await ledger.redis.hincrby(ledger.keys.tally, "unpaired:up", 1)

    assert await broken(ledger) == ["the tally has 2 for unpaired:up, a recount 1"]


async def test_a_ledger_settled_by_other_rules_is_settled_anew(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    await prefer(ledger, good, bad)
    await pairs.settle(ledger)
    (pair_id,) = await pairs.ids(ledger)
    # As the version before left it: a pair by another id, and no tally.
    await ledger.redis.rename(ledger.keys.pair(pair_id), ledger.keys.pair("pair-old"))
    for index in (ledger.keys.pairs, ledger.keys.pairs_waiting):
        await ledger.redis.delete(index)
        await ledger.redis.zadd(index, {"pair-old": 1.0})
    await ledger.redis.delete(ledger.keys.prompt_pairs(good.prompt_hash), ledger.keys.tally, ledger.keys.settled_rules)
    await ledger.redis.delete(ledger.keys.prompt_lessons(good.prompt_hash), ledger.keys.prompt_tally(good.prompt_hash))
    await ledger.redis.sadd(ledger.keys.prompt_pairs(good.prompt_hash), "pair-old")

    assert await pairs.settle(ledger) == 1

    assert await pairs.ids(ledger) == await pairs.waiting(ledger) == [pair_id]
    assert await pairs.settle(ledger) == 0
    assert await broken(ledger) == []


async def test_a_rated_answer_in_no_pair_is_unpaired_until_it_is_in_one(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    await thumb(ledger, good, "up")
    await thumb(ledger, good, "up", "bob")
    await thumb(ledger, good, "down", "cid")
    await pairs.settle(ledger)

    (rated,) = [one async for one in pairs.unpaired(ledger)]
    await thumb(ledger, bad, "down")
    await pairs.settle(ledger)

    assert (rated.prompt, rated.completion["content"], rated.label) == (good.messages, "good", True)
    assert rated.record.weight == pytest.approx(2 / 3)
    assert [one async for one in pairs.unpaired(ledger)] == []
    assert len(await pairs.ids(ledger)) == 1
    assert await left(ledger, "unpaired*") == []


async def test_what_people_say_of_a_honeypot_trains_nothing(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    honeypot = await compared(ledger, good, bad, expected="a")
    await votes.judge(ledger, comparison_id=honeypot.id, preferred="b", voter="ann")

    seen = await preview.look(ledger)

    assert (seen.left_out, seen.opinions_used, await pairs.ids(ledger)) == ({"honeypot": 1}, 0, [])


async def test_a_vote_on_an_expired_comparison_is_refused(ledger: Ledger) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    shown = await compared(ledger, good, bad)
    await ledger.redis.delete(ledger.keys.completion(bad.id))

    with pytest.raises(CompletionUnknown) as refused:
        await votes.judge(ledger, comparison_id=shown.id, preferred="a", voter="ann")

    assert good.id not in str(refused.value)
    assert (await votes.page(ledger))[0] == []


async def test_the_preview_says_what_a_job_would_train_on_and_what_is_left_out(ledger: Ledger) -> None:
    ledger.settings.min_pairs, ledger.settings.min_held_out_pairs = 3, 1
    for i in range(40):
        good, bad = await answered(ledger, f"q{i}", "a longer answer"), await answered(ledger, f"q{i}", "short")
        if i % 2:
            await prefer(ledger, good, bad)
            await prefer(ledger, good, bad, "bob")
            await prefer(ledger, bad, good, "cid")
        else:
            await thumb(ledger, bad, "up")
            await thumb(ledger, good, "down")
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    await prefer(ledger, await answered(ledger, "t", "text"), await answered(ledger, "t", call))
    await thumb(ledger, await answered(ledger, "lone", "alone"), "up")

    seen = await preview.look(ledger)

    held_out = [p for p in await pairs.get_many(ledger, await pairs.ids(ledger)) if p.split == "held_out"]
    assert seen.train.total + seen.held_out.total == 40
    assert 0 < seen.held_out.total == len(held_out) < 20
    assert (seen.train.new, seen.held_out.new) == (seen.train.total, seen.held_out.total)
    assert seen.train.by_source["preference"] + seen.held_out.by_source.get("preference", 0) == 20
    assert seen.is_enough
    assert seen.weights.mean == pytest.approx((20 * 2 / 3 + 20) / 40, abs=1e-6)
    assert seen.weights.contested == 20
    assert (seen.lengths.chosen_mean, seen.lengths.rejected_mean) == (10, 10)
    assert seen.lengths.chosen_longer_share == 0.5
    assert seen.left_out == {"lone_thumb": 1, "outvoted": 20}
    assert (seen.unfit, seen.unpaired, seen.opinions_used) == ({"not text": 1}, {"up": 1, "down": 0}, 81)
    assert seen.unsettled == 0


async def test_pairs_that_a_job_learnt_are_new_no_more(ledger: Ledger) -> None:
    for i in range(40):
        await prefer(ledger, await answered(ledger, f"q{i}", "good"), await answered(ledger, f"q{i}", "bad"))
    before = await preview.look(ledger)
    job = await jobs.create(ledger, Job(id="ftjob-1", served_model="heed", created=1.0))
    _, token = await jobs.claim(ledger, job.id)
    await jobs.freeze(ledger, job.id, token, (await pairs.ids(ledger))[:-1])
    await jobs.finish(ledger, job, token, "succeeded")

    after = await preview.look(ledger)

    assert before.train.new + before.held_out.new == 40
    assert after.train.new + after.held_out.new == 1
    assert (after.train.total, after.held_out.total) == (before.train.total, before.held_out.total)


async def test_pairs_no_job_can_learn_from_do_not_count_as_enough(ledger: Ledger) -> None:
    ledger.settings.min_pairs, ledger.settings.min_held_out_pairs = 1, 1
    for i in range(30):
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": str(i)}]}
        await prefer(ledger, await answered(ledger, f"q{i}", "text"), await answered(ledger, f"q{i}", call))
    await pairs.settle(ledger)

    with pytest.raises(TooFewPairs):
        await methods.require_enough(ledger)

    assert len(await pairs.ids(ledger)) == 30
    assert await pairs.waiting(ledger) == []


async def test_the_preview_and_the_unpaired_answers_over_http(ledger: Ledger, tmp_path: Path) -> None:
    good, bad = await answered(ledger, "q", "good"), await answered(ledger, "q", "bad")
    await prefer(ledger, good, bad)
    await thumb(ledger, await answered(ledger, "lone", "alone"), "down")
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        refused = await gateway.http.get("/v1/pairs/preview")
        seen = (await gateway.operator.get("/v1/pairs/preview")).json()
        kto = (await gateway.operator.get("/v1/pairs", params={"format": "kto"})).text.splitlines()

    assert refused.status_code == 401
    assert (seen["object"], seen["model"], seen["is_enough"]) == ("pairs.preview", "heed", False)
    assert seen["train"]["needed"] == ledger.settings.min_pairs
    assert [('"good"' in line, '"bad"' in line, '"alone"' in line) for line in kto] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert '"label":false' in kto[2]


def test_the_command_explains_every_reason_and_fault() -> None:
    assert set(LEFT_OUT) == {*get_args(Reason), *get_args(Fault)}
