"""What tests share, anew for each: a scripted engine, a gateway before it, a workshop whose processes they start."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import ScriptedEngine, scripted_engine
from tests.workshop import Workshop


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


@pytest.fixture
async def workshop(ledger: Ledger, tmp_path: Path, pocket: Path) -> AsyncIterator[Workshop]:
    await ledger.redis.flushall()
    with ExitStack() as processes:
        yield Workshop(ledger, tmp_path, pocket, processes)
