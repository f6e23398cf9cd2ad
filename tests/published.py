"""A published port: `python -m tests.published FD HOST PORT` passes connections of an inherited socket on.

The socket was opened on this machine's loopback, and this process runs in the network of a service; that is all there
is to `ports:`.
"""

import asyncio
import socket
import sys


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def publish(listening: socket.socket, host: str, port: int) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pour(reader, there_writer), _pour(there_reader, writer))

    async with await asyncio.start_server(pass_on, sock=listening) as server:
        await server.serve_forever()


if __name__ == "__main__":
    descriptor, host, port = sys.argv[1:]
    asyncio.run(publish(socket.socket(fileno=int(descriptor)), host, int(port)))
