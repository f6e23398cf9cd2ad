"""The workshop for real: Redis, a Celery worker and beat as processes, TRL's DPO in a child of the worker."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from feedback import adapters, completions, jobs, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.records import Choice, Completion, Job, new_id, prompt_digest
from tests.processes import ROOT, descendants, running, wait_for
from trainer.habits import VOTED_TOPICS, answer, prompts_about
from trainer.hyperparameters import TINY
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

    def start(self, command: str, **env: str) -> subprocess.Popen[bytes]:
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


@pytest.fixture
async def workshop(ledger: Ledger, tmp_path: Path, pocket: Path) -> AsyncIterator[Workshop]:
    await ledger.redis.flushall()
    with ExitStack() as processes:
        yield Workshop(ledger, tmp_path, pocket, processes)


async def test_the_circle_s_back_half_turns_votes_into_a_wanted_adapter(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker")
    workshop.start("beat")

    job = await asked_for(ledger)
    done = await ended(ledger, job.id)

    assert (done.status, done.attempts, done.version) == ("succeeded", 1, 1), done.error
    assert done.adapter is not None
    adapter = await adapters.get(ledger, done.adapter)
    directory = workshop.var / "adapters" / adapter.id
    assert sorted(p.name for p in directory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapters.digest_of(directory) == adapter.digest
    assert not directory.stat().st_mode & 0o222
    assert (adapter.state, adapter.parent, adapter.job) == ("candidate", None, job.id)
    assert (adapter.gate["decision"], adapter.gate["passed"]) == ("pass", True)
    assert {one["id"] for one in adapter.gate["criteria"]} >= {"G0", "G1", "G4", "G8", "V1"}
    assert [len(one.tokens) == len(one.logprobs) > 0 for one in adapter.golden] == [True] * len(adapter.golden) != []
    assert adapter.metrics["accuracy"] > 0.5
    assert (await adapters.serving(ledger)).wanted == adapter.id
    assert await pairs.waiting(ledger) == []
    assert [sentence async for sentence in violations(ledger)] == []

    told, _ = await jobs.events(ledger, job.id, limit=1000)
    metrics = [event.data for event in told if event.type == "metrics" and event.data]
    assert {"loss", "rewards/margins", "rewards/accuracies"} <= metrics[0].keys()
    assert {"freeze", "train", "evaluate", "publish", "job"} <= {(e.data or {}).get("stage") for e in told}

    left = {path.suffix for path in (workshop.var / "jobs" / job.id).iterdir()}
    assert left == {".json", ".log"}
    manifest = workshop.manifest(job.id)
    assert manifest.dataset.digest == done.dataset_digest == adapter.dataset_digest
    assert manifest.checkpoints
    assert {"freeze", "train", "evaluate", "publish"} == manifest.seconds.keys()


async def test_a_worker_killed_in_mid_training_costs_no_adapter_and_makes_no_second(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    first = workshop.start("worker")
    workshop.start("beat")
    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Checkpoint at step"), "a checkpoint is there")
    child = workshop.child(first)
    assert child is not None

    first.kill()
    wait_for(lambda: not child.is_running(), "the recipe ends with its worker", 20)
    workshop.start("worker")
    done = await ended(ledger, job.id)

    assert (done.status, done.attempts) == ("succeeded", 2), done.error
    assert await told(ledger, job.id, "Training goes on from the checkpoint")
    assert [a.id for a in (await adapters.page(ledger))[0]] == [done.adapter]
    assert [p.name for p in (workshop.var / "adapters").iterdir()] == [done.adapter]
    assert [sentence async for sentence in violations(ledger)] == []


async def test_a_worker_that_is_asked_to_leave_hands_the_job_back(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    first = workshop.start("worker")
    workshop.start("beat")
    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Step "), "training runs")

    first.send_signal(signal.SIGTERM)
    wait_for(lambda: first.poll() is not None, "the worker leaves", 30)

    assert workshop.child(first) is None
    assert (await jobs.get(ledger, job.id)).attempts == 0
    assert await jobs.unattended(ledger) == job.id
    workshop.start("worker")
    done = await ended(ledger, job.id)
    assert (done.status, done.attempts) == ("succeeded", 1), done.error
    assert await told(ledger, job.id, "Training goes on from the checkpoint")


async def test_a_cancelled_job_stops_its_training_and_leaves_its_pairs_waiting(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    worker = workshop.start("worker")
    workshop.start("beat")
    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Step "), "training runs")
    child = workshop.child(worker)
    assert child is not None

    await jobs.cancel(ledger, job.id)
    wait_for(lambda: not child.is_running(), "the recipe ends", 20)

    assert worker.poll() is None
    assert (await jobs.get(ledger, job.id)).status == "cancelled"
    assert await pairs.waiting(ledger) != []
    assert (await adapters.page(ledger))[0] == []
    assert [sentence async for sentence in violations(ledger)] == []


async def test_a_job_whose_base_is_missing_fails_in_words_after_its_attempts(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker", HEED_BASE_MODEL="nobody/has-this", HEED_MAX_ATTEMPTS="2", HF_HUB_OFFLINE="1")
    workshop.start("beat")

    job = await asked_for(ledger)
    done = await ended(ledger, job.id)

    assert (done.status, done.attempts) == ("failed", 2)
    assert done.error is not None
    assert "neither a folder nor a model" in done.error.message
    assert "Traceback" not in done.error.message
    assert str(workshop.var) not in done.error.message
    assert await jobs.open_ids(ledger) == []


async def test_too_few_pairs_fail_at_once_and_enough_new_ones_start_a_job_by_themselves(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger, 5)
    workshop.start("worker", HEED_TRAIN_EVERY_PAIRS=str(MANY // 2))
    workshop.start("beat")

    refused = await ended(ledger, (await asked_for(ledger)).id)
    assert refused.error is not None
    assert (refused.status, refused.error.code) == ("failed", "too_few_pairs")

    await taught(ledger)
    await until(lambda: jobs.open_ids(ledger), "a job is due")
    (job_id,) = await jobs.open_ids(ledger)
    assert (await jobs.get(ledger, job_id)).trigger == "pairs"
    await jobs.cancel(ledger, job_id)


def test_the_worker_loads_no_torch() -> None:
    lines = "import sys, trainer.worker, trainer.tasks, trainer.attempt; print(*sys.modules)"

    said = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True, cwd=ROOT)

    assert not {"torch", "transformers", "trl", "peft", "datasets"} & set(said.stdout.split())


def test_the_recipe_s_own_defaults_are_those_that_jobs_use_on_a_tiny_base() -> None:
    lines = "import json, trainer.dpo as d; print(json.dumps(vars(d.Hyperparameters())))"

    said = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True, cwd=ROOT)

    recipe = json.loads(said.stdout)
    assert {name: recipe[name] for name in TINY} == TINY


async def taught(ledger: Ledger, prompts: int = MANY) -> None:
    """Votes on answers to as many prompts: steps are liked, the lazy pointer is not."""
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
        await votes.cast(ledger, completion_id=completion.id, choice=0, rating="up", voter="ann")
        await votes.cast(ledger, completion_id=completion.id, choice=1, rating="down", voter="ann")


async def asked_for(ledger: Ledger) -> Job:
    return await jobs.create(ledger, Job(id=new_id("ftjob"), served_model=ledger.model, created=time.time()))


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
