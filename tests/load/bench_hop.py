"""What the way through the gateway costs: `python -m tests.load.bench_hop`, part of `make bench`, prints the tables.

The same requests (752 bytes; answers of 1.5 KB, or streams of 128 events of 230 bytes) to the same stand-in for vLLM:
directly, through nginx, vllm-router, LiteLLM, and through Heed with a client's key and recording on, one process, with
a ledger that writes each act to disk (`appendfsync always`). In each round everybody is asked in random order. CPU time
is each process's own with its children, by the scheduler's count. Wall times share the cores with clients and engine.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.load.bench_votes import shares
from tests.load.contestants import KEY, Contestant, cpu_s, install, started
from tests.load.hop_upstream import EVENTS
from tests.processes import wait_for

HEED, UNRECORDED = "Heed", "Heed, store: false"


@dataclass(frozen=True)
class Course:
    """One way of asking. `dear`: how many answers of one who costs twenty times as much."""

    name: str
    clients: int
    answers: int
    dear: int
    flags: tuple[str, ...] = ()

    @property
    def parts(self) -> int:
        """What a figure is per: chunks of a stream, or the answer."""
        return EVENTS if "stream" in self.flags else 1


ALONE = Course("alone", 1, 300, 60)
CROWD = Course("crowd", 32, 3200, 160)
FEW = Course("few", 48, 48, 48, ("stream",))
MANY = Course("many", 320, 320, 0, ("stream",))
COURSES = (ALONE, CROWD, FEW, MANY)

Rounds = dict[tuple[str, str], list[float]]
"""Figures of each round by course and contestant."""


@dataclass
class Figures:
    cpu_us: Rounds
    p50_us: Rounds
    per_s: Rounds
    ledger_us: list[float]

    @classmethod
    def none(cls) -> "Figures":
        return cls(defaultdict(list), defaultdict(list), defaultdict(list), [])


def ask(who: Contestant, course: Course, figures: Figures, name: str) -> None:
    answers = course.dear if who.name == "LiteLLM" else course.answers
    if not answers:
        return
    flags = [*course.flags, *(["unrecorded"] if name == UNRECORDED else [])]
    command = [sys.executable, "-m", "tests.load.askers", str(who.port), str(course.clients), str(answers), KEY, *flags]
    before, ledger_before = who.cpu_s, cpu_s(who.ledger_pid) if who.ledger_pid else 0.0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}, {course.name}: {done.stderr[-500:]}"
    told = json.loads(done.stdout)
    parts = told["answers"] * course.parts
    at = course.name, name
    figures.cpu_us[at].append((who.cpu_s - before) / parts * 1e6)
    figures.p50_us[at].append(told["p50_us"])
    figures.per_s[at].append(parts / told["wall_s"])
    if who.ledger_pid and name == HEED and course is CROWD:
        figures.ledger_us.append((cpu_s(who.ledger_pid) - ledger_before) / parts * 1e6)


def run(contestants: Sequence[Contestant], courses: Sequence[Course], rounds: int, dice: random.Random) -> Figures:
    """The first round also connects, loads and compiles, and is not kept."""
    figures = Figures.none()
    for nth in range(rounds + 1):
        if nth == 1:
            figures = Figures.none()
        asked = [(who, course, who.name) for who in contestants for course in courses]
        asked += [(contestants[-1], course, UNRECORDED) for course in courses if course.parts == 1]
        dice.shuffle(asked)
        for who, course, name in asked:
            ask(who, course, figures, name)
    return figures


def spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def shown(values: Sequence[float]) -> str:
    return spread(values, ",.0f") if values else ""


def paired(one: Sequence[float], other: Sequence[float], by: Callable[[float, float], float]) -> list[float]:
    return [by(mine, theirs) for mine, theirs in zip(one, other, strict=True)]


def table(figures: Figures, names: Sequence[str]) -> str:
    lines = [
        "| hop | added p50 µs, 1 client | CPU µs/request, 32 clients | requests/s | CPU µs/chunk, 48 streams | 320 |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        waits, direct = figures.p50_us[ALONE.name, name], figures.p50_us[ALONE.name, "direct"]
        added = paired(waits, direct, lambda a, b: a - b) if name != "direct" else []
        crowd, few, many = (
            shown(figures.cpu_us[course.name, name] if name != "direct" else []) for course in (CROWD, FEW, MANY)
        )
        per_s = figures.per_s[CROWD.name, name]
        rate = f"{median(per_s):,.0f}" if per_s else ""
        lines.append(f"| {name} | {shown(added)} | {crowd} | {rate} | {few} | {many} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Goal:
    what: str
    found: list[float]
    limit: float
    is_least: bool = False

    @property
    def row(self) -> str:
        middle = median(self.found)
        is_met = middle >= self.limit if self.is_least else middle <= self.limit
        sign = "at least" if self.is_least else "at most"
        return (
            f"| {self.what} | {spread(self.found, ',.2f')} | {sign} {self.limit:g} | {'met' if is_met else 'not met'} |"
        )


def goals(figures: Figures) -> list[Goal]:
    def ratio(course: Course, one: str, other: str) -> list[float]:
        cpu = figures.cpu_us
        return paired(cpu[course.name, one], cpu[course.name, other], lambda a, b: a / b)

    def difference(found: Rounds, course: Course, one: str, other: str) -> list[float]:
        return paired(found[course.name, one], found[course.name, other], lambda a, b: a - b)

    return [
        Goal("CPU of a request, times vllm-router's", ratio(CROWD, HEED, "vllm-router"), 3),
        Goal("CPU of a request, LiteLLM's times ours", ratio(CROWD, "LiteLLM", HEED), 20, is_least=True),
        Goal("CPU of a chunk, 48 streams, times vllm-router's", ratio(FEW, HEED, "vllm-router"), 1.5),
        Goal("CPU of a chunk, 320 streams, times vllm-router's", ratio(MANY, HEED, "vllm-router"), 1.5),
        Goal("recording, CPU µs of a request", difference(figures.cpu_us, CROWD, HEED, UNRECORDED), 60),
        Goal("added p50 µs, one client", difference(figures.p50_us, ALONE, HEED, "direct"), 500),
        Goal("recording, p50 µs, one client", difference(figures.p50_us, ALONE, HEED, UNRECORDED), 0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only-heed", action="store_true", help="without the others, to see what a change did")
    parser.add_argument("--courses", default=",".join(course.name for course in COURSES))
    parser.add_argument(
        "--profile", action="store_true", help="a run of its own under cProfile, of the crowd and of streams"
    )
    asked = parser.parse_args()
    courses = [course for course in COURSES if course.name in asked.courses.split(",")]
    if not asked.only_heed:
        install()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), ["serve"], not asked.only_heed) as contestants:
        wait_for(lambda: _is_ready(contestants), "everybody answers", 120)
        figures = run(contestants, courses, asked.rounds, random.Random(0))
    names = [*(who.name for who in contestants), UNRECORDED]
    print(f"## The hop\n\n{asked.rounds} rounds, medians (least to most); ", end="")
    print(f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n{table(figures, names)}\n")
    if figures.ledger_us:
        print(f"The ledger's server takes {spread(figures.ledger_us, '.0f')} µs of CPU for each record.\n")
    if not asked.only_heed and len(courses) == len(COURSES):
        print("| goal | within a round, median (least to most) | asked for | |\n|---|---|---|---|")
        print("\n".join(goal.row for goal in goals(figures)))
    if asked.profile:
        for course in courses:
            print(f"\n{course.name}, under cProfile, which makes calls of Python functions look dearer:\n")
            print(profiled(course))


def profiled(course: Course) -> str:
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        with started(Path(folder), ["tests.load.profiled", str(profile)], False) as contestants:
            wait_for(lambda: _is_ready(contestants), "the gateway answers", 60)
            run([contestants[-1]], [course], 1, random.Random(0))
        return shares(profile)


def _is_ready(contestants: Sequence[Contestant]) -> bool:
    command = [sys.executable, "-m", "tests.load.askers"]
    return all(
        subprocess.run([*command, str(who.port), "1", "1", KEY], capture_output=True, check=False).returncode == 0
        for who in contestants
    )


if __name__ == "__main__":
    main()
