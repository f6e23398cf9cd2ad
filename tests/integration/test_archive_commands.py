"""Who starts the archive: `heed archive`, and Celery's beat by the hour."""

import asyncio
import subprocess
import sys
from pathlib import Path

from feedback import completions
from feedback.connection import Ledger
from tests.archives import archived, clean, is_stub, old
from tests.processes import ROOT, running, wait_for


def heed(ledger: Ledger, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "heed", *words]
    given = {"HEED_LEDGER_URL": ledger.settings.ledger_url, "HEED_VAR": str(ledger.settings.var)}
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"} | given | env, capture_output=True, text=True, timeout=120
    )


async def test_heed_archive_moves_what_is_old_and_says_what_it_moved(ledger: Ledger) -> None:
    made = await old(ledger, "q", "one", "two")

    young = await asyncio.to_thread(heed, ledger, "archive")
    moved = await asyncio.to_thread(heed, ledger, "archive", "--after-days", "0")
    checked = await asyncio.to_thread(heed, ledger, "check")

    folder = ledger.settings.archive_address
    assert (young.returncode, young.stdout) == (0, f"heed: 0 completions moved to 0 new partitions at {folder}.\n")
    assert moved.stdout == f"heed: 2 completions moved to 1 new partitions at {folder}.\n"
    assert checked.stdout == "The ledger is clean.\n"
    assert archived(ledger) == sorted(one.id for one in made)


async def test_heed_archive_says_what_does_not_answer(ledger: Ledger, tmp_path: Path) -> None:
    await old(ledger, "q", "one")

    away = await asyncio.to_thread(heed, ledger, "archive", "--after-days", "0", HEED_ARCHIVE="nowhere://bucket/heed")
    down = await asyncio.to_thread(heed, ledger, "archive", HEED_LEDGER_URL="redis://127.0.0.1:1/0")

    assert (away.returncode, down.returncode) == (2, 2)
    assert "The archive at nowhere://bucket/heed: the archive could not be listed (ValueError)" in away.stderr
    assert "Protocol not known" in away.stderr
    assert "The ledger at redis://127.0.0.1:1/0 does not answer" in down.stderr


async def test_the_schedule_archives(ledger: Ledger, tmp_path: Path) -> None:
    made = await old(ledger, "q", "one", "two")
    env = {
        "HEED_VAR": str(tmp_path),
        "HEED_LEDGER_URL": ledger.settings.ledger_url,
        "HEED_BROKER_URL": ledger.settings.ledger_url.removesuffix("0") + "1",
        "HEED_ARCHIVE_AFTER_DAYS": "0",
        "HEED_ARCHIVE_EVERY_S": "0.5",
    }
    celery = [sys.executable, "-m", "celery", "-A", "trainer.worker"]
    worker = [*celery, "worker", "--pool", "solo", "-Q", "train,schedule", "--loglevel", "INFO"]

    with running(worker, tmp_path / "worker.log", env), running([*celery, "beat"], tmp_path / "beat.log", env):
        await asyncio.to_thread(
            wait_for, lambda: "2 completions moved" in (tmp_path / "worker.log").read_text(), "moved"
        )

    assert [await is_stub(ledger, one.id) for one in made] == [True, True]
    assert await completions.get(ledger, made[0].id) == made[0]
    assert await clean(ledger)
