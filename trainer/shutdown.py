"""Shutdown: tells the job at work that the worker was asked to leave (SIGTERM).

Celery's own warm shutdown waits for the task to end, which would take the whole training.
"""

import asyncio
from typing import Any


class Shutdown:
    """One of it a worker; safe to call from a signal handler, which may run between any two steps of the loop."""

    def __init__(self) -> None:
        self.has_begun = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def begin(self, **_: Any) -> None:
        self.has_begun = True
        for loop, event in self._waiting:
            loop.call_soon_threadsafe(event.set)

    def event(self) -> asyncio.Event:
        """Set once the worker is to leave. To be asked for in a running loop, and given back when that ends."""
        event = asyncio.Event()
        if self.has_begun:
            event.set()
        self._waiting.append((asyncio.get_running_loop(), event))
        return event

    def forget(self, event: asyncio.Event) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] is not event]
