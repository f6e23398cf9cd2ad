"""What is trained on in `bench_train`: bases and pairs of known sizes."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.habits import HABITS, VOTED_TOPICS, answer, prompts_about

Row = dict[str, Any]


def pocket_pairs(count: int, path: Path) -> Path:
    """Voters who like steps best, as `heed demo` has them."""
    dice = random.Random(0)
    rows = []
    for _ in range(count):
        topic = dice.choice(VOTED_TOPICS)
        other = dice.choice([habit for habit in HABITS if habit != "steps"])
        asked = dice.choice(prompts_about(topic))
        rows.append(_row(asked, answer(topic, "steps", dice), answer(topic, other, dice)))
    return _write(path, rows)


def random_pairs(count: int, words: int, prompt: int, answers: int, path: Path) -> Path:
    """Random words: chats of `prompt` and answers of `answers` tokens, a third more or less."""
    dice = random.Random(0)

    def said(length: int) -> str:
        return " ".join(f"w{dice.randrange(words)}" for _ in range(round(length * dice.uniform(2 / 3, 4 / 3))))

    return _write(path, [_row(said(prompt), said(answers), said(answers)) for _ in range(count)])


@dataclass(frozen=True)
class Shape:
    """Of a randomly initialised model; Qwen3's names."""

    name: str
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    is_tied: bool


SMALL = Shape("150M, 32k vocabulary", 32_000, 768, 2048, 18, 12, 12, 64, True)
# https://huggingface.co/Qwen/Qwen3-0.6B and Qwen3-8B, config.json
GPU_SHAPES = (
    Shape("Qwen3-0.6B's shape", 151_936, 1024, 3072, 28, 16, 8, 128, True),
    Shape("Qwen3-8B's shape", 151_936, 4096, 12_288, 36, 32, 8, 128, False),
)


def build(shape: Shape, folder: Path) -> int:
    """Saves a model of this shape with random weights and a tokenizer of words; the number of its parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from trainer.tokenizer import ASSISTANT, CHAT_TEMPLATE, END, PAD, SYSTEM, USER

    special = [PAD, END, SYSTEM, USER, ASSISTANT]
    words = [*special, *(f"w{number}" for number in range(shape.vocabulary - len(special)))]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
    )
    is_on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    torch.set_default_device("cuda" if is_on_gpu else "cpu")
    torch.set_default_dtype(torch.bfloat16 if is_on_gpu else torch.float32)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            head_dim=shape.head,
            tie_word_embeddings=shape.is_tied,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def _row(asked: str, chosen: str, rejected: str) -> Row:
    said = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": [{"role": "user", "content": asked}],
        **{side: [{"role": "assistant", "content": text}] for side, text in said.items()},
    }


def _write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
