"""Back-ups: one moment of a ledger that is written to, and what becomes of it in an empty place."""

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from feedback import adapters, archive, backup, completions, erasure, files, restore, votes
from feedback.backup import MANIFEST, UNFINISHED, Shelf
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from feedback.snapshot import BackupFailed
from tests.answers import answered
from tests.archives import clean, old
from tests.gateways import RunningGateway, registered
from tests.processes import ROOT, free_port, ledger_server

WRITERS = 8


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Ledger]:
    """Another server, and another var."""
    port = free_port()
    with ledger_server(tmp_path / "elsewhere-ledger", port):
        url = f"redis://127.0.0.1:{port}/0"
        ledger = open_ledger(LedgerSettings(ledger_url=url, var=tmp_path / "elsewhere"))
        yield ledger
        await ledger.close()


@asynccontextmanager
async def under(write: Callable[[int], Awaitable[None]], writers: int = WRITERS) -> AsyncIterator[None]:
    """Writers that do not stop until the block ends; what they raise is raised."""
    is_over = asyncio.Event()

    async def go_on(number: int) -> None:
        while not is_over.is_set():
            await write(number)

    at_work = [asyncio.create_task(go_on(number)) for number in range(writers)]
    try:
        yield
    finally:
        is_over.set()
        await asyncio.gather(*at_work)


async def opinions(ledger: Ledger) -> set[str]:
    return {str(opinion_id) for opinion_id in await ledger.redis.zrange(ledger.keys.votes, 0, -1)}


def heed(ledger: Ledger, *words: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    given = {"HEED_LEDGER_URL": ledger.settings.ledger_url, "HEED_VAR": str(ledger.settings.var)}
    return subprocess.run(
        [sys.executable, "-m", "heed", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | given,
        preexec_fn=(lambda: resource.setrlimit(limit, (8192, 8192))) if limit is not None else None,
        capture_output=True,
        text=True,
        timeout=120,
    )


async def test_a_back_up_under_load_is_one_moment_of_the_ledger(ledger: Ledger, empty: Ledger, tmp_path: Path) -> None:
    """Each writer votes in its own order, so a moment holds a beginning of what each did and no more than was begun."""
    begun: list[list[str]] = [[] for _ in range(WRITERS)]
    done: list[list[str]] = [[] for _ in range(WRITERS)]

    async def vote(number: int) -> None:
        one = await answered(ledger, f"question {number}", f"answer {len(done[number])}")
        begun[number].append(one.id)
        await votes.cast(ledger, completion_id=one.id, rating="up", voter=f"voter-{number}")
        done[number].append(one.id)

    first, *_ = await old(ledger, "q", *(f"answer {number}" for number in range(300)))
    await archive.run(ledger)

    async with under(vote):
        while not all(done):
            await votes.cast(ledger, completion_id=first.id, rating="up", voter="ann")
        before = [len(each) for each in done]
        made = await backup.make(ledger, str(tmp_path / "backup"))
        after = [len(each) for each in begun]
    await restore.restore(empty, str(tmp_path / "backup"))

    assert await restore.damage(empty, made) == []
    for number in range(WRITERS):
        kept = [one for one in begun[number] if await empty.redis.exists(empty.keys.completion_votes(one))]
        assert kept == begun[number][: len(kept)]
        assert before[number] <= len(kept) <= after[number]
    assert sum(after) > sum(before) + WRITERS, "nobody voted meanwhile"
    assert await clean(ledger)


async def test_whatever_is_moved_tidied_and_erased_meanwhile_the_archive_of_a_back_up_is_whole(
    ledger: Ledger, empty: Ledger, tmp_path: Path
) -> None:
    ledger.settings = ledger.settings.model_copy(update={"archive_batch": 20})
    made = await old(ledger, "q", *(f"answer {number}" for number in range(400)), user="zoe")
    left = list(made[200:])

    async def erase(number: int) -> None:
        if number == 0:
            await archive.run(ledger)
        elif left:
            await erasure.of_completion(ledger, left.pop().id)

    async with under(erase, 2):
        manifest = await backup.make(ledger, str(tmp_path / "backup"))
    await restore.restore(empty, str(tmp_path / "backup"))

    assert await restore.damage(empty, manifest) == []
    assert manifest.missing == []
    for one in made[:200]:
        assert await completions.get(empty, one.id) == one


async def test_a_gateway_under_load_is_backed_up_by_the_command_and_restored_into_an_empty_var(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path
) -> None:
    live = await gateway.register(1, b"weights")
    assert (await gateway.promote(live)).status_code == 200
    failed: list[str] = []
    acknowledged: list[str] = []

    async def chat_and_vote(number: int) -> None:
        answer = await gateway.chat(f"question {number}")
        body = {"completion_id": answer.json()["id"], "rating": "up", "voter": f"voter-{number}"}
        voted = await gateway.http.post("/v1/votes", json=body)
        if (answer.status_code, voted.status_code) == (200, 200):
            acknowledged.append(voted.json()["id"])
        else:
            failed.append(f"{answer.text} {voted.text}")

    await chat_and_vote(0)
    place, var = tmp_path / "backup", tmp_path / "elsewhere"

    async with under(chat_and_vote, 4):
        before = set(acknowledged)
        made = await asyncio.to_thread(heed, ledger, "backup", str(place))
    env = {"PATH": os.environ["PATH"], "HEED_VAR": str(var)}
    command = [sys.executable, "-m", "heed", "restore", str(place)]
    restored = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )

    assert (made.returncode, failed) == (0, [])
    assert "1 adapters" in made.stdout
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert restored.stdout.endswith("The ledger is clean.\n")
    assert adapters.digest_of(var / "adapters" / live) == (await adapters.get(ledger, live)).digest
    assert oct((var / "adapters" / live).stat().st_mode)[-3:] == "555"
    port = free_port()
    with ledger_server(var / "ledger", port):
        found = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", var=var))
        assert before <= await opinions(found) <= set(acknowledged)
        assert (await adapters.serving(found)).live == live
        await found.close()


@pytest.fixture
async def kept(ledger: Ledger, tmp_path: Path) -> Path:
    """A back-up with something of everything."""
    await old(ledger, "q", "one", "two")
    await archive.run(ledger)
    await registered(ledger, ledger.settings.var, 1, b"weights")
    (ledger.settings.var / "rewards" / "reward-v1").mkdir(parents=True)
    (ledger.settings.var / "rewards" / "reward-v1" / "adapter_model.safetensors").write_bytes(b"weights")
    line = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    with (tmp_path / "rows.jsonl").open("w+b") as upload:
        upload.write(json.dumps(line).encode() + b"\n")
        upload.seek(0)
        await files.store(ledger, upload, "rows.jsonl")
    await backup.make(ledger, str(tmp_path / "backup"))
    return tmp_path / "backup"


async def test_all_that_a_back_up_holds_is_there_after_a_restore(ledger: Ledger, empty: Ledger, kept: Path) -> None:
    manifest = await restore.restore(empty, str(kept))

    areas = sorted({file.path.split("/")[0] for file in manifest.files})
    assert areas == ["adapters", "archive", "files", "ledger.bin", "rewards"]
    assert await restore.damage(empty, manifest) == []
    here, there = ledger.settings.var, empty.settings.var
    for area in ("adapters", "archive", "files", "rewards"):
        names = Shelf(str(here / area)).names()
        assert Shelf(str(there / area)).names() == names
        assert all((there / area / name).read_bytes() == (here / area / name).read_bytes() for name in names)
    assert not await empty.redis.exists(empty.keys.restore)


async def test_a_key_that_lasts_for_a_time_lasts_as_long_as_it_would_have(
    ledger: Ledger, empty: Ledger, tmp_path: Path
) -> None:
    one = await answered(ledger, "q", "unvoted")
    await backup.make(ledger, str(tmp_path / "backup"))

    await restore.restore(empty, str(tmp_path / "backup"))

    key = ledger.keys.completion(one.id)
    assert await empty.redis.pexpiretime(key) == await ledger.redis.pexpiretime(key) > 0


async def test_leases_and_heartbeats_are_not_kept(ledger: Ledger, empty: Ledger, tmp_path: Path) -> None:
    await ledger.redis.set(ledger.keys.job_lease("ftjob-1"), "worker")
    await ledger.redis.set(ledger.keys.archive_lease, "name")
    await ledger.redis.zadd(ledger.keys.gateways, {"gateway": 1})
    await ledger.redis.incr(ledger.keys.gateways_tokens)
    await backup.make(ledger, str(tmp_path / "backup"))

    await restore.restore(empty, str(tmp_path / "backup"))

    assert await empty.redis.keys() == [ledger.keys.gateways_tokens]


async def test_a_place_that_is_not_empty_is_refused_until_replacing_is_asked_for(
    ledger: Ledger, empty: Ledger, kept: Path
) -> None:
    other = await old(empty, "another question", "another answer")
    await archive.run(empty)

    with pytest.raises(BackupFailed, match="the ledger is not empty"):
        await restore.restore(empty, str(kept))
    assert await completions.get(empty, other[0].id) == other[0]
    manifest = await restore.restore(empty, str(kept), replace=True)

    assert await restore.damage(empty, manifest) == []
    assert await opinions(empty) == await opinions(ledger)


async def test_a_replacing_that_was_broken_off_leaves_nothing_of_before(empty: Ledger, kept: Path) -> None:
    await old(empty, "another question", "another answer")
    await empty.redis.set(empty.keys.restore, restore.DELETING)

    with pytest.raises(BackupFailed, match="holds part of what another restore left"):
        await restore.restore(empty, str(kept))
    manifest = await restore.restore(empty, str(kept), replace=True)

    assert await empty.redis.zcard(empty.keys.votes) == manifest.counts["heed"]["votes"]
    assert await restore.damage(empty, manifest) == []


async def test_an_adapter_of_the_same_name_and_other_bytes_is_not_written_over(empty: Ledger, kept: Path) -> None:
    (folder,) = (kept / "adapters").iterdir()
    other = empty.settings.var / "adapters" / folder.name / "adapter_model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody else's")

    with pytest.raises(BackupFailed, match="is there already and is not what the back-up has"):
        await restore.restore(empty, str(kept))

    assert other.read_bytes() == b"somebody else's"
    assert await empty.redis.dbsize() == 0


async def test_a_restore_that_was_broken_off_is_seen_and_completed_by_another(
    empty: Ledger, kept: Path, tmp_path: Path
) -> None:
    """Broken off at each step there is: after each file, and in the middle of the ledger."""
    steps = 0

    class BrokenOff(Exception):
        pass

    async def until(last: int) -> bool:
        told = 0

        def watch(_: int) -> None:
            nonlocal told
            told += 1
            if told == last:
                raise BrokenOff

        try:
            await restore.restore(empty, str(kept), watch=watch)
        except BrokenOff:
            return False
        return True

    seen: list[str] = []
    while not await until(steps + 1):
        steps += 1
        if await empty.redis.dbsize():
            seen += [sentence async for sentence in violations(empty)]

    assert steps > len(backup.read(Shelf(str(kept))).files)
    assert any("is not complete; begin it again with the same back-up" in sentence for sentence in seen)
    assert await clean(empty)


async def test_half_a_file_of_a_restore_that_was_broken_off_is_written_again(empty: Ledger, kept: Path) -> None:
    some = [file for file in backup.read(Shelf(str(kept))).files if file.path.startswith("archive/")]
    half = empty.settings.var / some[0].path
    half.parent.mkdir(parents=True)
    half.write_bytes((kept / some[0].path).read_bytes()[:100])
    with pytest.raises(BackupFailed, match="is there already and is not what the back-up has"):
        await restore.restore(empty, str(kept))
    await empty.redis.set(empty.keys.restore, backup.read(Shelf(str(kept))).id)

    await restore.restore(empty, str(kept))

    assert await clean(empty)


def torn(kept: Path) -> Iterator[tuple[str, str]]:
    whole = (kept / "ledger.bin").read_bytes()
    manifest = json.loads((kept / MANIFEST).read_text())
    for name, text, told in (
        ("ledger.bin", whole[:-1], "is torn: ledger.bin has"),
        ("ledger.bin", bytes([whole[0] ^ 1]) + whole[1:], "is torn: ledger.bin has"),
        (MANIFEST, json.dumps(manifest | {"format": 2}).encode(), "format: Input should be 1"),
        (MANIFEST, b"{}"[:1], "not of a back-up that this version"),
    ):
        before = (kept / name).read_bytes()
        (kept / name).write_bytes(text)
        yield name, told
        (kept / name).write_bytes(before)


async def test_a_back_up_that_is_torn_or_of_another_format_is_refused_before_anything_is_written(
    empty: Ledger, kept: Path
) -> None:
    for _, told in torn(kept):
        with pytest.raises(BackupFailed, match=told):
            await restore.restore(empty, str(kept))
    (kept / MANIFEST).unlink()
    with pytest.raises(BackupFailed, match=r"no complete back-up at .*: it has no manifest.json"):
        await restore.restore(empty, str(kept))

    assert await empty.redis.dbsize() == 0
    assert not empty.settings.var.exists()


async def test_a_manifest_leads_nowhere_outside(empty: Ledger, kept: Path) -> None:
    text = (kept / MANIFEST).read_text()
    for path in ("adapters/../../secret", "/etc/secret", "elsewhere/secret", "archive//secret"):
        (kept / MANIFEST).write_text(text.replace("ledger.bin", path))
        with pytest.raises(BackupFailed, match="not of a back-up that this version"):
            await restore.restore(empty, str(kept))


async def test_a_back_up_never_goes_where_something_is_and_takes_up_one_that_was_broken_off(
    ledger: Ledger, kept: Path
) -> None:
    with pytest.raises(BackupFailed, match="is not empty; name a new place"):
        await backup.make(ledger, str(kept))
    (kept / MANIFEST).unlink()
    (kept / UNFINISHED).touch()
    (kept / "ledger.bin").write_bytes(b"half")

    made = await backup.make(ledger, str(kept))

    assert Shelf(str(kept)).names() == {MANIFEST, *(file.path for file in made.files)}
    backup.verify(Shelf(str(kept)), made)


async def test_any_address_of_fsspec_holds_back_ups(ledger: Ledger, empty: Ledger, tmp_path: Path) -> None:
    one, _ = await old(ledger, "q", "one", "two")
    ledger.settings = ledger.settings.model_copy(update={"archive": f"memory:/{tmp_path}/archive"})
    await archive.run(ledger)

    await backup.make(ledger, f"memory:/{tmp_path}/backup")
    await restore.restore(empty, f"memory:/{tmp_path}/backup")

    assert await completions.get(empty, one.id) == one
    assert await clean(empty)


async def test_a_full_disk_and_a_place_that_cannot_be_written_are_told(ledger: Ledger, tmp_path: Path) -> None:
    await old(ledger, "q", *(f"answer {number}" for number in range(50)))
    (tmp_path / "file").touch()

    # No file may grow beyond 8 kB: what write() then says differs from a full disk's only in its number.
    full = await asyncio.to_thread(heed, ledger, "backup", str(tmp_path / "full"), limit=resource.RLIMIT_FSIZE)
    told = await asyncio.to_thread(heed, ledger, "backup", str(tmp_path / "file" / "backup"))

    assert (full.returncode, told.returncode) == (1, 1)
    assert "No back-up was made: the ledger's copy cannot be written: File too large" in full.stderr
    assert f"No back-up was made: {tmp_path}/file/backup cannot be read or written (Not a directory)" in told.stderr
    with pytest.raises(BackupFailed, match="no complete back-up"):
        backup.read(Shelf(str(tmp_path / "full")))


async def test_what_is_missing_when_it_is_made_is_named_and_does_not_hinder(ledger: Ledger, tmp_path: Path) -> None:
    one = await registered(ledger, ledger.settings.var, 1, b"weights")
    (ledger.settings.var / "adapters" / one).chmod(0o755)
    shutil.rmtree(ledger.settings.var / "adapters" / one)

    made = await backup.make(ledger, str(tmp_path / "backup"))

    assert made.missing == [f"adapters/{one}"]


async def test_a_ledger_of_the_version_before_is_restored_and_brought_to_this_one(
    ledger: Ledger, empty: Ledger, tmp_path: Path
) -> None:
    made = await old(ledger, "q", "one", "two") + [await answered(ledger, "q", "three")]
    for one in made:  # completions were strings, unlisted
        await ledger.redis.set(ledger.keys.completion(one.id), one.model_dump_json(exclude_none=True), keepttl=True)
    await ledger.redis.delete(ledger.keys.completions_live, ledger.keys.completions_form)
    await backup.make(ledger, str(tmp_path / "backup"))

    manifest = await restore.restore(empty, str(tmp_path / "backup"))

    assert await completions.get(empty, made[0].id) == made[0]
    assert await restore.damage(empty, manifest) == []
    assert {await empty.redis.type(empty.keys.completion(one.id)) for one in made} == {"hash"}
    assert [await completions.get(empty, one.id) for one in made] == made


async def test_what_was_erased_after_a_back_up_is_back_and_erased_again(
    ledger: Ledger, empty: Ledger, tmp_path: Path
) -> None:
    await old(ledger, "q", "one", user="zoe")
    await backup.make(ledger, str(tmp_path / "backup"))
    await erasure.of_voter(ledger, "ann")

    await restore.restore(empty, str(tmp_path / "backup"))
    again = await erasure.of_voter(empty, "ann")

    assert again.votes == 1
    assert await clean(empty)
