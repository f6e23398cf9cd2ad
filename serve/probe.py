"""Is an adapter fit for traffic? Asked of the engine that shall serve it, before it does.

vLLM loads adapters for another base, with NaN weights or with shapes it slices to fit, and says 200, so what it
answers is looked at: finite, not the base's answer, and the base's own answer as it was before. And what the workshop
computed of the adapter, kept in its record, must be what the engine serves: an adapter that loads may still be at work
with another effect, or none (vLLM #22884, #10798).
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feedback.records import Golden
from serve.engine import Engine, EngineRefused
from serve.upstream import EngineUnreachable

SHORT = "How do I make pasta?"
LONG = " ".join(["Tell me in a few words how to make pasta, how to fly a kite and why the moon shines."] * 8)
"""Over 128 tokens, vLLM's KV block on CPU: NaN in a freed block shows only in prompts shorter than it, and errors of
prefill kernels only in longer ones."""

TOKENS = 4
SAME = 1e-4
"""Log-probabilities nearer than this are taken for equal; fp32 on CPU repeats to 1e-6."""

DRIFT = 0.5
"""How far the base may move between two probes. A zero adapter in a mixed batch moved by 0.008, bf16 moves more, and
an answer with another adapter's weights moved by 0.53 (vLLM #48421)."""


class AdapterUnfit(Exception):
    """It must not answer anybody; the message says why, in words for an operator."""


@dataclass(frozen=True)
class Reading:
    """Tokens and their log-probabilities, for each prompt."""

    tokens: tuple[tuple[str, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]

    def distance(self, other: "Reading") -> float:
        """Largest difference up to and with the first token that differs, where two near ties have near values."""
        most = 0.0
        for mine, theirs, my_logprobs, their_logprobs in zip(
            self.tokens, other.tokens, self.logprobs, other.logprobs, strict=True
        ):
            for token, another, here, there in zip(mine, theirs, my_logprobs, their_logprobs, strict=False):
                most = max(most, abs(here - there))
                if token != another:
                    break
        return most


async def read(engine: Engine, name: str) -> Reading:
    """Raises AdapterUnfit, EngineUnreachable."""
    said = await asyncio.gather(*(_said(engine, name, prompt) for prompt in (SHORT, LONG)))
    tokens = tuple(tuple(str(item["token"]) for item in content) for content in said)
    return Reading(tokens, tuple(tuple(float(item["logprob"]) for item in content) for content in said))


async def _said(engine: Engine, name: str, prompt: str, tokens: int = TOKENS) -> list[dict[str, Any]]:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": True,
        "return_tokens_as_token_ids": True,
    }
    try:
        answer = await engine.complete(body)
    except EngineRefused as refused:
        if refused.status >= 500 and not await engine.is_healthy():
            raise EngineUnreachable("it broke while it was probed") from refused
        raise AdapterUnfit(f"the probe of {name} was answered with status {refused.status}: {refused}") from refused
    content: list[dict[str, Any]] = (answer["choices"][0].get("logprobs") or {}).get("content") or []
    if not content or any(item["logprob"] is None or not math.isfinite(item["logprob"]) for item in content):
        raise AdapterUnfit(f"the probe of {name} gave log-probabilities that are not finite numbers")
    return content


async def compare(
    engine: Engine, name: str, base: str, before: Reading, golden: Sequence[Golden], tolerance: float
) -> None:
    """`before` is what the base said before `name` was loaded; `golden` may be `tolerance` nats a token off.

    Raises AdapterUnfit, EngineUnreachable.
    """
    reading = await read(engine, name)
    after = await read(engine, base)
    if (moved := after.distance(before)) > DRIFT:
        raise AdapterUnfit(f"since {name} was loaded, {base} answers differently (by {moved:.3g} in log-probability)")
    if reading.tokens == after.tokens and reading.distance(after) < SAME:
        raise AdapterUnfit(f"{name} answers exactly as {base} does, so its weights are not at work")
    if not golden:  # trained before this was kept, or imported
        return
    said = await asyncio.gather(*(_said(engine, name, one.prompt, len(one.tokens)) for one in golden))
    if (off := distance(golden, said)) > tolerance:
        raise AdapterUnfit(
            f"what the engine serves as {name} is not what was trained: its log-probabilities are {off:.3g} nats a "
            f"token from the workshop's, and at most {tolerance:g} can come from another machine's arithmetic"
        )


def distance(golden: Sequence[Golden], said: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Mean difference in log-probability, up to and with the first token that differs: two near ties have near values,
    and after them the texts are others."""
    gaps: list[float] = []
    for one, content in zip(golden, said, strict=True):
        for token, there, item in zip(one.tokens, one.logprobs, content, strict=False):
            gaps.append(abs(there - float(item["logprob"])))
            if item["token"] != f"token_id:{token}":
                break
    return sum(gaps) / len(gaps) if gaps else math.inf
