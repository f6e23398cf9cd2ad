"""DPO: teach an adapter to prefer what people preferred.

Reads a file of pairs, writes an adapter directory, and touches nothing else but its work folder, from whose
newest whole checkpoint it goes on after a crash, with the same bytes as a run that was never interrupted.

Assumptions
- Both completions answer the same prompt.
- The reference model is the base model with the adapter switched off, in every round: chained references
  doubled the distance from the base per round.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset, Features, Value
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from trainer import checkpoints, machine, weights
from trainer.progress import RecipeRefused, Reporter

INTERRUPTED, CANCELLED = 75, 76
Row = dict[str, Any]


@dataclass(frozen=True)
class Hyperparameters:
    beta: float = 0.5
    epochs: float = 3.0
    batch_size: int = 8
    learning_rate: float = 1e-3
    sft_weight: float = 2.0
    lora_rank: int = 16
    seed: int = 0
    max_length: int = 512
    checkpoint_steps: int = 20


@dataclass(frozen=True)
class Run:
    base: str
    train: Path
    out: Path
    work: Path
    init: Path | None
    settings: Hyperparameters

    def fingerprint(self) -> dict[str, object]:
        """What a checkpoint depends on: a run that differs in any of it must not be resumed from it."""
        return {
            "base": self.base,
            "base_config": hashlib.sha256(
                json.dumps(weights.base_config(self.base), sort_keys=True).encode()
            ).hexdigest(),
            "pairs": hashlib.sha256(self.train.read_bytes()).hexdigest(),
            "init": weights.digest(self.init) if self.init else None,
            "adapter": self.out.name,
            **asdict(self.settings),
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        }


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    rows = read_pairs(run.train)
    if run.init and (reasons := weights.weigh(run.init, run.base, may_be_zero=True)["reasons"]):
        raise RecipeRefused(
            f"--init must be an adapter for this base. {reasons[0]}. Leave --init away to start from the base."
        )
    with checkpoints.held_for(run.work, run.fingerprint()):
        if (run.out / weights.WEIGHTS).is_file():
            # The crash came between the rename and the last word: the work is done.
            reporter.emit("done", steps=0, adapter=str(run.out), trained_tokens=0)
            return 0
        newest, torn = checkpoints.newest_whole(run.work)
        for checkpoint in torn:
            reporter.emit("torn", checkpoint=checkpoint.name)
        return _train(run, rows, newest, reporter)


def read_pairs(path: Path) -> list[Row]:
    """The rows that can teach something, in the order of the file; identical answers give no gradient."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        kept = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeRefused(
            f"--train must be a JSONL file of rows with prompt, chosen and rejected. Reading {path} gave {error!r}. "
            "`heed export` writes such a file."
        ) from error
    kept = [row for row in kept if row["chosen"] != row["rejected"]]
    if not kept:
        raise RecipeRefused(
            f"--train must hold at least one pair of two different answers. {path} holds {len(rows)} rows and none of "
            "them is such a pair. Collect votes first."
        )
    return kept


def as_dataset(rows: list[Row]) -> Dataset:
    # Named features: Dataset.from_list would take the columns of the first row and drop what others add.
    messages = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": messages, "chosen": messages, "rejected": messages})
    said = [
        {side: [{"role": turn["role"], "content": turn["content"]} for turn in row[side]] for side in features}
        for row in rows
    ]
    return Dataset.from_list(said, features=features)


def _train(run: Run, rows: list[Row], newest: Path | None, reporter: Reporter) -> int:
    trainer = build_trainer(run, as_dataset(rows))
    watch = Watch(run.work, reporter, _tokens(trainer.train_dataset))
    trainer.add_callback(watch)
    if newest:
        reporter.emit("resumed", step=int(newest.name.rpartition("-")[2]))
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if watch.stopped is not None:
        return watch.stopped

    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        for name, tensor in get_peft_model_state_dict(trainer.model).items()
    }
    if trainer.is_world_process_zero():
        weights.write_adapter(run.out, tensors, weights.adapter_config(run.base, run.settings.lora_rank))
        steps = trainer.state.global_step
        reporter.emit(
            "done", steps=steps, adapter=str(run.out), trained_tokens=round(watch.tokens * run.settings.epochs)
        )
    return 0


def build_trainer(run: Run, pairs: Dataset) -> DPOTrainer:
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        _score_completions_only()
    model = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.bfloat16 if on_gpu else torch.float32)
    settings = run.settings
    lora = weights.adapter_config(run.base, settings.lora_rank)
    kept = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "task_type")
    config = DPOConfig(
        output_dir=str(run.work),
        loss_type=["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if settings.sft_weight else [1.0],
        beta=settings.beta,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=settings.max_length,
        # From two epochs on, one pass over the base beats one in every step.
        precompute_ref_log_probs=settings.epochs >= 2,
        precompute_ref_batch_size=4 * settings.batch_size,
        # TRL's defaults are for big GPUs: on a CPU both cost more than half of the speed.
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        use_cpu=not on_gpu,
        seed=settings.seed,
        logging_steps=1,
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        disable_tqdm=True,
        report_to=[],
        dataloader_pin_memory=on_gpu,
    )
    # A LoraConfig and never a PeftModel: given one, TRL adds a frozen copy "ref", makes it the reference, and
    # checkpoints then resume without their weights (transformers loads the sub-folder and not the root).
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=LoraConfig(**{key: lora[key] for key in kept}),
    )
    trainer.remove_callback(PrinterCallback)
    assert set(trainer.model.peft_config) == {"default"}
    if run.init:
        start = {name: torch.from_numpy(tensor) for name, tensor in weights.to_start_from(run.init).items()}
        set_peft_model_state_dict(trainer.model, start, adapter_name="default")
    return trainer


def _score_completions_only() -> None:
    # Off Triton, TRL 1.16 runs the LM head over every position, prompts included: with 152k words nine times slower,
    # with the same losses. Delete when https://github.com/huggingface/trl chooses the compact path on CPU by itself.
    if trl.__version__.startswith("1.16."):
        trl.trainer.utils._use_triton = lambda device: True


def _tokens(pairs: Dataset) -> int:
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)


class Watch(TrainerCallback):
    """Reports each step, seals checkpoints, and ends the run early when somebody asks for it."""

    def __init__(self, work: Path, reporter: Reporter, tokens: int) -> None:
        self.tokens = tokens
        self.stopped: int | None = None
        self._work, self._reporter = work, reporter
        self._parent = os.getppid()
        self._terminated = False
        self._began = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (self._work / "cancel").exists():
            self.stopped = CANCELLED
        elif self._terminated or machine.has_lost(self._parent):
            self.stopped = INTERRUPTED
        else:
            return
        control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoints.seal(self._work / f"checkpoint-{state.global_step}")
            self._reporter.emit("checkpoint", step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        passed_s = time.monotonic() - self._began
        taken = max(state.global_step - self._first_step, 1)
        per_step = self.tokens * args.num_train_epochs / max(state.max_steps, 1)
        self._reporter.emit(
            "step",
            step=state.global_step,
            steps=state.max_steps,
            metrics={name: float(value) for name, value in logs.items()},
            tokens_per_second=round(per_step * taken / max(passed_s, 1e-9), 1),
            seconds_left=round(passed_s / taken * (state.max_steps - state.global_step), 1),
        )
