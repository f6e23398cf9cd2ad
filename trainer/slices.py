"""Slices: under `sleep` a recipe has the GPU's memory while the engines sleep, and gives it back before they wake.

Memory can be given back for certain by ending the process alone, so a slice ends with SIGTERM, on which a recipe that
trains saves a checkpoint, and the next slice goes on from there, with the bytes of a run that was never interrupted.
Each slice pays for a start and a load of the base; a stage that cannot be interrupted has to end within one.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from feedback import gpu
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable
from trainer.child import Event, RecipeFailed
from trainer.work import Work

LOOK_S = 0.5

HAND_BACK_S = 10.0
"""Before the deadline a recipe is told to end; after all but HELD_S of it, it is killed."""
HELD_S = 2.0

GRANTED_WITHIN_S = 120.0
"""Engines may be busy with a load or a restart; a gateway of another policy never grants."""

Run = Callable[[float], Awaitable[Event]]
"""Of a recipe, which when cancelled has so many seconds to end by itself."""


class Slices:
    def __init__(self, work: Work, title: str, folder: Path | None) -> None:
        """`folder` holds the checkpoints of a recipe that can be interrupted."""
        self.waited_s = 0.0
        self._work = work
        self._title = title
        self._folder = folder

    async def run(self, recipe: Run) -> Event:
        """Raises RecipeFailed."""
        while True:
            before = self._saved()
            if (done := await self._slice(recipe)) is not None:
                return done
            slept = f"while the engines slept, {self._work.settings.gpu_stall_s:g} s at most (HEED_GPU_STALL_S)"
            if self._folder is None:
                raise RecipeFailed(f"{self._title} did not end {slept}, and cannot be interrupted; give it longer")
            if self._saved() == before:
                raise RecipeFailed(f"{self._title} saved no step {slept}, and would never end; give it longer")
            await self._rest(self._work.settings.gpu_awake_s)

    async def _slice(self, recipe: Run) -> Event | None:
        """None where its time was over first."""
        token = secrets.token_hex(8)
        began = time.monotonic()
        try:
            until = await self._granted(token)
            self.waited_s += time.monotonic() - began
            labour = asyncio.ensure_future(recipe(HAND_BACK_S - HELD_S))
            try:
                while await self._may_go_on(token, until):
                    if (await asyncio.wait({labour}, timeout=LOOK_S))[0]:
                        return labour.result()
                return labour.result() if labour.done() else None
            finally:
                labour.cancel()
                await asyncio.gather(labour, return_exceptions=True)
        finally:
            with suppress(LedgerUnavailable):  # the wish ends by itself
                await gpu.end(self._ledger, token)

    async def _granted(self, token: str) -> float:
        """Until when. Raises RecipeFailed."""
        await self._work.tell(f"Waiting for the engines to sleep ({self._title})", data={"stage": "train"})
        end = time.monotonic() + GRANTED_WITHIN_S
        while time.monotonic() < end:
            with suppress(LedgerUnavailable):
                await gpu.wish(self._ledger, token)
                found = await gpu.granted(self._ledger)
                if found is not None and found.token == token:
                    if found.refusal:
                        raise RecipeFailed(f"{self._title} cannot begin: {found.refusal}")
                    return found.until
            await asyncio.sleep(LOOK_S)
        raise RecipeFailed(
            f"{self._title} cannot begin: no gateway let its engines sleep within {GRANTED_WITHIN_S:g} s; all must "
            "have HEED_GPU_POLICY=sleep and the same first model in HEED_MODELS"
        )

    async def _may_go_on(self, token: str, until: float) -> bool:
        if time.time() >= until - HAND_BACK_S:
            return False
        try:
            is_ours = await gpu.wish(self._ledger, token)
            found = await gpu.granted(self._ledger)
        except LedgerUnavailable:
            return True  # the gateways, who cannot read the wish either, go by the deadline
        return is_ours and found is not None and found.token == token

    async def _rest(self, awake_s: float) -> None:
        """Until the engines are awake, and then as long as answers are to have them for themselves."""
        began = time.monotonic()
        while True:
            if not await self._is_granted() or time.monotonic() - began > 2 * self._work.settings.gpu_stall_s:
                break
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(awake_s)
        self.waited_s += time.monotonic() - began

    async def _is_granted(self) -> bool:
        try:
            return await gpu.granted(self._ledger) is not None
        except LedgerUnavailable:
            return True

    @property
    def _ledger(self) -> Ledger:
        return self._work.ledger.of(self._work.settings.names[0])

    def _saved(self) -> set[str]:
        return {path.parent.name for path in self._folder.glob("checkpoint-*/seal.json")} if self._folder else set()
