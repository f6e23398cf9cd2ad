"""A connection of a client, before it is a request: how many there may be, how large and how late a head may come.

uvicorn sets no limit to any of this: a head has no end and no deadline there, and a body that stands still is waited
for. What is refused here has not come to the door, and gets the same envelope and a request id all the same.
"""

import asyncio
import logging
import resource
import secrets
from typing import Any, Literal

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.errors import Refused, envelope, unavailable
from serve.settings import GatewaySettings

log = logging.getLogger("heed.gateway")

SPARE_FILES = 512
"""What else a gateway has open: connections to engines and ledger, uploads, logs."""

DRAINED_BYTES = 2**30
"""Taken and thrown away of a body whose request was refused: closing at once would lose the refusal with what the
client is still sending. Throwing away costs no memory, and who sends more than this is not reading."""

Headers = list[tuple[bytes, bytes]]


class Connection(HttpToolsProtocol):
    """One clock for each connection that owes us something; the next thing to come moves its deadline, not the clock,
    so a request that comes in one piece costs no timer."""

    settings: GatewaySettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase: Literal["silent", "head", "body", "complete"] = "silent"
        self._heard = self._owed_since = self.loop.time()
        self._clock: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes that came after the last head or body: heads and trailers could grow without end
        self._drained = 0  # bytes of a body whose request was refused before all of it had come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.connection_limit:
            self.app = refusing(
                unavailable(
                    "too_many_connections",
                    f"{self.settings.connection_limit} connections are open (HEED_CONNECTION_LIMIT); try again",
                )
            )
        self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_clock()
        self._unset_keepalive_if_required()  # uvicorn does so only where the connection ended well

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        self._unread += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self.transport.is_closing():
            self._unset_clock()
        elif self._unread > self._head_limit:
            self._refuse(self._head_too_large())
        elif self._phase != "complete":
            if self._clock is None:
                self._set_clock()
        elif self._is_unasked and self.timeout_keep_alive_task is None:
            # The end of a body that nobody waited for, or an empty line: uvicorn has stopped its own clock.
            self._phase, self._owed_since = "silent", self._heard
            self._set_clock()
        elif self._clock is not None:
            self._unset_clock()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self._refuse(Refused(400, "invalid_http", "this is no request of HTTP/1.1; see RFC 9112"))
        except HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])

    def _stay(self, rest: bytes) -> None:
        """Answer in this protocol whoever would rather have another (RFC 9110, 7.8): Java's client asks for h2c.

        The parser takes what follows such a head for the other protocol, so it gets the head again, without the wish.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(Refused(405, "method_not_allowed", "this is no proxy, and CONNECT is not offered"))
            return
        kept = [name + b": " + value for name, value in self.headers if name not in (b"connection", b"upgrade")]
        head = [method + b" " + self.url + b" HTTP/1.1", *kept, b"", rest]
        self.parser = HttpRequestParser(self)
        self._feed(b"\r\n".join(head))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._owed_since = "head", self._heard

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self._unread > self._head_limit and size_of(self.url, self.headers) > self._head_limit:
            self.app = refusing(self._head_too_large())
            self.url = b"/"  # uvicorn's parser of addresses raises at 64 kB
        super().on_headers_complete()
        self._phase, self._unread, self._drained = "body", 0, 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unread = 0
        if self.cycle.response_complete:
            self._drained += len(body)
            if self._drained > DRAINED_BYTES:
                self.transport.abort()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._phase, self._unread = "complete", 0

    @property
    def _is_unasked(self) -> bool:
        """Whether no request is being answered, or waits to be."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    @property
    def _head_limit(self) -> float:
        return self.settings.head_limit_kb * 2**10

    def _head_too_large(self) -> Refused:
        words = f"the head is larger than {self.settings.head_limit_kb:g} kB (HEED_HEAD_LIMIT_KB); send fewer headers"
        return Refused(431, "head_too_large", words)

    def _set_clock(self) -> None:
        self._unset_clock()
        self._clock = self.loop.call_at(self._due(), self._look)

    def _unset_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _due(self) -> float:
        if self._phase == "body":
            return self._heard + self.settings.body_silence_s
        return self._owed_since + self.settings.head_timeout_s

    def _look(self) -> None:
        self._clock = None
        now = self.loop.time()
        if self.transport.is_closing() or self._phase == "complete":
            return
        if self.flow.read_paused or (self._phase != "body" and not self._is_unasked):
            self._heard = self._owed_since = now  # it is not the client who is waited for
        if self._due() > now:
            self._set_clock()
        elif self._phase == "body":
            words = f"nothing more of the body came for {self.settings.body_silence_s:g} s (HEED_BODY_SILENCE_S)"
            self._refuse(Refused(408, "body_timeout", f"{words}; send it again"))
        elif self._phase == "head":
            words = f"the head was not complete after {self.settings.head_timeout_s:g} s (HEED_HEAD_TIMEOUT_S)"
            self._refuse(Refused(408, "head_timeout", f"{words}; send it again"))
        else:
            self.transport.close()

    def _refuse(self, refused: Refused) -> None:
        """And close. Nothing is said into another answer."""
        self._unset_clock()
        is_free = not self.cycle.response_started if self._phase == "body" else self._is_unasked
        if is_free and not self.pipeline:
            self.transport.write(written(answer_of(refused)))
        self.transport.close()


def connection_of(settings: GatewaySettings) -> type[Connection]:
    """The protocol for uvicorn, which makes one of each connection."""
    return type("Connection", (Connection,), {"settings": settings})


def raise_file_limit(connections: int) -> None:
    """Let so many be open, as far as the system lets us: a shell's usual limit is 1,024."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if resource.RLIM_INFINITY != soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "HEED_CONNECTION_LIMIT is %d, and this process may open only %d files (ulimit -Hn, LimitNOFILE=)",
            connections,
            most,
        )


def size_of(url: bytes, headers: Headers) -> int:
    """Bytes, as they were sent."""
    return len(url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)


def answer_of(refused: Refused) -> Response:
    more = {"connection": "close", "x-request-id": "req-" + secrets.token_hex(12)}
    return envelope(
        refused.status_code, refused.code, refused.detail, refused.param, {**(refused.headers or {}), **more}
    )


def refusing(refused: Refused) -> ASGIApp:
    """What a connection's requests get instead of the gateway."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_of(refused)(scope, receive, send)

    return refuse


def written(answer: Response) -> bytes:
    lines = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
    return b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)])
