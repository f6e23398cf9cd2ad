"""`redis-benchmark` with the Lua call of a vote: what the ledger's server does when nothing of Heed is in between.

Debian has it in redis-tools; the ledger's own wheel has not. It draws each of its random numbers anew, so an id and
its key could not agree on one of many completions: here all votes are on one, each by a voter of its own.
"""

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from feedback import votes
from feedback.commits import Act, Argument, Commits
from feedback.connection import Ledger, open_ledger
from feedback.errors import LedgerUnavailable
from feedback.records import Vote
from feedback.settings import LedgerSettings

RANDOM = "__rand_int__"  # of it redis-benchmark makes twelve digits
VOTER = "voter-of-benchmark"
NUMBERS = 10**11


@dataclass
class Figures:
    per_s: float
    p50_ms: float
    p99_ms: float


def is_there() -> bool:
    return shutil.which("redis-benchmark") is not None


class Noted(Commits):
    """Writes down what would be sent, and sends nothing."""

    def __init__(self) -> None:
        self.acts: list[Act] = []

    async def close(self) -> None:
        pass  # nothing is under way

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, is_kept: bool = False) -> Any:
        self.acts.append(Act(script, keys, args, asyncio.get_running_loop().create_future()))
        raise LedgerUnavailable("noted")


async def call(url: str, completion_id: str) -> list[str]:
    """A vote's script as redis-benchmark takes it; the script is known to the server then."""
    ledger = open_ledger(LedgerSettings(ledger_url=url))
    script = str(await ledger.reply(ledger.redis.script_load(votes.CAST)))
    noted = ledger.commits = Noted()
    with suppress(LedgerUnavailable):
        await votes.cast(ledger, completion_id=completion_id, rating="up", voter=VOTER, is_paced=True)
    await ledger.close()
    (act,) = noted.acts
    parts = [part.decode() if isinstance(part, bytes) else str(part) for part in (*act.keys, *act.args)]
    return ["EVALSHA", script, str(len(act.keys)), *(_randomized(ledger, part, completion_id) for part in parts)]


def _randomized(ledger: Ledger, part: str, completion_id: str) -> str:
    """Its opinion and its voter replaced by drawn ones, of the same length."""
    voter = ledger.keys.voter_pace(VOTER).split(":")[-2]
    opinion = Vote.id_of(completion_id, 0, VOTER).removeprefix("vote-")
    part = part.replace(voter, RANDOM.ljust(len(voter), "0")).replace(opinion, RANDOM.ljust(len(opinion), "0"))
    return part.replace(VOTER, f"voter-{RANDOM}")


def run(port: int, url: str, completion_id: str, count: int, clients: int) -> Figures:
    command = ["redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(count), "-r", str(NUMBERS), "--csv"]
    asked = asyncio.run(call(url, completion_id))
    before = asyncio.run(_votes(url))
    done = subprocess.run([*command, *asked], capture_output=True, check=True, text=True)
    assert asyncio.run(_votes(url)) == before + count, done.stdout
    # Header, figures; the name of the test, which is the call itself, has commas too.
    per_s, _, _, p50, _, p99, _ = (float(cell.strip('"')) for cell in done.stdout.splitlines()[-1].rsplit(",", 7)[1:])
    return Figures(per_s, p50, p99)


async def _votes(url: str) -> int:
    ledger = open_ledger(LedgerSettings(ledger_url=url))
    try:
        return int(await ledger.reply(ledger.redis.zcard(ledger.keys.votes)))
    finally:
        await ledger.close()
