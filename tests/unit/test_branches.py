"""A pair in one row of branches scores as it does in two rows, to the last digits."""

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from trainer.branches import Branching, branched

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
WORDS = 50


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(shape)
    add_fused_lm_head(model, outputs=OUTPUTS)
    return model


def batch(sizes: list[tuple[int, int, int]], max_length: int | None = None) -> dict[str, torch.Tensor]:
    """In TRL's layout, from sizes of prompt, chosen and rejected answer."""
    dice = random.Random(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = [
        {name: [dice.randrange(1, WORDS) for _ in range(size)] for name, size in zip(names, of_pair, strict=True)}
        for of_pair in sizes
    ]
    made = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(pairs)
    completions = made.pop("completion_mask")
    return {**made, "labels": made["input_ids"].masked_fill(completions == 0, -100)}


@pytest.mark.parametrize(
    ("sizes", "max_length"),
    [
        ([(5, 7, 7)], None),
        ([(1, 1, 9), (30, 12, 1), (4, 3, 20)], None),
        ([(9, 20, 4), (3, 5, 40), (23, 8, 8)], 24),  # both answers cut, one of them to its first token
    ],
)
def test_branches_give_the_losses_and_gradients_of_two_rows(
    model: Any, sizes: list[tuple[int, int, int]], max_length: int | None
) -> None:
    rows = batch(sizes, max_length)
    found, gradients = [], []

    for called in (model, Branching(model)):
        model.zero_grad()
        scored = called(**rows, use_cache=False, fused_lm_head=True)
        chosen, rejected = scored.log_probs.sum(-1).chunk(2)
        torch.nn.functional.logsigmoid(0.5 * (chosen - rejected)).mean().backward()
        found.append(scored)
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))

    for output in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(found[0], output), getattr(found[1], output), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0].is_top1, found[1].is_top1)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_a_row_of_branches_holds_the_prompt_once_and_neither_answer_sees_the_other() -> None:
    rows = batch([(6, 4, 3), (2, 2, 2)])

    row = branched(rows["input_ids"], rows["attention_mask"], rows["labels"])

    assert row.branch[0].tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert row.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7]
    assert row.branch[1].tolist() == [0] + [1] * 2 + [2] * 2 + [3] * 7
    first_of_rejected = row.may_see[0, 0, 9]
    assert first_of_rejected.tolist() == [True] * 5 + [False] * 4 + [True] + [False] * 2
