"""/docs and /openapi.json: they name every call, and load nothing from elsewhere."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def test_the_page_loads_its_scripts_from_here(gateway: RunningGateway) -> None:
    page = await gateway.http.get("/docs")

    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert page.status_code == 200
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/"), address
        assert (await gateway.http.get(address)).status_code == 200


async def test_every_call_of_the_contract_is_described(gateway: RunningGateway) -> None:
    described = (await gateway.http.get("/openapi.json")).json()["paths"]

    calls = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert calls >= {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("POST", "/v1/votes"),
        ("POST", "/v1/preferences"),
        ("POST", "/v1/comparisons/next"),
        ("POST", "/v1/prompts"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
        ("POST", "/v1/adapters/{adapter_id}/promote"),
        ("POST", "/v1/adapters/rollback"),
        ("POST", "/v1/adapters/{adapter_id}/canary"),
        ("GET", "/v1/canary"),
        ("GET", "/v1/pairs"),
        ("GET", "/v1/stats"),
        ("GET", "/readyz"),
    }
