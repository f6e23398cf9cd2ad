"""Several served models on one base: one engine, and a ledger, adapters and a live pointer for each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, models="support,legal") as gateway,
    ):
        yield gateway


async def answers_as(gateway: RunningGateway, model: str) -> str:
    return str((await gateway.chat(model=model)).json()["model"])


async def test_each_has_a_live_adapter_of_its_own_and_one_engine_serves_both(gateway: RunningGateway) -> None:
    support = await gateway.register(1, b"support", model="support")
    legal = await gateway.register(1, b"legal", model="legal")

    await gateway.promote(support)
    assert (await answers_as(gateway, "support"), await answers_as(gateway, "legal")) == (support, "legal-base")

    await gateway.promote(legal)
    await gateway.operator.post("/v1/adapters/rollback", json={"model": "support", "reason": "worse"})
    assert (await answers_as(gateway, "support"), await answers_as(gateway, "legal")) == ("support-base", legal)
    assert set(gateway.engine.loaded) == {"support-base", "legal-base", support, legal}


async def test_votes_and_numbers_are_each_ones_own(gateway: RunningGateway) -> None:
    asked = (await gateway.chat(model="legal")).json()
    vote = await gateway.http.post("/v1/votes", json={"completion_id": asked["id"], "rating": "up"})

    assert vote.json()["model"] == "legal-base"
    counts = {
        model: (await gateway.operator.get("/v1/stats", params={"model": model})).json()["votes"]
        for model in ("support", "legal")
    }
    assert counts["legal"] != counts["support"]
    assert {model["id"] for model in (await gateway.http.get("/v1/models")).json()["data"]} >= {"support", "legal"}


@pytest.mark.parametrize("name", ["heed", "heed-base", "legal-v1-00000000", "support-legal", ""])
async def test_a_name_that_is_none_of_theirs_is_not_found(gateway: RunningGateway, name: str) -> None:
    refused = await gateway.chat(model=name)

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_adapter_of_one_is_not_promoted_by_the_name_of_another(gateway: RunningGateway) -> None:
    support = await gateway.register(1, b"support", model="support")
    ready = (await gateway.http.get("/readyz")).json()

    assert (
        await gateway.operator.post(f"/v1/adapters/{support.replace('support', 'legal')}/promote")
    ).status_code == 404
    assert set(ready["models"]) == {"support", "legal"}
    assert ready["engines"] == {"engine 1": "up"}
