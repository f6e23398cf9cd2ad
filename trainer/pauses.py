"""Pauses: training makes way, between two steps, while first tokens are late or, under `idle`, while there is traffic.

A file `pause` in the recipe's work folder is how it hears of it (trainer/watch.py). Memory stays taken: what is given
back is time on the GPU or the cores. The lease is kept meanwhile, by attempt.py.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from feedback import gpu
from feedback.errors import LedgerUnavailable
from feedback.gpu import Traffic
from trainer.progress import PAUSE
from trainer.settings import WorkshopSettings
from trainer.work import Work

log = logging.getLogger(__name__)

LOOK_S = 1.0

FIRST_WORD_S = 2.5
"""Gateways tell every second once somebody listens; after this silence means that there is no traffic."""

GOES_ON_AT = 0.7
"""Share of a bound that has to be reached before training goes on, or it would stop again at once."""


def too_much(traffic: Traffic, settings: WorkshopSettings, *, is_paused: bool) -> str | None:
    """Why training has to wait, in words; None where it has not to."""
    share = GOES_ON_AT if is_paused else 1.0
    p95, most_s = traffic.p95_s(), settings.first_token_p95_s
    if most_s and p95 is not None and p95 > share * most_s:
        return f"p95 of the time to first token is {p95:.2g} s, over {share * most_s:g} s (HEED_FIRST_TOKEN_P95_S)"
    most = settings.idle_requests_per_minute
    if settings.gpu_policy == "idle" and traffic.per_minute > share * most:
        words = "HEED_IDLE_REQUESTS_PER_MINUTE"
        return f"{traffic.per_minute:.0f} requests a minute come, over {share * most:g} ({words})"
    return None


class Pauses:
    """Of one recipe at work in `folder`."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.total_s = 0.0
        self._work = work
        self._file = folder / PAUSE
        self._since: float | None = None
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """While the block runs. Under `idle` it begins when there is little traffic."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        if self._work.settings.gpu_policy == "idle":
            await self._look()
            await asyncio.sleep(FIRST_WORD_S)
            await self._look()
        looking = asyncio.create_task(self._keep_looking())
        try:
            if self._work.settings.gpu_policy == "idle":
                await self._free.wait()
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._count()
            self._file.unlink(missing_ok=True)

    async def _keep_looking(self) -> None:
        while True:
            if not await self._look():
                return
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> bool:
        """Pause, go on, or leave it as it is; whether there is to be another look."""
        settings, ledger = self._work.settings, self._work.ledger
        if self._waited_s() >= settings.pause_most_s:
            await self._release(
                f"in spite of the traffic, {settings.pause_most_s:g} s of pauses are the most (HEED_PAUSE_MOST_S)",
                is_warning=True,
            )
            return False
        try:
            traffic = gpu.together([await gpu.hear(ledger.of(model)) for model in settings.names])
        except LedgerUnavailable as error:
            log.warning("%s: the traffic is not known: %s", self._work.job.id, error)
            return True
        why = too_much(traffic, settings, is_paused=self._since is not None)
        if why and self._since is None:
            self._since = time.monotonic()
            self._free.clear()
            self._file.touch()
            data = {"stage": "train", "paused": True, "why": why}
            await self._work.tell(f"Training paused: {why}", level="warn", data=data)
        elif why is None and self._since is not None:
            p95 = traffic.p95_s()
            now = f"p95 of the time to first token is {p95:.2g} s" if p95 is not None else "few streams begin"
            await self._release(f"{now}, {traffic.per_minute:.0f} requests a minute come")
        return True

    async def _release(self, why: str, *, is_warning: bool = False) -> None:
        paused_s = self._count()
        self._file.unlink(missing_ok=True)
        self._free.set()
        data = {"stage": "train", "paused": False, "seconds": round(paused_s, 1)}
        words = f"Training goes on after {paused_s:.0f} s: {why}"
        await self._work.tell(words, level="warn" if is_warning else "info", data=data)

    def _waited_s(self) -> float:
        return self.total_s + (time.monotonic() - self._since if self._since is not None else 0.0)

    def _count(self) -> float:
        """What the pause took that ends now."""
        took = time.monotonic() - self._since if self._since is not None else 0.0
        self.total_s += took
        self._since = None
        return took
