"""A job under `kill -9`: whatever was killed and when, its adapter has the bytes of a job that nobody disturbed.

`python -m tests.faults.training --kills 20 --seed 0` starts a ledger, a Celery worker and beat and lets one job run
undisturbed. Then it repeats the job and kills either the recipe alone or the worker with all its children, at moments
drawn from the seed, evenly over the time that the undisturbed job took. A moment is found again by what the job said
last before it (a stage, or a checkpoint's step) and the time since then, as what was lost takes its time again. A job
whose next moment lies behind it is left to end, and another follows, until all kills were made.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from feedback import adapters, jobs
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import Job
from feedback.settings import LedgerSettings
from tests.processes import ROOT, descendants, free_port, ledger_server
from tests.workshop import Workshop, asked_for, ended, taught

VICTIMS = ("recipe", "worker and recipe")


Landmark = tuple[str, int]
"""A stage that was told of, or a checkpoint's step."""


@dataclass(frozen=True)
class Course:
    """What the undisturbed job told, and how many seconds after its beginning."""

    landmarks: list[Landmark]
    at_s: list[float]
    ended_s: float

    def moment(self, share: float) -> tuple[int, float]:
        """Of the whole time: the last landmark before it, and the seconds since then."""
        moment_s = share * self.ended_s
        last = bisect_right(self.at_s, moment_s) - 1
        return last, moment_s - self.at_s[last]


@dataclass
class Outcome:
    seed: int
    kills: int = 0
    by_victim: Counter[str] = field(default_factory=Counter)
    in_stage: Counter[str] = field(default_factory=Counter)
    after_a_checkpoint: int = 0
    """Kills of a training that had one."""
    resumed: int = 0
    """Trainings that went on from a checkpoint."""
    jobs: int = 0
    adapters: int = 0
    other_bytes: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.other_bytes or self.violations) and self.adapters == self.jobs


async def disturb(workshop: Workshop, kills: int, seed: int, epochs: int = 20) -> Outcome:
    """`workshop` has votes; its worker and beat are started here."""
    rng = random.Random(seed)
    outcome = Outcome(seed)
    # Twenty passes take longer than a recipe takes to start, so that most kills come while there is something to lose.
    patient = {"HEED_PROMOTE": "manual", "HEED_MAX_ATTEMPTS": str(kills + 3), "HEED_EPOCHS": str(epochs)}
    ledger, worker = workshop.ledger, workshop.start("worker", **patient)
    workshop.start("beat", **patient)
    alone = await asked_for(ledger)
    undisturbed = await digest_of(ledger, alone)
    course = await course_of(ledger, alone)
    while outcome.kills < kills:
        job = await asked_for(ledger)
        passed = -1
        while outcome.kills < kills:
            next_one, since_s = course.moment(rng.random())
            if next_one <= passed or not await has_reached(ledger, job, course.landmarks[next_one]):
                break
            passed = next_one
            if not await is_open_after(ledger, job, since_s):
                break
            victim = rng.choice(VICTIMS)
            if (stage := kill(worker, victim)) is None:
                continue  # between two children there is no recipe to kill
            outcome.kills += 1
            outcome.by_victim[victim] += 1
            outcome.in_stage[stage] += 1
            told = await landmarks(ledger, job)
            outcome.after_a_checkpoint += stage == "dpo" and any(name == "checkpoint" for name, _ in told)
            if worker.poll() is not None:
                worker = workshop.start("worker", **patient)
        outcome.jobs += 1
        outcome.other_bytes += await digest_of(ledger, job) != undisturbed
        events, _ = await jobs.events(ledger, job.id, limit=10_000)
        outcome.resumed += sum(event.message.startswith("Training goes on") for event in events)
    made, _ = await adapters.page(ledger, limit=1000)
    outcome.adapters = len(made) - 1
    outcome.violations = [sentence async for sentence in violations(ledger)]
    return outcome


async def course_of(ledger: Ledger, job: Job) -> Course:
    found = await landmarks(ledger, job)
    done = await jobs.get(ledger, job.id)
    assert done.started is not None
    assert done.finished is not None
    at_s = [max(0.0, at - done.started) for at in found.values()]
    return Course(list(found), [0.0, *at_s[1:]], done.finished - done.started)


async def landmarks(ledger: Ledger, job: Job) -> dict[Landmark, float]:
    """When each was told of first, in that order; what was told before the first stage is none."""
    events, _ = await jobs.events(ledger, job.id, limit=10_000)
    found: dict[Landmark, float] = {}
    for event in reversed(events):
        data = event.data or {}
        if event.type == "checkpoint":
            found.setdefault(("checkpoint", int(data["step"])), event.created)
        elif event.type == "message" and "stage" in data:
            found.setdefault((f"{data['stage']} {'done' if 'seconds' in data else 'begun'}", 0), event.created)
    return found


async def has_reached(ledger: Ledger, job: Job, landmark: Landmark) -> bool:
    """False if the job ends before it."""
    while landmark not in await landmarks(ledger, job):
        if not (await jobs.get(ledger, job.id)).is_open:
            return False
        await asyncio.sleep(0.02)
    return True


def kill(worker: "subprocess.Popen[bytes]", victim: str) -> str | None:
    """SIGKILL, children first, lest they save when they miss their parent. Returns what the recipe was doing."""
    family = descendants(worker.pid)
    recipes = [process for process in family if "trainer" in words(process)]
    if victim == "recipe" and not recipes:
        return None
    stage = next((word for process in recipes for word in words(process) if word in ("dpo", "evaluate")), "between")
    if victim != "recipe":
        worker.kill()
    for process in recipes if victim == "recipe" else family:
        process.kill()
    if victim != "recipe":
        worker.wait()
    return stage


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def is_open_after(ledger: Ledger, job: Job, pause_s: float) -> bool:
    end = time.monotonic() + pause_s
    while time.monotonic() < end:
        if not (await jobs.get(ledger, job.id)).is_open:
            return False
        await asyncio.sleep(min(0.05, max(end - time.monotonic(), 0)))
    return (await jobs.get(ledger, job.id)).is_open


async def digest_of(ledger: Ledger, job: Job) -> str:
    """Of the adapter that the job ends with."""
    done = await ended(ledger, job.id)
    assert done.adapter is not None, done.error
    return (await adapters.get(ledger, done.adapter)).digest


async def _main(kills: int, seed: int, base: Path) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="heed-faults-") as folder, ExitStack() as processes:
        port = free_port()
        processes.enter_context(ledger_server(Path(folder) / "ledger", port))
        ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", var=Path(folder)))
        try:
            await taught(ledger)
            return await disturb(Workshop(ledger, Path(folder), base, processes), kills, seed)
        finally:
            await ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--base", type=Path, default=ROOT / "var" / "pocket", help="a pocket model")
    asked = parser.parse_args()
    outcome = asyncio.run(_main(asked.kills, asked.seed, asked.base))
    print(json.dumps(vars(outcome), indent=2))
    sys.exit(0 if outcome.is_clean else 1)


if __name__ == "__main__":
    main()
