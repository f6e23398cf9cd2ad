"""The ledger on a real server: votes, pairs, jobs, adapters."""

import asyncio
import json

import pytest

from feedback import adapters, completions, expiry, jobs, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.errors import (
    AdapterNotServable,
    ChoiceUnknown,
    CompletionUnknown,
    JobAlreadyClaimed,
    JobFinished,
    JobLeaseLost,
    LedgerUnavailable,
    NothingToRollBackTo,
    PromptsDiffer,
    SameAnswer,
    VoteEmpty,
    VoteUnknown,
)
from feedback.records import (
    Adapter,
    AdapterState,
    AnswerRef,
    Choice,
    Completion,
    Job,
    Pair,
    Rating,
    new_id,
    prompt_digest,
)
from feedback.settings import LedgerSettings
from tests.processes import free_port


def completion(prompt: str = "How do I fly a kite?", *answers: str) -> Completion:
    messages = [{"role": "user", "content": prompt}]
    return Completion(
        id=new_id("chatcmpl"),
        served_model="heed",
        adapter="heed-base",
        created=1000.0,
        messages=messages,
        prompt_hash=prompt_digest(messages),
        choices=[
            Choice(index=i, message={"role": "assistant", "content": text})
            for i, text in enumerate(answers or ("Run.",))
        ],
    )


async def recorded(ledger: Ledger, prompt: str, *answers: str) -> Completion:
    made = completion(prompt, *answers)
    await completions.record(ledger, made)
    return made


async def thumbs(ledger: Ledger, asked: Completion, *ratings: Rating) -> None:
    """One voter's thumb on each choice."""
    for choice, rating in enumerate(ratings):
        await votes.cast(ledger, completion_id=asked.id, choice=choice, rating=rating, voter="ann")


async def standing(ledger: Ledger) -> list[Pair]:
    await pairs.settle(ledger)
    return await pairs.get_many(ledger, await pairs.ids(ledger))


async def broken(ledger: Ledger) -> list[str]:
    return [sentence async for sentence in violations(ledger)]


async def test_a_vote_is_the_latest_opinion_of_one_voter(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")

    first, changed = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    again, changed_again = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    other, changed_mind = await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann")

    assert (changed, changed_again, changed_mind) == (True, False, True)
    assert first == again
    assert (other.id, other.created, other.rating) == (first.id, first.created, "down")
    assert (await votes.page(ledger, asked.id))[0] == [other]


async def test_two_voters_of_one_answer_are_two_votes(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")

    await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    await votes.cast(ledger, completion_id=asked.id, rating="down", voter="bob")

    assert len((await votes.page(ledger))[0]) == 2
    assert await standing(ledger) == []


async def test_racing_votes_of_one_voter_leave_one_vote(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")
    ratings: list[Rating] = ["up", "down", "up", "down"]

    await asyncio.gather(
        *(votes.cast(ledger, completion_id=asked.id, rating=r, voter="ann") for r in ratings), return_exceptions=True
    )

    assert len((await votes.page(ledger, asked.id))[0]) == 1
    assert await broken(ledger) == []


async def test_a_vote_keeps_its_completion_and_a_withdrawal_lets_it_expire_again(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")
    key = ledger.keys.completion(asked.id)
    assert await ledger.redis.ttl(key) > 0

    vote, _ = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    assert await ledger.redis.ttl(key) == -1

    await votes.withdraw(ledger, vote.id)
    assert await ledger.redis.ttl(key) > 0
    with pytest.raises(VoteUnknown):
        await votes.get(ledger, vote.id)


async def test_completions_that_are_one_string_can_be_voted_on(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one", "two")
    fields = asked.model_dump(exclude_none=True, exclude={"indexes", "prompt_hash"})
    old = json.dumps({**fields, "prompt_hash": asked.prompt_hash})
    await ledger.redis.set(ledger.keys.completion(asked.id), old, ex=100)

    vote, _ = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    one, other = (AnswerRef(completion_id=asked.id, choice=i) for i in (0, 1))
    preference, _ = await votes.prefer(ledger, chosen=one, rejected=other, voter="ann")

    assert (vote.model, vote.prompt_hash) == ("heed-base", asked.prompt_hash)
    assert preference.prompt_hash == asked.prompt_hash
    with pytest.raises(ChoiceUnknown):
        await votes.cast(ledger, completion_id=asked.id, choice=2, rating="up", voter="ann")
    assert await broken(ledger) == []


async def test_a_vote_recorded_with_its_fields_in_another_order_is_still_the_same_vote(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")
    before, _ = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann", comment="fine")
    await ledger.redis.set(ledger.keys.vote(before.id), before.model_dump_json(exclude_none=True))

    same, changed = await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann", comment="fine")
    other, changed_mind = await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann")

    assert (changed, changed_mind) == (False, True)
    assert same == before
    assert other.created == before.created


async def test_what_cannot_be_voted_on_is_refused(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")

    with pytest.raises(CompletionUnknown):
        await votes.cast(ledger, completion_id="chatcmpl-none", rating="up", voter="ann")
    with pytest.raises(ChoiceUnknown):
        await votes.cast(ledger, completion_id=asked.id, choice=1, rating="up", voter="ann")
    with pytest.raises(VoteEmpty):
        await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann", correction=" one ")
    assert (await votes.page(ledger))[0] == []


async def test_an_up_and_a_down_on_one_prompt_are_a_pair_until_one_is_withdrawn(ledger: Ledger) -> None:
    good, bad = await recorded(ledger, "q", "good"), await recorded(ledger, "q", "bad")
    await votes.cast(ledger, completion_id=good.id, rating="up", voter="ann")
    assert await standing(ledger) == []

    down, _ = await votes.cast(ledger, completion_id=bad.id, rating="down", voter="bob")
    (pair,) = await standing(ledger)
    assert (pair.chosen["content"], pair.rejected["content"], pair.source) == ("good", "bad", "thumbs")
    assert await pairs.waiting(ledger) == [pair.id]

    await votes.withdraw(ledger, down.id)
    assert await standing(ledger) == []
    assert await pairs.waiting(ledger) == []
    assert await broken(ledger) == []


async def test_thumbs_on_different_prompts_or_equal_texts_do_not_pair(ledger: Ledger) -> None:
    await thumbs(ledger, await recorded(ledger, "q", "same"), "up")
    await thumbs(ledger, await recorded(ledger, "q", "same"), "down")
    await thumbs(ledger, await recorded(ledger, "other", "bad"), "down")

    assert await standing(ledger) == []


async def test_each_answer_is_in_one_thumbs_pair_at_most(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "good", "bad", "worse", "best")
    await thumbs(ledger, asked, "up", "down", "down", "up")

    found = await standing(ledger)

    used = [text for pair in found for text in (pair.chosen["content"], pair.rejected["content"])]
    assert len(found) == 2
    assert len(set(used)) == 4


async def test_a_correction_is_a_pair_against_the_answer_it_corrects(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "wrong")

    await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann", correction="right")

    (pair,) = await standing(ledger)
    assert (pair.chosen["content"], pair.rejected["content"], pair.source) == ("right", "wrong", "correction")


async def test_preferences_pair_by_majority_and_a_change_of_mind_replaces(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "a", "b")
    a, b = (AnswerRef(completion_id=asked.id, choice=i) for i in (0, 1))

    await votes.prefer(ledger, chosen=a, rejected=b, voter="ann")
    assert [p.chosen["content"] for p in await standing(ledger)] == ["a"]

    await votes.prefer(ledger, chosen=b, rejected=a, voter="bob")
    assert await standing(ledger) == []

    await votes.prefer(ledger, chosen=b, rejected=a, voter="ann")
    assert [p.chosen["content"] for p in await standing(ledger)] == ["b"]


async def test_a_preference_needs_two_answers_to_one_prompt(ledger: Ledger) -> None:
    one, other = await recorded(ledger, "q"), await recorded(ledger, "another")
    a, b = (AnswerRef(completion_id=c.id) for c in (one, other))

    with pytest.raises(PromptsDiffer):
        await votes.prefer(ledger, chosen=a, rejected=b, voter="ann")
    with pytest.raises(SameAnswer):
        await votes.prefer(ledger, chosen=a, rejected=a, voter="ann")


async def test_deleting_a_completion_takes_its_votes_and_pairs_along(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "good", "bad")
    await thumbs(ledger, asked, "up", "down")
    assert len(await standing(ledger)) == 1

    await votes.forget_completion(ledger, asked.id)

    assert await standing(ledger) == []
    assert await broken(ledger) == []
    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, asked.id)


async def test_a_vote_that_comes_while_pairs_are_settled_is_not_forgotten(ledger: Ledger) -> None:
    good = await recorded(ledger, "q", "good")
    await votes.cast(ledger, completion_id=good.id, rating="up", voter="ann")
    stale = await ledger.redis.hgetall(ledger.keys.unsettled)

    bad = await recorded(ledger, "q", "bad")
    await votes.cast(ledger, completion_id=bad.id, rating="down", voter="ann")
    keys = [
        ledger.keys.unsettled,
        ledger.keys.prompt_pairs(good.prompt_hash),
        ledger.keys.pairs,
        ledger.keys.pairs_waiting,
    ]
    settled = await ledger.run(pairs.SETTLE, keys, [good.prompt_hash, stale[good.prompt_hash], 0])

    assert settled == 0
    assert len(await standing(ledger)) == 1


async def test_expired_completions_leave_the_index(ledger: Ledger) -> None:
    old = await recorded(ledger, "q")
    voted = await recorded(ledger, "q", "other")
    await votes.cast(ledger, completion_id=voted.id, rating="up", voter="ann")
    await ledger.redis.delete(ledger.keys.completion(old.id))

    assert await expiry.sweep(ledger) == 1
    assert [c.id for c in (await completions.page(ledger))[0]] == [voted.id]


async def test_completions_come_in_pages(ledger: Ledger) -> None:
    made = [await recorded(ledger, f"q{i}") for i in range(3)]
    made.sort(key=lambda c: c.id)

    first, more = await completions.page(ledger, limit=2)
    rest, no_more = await completions.page(ledger, after=first[-1].id, limit=2)

    assert [c.id for c in first + rest] == [c.id for c in made]
    assert (more, no_more) == (True, False)


def job(created: float = 1.0) -> Job:
    return Job(id=new_id("ftjob"), served_model="heed", created=created)


async def test_a_job_is_claimed_once_and_by_age(ledger: Ledger) -> None:
    older, younger = await jobs.create(ledger, job(1.0)), await jobs.create(ledger, job(2.0))

    with pytest.raises(JobAlreadyClaimed):
        await jobs.claim(ledger, younger.id)
    claimed, token = await jobs.claim(ledger, older.id)
    with pytest.raises(JobAlreadyClaimed):
        await jobs.claim(ledger, older.id)

    assert (claimed.status, claimed.attempts) == ("running", 1)
    await jobs.heartbeat(ledger, older.id, token)
    assert await jobs.unattended(ledger) is None


async def test_a_worker_that_lost_its_lease_can_change_nothing(ledger: Ledger) -> None:
    made = await jobs.create(ledger, job())
    _, token = await jobs.claim(ledger, made.id)
    await ledger.redis.delete(ledger.keys.job_lease(made.id))
    assert await jobs.unattended(ledger) == made.id
    second, new_token = await jobs.claim(ledger, made.id)

    with pytest.raises(JobLeaseLost):
        await jobs.save(ledger, made, token)
    with pytest.raises(JobLeaseLost):
        await jobs.finish(ledger, made, token, "succeeded")

    assert second.attempts == 2
    assert await jobs.number(ledger, made.id, new_token) == await jobs.number(ledger, made.id, new_token) == 1


async def test_a_cancelled_job_frees_its_pairs_and_stops_its_worker(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "good", "bad")
    await thumbs(ledger, asked, "up", "down")
    (pair,) = await standing(ledger)
    made = await jobs.create(ledger, job())
    _, token = await jobs.claim(ledger, made.id)
    assert await jobs.freeze(ledger, made.id, token, [pair.id]) == [pair.id]

    await jobs.cancel(ledger, made.id)

    with pytest.raises(JobFinished):
        await jobs.heartbeat(ledger, made.id, token)
    assert await pairs.waiting(ledger) == [pair.id]
    assert await ledger.redis.hgetall(ledger.keys.pair_claims) == {}
    assert (await jobs.get(ledger, made.id)).status == "cancelled"


async def test_a_succeeded_job_takes_its_pairs_off_the_waiting_list(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "good", "bad")
    await thumbs(ledger, asked, "up", "down")
    (pair,) = await standing(ledger)
    made = await jobs.create(ledger, job())
    claimed, token = await jobs.claim(ledger, made.id)
    await jobs.freeze(ledger, made.id, token, [pair.id])

    assert await jobs.freeze(ledger, made.id, token, ["pair-later"]) == [pair.id]
    await jobs.finish(ledger, claimed, token, "succeeded")

    assert await pairs.waiting(ledger) == []
    assert await pairs.ids(ledger) == [pair.id]
    assert await jobs.open_ids(ledger) == []


async def test_events_come_newest_first_in_pages(ledger: Ledger) -> None:
    made = await jobs.create(ledger, job())
    await jobs.tell(ledger, made.id, "second")
    await jobs.tell(ledger, made.id, "third")

    first, more = await jobs.events(ledger, made.id, limit=2)
    rest, no_more = await jobs.events(ledger, made.id, after=first[-1].id, limit=2)

    assert [e.message for e in first] == ["third", "second"]
    assert len(rest) == 1
    assert (more, no_more) == (True, False)


async def trained(ledger: Ledger, version: int, state: AdapterState = "candidate") -> str:
    adapter = Adapter(
        id=Adapter.id_of("heed", version, f"{version:08x}ff"),
        served_model="heed",
        version=version,
        digest=f"{version:08x}ff",
        base_model="pocket",
        base_revision="r",
        job=f"ftjob-{version}",
        dataset_digest="d",
        pairs=1,
        state=state,
        created=1.0,
    )
    await adapters.register(ledger, adapter, "trained")
    await adapters.register(ledger, adapter, "registered by a second delivery")
    return adapter.id


async def live(ledger: Ledger, adapter_id: str) -> None:
    await adapters.want(ledger, adapter_id, "promoted")
    await adapters.flip(ledger, adapter_id, (await adapters.serving(ledger)).live, "loaded everywhere")


async def test_rolling_back_twice_goes_back_two_versions(ledger: Ledger) -> None:
    first, second = await trained(ledger, 1), await trained(ledger, 2)
    await live(ledger, first)
    await live(ledger, second)
    assert (await adapters.serving(ledger)).previous == first

    for expected in (first, "heed-base"):
        wanted = (await adapters.roll_back(ledger, "worse")).wanted
        assert wanted == expected
        await adapters.flip(ledger, wanted, (await adapters.serving(ledger)).live, "worse")

    serving = await adapters.serving(ledger)
    assert (serving.live, serving.previous, serving.generation) == ("heed-base", None, 4)
    with pytest.raises(NothingToRollBackTo):
        await adapters.roll_back(ledger, "again")
    record = await adapters.get(ledger, first)
    assert [change.state for change in record.history] == ["candidate", "live", "retired", "live", "retired"]


async def test_a_rejected_adapter_cannot_be_wanted(ledger: Ledger) -> None:
    refused = await trained(ledger, 1, "rejected")
    wanted = await trained(ledger, 2)

    with pytest.raises(AdapterNotServable):
        await adapters.want(ledger, refused, "please")
    await adapters.want(ledger, wanted, "promoted")
    await adapters.reject(ledger, wanted, "its probe answered NaN")

    assert (await adapters.serving(ledger)).wanted == "heed-base"
    assert (await adapters.get(ledger, wanted)).state == "rejected"


async def test_served_models_share_a_server_and_nothing_else(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q")

    with pytest.raises(CompletionUnknown):
        await completions.get(ledger.of("legal"), asked.id)


async def test_check_names_what_is_broken(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "good", "bad")
    await thumbs(ledger, asked, "up", "down")
    assert await broken(ledger) == []

    await ledger.redis.delete(ledger.keys.completion(asked.id))
    await ledger.redis.hset(ledger.keys.serving, mapping={"live": "heed-v9-00000000"})

    told = " ".join(await broken(ledger))
    assert f"about completion {asked.id}" in told
    assert f"quotes completion {asked.id}" in told
    assert "heed-v9-00000000 is live but was never registered" in told


async def test_an_unreachable_ledger_has_one_name() -> None:
    nowhere = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{free_port()}/0", ledger_timeout_s=1))

    with pytest.raises(LedgerUnavailable):
        await completions.get(nowhere, "chatcmpl-1")
    with pytest.raises(LedgerUnavailable):
        await adapters.serving(nowhere)
    await nowhere.close()
