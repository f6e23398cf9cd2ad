"""The speaker: answers sampled from the model in hand, the same ones for the same seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.measures.speech import Said

BATCH = 32
TEMPERATURE = 0.7

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Spoken:
    prompt_ids: list[int]
    ids: list[int]
    """With the token that ended it."""
    said: Said


@torch.no_grad()  # type: ignore[untyped-decorator]
def speak(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    *,
    tokens: int,
    seed: int | None = None,
    options: Sequence[Mapping[str, Any]] | None = None,
) -> list[Spoken]:
    """One answer to each prompt, rendered with its options. Without a seed, the likeliest token each time."""
    if seed is not None:
        torch.manual_seed(seed)
    ends = _ends(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    # Not the model's own generation config: top_k and the like would hide what the policy became.
    how: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(max_new_tokens=tokens, eos_token_id=ends, pad_token_id=padding, **how)
    device = next(model.parameters()).device
    rendered = [
        tokenizer.encode(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **given),
            add_special_tokens=False,
        )
        for prompt, given in zip(prompts, options or [{}] * len(prompts), strict=True)
    ]
    spoken: list[Spoken] = []
    for start in range(0, len(rendered), BATCH):
        chunk = rendered[start : start + BATCH]
        width = max(map(len, chunk))
        ids = torch.tensor([[padding] * (width - len(one)) + one for one in chunk], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in chunk], device=device)
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
        for prompt_ids, answer in zip(chunk, made, strict=True):
            end = next((place for place, token in enumerate(answer) if token in ends), None)
            kept = answer if end is None else answer[: end + 1]
            text = tokenizer.decode(kept, skip_special_tokens=True)
            spoken.append(Spoken(prompt_ids, kept, Said(text=text, tokens=len(kept), ended=end is not None)))
    return spoken


def _ends(model: Any, tokenizer: Any) -> list[int]:
    named = model.generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    return [named] if isinstance(named, int) else list(named)
