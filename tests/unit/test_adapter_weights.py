"""Weights that are not numbers are told from large ones, in every type an adapter may have."""

import json
import math
import struct
from pathlib import Path

import pytest

from serve.weights import are_finite


def write(folder: Path, dtype: str, data: bytes) -> Path:
    header = json.dumps({"w": {"dtype": dtype, "shape": [1], "data_offsets": [0, len(data)]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def encode(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":  # the upper half of an F32
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'e'}", *values)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_what_is_not_a_number_is_found_wherever_it_is(dtype: str, tmp_path: Path) -> None:
    for broken in (math.nan, -math.nan, math.inf, -math.inf):
        assert not are_finite(write(tmp_path, dtype, encode(dtype, [0.5, -0.5, broken, 1.0])))

    largest = 65504.0 if dtype == "F16" else 3.3e38
    assert are_finite(write(tmp_path, dtype, encode(dtype, [0.0, -0.0, 1e-7, largest, -largest])))


def test_files_that_are_no_weights_are_not_finite(tmp_path: Path) -> None:
    assert not are_finite(write(tmp_path, "I64", b"\0" * 8))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"junk")
    assert not are_finite(tmp_path)
