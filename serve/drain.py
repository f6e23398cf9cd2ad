"""A gateway that ends without a failed request.

uvicorn closes idle connections at once when it is told to stop, and those of answers under way as soon as these have
ended, though their clients were not told; whoever is sending the next request on one of them fails. Here every answer
that begins from then on says `connection: close`, so clients go elsewhere by themselves, and a connection is closed
when it has been idle for a while.
"""

import asyncio
import socket
from collections.abc import Callable

import uvicorn

CLOSE = (b"connection", b"close")

IDLE_S = 1
"""How long a connection lies idle before it is closed. Whoever sends requests in a row has been told by then; for
others it is what happens at the end of any keep-alive."""

LOOK_EVERY_S = 0.05

LAST_S = 1
"""For what is left when time is up, which is cancelled then."""


class DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, drain_s: float, on_start: Callable[[], None], on_go: Callable[[], None]):
        config.timeout_graceful_shutdown = LAST_S
        super().__init__(config)
        self._drain_s = drain_s
        self._on_start = on_start
        self._on_go = on_go

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_go()
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        await self._drain()
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        state, clock = self.server_state, asyncio.get_running_loop().time
        state.default_headers = [*state.default_headers, CLOSE]
        for connection in state.connections:
            if (cycle := getattr(connection, "cycle", None)) is not None:
                cycle.default_headers = state.default_headers  # said if it has not begun to answer
        idle_since: dict[object, float] = {}
        end = clock() + self._drain_s
        while state.connections and clock() < end and not self.force_exit:
            for connection in list(state.connections):
                cycle = getattr(connection, "cycle", None)
                if cycle is not None and not cycle.response_complete:
                    idle_since.pop(connection, None)
                elif clock() - idle_since.setdefault(connection, clock()) >= IDLE_S:
                    connection.transport.close()
            await asyncio.sleep(LOOK_EVERY_S)
