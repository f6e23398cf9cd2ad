"""What tests of the gateway share: a scripted engine, and a gateway before it, anew for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import ScriptedEngine, scripted_engine


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway
