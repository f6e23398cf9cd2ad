"""Evaluation: does the adapter prefer, on held-out pairs, what people preferred?

The reward of an answer is beta times its log-probability ratio to the base (DPO, equation 5). Accuracy is the share
of pairs whose chosen answer has the higher reward, the margin is the mean difference; both per pair, not as means
of batch means. The base against itself is a coin: accuracy 0.5, margin 0.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import weights
from trainer.progress import RecipeRefused
from trainer.rows import Row, read

# Wide enough to keep two cores busy, narrow enough for a 150k vocabulary in memory.
BATCH = 16
Encoded = tuple[list[int], list[int]]


def evaluate(*, base: str, adapter: Path, parent: Path | None, heldout: Path, out: Path, beta: float) -> dict[str, Any]:
    """Judges and writes `out`. An adapter with unsound files gets its reasons and no numbers."""
    verdict = weights.weigh(adapter, base)
    rows = read(heldout, ("chosen", "rejected"))
    report: dict[str, Any] = {"pairs": len(rows), "beta": beta, "weights": verdict, "before": None, "after": None}
    if not verdict["reasons"]:
        report |= _judge(base, adapter, parent, rows, beta)
    unfinished = out.with_name(f".{out.name}.part")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    unfinished.rename(out)
    return report


def _judge(base: str, adapter: Path, parent: Path | None, rows: list[Row], beta: float) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(base)
    chosen = [_encoded(tokenizer, row["prompt"], row["chosen"]) for row in rows]
    # Of lone thumbs a liked and a disliked answer are held against each other; each has a prompt of its own.
    rejected = [_encoded(tokenizer, row.get("rejected_prompt") or row["prompt"], row["rejected"]) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    model.to(device).eval()
    reference = log_probabilities(model, chosen + rejected)

    model = PeftModel.from_pretrained(model, str(adapter), adapter_name="candidate").eval()
    after = _rewards(log_probabilities(model, chosen + rejected), reference, beta)
    before = [0.0] * len(rows)
    if parent:
        model.load_adapter(str(parent), adapter_name="parent")
        model.set_adapter("parent")
        before = _rewards(log_probabilities(model, chosen + rejected), reference, beta)
    return {
        "before": _summary(before) if parent else {"accuracy": 0.5, "margin": 0.0},
        "after": _summary(after),
        "deltas": [
            {"id": row.get("id"), "before": before_margin, "after": after_margin}
            for row, before_margin, after_margin in zip(rows, before, after, strict=True)
        ],
    }


def _encoded(tokenizer: Any, prompt: list[dict[str, str]], answer: list[dict[str, str]]) -> Encoded:
    """Ids of the prompt as the server renders it, and of the answer after it."""
    opened = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
    if not whole.startswith(opened):
        raise RecipeRefused(
            "The chat template must render a prompt as the beginning of prompt and answer. This base's template "
            f"renders {opened[-60:]!r} differently in the two. Use a base whose template is prefix-preserving."
        )
    head = tokenizer.encode(opened, add_special_tokens=False)
    return head, tokenizer.encode(whole[len(opened) :], add_special_tokens=False)


@torch.no_grad()  # type: ignore[untyped-decorator]
def log_probabilities(model: Any, encoded: list[Encoded]) -> list[float]:
    """Sum of the answer's token log-probabilities, one for each example."""
    device = next(model.parameters()).device
    found = [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda index: sum(map(len, encoded[index])))
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        width = max(sum(map(len, encoded[index])) for index in chunk)
        answer = max(len(encoded[index][1]) for index in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        mask = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, index in enumerate(chunk):
            whole = [*encoded[index][0], *encoded[index][1]]
            ids[row, width - len(whole) :] = torch.tensor(whole)
            mask[row, width - len(whole) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        # Padded on the left, so that all answers end together and the LM head runs over answers only.
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=answer + 1,
            use_cache=False,
        ).logits[:, :-1]
        scores = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, -answer:, None]).squeeze(-1)
        for row, index in enumerate(chunk):
            found[index] = float(scores[row, answer - len(encoded[index][1]) :].double().sum())
    return found


def _rewards(scored: list[float], reference: list[float], beta: float) -> list[float]:
    """Margins: reward of the chosen minus reward of the rejected answer, for each pair."""
    rewards = [beta * (policy - base) for policy, base in zip(scored, reference, strict=True)]
    half = len(rewards) // 2
    return [chosen - rejected for chosen, rejected in zip(rewards[:half], rewards[half:], strict=True)]


def _summary(margins: list[float]) -> dict[str, float]:
    accuracy = sum(margin > 0 for margin in margins) / len(margins)
    return {"accuracy": accuracy, "margin": math.fsum(margins) / len(margins)}
