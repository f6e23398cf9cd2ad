"""The workshop for real: Redis, a Celery worker and beat as processes, TRL's DPO in a child of the worker."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from feedback import adapters, erasure, jobs, pairs, votes
from feedback.check import violations
from feedback.records import Job
from tests.processes import ROOT, wait_for
from tests.workshop import MANY, Workshop, asked_for, ended, taught, told, until
from trainer.hyperparameters import TINY
from trainer.manifest import REWARD


async def test_the_circle_s_back_half_turns_votes_into_a_wanted_adapter_as_a_dry_run_says_it_would(
    workshop: Workshop,
) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker")
    workshop.start("beat")

    rehearsed = await ended(ledger, (await asked_for(ledger, dry_run=True)).id)
    job = await asked_for(ledger)
    done = await ended(ledger, job.id)
    rehearsed_again = await ended(ledger, (await asked_for(ledger, dry_run=True)).id)

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

    expect_planned(rehearsed, done)
    assert not (workshop.var / "jobs" / rehearsed.id).exists()
    assert rehearsed_again.plan is not None
    assert rehearsed_again.plan["cost"]["from_jobs"] == 1
    assert rehearsed_again.plan["cost"]["seconds"] == pytest.approx(sum(done.seconds.values()), rel=0.01)
    assert rehearsed_again.plan["cost"]["tokens"] == done.trained_tokens

    told, _ = await jobs.events(ledger, job.id, limit=1000)
    metrics = [event.data for event in told if event.type == "metrics" and event.data]
    assert {"loss", "rewards/margins", "rewards/accuracies"} <= metrics[0].keys()
    assert {"freeze", "train", "evaluate", "publish", "job"} <= {(e.data or {}).get("stage") for e in told}
    log = workshop.log()
    assert all(f"{job.id}: {event.message}" in log for event in told if event.message.startswith("Step "))

    left = {path.suffix for path in (workshop.var / "jobs" / job.id).iterdir()}
    assert left == {".json", ".log"}
    manifest = workshop.manifest(job.id)
    assert manifest.dataset.digest == done.dataset_digest == adapter.dataset_digest
    assert manifest.computing.precision == "fp32"  # what auto came to
    assert manifest.checkpoints
    assert {"freeze", "train", "evaluate", "publish"} == manifest.seconds.keys()

    again = rerun(workshop, job.id)
    assert again.returncode == 0, again.stdout
    assert json.loads(again.stdout.splitlines()[-1])["is_same"] is True
    assert (workshop.var / "again" / "train.jsonl").stat().st_size > 0

    pair = (await pairs.get_many(ledger, manifest.dataset.train[:1]))[0]
    await votes.withdraw(ledger, pair.opinions[0])
    await pairs.settle(ledger)
    another = rerun(workshop, job.id)
    assert another.returncode == 1
    assert "do not stand any more" in another.stdout


def expect_planned(rehearsed: Job, trained: Job) -> None:
    """A dry run before any job says what the job then did."""
    assert (rehearsed.status, rehearsed.adapter) == ("succeeded", None), rehearsed.error
    assert rehearsed.plan is not None
    assert [rehearsed.dataset_digest, rehearsed.pairs] == [trained.dataset_digest, trained.pairs]
    assert rehearsed.held_out == trained.held_out
    assert rehearsed.plan["dataset"]["by_source"] == {"thumbs": rehearsed.pairs}
    steps = 2 * math.ceil(trained.rows / TINY["batch_size"])
    assert rehearsed.plan["cost"] == {"steps": steps, "seconds": None, "tokens": None, "from_jobs": 0}
    assert [each["name"] for each in rehearsed.plan["triggers"]] == ["pairs", "schedule", "idle"]


def rerun(workshop: Workshop, job_id: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "trainer", "rerun", "--progress", "jsonl", "--out", str(workshop.var / "again")]
    command += ["--manifest", str(workshop.var / "jobs" / job_id / "manifest.json")]
    env = {**os.environ, **workshop.env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


async def test_lone_thumbs_become_an_adapter_where_there_are_no_pairs(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger, 2 * MANY, is_paired=False)
    workshop.start("worker", HEED_MIN_THUMBS="20")
    workshop.start("beat")

    job = await asked_for(ledger)
    done = await ended(ledger, job.id)

    assert done.status == "succeeded", done.error
    assert done.method["type"] == "unpaired"
    known = workshop.manifest(job.id)
    assert known.dataset.method == "unpaired"
    assert known.dataset.train
    assert all(i.startswith("unpaired-") for i in known.dataset.train)
    assert known.dataset.votes == len(known.dataset.train) + len(known.dataset.held_out)
    assert done.adapter is not None
    adapter = await adapters.get(ledger, done.adapter)
    assert adapter.metrics["accuracy"] > 0.5
    assert [sentence async for sentence in violations(ledger)] == []


async def test_a_reward_model_is_made_from_the_votes_and_takes_none_from_the_adapters(workshop: Workshop) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker", HEED_START="warm", HEED_PROMOTE="eager")
    workshop.start("beat")

    job = await asked_for(ledger, method="reward")
    done = await ended(ledger, job.id)

    assert (done.status, done.adapter) == ("succeeded", None), done.error
    assert done.reward_model is not None
    assert done.reward_model.startswith("heed-r1-")
    folder = workshop.var / "rewards" / done.reward_model
    made_from = json.loads((folder / REWARD).read_text())
    assert (made_from["job"], made_from["dataset_digest"]) == (job.id, done.dataset_digest)
    assert made_from["held_out"]["pairs"] == done.held_out > 0
    assert made_from["held_out"]["low"] <= made_from["held_out"]["accuracy"] <= made_from["held_out"]["high"]
    assert made_from["held_out"]["accuracy"] > 0.5
    assert await told(ledger, job.id, f"Reward model in var/rewards: {done.reward_model}, right about")
    assert not folder.stat().st_mode & 0o222

    assert len(await pairs.waiting(ledger)) == MANY
    assert await jobs.newest_at(ledger) == 0
    assert (await adapters.page(ledger))[0] == []
    assert (await adapters.serving(ledger)).wanted == "heed-base"
    assert [sentence async for sentence in violations(ledger)] == []

    again = rerun(workshop, job.id)
    assert again.returncode == 0, again.stdout

    erased = await erasure.of_voter(ledger, "ann")
    assert (erased.reward_models, erased.adapters) == ([done.reward_model], [])


async def test_a_worker_that_leaves_and_one_that_is_killed_cost_no_adapter_and_make_no_second(
    workshop: Workshop,
) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    leaving = workshop.start("worker", HEED_EPOCHS="6")
    workshop.start("beat")
    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Step "), "training runs")

    leaving.send_signal(signal.SIGTERM)
    wait_for(lambda: leaving.poll() is not None, "the worker leaves", 30)

    assert workshop.child(leaving) is None
    assert (await jobs.get(ledger, job.id)).attempts == 0
    assert await jobs.unattended(ledger) == job.id

    killed = workshop.start("worker", HEED_EPOCHS="6")
    await until(lambda: told(ledger, job.id, "Training goes on from the checkpoint"), "training goes on")
    child = workshop.child(killed)
    assert child is not None
    killed.kill()
    wait_for(lambda: not child.is_running(), "the recipe ends with its worker", 20)
    workshop.start("worker", HEED_EPOCHS="6")
    done = await ended(ledger, job.id)

    assert (done.status, done.attempts) == ("succeeded", 2), done.error
    assert [a.id for a in (await adapters.page(ledger))[0]] == [done.adapter]
    assert [p.name for p in (workshop.var / "adapters").iterdir()] == [done.adapter]
    assert [sentence async for sentence in violations(ledger)] == []


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
