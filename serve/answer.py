"""One answer, from the engine to the client: the path every token takes.

Bytes pass unparsed and are kept for the record. Up to the first byte a broken engine is tried again; after it, a
failure is one error event and no `[DONE]`. The answer is in the ledger before the client can see its end. A client that
leaves ends the engine's work on it.
"""

import asyncio
import contextlib
import logging
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
from serve.recorder import Asked, record
from serve.routing import Replica
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
        self.recorded: Completion | None = None
        """As the client got it, once the ledger has it."""
        self._started = False
        self._outcome = "left"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routing, metrics = self._gateway.routing, self._gateway.metrics
        slot = routing.slot(self._asked.target)
        in_flight = metrics.in_flight.labels(slot)
        in_flight.inc()
        try:
            async with Attended(receive):
                await self._answer(send)
        except Refused as refused:
            self._outcome = "refused" if refused.status_code < 500 else "failed"
            raise
        finally:
            in_flight.dec()
            metrics.answers.labels(slot, self._outcome).inc()

    async def _answer(self, send: Send) -> None:
        """Raises Refused, only while nothing has been sent."""
        body = orjson.dumps(self._asked.forwarded)
        deadline = asyncio.get_running_loop().time() + self._gateway.settings.engine_wait_s
        adapter = self._asked.target.adapter
        for attempt in range(ATTEMPTS):
            if attempt:
                self._gateway.metrics.retries.inc()
            async with self._gateway.routing.borrow(adapter, deadline) as replica:
                try:
                    async with replica.engine.ask(self._asked.path, body, self._asked.number) as upstream:
                        if upstream.status != 200:
                            await self._refuse(replica, upstream)
                        elif self._asked.is_stream:
                            return await self._stream(upstream, send)
                        else:
                            return await self._whole(upstream, send)
                except EngineUnreachable as error:
                    log.warning("req-%s: the engine broke before the first byte: %s", self._asked.number, error)
                    self._doubt(replica)
        raise unavailable("engine_unavailable", "the engine broke each time the request was sent; try again shortly")

    async def _whole(self, upstream: Connection, send: Send) -> None:
        body = await upstream.read()
        answer = orjson.loads(body)
        if any(choice.get("finish_reason") == "abort" for choice in answer["choices"]):
            raise unavailable("engine_aborted", "the engine stopped before the answer was whole; try again", 1)
        best_of = None
        if self._asked.samples:
            answer, best_of = await choose(answer, self._asked, self._gateway)
            body = orjson.dumps(answer)
        is_recorded = await self._record(answer, best_of)
        if self._asked.records_tokens:
            body = orjson.dumps(withhold(answer, self._asked.sent))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if best_of:
            headers.append((b"x-heed-best-of", b"%d" % best_of.compared))
        if not is_recorded:
            headers.append((b"x-heed-recorded", b"no"))
        self._saw_first_byte()
        self._outcome = "answered"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, upstream: Connection, send: Send) -> None:
        """The engine is read from as fast as the client reads: `send` waits while uvicorn's buffer to it is full."""
        transcript = Transcript(self._asked.wants_usage)
        try:
            while not transcript.failure and (received := await upstream.next_bytes()):
                events = transcript.feed(received)
                if not events:
                    continue
                if not self._started:  # an engine that dies before its first token can still be replaced
                    self._saw_first_byte()
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                if self._asked.records_tokens:
                    events = withhold_events(events, self._asked.sent)
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except EngineUnreachable as error:
            if not self._started:
                raise
            transcript.failure = f"the engine broke within the answer ({error})"
        if transcript.failure is None and not transcript.is_done:
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
        completion = self._asked.completion(answer, self._gateway, best_of)
        is_recorded = await record(self._asked, completion, self._gateway)
        self.recorded = completion if is_recorded else None
        return is_recorded

    async def _refuse(self, replica: Replica, upstream: Connection) -> None:
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
            self._doubt(replica)
        else:
            log.warning("req-%s: the engine failed with %s: %s", self._asked.number, status, words)
            raise Refused(502, "engine_failed", "the engine failed on this request; ask again, or ask less of it")

    def _doubt(self, replica: Replica) -> None:
        """No traffic until the hot swap has seen that it is well."""
        replica.forget()
        self._gateway.routing.nudge()

    def _saw_first_byte(self) -> None:
        self._started = True
        slot = self._gateway.routing.slot(self._asked.target)
        self._gateway.metrics.first_byte.labels(slot).observe(self._asked.waited_s)


class Attended:
    """A block that ends early, and quietly, when its client leaves.

    One task beside the block's own; to wait for the first of two costs a request 50 µs more.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False

    async def __aenter__(self) -> None:
        self._attending = asyncio.current_task()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._watching.cancel()
        if not self._has_left or self._attending is None:
            return False
        is_wanted_by_others = self._attending.uncancel() > 0
        return isinstance(error, asyncio.CancelledError) and not is_wanted_by_others

    async def _watch(self) -> None:
        await until_gone(self._receive)
        self._has_left = True
        assert self._attending is not None
        self._attending.cancel()


async def until_gone(receive: Receive) -> None:
    with contextlib.suppress(RuntimeError):
        while (await receive())["type"] != "http.disconnect":
            pass
