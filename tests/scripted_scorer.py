"""A stand-in for a reward model behind vLLM 0.32's pooling runner, which likes whom it is told to like.

It passes the same contract suite as the real one (tests/integration/test_scorer_contract.py), quirks included: without
`use_activation: false` a sigmoid is put on the reward, and any name but the reward model's and the base's is 404.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.processes import free_port

Json = dict[str, Any]
CONTEXT_CHARACTERS = 13_312


@dataclass
class ScriptedScorer:
    likes: dict[str, float] = field(default_factory=dict)
    """Rewards by answer; of others, the share of their letters that are vowels."""
    key: str = ""
    """What a proxy before it asks for; vLLM asks for none here."""
    status: int = 200
    numbers: int = 1
    gate: asyncio.Semaphore | None = None
    port: int = field(default_factory=free_port)
    bodies: list[Json] = field(default_factory=list)
    waiting: int = 0
    left: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/classify", self._classify)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None

    async def _classify(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Unauthorized")
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return _error(self.status, "scripted")
        if body.get("model") != "reward":
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if sum(len(message["content"]) for message in body["messages"]) > CONTEXT_CHARACTERS:
            return _error(400, "This model's maximum context length is 1024 tokens. However, …")
        await self._pause()
        answer = body["messages"][-1]["content"]
        reward = self.likes.get(answer, sum(letter in "aeiou" for letter in answer) / max(1, len(answer)))
        if body.get("use_activation") is not False:
            reward = 1 / (1 + math.exp(-reward))
        scored = {"index": 0, "label": None, "probs": [reward] * self.numbers, "num_classes": self.numbers}
        return web.json_response({"object": "list", "model": body["model"], "data": [scored]})

    async def _pause(self) -> None:
        if self.gate is None:
            return
        self.waiting += 1
        try:
            await self.gate.acquire()
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.waiting -= 1


def _error(status: int, message: str) -> web.Response:
    body = {"error": {"message": message, "type": "Error", "param": None, "code": status}}
    return web.json_response(body, status=status)


@asynccontextmanager
async def scripted_scorer(**given: Any) -> AsyncIterator[ScriptedScorer]:
    scorer = ScriptedScorer(**given)
    await scorer.start()
    try:
        yield scorer
    finally:
        await scorer.stop()
