"""Progress: what a recipe says while it runs, as JSON lines for a worker or as a bar for a person.

The recipe owns standard output: libraries that print are sent to standard error, so every line is an event.
"""

import contextlib
import json
import os
import sys
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Style = Literal["jsonl", "bar"]

PAUSE = "pause"
"""A file in the work folder: between two steps the run waits for as long as it is there."""


class RecipeRefused(Exception):
    """The recipe cannot run on what it was given; the message says what was wrong, what came and what would work."""


class Reporter:
    def __init__(self, style: Style | None, title: str) -> None:
        # A copy of standard output, then the name goes to standard error: a print in a library stays off the events.
        self._out: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
        self._style: Style = style or ("bar" if self._out.isatty() else "jsonl")
        sys.stdout = sys.stderr
        self._title = title
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def emit(self, event: str, **facts: Any) -> None:
        # Of several processes of one launch the first speaks, but each says why it fails: the others are ended then.
        if os.environ.get("RANK", "0") != "0" and event != "error":
            return
        if self._style == "bar":
            self._draw(event, facts)
            return
        # The reader may be gone (a killed worker); the run itself must end in its own orderly way.
        with contextlib.suppress(BrokenPipeError):
            self._out.write(json.dumps({"event": event, **facts}) + "\n")
            self._out.flush()

    def _draw(self, event: str, facts: dict[str, Any]) -> None:
        if event == "step":
            if self._bar is None:
                columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
                self._bar = Progress(TextColumn(self._title), *columns, console=Console(file=self._out))
                self._task = self._bar.add_task(self._title, total=facts["steps"], note="")
                self._bar.start()
            assert self._task is not None
            note = "  ".join(f"{name} {value:.3f}" for name, value in facts["metrics"].items() if "/" not in name)
            self._bar.update(self._task, completed=facts["step"], note=note)
        elif event != "checkpoint":
            self.close()
            Console(file=self._out).print(f"[bold]{event}[/bold] " + "  ".join(f"{k} {v}" for k, v in facts.items()))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
