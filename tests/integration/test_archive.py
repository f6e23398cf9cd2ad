"""The archive: old completions with a vote move out of Redis exactly once, and nobody who reads them can tell."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from feedback import archive, comparisons, completions, erasure, pairs, partitions, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, ChoiceUnknown, CompletionUnknown
from feedback.records import AnswerRef, Completion, new_id
from tests.answers import answered, compared

MONTH_S = 31 * completions.DAY_S


async def old(ledger: Ledger, prompt: str, *answers: str, user: str | None = None) -> list[Completion]:
    """Completions with a vote each, a month before the ledger's clock."""
    made = []
    for answer in answers:
        one = await answered(ledger, prompt, answer, user)
        await votes.cast(ledger, completion_id=one.id, rating="up", voter="ann")
        made.append(one)
    now = ledger.clock()
    ledger.clock = lambda: now + MONTH_S
    return made


async def clean(ledger: Ledger) -> bool:
    assert [sentence async for sentence in violations(ledger)] == []
    return True


def files(ledger: Ledger) -> dict[str, list[str]]:
    """Ids in each file of the archive."""
    shelf = partitions.at(ledger)
    return {name: shelf.ids(name) for name in shelf.names()}


def archived(ledger: Ledger) -> list[str]:
    return sorted(i for ids in files(ledger).values() for i in ids)


async def is_stub(ledger: Ledger, completion_id: str) -> bool:
    key = ledger.keys.completion(completion_id)
    return bool(await ledger.redis.hexists(key, "archived")) and not await ledger.redis.hexists(key, "body")


def content(ledger: Ledger) -> bytes:
    folder = Path(ledger.settings.archive_address)
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def ids(found: Iterable[Completion]) -> list[str]:
    return sorted(one.id for one in found)


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
    assert {pair.chosen["content"] for pair in found} == {"better", "one", "two"} - {"one"}
    assert all(pair.prompt == one.messages for pair in found)
    assert [await is_stub(ledger, each.id) for each in (one, two)] == [True, True]
    with pytest.raises(ChoiceUnknown):
        await votes.cast(ledger, completion_id=one.id, choice=7, rating="up", voter="ann")
    assert await clean(ledger)
