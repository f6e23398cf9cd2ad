"""Children: a recipe in a process of its own, so it can be killed without the worker and holds its own memory.

It ends when the worker ends, however that ends (Linux: PR_SET_PDEATHSIG), and leads a process group, so a Ctrl-C in
the worker's terminal does not reach it and whatever it starts can be ended with it.
"""

import asyncio
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Event = dict[str, Any]

PATIENCE_S = 20.0
"""After SIGTERM a recipe saves at its next step, which takes seconds on a CPU; then it is killed."""
LONGEST_LINE = 2**20
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded before the fork: after it only calls that take no lock are safe


class RecipeFailed(Exception):
    """The recipe ended without a result; the message says why, in words fit for the public."""


async def run_recipe(
    arguments: Sequence[str],
    log: Path,
    nice: int,
    on_event: Callable[[Event], Awaitable[None]],
    patience_s: float = PATIENCE_S,
    processes: int = 1,
) -> Event:
    """Run `python -m trainer ARGUMENTS`, pass on its events, return its last: {"event": "done", …}.

    Several `processes` are torchrun's, as they are of `accelerate launch`, which would start only one on a CPU.

    When the caller is cancelled, the recipe gets SIGTERM and `patience_s` to save. Raises RecipeFailed.
    """
    parent = os.getpid()

    def tie() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        began = stderr.tell()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *_launcher(processes), "-m", "trainer", *arguments, "--progress", "jsonl"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=LONGEST_LINE,
            process_group=0,
            preexec_fn=tie if sys.platform == "linux" else None,
        )
    last: Event = {}
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if event := _event(line):
                last = event
                await on_event(event)
        code = await process.wait()
    finally:
        await _end(process, patience_s)
    if code == 0 and last.get("event") == "done":
        return last
    raise RecipeFailed(f"{arguments[0]} {_reason(code, last, _tail(log, began))}")


@asynccontextmanager
async def ended(*tasks: "asyncio.Task[Any]") -> AsyncIterator[None]:
    """However the block ends, these tasks, which run recipes, have ended with it.

    None is cancelled twice: it would break off its waiting for its process, and whether that heeds SIGTERM nobody
    would see any more.
    """
    try:
        yield
    finally:
        for task in tasks:
            if not task.cancelling():  # as a gather that was cancelled has done
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return []
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


async def _end(process: asyncio.subprocess.Process, patience_s: float) -> None:
    if process.returncode is not None:
        return
    _signal(process, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # it ended in between


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # a library printed something
    return event if isinstance(event, dict) and "event" in event else None


def _tail(log: Path, began: int) -> str:
    with log.open("rb") as content:
        content.seek(began)
        return content.read()[-8192:].decode(errors="replace")


def _reason(code: int, last: Event, stderr: str) -> str:
    if last.get("event") == "error":
        return f"failed: {last.get('message')}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", most likely because memory ran out" if code == -signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    # The last line of a traceback names the error; what is above it is for the log.
    said = [line for line in stderr.splitlines() if re.match(r"^[A-Za-z_.]+(Error|Exception|Interrupt|Exit)\b", line)]
    return f"ended with code {code}" + (f" ({said[-1][:300]})" if said else "")
