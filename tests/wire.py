"""A client that writes what it will on a connection, and reads what HTTP clients would not show."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

Told = tuple[int, dict[str, str], Any]
"""Status, headers, body."""


class Line:
    """One connection, on which anything can be written."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def write(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def read(self) -> Told:
        """One answer with a content-length."""
        async with asyncio.timeout(20):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, json.loads(body)

    async def rest(self) -> bytes:
        """What comes until the gateway closes."""
        async with asyncio.timeout(20):
            return await self.reader.read()


@asynccontextmanager
async def line(url: str) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


def head(url: str, *lines: str, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
    host = url.removeprefix("http://")
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"host: {host}", *lines, "", ""]).encode("latin-1")


JSON = "content-type: application/json"


def chat_body(**more: Any) -> bytes:
    return json.dumps({"model": "heed", "messages": [{"role": "user", "content": "q"}], **more}).encode()
