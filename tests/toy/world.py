"""A world small enough to know everything about: 4 prompts, 8^4 answers to each, and what each is worth.

The base is a tiny Llama trained here to answer with four symbols of uneven frequency. The reward of an answer is the
sum of its symbols' weights, which differ by prompt, and people choose between two answers by Bradley and Terry's rule.
"""

import itertools
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.tokenizer import ASSISTANT, CHAT_TEMPLATE, END, PAD, SYSTEM, USER

PROMPTS: Final = "0123"
SYMBOLS: Final = "abcdefgh"
LENGTH: Final = 4
ANSWERS: Final = ["".join(letters) for letters in itertools.product(SYMBOLS, repeat=LENGTH)]
STEPS, BATCH, RATE = 400, 96, 8e-3
# Of an answer's reward under the base: the better of two answers is then chosen about four times in five, and worlds of
# different seeds are equally hard.
VARIANCE: Final = 3.0
Row = dict[str, Any]


class World:
    """Weights of symbols and their frequencies in the base, by prompt; both from a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = torch.Generator().manual_seed(seed)
        # Each prompt likes two symbols of its own. A base to which two prompts are alike hardly tells them apart, and
        # then no recipe learns to want opposite things of them.
        liked = torch.eye(len(PROMPTS)).repeat_interleave(len(SYMBOLS) // len(PROMPTS), -1)
        self.habits = torch.softmax(liked + 0.5 * torch.randn(len(PROMPTS), len(SYMBOLS), generator=dice), -1)
        weights = torch.randn(len(PROMPTS), len(SYMBOLS), generator=dice)
        spread = (self.habits * (weights - (self.habits * weights).sum(-1, keepdim=True)) ** 2).sum(-1, keepdim=True)
        self.weights = weights * (VARIANCE / LENGTH / spread).sqrt()
        places = torch.tensor([[SYMBOLS.index(letter) for letter in answer] for answer in ANSWERS])
        self.rewards = self.weights[:, places].sum(-1).double()
        """(prompts, answers)"""

    def pairs(self, policy: torch.Tensor, count: int, seed: int, flipped: float = 0.0) -> list[Row]:
        """Choices between two answers drawn from `policy` (prompts, answers), some of them the wrong way round."""
        dice = torch.Generator().manual_seed(1000 * self.seed + seed)
        rows: list[Row] = []
        while len(rows) < count:
            prompt = len(rows) % len(PROMPTS)
            first, second = torch.multinomial(policy[prompt], 2, replacement=True, generator=dice).tolist()
            if first == second:
                continue
            chance, mistake = torch.rand(2, generator=dice, dtype=torch.float64).tolist()
            is_first = chance < torch.sigmoid(self.rewards[prompt, first] - self.rewards[prompt, second])
            chosen, rejected = (first, second) if is_first != (mistake < flipped) else (second, first)
            rows.append(
                {
                    "prompt": [{"role": "user", "content": PROMPTS[prompt]}],
                    "chosen": [{"role": "assistant", "content": ANSWERS[chosen]}],
                    "rejected": [{"role": "assistant", "content": ANSWERS[rejected]}],
                }
            )
        return rows

    def build_base(self, folder: Path) -> None:
        """Trains the base on endless answers of the world's habits and saves it with its tokenizer."""
        torch.manual_seed(self.seed)
        tokenizer = _tokenizer()
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                dtype="float32",
            )
        )
        said = _sequences(tokenizer, SYMBOLS)  # a row for each prompt and symbol, to take prompts and symbols from
        heads = said[:: len(SYMBOLS), :-2]
        symbols = said[: len(SYMBOLS), -2]
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
        for _ in range(STEPS):
            prompts = torch.arange(BATCH) % len(PROMPTS)
            drawn = symbols[torch.multinomial(self.habits[prompts], LENGTH, replacement=True)]
            ids = torch.cat([heads[prompts], drawn, torch.full((BATCH, 1), tokenizer.eos_token_id)], -1)
            logits = model(input_ids=ids, use_cache=False).logits[:, -LENGTH - 2 : -1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -LENGTH - 1 :].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        transformers.utils.logging.disable_progress_bar()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [PAD, END, SYSTEM, USER, ASSISTANT, *PROMPTS, *SYMBOLS]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
    )


def _sequences(tokenizer: Any, answers: list[str] | str) -> torch.Tensor:
    """Token ids of every prompt with every answer, all of one length, prompts outermost."""
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt in PROMPTS
        for answer in answers
    ]
    rendered = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    return torch.tensor(tokenizer(rendered, add_special_tokens=False)["input_ids"])


@torch.no_grad()  # type: ignore[untyped-decorator]
def distribution(model: Any, tokenizer: Any) -> torch.Tensor:
    """The probability of every answer, end included: (prompts, answers). What is missing from 1 went elsewhere."""
    ids = _sequences(tokenizer, ANSWERS)
    found = []
    for rows in ids.split(4096):
        logits = model(input_ids=rows, use_cache=False).logits[:, -LENGTH - 2 : -1].double()
        scores = torch.log_softmax(logits, -1).gather(-1, rows[:, -LENGTH - 1 :, None])
        found.append(scores.squeeze(-1).sum(-1).exp())
    return torch.cat(found).view(len(PROMPTS), len(ANSWERS))
