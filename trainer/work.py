"""Work: one claimed job on one worker, and how it speaks to the ledger while it lasts."""

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from feedback import jobs
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable
from feedback.records import Job
from trainer.manifest import Manifest
from trainer.settings import WorkshopSettings

log = logging.getLogger(__name__)
Result = TypeVar("Result")
LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}

LEDGER_PAUSE_S = 0.5
"""Between two tries at a ledger that is away: short beside any stage, long beside a refused connection."""


@dataclass
class Work:
    ledger: Ledger
    settings: WorkshopSettings
    job: Job
    token: str
    is_ending: bool = False

    @property
    def folder(self) -> Path:
        return self.settings.job_folder(self.job.id)

    def tidy(self) -> None:
        """Of an ended job stay manifest, evaluation and logs: no texts of people, no checkpoints, no second copy."""
        for name in ("work", "adapter", "scaled", "appraised"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("train.jsonl", "heldout.jsonl", "earlier.jsonl"):
            (self.folder / name).unlink(missing_ok=True)

    async def save(self, **learnt: Any) -> None:
        """Keep it in the job's record. Raises JobLeaseLost, JobFinished."""
        self.job = self.job.model_copy(update=learnt)
        await self.patiently(lambda: jobs.save(self.ledger, self.job, self.token))

    async def patiently(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Until the ledger takes it, however long it is away: the heartbeat says when to stop waiting."""
        while True:
            try:
                return await act()
            except LedgerUnavailable as error:
                log.warning("%s: %s", self.job.id, error)
                await asyncio.sleep(LEDGER_PAUSE_S)

    async def tell(
        self,
        message: str,
        level: Literal["info", "warn", "error"] = "info",
        type: Literal["message", "metrics", "checkpoint"] = "message",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Add to the job's events and to the worker's log. An event that nobody gets to see does not stop training."""
        log.log(LEVELS[level], "%s: %s", self.job.id, message)
        try:
            await jobs.tell(self.ledger, self.job.id, message, level=level, type=type, data=data)
        except LedgerUnavailable as error:
            log.warning("%s: event not kept (%s): %s", self.job.id, error, message)

    @asynccontextmanager
    async def stage(self, known: Manifest, name: str) -> AsyncIterator[None]:
        """When the block ends well, what it noted in the manifest is kept with the time it took."""
        began = time.monotonic()
        yield
        known.seconds[name] = round(time.monotonic() - began, 3)
        known.write(self.folder)
