"""The gateway's client to an engine, against servers that do what servers on bad days do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serve.upstream import EngineUnreachable, Upstream
from tests.gateways import until
from tests.processes import free_port

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MB = 2**20


@dataclass
class Served:
    """What a server saw; `connections` counts those that were opened."""

    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    left: int = 0
    written: int = 0


Behaviour = Callable[[Served, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(behave: Behaviour, silence_s: float = 5) -> AsyncIterator[tuple[Upstream, Served]]:
    """`behave` answers each request, or ends the connection."""
    served = Served()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                served.requests.append(head + await reader.readexactly(int(head.split(b"content-length: ")[1])))
                await behave(served, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            served.left += 1
        finally:
            writer.close()

    port = free_port()
    server = await asyncio.start_server(connected, "127.0.0.1", port)
    upstream = Upstream(f"http://127.0.0.1:{port}/base", "secret", 1, silence_s)
    try:
        yield upstream, served
    finally:
        upstream.close()
        server.close()


async def says_hi(_: Served, writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)


async def ask(upstream: Upstream) -> bytes:
    async with upstream.ask("POST", "/v1", b"question", "x-request-id: 7\r\n") as answer:
        assert answer.status == 200
        return await answer.read()


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with serving(says_hi) as (upstream, served):
        said = [await ask(upstream) for _ in range(3)]

    assert (said, served.connections) == ([b"hi"] * 3, 1)
    first = served.requests[0]
    assert first.startswith(b"POST /base/v1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: Bearer secret\r\n" in first
    assert b"x-request-id: 7\r\n" in first
    assert first.endswith(b"\r\n\r\nquestion")


async def test_requests_at_once_have_a_connection_each() -> None:
    async with serving(says_hi) as (upstream, served):
        await asyncio.gather(*(ask(upstream) for _ in range(5)))

    assert served.connections == 5


async def test_a_connection_that_the_engine_closed_meanwhile_is_replaced() -> None:
    async def hangs_up_afterwards(_: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE)
        writer.close()

    async with serving(hangs_up_afterwards) as (upstream, served):
        assert await ask(upstream) == b"hi"
        await until(lambda: not upstream.idle, "the client has seen it")
        assert await ask(upstream) == b"hi"

    assert served.connections == 2


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_connection_that_breaks_is_a_failure_and_nothing_is_sent_again(answers: int) -> None:
    async def breaks(served: Served, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) > answers:
            raise ConnectionError
        writer.write(WHOLE)

    async with serving(breaks) as (upstream, served):
        for _ in range(answers):
            await ask(upstream)
        with pytest.raises(EngineUnreachable, match="closed"):
            await ask(upstream)

    assert (served.connections, len(served.requests)) == (1, answers + 1)


async def test_an_answer_that_asks_for_the_connections_end_is_the_last_on_it() -> None:
    async def says_goodbye(_: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

    async with serving(says_goodbye) as (upstream, served):
        assert [await ask(upstream), await ask(upstream)] == [b"hi", b"hi"]

    assert served.connections == 2


async def test_an_answer_may_come_a_byte_at_a_time_and_after_a_continue() -> None:
    async def dribbles(_: Served, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving(dribbles) as (upstream, served):
        assert [await ask(upstream), await ask(upstream)] == [b"hi!", b"hi!"]

    assert served.connections == 1


async def test_bytes_come_as_they_are_and_an_answer_cut_short_is_a_failure_after_them() -> None:
    async def breaks_off(_: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nhi\r\n")
        await writer.drain()
        raise ConnectionError

    async with serving(breaks_off) as (upstream, _), upstream.ask("POST", "/v1", b"") as answer:
        assert await answer.next_bytes() == b"hi"
        with pytest.raises(EngineUnreachable, match="closed"):
            await answer.next_bytes()


async def test_leaving_an_answer_ends_its_connection() -> None:
    async def goes_on(served: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nhi\r\n")

    async with serving(goes_on) as (upstream, served):
        async with upstream.ask("POST", "/v1", b"") as answer:
            assert await answer.next_bytes() == b"hi"

        await until(lambda: served.left, "the server sees it")


@pytest.mark.parametrize("nonsense", [b"SMTP ready\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\n"])
async def test_what_is_not_http_is_said_to_be_so(nonsense: bytes) -> None:
    async def babbles(_: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(nonsense)

    async with serving(babbles) as (upstream, _):
        with pytest.raises(EngineUnreachable, match="not HTTP"):
            await ask(upstream)


async def test_an_engine_that_says_nothing_is_given_up_after_its_time() -> None:
    async def begins(_: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nhi\r\n")

    async with serving(begins, silence_s=0.05) as (upstream, served):
        async with upstream.ask("POST", "/v1", b"") as answer:
            assert await answer.next_bytes() == b"hi"
            with pytest.raises(EngineUnreachable, match=r"said nothing for 0\.05 s"):
                await answer.next_bytes()

        await until(lambda: served.left, "the server sees it")


async def test_nobody_there_is_said_to_be_so() -> None:
    upstream = Upstream(f"http://127.0.0.1:{free_port()}", "", 1, 1)

    with pytest.raises(EngineUnreachable, match="refused"):
        await ask(upstream)


async def test_an_answer_nobody_reads_waits_at_the_engine_and_then_comes_whole() -> None:
    piece = b"%x\r\n%b\r\n" % (MB, b"x" * MB)

    async def floods(served: Served, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(100):
            writer.write(piece)
            await writer.drain()
            served.written += MB
        writer.write(b"0\r\n\r\n")

    # Of the socket buffers of both sides nobody here decides: some MB. Silence while we do not read is our own.
    async with serving(floods, silence_s=0.2) as (upstream, served), upstream.ask("POST", "/v1", b"") as answer:
        read = len(await answer.next_bytes())
        await stands_still(served)
        assert served.written < 40 * MB
        while received := await answer.next_bytes():
            read += len(received)

    assert read == 100 * MB


async def stands_still(served: Served) -> None:
    """Until a third of a second has brought nothing more."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(served.written)
        return len(seen) > 30 and seen[-30] == seen[-1] > 0

    await until(is_still, "the server waits")
