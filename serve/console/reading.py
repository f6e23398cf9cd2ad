"""A reading: how likely a model finds each token of an answer that is there already, and what an adapter made of that.

Asked of the gateway as any client may ask: vLLM's `prompt_logprobs` of the conversation with the answer at its end, not
recorded (`store: false`). Which of its tokens are the answer's is told by the ids of the same conversation, opened for
an answer: the answer is what comes after them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

Json = dict[str, Any]

LIKELIEST = 5
"""Alternatives asked for with each token, of vLLM's at most 20 (--max-logprobs)."""

RENDERED = ("tools", "chat_template_kwargs", "documents", "reasoning_effort")
"""What shapes the text that the chat template makes of the messages."""

UNREAD = {"max_tokens": 1, "store": False, "return_token_ids": True}
"""The one token that vLLM writes after all it reads is of no use."""


@dataclass(frozen=True)
class Answered:
    """An answer, with what it answers."""

    messages: list[Json]
    answer: Json
    options: Json = field(default_factory=dict)

    @property
    def text(self) -> str:
        content = self.answer.get("content")
        return content if isinstance(content, str) else ""

    @property
    def question(self) -> str:
        content = self.messages[-1].get("content") if self.messages else ""
        return content if isinstance(content, str) else ""

    def opened(self, model: str) -> Json:
        """The request that tells the ids of all that comes before the answer."""
        return {"model": model, "messages": self.messages, **self.options, **UNREAD}

    def whole(self, model: str) -> Json:
        """The request that reads the answer."""
        messages = [*self.messages, self.answer]
        asked = {"add_generation_prompt": False, "prompt_logprobs": LIKELIEST}
        return {"model": model, "messages": messages, **self.options, **UNREAD, **asked}


@dataclass(frozen=True)
class Token:
    text: str
    """Empty for the first bytes of a character that the next token ends."""
    logprob: float
    """Natural, as all here."""
    rank: int
    """Among all tokens; 1 is the likeliest."""
    likeliest: dict[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest tokens, by their text."""

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)


@dataclass(frozen=True)
class Reading:
    model: str
    """The concrete name of who read it."""
    tokens: tuple[Token, ...]


def stored(completion: Json) -> Answered:
    """Of GET /v1/chat/completions/{id}: its first choice."""
    options = {name: completion[name] for name in RENDERED if completion.get(name)}
    return Answered(completion["messages"], completion["choices"][0]["message"], options)


def reading(opened: Json, whole: Json, text: str) -> Reading:
    """From both replies. Of what the template puts after the answer, the token that ends it is the model's own to say,
    and belongs to the answer as training counts it; the rest does not."""
    ids = whole["prompt_token_ids"]
    # Where a template writes an answered conversation otherwise than an opened one, from where they part.
    start = _parting(opened["prompt_token_ids"], ids)
    told = zip(ids[start:], whole["prompt_logprobs"][start:], strict=True)
    tokens = [_token(token_id, entry) for token_id, entry in told if entry]
    return Reading(whole["model"], tuple(tokens[: _end(tokens, text.strip())]))


def log_ratios(policy: Reading, reference: Reading) -> list[float]:
    """log policy(token) - log reference(token), for each token of the answer that both read. Their sum, times beta, is
    the reward that the policy stands for by DPO, but for a term that all answers to the prompt share (Rafailov et al.
    2023, arXiv 2305.18290, equation 5)."""
    return [ours.logprob - theirs.logprob for ours, theirs in zip(policy.tokens, reference.tokens, strict=True)]


def _parting(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many they begin with alike."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False))
    return sum(1 for _ in alike)


def _token(token_id: int, entry: Json) -> Token:
    told = entry[str(token_id)]
    likeliest = {other["decoded_token"] or "": other["logprob"] for other in entry.values()}
    return Token(told["decoded_token"] or "", told["logprob"], told["rank"], likeliest)


def _end(tokens: Sequence[Token], text: str) -> int:
    """One after the token with which the text is whole; where it never is, after the last."""
    said = ""
    for place, token in enumerate(tokens):
        said += token.text
        if text and len(said) >= len(text) and text in said:
            return place + 2
    return len(tokens)
