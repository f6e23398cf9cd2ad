"""Sharing: how one GPU's memory is parted between vLLM and the trainer, and whether each has enough.

vLLM takes HEED_GPU_SHARE of the whole at its start and keeps it. What is left, less a reserve, is the trainer's, which
is held to it (`torch.cuda.set_per_process_memory_fraction`): a step that needs more fails, and not an answer.
Numbers alone: it needs neither a GPU nor torch. Not measured on one yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer import memory
from trainer.progress import RecipeRefused

RESERVE = 0.05
"""Of the whole, for what neither counts: two CUDA contexts, a display, fragments."""

ENGINE_CONTEXT = 2 * 2**30
"""Bytes of activations, graphs and workspaces that vLLM sets aside."""

SLOTS = 6
"""Adapters that an engine keeps for each served model, as serve/stack.py starts it."""


@dataclass(frozen=True)
class Shares:
    """Of the whole memory: the least and the most that vLLM may have for both to fit, and what the trainer then has."""

    least: float
    most: float
    engine: float

    @property
    def trainer(self) -> float:
        return 1 - RESERVE - self.engine


def engine_needs(config: Mapping[str, Any], *, rank: int, models: int = 1) -> int:
    """Bytes for weights in bfloat16, adapter slots, and a KV cache that holds one context of full length."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    of_token = 2 * config["num_hidden_layers"] * heads * width * memory.BFLOAT
    slots = SLOTS * models * memory.adapter_parameters(config, rank) * memory.BFLOAT
    cache = of_token * config.get("max_position_embeddings", 4096)
    return int(ENGINE_CONTEXT + memory.parameters(config) * memory.BFLOAT + slots + cache)


def part(
    config: Mapping[str, Any],
    total: int,
    *,
    rank: int,
    length: int,
    engine: float | None = None,
    is_quantised: bool = False,
    width: int = memory.BFLOAT,
    models: int = 1,
) -> Shares:
    """`engine` is vLLM's share where it is set; without it the middle of what fits. Raises RecipeRefused."""
    engine_bytes = engine_needs(config, rank=rank, models=models)
    trainer_bytes = memory.needed(
        config, rank=rank, pairs=1, length=length, is_checkpointed=True, width=width, is_quantised=is_quantised
    )
    least, most = engine_bytes / total, 1 - RESERVE - trainer_bytes / memory.USABLE / total
    needs = (
        f"The GPU's {total / 2**30:.1f} GiB must hold vLLM, which needs about {engine_bytes / 2**30:.1f} GiB, and "
        f"beside it the trainer, which needs {trainer_bytes / memory.USABLE / 2**30:.1f} GiB for one pair of {length} "
        "tokens."
    )
    if least > most:
        would = "" if is_quantised else " HEED_QLORA=on,"
        raise RecipeRefused(
            f"{needs} They do not fit together. A smaller base,{would} a GPU with more memory or HEED_GPU_POLICY=sleep "
            "would do."
        )
    if engine is not None and not least <= engine <= most:
        raise RecipeRefused(
            f"{needs} HEED_GPU_SHARE={engine:g} leaves {'the trainer' if engine > most else 'vLLM'} too little. "
            f"One from {least:.2f} to {most:.2f} would do, or HEED_GPU_POLICY=sleep."
        )
    return Shares(least, most, engine if engine is not None else (least + most) / 2)
