"""Two answers to one prompt, side by side, and nothing in them that tells who gave which.

Each side is an ordinary Answer, recorded as one; what it sends is taken apart here, and only its words go on. The
comparison is in the ledger before the client can see its end. If a side fails there is no comparison: one error, and
the other side is given up. A client that leaves ends the engine's work on both.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from feedback import comparisons
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable
from feedback.records import AnswerRef, Comparison, Completion, prompt_digest
from serve.answer import STREAM_HEADERS, Answer, Attended
from serve.errors import REFUSALS, Refused
from serve.gateway import Gateway
from serve.known import KnownAnswer
from serve.recorder import Asked
from serve.sse import DONE, failure_event

Side = Literal["a", "b"]
Json = dict[str, Any]


class SideFailed(Exception):
    """A side broke within its answer; holds its one error event."""


@dataclass(frozen=True)
class Comparing:
    """A prompt on its way to both sides."""

    id: str
    ledger: Ledger
    sides: Mapping[Side, Asked]
    known: Mapping[Side, Json] = field(default_factory=dict)
    """The answers of a honeypot, which no engine is asked for."""
    expected: Side | None = None
    is_queued: bool = False

    @property
    def is_stream(self) -> bool:
        return self.sides["a"].is_stream

    def record(self) -> Comparison:
        a, b = self.sides["a"], self.sides["b"]
        messages, tools = a.messages, a.sent.get("tools") or None
        return Comparison(
            id=self.id,
            served_model=self.ledger.model,
            created=a.arrived_at,
            messages=messages,
            tools=tools,
            prompt_hash=prompt_digest(messages, tools),
            a=AnswerRef(completion_id=a.completion_id),
            b=AnswerRef(completion_id=b.completion_id),
            adapter_a=a.target.adapter,
            adapter_b=b.target.adapter,
            user=a.sent.get("user"),
            is_queued=self.is_queued,
            expected=self.expected,
        )

    @property
    def prompt(self) -> Json:
        """Of the queue: the client did not send it, so it is shown."""
        a = self.sides["a"]
        tools = a.sent.get("tools")
        return {"messages": a.messages} | ({"tools": tools} if tools else {})


class TwoAnswers(Response):
    """An ASGI response that runs two others."""

    def __init__(self, gateway: Gateway, comparing: Comparing) -> None:
        self.background = None
        self._gateway = gateway
        self._comparing = comparing
        self._limits = comparing.sides["a"].headers
        self._sending = asyncio.Lock()  # two sides, one stream
        self._started = False
        self._answered: dict[str, Completion] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with Attended(receive):
            await self._answer(scope, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        """Raises Refused, LedgerUnavailable, only while nothing has been sent."""
        try:
            shown = await self._both(scope, send)
        except SideFailed as failure:
            await self._stream(send, failure.args[0], is_end=True)
        except (Refused, LedgerUnavailable) as error:
            if not self._started:
                raise
            await self._stream(send, _failure(error), is_end=True)
        else:
            if self._comparing.is_stream:
                await self._stream(send, _event(shown) + DONE, is_end=True)
            else:
                whole = Response(orjson.dumps(shown), media_type="application/json")
                whole.raw_headers += self._limits
                await whole(scope, _stay, send)

    async def _both(self, scope: Scope, send: Send) -> Json:
        """The recorded comparison as the client may see it. The first failure of a side gives up the other."""
        try:
            async with asyncio.TaskGroup() as both:
                for side, asked in self._comparing.sides.items():
                    both.create_task(self._ask(side, asked, scope, send))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        record = self._comparing.record()
        if len(self._answered) < 2:
            raise LedgerUnavailable("the ledger did not take both answers, so they cannot be compared; try again")
        await comparisons.record(self._comparing.ledger, record)
        return hidden(record, self._answered) | (self._comparing.prompt if self._comparing.is_queued else {})

    async def _ask(self, side: Side, asked: Asked, scope: Scope, send: Send) -> None:
        began = asyncio.get_running_loop().time()
        first: float | None = None

        async def pass_on(message: Message) -> None:
            nonlocal first
            # A whole answer is shown once both are recorded.
            if asked.is_stream and message["type"] == "http.response.body":
                events = b"".join(self._without_name(side, event) for event in message["body"].split(b"\n\n"))
                if events:
                    first = first or asyncio.get_running_loop().time() - began
                    await self._stream(send, events)

        known = self._comparing.known.get(side)
        answer = KnownAnswer(self._gateway, asked, known) if known else Answer(self._gateway, asked)
        await answer(scope, _stay, pass_on)
        if answer.recorded:
            self._answered[answer.recorded.id] = answer.recorded
            if first is not None and not known:
                whole = asyncio.get_running_loop().time() - began
                self._gateway.pace.saw(first, whole, answer.recorded)

    async def _stream(self, send: Send, events: bytes, is_end: bool = False) -> None:
        async with self._sending:
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *self._limits]})
                if self._comparing.is_queued:
                    about = {"id": self._comparing.id, "object": "comparison.prompt"}
                    events = _event(about | self._comparing.prompt) + events
            await send({"type": "http.response.body", "body": events, "more_body": not is_end})

    def _without_name(self, side: Side, event: bytes) -> bytes:
        """What the client may see of a side's event. Raises SideFailed."""
        if not event.startswith(b"data: {"):
            return b""
        data = orjson.loads(event[6:])
        if "error" in data:
            raise SideFailed(event + b"\n\n")
        about = {"id": self._comparing.id, "object": "comparison.chunk", "side": side}
        return b"".join(
            _event(about | {"delta": choice["delta"], "finish_reason": choice.get("finish_reason")})
            for choice in data["choices"]
        )


def hidden(record: Comparison, answered: Mapping[str, Completion]) -> Json:
    """A comparison without a word about who is who; a side whose answer is gone has no message."""
    sides = {side: _words(answered.get(ref.completion_id)) for side, ref in (("a", record.a), ("b", record.b))}
    return {"id": record.id, "object": "comparison", "created": int(record.created), **sides}


def _words(completion: Completion | None) -> Json:
    if completion is None:
        return {"message": None, "finish_reason": None}
    choice = completion.choices[0]
    return {"message": choice.message, "finish_reason": choice.finish_reason}


def _failure(error: Refused | LedgerUnavailable) -> bytes:
    if isinstance(error, Refused):
        return failure_event(error.status_code, error.code, error.detail)
    meaning = REFUSALS[LedgerUnavailable]
    return failure_event(meaning.status, meaning.code, str(error))


def _event(data: Json) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def _stay() -> Message:
    """The receiving end of a side: the client's leaving is watched for both at once."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
