"""HTTP to one engine: connections that are kept, and answers handed on as the bytes they come in.

A client of our own and not aiohttp, with which a bare hop took 291 µs a request instead of 99: a hop reads no header
but the status, and has one body at a time. It knows what an engine does and refuses the rest: an answer says how
long it is or comes in chunks, is not compressed, and sends nobody elsewhere.
"""

import asyncio
import os
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httptools

HIGH_WATER = 2**16
"""Bytes that wait for a client who reads slower than the engine writes; above, the engine is not read from, and it in
turn waits for us. As much as uvicorn lets wait on its side."""

IDLE_S = 4
"""vLLM closes a connection that was idle for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); we do not use one that is about to
be closed, for then the engine would look as if it had broken. Nothing is sent again here: whoever asks knows whether it
may be."""


class EngineUnreachable(Exception):
    """Nobody answers, or the connection broke within an answer."""


class Upstream:
    """Where one engine is, and the connections to it that wait for a request."""

    def __init__(self, url: str, key: str, connect_s: float, silence_s: float) -> None:
        parts = urlsplit(url)
        self.silence_s = silence_s
        self._connect_s = connect_s
        self._host = parts.hostname or ""
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._path = parts.path.rstrip("/")
        self._heading = f" HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
        if key:
            self._heading += f"authorization: Bearer {key}\r\n"
        self.idle: dict[Connection, float] = {}
        """Connections that wait for a request, and since when; the last used at the end."""

    def ask(self, method: str, path: str, body: bytes, headers: str = "") -> "Asking":
        """`async with` it for the answer; leaving the block before its end breaks the connection, on which vLLM aborts
        the request. `headers` are whole lines. Raises EngineUnreachable."""
        head = f"{method} {self._path}{path}{self._heading}{headers}content-length: {len(body)}\r\n\r\n"
        return Asking(self, head.encode("latin-1") + body)

    def kept(self) -> "Connection | None":
        """One that waits for a request, the last used first."""
        if not self.idle:
            return None
        connection, since = self.idle.popitem()
        if asyncio.get_running_loop().time() - since <= IDLE_S:
            return connection
        connection.abort()
        self.close()  # the others are older
        return None

    async def connect(self) -> "Connection":
        """Raises EngineUnreachable."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, loop), self._host, self._port, ssl=self._is_tls or None
                )
        except TimeoutError:
            raise EngineUnreachable(f"no connection within {self._connect_s:g} s") from None
        except OSError as error:
            # Not the error's own words, in which asyncio names the address.
            number = error.errno or 0
            raise EngineUnreachable(os.strerror(number) if number > 0 else type(error).__name__) from error
        return connection

    def keep(self, connection: "Connection") -> None:
        self.idle[connection] = asyncio.get_running_loop().time()

    def forget(self, connection: "Connection") -> None:
        self.idle.pop(connection, None)

    def close(self) -> None:
        for connection in list(self.idle):
            connection.abort()
        self.idle.clear()


class Asking:
    """One request on its way."""

    def __init__(self, upstream: Upstream, request: bytes) -> None:
        self._upstream = upstream
        self._request = request
        self._connection: Connection | None = None

    async def __aenter__(self) -> "Connection":
        self._connection = self._upstream.kept() or await self._upstream.connect()
        try:
            await self._connection.send(self._request)
        except BaseException:
            self._connection.abort()
            raise
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.release()

    def give_up(self, why: str) -> None:
        """Whoever waits for the answer gets EngineUnreachable now. For a connection still to be made its own limit is
        short."""
        if self._connection is not None:
            self._connection.give_up(why)


class Connection(asyncio.Protocol):
    """One request and its answer at a time."""

    status = 0

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._upstream = upstream
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._limit: float = HIGH_WATER
        self._heard_at = 0.0
        self._is_paused = False
        self._is_busy = False
        self._is_complete = False
        self._is_last = False
        self._error: EngineUnreachable | None = None

    # What the gateway calls

    async def send(self, request: bytes) -> None:
        """Returns when the answer's status is known. Raises EngineUnreachable."""
        self.status = 0
        self._is_busy, self._is_complete = True, False
        self._limit = HIGH_WATER
        self._heard_at = self._loop.time()
        self._silence = self._loop.call_later(self._upstream.silence_s, self._listen)
        if self._transport is not None:
            self._transport.write(request)
        while not self.status:
            await self._wait()

    async def next_bytes(self) -> bytes:
        """Whatever has come since the last call; b"" at the end. Raises EngineUnreachable."""
        while not self._chunks and not self._is_complete:
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """The whole body. Raises EngineUnreachable."""
        self._limit = float("inf")
        self._resume()
        while not self._is_complete:
            await self._wait()
        return self._take()

    def release(self) -> None:
        """The answer was read, and the connection waits for another request; or it was not, and it is broken off."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._is_busy = False
        is_read = self._is_complete and not self._chunks and self._transport is not None
        if is_read and not self._is_last:
            self._upstream.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if self._transport is not None:
            self._transport.abort()

    def give_up(self, why: str) -> None:
        if not self._is_complete:
            self._fail(EngineUnreachable(why))
            self.abort()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._is_busy:  # an engine speaks when it is spoken to
            self._upstream.forget(self)
            self.abort()
            return
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(EngineUnreachable(f"what it answered is not HTTP ({type(error).__name__})"))
            self.abort()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._upstream.forget(self)
        self._fail(EngineUnreachable("the connection broke" if error else "the connection was closed"))

    # What the parser calls

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # before: Continue and its like, and the answer is still to come
            self.status = status

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._size += len(body)
        if self._size > self._limit and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._is_complete = self.status != 0
        self._is_last = not self._parser.should_keep_alive()  # afterwards the parser has forgotten

    def _take(self) -> bytes:
        chunks = self._chunks
        found = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        self._resume()
        return found

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._heard_at = self._loop.time()  # it was we who were silent
            if self._transport is not None:
                self._transport.resume_reading()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _listen(self) -> None:
        silent_s = 0.0 if self._is_paused else self._loop.time() - self._heard_at
        left_s = self._upstream.silence_s - silent_s
        if left_s > 0.001:
            self._silence = self._loop.call_later(left_s, self._listen)
            return
        self._silence = None
        self._fail(EngineUnreachable(f"it said nothing for {self._upstream.silence_s:g} s"))
        self.abort()

    def _fail(self, error: EngineUnreachable) -> None:
        if self._error is None and not (self._is_complete and self._is_busy):
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
