"""What a run computes in: chosen by what is faster, kept apart, and exact in itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.recipes import Child, preferring_steps, write_rows
from trainer import dpo, precision, rows, weights
from trainer.precision import Asked
from trainer.training import Run

NARROW, WIDE = {"hidden_size": 128}, {"hidden_size": 896}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "train.jsonl", preferring_steps(16, seed=0))


@pytest.fixture(scope="module")
def in_bf16(pocket: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    child = Child(pocket, pairs, tmp_path_factory.mktemp("bf16"), more=("--precision", "bf16"))
    assert child.run() == 0, (child.folder / "stderr").read_text()[-2000:]
    return child


def built(pocket: Path, pairs: Path, folder: Path, asked: Asked) -> Any:
    settings = dpo.Hyperparameters(epochs=1.0, precision=asked)
    run = Run(str(pocket), pairs, folder / asked, folder / "work", None, settings, references=folder / "references")
    fitted = rows.fit(rows.read(pairs, dpo.ANSWERS), dpo.ANSWERS, AutoTokenizer.from_pretrained(pocket), 512)
    return dpo.build_trainer(run, fitted.dataset())


@pytest.mark.parametrize(
    ("config", "is_fast", "has_gpu", "chosen"),
    [
        (WIDE, True, False, "bf16"),
        (WIDE, False, False, "fp32"),
        (NARROW, True, False, "fp32"),
        (NARROW, False, True, "bf16"),
    ],
)
def test_auto_is_bf16_where_that_is_faster(
    config: dict[str, int], is_fast: bool, has_gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_matrix_unit", lambda: is_fast)
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)

    assert precision.choose("auto", config) == chosen
    assert precision.choose("fp32", config) == "fp32"


def test_in_bf16_the_frozen_linears_are_and_what_is_trained_is_not(
    pocket: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    trainer = built(pocket, pairs, tmp_path, "bf16")

    trainer.train()

    named = dict(trainer.model.named_parameters())
    frozen = {name for name, weight in named.items() if weight.dtype == torch.bfloat16}
    assert frozen == {name for name in named if name.endswith("base_layer.weight")}
    moments = [each for state in trainer.optimizer.state.values() for each in state.values() if each.numel() > 1]
    assert moments
    assert {each.dtype for each in moments} == {torch.float32}


def test_losses_are_those_of_fp32_within_what_bf16_rounds_and_references_are_kept_apart(
    pocket: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    asked: list[Asked] = ["fp32", "bf16"]

    trainers = [built(pocket, pairs, tmp_path, one) for one in asked]
    for trainer in trainers:
        trainer.train()

    losses = [[step["loss"] for step in trainer.state.log_history if "loss" in step] for trainer in trainers]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    # Before the first update policy and reference are the same computation.
    for trainer in trainers:
        assert trainer.state.log_history[0]["rewards/margins"] == pytest.approx(0, abs=0.05)
    assert len(list((tmp_path / "references").glob("*.json"))) == 2


def test_weights_rounded_once_give_the_bits_of_weights_rounded_in_each_step(
    pocket: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    once = built(pocket, pairs, tmp_path / "once", "bf16")
    monkeypatch.setattr(precision, "round_linears", lambda model: None)
    each_time = built(pocket, pairs, tmp_path / "each", "bf16")
    batch = next(iter(once.get_train_dataloader()))

    found = [trainer.compute_ref_log_probs(trainer.model, batch) for trainer in (once, each_time)]

    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_in_bf16_too_a_killed_run_goes_on_to_the_same_bytes(
    pocket: Path, pairs: Path, in_bf16: Child, tmp_path: Path
) -> None:
    child = Child(pocket, pairs, tmp_path / "run", more=("--precision", "bf16"))
    process = child.start()
    child.until(process, "checkpoint", 4)
    with process:
        process.kill()

    code = child.run()

    assert code == 0, (child.folder / "stderr").read_text()[-2000:]
    assert child.said("fitted")[0]["precision"] == "bf16"
    assert child.said("resumed")[0]["step"] == 4
    assert weights.digest(child.out) == weights.digest(in_bf16.out)


def test_a_checkpoint_in_one_precision_is_none_in_the_other(pocket: Path, pairs: Path, in_bf16: Child) -> None:
    other = Child(pocket, pairs, in_bf16.folder, more=("--precision", "fp32"))

    assert other.run() == 1
    assert "precision" in other.said("error")[0]["message"]
