"""`heed up`: the whole of Heed on this machine, one command, one screen.

Checks the machine, makes the model, starts ledger, engine, gateway, worker, beat and console, says when each is ready,
and stops all of them on Ctrl-C or SIGTERM. State is in var/; nothing else is written.
"""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from shutil import which
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from serve import preflight, stack
from serve.preflight import CannotStart
from serve.stack import Stack, StackSettings
from serve.supervisor import ServiceFailed, Supervisor, tether_command

console = Console(highlight=False)


def up(
    port: Annotated[int | None, typer.Option(help="Public port of the gateway (HEED_PORT, default 8000).")] = None,
    var: Annotated[Path | None, typer.Option(help="Where state lives (HEED_VAR, default var).")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id (HEED_BASE_MODEL; default: the pocket model on CPU).")
    ] = None,
) -> None:
    """Start the whole stack here: ledger, vLLM, gateway, worker, console. Ctrl-C stops it."""
    asked: dict[str, Any] = {"port": port, "var": var, "base_model": base_model}
    # A SIGTERM before the supervisor listens ends the preflight and the model's making like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = StackSettings(**{name: value for name, value in asked.items() if value is not None})
        # The lock comes first: a second `heed up` is told so, and not that its ports are taken.
        lock = preflight.hold(settings.var, lambda text: say("stack", text))
        decided = preflight.decide(settings)
        make_model(decided)
        asyncio.run(supervise(decided, lock))
    except ValidationError as error:
        refuse("\n".join(sentence(wrong["loc"][0], wrong["input"], wrong["msg"]) for wrong in error.errors()))
    except (CannotStart, ServiceFailed) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        console.print("Stopped before it was ready; nothing is left running.")
        raise typer.Exit(130) from None


def sentence(field: int | str, received: object, message: str) -> str:
    return f"HEED_{str(field).upper()} is {received!r}: {message[0].lower()}{message[1:]}."


def refuse(text: str) -> None:
    for line in text.splitlines():
        console.print(line, style=None if line.startswith("  |") else "red", markup=False, soft_wrap=True)
    raise typer.Exit(1)


def say(name: str, text: str) -> None:
    console.print(f"  {name:<9} {text}", markup=False, soft_wrap=True)


def make_model(decided: Stack) -> None:
    """The base model and the adapter that changes nothing; left alone when they are there. Raises CannotStart."""
    if decided.is_pocket:
        recipe("model", "the pocket model", ["pocket", "--out", decided.base_model])
    elif decided.device == "gpu":
        say("model", f"{decided.base_model} (vLLM downloads it if it is a Hub id and not here yet)")
    if decided.device == "cpu":
        arguments = ["--base", decided.base_model, "--out", str(decided.base_adapter)]
        recipe("model", "the base's adapter", ["zero", *arguments, "--lora-rank", str(decided.settings.max_lora_rank)])


def recipe(name: str, thing: str, arguments: list[str]) -> None:
    began = time.monotonic()
    say(name, f"making {thing}, unless it is there")
    style = "bar" if sys.stdout.isatty() else "jsonl"
    command = [sys.executable, "-m", "trainer", *arguments, "--progress", style]
    child = subprocess.Popen(
        tether_command("run", str(os.getpid()), *command),
        stdout=None if style == "bar" else subprocess.PIPE,
        text=True,
    )
    try:
        if child.stdout is not None:
            relay(name, child.stdout)
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if code != 0:
        raise CannotStart(f"{thing} could not be made (exit code {code}), see above; `heed up` again starts it afresh.")
    say(name, f"{thing} is there ({time.monotonic() - began:.0f} s)")


def relay(name: str, events: Iterable[str]) -> None:
    """A recipe's progress without a terminal: a line at each quarter, and whatever it says that is not progress."""
    shown = 0
    for line in events:
        try:
            event = json.loads(line)
        except ValueError:
            say(name, line.rstrip())
            continue
        if event.get("event") == "step" and event["step"] * 4 // event["steps"] > shown:
            shown = event["step"] * 4 // event["steps"]
            say(name, f"step {event['step']} of {event['steps']}")
        elif event.get("event") == "error":
            say(name, event["message"])


async def supervise(decided: Stack, lock: int) -> None:
    (decided.var / "ledger").mkdir(parents=True, exist_ok=True)
    logs = decided.var / "logs"
    keep_last_logs(logs)
    began = time.monotonic()
    supervisor = Supervisor(stack.services(decided, keeps=[lock]), logs, say)

    def stop() -> None:
        if not supervisor.is_stopping:
            console.print("\nStopping: console, gateway, worker, engine, ledger. Ctrl-C again to hurry.")
        supervisor.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    notice = decided.var / "stack.json"
    waiting = asyncio.create_task(show_waiting(supervisor))
    try:
        write_notice(notice, decided)
        await supervisor.run(on_ready=lambda: welcome(decided, logs, time.monotonic() - began))
    finally:
        waiting.cancel()
        notice.unlink(missing_ok=True)
    console.print("Stopped. Everything said and voted is kept in", str(decided.var), soft_wrap=True)


async def show_waiting(supervisor: Supervisor) -> None:
    """A line now and then, so that a slow machine does not look like a dead one."""
    while True:
        await asyncio.sleep(15)
        if supervisor.waiting and not supervisor.is_stopping:
            say("stack", f"waiting for {', '.join(supervisor.waiting)}")


def keep_last_logs(logs: Path) -> None:
    """One run, one log; the run before is kept as NAME.log.1, and disk use is bounded by that."""
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))


def write_notice(path: Path, decided: Stack) -> None:
    """Where the running stack can be found, for the commands of the same machine (`heed check` asks for the ledger)."""
    addresses = {
        "pid": os.getpid(),
        "gateway_url": decided.gateway_url,
        "ledger_url": decided.ledger_url,
        "broker_url": decided.broker_url,
        "engine_urls": decided.engine_urls,
        "console_url": decided.console_url,
    }
    path.write_text(json.dumps(addresses, indent=1) + "\n")


def welcome(decided: Stack, logs: Path, took_s: float) -> None:
    url, name = decided.gateway_url, decided.names[0]
    heed = "heed" if which("heed") else os.path.relpath(Path(sys.executable).parent / "heed")
    if decided.settings.var != Path("var"):  # the commands find key and address there
        heed = f"HEED_VAR={shlex.quote(str(decided.var))} {heed}"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "How do I make pasta?"}]})
    lines = [
        "",
        f"Heed is ready ({took_s:.0f} s).",
        f"  gateway       {url}   documentation: {url}/docs",
        *([f"  console       {decided.console_url}"] if decided.console_url else []),
        f"  operator key  {decided.var / 'operator.key'}",
        f"  logs          {logs}",
        "",
        "Three things to try, in another terminal:",
        f"  {heed} chat",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        f"  {heed} demo",
        "",
        "Ctrl-C stops everything; what was said and voted is kept.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
