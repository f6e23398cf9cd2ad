"""A trial: one fault, many times at random moments under load; after each the books are balanced and checked."""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults import partitions
from tests.faults.book import Audit
from tests.faults.crowd import Crowd, crowd
from tests.faults.faults import Fault
from tests.faults.house import House, house
from tests.gateways import until

LATEST_S = 1.5
"""A strike falls at any moment within this, once the crowd is at work."""

ACTS_AROUND = 64
"""Acknowledged before a strike and again after it: two for each of 32 clients."""

WITHIN_S = 90
"""Patience with a house that mends, or a crowd that works, on a busy machine."""


@dataclass
class Blow:
    """One strike and what came of it."""

    after_s: float
    in_flight: int
    mended_s: float
    found: str
    problems: list[str]


@dataclass
class Row:
    fault: str
    seed: int
    clients: int
    blows: list[Blow] = field(default_factory=list)
    acts: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    retried_acted: int = 0
    audit: Audit | None = None
    took_s: float = 0

    @property
    def problems(self) -> list[str]:
        return [problem for blow in self.blows for problem in blow.problems]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def endure(
    fault: Fault,
    *,
    strikes: int,
    seed: int,
    clients: int,
    env: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Row:
    row, began = Row(fault.name, seed, clients), time.monotonic()
    dice = random.Random(f"{seed}/{fault.name}")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            house(Path(folder), env or {}) as home,
            crowd(home.stack.gateway_url, home.engine, clients, f"{seed}/{fault.name}") as voters,
        ):
            for number in range(1, strikes + 1):
                blow = await _blow(fault, home, voters, dice.uniform(0, LATEST_S))
                blow.problems += await partitions.broken(home)
                row.audit = await home.audit(voters.book)
                blow.problems += [*row.audit.problems, *(f"heed check: {one}" for one in await home.check())]
                row.blows.append(blow)
                say(
                    f"{fault.name} {number}{blow.found}: {voters.acts} acts acknowledged, {blow.in_flight} in flight, "
                    f"mended in {blow.mended_s:.2f} s, {len(blow.problems)} problems"
                )
            row.acts, row.outcomes = dict(voters.book.acts), dict(sorted(voters.outcomes.items()))
            row.retried, row.retried_acted = voters.book.retried, voters.book.retried_acted
    row.took_s = time.monotonic() - began
    return row


async def _blow(fault: Fault, home: House, voters: Crowd, after_s: float) -> Blow:
    voters.may_act.set()
    await _until_acts(voters)
    await asyncio.sleep(after_s)  # the random moment
    in_flight = voters.in_flight
    strike = await fault.strike(home)
    await until(lambda: fault.is_mended(home, voters, strike), f"the house mends after {fault.name}", WITHIN_S)
    mended_s = time.monotonic() - strike.at
    await _until_acts(voters)
    await voters.pause()
    return Blow(after_s, in_flight, mended_s, strike.found, [])


async def _until_acts(voters: Crowd) -> None:
    wanted = voters.acts + ACTS_AROUND
    await until(lambda: voters.acts >= wanted, "the crowd is at work", WITHIN_S)


def table(rows: Sequence[Row]) -> str:
    """Opinions are counted by their latest acknowledged state; of what was sent twice or given up, how much had acted
    without a word is told behind it.
    """
    columns = "fault, times, acts acknowledged, sent again (had acted), given up (acted), opinions sent, found, doubled"
    names = [*columns.split(", "), "answers sent", "found", "mended after, median (worst)", "broken"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        audit, waits = row.audit, [blow.mended_s for blow in row.blows]
        assert audit is not None
        figures = [
            row.fault,
            f"{len(row.blows)}",
            f"{sum(row.acts.values()):,}",
            f"{row.retried:,} ({row.retried_acted})",
            f"{audit.abandoned:,} ({audit.abandoned_acted})",
            f"{audit.sent:,}",
            f"{audit.found:,}",
            f"{audit.duplicates}",
            f"{audit.answers_sent:,}",
            f"{audit.answers_found:,}",
            f"{median(waits):.1f} ({max(waits):.1f}) s",
            f"{len(row.problems)}",
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)
