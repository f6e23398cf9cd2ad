"""`heed up`: what it says before it starts, and what it leaves behind when it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serve import preflight, stack, tether, up
from serve.preflight import CannotStart
from serve.stack import Stack, StackSettings
from serve.supervisor import FAILURES, Service, ServiceFailed, Started, Supervisor
from tests.processes import ROOT, free_port, wait_for

SLEEPER = "import signal; print('hello', flush=True); signal.pause()"
# A service like vLLM: its own child is in its session, and does not care for SIGTERM.
STUBBORN_CHILD = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('child', flush=True); signal.pause()"
)
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN_CHILD!r}]).wait()"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def settings(**fields: object) -> StackSettings:
    return StackSettings(**{"port": free_port(), **fields})  # type: ignore[arg-type]


def service(name: str, code: str, says: str = "hello", after: tuple[str, ...] = ()) -> Service:
    async def is_ready(started: Started) -> bool:
        return started.has_said(says)

    return Service(name=name, command=[sys.executable, "-c", code], is_ready=is_ready, after=after, patience_s=2)


def test_a_taken_public_port_is_named_with_its_holder_and_what_to_set(taken_port: int) -> None:
    (problem,) = preflight.port_problems(settings(port=taken_port))

    assert f"Port {taken_port}" in problem
    assert f"pid {os.getpid()}" in problem
    assert "HEED_PORT=" in problem


def test_a_taken_internal_port_is_replaced_unless_it_was_asked_for(taken_port: int) -> None:
    problems: list[str] = []

    asked = settings(ledger_port=taken_port)
    preflight.internal_port(asked, "ledger_port", problems)
    not_asked = StackSettings.model_construct(_fields_set=set(), ledger_port=taken_port, port=free_port())
    port = preflight.internal_port(not_asked, "ledger_port", [])

    assert "HEED_LEDGER_PORT" in problems[0]
    assert port != taken_port
    assert stack.is_free(port)


def test_too_little_memory_says_what_is_needed_and_what_is_there() -> None:
    (problem,) = preflight.memory_problems(available_gb=1.25, needed_gb=4.5)

    assert "4.5 GB" in problem
    assert "1.2 GB" in problem
    assert not list(preflight.memory_problems(available_gb=4.5, needed_gb=4.5))


def test_a_folder_that_cannot_be_written_is_a_sentence_that_names_heed_var() -> None:
    (problem,) = preflight.disk_problems(Path("/proc/heed"))

    assert "/proc/heed" in problem
    assert "HEED_VAR" in problem


def test_too_little_disk_says_what_is_needed_and_names_heed_var(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DISK_GB", 1e6)

    (problem,) = preflight.disk_problems(tmp_path)

    assert "1000000 GB is needed" in problem
    assert "HEED_VAR" in problem


def test_a_gpu_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "installed_device", lambda: "gpu")
    monkeypatch.setenv("PATH", "")

    with pytest.raises(CannotStart) as refused:
        preflight.decide(settings())

    assert "No C compiler (cc, gcc or clang)" in str(refused.value)
    assert "apt install gcc" in str(refused.value)


@pytest.mark.parametrize(
    ("base", "is_wrong"), [("/no/such/folder", True), ("{empty}", True), ("Qwen/Qwen3-0.6B", False)]
)
def test_a_base_model_that_is_not_there_is_found_before_vllm_starts(base: str, is_wrong: bool, tmp_path: Path) -> None:
    asked = settings(base_model=base.format(empty=tmp_path), var=tmp_path)

    problems = list(preflight.base_model_problems(Stack(asked, "cpu", 1, (2,))))

    assert bool(problems) is is_wrong


def test_a_second_stack_on_the_same_state_is_refused_and_a_dead_ones_lock_is_not(tmp_path: Path) -> None:
    first = preflight.hold(tmp_path, print)

    with pytest.raises(CannotStart, match=str(os.getpid())):
        preflight.hold(tmp_path, print)
    os.close(first)
    second = preflight.hold(tmp_path, print)

    os.close(second)


def test_the_engine_on_cpu_gives_the_base_no_name_that_traffic_could_ask_for(tmp_path: Path) -> None:
    engine = stack.engine(Stack(settings(var=tmp_path), "cpu", 1, (2,)), key="k")

    assert engine.command[engine.command.index("--served-model-name") + 1] == "base"
    assert engine.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert engine.command[engine.command.index("--host") + 1] == "127.0.0.1"


def test_the_console_is_the_first_to_stop_and_off_leaves_it_out(tmp_path: Path) -> None:
    on, off = (
        stack.services(Stack(settings(var=tmp_path), "cpu", 1, (2,), console_port)) for console_port in (7860, None)
    )

    assert on[0].name == "console"
    assert "console" not in {service.name for service in off}


def test_heed_console_off_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_CONSOLE", "off")

    assert settings().console is False


async def test_services_start_after_those_they_need_and_stop_before_them(tmp_path: Path) -> None:
    said: list[str] = []
    order = tmp_path / "order"
    leave = textwrap.dedent(
        """
        import pathlib, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: (open({order!r}, "a").write({name!r} + " "), sys.exit(0)))
        print("hello", flush=True)
        while True: signal.pause()
        """
    )
    services = [
        service("gateway", leave.format(order=str(order), name="gateway"), after=("ledger",)),
        service("ledger", leave.format(order=str(order), name="ledger")),
    ]
    supervisor = Supervisor(services, tmp_path / "logs", lambda name, text: said.append(f"{name} {text}"))

    await asyncio.wait_for(supervisor.run(on_ready=supervisor.stop), 30)

    assert [line.split()[0] for line in said] == ["ledger", "gateway"]
    assert order.read_text().split() == ["gateway", "ledger"]


async def test_a_service_that_is_killed_is_started_again(tmp_path: Path) -> None:
    supervisor: Supervisor
    pids: list[int] = []

    def say(name: str, text: str) -> None:
        if text.startswith("ready"):
            pids.append(supervisor.pid_of(name))
            supervisor.stop() if len(pids) == 2 else os.kill(pids[0], signal.SIGKILL)

    supervisor = Supervisor([service("engine", SLEEPER)], tmp_path, say)

    await asyncio.wait_for(supervisor.run(on_ready=lambda: None), 30)

    assert len(set(pids)) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_service_that_keeps_failing_ends_the_run_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.supervisor.BACKOFF_S", 0.01)
    services = [service("engine", "raise SystemExit('no such model')"), service("ledger", SLEEPER)]
    supervisor = Supervisor(services, tmp_path, lambda name, text: None)

    with pytest.raises(ServiceFailed, match=r"(?s)exit code 1 before it was ready.*no such model"):
        await asyncio.wait_for(supervisor.run(on_ready=lambda: None), 30)


async def test_a_service_that_is_not_given_up_outlasts_any_number_of_failures_once_it_was_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.supervisor.BACKOFF_S", 0.01)
    ends = "import time; print('hello', flush=True); time.sleep(0.3)"
    supervisor: Supervisor
    starts: list[str] = []

    def say(_: str, text: str) -> None:
        starts.append(text) if text.startswith("ready") else None
        if len(starts) > FAILURES:
            supervisor.stop()

    supervisor = Supervisor([replace(service("ledger", ends), is_given_up=False)], tmp_path, say)

    await asyncio.wait_for(supervisor.run(on_ready=lambda: None), 60)

    assert len(starts) == FAILURES + 1


async def test_a_stop_leaves_no_process_even_of_a_child_that_ignores_it(tmp_path: Path) -> None:
    sessions: list[int] = []
    supervisor: Supervisor

    def on_ready() -> None:
        sessions.append(supervisor.pid_of("engine"))
        assert len(tether.members(sessions[0])) == 2
        supervisor.stop()

    supervisor = Supervisor([service("engine", PARENT, says="child")], tmp_path, lambda name, text: None)

    await asyncio.wait_for(supervisor.run(on_ready), 30)

    assert tether.members(sessions[0]) == []


def test_a_supervisor_killed_with_signal_9_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "stack.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio, pathlib, sys
            from serve.supervisor import FAILURES, Service, Supervisor

            async def is_ready(started):
                return started.has_said("child")

            command = [sys.executable, "-c", {PARENT!r}]
            services = [Service(name=name, command=command, is_ready=is_ready) for name in "ab"]
            supervisor = Supervisor(services, pathlib.Path({str(tmp_path)!r}), lambda name, text: None)
            ready = lambda: print(*(supervisor.pid_of(name) for name in "ab"), flush=True)
            asyncio.run(supervisor.run(ready))
            """
        )
    )
    killed = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert killed.stdout is not None
    sessions = [int(pid) for pid in killed.stdout.readline().split()]
    assert [len(tether.members(session)) for session in sessions] == [2, 2]

    killed.kill()
    killed.communicate()

    # The children ignore SIGTERM, so this is also the keeper's patience.
    wait_for(lambda: not any(tether.members(session) for session in sessions), "both families end", 30)


def test_the_welcome_names_commands_that_find_this_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = Stack(settings(var=tmp_path), "cpu", ledger_port=1, engine_ports=(2,))
    usual = Stack(settings(), "cpu", ledger_port=1, engine_ports=(2,))

    up.welcome(elsewhere, tmp_path / "logs", took_s=1)
    up.welcome(usual, Path("var/logs"), took_s=1)

    said = capsys.readouterr().out
    first, second = said.split("Ctrl-C stops everything", 1)
    assert f"HEED_VAR={tmp_path} " in first
    assert str(tmp_path / "operator.key") in first
    assert "HEED_VAR" not in second
    assert f"curl {usual.gateway_url}/v1/chat/completions" in second
