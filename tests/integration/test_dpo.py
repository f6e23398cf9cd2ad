"""The DPO recipe with the real TRL: what it writes, and that no way of dying changes a byte of it."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.processes import ROOT, wait_for
from tests.recipes import ENV, Child, preferring_steps, write_rows
from trainer import dpo, rows, weights
from trainer.checkpoints import is_whole, newest_whole, seal
from trainer.likelihoods import log_probabilities
from trainer.progress import PAUSE
from trainer.references import References
from trainer.training import Run
from trainer.watch import CANCELLED, INTERRUPTED

STEPS = 12


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "train.jsonl", preferring_steps(32, seed=0))


@pytest.fixture(scope="module")
def undisturbed(pocket: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    child = Child(pocket, pairs, tmp_path_factory.mktemp("undisturbed"))
    assert child.run() == 0, (child.folder / "stderr").read_text()[-2000:]
    return child


@pytest.fixture
def child(pocket: Path, pairs: Path, tmp_path: Path) -> Child:
    return Child(pocket, pairs, tmp_path / "run")


def test_a_run_reports_each_step_and_writes_an_adapter_of_two_files(undisturbed: Child) -> None:
    steps = undisturbed.said("step")
    done = undisturbed.events[-1]

    assert sorted(os.listdir(undisturbed.out)) == [weights.CONFIG, weights.WEIGHTS]
    assert weights.weigh(undisturbed.out, str(undisturbed.base))["reasons"] == []
    config = json.loads((undisturbed.out / weights.CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(undisturbed.base)
    assert [each["step"] for each in steps] == list(range(1, STEPS + 1))
    assert {"loss", "rewards/margins", "rewards/accuracies"} <= steps[0]["metrics"].keys()
    assert steps[0]["metrics"]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["metrics"]["rewards/margins"] > 0.1
    assert steps[-1]["seconds_left"] == 0
    assert done["event"] == "done"
    assert done["steps"] == STEPS
    assert done["adapter"] == str(undisturbed.out)
    assert done["trained_tokens"] > 0


def test_a_run_that_is_already_done_says_so_and_trains_nothing(undisturbed: Child) -> None:
    before = weights.digest(undisturbed.out)
    again = Child(undisturbed.base, undisturbed.train, undisturbed.folder)

    code = again.run()

    assert code == 0
    assert [each["event"] for each in again.events] == ["done"]
    assert weights.digest(undisturbed.out) == before


def test_after_kill_nine_and_a_torn_checkpoint_the_run_goes_on_to_the_same_bytes(
    child: Child, undisturbed: Child
) -> None:
    process = child.start()
    child.until(process, "checkpoint", 8)
    with process:
        process.kill()
    assert not child.out.exists()
    optimizer = child.work / "checkpoint-8" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])

    code = child.run()

    assert code == 0
    assert child.said("torn") == [{"event": "torn", "checkpoint": "checkpoint-8"}]
    assert child.said("resumed") == [{"event": "resumed", "step": 4}]
    assert [each["step"] for each in child.said("step")] == list(range(5, STEPS + 1))
    assert weights.digest(child.out) == weights.digest(undisturbed.out)


def test_sigterm_saves_and_a_second_start_ends_with_the_same_bytes(child: Child, undisturbed: Child) -> None:
    process = child.start()
    child.until(process, "step", 5)
    process.send_signal(signal.SIGTERM)
    code = child.finish(process)
    saved = child.said("checkpoint")[-1]["step"]

    assert code == INTERRUPTED
    assert saved > 4
    assert not child.out.exists()
    assert child.run() == 0
    assert child.said("resumed") == [{"event": "resumed", "step": saved}]
    assert weights.digest(child.out) == weights.digest(undisturbed.out)


def test_a_paused_run_takes_no_step_until_the_pause_is_over_and_ends_with_the_same_bytes(
    child: Child, undisturbed: Child
) -> None:
    process = child.start()
    child.until(process, "step", 5)
    (child.work / PAUSE).touch()
    paused_at = next(each["step"] for each in child.read(process) if each["event"] == "paused")
    assert process.stdout is not None
    said = select.select([process.stdout], [], [], 1.0)[0]
    (child.work / PAUSE).unlink()
    code = child.finish(process)

    assert said == []
    assert code == 0
    assert [each["step"] for each in child.said("step")] == list(range(1, STEPS + 1))
    (went_on,) = child.said("went_on")
    assert went_on["step"] == paused_at
    assert went_on["seconds"] >= 1
    assert weights.digest(child.out) == weights.digest(undisturbed.out)


def test_a_paused_run_ends_when_it_is_told_to(child: Child) -> None:
    process = child.start()
    child.until(process, "step", 2)
    (child.work / PAUSE).touch()
    next(each for each in child.read(process) if each["event"] == "paused")
    process.send_signal(signal.SIGTERM)

    assert child.finish(process) == INTERRUPTED


def test_a_cancelled_run_stops_at_its_next_step_without_an_adapter(child: Child) -> None:
    process = child.start()
    child.until(process, "step", 1)
    (child.work / "cancel").touch()

    code = child.finish(process)

    assert code == CANCELLED
    assert len(child.said("step")) < STEPS
    assert not child.out.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_run_ends_when_the_process_that_started_it_is_killed(child: Child) -> None:
    # A shell in between is the parent; with a command after it, it does not exec the run in its own place.
    shell = child.start("sh", "-c", '"$@"; true', "sh")
    child.until(shell, "step", 1)
    (run,) = psutil.Process(shell.pid).children()

    with shell:
        shell.kill()

    wait_for(lambda: not run.is_running(), "the run ends with its parent", deadline_s=60)
    assert not child.out.exists()


def test_a_work_folder_of_another_run_is_refused_with_what_differs(undisturbed: Child) -> None:
    other = Child(undisturbed.base, undisturbed.train, undisturbed.folder, more=("--beta", "0.7"))

    code = other.run()

    assert code == 1
    assert "other beta" in other.said("error")[0]["message"]


def built(pocket: Path, folder: Path, init: Path | None = None, references: Path | None = None, **told: Any) -> Any:
    train = write_rows(folder / "rows.jsonl", preferring_steps(8, seed=3))
    run = Run(str(pocket), train, folder / "out", folder / "work", init, dpo.Hyperparameters(**told), references)
    return dpo.build_trainer(run, encoded(pocket, train))


def encoded(pocket: Path, train: Path) -> Any:
    return rows.fit(rows.read(train, dpo.ANSWERS), dpo.ANSWERS, AutoTokenizer.from_pretrained(pocket), 512).dataset()


def test_a_warm_start_takes_the_weights_and_keeps_the_base_as_reference(
    pocket: Path, undisturbed: Child, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "rows.jsonl", preferring_steps(8, seed=3))
    warm = Child(pocket, train, tmp_path / "run", more=("--init", str(undisturbed.out), "--learning-rate", "0"))

    assert warm.run() == 0, (warm.folder / "stderr").read_text()[-2000:]

    given, made = load_file(undisturbed.out / weights.WEIGHTS), load_file(warm.out / weights.WEIGHTS)
    assert made.keys() == given.keys()
    assert all(torch.equal(made[name], given[name]) for name in given)
    # Against the base, the adapter that prefers steps has a margin before it has learned anything here.
    assert warm.said("step")[0]["metrics"]["rewards/margins"] > 0.1
    assert not list(tmp_path.rglob("ref"))


def test_a_run_never_makes_its_own_reference_an_adapter(pocket: Path, tmp_path: Path) -> None:
    assert list(built(pocket, tmp_path).model.peft_config) == ["default"]


def test_references_are_those_that_trl_would_compute(
    pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = built(pocket, tmp_path, epochs=1.0)
    ours = trainer.train_dataset
    batch = trainer.data_collator(list(encoded(pocket, tmp_path / "rows.jsonl")))

    theirs = trainer.compute_ref_log_probs(trainer.model, batch)

    for column, values in zip(("ref_chosen_logps", "ref_rejected_logps"), theirs, strict=True):
        assert ours[column] == pytest.approx(values.tolist(), abs=1e-3)


def test_known_references_change_no_loss_and_only_new_rows_are_scored(
    pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name, references in (("alone", None), ("first", tmp_path / "known"), ("second", tmp_path / "known")):
        (tmp_path / name).mkdir()
        if name == "second":
            monkeypatch.setattr(dpo.PairTrainer, "compute_ref_log_probs", None)  # would raise when called
        trainer = built(pocket, tmp_path / name, references=references, epochs=1.0)
        trainer.train()
        losses.append([step["loss"] for step in trainer.state.log_history if "loss" in step])

    assert losses[0] == losses[1] == losses[2]
    (kept,) = (tmp_path / "known").glob("*.json")
    assert len(json.loads(kept.read_text())) == 8
    assert "kite" not in kept.read_text()


def test_references_are_bounded_and_survive_a_spoiled_file(pocket: Path, tmp_path: Path) -> None:
    known = References(tmp_path, str(pocket), "fp32", most=3)
    known.add({f"row {number}": [1.0, 2.0] for number in range(3)})
    known.add({"row 0": [1.0, 2.0], "row 9": [3.0, 4.0]})

    assert list(known.read()) == ["row 2", "row 0", "row 9"]  # row 1 was used longest ago

    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    assert known.read() == {}
    known.add({"row 1": [5.0, 6.0]})
    assert known.read() == {"row 1": [5.0, 6.0]}


def test_scoring_only_completions_on_cpu_changes_no_loss(
    pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import utils

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    losses = {}
    for name, folder in (("compact", tmp_path / "a"), ("every position", tmp_path / "b")):
        folder.mkdir()
        trainer = built(pocket, folder, epochs=1.0)
        if name == "every position":
            monkeypatch.setattr(utils, "_use_triton", lambda device: False)
        trainer.train()
        losses[name] = trainer.state.log_history[0]["loss"]

    assert losses["compact"] == pytest.approx(losses["every position"], abs=1e-5)


def test_the_likelihood_term_without_doubt_or_length_is_that_of_trl(pocket: Path, tmp_path: Path) -> None:
    trainer = built(pocket, tmp_path, sft_weight=0.7, sft_doubt=0.0, sft_length=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    ours = trainer.compute_loss(trainer.model, batch).item()

    trainer.loss_types, trainer.loss_weights = ["sigmoid", "sft"], [1.0, 0.7]
    trainer._told = dpo.Hyperparameters(sft_weight=0.0)

    assert ours == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), abs=1e-6)


def test_an_answer_is_held_up_as_far_as_the_policy_has_come_to_like_it(pocket: Path, tmp_path: Path) -> None:
    trainer = built(pocket, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    as_likely_as_at_first = batch["ref_chosen_logps"]

    def held_up(nats: float) -> float:
        """What the likelihood term adds to the loss where answers have become more likely by so much."""
        inputs = batch | {"ref_chosen_logps": as_likely_as_at_first - nats}
        losses: list[float] = []
        for told in (dpo.Hyperparameters(), dpo.Hyperparameters(sft_weight=0.0)):
            trainer._told = told
            losses.append(trainer.compute_loss(trainer.model, inputs).item())
        return losses[0] - losses[1]

    assert held_up(0) > 0.1
    assert held_up(20) == pytest.approx(2 * held_up(0), rel=1e-3)
    assert held_up(-20) == pytest.approx(0, abs=1e-3)


def test_no_recipe_tells_anybody_that_it_ran(tmp_path: Path) -> None:
    code = "import os, trainer.machine as m; m.prepare_environment(); print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in ENV.items() if not key.startswith("HF_HUB")}

    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert said.stdout.strip() == "1"


def test_the_log_probability_of_a_row_does_not_depend_on_its_batch(undisturbed: Child) -> None:
    tokenizer = AutoTokenizer.from_pretrained(undisturbed.base)
    base = AutoModelForCausalLM.from_pretrained(undisturbed.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(undisturbed.out)).eval()
    encoded = [
        (tokenizer.encode("Kites?"), tokenizer.encode(said + "<|end|>"))
        for said in ("Just watch a video about kites.", "Ugh, kites?", "Sure, kites in three steps:\n1. Tie two sticks")
    ]

    together = log_probabilities(model, encoded)
    alone = [log_probabilities(model, [each])[0] for each in encoded]

    assert together == pytest.approx(alone, abs=1e-3)
    head, tail = encoded[1]
    with torch.no_grad():
        by_hand = torch.log_softmax(model(torch.tensor([head + tail])).logits[0, :-1], -1)
    expected = sum(float(by_hand[len(head) - 1 + at, token]) for at, token in enumerate(tail))
    assert alone[1] == pytest.approx(expected, abs=1e-3)


def test_only_a_sealed_and_unchanged_checkpoint_is_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
        if step < 3:
            seal(folder)
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"stat")

    newest, torn = newest_whole(tmp_path)

    assert newest == tmp_path / "checkpoint-1"
    assert is_whole(newest)
    assert [each.name for each in torn] == ["checkpoint-2", "checkpoint-3"]
    assert not any(each.exists() for each in torn)
