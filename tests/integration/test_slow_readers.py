"""Clients that read slower than the engine writes: the engine waits, and the gateway keeps no more than it must."""

import json
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import overload

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

TOKENS, TOKEN_BYTES = 1000, 2**16
WHOLE = TOKENS * TOKEN_BYTES


class Told(Sequence[str]):
    """Long tokens, which know how many of them were asked for."""

    def __init__(self) -> None:
        self.reached = 0

    def __len__(self) -> int:
        return TOKENS

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        assert isinstance(index, int)
        if index >= TOKENS:
            raise IndexError(index)
        self.reached = max(self.reached, index + 1)
        return "x" * TOKEN_BYTES


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def test_the_engine_waits_for_a_client_that_does_not_read_and_is_freed_when_it_leaves(
    gateway: RunningGateway,
) -> None:
    told = Told()
    gateway.engine.scripts.append(Script(tokens=told))
    with asking(gateway) as reader:
        await stands_still(told)
        stood_at = told.reached

        assert stood_at * TOKEN_BYTES < WHOLE / 2  # the sockets' own buffers are some MB on each way
        assert (await gateway.chat()).status_code == 200
        assert reader.recv(1) == b"H"

    await until(lambda: gateway.engine.aborted and not gateway.engine.running, "the engine stopped")
    assert told.reached < TOKENS


async def stands_still(told: Told) -> None:
    """Until a third of a second has brought nothing more."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(told.reached)
        return len(seen) > 30 and seen[-30] == seen[-1] > 0

    await until(is_still, "the engine waits")


def asking(gateway: RunningGateway) -> socket.socket:
    """A client that has sent its request and looks away."""
    host, port = gateway.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    body = json.dumps({"model": "heed", "stream": True, "messages": [{"role": "user", "content": "q"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return client
