"""What vLLM would load and serve wrongly is told before it is given the files, and in words."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from feedback.adapter_files import CONFIG, WEIGHTS, expected_shapes
from serve.weights import WIDTHS, base_config, faults
from tests.scripted_engine import TINY, write_adapter

Json = dict[str, Any]


def encode(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":  # the upper half of an F32
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'e'}", *values)


def rewrite(folder: Path, values: list[float], dtype: str = "F32", shapes: Json | None = None) -> Path:
    """Every tensor full of zeros but the last, which begins with `values`."""
    header, data = {}, b""
    for name, shape in sorted((shapes or expected_shapes(TINY, 8)).items()):
        size = WIDTHS.get(dtype, 8) * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    told, begun = json.dumps(header).encode(), encode(dtype, values) if dtype in WIDTHS else b""
    last = data[: header[name]["data_offsets"][0]] + begun
    data = last + bytes(len(data) - len(last))
    (folder / WEIGHTS).write_bytes(len(told).to_bytes(8, "little") + told + data)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", b"one")


@pytest.mark.parametrize("base", [TINY, None])
def test_a_sound_adapter_has_no_fault_whether_the_base_is_known_or_not(adapter: Path, base: Json | None) -> None:
    assert faults(adapter, base) == []


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_what_is_not_a_number_is_found_wherever_it_is(dtype: str, adapter: Path) -> None:
    for broken in (math.nan, -math.nan, math.inf, -math.inf):
        assert "not all finite" in faults(rewrite(adapter, [0.5, -0.5, broken, 1.0], dtype), TINY)[0]

    largest = 65504.0 if dtype == "F16" else 32000.0
    assert faults(rewrite(adapter, [0.0, -0.0, 1e-7, largest, -largest], dtype), TINY) == []


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_weights_that_only_divergence_makes_so_large_are_found(dtype: str, adapter: Path) -> None:
    assert "below 2^15" in faults(rewrite(adapter, [0.5, -32768.0], dtype), TINY)[0]


def test_an_adapter_that_changes_nothing_is_the_zero_adapter_or_a_fault(adapter: Path) -> None:
    rewrite(adapter, [0.0])

    assert faults(adapter, TINY) == ["every lora_B is zero, so it changes nothing"]
    assert faults(adapter, TINY, may_be_zero=True) == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA'"),
        ({"use_dora": True}, "use_dora must be False"),
        ({"bias": "all"}, "bias must be 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be None"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern must be empty"),
        ({"target_modules": ["lm_head"]}, "target_modules must be"),
        ({"r": "8"}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"lora_alpha": 1e6}, "lora_alpha must be a number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"r": 16}, "rank"),
    ],
)
def test_a_config_that_vllm_would_misread_is_refused(tmp_path: Path, said: Json, words: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", b"one", **said)

    assert words in faults(adapter, None)[0]


def test_layers_and_shapes_of_another_base_are_found_where_the_base_is_known(adapter: Path) -> None:
    deeper = faults(adapter, TINY | {"num_hidden_layers": 2})
    wider = faults(adapter, TINY | {"hidden_size": 4})
    further = faults(rewrite(adapter, [1.0], shapes=expected_shapes(TINY | {"num_hidden_layers": 3}, 8)), TINY)

    assert "layers.1.mlp.down_proj.lora_A.weight is missing" in deeper[0]
    assert "must have shape" in wider[0]
    assert "layers.1.mlp.down_proj.lora_A.weight does not belong to this base" in further[0]


def test_the_base_is_known_from_its_folder_or_from_what_was_downloaded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--makers--model"
    snapshot = repository / "snapshots" / "abc"
    for folder, told in ((snapshot, {"text_config": TINY}), (tmp_path / "folder", TINY)):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(told))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    known = [base_config(base) for base in (str(tmp_path / "folder"), "makers/model", "makers/other", "/no/folder")]

    assert known == [TINY, TINY, None, None]


def test_half_a_pair_and_a_foreign_tensor_are_found_where_it_is_not(adapter: Path) -> None:
    shapes: Json = dict(expected_shapes(TINY, 8))
    gone = shapes.pop(min(shapes))
    found = faults(rewrite(adapter, [1.0], shapes=shapes | {"lm_head.weight": gone}), None)

    assert found[0] == "tensor lm_head.weight is none of the recipe's"
    assert "lora_A.weight is missing" in found[1]


def test_files_that_are_no_weights_are_a_fault(adapter: Path) -> None:
    assert "has the type I64" in faults(rewrite(adapter, [], "I64"), TINY)[0]
    whole = (adapter / WEIGHTS).read_bytes()
    for torn in (b"", b"junk", whole[:-1]):
        (adapter / WEIGHTS).write_bytes(torn)
        assert "reading them gave" in faults(adapter, TINY)[0]
    (adapter / CONFIG).write_text("{")
    assert "reading them gave" in faults(adapter, TINY)[0]
