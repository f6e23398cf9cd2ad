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

from feedback.adapter_files import (
    CONFIG,
    LINEARS,
    WEIGHTS,
    adapter_config,
    config_faults,
    expected_shapes,
    shape_faults,
    text_config,
)

__all__ = ["CONFIG", "LINEARS", "WEIGHTS", "adapter_config", "expected_shapes"]  # as much a part of it for the recipes

Tensors = dict[str, "np.ndarray[Any, Any]"]

# A pocket adapter that answers well has a delta norm near 30; broken ones reach thousands.
LARGEST_NORM = 1e4


def base_config(base: str) -> dict[str, Any]:
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        folder = Path(hf_hub_download(base, "config.json")).parent
    return text_config(folder)


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

    wrong = config_faults(config)
    verdict["config"] = not wrong
    reasons += wrong

    rank = config.get("r") if isinstance(config.get("r"), int) else 0
    wrong = shape_faults(
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
