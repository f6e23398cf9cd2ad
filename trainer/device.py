"""Device: how a run uses what it runs on, decided before it starts.

On a CPU: nothing computed twice, and in the precision that is faster there (trainer/precision.py). On a GPU: bfloat16,
FlashAttention where its kernels are installed, batches of like lengths, and checkpointing or smaller parts only where
memory asks for it. `torchrun -m trainer dpo …` spreads a batch over several GPUs.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from trainer import memory, precision, sharing
from trainer.precision import Precision
from trainer.progress import RecipeRefused
from trainer.weights import base_config


@dataclass(frozen=True)
class Plan:
    is_on_gpu: bool
    pairs_at_once: int
    """On each device."""
    precision: Precision
    accumulation: int = 1
    is_checkpointed: bool = False
    is_quantised: bool = False
    attention: str = "sdpa"

    def arguments(self) -> dict[str, Any]:
        """For TRL's configs, whose defaults are for big GPUs."""
        return {
            "per_device_train_batch_size": self.pairs_at_once,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": self.precision == "bf16",
            "gradient_checkpointing": self.is_checkpointed,
            "use_cpu": not self.is_on_gpu,
            "dataloader_pin_memory": self.is_on_gpu,
        }

    def load(self, base: str) -> Any:
        if not self.is_quantised:
            is_whole = self.is_on_gpu and self.precision == "bf16"
            dtype = torch.bfloat16 if is_whole else torch.float32
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=self.attention)
            if self.precision == "bf16" and not is_whole:
                precision.round_linears(model)
            return model
        from transformers import BitsAndBytesConfig

        nf4 = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.bfloat16,
            attn_implementation=self.attention,
            quantization_config=nf4,
            device_map={"": int(os.environ.get("LOCAL_RANK", "0"))},
        )


def plan(
    base: str,
    *,
    batch: int,
    length: int,
    rank: int,
    qlora: bool,
    computed_in: Precision,
    engine_share: float | None = None,
) -> Plan:
    """Raises RecipeRefused where the run cannot fit, or where QLoRA or a batch cannot be had as asked."""
    share = _share(batch, int(os.environ.get("WORLD_SIZE", "1")))
    if not torch.cuda.is_available():
        if qlora:
            raise RecipeRefused(
                "--qlora must have an NVIDIA GPU: its 4-bit arithmetic is CUDA's. This machine has none. "
                f"Leave --qlora away; on this CPU the base is trained on in {computed_in}."
            )
        return Plan(is_on_gpu=False, pairs_at_once=share, precision=computed_in)
    if qlora and computed_in == "fp32":
        raise RecipeRefused(
            "--precision must be bf16 or auto with --qlora, whose 4-bit weights are computed with in bfloat16. "
            "It is fp32. Leave one of them away."
        )
    if qlora and not _has("bitsandbytes"):
        raise RecipeRefused(
            "--qlora must have the package bitsandbytes, which is not installed. "
            "`pip install bitsandbytes` does that; without --qlora the base is held in bfloat16."
        )
    free, total = torch.cuda.mem_get_info()
    config = base_config(base)
    if engine_share is not None:
        limit = sharing.part(
            config,
            total,
            rank=rank,
            length=length,
            engine=engine_share,
            is_quantised=qlora,
            width=memory.BFLOAT if computed_in == "bf16" else memory.FLOAT,
        ).trainer
        torch.cuda.set_per_process_memory_fraction(limit)
        free = min(free, int(limit * total))
    return on_gpu(config, free, share=share, length=length, rank=rank, qlora=qlora, computed_in=computed_in)


def on_gpu(
    config: Mapping[str, Any], free: int, *, share: int, length: int, rank: int, qlora: bool, computed_in: Precision
) -> Plan:
    """What is decided from numbers alone."""
    width = memory.BFLOAT if computed_in == "bf16" else memory.FLOAT
    fitted = memory.fit(config, free, rank=rank, batch=share, length=length, width=width, is_quantised=qlora)
    return Plan(
        is_on_gpu=True,
        pairs_at_once=fitted.pairs_at_once,
        precision=computed_in,
        accumulation=fitted.accumulation,
        is_checkpointed=fitted.is_checkpointed,
        is_quantised=qlora,
        attention=_fastest_attention() if computed_in == "bf16" else "sdpa",
    )


def _share(batch: int, devices: int) -> int:
    """Pairs of a batch for each device, so that several train as one would."""
    if batch % devices:
        raise RecipeRefused(
            f"--batch-size must be a multiple of the number of processes. It is {batch} and there are {devices}. "
            f"{devices * max(1, batch // devices)} would do."
        )
    return batch // devices


def _fastest_attention() -> str:
    """FlashAttention where its package is, or where `kernels` may fetch it from the Hub; else PyTorch's own."""
    if _has("flash_attn"):
        return "flash_attention_2"
    is_offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    return "kernels-community/flash-attn2" if _has("kernels") and not is_offline else "sdpa"


def agreed(code: int) -> int:
    """The highest of what the processes of a launch say: one that stopped alone would leave the others waiting."""
    if not torch.distributed.is_initialized():
        return code
    said = torch.tensor(code, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return int(said)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
