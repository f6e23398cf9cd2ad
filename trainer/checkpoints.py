"""Checkpoints: which of those in a work folder may be trusted after a crash.

A checkpoint counts only with its seal, a list of its files' digests that is written last. Whatever has none,
or does not match it, was torn by a kill or a full disk and is removed before training goes on.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.progress import RecipeRefused

SEAL = "seal.json"
# A killed worker's child saves and leaves at its next step; the one that takes over waits that long.
LOCK_TIMEOUT_S = 60.0


def seal(checkpoint: Path) -> None:
    digests = {path.name: _digest(path) for path in sorted(checkpoint.iterdir()) if path.name != SEAL}
    unfinished = checkpoint / f"{SEAL}.part"
    with unfinished.open("w") as out:
        json.dump(digests, out)
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(checkpoint / SEAL)


def is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / SEAL).read_text())
        return bool(digests) and all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def is_first() -> bool:
    """Of the processes that one launch started on one machine; on its own a process is the first."""
    return os.environ.get("RANK", "0") == "0"


def newest_whole(work: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the torn ones, which are gone when this returns."""
    steps = {int(path.name.rpartition("-")[2]): path for path in work.glob("checkpoint-*") if path.is_dir()}
    whole = {step: path for step, path in steps.items() if is_whole(path)}
    torn = [path for step, path in sorted(steps.items()) if step not in whole]
    if is_first():
        for path in torn:
            shutil.rmtree(path)
    return (whole[max(whole)] if whole else None), torn


@contextmanager
def held_for(work: Path, run: dict[str, object]) -> Iterator[None]:
    """Holds the work folder for one run. Refuses a folder with another run's checkpoints, and a second process.

    Of several processes of one launch the first holds it for all.
    """
    if not is_first():
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        _wait_for(lock.fileno(), work)
        record = work / "run.json"
        if record.is_file() and (before := json.loads(record.read_text())) != run:
            changed = sorted(key for key in before.keys() | run.keys() if before.get(key) != run.get(key))
            raise RecipeRefused(
                f"--work must be an empty folder or the folder of this very run. {work} holds a run with other "
                f"{', '.join(changed)}. Name a new folder, or repeat the run as it was begun."
            )
        unfinished = work / "run.json.part"
        unfinished.write_text(json.dumps(run, indent=2, sort_keys=True) + "\n")
        unfinished.rename(record)
        yield


def _wait_for(descriptor: int, work: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RecipeRefused(
                    f"--work must not be in use. Another training still holds {work} after {LOCK_TIMEOUT_S:.0f} s. "
                    "Wait for it or end it."
                ) from None
            time.sleep(0.2)


def _digest(path: Path) -> str:
    with path.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()
