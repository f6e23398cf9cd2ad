"""What a run needs on a GPU is estimated before it starts, and it is made to fit or refused."""

from typing import Any

import pytest

from trainer import device, memory
from trainer.progress import RecipeRefused

GIB = 2**30


def qwen3(hidden: int, inner: int, layers: int, heads: int, *, is_tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": is_tied,
    }


SMALLEST = qwen3(1024, 3072, 28, 16, is_tied=True)
SMALL = qwen3(2048, 6144, 28, 16, is_tied=True)
MIDDLE = qwen3(2560, 9728, 36, 32, is_tied=True)
LARGE = qwen3(4096, 12_288, 36, 32, is_tied=False)


@pytest.mark.parametrize(("config", "billions"), [(SMALLEST, 0.596), (SMALL, 1.72), (MIDDLE, 4.02), (LARGE, 8.19)])
def test_parameters_are_counted_to_a_percent(config: dict[str, Any], billions: float) -> None:
    assert memory.parameters(config) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("config", "in_bfloat16", "in_nf4"),
    [(SMALLEST, (3, 4), (2, 3)), (SMALL, (6, 7), (3.5, 4.5)), (MIDDLE, (11.9, 13), (6, 7)), (LARGE, (20, 23), (9, 11))],
)
def test_four_pairs_of_a_thousand_tokens_need_what_is_known_of_such_models(
    config: dict[str, Any], in_bfloat16: tuple[float, float], in_nf4: tuple[float, float]
) -> None:
    for is_quantised, (least, most) in ((False, in_bfloat16), (True, in_nf4)):
        found = memory.needed(config, rank=16, pairs=4, length=1024, is_checkpointed=True, is_quantised=is_quantised)
        assert least <= found / 1e9 <= most


def test_a_run_takes_the_fastest_way_that_fits() -> None:
    ways = [memory.fit(LARGE, int(free * GIB), rank=16, batch=8, length=1024) for free in (140, 40, 23, 20)]

    assert [(way.pairs_at_once, way.accumulation, way.is_checkpointed) for way in ways] == [
        (8, 1, False),
        (8, 1, True),
        (4, 2, True),
        (1, 8, True),
    ]


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(RecipeRefused, match=r"needs about 17\.\d GiB and 12\.0 GiB are free.*--qlora"):
        memory.fit(LARGE, 12 * GIB, rank=16, batch=8, length=1024)
    assert memory.fit(LARGE, 12 * GIB, rank=16, batch=8, length=1024, is_quantised=True).pairs_at_once >= 4


def test_a_plan_becomes_arguments_that_trl_takes() -> None:
    plan = device.on_gpu(LARGE, 22 * GIB, share=8, length=1024, rank=16, qlora=False, computed_in="bf16")

    told = plan.arguments()

    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] == 8
    assert told["gradient_checkpointing"]
    assert told["bf16"]


def test_a_batch_is_shared_out_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert device.plan("base", batch=8, length=512, rank=16, qlora=False, computed_in="bf16").pairs_at_once == 4
    with pytest.raises(RecipeRefused, match="multiple of the number of processes"):
        device.plan("base", batch=7, length=512, rank=16, qlora=False, computed_in="bf16")


def test_qlora_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(RecipeRefused, match="NVIDIA GPU"):
        device.plan("base", batch=8, length=512, rank=16, qlora=True, computed_in="bf16")
