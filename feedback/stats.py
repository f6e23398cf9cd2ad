"""How much of everything there is, counted where it is kept."""

from collections import Counter
from typing import Any

from feedback import jobs
from feedback.connection import Ledger

JOBS_COUNTED = 1000
"""The newest; more jobs than this of one served model is years of them."""


async def totals(ledger: Ledger) -> dict[str, Any]:
    """Completions (with those that expired since the last sweep), votes and preferences, adapters, jobs by status."""
    pipe = ledger.redis.pipeline(transaction=False)
    for index in (ledger.keys.completions, ledger.keys.votes, ledger.keys.adapters):
        pipe.zcard(index)
    completions, votes, adapters = await ledger.reply(pipe.execute())
    found, _ = await jobs.page(ledger, limit=JOBS_COUNTED)
    by_status = Counter(job.status for job in found)
    return {"completions": completions, "votes": votes, "adapters": adapters, "jobs": dict(by_status)}
