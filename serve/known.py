"""An answer that an operator wrote, given in the place of a model's: one side of a honeypot.

It comes as fast as the answers before it came, is recorded as they are, under the adapter that would have been asked,
and no client is told of the difference. No engine works on it, but one that could must be there.
"""

import asyncio
import re
import time
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from feedback.records import Completion, Message
from serve.gateway import Gateway
from serve.recorder import Asked, record

PIECE = re.compile(r"\s*(?:\w{1,6}|[^\w\s])|\s+$")
"""About as long as a token."""


class KnownAnswer:
    """Answers a side of a comparison as serve/answer.py does."""

    def __init__(self, gateway: Gateway, asked: Asked, said: Message) -> None:
        self.recorded: Completion | None = None
        self._gateway = gateway
        self._asked = asked
        self._said = said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refused (503)."""
        pieces = PIECE.findall(str(self._said["content"]))
        pace = self._gateway.pace
        deadline = asyncio.get_running_loop().time() + self._gateway.settings.engine_wait_s
        async with self._gateway.routing.borrow(self._asked.target.adapter, deadline):
            if self._asked.is_stream:
                await asyncio.sleep(pace.wait_s(1))
                await _send(send, {"role": "assistant", "content": ""})
                for piece in pieces:
                    await _send(send, {"content": piece})
                    await asyncio.sleep(pace.gap_s())
                await _send(send, {"content": ""}, "stop")
            else:
                await asyncio.sleep(pace.wait_s(len(pieces)))
            completion = self._asked.completion(self._answer(len(pieces)), self._gateway)
            known = completion.model_copy(update={"is_honeypot": True})
            if await record(self._asked, known, self._gateway):
                self.recorded = known

    def _answer(self, pieces: int) -> dict[str, Any]:
        asked = sum(len(PIECE.findall(str(message.get("content")))) for message in self._asked.messages)
        return {
            "created": int(time.time()),
            "choices": [{"index": 0, "message": self._said, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": pieces, "total_tokens": asked + pieces},
        }


async def _send(send: Send, delta: Message, finish: str | None = None) -> None:
    event = b"data: " + orjson.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}) + b"\n\n"
    await send({"type": "http.response.body", "body": event, "more_body": True})
