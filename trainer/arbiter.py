"""The arbiter: when a recipe may use what answers are computed on, by HEED_GPU_POLICY (docs/gpu.md)."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from trainer.child import PATIENCE_S, Event, run_recipe
from trainer.pauses import Pauses
from trainer.slices import Slices
from trainer.work import Work


class Arbiter:
    def __init__(self, work: Work) -> None:
        self.waited_s = 0.0
        """What recipes made way for answers."""
        self._work = work

    async def run(
        self,
        arguments: Sequence[str],
        on_event: Callable[[Event], Awaitable[None]],
        folder: Path | None = None,
        processes: int = 1,
    ) -> Event:
        """As run_recipe; `folder` is the work folder of a recipe that trains, which alone can be interrupted.

        Raises RecipeFailed.
        """
        policy, nice = self._work.settings.gpu_policy, self._work.settings.nice
        log = self._work.folder / f"{arguments[0]}.log"

        async def recipe(patience_s: float) -> Event:
            return await run_recipe(arguments, log, nice, on_event, patience_s, processes)

        if policy == "sleep":
            slices = Slices(self._work, arguments[0], folder)
            try:
                return await slices.run(recipe)
            finally:
                self.waited_s += slices.waited_s
        if policy == "dedicated" or folder is None:
            return await recipe(PATIENCE_S)
        pauses = Pauses(self._work, folder)
        try:
            async with pauses.kept():
                return await recipe(PATIENCE_S)
        finally:
            self.waited_s += pauses.total_s
