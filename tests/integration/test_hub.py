"""Adapters on the Hugging Face Hub, through its own client and a stand-in for what that client speaks to."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feedback import adapters
from feedback.connection import Ledger
from feedback.records import Adapter
from tests.gateways import RunningGateway, running_gateway
from tests.hub import hub
from tests.integration.test_commands import heed
from tests.scripted_engine import scripted_engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def test_an_adapter_is_pushed_as_it_is_served_with_a_card_that_says_how_it_was_made(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Adapter(
        id="heed-v1-0a1b2c3d",
        served_model="heed",
        version=1,
        digest="0a1b2c3d" * 8,
        base_model=str(tmp_path / "pocket"),
        base_revision="abc",
        job="ftjob-1",
        dataset_digest="d" * 64,
        pairs=300,
        votes=1400,
        voters=20,
        hyperparameters={"beta": 0.5},
        metrics={"accuracy": 0.88},
        gate={"passed": True, "reasons": ["held-out accuracy 0.88 against 0.50 of the base, a coin, on 32 pairs"]},
        state="candidate",
        created=1000.0,
    )
    await adapters.register(ledger, adapter, "passed")

    elsewhere = await heed(gateway, "adapters", "push", adapter.id, "ann/lora")
    folder = tmp_path / "adapters" / adapter.id
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    config = {"r": 16, "base_model_name_or_path": adapter.base_model}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "jobs" / "ftjob-1").mkdir(parents=True)
    manifest = {"versions": {"trl": "1.16.0"}, "base": {"template": "t" * 64}, "dataset": {"method": "unpaired"}}
    (tmp_path / "jobs" / "ftjob-1" / "manifest.json").write_text(json.dumps(manifest))

    async with hub("ann/lora", kind="models") as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_TOKEN", stand_in.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        code, shown = await heed(gateway, "adapters", "push", adapter.id, "ann/lora")

    assert elsewhere[0] == 1
    assert f"the files of {adapter.id} are not in" in elsewhere[1]
    assert code == 0, shown
    assert f"{adapter.id} is at http://127.0.0.1" in shown
    assert stand_in.created["visibility"] == "private"
    pushed = stand_in.files
    assert sorted(pushed) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert pushed["adapter_model.safetensors"] == b"weights"
    assert json.loads(pushed["adapter_config.json"]) == {"r": 16, "base_model_name_or_path": "pocket"}
    card = pushed["README.md"].decode()
    for said in (
        "base_model: pocket",
        "300 pairs and rated answers",
        "tags: [heed, lora, kto, trl]",
        "20 voters",
        "trl 1.16.0",
        "| accuracy | 0.88 |",
    ):
        assert said in card
    assert str(tmp_path) not in card
