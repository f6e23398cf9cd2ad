"""Cells of the table: one victim, one harm, at a random moment under chat, votes and a job that trains.

Afterwards the crowd comes to rest and the job to its end, and everything is compared with what it has to be.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from feedback.connection import open_ledger
from tests.faults import partitions
from tests.faults.book import seen
from tests.faults.crowd import Crowd, crowd
from tests.faults.harms import WORDS, Harm, Harmed, inflict
from tests.faults.network import Network
from tests.faults.spread import CLIENT, SpreadHouse, spread_house
from tests.faults.victims import VICTIMS, Victim
from tests.gateways import until
from tests.processes import living
from tests.workshop import taught

FIRST_JOB_S = 20.0
WITHIN = 0.75
"""A harm falls at any moment within so much of the time that the quickest job before took, once a worker has the next;
that of the first is guessed. A job that ends before is followed by another."""

ACTS_AFTER = 64
"""Acknowledged before the house is looked at, so that whatever broke has been used."""

MENDS_WITHIN_S = 180
JOB_WITHIN_S = 300
LOOK_S = 0.1
PACE_S = 0.5
"""A client's rest after each act: on two cores a crowd that never rests would leave nothing for the training."""

ENDS = ("succeeded", "failed", "cancelled")

Json = dict[str, Any]


@dataclass
class Cell:
    victim: str
    harm: Harm
    seed: int
    lasts_s: float
    after_s: float
    """Between the beginning of the job and the harm's."""
    stage: str
    meanwhile: int
    """Acts acknowledged while the harm lasted."""
    outcomes: dict[str, int]
    """What clients saw from its beginning until the house had mended, by request and code."""
    longest_s: dict[str, float]
    mended_s: float
    """From the harm's end on."""
    job_s: float
    attempts: int
    problems: list[str]


async def endure(
    var: Path,
    asked: Sequence[tuple[str, Harm]],
    *,
    seed: int,
    lasts_s: float,
    clients: int,
    replicas: int,
    network: Network | None,
    env: dict[str, str],
    say: Callable[[str], None],
) -> list[Cell]:
    """All of them in one house, one after the other. Without replicas the engine is scripted."""
    cells: list[Cell] = []
    async with spread_house(var, replicas=replicas, network=network, env=env) as home:
        say(f"the house is ready: {', '.join(home.parts)}")
        async with crowd(home.stack.gateway_url, home.engine, clients, f"{seed}", CLIENT, PACE_S) as voters:
            await _begin(home, voters)
            jobs: list[str] = []
            jobs_s: list[float] = []
            for name, harm in asked:
                cell = await _cell(home, voters, VICTIMS[name], harm, seed, lasts_s, jobs, jobs_s)
                cells.append(cell)
                say(f"{row(cell)}{''.join(f'{chr(10)}  broken: {one}' for one in cell.problems[:20])}")
    if left := living(processes_of(var)):
        cells[-1].problems.append(f"{len(left)} processes were left when the house had ended: {left}")
    return cells


async def _begin(home: SpreadHouse, voters: Crowd) -> None:
    """There is something to learn, and the crowd's book knows who said it."""
    ledger = open_ledger(home.ledger_settings)
    try:
        await taught(ledger)
    finally:
        await ledger.close()
    for record in await home.listed("/v1/votes"):
        about, said = seen(record)
        voters.book.note(about, said, "taught")
        voters.book.ids[about] = record["id"]


async def _cell(
    home: SpreadHouse,
    voters: Crowd,
    victim: Victim,
    harm: Harm,
    seed: int,
    lasts_s: float,
    jobs: list[str],
    jobs_s: list[float],
) -> Cell:
    share = random.Random(f"{seed}/{victim.name}/{harm}").uniform(0, WITHIN)
    voters.may_act.set()
    while True:
        job = await home.ask_for_job(seed=seed)
        jobs.append(job)
        await _has_status(home, job, ["running"])
        after_s = share * min(jobs_s, default=FIRST_JOB_S)
        await asyncio.sleep(after_s)
        stage = await home.stage_of(job)
        if (told := await _has_status(home, job, ["running", *ENDS]))["status"] == "running":
            break
        jobs_s.append(told["finished_at"] - told["started_at"])
    before, acts = Counter(voters.outcomes), voters.acts
    voters.longest_s = dict.fromkeys(voters.longest_s, 0.0)
    harmed = await inflict(home, victim.part(home, job), harm, lasts_s)
    meanwhile = voters.acts - acts
    problems = await _mended(home, voters, victim, harmed, job)
    mended_s = time.monotonic() - harmed.ended
    outcomes, longest_s = dict(Counter(voters.outcomes) - before), dict(voters.longest_s)
    wanted = voters.acts + ACTS_AFTER
    await until(lambda: voters.acts >= wanted, "the crowd is at work", MENDS_WITHIN_S)
    done = await _has_status(home, job, ENDS)
    await voters.pause()
    jobs_s.append(done["finished_at"] - done["started_at"])
    problems += await _broken(home, voters, jobs)
    return Cell(
        victim.name,
        harm,
        seed,
        lasts_s if harm != "kill" else 0,
        after_s,
        stage,
        meanwhile,
        outcomes,
        longest_s,
        mended_s,
        jobs_s[-1],
        done["attempts"],
        problems,
    )


async def _mended(home: SpreadHouse, voters: Crowd, victim: Victim, harmed: Harmed, job: str) -> list[str]:
    """What had not mended in time."""
    end = time.monotonic() + MENDS_WITHIN_S
    while True:
        late = [
            *(
                []
                if home.is_up(harmed.part, harmed.pid if harmed.harm == "kill" else None)
                else [f"{harmed.part} was not back"]
            ),
            *([] if voters.has_had_an_answer_since(harmed.ended) else ["no vote was acknowledged"]),
            *([] if voters.has_been_answered_since(harmed.ended) else ["no question was answered"]),
        ]
        if not late and not await victim.is_at_work(home, harmed, job):
            late.append(f"not seen: {victim.sign}")
        if not late:
            return []
        if time.monotonic() > end:
            return [f"{one} within {MENDS_WITHIN_S} s" for one in late]
        await asyncio.sleep(LOOK_S)


async def _has_status(home: SpreadHouse, job: str, wanted: Sequence[str]) -> Json:
    """The job, once it has one of these."""
    end = time.monotonic() + JOB_WITHIN_S
    while (told := await home.told(f"/v1/fine_tuning/jobs/{job}")) is None or told["status"] not in wanted:
        assert time.monotonic() < end, f"{job} is {' or '.join(wanted)}: not within {JOB_WITHIN_S} s"
        await asyncio.sleep(LOOK_S)
    return told


async def _broken(home: SpreadHouse, voters: Crowd, jobs: Sequence[str]) -> list[str]:
    """Of a house that mended, a crowd at rest and a job that ended."""
    problems = await home.unsettled()
    for job in jobs:
        told = await home.told(f"/v1/fine_tuning/jobs/{job}") or {}
        if told.get("status") != "succeeded":
            problems.append(f"{job} is {told.get('status')}: {told.get('error')}")
        made = [one["id"] for one in await home.listed("/v1/adapters") if one["job"] == job]
        if made != [told.get("fine_tuned_model")]:
            problems.append(f"{job} names {told.get('fine_tuned_model')} and has the adapters {made}")
    problems += [f"{name} is not at the broker" for name in await home.absent_workers()]
    problems += [f"an orphan: {one}" for one in orphans(home)]
    problems += await partitions.broken(home)
    problems += (await home.audit(voters.book)).problems
    return problems + [f"heed check: {one}" for one in await home.check()]


def processes_of(var: Path) -> list[psutil.Process]:
    """That were told of this house, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HEED_VAR") == str(var):
                found.append(process)
        except psutil.Error:
            continue  # it ended, or is somebody else's
    return found


def orphans(home: SpreadHouse) -> list[str]:
    """Processes outside every service's session, and recipes: no job is open."""
    sessions = {home.supervisor.pid_of(name) for name in home.parts}
    found = []
    for process in living(processes_of(home.stack.var)):
        try:
            words = process.cmdline()
            if os.getsid(process.pid) not in sessions or words[1:3] == ["-m", "trainer"]:
                found.append(f"{process.pid} {' '.join(words)[:120]}")
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def row(cell: Cell) -> str:
    """Of the table."""
    counts: Counter[str] = Counter()
    for name, times in cell.outcomes.items():
        kind, _, code = name.partition(" ")
        counts[f"{'ask' if kind in ('ask', 'answered') else 'vote'} {code.removeprefix('and ')}"] += times
    figures = [
        cell.victim,
        WORDS[cell.harm] + (f", {cell.lasts_s:g} s" if cell.lasts_s else ""),
        f"{cell.seed}",
        f"{cell.after_s:.1f} s, {cell.stage}",
        f"{cell.meanwhile}" if cell.lasts_s else "",
        _told(counts, "vote") + f"; {cell.longest_s['vote']:.1f} s",
        _told(counts, "ask") + f"; {cell.longest_s['answer']:.1f} s",
        f"{cell.mended_s:.1f} s",
        f"{cell.job_s:.0f} s ({cell.attempts})",
        f"{len(cell.problems)}",
    ]
    return f"| {' | '.join(figures)} |"


NAMES = (
    "victim, harm, seed, when in the job, votes meanwhile, votes: codes; longest wait, questions: codes; longest wait, "
    "mended after, job (attempts), broken"
)


def _told(counts: Counter[str], kind: str) -> str:
    return ", ".join(
        f"{times} {name.removeprefix(f'{kind} ')}" for name, times in sorted(counts.items()) if name.startswith(kind)
    )


def table(cells: Sequence[Cell]) -> str:
    names = NAMES.split(", ")
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(row(cell) for cell in cells)])
