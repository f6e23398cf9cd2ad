"""Jobs through the official client, unchanged."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback import completions, jobs, pairs, votes
from feedback.connection import Ledger
from feedback.records import Choice, Completion, new_id, prompt_digest
from tests.answers import answered
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import scripted_engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def vote_on(ledger: Ledger, prompts: int) -> None:
    """A correction on each of so many prompts: a pair each, some of them held out."""
    for number in range(prompts):
        messages = [{"role": "user", "content": f"question {number}"}]
        asked = Completion(
            id=new_id("chatcmpl"),
            served_model="heed",
            adapter="heed-base",
            created=1000.0,
            messages=messages,
            prompt_hash=prompt_digest(messages),
            choices=[Choice(index=0, message={"role": "assistant", "content": "bad"})],
        )
        await completions.record(ledger, asked)
        await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann", correction="good")


async def test_the_official_client_asks_for_a_job_follows_and_cancels_it(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    await vote_on(ledger, 60)
    client = gateway.openai.fine_tuning.jobs
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": "auto"}}}

    made = await client.create(model="heed", training_file="ledger", method=method, seed=7, metadata={"why": "test"})
    listed = [job.id async for job in client.list()]
    events = [event.message async for event in client.list_events(made.id)]
    _, token = await jobs.claim(ledger, made.id)
    await jobs.tell(ledger, made.id, "Checkpoint at step 20", type="checkpoint", data={"step": 20})
    saved = [checkpoint async for checkpoint in client.checkpoints.list(made.id)]
    running = await client.retrieve(made.id)
    cancelled = await client.cancel(made.id)

    assert (made.status, made.model, made.seed, made.training_file) == ("queued", "heed", 7, "ledger")
    assert made.method is not None
    assert made.method.dpo is not None
    assert made.method.dpo.hyperparameters is not None
    assert (made.method.dpo.hyperparameters.beta, made.hyperparameters.n_epochs) == (0.2, 2)
    assert made.metadata == {"why": "test"}
    assert listed == [made.id]
    assert events == ["Job created by operator; waiting for a worker"]
    assert [checkpoint.step_number for checkpoint in saved] == [20]
    assert (running.status, cancelled.status, bool(token)) == ("running", "cancelled", True)
    with pytest.raises(openai.ConflictError) as again:
        await client.cancel(made.id)
    assert again.value.code == "job_finished"


async def test_corrections_can_be_learnt_by_heart_and_the_method_keeps_its_hyperparameters(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    await vote_on(ledger, 60)
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}

    made = await gateway.openai.fine_tuning.jobs.create(model="heed", training_file="ledger", method=method)

    assert made.method is not None
    assert (made.method.type, made.hyperparameters.n_epochs) == ("supervised", 4)
    assert (await jobs.get(ledger, made.id)).method == method


async def test_a_reward_model_is_asked_for_as_an_adapter_is_and_named_beside_it(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    await vote_on(ledger, 60)
    method: Any = {"type": "reward", "reward": {"hyperparameters": {"n_epochs": 2}}}

    made = await gateway.openai.fine_tuning.jobs.create(model="heed", training_file="ledger", method=method)
    job, token = await jobs.claim(ledger, made.id)
    waiting = await pairs.waiting(ledger)
    await jobs.freeze(ledger, job.id, token, waiting)
    learnt = job.model_copy(update={"reward_model": "heed-r1-0a1b2c3d"})
    await jobs.finish(ledger, learnt, token, "succeeded")
    done = await gateway.openai.fine_tuning.jobs.retrieve(made.id)

    assert job.method == method
    assert (done.status, done.fine_tuned_model) == ("succeeded", None)
    assert done.model_extra is not None
    assert done.model_extra["reward_model"] == "heed-r1-0a1b2c3d"
    assert await pairs.waiting(ledger) == waiting != []
    assert await jobs.newest_at(ledger) == 0


async def test_thumbs_alone_are_enough_for_a_job_that_names_no_method(gateway: RunningGateway, ledger: Ledger) -> None:
    ledger.settings.min_thumbs = 5
    for number in range(10):
        rated = await answered(ledger, f"question {number}", "an answer")
        await votes.cast(ledger, completion_id=rated.id, rating="up" if number % 2 else "down", voter="ann")

    made = await gateway.openai.fine_tuning.jobs.create(model="heed", training_file="ledger")

    assert made.status == "queued"
    assert "type" not in (await jobs.get(ledger, made.id)).method  # the worker's to say, when it freezes


async def test_a_finished_job_names_its_adapter(gateway: RunningGateway, ledger: Ledger) -> None:
    await vote_on(ledger, 60)
    client = gateway.openai.fine_tuning.jobs
    made = await client.create(model="heed", training_file="ledger")
    job, token = await jobs.claim(ledger, made.id)

    await jobs.finish(ledger, job.model_copy(update={"adapter": "heed-v1-0a1b2c3d"}), token, "succeeded")

    done = await client.retrieve(made.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "heed-v1-0a1b2c3d")
    assert done.finished_at is not None


async def test_a_dry_run_answers_with_its_plan_or_after_its_wait_without(ledger: Ledger, tmp_path: Path) -> None:
    await vote_on(ledger, 60)
    asked = {"model": "heed", "training_file": "ledger", "dry_run": True}

    async def plan() -> None:
        await until(lambda: jobs.open_ids(ledger), "a dry run is asked for")
        job, token = await jobs.claim(ledger, (await jobs.open_ids(ledger))[0])
        await jobs.finish(ledger, job.model_copy(update={"plan": {"cost": {"steps": 3}}}), token, "succeeded")

    async with scripted_engine() as engine:
        async with running_gateway(ledger, tmp_path, engine) as patient:
            planned, _ = await asyncio.gather(patient.operator.post("/v1/fine_tuning/jobs", json=asked), plan())
        async with running_gateway(ledger, tmp_path, engine, dry_run_wait_s=0) as impatient:
            waiting = await impatient.operator.post("/v1/fine_tuning/jobs", json=asked)

    assert planned.json().items() >= {"status": "succeeded", "dry_run": True, "plan": {"cost": {"steps": 3}}}.items()
    assert waiting.json().items() >= {"status": "queued", "dry_run": True, "plan": None}.items()


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"training_file": "file-abc"}, openai.BadRequestError, "file_not_found"),
        ({"method": {"type": "reinforcement"}}, openai.BadRequestError, "method_not_supported"),
        ({"method": {"type": "supervised"}}, openai.BadRequestError, "too_few_pairs"),
        ({"method": {"type": "unpaired"}}, openai.BadRequestError, "too_few_pairs"),
        ({"method": {"type": "unpaired"}, "training_file": "file-abc"}, openai.BadRequestError, "method_not_supported"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "x"}}}}, openai.BadRequestError, None),
        ({}, openai.BadRequestError, "too_few_pairs"),
    ],
)
async def test_a_job_that_cannot_be_is_refused(
    gateway: RunningGateway, fields: dict[str, Any], error: type[openai.APIStatusError], code: str | None
) -> None:
    with pytest.raises(error) as refused:
        await gateway.openai.fine_tuning.jobs.create(**({"model": "heed", "training_file": "ledger"} | fields))

    assert code in (refused.value.code, None)
    assert "\n" not in refused.value.message


async def test_an_unknown_job_is_404_everywhere(gateway: RunningGateway) -> None:
    client = gateway.openai.fine_tuning.jobs

    for ask in (client.retrieve, client.cancel, client.list_events, client.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask("ftjob-none")
        assert refused.value.code == "job_not_found"
