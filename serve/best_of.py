"""Best of n: an adapter samples several answers, a reward model scores them, and the client gets the best.

That is another policy than the adapter alone, so the record says that it was used and what each sample scored. Samples
that nobody saw are not kept, for nobody can vote on them. A scorer that is down, slow or wrong costs the choice and
never the answer: then the first sample is given, which is what the adapter alone would have said.
"""

import logging
from dataclasses import replace
from typing import Any

from feedback.records import BestOf
from serve.errors import QUOTED_CHARACTERS, Refused
from serve.gateway import Gateway
from serve.recorder import Asked
from serve.scorer import Scorer, ScorerFailed

log = logging.getLogger("heed.gateway")

HEADER = "x-heed-best-of"

UNSCORABLE = {
    "stream": "nothing can be shown before every sample is scored",
    "tools": "the reward model is not shown tools",
    "documents": "the reward model is not shown documents",
    "continue_final_message": "the reward model scores whole answers",
}
"""Fields of a chat that leave nothing to choose from, or nothing to choose by."""

Json = dict[str, Any]


def sampled(asked: Asked, wanted: str, here: Gateway) -> Asked:
    """The request as it goes to the engine for `wanted` samples. Raises Refused (400)."""
    most = here.settings.best_of_max
    if not (wanted.isascii() and wanted.isdigit() and 2 <= int(wanted[:QUOTED_CHARACTERS]) <= most):
        shown = wanted[:QUOTED_CHARACTERS]
        raise Refused(
            400,
            "invalid_best_of",
            f"{HEADER} is {shown!r}; send a whole number from 2 to {most} (HEED_BEST_OF_MAX), or leave it away for "
            "one answer",
            HEADER,
        )
    if asked.kind != "chat.completion":
        raise unsupported("/v1/completions", "there is no conversation to score; use /v1/chat/completions")
    if here.scorer is None:
        raise Refused(
            400,
            "best_of_unavailable",
            f"{HEADER} needs a reward model, and this gateway has none; leave it away, or let the operator name one in "
            "HEED_REWARD_URL",
            HEADER,
        )
    for name, reason in UNSCORABLE.items():
        if asked.sent.get(name):
            raise unsupported(name, f"{reason}; leave one of them away", name)
    if (asked.sent.get("n") or 1) > 1:
        raise unsupported("n above 1", "one answer is chosen; leave one of them away", "n")
    if asked.sent.get("temperature") == 0:
        raise unsupported("a temperature of 0", "all samples would be the same; raise it", "temperature")
    return replace(asked, samples=int(wanted), forwarded=asked.forwarded | {"n": int(wanted)})


def unsupported(what: str, reason: str, param: str = HEADER) -> Refused:
    return Refused(400, "best_of_unsupported", f"{HEADER} cannot be combined with {what}: {reason}", param)


async def choose(answer: Json, asked: Asked, here: Gateway) -> tuple[Json, BestOf]:
    """The answer with one choice of the many, and how it was chosen."""
    assert here.scorer is not None, "a request for samples was let in"
    choices = answer["choices"]
    rewards = await _rewards(choices, asked, here.scorer)
    chosen = max(range(len(rewards)), key=rewards.__getitem__, default=0)
    here.metrics.best_of.labels("chosen" if rewards else "unscored").inc()
    how = BestOf(samples=len(choices), chosen=chosen, rewards=rewards, reward_model=here.scorer.model)
    return answer | {"choices": [choices[chosen] | {"index": 0}]}, how


async def _rewards(choices: list[Json], asked: Asked, scorer: Scorer) -> list[float]:
    """None at all when the scorer fails."""
    try:
        return await scorer.rewards(asked.messages, [choice["message"].get("content") or "" for choice in choices])
    except ScorerFailed as failed:
        log.warning("req-%s gets its first sample, for the scorer failed: %s", asked.number, failed)
        return []
