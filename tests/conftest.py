"""What tests share: one ledger server, one console, one pocket model and one whole stack for the run."""

import fcntl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests.consoles import RunningConsole, running_console
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.processes import ROOT, free_port, ledger_server
from tests.scripted_engine import scripted_engine
from tests.stack import Stack

ON_THE_STACK = ("test_circle", "test_why", "test_engine_contract", "test_engine_pitfalls", "test_loop")
"""Files whose tests share the one stack with its real vLLM."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These first, as they take longest."""
    items.sort(key=lambda item: item.path.stem not in ON_THE_STACK)


class Parts(LoadScopeScheduling):  # type: ignore[misc]
    """What runs in one process of several (`-n`): a file, whose fixtures are shared, or all files of the stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "stack" if Path(file).stem in ON_THE_STACK else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Parts:
    return Parts(config, log)


@pytest.fixture(scope="session")
def ledger_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, shared by the run; `ledger` empties its database 0 for each test."""
    port = free_port()
    with ledger_server(tmp_path_factory.mktemp("ledger"), port):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
async def ledger(ledger_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = open_ledger(LedgerSettings(ledger_url=ledger_url, var=tmp_path))
    await ledger.redis.flushdb()
    yield ledger
    await ledger.close()


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """A console beside whatever gateway it is turned to."""
    with running_console(tmp_path_factory.mktemp("console")) as console:
        yield console


@pytest.fixture
async def gateway_of_console(ledger: Ledger, tmp_path: Path, console: RunningConsole) -> AsyncIterator[RunningGateway]:
    """A gateway whose engine says what it is told to, with the console turned to it."""
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        console.turn_to(gateway.url, OPERATOR)
        yield gateway


@pytest.fixture(scope="session")
def pocket() -> Path:
    """The pocket model, built as `make run` builds it and kept in var/ between runs."""
    directory = ROOT / "var" / "pocket"
    command = [sys.executable, "-m", "trainer", "pocket", "--out", str(directory)]
    directory.parent.mkdir(exist_ok=True)
    with (directory.parent / "pocket.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the run waits for what this one builds
        subprocess.run(command, check=True, cwd=ROOT, timeout=900)
    return directory


@pytest.fixture(scope="session")
def stack(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack with its one real vLLM, started when first asked for.

    `heed` belongs to tests/integration/test_loop.py, from its first vote on; `garden` to tests/browser.
    """
    stack = Stack(var=tmp_path_factory.mktemp("stack"), pocket=pocket, models="heed,garden")
    stack.start()
    yield stack
    stack.stop()


@dataclass(frozen=True)
class RealEngine:
    url: str
    key: str
    base_model: str
    adapter: Path


@pytest.fixture
def real_engine(stack: Stack) -> RealEngine:
    """The stack's own vLLM, reached around the gateway."""
    url = f"http://127.0.0.1:{stack.engine_port}"
    return RealEngine(url, stack.engine_key, "base", stack.var / "adapters" / "heed-base")
