"""An adapter's files by their letter: what its config may say, which tensors it has and in which shapes.

Both rooms judge by this: the workshop before it publishes (trainer/weights.py) and the gateway before an engine is
given the files (serve/weights.py), for vLLM loads much that it then serves wrongly. Accepts only what Heed's own recipe
writes: a plain LoRA on the seven linears of each layer.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Shape = tuple[int, ...]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Named one by one and not "all-linear", so that an adapter's config means the same everywhere.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
LINEARS = (*ATTENTION, *FEED_FORWARD)

NAME = re.compile(
    r"base_model\.model\.model\.layers\.\d+\."
    rf"(?:self_attn\.(?:{'|'.join(ATTENTION)})|mlp\.(?:{'|'.join(FEED_FORWARD)}))\.lora_([AB])\.weight"
)


def adapter_config(base: str, rank: int) -> dict[str, Any]:
    """The whole config of every adapter here. Scaling is alpha / rank = 2, the field's habit."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LINEARS),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


class Tensor(NamedTuple):
    """Where in the file it lies, as its header says."""

    dtype: str
    shape: Shape
    start: int
    end: int


def tensors_of(file: bytes) -> dict[str, Tensor]:
    """What a safetensors file says that it holds. Raises ValueError."""
    start = 8 + int.from_bytes(file[:8], "little")
    try:
        header = json.loads(file[8:start])
        header.pop("__metadata__", None)
        found = {
            name: Tensor(
                str(told["dtype"]),
                tuple(told["shape"]),
                start + told["data_offsets"][0],
                start + told["data_offsets"][1],
            )
            for name, told in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError("it is no safetensors file") from error
    if any(not start <= one.start <= one.end <= len(file) for one in found.values()):
        raise ValueError("it ends before its tensors do")
    return found


def text_config(folder: Path) -> dict[str, Any]:
    """Of a base model's folder, the part about the text of one that also sees. Raises OSError."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    return text


def expected_shapes(config: dict[str, Any], rank: int) -> dict[str, tuple[int, int]]:
    """Tensor names and shapes that a LoRA of this rank has on the base of this config (Llama, Qwen, Mistral)."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    sizes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    shapes = {}
    for layer in range(config["num_hidden_layers"]):
        for linear, (wide_in, wide_out) in sizes.items():
            block = "self_attn" if linear in ATTENTION else "mlp"
            name = f"base_model.model.model.layers.{layer}.{block}.{linear}"
            shapes[f"{name}.lora_A.weight"] = (rank, wide_in)
            shapes[f"{name}.lora_B.weight"] = (wide_out, rank)
    return shapes


def config_faults(config: dict[str, Any]) -> list[str]:
    """An allow-list: what our config says must be said exactly so, and everything else must be empty."""
    wanted = adapter_config(str(config.get("base_model_name_or_path")), 0)
    free = {"base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "inference_mode", "target_modules"}
    faults = [
        f"{CONFIG}: {key} must be {wanted[key]!r}; it is {config.get(key)!r}"
        for key in wanted.keys() - free
        if config.get(key) != wanted[key]
    ]
    harmless = {"peft_version", "revision", "auto_mapping"}
    faults += [
        f"{CONFIG}: {key} must be empty, vLLM or this recipe does not serve it; it is {value!r}"
        for key, value in config.items()
        if key not in wanted.keys() | harmless and value
    ]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 512:
        faults.append(f"{CONFIG}: r must be a whole number from 1 to 512; it is {rank!r}")
    elif not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= 2 * rank:
        faults.append(f"{CONFIG}: lora_alpha must be a number above 0 and at most twice r; it is {alpha!r}")
    if set(config.get("target_modules") or ()) != set(LINEARS):
        faults.append(f"{CONFIG}: target_modules must be {sorted(LINEARS)}; it is {config.get('target_modules')!r}")
    return sorted(faults)


def shape_faults(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    faults = [f"tensor {name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"tensor {name} does not belong to this base" for name in sorted(found.keys() - wanted.keys())]
    return faults + [
        f"tensor {name} must have shape {wanted[name]} on this base; it has {found[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]


def pair_faults(found: Mapping[str, Shape], rank: int) -> list[str]:
    """Where the base is not known: each tensor has a name of the recipe's, its other half, and the config's rank."""
    faults = [f"tensor {name} is none of the recipe's" for name in sorted(found) if not NAME.fullmatch(name)]
    for name, shape in sorted(found.items()):
        if not (named := NAME.fullmatch(name)):
            continue
        half = named[1]
        other = name[: named.start(1)] + ("B" if half == "A" else "A") + name[named.end(1) :]
        if other not in found:
            faults.append(f"tensor {other} is missing")
        if len(shape) != 2 or shape[0 if half == "A" else 1] != rank:
            faults.append(f"tensor {name} must have rank {rank}, as {CONFIG} says; its shape is {shape}")
    return faults
