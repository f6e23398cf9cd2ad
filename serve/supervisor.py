"""The supervisor: starts services, waits until each is really ready, starts again what falls over, stops all in order.

A service that keeps failing ends the run with the tail of its log (`ServiceFailed`). When the run ends, by whatever
way, no process of any service is left; `serve/tether.py` holds that even for kill -9.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serve import tether

FAILURES = 4  # in a row; then a person has to look
STEADY_S = 60.0  # ready for so long, a service has its failures forgiven
BACKOFF_S = 1.0  # doubled after each failure in a row
LONGEST_BACKOFF_S = 8.0  # for a service that is never given up: it shall be back soon after what ails it is gone
LOOK_S = 0.1  # between two looks at a service that is not ready yet
TAIL_LINES = 25


class ServiceFailed(Exception):
    """A service ended or did not become ready more often than is forgiven; the message holds the end of its log."""


@dataclass(frozen=True)
class Started:
    """A started process, as its readiness check sees it."""

    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # where in the log this process began to write

    def has_said(self, text: str) -> bool:
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return text.encode() in log.read()


@dataclass(frozen=True)
class Service:
    name: str
    command: Sequence[str]
    is_ready: Callable[[Started], Awaitable[bool]]
    env: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()  # names of the services that must be ready before this one starts
    ready_within_s: float = 120.0
    patience_s: float = 15.0  # between SIGTERM and SIGKILL
    keeps: Sequence[int] = ()  # file descriptors it holds open for as long as it lives
    is_given_up: bool = True  # False: once it was ready, it is started again however often it ends


class Supervisor:
    """Services are given in the order of their stopping, the last one stopped last."""

    _keeper: subprocess.Popen[bytes]

    def __init__(
        self,
        services: Sequence[Service],
        logs: Path,
        say: Callable[[str, str], None],
        steady_s: float = STEADY_S,
    ) -> None:
        self._services = services
        self._steady_s = steady_s
        self._logs = logs
        self._say = say
        self._running: dict[str, Started] = {}
        self._ready = {service.name: asyncio.Event() for service in services}
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def waiting(self) -> list[str]:
        return [name for name, event in self._ready.items() if not event.is_set()]

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def pid_of(self, name: str) -> int:
        """Also the number of its session."""
        return self._running[name].process.pid

    def stop(self) -> None:
        """Ask for the end; asking twice leaves nobody time to say goodbye."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Until `stop` is called. Raises ServiceFailed."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._keeper = start_keeper()
        tasks = [asyncio.create_task(self._keep_running(service)) for service in self._services]
        stop = asyncio.create_task(self._stop.wait())
        ready = asyncio.create_task(self._announce(on_ready))
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, stop, ready):
                task.cancel()
            await asyncio.gather(*tasks, stop, ready, return_exceptions=True)
            for service in self._services:
                await self._end(service)
            self._keeper.communicate()

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        for event in self._ready.values():
            await event.wait()
        on_ready()

    async def _keep_running(self, service: Service) -> None:
        for name in service.after:
            await self._ready[name].wait()
        failures, was_ready = 0, False
        while True:
            began = time.monotonic()
            started = self._start(service)
            problem = await self._become_ready(service, started)
            if problem is None:
                self._say(service.name, f"ready in {time.monotonic() - began:.1f} s")
                self._ready[service.name].set()
                was_ready = True
                ready_at = time.monotonic()
                code = await ended(started.process)
                problem = f"ended with {meaning(code)}"
                if time.monotonic() - ready_at > self._steady_s:
                    failures = 0
            self._ready[service.name].clear()
            await self._end(service)
            failures += 1
            if failures >= FAILURES and (service.is_given_up or not was_ready):
                raise ServiceFailed(f"{service.name} {problem}, {failures} times in a row.\n{tail(started)}")
            pause = min(BACKOFF_S * 2 ** (failures - 1), LONGEST_BACKOFF_S)
            self._say(service.name, f"{problem}; starting it again in {pause:.0f} s (log: {started.log})")
            await asyncio.sleep(pause)

    def _start(self, service: Service) -> Started:
        # Popen and not asyncio's processes: a start must not be interrupted halfway by a cancelled task.
        log = self._logs / f"{service.name}.log"
        with log.open("ab") as out:
            started = Started(
                subprocess.Popen(
                    tether_command("run", str(os.getpid()), *service.command),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **service.env},
                    pass_fds=tuple(service.keeps),
                    start_new_session=True,
                ),
                log,
                log_start=out.tell(),
            )
        self._running[service.name] = started
        self._tell_keeper(f"+{started.process.pid}")
        return started

    def _tell_keeper(self, line: str) -> None:
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the keeper: the kernel's signal still reaches each service
            self._keeper.stdin.write(f"{line}\n".encode())
            self._keeper.stdin.flush()

    async def _become_ready(self, service: Service, started: Started) -> str | None:
        """None when it is ready, else what went wrong."""
        end = time.monotonic() + service.ready_within_s
        while started.process.poll() is None:
            if await service.is_ready(started):
                return None
            if time.monotonic() > end:
                return f"was not ready within {service.ready_within_s:.0f} s"
            await asyncio.sleep(LOOK_S)
        return f"ended with {meaning(started.process.returncode)} before it was ready"

    async def _end(self, service: Service) -> None:
        """The service and all it started are gone after this."""
        started = self._running.pop(service.name, None)
        if started is None:
            return
        process = started.process
        # Children that made a session of their own are found by descent, while their parent lives.
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            process.terminate()
            end = time.monotonic() + service.patience_s
            while process.poll() is None and time.monotonic() < end and not self._hurry.is_set():  # noqa: ASYNC110 (polled)
                await asyncio.sleep(LOOK_S)
        tether.send(signal.SIGKILL, tether.members(process.pid))
        for relative in family:
            with suppress(psutil.NoSuchProcess):
                relative.kill()
        process.wait()
        self._tell_keeper(f"-{process.pid}")


def start_keeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(tether_command("keep"), stdin=subprocess.PIPE, start_new_session=True)


async def ended(process: subprocess.Popen[bytes]) -> int:
    while (code := process.poll()) is None:  # noqa: ASYNC110 (polled: a process has no event)
        await asyncio.sleep(LOOK_S)
    return code


def tether_command(*arguments: str) -> list[str]:
    return [sys.executable, "-S", "-E", tether.__file__, *arguments]


def meaning(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def tail(started: Started) -> str:
    lines = started.log.read_bytes()[started.log_start :].decode(errors="replace").splitlines()
    shown = "\n".join(f"  | {line[:300]}" for line in lines[-TAIL_LINES:]) or "  | (it wrote nothing)"
    return f"The end of {started.log}:\n{shown}"
