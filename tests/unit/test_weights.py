"""Adapter files are judged without torch, and every fault has a reason that says what would work."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trainer.weights import (
    CONFIG,
    WEIGHTS,
    Tensors,
    adapter_config,
    delta_norm,
    digest,
    expected_shapes,
    weigh,
    write_adapter,
    write_zero_adapter,
)

BASE = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BASE))
    return str(folder)


@pytest.fixture
def adapter(base: str, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in expected_shapes(BASE, 4).items()}
    write_adapter(tmp_path / "adapter", tensors, adapter_config(base, 4))
    return tmp_path / "adapter"


def rewrite(adapter: Path, tensors: Tensors) -> None:
    save_file(tensors, adapter / WEIGHTS)


def test_a_sound_adapter_has_no_fault(adapter: Path, base: str) -> None:
    verdict = weigh(adapter, base)

    assert verdict["reasons"] == []
    assert verdict["finite"]
    assert verdict["shapes"]
    assert verdict["config"]
    assert verdict["changes"]
    assert verdict["sha256"] == digest(adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_is_enough(adapter: Path, base: str, value: float) -> None:
    tensors = load_file(adapter / WEIGHTS)
    tensors[min(tensors)][0, 0] = value
    rewrite(adapter, tensors)

    verdict = weigh(adapter, base)

    assert not verdict["finite"]
    assert "NaN or Inf" in verdict["reasons"][0]


def test_a_missing_a_foreign_and_a_misshapen_tensor_are_each_named(adapter: Path, base: str) -> None:
    tensors = load_file(adapter / WEIGHTS)
    first, second = sorted(tensors)[:2]
    tensors["lm_head.weight"] = tensors.pop(first)
    tensors[second] = tensors[second][:-1].copy()
    rewrite(adapter, tensors)

    verdict = weigh(adapter, base)

    assert not verdict["shapes"]
    assert len(verdict["reasons"]) == 3
    for name in (first, second, "lm_head.weight"):
        assert any(name in reason for reason in verdict["reasons"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("rank_pattern", {"q_proj": 64}),
        ("trainable_token_indices", [1]),
        ("target_modules", ["q_proj"]),
        ("r", "16"),
        ("peft_type", "IA3"),
        ("never_heard_of", 1),
    ],
)
def test_a_config_outside_the_allow_list_is_refused(adapter: Path, base: str, key: str, value: object) -> None:
    config = json.loads((adapter / CONFIG).read_text()) | {key: value}
    (adapter / CONFIG).write_text(json.dumps(config))

    verdict = weigh(adapter, base)

    assert not verdict["config"]
    assert any(f"{key} must" in reason for reason in verdict["reasons"])


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_torn_file_is_a_reason_and_not_a_traceback(adapter: Path, base: str, name: str) -> None:
    (adapter / name).write_bytes((adapter / name).read_bytes()[:-40])

    assert str(adapter) in weigh(adapter, base)["reasons"][0]


def test_the_zero_adapter_changes_nothing_and_is_written_once(base: str, tmp_path: Path) -> None:
    out = tmp_path / "zero"

    assert write_zero_adapter(base, out, 4)
    before = digest(out)
    assert not write_zero_adapter(base, out, 4)

    assert digest(out) == before
    assert weigh(out, base, may_be_zero=True)["reasons"] == []
    assert weigh(out, base)["reasons"] == [
        "an adapter must change the base; every lora_B here is zero, so training moved nothing"
    ]


def test_a_folder_of_something_else_is_never_replaced_by_a_zero_adapter(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(FileExistsError, match="Name another folder"):
        write_zero_adapter(base, tmp_path / "mine", 4)

    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_norm_is_that_of_the_written_out_change(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)

    change = [tensors[name.replace("_A", "_B")] @ tensors[name] for name in tensors if "lora_A" in name]

    written_out = 2 * np.sqrt(sum(float((each.astype(np.float64) ** 2).sum()) for each in change))
    assert delta_norm(tensors, 2.0) == pytest.approx(written_out, rel=1e-5)
