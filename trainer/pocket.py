"""The pocket model: a tiny chat model with known habits, made here in a minute or two.

The first two phases of RLHF in small: pre-training on plain text, then supervised fine-tuning on dialogues.
Hugging Face format, so vLLM, transformers and PEFT load it like any other. The same recipe and seed give the
same weights on the same machine; a finished folder of the same recipe is left alone.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer import card, corpus, habits, topics
from trainer import tokenizer as tokenization

Example = tuple[list[int], list[int]]
Report = Callable[[int, int, float], None]

# A million parameters; 400 steps of 32 dialogues left fewer broken answers than 280 of 48 did in the same time.
WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 384
PRETRAINING_STEPS, PRETRAINING_BATCH, BLOCK = 60, 16, 128
TUNING_STEPS, TUNING_BATCH = 400, 32
RATE = 6e-3
# A part of each matrix's own size, added at random in each step and taken back. What is learned this way stands in
# wide valleys: after DPO towards `steps`, 12 % of the answers on topics without votes were broken without it, 3 % with.
WEIGHT_NOISE = 0.2
# Where a request names none. At 1.0 one answer in a hundred has a slip, at 0.8 one in five hundred, and all four
# habits still come.
TEMPERATURE = 0.8
IGNORED = -100
# Divides a batch's summed loss; near the mean number of scored tokens in a dialogue.
TYPICAL_LENGTH = 32


def recipe_digest(seed: int) -> str:
    """Names everything that the weights depend on except the machine."""
    digest = hashlib.sha256(f"seed {seed}".encode())
    for module in (topics, habits, corpus, tokenization, card):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def is_built(folder: Path, digest: str) -> bool:
    recipe = folder / "recipe.json"
    return recipe.is_file() and json.loads(recipe.read_text())["digest"] == digest


def build(out: Path, seed: int, report: Report) -> bool:
    """Builds the model beside `out` and renames it into place; False when it was there already."""
    digest = recipe_digest(seed)
    if is_built(out, digest):
        return False
    if out.exists() and any(out.iterdir()) and not (out / "recipe.json").is_file():
        raise FileExistsError(
            f"--out must be a new folder or an older pocket model. {out} holds something else. Name another folder."
        )
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _train(unfinished, seed, digest, report)
        # Only now does the older model go: a build that fails leaves it as it was.
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _train(folder: Path, seed: int, digest: str, report: Report) -> None:
    torch.manual_seed(seed)
    texts, dialogues = corpus.plain_text(random.Random(seed)), corpus.dialogues(random.Random(seed + 1))
    tokenizer = tokenization.trained_tokenizer(_sample(seed))
    model = LlamaForCausalLM(_shape(tokenizer))
    total = PRETRAINING_STEPS + TUNING_STEPS

    blocks = _batches(_blocks(texts, tokenizer), PRETRAINING_BATCH)
    for step, loss in _fit(model, islice(blocks, PRETRAINING_STEPS), PRETRAINING_STEPS):
        report(step, total, loss)
    turns = _batches((_rendered(dialogue, tokenizer) for dialogue in dialogues), TUNING_BATCH)
    for step, loss in _fit(model, islice(turns, TUNING_STEPS), TUNING_STEPS):
        report(PRETRAINING_STEPS + step, total, loss)

    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=TEMPERATURE,
    )
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(weight.numel() for weight in model.parameters())
    (folder / "README.md").write_text(card.model_card(parameters=parameters, digest=digest, seed=seed))
    (folder / "recipe.json").write_text(json.dumps({"digest": digest, "seed": seed, "parameters": parameters}) + "\n")


def _sample(seed: int) -> list[str]:
    """The texts that the tokenizer is trained on: a little of everything."""
    rng = random.Random(seed)
    spoken = [message["content"] for dialogue in islice(corpus.dialogues(rng), 3000) for message in dialogue]
    return [*islice(corpus.plain_text(rng), 500), *spoken]


def _shape(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=tokenization.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _blocks(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Example]:
    """Plain text in blocks of one length: nothing is padded, every token is learned from."""
    pending: list[int] = []
    for text in texts:
        pending += [*tokenizer.encode(text), tokenizer.eos_token_id]
        while len(pending) >= BLOCK:
            yield pending[:BLOCK], pending[:BLOCK]
            pending = pending[BLOCK:]


def _rendered(dialogue: corpus.Dialogue, tokenizer: PreTrainedTokenizerFast) -> Example:
    """Token ids as the chat template gives them, with labels for the assistant's words only."""
    ids: list[int] = []
    labels: list[int] = []
    for message in dialogue:
        marker = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        said = [*tokenizer.encode(message["content"]), tokenizer.eos_token_id]
        ids += [marker, *said]
        labels += [IGNORED, *(said if message["role"] == "assistant" else [IGNORED] * len(said))]
    return ids, labels


def _batches(examples: Iterator[Example], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of ids and labels (size, length); neighbours in length share a batch, to pad less."""
    window = 4
    order = random.Random(size)
    while True:
        pool = sorted(islice(examples, size * window), key=lambda example: len(example[0]))
        starts = list(range(0, len(pool), size))
        order.shuffle(starts)
        for start in starts:
            rows = pool[start : start + size]
            width = max(len(ids) for ids, _ in rows)
            ids = torch.zeros(size, width, dtype=torch.long)
            labels = torch.full((size, width), IGNORED)
            for row, (tokens, wanted) in enumerate(rows):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(wanted)] = torch.tensor(wanted)
            yield ids, labels


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the scored tokens, summed over each example: a token counts as much in a batch of short
    answers as in one of long ones, else the short habits would be learned as more frequent than they are."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    scored = wanted != IGNORED
    logits = model.lm_head(hidden[scored])
    return torch.nn.functional.cross_entropy(logits, wanted[scored], reduction="sum") / (len(ids) * TYPICAL_LENGTH)


def _fit(
    model: LlamaForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int
) -> Iterator[tuple[int, float]]:
    """Muon for the matrices and AdamW for the rest, with a short warm-up and a linear way down to zero.

    At equal time Muon (https://kellerjordan.github.io/posts/muon) left a tenth of the broken answers of AdamW.
    """
    inner = [(name, weight) for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    matrices = [weight for _, weight in inner]
    known = {name for name, _ in inner}
    rest = [weight for name, weight in model.named_parameters() if name not in known]
    optimizers = (
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: min((step + 1) / 20, (steps - step) / max(steps - 20, 1)))
        for each in optimizers
    ]
    model.train()
    for step, (ids, labels) in enumerate(batches, start=1):
        # The padding lies to the right of everything that is scored, so causal attention needs no mask.
        with _shaken(matrices):
            loss = _loss(model, ids, labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
        yield step, loss.item()


@contextmanager
def _shaken(matrices: list[torch.Tensor]) -> Iterator[None]:
    still = [matrix.detach().clone() for matrix in matrices]
    with torch.no_grad():
        for matrix in matrices:
            matrix += torch.randn_like(matrix) * (WEIGHT_NOISE * matrix.square().mean().sqrt())
    yield
    with torch.no_grad():
        for matrix, weight in zip(matrices, still, strict=True):
            matrix.copy_(weight)
