"""What each recorded answer says of where it came from, and tokens that are recorded and not shown."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from feedback import adapters, completions
from feedback.connection import Ledger
from serve.attribution import template_of
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import ids_of, rendered, scripted_engine

Json = dict[str, Any]

PROMPT_IDS = ids_of(rendered([{"role": "user", "content": "How do I fly a kite?"}], {}))
"""Of what `chat` and `stream` of a RunningGateway ask."""


def base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


async def streamed(gateway: RunningGateway, **fields: Any) -> list[Json]:
    return [json.loads(event[6:]) for event in await gateway.stream(**fields) if event != "data: [DONE]"]


async def test_an_answer_carries_the_digest_of_its_adapter_and_the_hash_of_its_template(
    ledger: Ledger, tmp_path: Path
) -> None:
    model = base(tmp_path / "base")
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, base_model=str(model)) as gateway:
        adapter = await gateway.register(1, b"one")
        by_base, by_adapter = await gateway.chat(), await gateway.chat(model=adapter)
        shown = (await gateway.http.get(f"/v1/chat/completions/{by_adapter.json()['id']}")).json()

    plain = await completions.get(ledger, by_base.json()["id"])
    adapted = await completions.get(ledger, by_adapter.json()["id"])
    template = hashlib.sha256(b"{{ messages }}").hexdigest()
    assert adapted.adapter_digest == (await adapters.get(ledger, adapter)).digest
    assert plain.adapter_digest is None
    assert (plain.template, adapted.template) == (template, template)
    assert adapted.usage is not None
    assert (shown["adapter_digest"], shown["template"]) == (adapted.adapter_digest, template)


def test_a_template_that_cannot_be_read_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base(tmp_path / "base"))

    assert template_of("") is None
    assert template_of("Qwen/Qwen3-0.6B") is None
    assert template_of(str(tmp_path)) is None
    assert template_of(".") is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_recorded_and_not_shown_to_who_did_not_ask(
    ledger: Ledger, tmp_path: Path, stream: bool
) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, record_tokens=True) as gateway:
        seen = await streamed(gateway) if stream else [(await gateway.chat()).json()]
        shown = (await gateway.http.get(f"/v1/chat/completions/{seen[0]['id']}")).json()
        sent = gateway.engine.bodies[-1]

    kept = await completions.get(ledger, seen[0]["id"])
    assert (sent["return_token_ids"], sent["logprobs"]) == (True, True)
    assert (kept.prompt_token_ids, kept.choices[0].token_ids) == (PROMPT_IDS, [0, 1, 2])
    assert kept.choices[0].logprobs is not None
    assert [token["logprob"] for token in kept.choices[0].logprobs["content"]] == [-0.5] * 3
    assert kept.params == {}
    for answer in [*seen, shown]:
        assert "prompt_token_ids" not in answer
        assert all("token_ids" not in choice and not choice["logprobs"] for choice in answer["choices"])


@pytest.mark.parametrize("stream", [False, True])
async def test_who_asks_for_tokens_gets_them(ledger: Ledger, tmp_path: Path, stream: bool) -> None:
    asked: Json = {"return_token_ids": True, "logprobs": True}
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, record_tokens=True) as gateway:
        seen = await streamed(gateway, **asked) if stream else [(await gateway.chat(**asked)).json()]

    told = [choice for answer in seen for choice in answer["choices"]]
    assert seen[0]["prompt_token_ids"] == PROMPT_IDS
    assert [i for choice in told for i in choice.get("token_ids") or []] == [0, 1, 2]
    assert any(choice["logprobs"] for choice in told)


async def test_without_the_setting_no_tokens_are_asked_for_or_kept(ledger: Ledger, tmp_path: Path) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        plain = (await gateway.chat()).json()
        asked = (await gateway.chat(return_token_ids=True)).json()
        bodies = gateway.engine.bodies[-2:]

    assert "return_token_ids" not in bodies[0]
    assert asked["choices"][0]["token_ids"] == [0, 1, 2]
    for answer in (plain, asked):
        kept = await completions.get(ledger, answer["id"])
        assert (kept.prompt_token_ids, kept.choices[0].token_ids) == (None, None)


async def test_a_comparison_tells_no_tokens_either(ledger: Ledger, tmp_path: Path) -> None:
    ask = {"messages": [{"role": "user", "content": "q"}], "stream": True}
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, record_tokens=True) as gateway:
        reply = await gateway.http.post("/v1/comparisons", json=ask)
        kept, _ = await completions.page(ledger)

    assert "token" not in reply.text
    assert "logprob" not in reply.text
    assert [completion.choices[0].token_ids for completion in kept] == [[0, 1, 2]] * 2
