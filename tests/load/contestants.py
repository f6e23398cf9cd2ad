"""What stands between clients and the engine in `bench_hop`: nothing, nginx, vllm-router, LiteLLM, Heed.

LiteLLM and vllm-router come from PyPI into an environment of their own, var/bench-venv: they are in no lock, and the
gateway's environment is no worse for them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.load.hop_upstream import MODEL
from tests.processes import ROOT, answers, free_port, ledger_server, running, wait_for

VENV = ROOT / "var" / "bench-venv"
# 1.106.0: of what came after it, 1.107.0 was withdrawn for it had been tampered with.
PACKAGES = ("litellm[proxy]==1.106.0", "vllm-router==0.1.17")
KEY = "sk-bench-key-of-a-client"
START_S = 120

NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""

LITELLM = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""


@dataclass
class Contestant:
    name: str
    port: int
    pid: int | None
    ledger_pid: int | None = None

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pid) if self.pid else 0.0


def cpu_s(pid: int) -> float:
    """Of a process and its children, by the scheduler's count in ns: /proc/PID/stat counts in steps of 10 ms."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return (
        sum(
            int((task / "schedstat").read_text().split()[0])
            for process in family
            for task in Path(f"/proc/{process.pid}/task").iterdir()
        )
        / 1e9
    )


def install() -> None:
    if not (VENV / "installed").is_file() or (VENV / "installed").read_text() != "\n".join(PACKAGES):
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python"), *PACKAGES], check=True
        )
        (VENV / "installed").write_text("\n".join(PACKAGES))


@contextmanager
def started(folder: Path, heed: list[str], others: bool) -> Iterator[list[Contestant]]:
    """The engine and whoever stands before it; `heed` is the module that runs the gateway."""
    upstream = free_port()
    with ExitStack() as stack:
        engine = [sys.executable, "-m", "tests.load.hop_upstream", str(upstream)]
        stack.enter_context(running(engine, folder / "upstream.log"))
        wait_for(lambda: answers(upstream), "the engine listens")
        found = [Contestant("direct", upstream, None)]
        if others:
            found += [stack.enter_context(each) for each in _others(folder, upstream)]
        found.append(stack.enter_context(_heed(folder, upstream, heed)))
        for each in found:
            wait_for(lambda port=each.port: answers(port), f"{each.name} listens", START_S)  # type: ignore[misc]
        yield found


def _others(folder: Path, upstream: int) -> Iterator[AbstractContextManager[Contestant]]:
    if nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"):
        port = free_port()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
        yield _alone("nginx", [nginx, "-c", str(folder / "nginx.conf"), "-e", "stderr"], folder, port)
    else:
        print("nginx is not on PATH and was left out (Debian: apt-get install nginx-light)")
    port = free_port()
    command = [str(VENV / "bin" / "vllm-router"), "--worker-urls", f"http://127.0.0.1:{upstream}", "--port", str(port)]
    command += ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())]
    yield _alone("vllm-router", command, folder, port)
    port = free_port()
    (folder / "litellm.yaml").write_text(LITELLM.format(model=MODEL, upstream=upstream, key=KEY))
    command = [str(VENV / "bin" / "litellm"), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    env["PATH"] = f"{VENV / 'bin'}:{os.environ['PATH']}"
    yield _alone("LiteLLM", [*command, "--port", str(port), "--num_workers", "1"], folder, port, env)


@contextmanager
def _alone(
    name: str, command: list[str], folder: Path, port: int, env: dict[str, str] | None = None
) -> Iterator[Contestant]:
    with running(command, folder / f"{name}.log", env) as process:
        yield Contestant(name, port, process.pid)


@contextmanager
def _heed(folder: Path, upstream: int, module: list[str]) -> Iterator[Contestant]:
    """With a client's key, and recording to a ledger that writes every act to disk before it answers."""
    port, ledger_port = free_port(), free_port()
    env = {
        "HEED_LEDGER_URL": f"redis://127.0.0.1:{ledger_port}/0",
        "HEED_PORT": str(port),
        "HEED_VAR": str(folder),
        "HEED_ENGINES": f"http://127.0.0.1:{upstream}",
        "HEED_CLIENT_KEYS": KEY,
    }
    with (
        ledger_server(folder / "ledger", ledger_port) as ledger,
        running([sys.executable, "-m", *module], folder / "heed.log", env) as process,
    ):
        yield Contestant("Heed", port, process.pid, ledger.pid)
