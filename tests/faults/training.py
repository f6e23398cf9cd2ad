"""A job under `kill -9`: whatever was killed and when, its adapter has the bytes of a job that nobody disturbed.

`python -m tests.faults.training --kills 20 --seed 0` (or `make faults-training`) starts a ledger, a Celery worker and
beat, lets one job run undisturbed, and then repeats it, killing either the recipe alone or the worker with all its
children at moments drawn from the seed. A job that is done before its next kill is followed by another, until all
kills were made and the last job is done.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
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


@dataclass
class Outcome:
    seed: int
    kills: int = 0
    by_victim: Counter[str] = field(default_factory=Counter)
    in_stage: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    adapters: int = 0
    other_bytes: int = 0
    resumed: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.other_bytes or self.violations) and self.adapters == self.jobs


async def disturb(workshop: Workshop, kills: int, seed: int, epochs: int = 6) -> Outcome:
    """`workshop` has votes; its worker and beat are started here."""
    rng = random.Random(seed)
    outcome = Outcome(seed)
    # Six passes take longer than a recipe takes to start, so that most kills come while there is something to lose.
    patient = {"HEED_PROMOTE": "manual", "HEED_MAX_ATTEMPTS": str(kills + 3), "HEED_EPOCHS": str(epochs)}
    worker = workshop.start("worker", **patient)
    workshop.start("beat", **patient)
    began = time.monotonic()
    undisturbed = await digest_of(workshop.ledger, await asked_for(workshop.ledger))
    span_s = time.monotonic() - began
    while outcome.kills < kills:
        job = await asked_for(workshop.ledger)
        while outcome.kills < kills and await is_open_after(workshop.ledger, job, rng.uniform(0, span_s)):
            victim = rng.choice(VICTIMS)
            if (stage := kill(worker, victim)) is None:
                continue  # between two children there is no recipe to kill
            outcome.kills += 1
            outcome.by_victim[victim] += 1
            outcome.in_stage[stage] += 1
            if worker.poll() is not None:
                worker = workshop.start("worker", **patient)
        outcome.jobs += 1
        outcome.other_bytes += await digest_of(workshop.ledger, job) != undisturbed
        events, _ = await jobs.events(workshop.ledger, job.id, limit=10_000)
        outcome.resumed += sum(event.message.startswith("Training goes on") for event in events)
    made, _ = await adapters.page(workshop.ledger, limit=1000)
    outcome.adapters = len(made) - 1
    outcome.violations = [sentence async for sentence in violations(workshop.ledger)]
    return outcome


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
