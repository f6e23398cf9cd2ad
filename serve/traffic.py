"""Traffic: how much was asked lately, and how long first tokens took, told to a workshop that listens.

It trains on what answers are computed on, and pauses by these numbers (feedback/gpu.py). A stream that still waits for
its first token counts by what it has waited so far, or an engine that gives none at all would look like one without
traffic.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from feedback import gpu
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable
from feedback.gpu import WINDOW_S

log = logging.getLogger("heed.gateway")

TELL_EVERY_S = 1.0

LONG_S = 1.0
"""What a stream must have waited to count before its first token has come: what is shorter says nothing yet."""


@dataclass
class Second:
    requests: int = 0
    first_tokens: Counter[int] = field(default_factory=Counter)


class Lately:
    """Of one served model in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[int, Second] = {}
        self._waiting: dict[object, float] = {}

    def came(self, request: object, *, is_stream: bool) -> None:
        self._now().requests += 1
        if is_stream:
            self._waiting[request] = self._clock()

    def began(self, request: object, first_s: float) -> None:
        """Its first token has come."""
        self._waiting.pop(request, None)
        self._now().first_tokens[gpu.bucket_of(first_s)] += 1

    def ended(self, request: object) -> None:
        self._waiting.pop(request, None)

    def told(self) -> gpu.Traffic:
        now = self._clock()
        self._forget()
        first_tokens = Counter[int]()
        for second in self._seconds.values():
            first_tokens.update(second.first_tokens)
        waits = (now - since for since in self._waiting.values())
        first_tokens.update(gpu.bucket_of(wait) for wait in waits if wait >= LONG_S)
        requests = sum(second.requests for second in self._seconds.values())
        return gpu.Traffic(requests=requests, first_tokens=dict(first_tokens))

    def _now(self) -> Second:
        number = int(self._clock())
        if number not in self._seconds:
            self._forget()
            self._seconds[number] = Second()
        return self._seconds[number]

    def _forget(self) -> None:
        oldest = int(self._clock()) - WINDOW_S
        for number in [number for number in self._seconds if number <= oldest]:
            del self._seconds[number]


class Traffic:
    def __init__(self, process: str, ledgers: Mapping[str, Ledger]) -> None:
        """`process` tells this process from all others."""
        self._process = process
        self._ledgers = ledgers
        self._lately = {model: Lately() for model in ledgers}

    def of(self, model: str) -> Lately:
        return self._lately[model]

    async def run(self) -> None:
        while True:
            await asyncio.gather(*(self._tell(model) for model in self._ledgers))
            await asyncio.sleep(TELL_EVERY_S)

    async def _tell(self, model: str) -> None:
        try:
            await gpu.tell(self._ledgers[model], self._process, self._lately[model].told())
        except LedgerUnavailable as error:
            log.info("the traffic of %s was not told: %s", model, error)
