"""How often a canary's votes lead to a wrong end, and after how many they lead to one: simulated trials.

    python -m tests.load.canary_trials --runs 400 --seed 0

Each trial draws users until the interval of `feedback/confidence.py` says what is asked of it, looking after every
vote, or until `--users` have voted. `naive` is an ordinary interval of 95 % looked at as often (a z-test of two
proportions from the tenth vote of each side on), and `votes` counts every vote of users who vote up to fifty times.
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from feedback.confidence import Region, Sample
from feedback.settings import LedgerSettings

LIMITS = LedgerSettings()
LEVEL, MARGIN = LIMITS.canary_level / 2, LIMITS.canary_margin
Z = 1.96
NAIVE_FROM = 10


@dataclass
class Counted:
    n: list[int] = field(default_factory=lambda: [0, 0])
    up: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, arm: int, is_up: bool) -> None:
        self.n[arm] += 1
        self.up[arm] += is_up

    @property
    def difference(self) -> float:
        return self.up[1] / self.n[1] - self.up[0] / self.n[0]

    @property
    def region(self) -> Region:
        control, canary = (Sample(n, up) for n, up in zip(self.n, self.up, strict=True))
        return Region(control, canary, LEVEL)


Ends = Callable[[Counted], str | None]


def ours(found: Counted) -> str | None:
    """As feedback/canary_verdict.py decides on votes; only the ends it needs are computed."""
    if not min(found.n):
        return None
    if found.difference < 0 and found.region.excludes():
        return "back"
    return "live" if found.difference > -MARGIN and found.region.excludes(-MARGIN) else None


def ours_other(found: Counted) -> str | None:
    """Whether it ever says that two which are the same are not."""
    return "back" if min(found.n) and found.region.excludes() else None


def naive_other(found: Counted) -> str | None:
    if min(found.n) < NAIVE_FROM:
        return None
    pooled = sum(found.up) / sum(found.n)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / found.n[0] + 1 / found.n[1]))
    return "back" if spread and abs(found.difference) > Z * spread else None


def trial(chance: random.Random, ends: Ends, users: int, share: float, rates: tuple[float, float]) -> tuple[str, int]:
    """What it came to, and after how many votes."""
    found = Counted()
    for nth in range(1, users + 1):
        arm = int(chance.random() < share)
        found.add(arm, chance.random() < rates[arm])
        if end := ends(found):
            return end, nth
    return "open", users


def crowded(chance: random.Random, ends: Ends, users: int, is_once: bool) -> tuple[str, int]:
    """Users who like much or little and vote one to fifty times; both sides are the same."""
    found, votes = Counted(), 0
    for _ in range(users):
        arm, liking = int(chance.random() < 0.5), chance.betavariate(1, 1)
        for _ in range(1 if is_once else chance.randint(1, 50)):
            votes += 1
            found.add(arm, chance.random() < liking)
            if end := ends(found):
                return end, votes
    return "open", votes


def row(name: str, outcomes: list[tuple[str, int]]) -> str:
    runs = len(outcomes)
    shares = [sum(end == one for one, _ in outcomes) / runs for end in ("live", "back", "open")]
    ended = [votes for end, votes in outcomes if end != "open"]
    after = f"{median(ended):.0f}" if ended else "-"
    return f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {after} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=400)
    options.add_argument("--users", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()

    def runs(act: Callable[[random.Random], tuple[str, int]]) -> list[tuple[str, int]]:
        return [act(random.Random(f"{given.seed} {nth}")) for nth in range(given.runs)]

    print(f"level {LEVEL:g} for the votes, margin {MARGIN:g}, {given.runs} trials of at most {given.users} votes\n")
    print("| nothing differs | ends live | ends back | stays open | votes at the end, median |\n|---|---|---|---|---|")
    print(
        row(
            "always-valid, one vote a user",
            runs(partial(trial, ends=ours_other, users=given.users, share=0.5, rates=(0.6, 0.6))),
        )
    )
    print(
        row(
            "naive, one vote a user",
            runs(partial(trial, ends=naive_other, users=given.users, share=0.5, rates=(0.6, 0.6))),
        )
    )
    for name, is_once in (("one vote a user of many tastes", True), ("all their votes, up to fifty a user", False)):
        print(row(f"always-valid, {name}", runs(partial(crowded, ends=ours_other, users=200, is_once=is_once))))
    print("\n| live, canary | share | ends live | ends back | stays open | votes at the end, median |")
    print("|---|---|---|---|---|---|")
    for share in (0.5, 0.1):
        for canary in (0.3, 0.5, 0.55, 0.6, 0.7, 0.85):
            act = partial(trial, ends=ours, users=given.users, share=share, rates=(0.6, canary))
            print(row(f"60 %, {canary:.0%} | {share:.0%}", runs(act)), flush=True)


if __name__ == "__main__":
    main()
