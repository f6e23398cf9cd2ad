"""Likelihoods: what a model thinks of answers, token by token."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainer.evaluation import Divergence
from trainer.measures.resampling import quantile
from trainer.progress import RecipeRefused

# Wide enough to keep two cores busy, narrow enough for a 150k vocabulary in memory.
BATCH = 16
Encoded = tuple[list[int], list[int]]
"""Ids of a prompt as the server renders it, and of the answer after it."""


def encoded(
    tokenizer: Any, prompt: list[dict[str, str]], answer: list[dict[str, str]], options: Mapping[str, Any]
) -> Encoded:
    """`options` are what the template was given beside the messages."""
    opened = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **options)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False, **options)
    if not whole.startswith(opened):
        raise RecipeRefused(
            "The chat template must render a prompt as the beginning of prompt and answer. This base's template "
            f"renders {opened[-60:]!r} differently in the two. Use a base whose template is prefix-preserving."
        )
    head = tokenizer.encode(opened, add_special_tokens=False)
    return head, tokenizer.encode(whole[len(opened) :], add_special_tokens=False)


@torch.no_grad()  # type: ignore[untyped-decorator]
def log_probabilities(model: Any, examples: list[Encoded]) -> list[float]:
    """Sum of the answer's token log-probabilities, one for each example."""
    return [sum(tokens) for tokens in token_log_probabilities(model, examples)]


@torch.no_grad()  # type: ignore[untyped-decorator]
def token_log_probabilities(model: Any, examples: list[Encoded]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in examples]
    for indexes, ids, mask, width in _batches(model, examples):
        logits = _answer_logits(model, ids, mask, width)
        scores = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, -width:, None]).squeeze(-1)
        for row, index in enumerate(indexes):
            found[index] = scores[row, width - len(examples[index][1]) :].double().tolist()
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def divergence(model: Any, examples: list[Encoded]) -> Divergence:
    """Of the model with its active adapter to the model without, at each token of its own answers.

    The whole distribution is compared and not only the token that was sampled, so a few dozen answers are enough.
    """
    whole: list[float] = []
    tokens = 0
    for indexes, ids, mask, width in _batches(model, examples):
        policy = torch.log_softmax(_answer_logits(model, ids, mask, width).float(), -1)
        with model.disable_adapter():
            base = torch.log_softmax(_answer_logits(model, ids, mask, width).float(), -1)
        each = (policy.exp() * (policy - base)).sum(-1)
        for row, index in enumerate(indexes):
            answer = len(examples[index][1])
            whole.append(float(each[row, width - answer :].double().sum()))
            tokens += answer
    return Divergence(per_token=sum(whole) / max(tokens, 1), sequence=quantile(sorted(whole), 0.95), tokens=tokens)


def drift(after: list[float], before: list[float], examples: list[Encoded]) -> list[float]:
    """Change of each answer's log-probability, in nats a token."""
    return [(a - b) / max(len(answer), 1) for a, b, (_, answer) in zip(after, before, examples, strict=True)]


def _batches(model: Any, examples: list[Encoded]) -> Iterator[tuple[list[int], Any, Any, int]]:
    """Indexes, ids and mask of examples of like length, and the width of their longest answer.

    Padded on the left, so that all answers end together and the LM head runs over answers only.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda index: sum(map(len, examples[index])))
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        width = max(sum(map(len, examples[index])) for index in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        mask = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, index in enumerate(chunk):
            whole = [*examples[index][0], *examples[index][1]]
            ids[row, width - len(whole) :] = torch.tensor(whole)
            mask[row, width - len(whole) :] = 1
        yield chunk, ids.to(device), mask.to(device), max(len(examples[index][1]) for index in chunk)


def _answer_logits(model: Any, ids: Any, mask: Any, width: int) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=width + 1,
        use_cache=False,
    ).logits[:, :-1]
