"""Hyperparameters: what a run is told, by the size of its base, the operator's settings and the job's wishes."""

from collections.abc import Mapping
from typing import Any, Final

from feedback.records import Job
from trainer.settings import WorkshopSettings

Hyperparameters = dict[str, int | float]

TINY_WIDTH = 512
"""A hidden size up to here is a pocket model; the smallest chat models people use are about 900 wide."""

# The recipe's own defaults, compared with the pocket model on topics kept out of the votes (docs/training.md): half of
# a crowd's pairs may rest on a mistake, and its answers have 12 tokens or 45. Its longest row is a fifth of 512 tokens.
TINY: Final[Hyperparameters] = {
    "beta": 0.5, "epochs": 3.0, "batch_size": 8, "learning_rate": 1e-3, "sft_weight": 4.0, "sft_doubt": 2.0,
    "sft_length": 25.0, "lora_rank": 16, "max_length": 512,
}  # fmt: skip
# TRL's LoRA rate for DPO (5e-6 in trl/scripts/dpo.py), one pass as over-optimisation begins within the first (Rafailov
# 2406.02900), and Llama 3's likelihood term of 0.2, which believes every choice: doubt was not measured on a real base.
# Chats with a long history fit in 2048 tokens.
REAL: Final[Hyperparameters] = {
    "beta": 0.1, "epochs": 1.0, "batch_size": 8, "learning_rate": 5e-6, "sft_weight": 0.2, "sft_doubt": 0.0,
    "sft_length": 0.0, "lora_rank": 16, "max_length": 2048,
}  # fmt: skip

# As DPO's, see docs/training.md for what became of the pocket model.
TINY_UNPAIRED: Final[Hyperparameters] = {
    "beta": 0.5, "epochs": 3.0, "batch_size": 8, "learning_rate": 1e-3, "lora_rank": 16, "max_length": 512
}  # fmt: skip
# KTO's paper (2402.01306): 5e-6, batches of 8 and more, beta 0.1.
REAL_UNPAIRED: Final[Hyperparameters] = {
    "beta": 0.1, "epochs": 1.0, "batch_size": 8, "learning_rate": 5e-6, "lora_rank": 16, "max_length": 2048
}  # fmt: skip

TINY_SUPERVISED: Final[Hyperparameters] = {
    "epochs": 3.0, "batch_size": 8, "learning_rate": 1e-3, "lora_rank": 16, "max_length": 512
}  # fmt: skip
# TRL's 2e-5 for whole models, times ten for a LoRA ("LoRA Without Regret", Schulman 2025).
REAL_SUPERVISED: Final[Hyperparameters] = {
    "epochs": 1.0, "batch_size": 8, "learning_rate": 2e-4, "lora_rank": 16, "max_length": 2048
}  # fmt: skip

TINY_REWARD: Final[Hyperparameters] = TINY_SUPERVISED
# TRL's own default for reward models (RewardConfig), one pass: they overfit in the second (InstructGPT, appendix C.2).
REAL_REWARD: Final[Hyperparameters] = REAL_SUPERVISED | {"learning_rate": 1e-4}

BY_METHOD: Final = {
    "dpo": (TINY, REAL),
    "unpaired": (TINY_UNPAIRED, REAL_UNPAIRED),
    "supervised": (TINY_SUPERVISED, REAL_SUPERVISED),
    "reward": (TINY_REWARD, REAL_REWARD),
}

# Pairs that come after a round until its own count half. The pocket model's crowds turn from one taste to another
# between two jobs of 300 pairs (docs/training.md). People rarely change their minds all at once, so a real base forgets
# over ten jobs of HEED_TRAIN_EVERY_PAIRS: an estimate, not a measurement.
TINY_HALF_LIFE, REAL_HALF_LIFE = 50.0, 5000.0


def half_life(base_width: int, settings: WorkshopSettings) -> float:
    return settings.half_life_pairs or (TINY_HALF_LIFE if base_width <= TINY_WIDTH else REAL_HALF_LIFE)


def choose(base_width: int, settings: WorkshopSettings, job: Job, method: str = "dpo") -> Hyperparameters:
    """A job's wishes go before the settings, and those before the size of the base. `auto` is no wish."""
    tiny, real = BY_METHOD[method]
    chosen = dict(tiny if base_width <= TINY_WIDTH else real)
    for name in chosen.keys() & {"beta", "epochs", "batch_size", "learning_rate"}:
        if (value := getattr(settings, name)) is not None:
            chosen[name] = value
    wishes = _wishes(job.method, method)
    for wish, name in (("beta", "beta"), ("n_epochs", "epochs"), ("batch_size", "batch_size")):
        if wish in wishes and name in chosen:
            chosen[name] = wishes[wish]
    chosen["batch_size"] = int(chosen["batch_size"])
    chosen["learning_rate"] *= wishes.get("learning_rate_multiplier", 1.0)
    chosen["checkpoint_steps"] = settings.checkpoint_steps
    return chosen


def as_flags(chosen: Mapping[str, int | float]) -> list[str]:
    """For the command line of `python -m trainer METHOD`."""
    return [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", f"{value:.12g}")]


def _wishes(asked: Mapping[str, Any], method: str) -> dict[str, float]:
    """Under the method that was asked for; of a job that named none, under any."""
    given = asked.get(method) or asked.get("dpo") or {}
    told = given.get("hyperparameters") or {}
    return {name: value for name, value in told.items() if isinstance(value, int | float)}
