"""The tally: what the opinions amount to, counted prompt by prompt.

Each settled prompt keeps its own counts, and the sum over all prompts is kept beside them in the same step (see
pairs.SETTLE), so that a look at the whole costs the same for a thousand votes and for a million. `pairs.recount`
derives everything again, to hold the sum to account.
"""

from collections import Counter

from feedback.connection import Ledger
from feedback.lessons import Derived
from feedback.texts import fault_of, text_of

MILLION = 1_000_000
"""Weights are added up as whole millionths: a sum of floats would depend on the order of its parts."""


def tally_of(derived: Derived) -> Counter[str]:
    """One prompt's counts. Pairs that no job here can learn from are `unfit` and counted nowhere else."""
    counts: Counter[str] = Counter()
    for pair in derived.pairs:
        if fault := fault_of(pair):
            counts[f"unfit:{fault}"] += 1
            continue
        chosen, rejected = len(text_of(pair.chosen) or ""), len(text_of(pair.rejected) or "")
        counts[f"pairs:{pair.split}:{pair.source}"] += 1
        counts["weight:millionths"] += round(pair.weight * MILLION)
        counts["weight:contested"] += pair.weight < 1
        counts["characters:chosen"] += chosen
        counts["characters:rejected"] += rejected
        counts["characters:chosen_longer"] += chosen > rejected
    counts.update(f"unpaired:{'up' if one.label else 'down'}" for one in derived.unpaired)
    counts.update(f"left_out:{reason}" for reason in derived.left_out.values())
    counts["opinions:used"] += len({opinion_id for pair in derived.pairs for opinion_id in pair.opinions})
    return +counts


async def read(ledger: Ledger) -> Counter[str]:
    """The sum over all settled prompts."""
    return counted(await ledger.reply(ledger.redis.hgetall(ledger.keys.tally)))


def counted(found: dict[str, str]) -> Counter[str]:
    """The hash as Redis gives it, as counts."""
    return Counter({name: int(count) for name, count in found.items()})


def under(counts: Counter[str], prefix: str) -> dict[str, int]:
    """The counts whose names begin with `prefix:`, by the rest of the name."""
    return {
        name.removeprefix(f"{prefix}:"): count
        for name, count in sorted(counts.items())
        if name.startswith(f"{prefix}:")
    }
