"""The archive under faults: whoever dies, hangs or meets another at whatever step, each completion is in one place.

Dying is played in this process, at every step there is: from then on nothing the archiver does reaches ledger or files.
`kill -9` of real archivers at random moments is in tests/faults.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feedback import archive, completions, erasure, expiry, partitions, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.errors import ArchiveUnavailable, LedgerUnavailable
from feedback.partitions import Partitions
from feedback.records import Completion
from tests.answers import answered
from tests.archives import archived, clean, is_stub, old, texts


class Died(BaseException):
    """Not an Exception: nobody catches what kills them."""


@dataclass
class Life:
    """How many steps are left."""

    left: int

    def step(self) -> None:
        if self.left <= 0:
            raise Died
        self.left -= 1


class Mortal(Ledger):
    """A ledger as a process sees it that dies before or after any of its calls."""

    life: Life

    async def run(self, script: str, keys: Any, args: Any) -> Any:
        self.life.step()
        found = await super().run(script, keys, args)
        self.life.step()
        return found

    async def reply(self, command: Any) -> Any:
        try:
            self.life.step()
        except Died:
            command.close()
            raise
        found = await super().reply(command)
        self.life.step()
        return found


def mortal(ledger: Ledger, life: Life) -> Mortal:
    made = Mortal(ledger.redis, ledger.keys, ledger.settings, ledger.commits, ledger.redaction, ledger.clock)
    made.life = life
    return made


def mortal_files(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are written in part, or not removed, by who dies."""
    write, delete = Partitions.write, Partitions.delete

    def writing(self: Partitions, name: str, rows: Any) -> None:
        life.step()
        write(self, name, rows)
        if life.left == 0:
            path = Path(self.address) / f"{name}.parquet"
            os.truncate(path, path.stat().st_size // 2)
        life.step()
        life.step()

    def deleting(self: Partitions, name: str) -> None:
        life.step()
        delete(self, name)
        life.step()

    monkeypatch.setattr(Partitions, "write", writing)
    monkeypatch.setattr(Partitions, "delete", deleting)


async def prepared(ledger: Ledger) -> list[Completion]:
    """Two archived completions, one of which is deleted and not tidied away, and two that are to move."""
    made = await old(ledger, "my secret", "one", "two")
    await archive.run(ledger)
    ledger.clock = lambda: made[0].created
    made += await old(ledger, "q", "three", "four")
    await votes.forget_completion(ledger, made[0].id)
    return made[1:]


async def test_whoever_dies_at_whatever_step_the_next_run_finishes_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "AT_ONCE", 1)
    clock, steps = ledger.clock, 0
    while True:
        await ledger.redis.flushdb()
        for name in partitions.at(ledger).names():
            partitions.at(ledger).delete(name)
        ledger.clock = clock
        kept = await prepared(ledger)
        life = Life(steps)
        with monkeypatch.context() as patched:
            mortal_files(life, patched)
            try:
                await archive.run(mortal(ledger, life))
            except Died:
                steps += 1
            else:
                break
        assert await completions.get_many(ledger, [one.id for one in kept]) == {one.id: one for one in kept}
        assert await clean(ledger), f"right after dying at step {steps}"

        await ledger.redis.delete(ledger.keys.archive_lease)  # its time is over
        await archive.run(ledger)

        assert archived(ledger) == sorted(one.id for one in kept), f"after dying at step {steps}"
        assert [await is_stub(ledger, one.id) for one in kept] == [True] * 3
        assert "my secret\n" not in texts(ledger)
        assert await ledger.redis.hgetall(ledger.keys.archive_dirty) == {}
        assert await clean(ledger)
    assert steps > 40


async def test_two_archivers_at_once_move_each_completion_once(ledger: Ledger) -> None:
    ledger.settings = ledger.settings.model_copy(update={"archive_batch": 3})
    made = await old(ledger, "q", *(f"answer {i}" for i in range(20)))

    done = await asyncio.gather(*(archive.run(ledger) for _ in range(3)))

    assert sum(each.completions for each in done) == 20
    assert archived(ledger) == sorted(one.id for one in made)
    assert await clean(ledger)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Something happens once, right after the first partition is written and before its rows count."""
    write, loop = Partitions.write, asyncio.get_running_loop()
    todo = [act]

    def writing(self: Partitions, name: str, rows: Any) -> None:
        write(self, name, rows)
        if todo:
            asyncio.run_coroutine_threadsafe(todo.pop()(), loop).result()

    monkeypatch.setattr(Partitions, "write", writing)


async def test_who_hung_for_longer_than_the_lease_moves_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await old(ledger, "q", "one", "two")

    async def another_comes() -> None:
        await ledger.redis.delete(ledger.keys.archive_lease)
        assert (await archive.run(ledger)).completions == 2

    meanwhile(monkeypatch, another_comes)

    with pytest.raises(ArchiveUnavailable, match="another attempt began"):
        await archive.run(ledger)

    assert archived(ledger) == sorted(one.id for one in made)
    assert await clean(ledger)


async def test_who_loses_the_lease_half_way_leaves_what_is_moved_where_it_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "AT_ONCE", 1)
    made = await old(ledger, "q", "one", "two", "three")
    other = Ledger(ledger.redis, ledger.keys, ledger.settings, ledger.commits, ledger.redaction, ledger.clock)

    class Slow(Ledger):
        async def run(self, script: str, keys: Any, args: Any) -> Any:
            found = await super().run(script, keys, args)
            if script is archive.MOVE and found == 1:
                await self.redis.delete(self.keys.archive_lease)
                assert (await archive.run(other)).completions == 2
            return found

    with pytest.raises(ArchiveUnavailable, match="another attempt began"):
        await archive.run(
            Slow(ledger.redis, ledger.keys, ledger.settings, ledger.commits, ledger.redaction, ledger.clock)
        )

    assert archived(ledger) == sorted(one.id for one in made)
    assert await completions.get_many(ledger, [one.id for one in made]) == {one.id: one for one in made}
    assert await clean(ledger)


async def test_an_erasure_does_not_wait_for_all_that_is_to_move(ledger: Ledger) -> None:
    ledger.settings = ledger.settings.model_copy(update={"archive_batch": 1})
    made = await old(ledger, "q", *(f"answer {i}" for i in range(30)))
    moved = asyncio.Event()
    running = asyncio.create_task(archive.run(ledger, lambda _: moved.set()))
    await moved.wait()

    (first,) = archived(ledger)
    await erasure.of_completion(ledger, first)

    assert not running.done()
    assert first not in archived(ledger)
    assert (await running).completions == 30
    assert archived(ledger) == sorted({one.id for one in made} - {first})
    assert await clean(ledger)


async def test_what_changes_or_goes_while_it_moves_stays_as_it_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, deleted, withdrawn, moves = await old(ledger, "q", "one", "two", "three", "four")

    async def people_act() -> None:
        await completions.update_metadata(ledger, changed.id, {"k": "v"})
        await votes.forget_completion(ledger, deleted.id)
        await votes.withdraw(ledger, (await votes.page(ledger, withdrawn.id))[0][0].id)

    meanwhile(monkeypatch, people_act)

    assert (await archive.run(ledger)).completions == 1

    assert archived(ledger) == [moves.id]
    assert (await completions.get(ledger, changed.id)).metadata == {"k": "v"}
    assert await ledger.redis.ttl(ledger.keys.completion(withdrawn.id)) > 0
    assert await completions.existing(ledger, [deleted.id]) == set()
    assert await clean(ledger)


async def test_what_is_erased_while_it_moves_is_gone_when_the_erasure_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secret, _) = await old(ledger, "my secret", "one", "two", user="zoe")
    erasing: list[asyncio.Task[Any]] = []
    has_begun = asyncio.Event()

    async def somebody_erases() -> None:
        erasing.append(asyncio.create_task(erasure.of_user(ledger, "zoe")))
        async with asyncio.timeout(10):
            while await completions.existing(ledger, [secret.id]):
                await asyncio.wait(erasing, timeout=0.01)
        has_begun.set()

    meanwhile(monkeypatch, somebody_erases)
    running = asyncio.create_task(archive.run(ledger))
    await has_begun.wait()
    await erasing[0]

    assert "my secret" not in texts(ledger)
    await running
    assert archived(ledger) == []
    assert await clean(ledger)


async def test_a_full_or_closed_archive_keeps_completions_where_they_are(ledger: Ledger) -> None:
    (one,) = await old(ledger, "q", "one")
    folder = Path(ledger.settings.archive_address)
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in the folder's place")

    with pytest.raises(ArchiveUnavailable, match="could not be"):
        await archive.run(ledger)

    assert not await is_stub(ledger, one.id)
    assert await completions.get(ledger, one.id) == one
    folder.unlink()
    assert (await archive.run(ledger)).completions == 1
    assert await clean(ledger)


async def test_nothing_moves_into_an_archive_that_is_not_the_one_it_was(ledger: Ledger, tmp_path: Path) -> None:
    made = await old(ledger, "q", "one")
    await archive.run(ledger)
    ledger.clock = lambda: made[0].created
    await old(ledger, "q", "two")
    right = ledger.settings
    ledger.settings = right.model_copy(update={"archive": str(tmp_path / "not mounted")})

    with pytest.raises(ArchiveUnavailable, match="is it mounted"):
        await archive.run(ledger)

    ledger.settings = right
    assert (await archive.run(ledger)).completions == 1
    assert await clean(ledger)


async def test_where_memory_is_full_the_archive_makes_room(ledger: Ledger) -> None:
    made = await old(ledger, "q", "one", "two")
    await expiry.sweep(ledger)  # as the schedule does, which also notes that nothing is to be upgraded
    limit = (await ledger.redis.config_get("maxmemory"))["maxmemory"] or "0"
    await ledger.redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(LedgerUnavailable, match="OutOfMemory"):
            await answered(ledger, "q", "three")

        moved = await archive.run(ledger)
        await erasure.of_completion(ledger, made[0].id)
    finally:
        await ledger.redis.config_set("maxmemory", limit)

    assert moved.completions == 2
    assert archived(ledger) == [made[1].id]
    assert await clean(ledger)


async def test_the_check_names_what_is_wrong_with_an_archive(ledger: Ledger) -> None:
    one, two = await old(ledger, "q", "one", "two")
    await archive.run(ledger)
    shelf = partitions.at(ledger)
    (name,) = shelf.names()
    shelf.write("stray", [("x", one.model_dump_json())])
    await ledger.redis.hset(ledger.keys.completion(one.id), "body", one.model_dump_json())
    await ledger.redis.hset(ledger.keys.completion(two.id), "archived", f"{name} 7")

    found = [sentence async for sentence in violations(ledger)]

    assert f"completion {one.id} is in Redis and in the archive at once" in found
    assert f"completion {two.id} is not in row 7 of partition {name}" in found
    assert "file stray.parquet of the archive is named by nothing; `heed archive` removes it" in found
    shelf.delete(name)
    found = [sentence async for sentence in violations(ledger)]
    assert f"partition {name} is missing from the archive, with 2 completions" in found
