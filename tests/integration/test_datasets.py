"""Hugging Face's datasets: what goes out as files or to the Hub is read by `load_dataset`, and comes back the same."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from feedback import pairs
from feedback.connection import Ledger
from tests.gateways import RunningGateway
from tests.hub import Hub, hub
from tests.integration.test_commands import heed
from tests.processes import free_port

Json = dict[str, Any]

NAME = "ann/votes"
TEXTS: list[Json] = [
    {
        "prompt": [{"role": "user", "content": f"question {i} \u2028\n\U0001f600"}],
        "chosen": f"good\n{i}",
        "rejected": "bad",
    }
    for i in range(300)
]
TURNS: Json = {
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
    ],
    "chosen": "yes",
    "rejected": "no",
}
PICTURE: Json = {
    "prompt": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
        }
    ],
    "chosen": "a kite",
    "rejected": "a cat",
}


def tool(name: str, argument: str, **more: Any) -> Json:
    properties = {argument: {"type": "string", **more}}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"where": null}'}}
TOOLS: list[Json] = [
    {
        "prompt": [{"role": "user", "content": "weather?"}],
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        "rejected": "no",
        "tools": [tool("look", "where"), tool("ask", "whom", enum=["ann"])],
    },
    {
        "prompt": [{"role": "user", "content": "time?"}],
        "chosen": "noon",
        "rejected": "no",
        "tools": [tool("clock", "zone", default=None)],
    },
]


async def take(gateway: RunningGateway, folder: Path, rows: list[Json]) -> None:
    given = folder / "given.jsonl"
    given.write_text("\n".join(map(json.dumps, rows)))
    code, shown = await heed(gateway, "import", str(given), "--format", "trl")
    assert code == 0, shown


async def standing(ledger: Ledger) -> list[str]:
    """What the pairs teach, in the ledger's own words."""
    await pairs.settle(ledger)
    found = await pairs.get_many(ledger, await pairs.ids(ledger))
    return sorted(json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.tools]) for pair in found)


async def come_back(
    gateway: RunningGateway, ledger: Ledger, found: datasets.Dataset, format: str, folder: Path
) -> list[str]:
    """The pairs of an empty ledger that imported the dataset."""
    await ledger.redis.flushdb()
    found.to_json(str(folder / "back.jsonl"))
    code, shown = await heed(gateway, "import", str(folder / "back.jsonl"), "--format", format)
    assert code == 0, shown
    return await standing(ledger)


@pytest.mark.parametrize("format", ["trl", "openai", "kto"])
async def test_exported_lines_are_the_same_pairs_after_a_way_through_datasets(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, format: str
) -> None:
    """With tools of other arguments in each row, calls of them and pictures, which Arrow has no common type for."""
    await take(gateway, tmp_path, [*TEXTS[:20], TURNS, PICTURE, *TOOLS])
    before = await standing(ledger)
    out = tmp_path / "out.jsonl"
    await heed(gateway, "export", "--format", format, "--out", str(out))

    found = datasets.load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))

    assert len(before) == 24
    assert await come_back(gateway, ledger, found, format, tmp_path) == before


@pytest.fixture
async def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Hub]:
    """No hub can be reached from a test; the Hub's own client, which speaks to this one, is the real one."""
    async with hub(NAME) as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_TOKEN", stand_in.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield stand_in


async def test_what_is_pushed_is_a_private_dataset_that_loads_as_the_same_pairs(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, stand_in: Hub
) -> None:
    await take(gateway, tmp_path, [*TEXTS, TURNS])
    before = await standing(ledger)

    code, shown = await heed(gateway, "export", "--push-to-hub", NAME)

    assert code == 0, shown
    assert "301 rows are at" in shown
    assert stand_in.created.items() >= {"type": "dataset", "visibility": "private"}.items()
    (file,) = [line["value"] for line in stand_in.commit if line["key"] == "lfsFile"]
    content = stand_in.stored[file["oid"]]
    assert file["size"] == len(content)
    repository = tmp_path / "repository"
    (repository / file["path"]).parent.mkdir(parents=True)
    (repository / file["path"]).write_bytes(content)
    found = datasets.load_dataset(str(repository), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert await come_back(gateway, ledger, found["train"], "trl", tmp_path) == before


async def test_a_second_push_says_the_same_to_a_dataset_that_exists(
    gateway: RunningGateway, tmp_path: Path, stand_in: Hub
) -> None:
    await take(gateway, tmp_path, TEXTS[:2])
    stand_in.exists = True

    code, shown = await heed(gateway, "export", "--push-to-hub", NAME)

    assert code == 0, shown
    assert "2 rows are at" in shown


@pytest.mark.parametrize("refuses", ["/api/repos/create", "/xet-write-token/", "/commit/"])
async def test_a_hub_that_refuses_is_one_sentence(
    gateway: RunningGateway, tmp_path: Path, stand_in: Hub, refuses: str
) -> None:
    await take(gateway, tmp_path, TEXTS[:2])
    stand_in.refuses = refuses

    code, shown = await heed(gateway, "export", "--push-to-hub", NAME)

    assert code == 1
    assert f"the Hub did not take {NAME}" in shown
    assert "Traceback" not in shown
    assert stand_in.commit == []


async def test_a_hub_that_cannot_be_reached_is_one_sentence(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")

    code, shown = await heed(gateway, "export", "--push-to-hub", NAME)
    nowhere = await heed(gateway, "export")

    assert code == 1
    assert f"the Hub did not take {NAME}" in shown
    assert "Traceback" not in shown
    assert nowhere[0] == 2
    assert "--out FILE, or --push-to-hub NAME" in nowhere[1]
