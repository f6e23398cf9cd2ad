"""The archive: old completions with a vote move out of Redis, and nobody who reads them can tell."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from feedback import archive, completions, erasure, imports, pairs, partitions, votes
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, ChoiceUnknown, CompletionUnknown, VoteEmpty
from feedback.records import AnswerRef, Completion
from tests.answers import answered, compared
from tests.archives import MONTH_S, archived, clean, is_stub, old, texts
from tests.gateways import RunningGateway


def ids(found: Iterable[Completion]) -> list[str]:
    return sorted(one.id for one in found)


def away(ledger: Ledger) -> Path:
    """Where the archive's folder is while it cannot be reached; rename it back to reach it again."""
    folder = Path(ledger.settings.archive_address)
    return folder.rename(folder.with_name("away"))


async def test_old_completions_with_a_vote_move_and_others_stay(ledger: Ledger) -> None:
    voted = await old(ledger, "q", "one", "two")
    unvoted, young = await answered(ledger, "q", "three"), await answered(ledger, "q", "four")
    await votes.cast(ledger, completion_id=young.id, rating="up", voter="ann")

    moved = await archive.run(ledger)

    assert (moved.completions, moved.partitions) == (2, 1)
    assert archived(ledger) == ids(voted)
    assert [await is_stub(ledger, one.id) for one in (*voted, unvoted, young)] == [True, True, False, False]
    assert await clean(ledger)
    assert (await archive.run(ledger)).completions == 0


async def test_what_moves_at_once_is_limited(ledger: Ledger) -> None:
    ledger.settings = ledger.settings.model_copy(update={"archive_batch": 2})
    made = await old(ledger, "q", "one", "two", "three", "four", "five")
    told: list[int] = []

    moved = await archive.run(ledger, told.append)

    assert (moved.completions, moved.partitions, sum(told)) == (5, 3, 5)
    assert archived(ledger) == ids(made)
    assert await clean(ledger)


async def test_any_address_of_fsspec_is_an_archive(ledger: Ledger, tmp_path: Path) -> None:
    ledger.settings = ledger.settings.model_copy(update={"archive": f"memory:/{tmp_path}"})
    (one,) = await old(ledger, "q", "one", user="zoe")
    await archive.run(ledger)

    found = await completions.get(ledger, one.id)

    assert found == one
    assert await is_stub(ledger, one.id)
    assert await clean(ledger)
    await erasure.of_user(ledger, "zoe")
    assert archived(ledger) == []
    assert not (tmp_path / "archive").exists()


async def test_archived_completions_are_read_as_others_are(ledger: Ledger) -> None:
    made = await old(ledger, "q", "one", "two", user="zoe")
    made.append(await answered(ledger, "q", "three"))
    before, _ = await completions.page(ledger)
    await archive.run(ledger)

    page, _ = await completions.page(ledger)

    assert page == before
    assert await completions.get(ledger, made[0].id) == made[0]
    assert await completions.get(ledger, made[0].id, "anonymous") == made[0]
    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, made[0].id, "somebody else")


async def test_archived_completions_are_voted_on_and_their_votes_become_pairs(ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two")
    shown = await compared(ledger, one, two)
    await archive.run(ledger)

    await votes.cast(ledger, completion_id=two.id, rating="down", voter="ann", correction="better")
    chosen, rejected = AnswerRef(completion_id=two.id), AnswerRef(completion_id=one.id)
    await votes.prefer(ledger, chosen=chosen, rejected=rejected, voter="bob")
    await votes.judge(ledger, comparison_id=shown.id, preferred="b", voter="carl")
    await pairs.settle(ledger)

    found = [pair async for some in pairs.pages(ledger) for pair in some]
    assert {(pair.chosen["content"], pair.rejected["content"]) for pair in found} == {("better", "two"), ("two", "one")}
    assert all(pair.prompt == one.messages for pair in found)
    assert [await is_stub(ledger, each.id) for each in (one, two)] == [True, True]
    with pytest.raises(ChoiceUnknown):
        await votes.cast(ledger, completion_id=one.id, choice=7, rating="up", voter="ann")
    with pytest.raises(VoteEmpty):
        await votes.cast(ledger, completion_id=one.id, rating="down", voter="ann", correction="one")
    assert await clean(ledger)


async def test_lone_thumbs_on_archived_answers_still_teach_unpaired(ledger: Ledger) -> None:
    await old(ledger, "q", "one")
    await archive.run(ledger)
    await pairs.settle(ledger)

    found = [(one.prompt, one.completion["content"], one.label) async for one in pairs.unpaired(ledger)]

    assert found == [([{"role": "user", "content": "q"}], "one", True)]


async def test_an_archived_completion_that_changes_comes_back_and_moves_again(ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two")
    await archive.run(ledger)

    await completions.update_metadata(ledger, one.id, {"seen": "yes"})

    assert not await is_stub(ledger, one.id)
    assert (await completions.get(ledger, one.id)).metadata == {"seen": "yes"}
    assert await clean(ledger)
    moved = await archive.run(ledger)
    assert (moved.completions, moved.tidied) == (1, 1)
    assert archived(ledger) == ids([one, two])
    assert (await completions.get(ledger, one.id)).metadata == {"seen": "yes"}
    assert await clean(ledger)


async def test_an_archived_completion_whose_votes_were_withdrawn_expires_there(ledger: Ledger) -> None:
    made = await old(ledger, "q", "one", "two", "three", user="zoe")
    await archive.run(ledger)
    one, two, three = (one.id for one in made)
    for given in [await votes.page(ledger, completion_id) for completion_id in (one, two)]:
        await votes.withdraw(ledger, given[0][0].id)
    await votes.cast(ledger, completion_id=two, rating="down", voter="bob")
    assert (await archive.run(ledger)).expired == 0
    withdrawn = ledger.clock()
    ledger.clock = lambda: withdrawn + MONTH_S

    done = await archive.run(ledger)

    assert (done.expired, done.tidied) == (1, 1)
    assert archived(ledger) == sorted([two, three])
    assert set((await completions.get_many(ledger, [one, two, three])).keys()) == {two, three}
    assert one not in await ledger.redis.smembers(ledger.keys.user_completions("zoe"))
    assert await clean(ledger)


async def test_an_import_does_not_bring_back_what_is_archived(ledger: Ledger) -> None:
    row = b'{"prompt": "q", "completion": "one", "label": true}'
    given = list(imports.read([(1, row)], "kto"))
    await imports.take(ledger, given, "kto", 1)
    now = ledger.clock()
    ledger.clock = lambda: now + MONTH_S
    await archive.run(ledger)
    (made,) = archived(ledger)

    again = await imports.take(ledger, given, "kto", 1)

    assert (again.imported, again.duplicates) == (0, 1)
    assert await is_stub(ledger, made)
    assert [one.id for one in (await completions.page(ledger))[0]] == [made]
    assert (await archive.run(ledger)).completions == 0
    assert await clean(ledger)


async def test_an_erased_user_is_gone_from_the_archive_and_others_stay(ledger: Ledger) -> None:
    mine = await old(ledger, "my secret", "one", "two", user="zoe")
    ledger.clock = lambda: mine[0].created
    kept = await old(ledger, "q", "three", user="bob")
    await archive.run(ledger)
    before = partitions.at(ledger).names()
    assert "my secret" in texts(ledger)

    erased = await erasure.of_user(ledger, "zoe")

    assert (erased.completions, erased.votes) == (2, 2)
    assert archived(ledger) == ids(kept)
    assert "my secret" not in texts(ledger)
    assert not set(before) & set(partitions.at(ledger).names())
    assert await completions.get(ledger, kept[0].id) == kept[0]
    assert await clean(ledger)
    await erasure.of_user(ledger, "bob")
    assert partitions.at(ledger).names() == []


async def test_an_erased_voter_leaves_archived_answers_as_withdrawing_does(ledger: Ledger) -> None:
    (one,) = await old(ledger, "q", "one")
    await archive.run(ledger)
    await votes.cast(ledger, completion_id=one.id, rating="down", voter="bob", correction="my secret")

    erased = [await erasure.of_voter(ledger, voter) for voter in ("ann", "bob")]

    assert [each.votes for each in erased] == [1, 1]
    assert await ledger.redis.zscore(ledger.keys.archive_unvoted, one.id) is not None
    assert await clean(ledger)


async def test_an_archive_that_cannot_be_reached_takes_votes_and_loses_nothing(ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two")
    live = [await answered(ledger, "p", "good"), await answered(ledger, "p", "bad")]
    await archive.run(ledger)
    gone = away(ledger)

    for completion, rating in ((one, "down"), (live[0], "up"), (live[1], "down")):
        await votes.cast(ledger, completion_id=completion.id, rating=rating, voter="ann")  # type: ignore[arg-type]
    await votes.cast(ledger, completion_id=two.id, rating="down", voter="bob", correction="better")
    await pairs.settle(ledger)

    assert await pairs.count(ledger) == 1
    with pytest.raises(ArchiveUnavailable):
        await completions.get(ledger, one.id)
    with pytest.raises(ArchiveUnavailable, match="is it mounted"):
        await archive.run(ledger)
    gone.rename(ledger.settings.archive_address)
    assert await completions.get(ledger, one.id) == one
    await pairs.settle(ledger)
    assert await pairs.count(ledger) == 2
    assert await clean(ledger)


async def test_what_is_erased_while_the_archive_cannot_be_reached_goes_with_its_next_run(ledger: Ledger) -> None:
    one, _ = await old(ledger, "my secret", "one", "two", user="zoe")
    await archive.run(ledger)
    gone = away(ledger)

    with pytest.raises(ArchiveUnavailable, match="deleted from the ledger"):
        await erasure.of_completion(ledger, one.id)
    gone.rename(ledger.settings.archive_address)
    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, one.id)

    assert (await archive.run(ledger)).tidied == 1
    assert one.id not in archived(ledger)
    assert await clean(ledger)


async def test_clients_read_vote_on_and_delete_archived_completions(gateway: RunningGateway, ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two")
    before = (await gateway.http.get("/v1/chat/completions")).json()
    await archive.run(ledger)
    at = f"/v1/chat/completions/{one.id}"
    vote = {"completion_id": one.id, "rating": "down", "voter": "ann"}

    listed = await gateway.http.get("/v1/chat/completions")
    changed = await gateway.http.post(at, json={"metadata": {"k": "v"}})
    await archive.run(ledger)
    gone = away(ledger)
    refused, voted = await gateway.http.get(at), await gateway.http.post("/v1/votes", json=vote)
    gone.rename(ledger.settings.archive_address)
    lineage = await gateway.http.get(f"/v1/votes/{voted.json()['id']}/lineage")
    told = await gateway.operator.get("/v1/pairs?format=trl")
    deleted = await gateway.http.delete(at)

    assert listed.json() == before
    assert changed.json()["metadata"] == {"k": "v"}
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "archive_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert voted.json()["changed"] is True
    assert len(lineage.json()["pairs"]) == len(told.text.splitlines()) == 1
    assert deleted.json()["deleted"] is True
    assert (await gateway.http.get(at)).status_code == 404
    assert archived(ledger) == [two.id]
    assert await clean(ledger)


async def test_records_of_the_version_before_are_read_and_upgraded_once(ledger: Ledger) -> None:
    made = await old(ledger, "q", "one", "two") + [await answered(ledger, "q", "three")]
    for one in made:
        key = ledger.keys.completion(one.id)
        lifetime_s = await ledger.redis.ttl(key)
        await ledger.redis.set(key, one.model_dump_json(exclude_none=True), ex=None if lifetime_s < 0 else lifetime_s)
    await ledger.redis.delete(ledger.keys.completions_live)
    assert await completions.get_many(ledger, [one.id for one in made]) == {one.id: one for one in made}
    assert await completions.get(ledger, made[0].id, made[0].client) == made[0]
    await completions.update_metadata(ledger, made[1].id, {"k": "v"})

    moved = await archive.run(ledger)

    assert moved.completions == 2
    assert await ledger.redis.type(ledger.keys.completion(made[2].id)) == "hash"
    assert 0 < await ledger.redis.ttl(ledger.keys.completion(made[2].id)) <= 30 * completions.DAY_S
    assert await completions.get(ledger, made[0].id) == made[0]
    assert await clean(ledger)


async def test_completions_of_the_version_before_are_withdrawn_from_and_deleted(ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two", user="zoe")
    for each in (one, two):
        await ledger.redis.set(ledger.keys.completion(each.id), each.model_dump_json(exclude_none=True))

    await votes.withdraw(ledger, (await votes.page(ledger, one.id))[0][0].id)
    await erasure.of_completion(ledger, two.id)

    assert await ledger.redis.ttl(ledger.keys.completion(one.id)) > 0
    assert await completions.existing(ledger, [one.id, two.id]) == {one.id}
    assert await clean(ledger)


async def test_reading_goes_on_while_partitions_are_written_anew(ledger: Ledger) -> None:
    made = await old(ledger, "q", *(f"answer {i}" for i in range(12)))
    await archive.run(ledger)
    kept, deleted = made[::2], made[1::2]

    async def read() -> None:
        for _ in range(20):
            assert await completions.get_many(ledger, [one.id for one in kept]) == {one.id: one for one in kept}

    async def delete() -> None:
        for one in deleted:
            await erasure.of_completion(ledger, one.id)

    await asyncio.gather(read(), read(), delete())

    assert archived(ledger) == ids(kept)
    assert await clean(ledger)
