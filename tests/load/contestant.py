"""One training for `bench_train`, in a process of its own: `python -m tests.load.contestant WHO RACE.json`.

WHO is `heed`, `defaults` (TRL as it comes), or `tuned` and `tuned_bf16` (TRL with every option that an expert would set
for this device, in fp32 and in bfloat16).
All three get the same pairs, LoRA, optimiser and threads. Prints its figures as JSON on standard output.
"""

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Race:
    base: str
    train: str
    folder: str
    threads: int
    epochs: float
    batch_size: int
    max_length: int
    is_on_gpu: bool
    learning_rate: float = 1e-3
    beta: float = 0.5
    sft_weight: float = 2.0
    rank: int = 16

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


@dataclass(frozen=True)
class Figures:
    cpu_s: float
    """Reference pass and training."""
    wall_s: float
    whole_cpu_s: float
    """The same with imports, loading and writing the adapter: the job."""
    tokens: int
    """Of the pairs, padding not counted, times epochs; so the same for all."""
    losses: list[float]
    peak_bytes: int
    precision: str


def main(who: str, race: Race) -> Figures:
    os.environ["HEED_THREADS"] = str(race.threads)
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if who == "heed":
        from trainer import machine

        machine.prepare_environment(race.base)
    else:
        os.environ["OMP_NUM_THREADS"] = str(race.threads)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin beside a busy neighbour would count as work
    import torch
    from trl import DPOTrainer

    from trainer import dpo

    _ = DPOTrainer, dpo  # imported before the clock starts: the same for all, and counted in a job
    torch.manual_seed(0)
    before, began = _cpu_s(), time.monotonic()
    trainer = _heed(race) if who == "heed" else _trl(race, who)
    trainer.train()
    cpu_s, wall_s = _cpu_s() - before, time.monotonic() - began
    trainer.save_model(str(Path(race.folder) / "saved"))
    tokens = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset
    )
    return Figures(
        cpu_s=cpu_s,
        wall_s=wall_s,
        whole_cpu_s=_cpu_s(),
        tokens=round(tokens * race.epochs),
        losses=[each["loss"] for each in trainer.state.log_history if "loss" in each],
        peak_bytes=torch.cuda.max_memory_allocated()
        if race.is_on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        precision="bf16" if trainer.args.bf16 else "fp32",
    )


def _heed(race: Race) -> Any:
    from transformers import AutoTokenizer

    from trainer import dpo, rows
    from trainer.training import Run

    settings = dpo.Hyperparameters(
        beta=race.beta,
        epochs=race.epochs,
        batch_size=race.batch_size,
        learning_rate=race.learning_rate,
        sft_weight=race.sft_weight,
        sft_doubt=0.0,  # this and the next: as TRL's
        sft_length=0.0,
        lora_rank=race.rank,
        max_length=race.max_length,
        checkpoint_steps=100_000,
    )
    folder = Path(race.folder)
    run = Run(race.base, Path(race.train), folder / "adapter", folder / "work", None, settings)
    tokenizer = AutoTokenizer.from_pretrained(race.base)
    fitted = rows.fit(rows.read(run.train, dpo.ANSWERS), dpo.ANSWERS, tokenizer, race.max_length)
    return dpo.build_trainer(run, fitted.dataset())


def _trl(race: Race, who: str) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from trainer import dpo, rows, weights

    # What is learned, which is the same for all, and no output; whatever decides the speed is TRL's own choice here.
    task: dict[str, Any] = {
        "output_dir": str(Path(race.folder) / "work"),
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, race.sft_weight],
        "beta": race.beta,
        "num_train_epochs": race.epochs,
        "per_device_train_batch_size": race.batch_size,
        "learning_rate": race.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": race.max_length,
        "seed": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": not race.is_on_gpu,
    }
    tuned: dict[str, Any] = {
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 4 * race.batch_size,
        "gradient_checkpointing": False,
        "bf16": who == "tuned_bf16",
    }
    trainer = DPOTrainer(
        model=race.base,
        args=DPOConfig(**task, **({} if who == "defaults" else tuned)),
        train_dataset=Dataset.from_list(rows.read(Path(race.train), dpo.ANSWERS)),
        peft_config=LoraConfig(
            r=race.rank, lora_alpha=2 * race.rank, target_modules=list(weights.LINEARS), task_type="CAUSAL_LM"
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(main(sys.argv[1], Race(**json.loads(Path(sys.argv[2]).read_text()))))))
