"""Comparisons: one prompt answered twice, and who wrote which side kept from whoever asked.

A comparison is in the ledger before its asker sees the end of it. Like a completion it expires unless somebody votes
on it, and it goes when one of its answers is deleted, for it holds the prompt. Votes on it are opinions like all
others: see votes.judge.
"""

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import ComparisonUnknown
from feedback.records import Comparison


async def record(ledger: Ledger, comparison: Comparison) -> None:
    """Raises TextTooLong."""
    comparison = await ledger.redaction.comparison(comparison)
    ttl_s = int(ledger.settings.completion_ttl_days * completions.DAY_S)
    text = comparison.model_dump_json(exclude_none=True)
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.set(ledger.keys.comparison(comparison.id), text, ex=ttl_s)
    pipe.zadd(ledger.keys.comparisons, {comparison.id: comparison.created})
    await ledger.reply(pipe.execute())


async def get(ledger: Ledger, comparison_id: str) -> Comparison:
    """Raises ComparisonUnknown."""
    found = await get_many(ledger, [comparison_id])
    if not found:
        raise ComparisonUnknown(
            f"no comparison {comparison_id[:60]!r}: it was never finished, one of its answers was deleted, or it "
            f"expired without a vote after {ledger.settings.completion_ttl_days:g} days"
        )
    return found[0]


async def get_many(ledger: Ledger, ids: list[str]) -> list[Comparison]:
    """Those of `ids` that exist."""
    texts = await ledger.reply(ledger.redis.mget([ledger.keys.comparison(i) for i in ids])) if ids else []
    return [Comparison.model_validate_json(text) for text in texts if text is not None]


async def page(ledger: Ledger, after: str | None = None, limit: int = 20) -> tuple[list[Comparison], bool]:
    """Newest first, and whether more follow."""
    ids, has_more = await completions.page_of(ledger, ledger.keys.comparisons, after, limit, newest_first=True)
    return await get_many(ledger, ids), has_more


async def forget(ledger: Ledger, comparison_id: str) -> None:
    """Delete the comparison; votes on it go with the completions they are about."""
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.delete(ledger.keys.comparison(comparison_id))
    pipe.zrem(ledger.keys.comparisons, comparison_id)
    await ledger.reply(pipe.execute())
