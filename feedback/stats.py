"""How well it goes: how much of everything there is, and what the votes say of each adapter.

Read from counters that are kept as prompts are settled (feedback/report.py), so the cost is that of the adapters and
not of the votes. Shares come with an interval of 95 %: Wilson's (1927) for counts, the bootstrap's for win rates
(feedback/strengths.py). Votes that are not settled yet, and those of quarantined voters, are in none of them.
"""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from statistics import median
from typing import Any

from feedback import adapters, pairs, report, strengths, voters
from feedback.connection import Ledger
from feedback.proportions import wilson
from feedback.records import StateChange
from feedback.report import DAY_S
from feedback.strengths import Strength

Json = dict[str, Any]

SETTLE_WITHIN_S = 0.05
"""A look at the report costs under 100 ms, however many votes have just come in; what it leaves is told."""

ADAPTERS = ("votes", "picked", "beat", "tied")
"""Counters that are of adapters (feedback/report.py)."""

RANKED = 7
"""The newest versions, whose win rates are told: with the base they took 26 to 42 ms of CPU, twice as many 131."""


async def totals(ledger: Ledger) -> Json:
    """Completions (with those that expired since the last sweep), votes and preferences, adapters, jobs by status.

    `unsettled` are prompts whose newest votes are not in `quality` yet.
    """
    pipe = ledger.redis.pipeline(transaction=False)
    for index in (ledger.keys.completions, ledger.keys.votes, ledger.keys.adapters):
        pipe.zcard(index)
    pipe.hlen(ledger.keys.unsettled)
    pipe.zrange(ledger.keys.jobs, 0, -1)
    completions, votes, trained, unsettled, ids = await ledger.reply(pipe.execute())
    pipe = ledger.redis.pipeline(transaction=False)
    for job_id in ids:
        pipe.hget(ledger.keys.job(job_id), "status")
    statuses = await ledger.reply(pipe.execute()) if ids else []
    found = {"completions": completions, "votes": votes, "unsettled": unsettled, "adapters": trained}
    return {**found, "jobs": dict(Counter(statuses))}


async def quality(ledger: Ledger) -> Json:
    """What the votes say, in total and by adapter version, the newest first."""
    counts = await report.counters(ledger)
    base = adapters.base_name(ledger.model)
    waits = await _waits(ledger)
    versions = _versions(counts, waits)
    games = strengths.outcomes(counts, [*versions[:RANKED], base])
    wins = await asyncio.to_thread(strengths.strengths, games, base)  # answers go on meanwhile
    return {
        "pairs": await _pairs(ledger),
        "versions": [_version(name, counts, wins.get(name), waits.get(name)) for name in versions],
        "position_bias": {
            **_share(counts.get("side a", 0), counts.get("side a", 0) + counts.get("side b", 0)),
            "ties": counts.get("neither tie", 0),
            "both_bad": counts.get("neither both_bad", 0),
        },
        "length_bias": _share(counts.get("longer", 0), counts.get("longer", 0) + counts.get("shorter", 0)),
        "agreement": {"share": _ratio(counts.get("agreed", 0), counts.get("met", 0)), "of": counts.get("met", 0)},
        "vote_to_live_s": {"median": median(waits.values()), "of": len(waits)} if waits else {"median": None, "of": 0},
        "voted_share": await _voted(ledger, counts),
        "voters": await voters.count(ledger),
        "unheard_votes": counts.get("unheard", 0),
    }


def _version(name: str, counts: dict[str, int], wins: Strength | None, wait_s: float | None) -> Json:
    n = counts.get(f"votes {name}", 0)
    return {
        "id": name,
        "votes": n,
        "up_rate": _share(counts.get(f"ups {name}", 0), n),
        "best_of_up_rate": _share(counts.get(f"picked_ups {name}", 0), counts.get(f"picked {name}", 0)),
        "win_rate": asdict(wins) if wins else {**_share(0, 0), "against": None},
        "vote_to_live_s": wait_s,
    }


def _versions(counts: dict[str, int], live: dict[str, float]) -> list[str]:
    """Whatever was voted on or went live; newest first, the base last."""
    named = {part for name in counts for part in name.split(" ")[1:] if name.split(" ")[0] in ADAPTERS}
    return sorted(named | live.keys(), key=lambda name: (-_number(name), name))


def _number(name: str) -> int:
    """Of a version; 0 for the base."""
    parts = name.rsplit("-", 2)
    return int(parts[1][1:]) if len(parts) == 3 and parts[1][1:].isdigit() else 0


async def _pairs(ledger: Ledger) -> Json:
    standing = await pairs.counts(ledger)
    return {
        "total": standing.total,
        "train": standing.train,
        "held_out": standing.held_out,
        "waiting": await ledger.reply(ledger.redis.zcard(ledger.keys.pairs_waiting)),
        "by_source": standing.by_source,
    }


async def _waits(ledger: Ledger) -> dict[str, float]:
    """Seconds from the vote of the median new pair to the adapter trained on it being live first."""
    ids = await ledger.reply(ledger.redis.zrange(ledger.keys.adapters, 0, -1))
    if not ids:
        return {}
    pipe = ledger.redis.pipeline(transaction=False)
    for adapter_id in ids:
        pipe.hget(ledger.keys.adapter(adapter_id), "record")
        pipe.lrange(ledger.keys.adapter_history(adapter_id), 0, -1)
    found = await ledger.reply(pipe.execute())
    waits: dict[str, float] = {}
    for adapter_id, record, history in zip(ids, found[::2], found[1::2], strict=True):
        voted = json.loads(record).get("voted")
        changes = [StateChange.model_validate_json(entry) for entry in history]
        live = next((change.at for change in changes if change.state == "live"), None)
        if voted is not None and live is not None:
            waits[adapter_id] = live - voted
    return waits


async def _voted(ledger: Ledger, counts: dict[str, int]) -> Json:
    """Of the answers whose day is within the retention: before it, those without a vote are gone."""
    today = int(ledger.clock() // DAY_S)
    first = today - int(ledger.settings.completion_ttl_days) + 1
    voted = sum(counts.get(f"answered {day}", 0) for day in range(first, today + 1))
    answers = await ledger.reply(ledger.redis.zcount(ledger.keys.completions, first * DAY_S, "+inf"))
    return {**_share(voted, answers), "days": today - first + 1}


def _share(hits: int, of: int) -> Json:
    if of == 0:
        return {"share": None, "low": None, "high": None, "of": 0}
    low, high = wilson(hits, of)
    return {"share": hits / of, "low": low, "high": high, "of": of}


def _ratio(hits: int, of: int) -> float | None:
    return hits / of if of else None
