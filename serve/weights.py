"""Are an adapter's files what vLLM will serve rightly? Looked at before it is given them.

It loads a rank that differs from the config's, layers that the base has not, another base's shapes, and says 200. And
on CPU one request on NaN weights leaves NaN in freed KV blocks, and from then on the base and every other adapter
answer with NaN (a probe did it on vLLM 0.32), so finding out by a probe is too late.

No torch and no numpy here: a strided slice and `translate` run at the speed of C, 0.1 s for an adapter of 80 MB. The
exact norm of the change is the workshop's to measure, on the bytes whose digest is compared here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedback.adapter_files import (
    CONFIG,
    WEIGHTS,
    config_faults,
    expected_shapes,
    pair_faults,
    shape_faults,
    tensors_of,
    text_config,
)

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}

# The byte of the sign and the upper exponent: of F32 and BF16 at 2^15 and above, of F16 with every exponent bit set. A
# sound adapter's weights are below one.
SUSPECT = {
    "F32": bytes((byte & 0x7F) >= 0x47 for byte in range(256)),
    "BF16": bytes((byte & 0x7F) >= 0x47 for byte in range(256)),
    "F16": bytes((byte & 0x7C) == 0x7C for byte in range(256)),
}

TOLD = 3
"""Faults of one kind, for one that is made for another base has hundreds."""


def base_config(base: str) -> dict[str, Any] | None:
    """Of a folder, or of a Hub id that an engine or a trainer of this machine has downloaded; None where neither is
    here."""
    folder = Path(base)
    if not (folder / "config.json").is_file():
        try:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(base, "config.json")
        except (ModuleNotFoundError, ValueError):  # heed[cpu] and heed[gpu] have it; it is no Hub id
            return None
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return text_config(folder)


def faults(adapter: Path, base: Mapping[str, Any] | None, *, may_be_zero: bool = False) -> list[str]:
    """In words; `base` is the base model's config where it is known. Raises OSError."""
    file = (adapter / WEIGHTS).read_bytes()
    try:
        config = json.loads((adapter / CONFIG).read_text())
        tensors = tensors_of(file)
    except ValueError as error:
        return [f"{adapter.name} must hold {CONFIG} and {WEIGHTS}; reading them gave: {error}"]
    if found := config_faults(config):
        return found[:TOLD]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = shape_faults(shapes, expected_shapes(dict(base), config["r"])) if base else pair_faults(shapes, config["r"])
    wrong += [f"tensor {name} has the type {one.dtype}" for name, one in tensors.items() if one.dtype not in WIDTHS]
    if wrong or not tensors:
        return wrong[:TOLD] or ["it holds no tensors"]
    data = {name: file[tensor.start : tensor.end] for name, tensor in tensors.items()}
    spoiled = [name for name, tensor in tensors.items() if not _is_sound(tensor.dtype, data[name])]
    if spoiled:
        return [f"the weights are not all finite numbers below 2^15, first in {spoiled[0]}"]
    if not may_be_zero and not any(any(part) for name, part in data.items() if ".lora_B." in name):
        return ["every lora_B is zero, so it changes nothing"]
    return []


def _is_sound(dtype: str, data: bytes) -> bool:
    return 1 not in data[WIDTHS[dtype] - 1 :: WIDTHS[dtype]].translate(SUSPECT[dtype])
