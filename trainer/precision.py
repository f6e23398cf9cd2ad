"""Precision: in what numbers a run computes. What is trained, its gradients and Adam's moments are fp32 in both.

fp32 everywhere, or bf16: matrix products, attention and the LM head in bfloat16 by autocast, which leaves norms,
softmax, residuals and losses in fp32. References are scored in the precision of the run that asks for them, and kept
apart by it. The gate measures in fp32 on a CPU whatever an adapter was trained in, and in bfloat16 on a GPU.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from trainer.hyperparameters import TINY_WIDTH

Precision = Literal["fp32", "bf16"]
Asked = Literal["auto", "fp32", "bf16"]


def choose(asked: Asked, config: Mapping[str, Any]) -> Precision:
    """auto: bf16 on a GPU; on a CPU where its matrix unit multiplies bfloat16 and the base is large enough to pay.

    Measured by CPU time of a step (docs/benchmarks.md), bf16 against fp32 on a Xeon with AMX: a base of 768 wide took
    0.43 times as long, of 512 and 256 0.86 and 0.84, the pocket model (128) 1.5 times. With its AMX switched off, which
    leaves avx512_bf16, the first three took 1.4, 1.8 and 1.2 times as long as in fp32: so that alone is no reason.
    """
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16"
    return "bf16" if has_matrix_unit() and config["hidden_size"] > TINY_WIDTH else "fp32"


def has_matrix_unit() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def round_linears(model: Any) -> None:
    """Frozen weights as autocast would round them in each step: the same bits, once, in half the memory."""
    words = model.get_input_embeddings().weight
    for module in model.modules():
        # A head that shares the words' weight is left: where words are looked up, they are not rounded.
        if type(module) is torch.nn.Linear and module.weight is not words:
            module.weight = torch.nn.Parameter(module.weight.data.bfloat16(), requires_grad=False)
