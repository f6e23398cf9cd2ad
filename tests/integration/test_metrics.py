"""/metrics: what is counted, by labels that do not grow."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feedback.connection import Ledger
from serve.metrics import METHODS
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import ScriptedEngine, scripted_engine

SLOTS = {"live", "previous", "canary", "base", "other"}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine(pace_s=0.02) as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def test_an_answer_is_counted_by_served_model_and_slot_when_it_has_ended(gateway: RunningGateway) -> None:
    await gateway.chat()
    await gateway.stream()
    first = 'heed_answers_total{model="heed",outcome="answered",slot="live"}'
    await until(lambda: _is(gateway, first, 2), "both are counted")

    own = '{model="heed",slot="live"}'
    assert await gateway.count("heed_answer_seconds_count" + own) == 2
    assert await gateway.count("heed_time_to_first_token_seconds_count" + own) == 1, "of streams"
    assert await gateway.count("heed_time_per_token_seconds_count" + own) == 1, "one observation an answer"
    assert await gateway.count("heed_time_per_token_seconds_sum" + own) > 0.01, "two gaps of 0.02 s, one before the end"
    assert await gateway.count('heed_tokens_total{kind="completion",model="heed",slot="live"}') == 6
    assert await gateway.count('heed_tokens_total{kind="prompt",model="heed",slot="live"}') == 14
    assert await gateway.count("heed_in_flight" + own) == 0
    assert await gateway.count("heed_ledger_seconds_count") == 2


async def test_replicas_are_counted_by_their_place_and_not_their_address(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    up = await gateway.count('heed_replica_up{replica="0"}')
    await engine.stop()
    await until(lambda: _is(gateway, 'heed_replica_up{replica="0"}', 0), "it is seen to be down")

    assert up == 1
    assert await gateway.count("heed_queue") == 0
    assert engine.url not in (await gateway.http.get("/metrics")).text


async def test_no_label_grows_with_what_clients_send(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    promoted = [await gateway.register(version, bytes([version])) for version in (1, 2)]
    for adapter in promoted:
        await gateway.promote(adapter)
    for model in ("heed", *promoted, "heed-base"):
        await gateway.chat(model=model)
    await gateway.http.request("PROPFIND", "/v1/models")
    await gateway.http.get("/v1/voters/ann")

    labels = re.findall(r'(\w+)="([^"]*)"', (await gateway.http.get("/metrics")).text)
    seen = {name: {value for label, value in labels if label == name} for name, _ in labels}
    assert seen["slot"] <= SLOTS
    assert seen["slot"] >= {"live", "previous", "base"}
    assert seen["model"] == {"heed"}
    assert seen["method"] <= METHODS | {"other"}
    assert "other" in seen["method"]
    assert seen.keys() <= {"kind", "le", "method", "model", "outcome", "replica", "slot", "status"}


async def _is(gateway: RunningGateway, sample: str, value: float) -> bool:
    return await gateway.count(sample) == value
