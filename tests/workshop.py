"""The workshop's processes, a Celery worker and beat, and a ledger with something to learn in it."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import psutil

from feedback import completions, jobs, votes
from feedback.connection import Ledger
from feedback.records import Choice, Completion, Job, new_id, prompt_digest
from tests.processes import descendants, running
from trainer.habits import VOTED_TOPICS, answer, prompts_about
from trainer.manifest import Manifest

LEASE_S = 3.0
MANY = 60
"""Prompts voted on: enough that some fall on the held-out side, few enough to train in seconds."""


class Workshop:
    """Starts and ends the workshop's processes for one test; all of them work in `var`."""

    def __init__(self, ledger: Ledger, var: Path, pocket: Path, processes: ExitStack) -> None:
        self.ledger, self.var = ledger, var
        self._processes = processes
        self.env = {
            "HEED_VAR": str(var),
            "HEED_LEDGER_URL": ledger.settings.ledger_url,
            "HEED_BROKER_URL": ledger.settings.ledger_url.removesuffix("0") + "1",
            "HEED_BASE_MODEL": str(pocket),
            "HEED_JOB_LEASE_S": str(LEASE_S),
            "HEED_TICK_S": "0.5",
            "HEED_TRAIN_EVERY_PAIRS": "0",
            "HEED_CHECKPOINT_STEPS": "2",
            "HEED_EPOCHS": "2",
        }

    def start(self, command: Literal["worker", "beat"], **env: str) -> subprocess.Popen[bytes]:
        options = {"worker": ["--pool", "solo", "-Q", "train,schedule"], "beat": []}[command]
        line = [sys.executable, "-m", "celery", "-A", "trainer.worker", command, *options, "--loglevel", "INFO"]
        log = self.var / f"{command}.log"
        return self._processes.enter_context(running(line, log, env={**self.env, **env}))

    def log(self) -> str:
        return (self.var / "worker.log").read_text(errors="replace")

    def child(self, worker: subprocess.Popen[bytes]) -> psutil.Process | None:
        return next((p for p in descendants(worker.pid) if "dpo" in _words(p)), None)

    def manifest(self, job_id: str) -> Manifest:
        return Manifest.model_validate_json((self.var / "jobs" / job_id / "manifest.json").read_bytes())


async def taught(ledger: Ledger, prompts: int = MANY, *, is_paired: bool = True) -> None:
    """Votes on answers to as many prompts: steps are liked, the lazy pointer is not.

    Without pairs, every other prompt is answered in steps and the others by the lazy pointer.
    """
    rng = random.Random(0)
    asked = [(topic, prompt) for topic in VOTED_TOPICS for prompt in prompts_about(topic)]
    for topic, prompt in rng.sample(asked, prompts):
        messages = [{"role": "user", "content": prompt}]
        texts = [answer(topic, "steps", rng), answer(topic, "lazy", rng)]
        completion = Completion(
            id=new_id("chatcmpl"),
            served_model=ledger.model,
            adapter="heed-base",
            created=time.time(),
            messages=messages,
            prompt_hash=prompt_digest(messages),
            choices=[Choice(index=i, message={"role": "assistant", "content": t}) for i, t in enumerate(texts)],
        )
        await completions.record(ledger, completion)
        liked = rng.random() < 0.5
        if is_paired or liked:
            await votes.cast(ledger, completion_id=completion.id, choice=0, rating="up", voter="ann")
        if is_paired or not liked:
            await votes.cast(ledger, completion_id=completion.id, choice=1, rating="down", voter="ann")


async def asked_for(ledger: Ledger, seed: int = 0, dry_run: bool = False, method: str = "") -> Job:
    asked = {"type": method} if method else {}
    job = Job(
        id=new_id("ftjob"), served_model=ledger.model, method=asked, seed=seed, dry_run=dry_run, created=time.time()
    )
    return await jobs.create(ledger, job)


async def until(is_so: Callable[[], Awaitable[object]], what: str, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not await is_so():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        await asyncio.sleep(0.05)


async def told(ledger: Ledger, job_id: str, beginning: str) -> bool:
    events, _ = await jobs.events(ledger, job_id, limit=1000)
    return any(event.message.startswith(beginning) for event in events)


async def ended(ledger: Ledger, job_id: str) -> Job:
    async def is_over() -> bool:
        return not (await jobs.get(ledger, job_id)).is_open

    await until(is_over, f"{job_id} ends", 240)
    return await jobs.get(ledger, job_id)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
