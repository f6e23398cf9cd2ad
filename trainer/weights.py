"""Adapter files: what one may hold, whether it is sound, and the zero adapter.

Reads safetensors without torch, so any process may judge an adapter. Accepts only what Heed's own recipe
writes: a plain LoRA on the seven linears of each layer, every tensor there, of the exact shape, and finite.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Tensors = dict[str, "np.ndarray[Any, Any]"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Named one by one and not "all-linear", so that an adapter's config means the same everywhere.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
LINEARS = (*ATTENTION, *FEED_FORWARD)
# A pocket adapter that answers well has a delta norm near 30; broken ones reach thousands.
LARGEST_NORM = 1e4


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


def base_config(base: str) -> dict[str, Any]:
    path = Path(base) / "config.json"
    if not Path(base).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(base, "config.json"))
    config: dict[str, Any] = json.loads(path.read_text())
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


def write_adapter(
    folder: Path, tensors: Tensors, config: dict[str, Any], more: Mapping[str, bytes] | None = None
) -> None:
    """Writes beside and renames into place: a reader sees a whole adapter or none. `more` are further files by name."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        save_file(tensors, beside / WEIGHTS)
        (beside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name, content in (more or {}).items():
            (beside / name).write_bytes(content)
        for path in (*beside.iterdir(), beside):
            # The rename may reach the disk before the bytes do, unless they are told to go first.
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def scale(folder: Path, eta: float, out: Path) -> None:
    """The adapter with its change multiplied by eta: vLLM and PEFT multiply by lora_alpha / r (WARP 2406.16768)."""
    config = json.loads((folder / CONFIG).read_text())
    shutil.rmtree(out, ignore_errors=True)
    write_adapter(out, _tensors(folder / WEIGHTS)[0], {**config, "lora_alpha": config["lora_alpha"] * eta})


def to_start_from(folder: Path) -> Tensors:
    """What a run that goes on from the adapter starts with: its tensors at the usual scaling.

    One that is served scaled down would else be at its full strength again.
    """
    config = json.loads((folder / CONFIG).read_text())
    factor = config["lora_alpha"] / adapter_config("", config["r"])["lora_alpha"]
    tensors, _ = _tensors(folder / WEIGHTS)
    return {name: tensor * np.float32(factor) if ".lora_B." in name else tensor for name, tensor in tensors.items()}


def write_zero_adapter(base: str, folder: Path, rank: int) -> bool:
    """An adapter that changes nothing: lora_B is zero. vLLM's CPU build serves the base through it.

    False when a fitting one was there already.
    """
    if folder.exists():
        if not (reasons := weigh(folder, base, may_be_zero=True)["reasons"]):
            return False
        if not set(os.listdir(folder)) <= {WEIGHTS, CONFIG}:
            raise FileExistsError(
                f"--out must be a new folder or an older zero adapter. {folder} holds something else ({reasons[0]}). "
                "Name another folder."
            )
        shutil.rmtree(folder)
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(0.0, 0.02, shape).astype(np.float32)
        if ".lora_A." in name
        else np.zeros(shape, np.float32)
        for name, shape in expected_shapes(base_config(base), rank).items()
    }
    write_adapter(folder, tensors, adapter_config(base, rank))
    return True


def digest(folder: Path) -> str:
    """sha256 over both files, names included."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        total.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


def weigh(folder: Path, base: str, *, may_be_zero: bool = False) -> dict[str, Any]:
    """The verdict on an adapter folder: `finite`, `shapes`, `config`, `changes` each true or false, and why not."""
    reasons: list[str] = []
    verdict: dict[str, Any] = {
        **dict.fromkeys(("finite", "shapes", "config", "changes"), False),
        **dict.fromkeys(("norm", "sha256")),
        "reasons": reasons,
    }
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors, kinds = _tensors(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        reasons.append(f"{folder} must hold {CONFIG} and {WEIGHTS}; reading them gave: {error}")
        return verdict
    verdict["sha256"] = digest(folder)

    wrong = _config_faults(config)
    verdict["config"] = not wrong
    reasons += wrong

    rank = config.get("r") if isinstance(config.get("r"), int) else 0
    wrong = _shape_faults(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected_shapes(base_config(base), rank)
    )
    wrong += [
        f"tensors must be F32 or F16; {name} is {kind}" for name, kind in kinds.items() if kind not in ("F32", "F16")
    ]
    verdict["shapes"] = not wrong
    reasons += wrong[:5]

    spoiled = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    verdict["finite"] = bool(tensors) and not spoiled
    if spoiled:
        reasons.append(
            f"weights must be finite; {len(spoiled)} of {len(tensors)} tensors hold NaN or Inf, first {spoiled[0]}"
        )
    if verdict["finite"] and verdict["shapes"]:
        scale = config.get("lora_alpha", 0) / rank
        verdict["norm"] = norm = delta_norm(tensors, scale)
        verdict["changes"] = norm > 0
        if norm == 0 and not may_be_zero:
            reasons.append("an adapter must change the base; every lora_B here is zero, so training moved nothing")
        if norm > LARGEST_NORM:
            reasons.append(
                f"the change must stay below a norm of {LARGEST_NORM:g}; it is {norm:g}, a sign of divergence"
            )
    return verdict


def delta_norm(tensors: Tensors, scale: float) -> float:
    """Frobenius norm of all changes scale * B A together, without writing any of them out:
    |BA|^2 = tr((B'B)(AA')), two matrices of rank times rank."""
    total = 0.0
    for name, down in tensors.items():
        if ".lora_A." in name:
            a, b = down.astype(np.float64), tensors[name.replace(".lora_A.", ".lora_B.")].astype(np.float64)
            total += float(np.sum((b.T @ b) * (a @ a.T)))
    return scale * float(np.sqrt(max(total, 0.0)))


def _tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    tensors, kinds = {}, {}
    with safe_open(path, framework="np") as stored:
        for name in stored.keys():  # noqa: SIM118  (it cannot be iterated)
            kinds[name] = stored.get_slice(name).get_dtype()
            if kinds[name] in ("F32", "F16", "F64"):
                tensors[name] = stored.get_tensor(name)
    return tensors, kinds


def _config_faults(config: dict[str, Any]) -> list[str]:
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
    if not isinstance(config.get("r"), int) or not 1 <= config["r"] <= 512:
        faults.append(f"{CONFIG}: r must be a whole number from 1 to 512; it is {config.get('r')!r}")
    if set(config.get("target_modules") or ()) != set(LINEARS):
        faults.append(f"{CONFIG}: target_modules must be {sorted(LINEARS)}; it is {config.get('target_modules')!r}")
    return sorted(faults)


def _shape_faults(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, int]]) -> list[str]:
    faults = [f"tensor {name} is missing" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"tensor {name} does not belong to this base" for name in sorted(found.keys() - wanted.keys())]
    return faults + [
        f"tensor {name} must have shape {wanted[name]} on this base; it has {found[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
