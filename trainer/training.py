"""Training: what every recipe shares. One run reads a file of rows and writes one folder, whatever interrupts it.

It touches nothing else but its work folder, from whose newest whole checkpoint it goes on after a crash, with the same
bytes as a run that was never interrupted, and the references it is told to keep (trainer/references.py).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer, PrinterCallback

from trainer import checkpoints, device, precision, reports, rows, weights
from trainer.precision import Asked, Precision
from trainer.progress import RecipeRefused, Reporter
from trainer.references import References
from trainer.watch import Watch


@dataclass(frozen=True)
class Hyperparameters:
    """Of every method; each adds its own. Defaults are the pocket model's, see trainer/hyperparameters.py."""

    epochs: float = 3.0
    batch_size: int = 8
    learning_rate: float = 1e-3
    lora_rank: int = 16
    seed: int = 0
    max_length: int = 512
    checkpoint_steps: int = 20
    qlora: bool = False
    precision: Asked = "auto"
    """See trainer/precision.py."""


@dataclass(frozen=True)
class Run:
    base: str
    train: Path
    out: Path
    work: Path
    init: Path | None
    settings: Hyperparameters
    references: Path | None = None
    """Folder of trainer/references.py; none to remember nothing."""
    references_most: int = 100_000
    engine_share: float | None = None
    """Of the GPU's memory, which is vLLM's; None where no engine is on it."""
    report_to: str = ""
    """See trainer/reports.py."""

    @cached_property
    def precision(self) -> Precision:
        return precision.choose(self.settings.precision, weights.base_config(self.base))

    def fingerprint(self, method: str) -> dict[str, object]:
        """What a checkpoint depends on: a run that differs in any of it must not be resumed from it."""
        return {
            "method": method,
            "base": self.base,
            "base_config": hashlib.sha256(
                json.dumps(weights.base_config(self.base), sort_keys=True).encode()
            ).hexdigest(),
            "rows": hashlib.sha256(self.train.read_bytes()).hexdigest(),
            "init": weights.digest(self.init) if self.init else None,
            "adapter": self.out.name,
            **asdict(self.settings),
            "precision": self.precision,
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        }

    def known(self) -> References | None:
        if not self.references:
            return None
        return References(self.references, self.base, self.precision, self.references_most)


@dataclass(frozen=True)
class Recipe:
    """A method: which answers its rows have, its trainer, and how what it trained is written."""

    method: str
    answers: tuple[str, ...]
    build: Callable[[Run, Dataset], Any]
    write: Callable[[Run, Any], None]
    has_labels: bool = False


def conduct(run: Run, recipe: Recipe, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    found = rows.read(run.train, recipe.answers, has_labels=recipe.has_labels)
    if run.init and (reasons := weights.weigh(run.init, run.base, may_be_zero=True)["reasons"]):
        raise RecipeRefused(
            f"--init must be an adapter for this base. {reasons[0]}. Leave --init away to start from the base."
        )
    with checkpoints.held_for(run.work, run.fingerprint(recipe.method)):
        if (run.out / weights.WEIGHTS).is_file():
            # The crash came between the rename and the last word: the work is done.
            reporter.emit("done", steps=0, adapter=str(run.out), trained_tokens=0)
            return 0
        newest, torn = checkpoints.newest_whole(run.work)
        for checkpoint in torn:
            reporter.emit("torn", checkpoint=checkpoint.name)
        fitted = rows.fit(found, recipe.answers, AutoTokenizer.from_pretrained(run.base), run.settings.max_length)
        counted = {"rows": len(fitted.rows), "dropped": fitted.dropped, "shortened": fitted.shortened}
        reporter.emit("fitted", **counted, precision=run.precision)
        if not fitted.rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in fitted.dropped.items())
            raise RecipeRefused(
                f"--train must hold at least one row that fits the base. Of {len(found)} in {run.train} none does: "
                f"{reasons}. Use a base whose template renders prompts as they were served, or a larger --max-length."
            )
        return _train(run, recipe, fitted, newest, reporter)


def _train(run: Run, recipe: Recipe, fitted: rows.Fitted, newest: Path | None, reporter: Reporter) -> int:
    trainer = recipe.build(run, fitted.dataset())
    trainer.remove_callback(PrinterCallback)
    if run.init:
        start = {name: torch.from_numpy(tensor) for name, tensor in weights.to_start_from(run.init).items()}
        set_peft_model_state_dict(trainer.model, start, adapter_name="default")
    watch = Watch(run.work, reporter, fitted.tokens)
    trainer.add_callback(watch)
    if newest:
        reporter.emit("resumed", step=int(newest.name.rpartition("-")[2]))
    with watch.over_signals():
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        if watch.stopped is not None:
            return watch.stopped
        if trainer.is_world_process_zero():
            recipe.write(run, trainer)
            reporter.emit(
                "done",
                steps=trainer.state.global_step,
                adapter=str(run.out),
                trained_tokens=round(watch.tokens * run.settings.epochs),
            )
        return 0


def plan(run: Run) -> device.Plan:
    """Raises RecipeRefused for a run that cannot fit."""
    told = run.settings
    return device.plan(
        run.base,
        batch=told.batch_size,
        length=told.max_length,
        rank=told.lora_rank,
        qlora=told.qlora,
        computed_in=run.precision,
        engine_share=run.engine_share,
    )


def arguments(run: Run, planned: device.Plan) -> dict[str, Any]:
    """What all of TRL's configs are told."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    settings = run.settings
    return {
        "output_dir": str(run.work),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": settings.max_length,
        "seed": settings.seed,
        "logging_steps": 1,
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "report_to": reports.prepare(run.report_to, run.work.parent),
        "run_name": run.work.parent.name,
        **planned.arguments(),
    }


def lora(run: Run) -> LoraConfig:
    """Given to TRL as a config and never as a PeftModel: with that TRL adds a frozen copy "ref", makes it the
    reference, and checkpoints then resume without their weights (transformers loads the sub-folder and not the root).
    """
    told = weights.adapter_config(run.base, run.settings.lora_rank)
    kept = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "task_type")
    return LoraConfig(**{key: told[key] for key in kept})


def write_adapter(run: Run, trainer: Any) -> None:
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        for name, tensor in get_peft_model_state_dict(trainer.model).items()
    }
    weights.write_adapter(run.out, tensors, weights.adapter_config(run.base, run.settings.lora_rank))


def spare_work(trl_module: Any) -> None:
    """Two things TRL 1.16 does that are not needed here; guarded by version, for both reach into its modules."""
    if not trl.__version__.startswith("1.16."):
        return
    # It reads all weights to name the file of its own references: tens of seconds for 8B.
    trl_module.hash_module = lambda model: ""
    # Off Triton it runs the LM head over every position, prompts included: with 152k words nine times slower, with the
    # same losses. Delete when https://github.com/huggingface/trl chooses the compact path on CPU by itself.
    if not torch.cuda.is_available():
        trl.trainer.utils._use_triton = lambda device: True
