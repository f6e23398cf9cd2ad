"""The watch over a training: reports each step, seals checkpoints, and ends it early when somebody asks for that."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from trainer import checkpoints, device, machine
from trainer.progress import PAUSE, Reporter

INTERRUPTED, CANCELLED = 75, 76

LOOK_S = 0.1
"""Between two looks whether a pause is over."""


class Watch(TrainerCallback):
    def __init__(self, work: Path, reporter: Reporter, tokens: int) -> None:
        self.tokens = tokens
        self.stopped: int | None = None
        self._work, self._reporter = work, reporter
        self._parent = os.getppid()
        self._terminated = False
        self._began = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step
        self._make_way(state.global_step)

    @contextmanager
    def over_signals(self) -> Iterator[None]:
        """SIGTERM ends the training at its next step; afterwards it means what it meant before, to a process that goes
        on."""
        before = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < state.max_steps:
            self._make_way(state.global_step)
        if not (why := device.agreed(self._end())):
            return
        self.stopped = why
        control.should_save = control.should_training_stop = True

    def _end(self) -> int:
        """Why it has to stop; 0 where it has not to."""
        if (self._work / "cancel").exists():
            return CANCELLED
        return INTERRUPTED if self._terminated or machine.has_lost(self._parent) else 0

    def _make_way(self, step: int) -> None:
        """Wait while there is a pause. Its time is none of the training's."""
        began = time.monotonic()
        if not (self._work / PAUSE).exists():
            return
        self._reporter.emit("paused", step=step)
        while (self._work / PAUSE).exists() and not self._end():
            time.sleep(LOOK_S)
        paused_s = time.monotonic() - began
        self._began += paused_s
        self._reporter.emit("went_on", step=step, seconds=round(paused_s, 2))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoints.seal(self._work / f"checkpoint-{state.global_step}")
            self._reporter.emit("checkpoint", step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        passed_s = time.monotonic() - self._began
        taken = max(state.global_step - self._first_step, 1)
        per_step = self.tokens * args.num_train_epochs / max(state.max_steps, 1)
        self._reporter.emit(
            "step",
            step=state.global_step,
            steps=state.max_steps,
            metrics={name: float(value) for name, value in logs.items()},
            tokens_per_second=round(per_step * taken / max(passed_s, 1e-9), 1),
            seconds_left=round(passed_s / taken * (state.max_steps - state.global_step), 1),
        )
