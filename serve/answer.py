"""One answer, from the engine to the client: the path every token takes.

Bytes pass unparsed and are kept for the record. Up to the first byte a broken engine is tried again; after it, a
failure is one error event and no `[DONE]`. The answer is in the ledger before the client can see its end. A client that
leaves ends the engine's work on it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from feedback.records import BestOf, Completion
from serve.attribution import withhold, withhold_events
from serve.best_of import choose
from serve.engine import failure_of
from serve.errors import Refused, unavailable
from serve.gateway import Gateway
from serve.limits import estimated
from serve.recorder import Asked, record
from serve.replicas import Replica
from serve.sse import DONE, UNRECORDED, Transcript, failure_event
from serve.upstream import Connection, EngineUnreachable

log = logging.getLogger("heed.gateway")

ATTEMPTS = 3
"""A first try, one after the engine broke or forgot the adapter, and one more for a restart on the way."""

MESSAGE_CHARACTERS = 400
"""Of the engine's words for a refusal, which it keeps free of prompts; what follows is detail."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect a stream before it passes it on
]


class Answer(Response):
    """An ASGI response that asks the engine while it answers; StreamingResponse costs twice as much per chunk."""

    def __init__(self, gateway: Gateway, asked: Asked) -> None:
        self.background = None
        self._gateway = gateway
        self._asked = asked
        self._lately = gateway.traffic.of(asked.target.served_model)
        self.recorded: Completion | None = None
        """As the client got it, once the ledger has it."""
        self._given: Completion | None = None
        self._started = False
        self._is_broken = False
        self._outcome = "left"
        self._first_s: float | None = None
        """From the arrival to the first byte, where it was streamed."""
        self._events = 0
        self._usage: dict[str, int] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routing, metrics = self._gateway.routing, self._gateway.metrics
        seen = metrics.of(self._asked.target.served_model, routing.slot(self._asked.target))
        seen.in_flight.inc()
        self._lately.came(self, is_stream=bool(self._asked.sent.get("stream")))
        limit_s = self._gateway.settings.answer_timeout_s
        try:
            async with Attended(receive, limit_s):
                await self._answer(send)
        except Late:
            await self._end_late(send, limit_s)
        except Refused as refused:
            self._outcome = "refused" if refused.status_code < 500 else "failed"
            raise
        finally:
            seen.in_flight.dec()
            self._lately.ended(self)
            seen.ended(self._outcome, self._asked.waited_s, self._first_s, self._usage)
            self._asked.allowance.settle(self._tokens())
            if self._asked.mark:
                model = self._asked.target.served_model
                self._gateway.canaries.note(model, self._asked.mark, self._outcome, self._given)

    def _tokens(self) -> int:
        """What its key's limit is charged: of an answer that was not read to its end, the events that were sent."""
        if self._usage is not None:
            return self._usage["total_tokens"]
        is_charged = self._events or self._outcome == "left"
        return estimated(self._asked.sent) + self._events if is_charged else 0

    async def _end_late(self, send: Send, limit_s: float) -> None:
        """Raises Refused (504) where nothing has been sent."""
        self._outcome = "failed"
        words = f"the answer took longer than {limit_s:g} s (HEED_ANSWER_TIMEOUT_S); ask for less of it"
        if not self._started:
            raise Refused(504, "answer_timeout", words)
        end = failure_event(504, "answer_timeout", words)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _answer(self, send: Send) -> None:
        """Raises Refused, only while nothing has been sent."""
        body = orjson.dumps(self._asked.forwarded)
        patience = min(self._gateway.settings.engine_wait_s, self._asked.patience_s)
        deadline = asyncio.get_running_loop().time() + patience
        adapter = self._asked.target.adapter
        conversation = self._asked.conversation if len(self._gateway.routing.replicas) > 1 else b""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._gateway.metrics.retries.inc()
            async with self._gateway.routing.borrow(adapter, deadline, conversation) as replica:
                life = replica.life
                try:
                    if await self._ask(replica, life, body, send):
                        return
                except EngineUnreachable as error:
                    log.warning("req-%s: %s broke before the first byte: %s", self._asked.number, replica.name, error)
                    self._doubt(replica, life, f"broke within a request ({error})")
        raise unavailable("engine_unavailable", "engines broke whenever the request was sent to one; try again shortly")

    async def _ask(self, replica: Replica, life: int, body: bytes, send: Send) -> bool:
        """Whether that was the answer; where not, it is worth another try. Raises Refused, EngineUnreachable."""
        async with self._gateway.tracing.asking(self._asked.target) as trace:
            asking = replica.engine.ask(self._asked.path, body, self._asked.number, trace)
            replica.unbegun[asking] = self._asked.target.adapter
            begun = partial(replica.unbegun.pop, asking, None)
            try:
                async with asking as upstream:
                    if upstream.status != 200:
                        await self._refuse(replica, life, upstream)
                        return False
                    if self._asked.is_stream:
                        await self._stream(upstream, send, begun)
                    else:
                        await self._whole(upstream, send)
                    if self._is_broken:
                        self._doubt(replica, life, "broke within an answer")
                    return True
            finally:
                begun()

    async def _whole(self, upstream: Connection, send: Send) -> None:
        body = await upstream.read()
        answer = orjson.loads(body)
        if any(choice.get("finish_reason") == "abort" for choice in answer["choices"]):
            raise EngineUnreachable("it aborted the answer")
        best_of = None
        if self._asked.samples:
            answer, best_of = await choose(answer, self._asked, self._gateway)
            body = orjson.dumps(answer)
        is_recorded = await self._record(answer, best_of)
        if self._asked.records_tokens:
            body = orjson.dumps(withhold(answer, self._asked.sent))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self._asked.headers,
        ]
        if best_of:
            headers.append((b"x-heed-best-of", b"%d" % best_of.compared))
        if not is_recorded:
            headers.append((b"x-heed-recorded", b"no"))
        self._started = True
        self._outcome = "answered"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, upstream: Connection, send: Send, begun: Callable[[], object]) -> None:
        """The engine is read from as fast as the client reads: `send` waits while uvicorn's buffer to it is full."""
        transcript = Transcript(self._asked.wants_usage)
        try:
            while not transcript.failure and (received := await upstream.next_bytes()):
                events = transcript.feed(received)
                if not events:
                    continue
                if not self._started:  # an engine that dies before its first token can still be replaced
                    self._started = True
                    begun()
                    self._first_s = self._asked.waited_s
                    self._lately.began(self, self._first_s)
                    headers = [*STREAM_HEADERS, *self._asked.headers]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                self._events += events.count(b"\n\n")
                if self._asked.records_tokens:
                    events = withhold_events(events, self._asked.sent)
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except EngineUnreachable as error:
            if not self._started:
                raise
            self._is_broken = True
            transcript.failure = f"the engine broke within the answer ({error})"
        if transcript.failure is None and not transcript.is_done:
            self._is_broken = True
            transcript.failure = "the engine ended the answer too early"
        if transcript.failure:
            if not self._started:
                raise EngineUnreachable(transcript.failure)
            self._outcome = "failed"
            log.warning("req-%s failed after its first byte: %s", self._asked.number, transcript.failure)
            end = failure_event(500, "engine_failed", f"{transcript.failure[:MESSAGE_CHARACTERS]}; ask again")
        else:
            is_recorded = await self._record(transcript.answer())
            self._outcome = "answered"
            end = DONE if is_recorded else UNRECORDED + DONE
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _record(self, answer: dict[str, Any], best_of: BestOf | None = None) -> bool:
        self._usage = answer.get("usage")
        completion = self._asked.completion(answer, self._gateway, best_of)
        is_recorded = await record(self._asked, completion, self._gateway)
        self._given = completion
        self.recorded = completion if is_recorded else None
        return is_recorded

    async def _refuse(self, replica: Replica, life: int, upstream: Connection) -> None:
        """Return if it is worth another try, which then waits for an engine that is well. Raises Refused."""
        status = upstream.status
        message, param = failure_of(await upstream.read())
        words = message[:MESSAGE_CHARACTERS]
        if status == 404:
            # Unloaded between our picking and its answering, or forgotten in a restart we have not seen yet.
            replica.holds.discard(self._asked.target.adapter)
            replica.lists.pop(self._asked.target.adapter, None)
            self._gateway.routing.nudge()
        elif status < 500:
            is_too_long = "maximum context length" in message or "max_model_len" in message
            code = "context_length_exceeded" if is_too_long else "invalid_value" if param else "invalid_request"
            raise Refused(status, code, words, param)
        elif status == 503 or not await replica.engine.is_healthy():
            self._doubt(replica, life, f"refused a request with status {status}")
        else:
            log.warning("req-%s: the engine failed with %s: %s", self._asked.number, status, words)
            raise Refused(502, "engine_failed", "the engine failed on this request; ask again, or ask less of it")

    def _doubt(self, replica: Replica, life: int, why: str) -> None:
        """No traffic until the hot swap has seen that it is well; many requests may see one death."""
        if replica.life == life:
            settings = self._gateway.settings
            replica.eject(why, settings.engine_rest_s, settings.engine_rest_max_s)
            self._gateway.routing.nudge()


class Late(Exception):
    """A block took longer than it may."""


class Attended:
    """A block that ends early when its client leaves, and then quietly, or when its time is over: Late.

    One task beside the block's own, and a timer; to wait for the first of two tasks took 18 µs more.
    """

    def __init__(self, receive: Receive, limit_s: float | None = None) -> None:
        self._receive = receive
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._is_ended = False

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._attending = asyncio.current_task()
        self._watching = loop.create_task(self._watch())
        if self._limit_s is not None:
            self._timer = loop.call_later(self._limit_s, self._expire)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._watching.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_ended or self._attending is None:
            return False
        is_wanted_by_others = self._attending.uncancel() > 0
        if not isinstance(error, asyncio.CancelledError) or is_wanted_by_others:
            return False
        if self._is_late:
            raise Late
        return True

    def _expire(self) -> None:
        self._is_late = not self._is_ended
        self._end()

    def _end(self) -> None:
        if not self._is_ended and self._attending is not None:
            self._is_ended = True
            self._attending.cancel()

    async def _watch(self) -> None:
        await until_gone(self._receive)
        self._end()


async def until_gone(receive: Receive) -> None:
    with contextlib.suppress(RuntimeError):
        while (await receive())["type"] != "http.disconnect":
            pass
