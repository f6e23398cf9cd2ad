"""What makes the recipe fast on a CPU is really in effect."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from trl.trainer import utils

from tests.processes import ROOT
from tests.recipes import preferring_steps, write_rows
from trainer import dpo, rows
from trainer.branches import BranchingTrainer, branched
from trainer.training import Run


def built(pocket: Path, folder: Path) -> Any:
    train = write_rows(folder / "rows.jsonl", preferring_steps(8, seed=3))
    run = Run(str(pocket), train, folder / "out", folder / "work", None, dpo.Hyperparameters(epochs=1.0))
    tokenizer = AutoTokenizer.from_pretrained(pocket)
    return dpo.build_trainer(run, rows.fit(rows.read(train, dpo.ANSWERS), dpo.ANSWERS, tokenizer, 512).dataset())


@pytest.fixture
def trainer(pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return built(pocket, tmp_path)


def test_on_a_cpu_all_is_fp32_and_nothing_is_computed_twice(trainer: Any) -> None:
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert not trainer.args.bf16
    assert not trainer.args.gradient_checkpointing
    assert not trainer.model.is_gradient_checkpointing
    assert "ref_chosen_logps" in trainer.train_dataset.column_names


def test_a_prompt_is_computed_once_and_only_answers_meet_the_vocabulary(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    scored: list[int] = []
    shapes: list[torch.Size] = []
    real = utils._ChunkedLogProbFunction

    class Counted:
        @staticmethod
        def apply(hidden: torch.Tensor, *more: Any) -> Any:
            scored.append(len(hidden))
            return real.apply(hidden, *more)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counted)
    trainer.model.register_forward_pre_hook(
        lambda _module, _positional, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )

    trainer.compute_loss(trainer.model, batch)

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    assert scored == [int(batch["completion_mask"].sum())]
    assert shapes == [branched(batch["input_ids"], batch["attention_mask"], labels).ids.shape]
    assert shapes[0].numel() < batch["input_ids"].numel()


def test_references_are_the_same_bits_with_the_adapter_off_once_or_for_each_row(
    trainer: Any, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(BranchingTrainer, "as_reference")

    as_trl_does = built(pocket, tmp_path).train_dataset

    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(as_trl_does[column]) == list(trainer.train_dataset[column])


def test_torch_has_as_many_threads_as_the_quota_says() -> None:
    code = "import trainer.machine as m; m.prepare_environment(); import torch; print(torch.get_num_threads())"

    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HEED_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.strip() == "1"
