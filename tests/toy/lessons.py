"""Lessons: the project's own recipe, taught to the toy, and what became of its policy.

Everything goes through `trainer.dpo.train`, the function behind `python -m trainer dpo`. Preferred-FT is that recipe
too: with a beta of nearly nothing the sigmoid term has no gradient, and what is left is the likelihood of the chosen.
Chained references, which the recipe refuses to have, are made by merging the adapter into a base of its own.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toy.exact import Measured, Yardstick, normalised
from tests.toy.world import Row, World, distribution
from trainer import dpo
from trainer.progress import Reporter
from trainer.training import Run

# The pocket model's batches and rate are for hundreds of pairs; these are for thousands in 141 steps. The
# likelihood term is a real base's, which is TRL's.
RECIPE: dict[str, Any] = {
    "epochs": 3.0, "batch_size": 64, "learning_rate": 3e-3, "lora_rank": 16,
    "sft_weight": 0.2, "sft_doubt": 0.0, "sft_length": 0.0,
}  # fmt: skip


class Unheard(Reporter):
    """A reporter that leaves standard output alone."""

    def __init__(self) -> None:
        pass

    def emit(self, event: str, **facts: Any) -> None:
        pass


class School:
    """One world, its base, and a folder for everything that is taught in it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.world = World(seed)
        self.folder = folder / f"world-{seed}"
        self.base = self.folder / "base"
        self.world.build_base(self.base)
        self.reference = self.policy()
        self.yardstick = Yardstick(self.reference, self.world.rewards)

    def pairs(self, count: int, seed: int = 1, flipped: float = 0.0, policy: torch.Tensor | None = None) -> list[Row]:
        return self.world.pairs(normalised(self.reference if policy is None else policy), count, seed, flipped)

    def policy(self, adapter: Path | None = None, base: Path | None = None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(base or self.base)
        if adapter:
            model = PeftModel.from_pretrained(model, str(adapter))
        return distribution(model.eval(), AutoTokenizer.from_pretrained(self.base))

    def teach(self, pairs: Sequence[Row], base: Path | None = None, **hyperparameters: Any) -> Path:
        """The adapter's folder."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        train = place / "train.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in pairs))
        settings = dpo.Hyperparameters(**(RECIPE | {"checkpoint_steps": 10_000} | hyperparameters))
        run = Run(
            str(base or self.base), train, place / "adapter", place / "work", None, settings, self.folder / "references"
        )
        torch.manual_seed(self.world.seed)  # the adapter begins as it would in a process of its own
        assert dpo.train(run, Unheard()) == 0
        return run.out

    def lesson(self, pairs: Sequence[Row], **hyperparameters: Any) -> Measured:
        return self.measure(self.teach(pairs, **hyperparameters))

    def measure(self, adapter: Path, base: Path | None = None) -> Measured:
        return self.yardstick.measure(self.policy(adapter, base))

    def merged(self, adapter: Path) -> Path:
        """A base of its own: the old one with the adapter added to its weights."""
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), str(adapter))
        folder = adapter.with_name("merged")
        model.merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.base).save_pretrained(folder)
        return folder
