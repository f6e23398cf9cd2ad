"""Several gateway processes on one port, each a gateway of its own; their parent answers nothing.

It opens the port and starts HEED_WORKERS processes that all take connections from that one socket, starts again what
ends, and on SIGHUP replaces them one after the other: the new one is ready before the old one is told to go, and what
the old one has begun it ends (serve/drain.py). Not a socket for each with SO_REUSEPORT: connections that wait at a
socket when it closes are reset by Linux (unless net.ipv4.tcp_migrate_req is on, and it is off), and a second gateway
started by mistake would share the port without a word.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvicorn

from serve.settings import GatewaySettings

log = logging.getLogger("heed.workers")

LONGEST_PAUSE_S = 8.0
"""Between two starts of a worker that keeps ending; doubled from a quarter of a second."""

READY = b"r"


class CannotStart(Exception):
    """A worker ended before it could answer anybody; it has said why."""


class Worker:
    """A process; ready once it takes connections. It ends itself when its parent does, seen at a socket of the two."""

    def __init__(self, number: int, port: socket.socket, folder: Path) -> None:
        self.number = number
        self._tether, its = socket.socketpair()
        with its:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "serve", "--worker", str(number)),
                    *("--port-fd", str(port.fileno()), "--tether-fd", str(its.fileno()), "--siblings", str(folder)),
                ],
                pass_fds=(port.fileno(), its.fileno()),
            )
        self._tether.setblocking(False)
        self.ready = asyncio.create_task(self._said_ready())
        self.ended = asyncio.create_task(self._has_ended())

    async def _said_ready(self) -> bool:
        return await asyncio.get_running_loop().sock_recv(self._tether, 1) == READY

    async def _has_ended(self) -> int:
        await self.ready
        while (code := self.process.poll()) is None:  # noqa: ASYNC110 (polled: a process has no event)
            await asyncio.sleep(0.05)
        self._tether.close()
        return code


class Workers:
    def __init__(self, number: int, port: socket.socket, folder: Path) -> None:
        self._number = number
        self._port = port
        self._folder = folder
        self._workers: dict[int, Worker] = {}
        self._pauses_s: dict[int, float] = {}
        self._stop = asyncio.Event()
        self._renew = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises CannotStart."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._renew.set)
        try:
            first = self._start(1)
            if not await self._becomes_ready(first):  # alone, so that what is wrong is said once
                raise CannotStart
            for nth in range(2, self._number + 1):
                self._start(nth)
            await self._keep()
        finally:
            for worker in self._workers.values():
                worker.process.terminate()
            await asyncio.gather(*(worker.ended for worker in self._workers.values()))

    def _start(self, number: int) -> Worker:
        worker = self._workers[number] = Worker(number, self._port, self._folder)
        return worker

    async def _becomes_ready(self, worker: Worker) -> bool:
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([worker.ready, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return self._stop.is_set() or await worker.ready

    async def _keep(self) -> None:
        stop, renew = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._renew.wait())
        while not self._stop.is_set():
            ends = [worker.ended for worker in self._workers.values()]
            await asyncio.wait([stop, renew, *ends], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                return
            if renew.done():
                self._renew.clear()
                await self._replace_all()
                renew = asyncio.create_task(self._renew.wait())
            for worker in [worker for worker in self._workers.values() if worker.ended.done()]:
                await self._start_again(worker)

    async def _start_again(self, worker: Worker) -> None:
        """Others go on meanwhile; one that was ready is back at once."""
        number, was_ready = worker.number, await worker.ready
        pause_s = 0.0 if was_ready else min(LONGEST_PAUSE_S, max(0.25, 2 * self._pauses_s.get(number, 0)))
        self._pauses_s[number] = pause_s
        log.warning("worker %d ended with code %d; starting it again", number, await worker.ended)
        try:
            async with asyncio.timeout(pause_s):
                await self._stop.wait()
        except TimeoutError:
            self._start(number)

    async def _replace_all(self) -> None:
        for number, old in list(self._workers.items()):
            new = self._start(number)
            if not await self._becomes_ready(new):
                log.error("the new worker %d ended before it was ready; the old ones stay", number)
                self._workers[number] = old
                return
            old.process.terminate()
            await old.ended
            log.info("worker %d was replaced", number)


def run(settings: GatewaySettings) -> None:
    """Raises CannotStart."""
    port = uvicorn.Config("", host=settings.host, port=settings.port, log_config=None).bind_socket()
    with port, tempfile.TemporaryDirectory(prefix="heed-workers-") as folder:
        asyncio.run(Workers(settings.workers, port, Path(folder)).run())


def tie(tether: int, on_orphaned: Callable[[], None]) -> Callable[[], None]:
    """In a worker: what to call once it takes connections; `on_orphaned` is called when its parent has ended."""
    line = socket.socket(fileno=tether)
    line.setblocking(False)
    os.set_inheritable(tether, False)

    def started() -> None:
        line.send(READY)
        asyncio.get_running_loop().add_reader(line, orphaned)

    def orphaned() -> None:
        asyncio.get_running_loop().remove_reader(line)
        on_orphaned()

    return started
