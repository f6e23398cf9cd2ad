"""A door before a server: what comes in is carried to it, and its answers back."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def door(leads_to: Callable[[], int], context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Its port. Each connection is to the port that `leads_to` says when it is made; all end with the block."""
    passing: set[asyncio.Task[None]] = set()

    def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(asyncio.create_task(_carry_both(reader, writer, leads_to())))

    async with await asyncio.start_server(enter, "127.0.0.1", ssl=context) as entrance:
        yield int(entrance.sockets[0].getsockname()[1])
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)


async def _carry_both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there, answers = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.gather(_carry(reader, answers), _carry(there, writer))
    finally:
        for each in (writer, answers):
            each.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
