"""What the gateway said lately, so that ten open pages cost it no more than one.

A report takes the gateway up to 130 ms of CPU, and every open page asks for it again and again; those who ask within
its age share one request.
"""

import asyncio
import time
from typing import Any

from serve.console.calls import Calls, Json

KEPT_S = 60
"""Longer than any answer may be old."""

Asked = tuple[str, str, tuple[tuple[str, Any], ...]]


class Lately:
    """Answers are shared among those who show the same key, and a failure is as well."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._answers: dict[Asked, tuple[float, asyncio.Task[Json]]] = {}

    async def get(self, age_s: float, key: str, path: str, **query: Any) -> Json:
        """An answer that was asked for at most `age_s` ago. Raises CallFailed."""
        asked, now = (key, path, tuple(sorted(query.items()))), time.monotonic()
        began, answer = self._answers.get(asked, (0.0, None))
        if answer is None or now - began > age_s:
            answer = asyncio.create_task(self._calls.get(key, path, **query))
            self._answers = {one: told for one, told in self._answers.items() if now - told[0] < KEPT_S}
            self._answers[asked] = now, answer
        return await asyncio.shield(answer)  # who leaves does not take the answer from the others

    def forget(self) -> None:
        """Somebody acted: what was said before is old."""
        self._answers.clear()
