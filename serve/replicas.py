"""One engine among others: whether it is well, what it holds, and how much it has to do."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from serve.engine import Engine
from serve.upstream import Asking


@dataclass(eq=False)
class Replica:
    """An engine, what it lists, and what of that is fit for traffic (loaded, verified, probed: see hotswap.py)."""

    engine: Engine
    name: str = "engine"
    is_up: bool = False
    why_down: str = "does not answer yet"
    lists: dict[str, str | None] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    in_flight: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    """Requests in flight, of all adapters."""
    unbegun: dict[Asking, str] = field(default_factory=dict)
    """Those of them whose client has no byte yet, and the adapter that each is for."""
    life: int = 0
    """How often it was given up: one that comes back has restarted, and a request may be sent to it again."""
    failures: int = 0
    """Lives in a row that ended in broken requests; forgiven after twice the longest rest."""
    failed_at: float = 0.0
    rests_until: float = 0.0
    barred: str = ""
    """Why it takes no traffic although it answers (serve/sleeper.py)."""

    def forget(self, why: str) -> None:
        """It restarted or died: what it held must be shown again."""
        self.is_up = False
        self.why_down = why
        self.lists = {}
        self.holds.clear()
        self.life += 1

    def eject(self, why: str, rest_s: float, most_s: float) -> None:
        """It broke requests. From the second time in a row on it rests, longer each time, whatever it says of itself.

        A first time is a restart like any other, and it is back as soon as it shows that it is well. Rests differ by
        chance, so that replicas that broke together do not come back together.
        """
        self.forget(why)
        now = time.monotonic()
        self.failures = self.failures + 1 if now < self.failed_at + 2 * most_s else 1
        self.failed_at = now
        if self.failures > 1:
            rest = min(most_s, rest_s * 2.0 ** min(self.failures - 2, 30))
            self.rests_until = now + rest * random.uniform(0.75, 1.25)

    def bar(self, why: str) -> None:
        self.barred = why
        self.forget(why)

    @property
    def is_resting(self) -> bool:
        return time.monotonic() < self.rests_until

    def described(self) -> dict[str, object]:
        state = "up" if self.is_up else "resting" if self.is_resting else "down"
        told = {"name": self.name, "state": state, "in_flight": self.busy, "holds": sorted(self.holds)}
        return told if self.is_up else {**told, "why": self.why_down}
