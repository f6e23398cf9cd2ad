"""Training files, through the official client and into a job's dataset."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback import files, jobs
from feedback.connection import Ledger
from feedback.errors import TooFewPairs
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine
from trainer import dataset, manifest, plan
from trainer.settings import WorkshopSettings
from trainer.sources import TrainingFileUnknown
from trainer.work import Work


def trl(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}


def of_openai(number: int) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"question {number}"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": f"good {number}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"bad {number}"}],
    }


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


ENOUGH = lines_of([trl(i) for i in range(60)])


async def test_the_official_client_uploads_reads_lists_and_deletes(gateway: RunningGateway) -> None:
    client = gateway.openai.files

    made = await client.create(file=("pairs.jsonl", ENOUGH), purpose="fine-tune")
    other = await client.create(file=("more.jsonl", lines_of([of_openai(1)])), purpose="fine-tune")
    found = await client.retrieve(made.id)
    listed = [file.id async for file in client.list(purpose="fine-tune", limit=1)]
    content = (await client.content(made.id)).content
    gone = await client.delete(made.id)

    assert (made.object, made.filename, made.purpose, made.status) == ("file", "pairs.jsonl", "fine-tune", "processed")
    assert made.bytes == len(ENOUGH)
    assert found == made
    assert listed == [other.id, made.id]
    assert content == ENOUGH
    assert (gone.id, gone.deleted) == (made.id, True)
    assert [path.stem for path in (gateway.var / "files").iterdir()] == [other.id]
    for ask in (client.retrieve, client.content, client.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(made.id)
        assert refused.value.code == "file_not_found"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (lines_of([trl(1), trl(2)]) + b'{"prompt": "my secret", "chosen": "x"}\n', "line 3: rejected is missing"),
        (lines_of([trl(1)]) + b"\nmy secret", "line 3: it is not valid JSON"),
        (lines_of([of_openai(1) | {"preferred_output": []}]), "line 1: preferred_output has 0 messages"),
        (lines_of([{"prompt": "my secret", "completion": "a", "label": True}]), "line 1: chosen is missing"),
        (json.dumps([trl(1)]).encode(), "line 1: it is a list; it should be an object"),
    ],
)
async def test_a_file_that_no_job_could_read_is_refused_with_its_line_and_not_kept(
    gateway: RunningGateway, content: bytes, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.openai.files.create(file=("pairs.jsonl", content), purpose="fine-tune")

    assert refused.value.code == "invalid_file"
    assert said in refused.value.message
    assert "my secret" not in refused.value.message
    assert list((gateway.var / "files").iterdir()) == []
    assert [file async for file in gateway.openai.files.list()] == []


async def test_only_training_files_of_the_operator_are_taken(gateway: RunningGateway) -> None:
    with pytest.raises(openai.BadRequestError) as purpose:
        await gateway.openai.files.create(file=("pairs.jsonl", ENOUGH), purpose="batch")
    bare = await gateway.operator.post("/v1/files", json=trl(1))
    stranger = await gateway.http.post("/v1/files", files={"file": ("pairs.jsonl", ENOUGH)})

    assert purpose.value.code == "purpose_not_supported"
    assert (bare.status_code, bare.json()["error"]["param"]) == (400, "file")
    assert stranger.status_code == 401


async def test_a_file_over_the_limit_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, upload_limit_mb=0.001) as gateway:
        with pytest.raises(openai.APIStatusError) as refused:
            await gateway.openai.files.create(file=("pairs.jsonl", ENOUGH), purpose="fine-tune")

        assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
        assert "HEED_UPLOAD_LIMIT_MB" in refused.value.message


async def test_a_file_may_be_larger_than_other_bodies(ledger: Ledger, tmp_path: Path) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, body_limit_mb=0.001) as gateway:
        made = await gateway.openai.files.create(file=("pairs.jsonl", ENOUGH), purpose="fine-tune")

        assert made.bytes == len(ENOUGH)


async def test_a_job_on_a_file_needs_one_that_is_there_and_has_enough(gateway: RunningGateway) -> None:
    client = gateway.openai
    enough = await client.files.create(file=("pairs.jsonl", ENOUGH), purpose="fine-tune")
    few = await client.files.create(file=("few.jsonl", lines_of([trl(1)])), purpose="fine-tune")

    job = await client.fine_tuning.jobs.create(model="heed", training_file=enough.id)
    with pytest.raises(openai.BadRequestError) as too_few:
        await client.fine_tuning.jobs.create(model="heed", training_file=few.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.fine_tuning.jobs.create(model="heed", training_file="file-none")
    with pytest.raises(openai.BadRequestError) as validation:
        await client.fine_tuning.jobs.create(model="heed", training_file=enough.id, validation_file=few.id)

    assert job.training_file == enough.id
    assert (too_few.value.code, unknown.value.code) == ("too_few_pairs", "file_not_found")
    assert validation.value.code == "validation_file_not_supported"


class Workplace:
    """A workshop beside the gateway that plans and does not train: its base model is a folder with a config."""

    def __init__(self, ledger: Ledger, var: Path) -> None:
        base = var / "base"
        base.mkdir()
        (base / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 64}))
        self.ledger = ledger
        self.settings = WorkshopSettings(var=var, base_model=str(base))

    async def claim(self, job_id: str) -> Work:
        job, token = await jobs.claim(self.ledger, job_id)
        return Work(self.ledger, self.settings, job, token)


async def planned(gateway: RunningGateway, ledger: Ledger, content: bytes) -> Work:
    file = await gateway.openai.files.create(file=("pairs.jsonl", content), purpose="fine-tune")
    job = await gateway.openai.fine_tuning.jobs.create(model="heed", training_file=file.id, seed=1)
    return await Workplace(ledger, gateway.var).claim(job.id)


async def test_a_job_on_a_file_freezes_its_rows_with_their_digest(gateway: RunningGateway, ledger: Ledger) -> None:
    twice = ENOUGH + lines_of([of_openai(3), trl(60) | {"chosen": "  "}])
    work = await planned(gateway, ledger, twice)

    known = await plan.freeze(work)

    record = await files.get(ledger, work.job.training_file)
    train = [json.loads(line) for line in (work.folder / "train.jsonl").read_bytes().splitlines()]
    held_out = [json.loads(line) for line in (work.folder / "heldout.jsonl").read_bytes().splitlines()]
    assert {row["chosen"][0]["content"] for row in [*train, *held_out]} == {f"good {i}" for i in range(60)}
    assert (len(train) + len(held_out), known.dataset.dropped) == (60, {"empty": 1})
    assert (known.dataset.file, known.dataset.file_sha256) == (record.id, record.sha256)
    assert (known.dataset.votes, known.dataset.voters, known.dataset.replayed) == (0, 0, 0)
    assert manifest.read(work.folder) == known
    assert await plan.freeze(work) == known


async def test_the_same_file_gives_the_same_bytes_whatever_it_is_called(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    digests = set()
    for content in (ENOUGH, ENOUGH, lines_of([of_openai(i) for i in reversed(range(60))])):
        file = await gateway.openai.files.create(file=("pairs.jsonl", content), purpose="fine-tune")
        record = await files.get(ledger, file.id)
        pairs = files.rows(ledger, record)
        digests.add(dataset.build(sorted(pair.id for pair in pairs), pairs).digest)

    assert len(digests) == 1


async def test_a_file_that_is_gone_or_was_changed_fails_the_job_in_words(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    work = await planned(gateway, ledger, ENOUGH)
    path = files.path_of(ledger, work.job.training_file)

    path.write_bytes(ENOUGH + lines_of([trl(99)]))
    with pytest.raises(TrainingFileUnknown, match="are not what was uploaded"):
        await plan.freeze(work)
    path.unlink()
    with pytest.raises(TrainingFileUnknown, match="are gone from var/files"):
        await plan.freeze(work)
    await files.delete(ledger, work.job.training_file)
    with pytest.raises(TrainingFileUnknown, match="there is no file"):
        await plan.freeze(work)


async def test_a_file_whose_rows_cannot_teach_is_too_few(gateway: RunningGateway, ledger: Ledger) -> None:
    work = await planned(gateway, ledger, lines_of([trl(i) | {"rejected": " "} for i in range(60)]))

    with pytest.raises(TooFewPairs):
        await plan.freeze(work)
