"""The queue: prompts for people who judge, of whom nobody has to think of what to ask.

An operator fills it; with HEED_QUEUE_TRAFFIC the newest prompts of users come after that. Honeypots are among them at a
set rate: prompts whose better answer is known, so that who judges without reading is found out (feedback/scores.py). A
voter gets each prompt once. Only operators can tell which are honeypots, so nobody gets one when nothing else is left.
"""

import random
from collections.abc import Callable, Sequence

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import PromptUnknown
from feedback.records import Completion, QueuedPrompt, canonical, digest, prompt_digest

WINDOW = 64
"""Prompts looked at in one trip."""

RECENT = 100
"""Completions whose prompts are offered: what is older says less of what people ask now."""


async def add(ledger: Ledger, prompt: QueuedPrompt) -> tuple[QueuedPrompt, bool]:
    """As it is kept, and whether it is new. Its id follows from what it says. Raises TextTooLong."""
    said = await ledger.redaction.tree(prompt.model_dump(include={"messages", "tools", "good", "bad"}))
    prompt_hash = prompt_digest(said["messages"], said["tools"])
    prompt_id = "prompt-" + digest(prompt_hash, canonical([said["good"], said["bad"]]))[:24]
    kept = prompt.model_copy(update=said | {"prompt_hash": prompt_hash, "id": prompt_id})
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.set(ledger.keys.queued(kept.id), kept.model_dump_json(exclude_none=True), nx=True)
    pipe.zadd(_index(ledger, is_honeypot=kept.is_honeypot), {kept.id: kept.created}, nx=True)
    is_new, _ = await ledger.reply(pipe.execute())
    return kept, bool(is_new)


async def get(ledger: Ledger, prompt_id: str) -> QueuedPrompt:
    """Raises PromptUnknown."""
    found = await _get_many(ledger, [prompt_id])
    if not found:
        raise PromptUnknown(f"no prompt {prompt_id[:60]!r} is queued; list those that are, or add one")
    return found[0]


async def page(
    ledger: Ledger, is_honeypot: bool = False, after: str | None = None, limit: int = 20
) -> tuple[list[QueuedPrompt], bool]:
    """In the order they came, and whether more follow."""
    index = _index(ledger, is_honeypot=is_honeypot)
    ids, has_more = await completions.page_of(ledger, index, after, limit, newest_first=False)
    return await _get_many(ledger, ids), has_more


async def remove(ledger: Ledger, prompt_id: str) -> None:
    """Nobody gets it any more; what was said of it stays. Raises PromptUnknown."""
    prompt = await get(ledger, prompt_id)
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.delete(ledger.keys.queued(prompt_id))
    pipe.zrem(_index(ledger, is_honeypot=prompt.is_honeypot), prompt_id)
    await ledger.reply(pipe.execute())


async def draw(ledger: Ledger, voter: str, chance: Callable[[], float] = random.random) -> QueuedPrompt | None:
    """A prompt this voter has not had, which now is theirs; None when there is none. `chance` is below 1."""
    while True:
        ordinary = await _unseen(ledger, voter, chance, is_honeypot=False) or await _recent(ledger, voter, chance)
        if ordinary is None:
            return None
        drawn = None
        if chance() < ledger.settings.honeypot_share:
            drawn = await _unseen(ledger, voter, chance, is_honeypot=True)
        drawn = drawn or ordinary
        # Two requests of one voter may have come to the same prompt.
        if await ledger.reply(ledger.redis.sadd(ledger.keys.voter_drawn(voter), drawn.id)):
            return drawn


async def _unseen(ledger: Ledger, voter: str, chance: Callable[[], float], *, is_honeypot: bool) -> QueuedPrompt | None:
    """From a place by chance on, so that a prompt's turn tells nothing of it and voters begin with different ones."""
    index = _index(ledger, is_honeypot=is_honeypot)
    count = await ledger.reply(ledger.redis.zcard(index))
    turn = int(chance() * count)
    for first, end in ((turn, count), (0, turn)):
        for start in range(first, end, WINDOW):
            ids = await ledger.reply(ledger.redis.zrange(index, start, start + WINDOW - 1))
            for prompt_id in await _not_drawn(ledger, voter, ids):
                if found := await _get_many(ledger, [prompt_id]):  # else it was removed just now
                    return found[0]
    return None


async def _recent(ledger: Ledger, voter: str, chance: Callable[[], float]) -> QueuedPrompt | None:
    """A prompt of users, where the operator lets others see them."""
    if not ledger.settings.queue_traffic:
        return None
    newest, _ = await completions.page(ledger, limit=RECENT, newest_first=True)
    asked = {_traffic_id(one): one for one in newest if _is_askable(one)}
    unseen = await _not_drawn(ledger, voter, list(asked))
    if not unseen:
        return None
    prompt_id = unseen[int(chance() * len(unseen))]
    source = asked[prompt_id]
    return QueuedPrompt(
        id=prompt_id,
        prompt_hash=source.prompt_hash,
        messages=source.messages,
        tools=source.tools,
        user=source.user,
        created=source.created,
    )


def _is_askable(completion: Completion) -> bool:
    is_chat = completion.object == "chat.completion" and completion.comparison is None
    return is_chat and completion.messages[-1].get("role") == "user"


def _traffic_id(completion: Completion) -> str:
    return f"asked-{completion.prompt_hash[:24]}"


async def _not_drawn(ledger: Ledger, voter: str, ids: Sequence[str]) -> list[str]:
    if not ids:
        return []
    drawn = await ledger.reply(ledger.redis.smismember(ledger.keys.voter_drawn(voter), list(ids)))
    return [prompt_id for prompt_id, was in zip(ids, drawn, strict=True) if not was]


async def _get_many(ledger: Ledger, ids: Sequence[str]) -> list[QueuedPrompt]:
    """Those of `ids` that exist."""
    texts = await ledger.reply(ledger.redis.mget([ledger.keys.queued(i) for i in ids])) if ids else []
    return [QueuedPrompt.model_validate_json(text) for text in texts if text is not None]


def _index(ledger: Ledger, *, is_honeypot: bool) -> str:
    return ledger.keys.queue_honeypots if is_honeypot else ledger.keys.queue
