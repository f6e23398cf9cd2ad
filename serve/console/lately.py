"""What the gateway said lately, so that ten open pages cost it no more than one.

A report takes the gateway up to 130 ms of CPU, and every open page asks for it again and again; those who ask within
its age share one request.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from serve.console.calls import Calls, Json

KEPT_S = 60
"""Longer than any answer may be old."""

Asked = tuple[str, str, str, tuple[tuple[str, Any], ...]]


class Lately:
    """Answers are shared among those who show the same key, and a failure is as well."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._answers: dict[Asked, tuple[float, asyncio.Task[Json]]] = {}

    async def get(self, age_s: float, key: str, path: str, **query: Any) -> Json:
        """An answer that was asked for at most `age_s` ago. Raises CallFailed."""
        asked = self._calls.url, key, path, tuple(sorted(query.items()))
        return await self._shared(age_s, asked, lambda: self._calls.get(key, path, **query))

    async def readiness(self, age_s: float) -> Json:
        """Raises CallFailed."""
        return await self._shared(age_s, (self._calls.url, "", "/readyz", ()), self._calls.readiness)

    async def _shared(self, age_s: float, asked: Asked, ask: Callable[[], Coroutine[Any, Any, Json]]) -> Json:
        now = time.monotonic()
        began, answer = self._answers.get(asked, (0.0, None))
        if answer is None or now - began > age_s:
            answer = asyncio.create_task(ask())
            self._answers = {one: told for one, told in self._answers.items() if now - told[0] < KEPT_S}
            self._answers[asked] = now, answer
        return await asyncio.shield(answer)  # who leaves does not take the answer from the others

    def forget(self) -> None:
        """Somebody acted: what was said before is old."""
        self._answers.clear()
