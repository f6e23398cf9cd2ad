"""The whole of Heed as `make run` starts it, for tests: `heed up` in a folder of its own, on ports of its own."""

import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil

from tests.processes import ROOT, descendants, end, free_port, wait_for

HEED = str(Path(sys.executable).with_name("heed"))
START_S = 240  # vLLM alone takes 30 to 60 s on two quiet cores


@dataclass
class Stack:
    var: Path
    pocket: Path
    models: str = "heed"
    port: int = field(default_factory=free_port)
    ledger_port: int = field(default_factory=free_port)
    engine_port: int = field(default_factory=free_port)
    console_port: int = field(default_factory=free_port)
    engine_key: str = field(default_factory=lambda: secrets.token_hex(16))
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What every `heed` command of this stack needs to know."""
        return {
            "HEED_VAR": str(self.var),
            "HEED_PORT": str(self.port),
            "HEED_LEDGER_PORT": str(self.ledger_port),
            "HEED_LEDGER_URL": f"redis://127.0.0.1:{self.ledger_port}/0",
            "HEED_ENGINE_PORT": str(self.engine_port),
            "HEED_CONSOLE_PORT": str(self.console_port),
            "HEED_DEVICE": "cpu",
            "HEED_MODELS": self.models,
            "HEED_ENGINE_KEY": self.engine_key,
            "HEED_TRAIN_EVERY_PAIRS": "0",  # tests ask for their jobs
            "HEED_VOTER_VOTES_PER_MINUTE": "0",  # and are faster than people
            "HEED_KEY_VOTES_PER_MINUTE": "0",
        }

    def start(self) -> None:
        if not (self.var / "pocket").exists():
            (self.var / "pocket").symlink_to(self.pocket)  # made once, for every stack of the run
        log = (self.var / "up.log").open("ab")
        self.process = subprocess.Popen(
            [HEED, "up"], stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **self.env}, start_new_session=True
        )
        log.close()
        self.wait_until_ready()

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    def has_console(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(self.console_url, timeout=5, trust_env=False).status_code == 200
        return False

    def wait_until_ready(self, deadline_s: float = START_S) -> None:
        def is_ready() -> bool:
            assert self.process is None or self.process.poll() is None, f"heed up ended:\n{self.output()}"
            with suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
            return False

        try:
            wait_for(is_ready, "the stack is ready", deadline_s)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.output()}") from None

    def output(self) -> str:
        return (self.var / "up.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)

    def kill(self) -> None:
        """`kill -9` of every process at once, the supervisor first so that it restarts nothing."""
        assert self.process is not None
        family = descendants(self.process.pid)
        self.process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=30)

    def member(self, *words: str) -> psutil.Process:
        """The stack's own child whose command line holds these words."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            line = " ".join([*child.cmdline(), ""])
            if all(word in line for word in words):
                return child
        raise AssertionError(f"no process of the stack has {words} in its command line")

    def kill_member(self, *words: str) -> psutil.Process:
        member = self.member(*words)
        member.send_signal(signal.SIGKILL)
        member.wait(30)
        return member

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A `heed` command, as a person types it."""
        return subprocess.run(
            [HEED, *arguments],
            env={**os.environ, **self.env},
            cwd=ROOT,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def operator_key(self) -> str:
        return (self.var / "operator.key").read_text().strip()

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.operator_key, max_retries=0, timeout=120)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.operator_key}"}
        return httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=120)
