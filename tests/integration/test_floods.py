"""Ten thousand connections, and more bytes than anybody reads: what a gateway process makes of them in its memory."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil

from feedback.connection import Ledger
from serve.connections import raise_file_limit
from tests.gateways import OPERATOR, until
from tests.processes import free_port, running
from tests.scripted_engine import ScriptedEngine, write_adapter
from tests.wire import JSON, chat_body

IDLE = 10_000
MB = 2**20


@asynccontextmanager
async def process(ledger: Ledger, var: Path, engine: ScriptedEngine) -> AsyncIterator[tuple[str, psutil.Process]]:
    """The gateway as a process of its own, for its memory is asked about."""
    port = free_port()
    env = {
        "HEED_VAR": str(var),
        "HEED_PORT": str(port),
        "HEED_LEDGER_URL": ledger.settings.ledger_url,
        "HEED_ENGINES": engine.url,
        "HEED_ENGINE_KEY": engine.key,
        "HEED_BASE_ADAPTER": str(write_adapter(var / "adapters" / "heed-base")),
        "HEED_OPERATOR_KEY": OPERATOR,
        "HEED_CONNECTION_LIMIT": str(IDLE + 100),
    }
    with running([sys.executable, "-m", "serve"], var / "gateway.log", env) as started:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url) as http:
            await until(lambda: is_ready(http), "the gateway is ready", 60)
        yield url, psutil.Process(started.pid)


async def is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def test_ten_thousand_idle_connections_cost_little_and_others_are_answered(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    raise_file_limit(IDLE)
    async with process(ledger, tmp_path, engine) as (url, gateway), httpx.AsyncClient(base_url=url, timeout=30) as http:
        body = json.loads(chat_body())
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        before = gateway.memory_info().rss
        idle = [await connected(url) for _ in range(IDLE)]

        answer = await http.post("/v1/chat/completions", json=body)
        grown = gateway.memory_info().rss - before
        still_open = sum(each.fileno() != -1 and is_quiet(each) for each in idle)
        for each in idle:
            each.close()

    assert answer.status_code == 200
    assert still_open == IDLE
    assert grown < IDLE * 20_000, f"{grown / IDLE:.0f} bytes each"


async def connected(url: str) -> socket.socket:
    """A connection that had an answer and now says nothing."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, (host, int(port)))
    await loop.sock_sendall(client, f"GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
    return client


def is_quiet(client: socket.socket) -> bool:
    """Whether it is open and nothing has come."""
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True


async def test_what_nobody_asked_for_is_not_kept_in_memory(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    """Bodies of 50 MB, heads without end and trailers without end, 20 at once of each."""
    async with process(ledger, tmp_path, engine) as (url, gateway):
        before = gateway.memory_info().rss
        host = url.removeprefix("http://")
        first = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{JSON}\r\n".encode()
        kinds = [
            (first + f"content-length: {50 * MB}\r\n\r\n".encode(), b"x" * MB),
            (first + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n" % MB + b"x" * MB + b"\r\n"),
            (first, b"x" * MB),
            (first + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"a: " + b"x" * MB + b"\r\n"),
        ]

        for beginning, more in kinds:
            await asyncio.gather(*(flood(url, beginning, more) for _ in range(20)))

        # A body in chunks does not say its length: each of the 20 may come to HEED_BODY_LIMIT_MB before it is refused.
        assert gateway.memory_info().rss - before < (20 * 10 + 50) * MB
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.post("/v1/chat/completions", json=json.loads(chat_body()))).status_code == 200


async def flood(url: str, beginning: bytes, more: bytes) -> None:
    """Fifty times `more`, or until the gateway has had enough."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    try:
        writer.write(beginning)
        for _ in range(50):
            writer.write(more)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        writer.transport.abort()
