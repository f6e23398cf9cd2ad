"""What Heed relies on of vLLM, asked of the scripted engine and of the real one: the double may not lie.

The real one comes from the fixture `engine` in tests/conftest.py.
"""

import asyncio
import json
import math
import shutil
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.adapter_files import CONFIG, WEIGHTS
from feedback.records import new_id
from tests.gateways import until
from tests.scripted_engine import Script, scripted_engine, write_adapter

Json = dict[str, Any]
MESSAGES = [{"role": "user", "content": "How do I make pasta?"}]


@dataclass
class Contract:
    """An engine under test: a client of it, the name of its base, and an adapter it can load."""

    http: httpx.AsyncClient
    base: str
    adapter: Path

    async def load(self, name: str, path: Path | str) -> httpx.Response:
        return await self.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})

    async def unload(self, name: str) -> httpx.Response:
        return await self.http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    async def ask(self, model: str, request_id: str = "none", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": MESSAGES, "max_tokens": 4, "temperature": 0} | fields
        return await self.http.post("/v1/chat/completions", json=body, headers={"x-request-id": request_id})

    async def running(self) -> float:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


@pytest.fixture(params=["scripted", "real"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Contract]:
    adapter = tmp_path / "adapter"
    if request.param == "real":
        real = request.getfixturevalue("real_engine")
        shutil.copytree(real.adapter, adapter)
        headers = {"authorization": f"Bearer {real.key}"}
        async with httpx.AsyncClient(base_url=real.url, headers=headers, timeout=120) as http:
            yield Contract(http, real.base_model, adapter)
        return
    write_adapter(adapter)
    async with scripted_engine() as scripted, httpx.AsyncClient(base_url=scripted.url, timeout=30) as http:
        scripted.scripts.extend([Script(tokens=("a", " b", " c", " d"))] * 4)
        scripted.pace_s = 0.05
        yield Contract(http, "base", adapter)


@pytest.fixture
async def loaded(engine: Contract) -> AsyncIterator[str]:
    name = new_id("adapter")
    assert (await engine.load(name, engine.adapter)).status_code == 200
    yield name
    await engine.unload(name)


def chunks(reply: httpx.Response) -> list[Json]:
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_a_loaded_adapter_is_listed_with_its_path_and_success_is_plain_text(
    engine: Contract, loaded: str
) -> None:
    listed = {model["id"]: model for model in (await engine.http.get("/v1/models")).json()["data"]}

    assert (listed[loaded]["root"], listed[loaded]["parent"]) == (str(engine.adapter), engine.base)
    assert listed[engine.base]["parent"] is None
    assert (await engine.unload(loaded)).text == f"Success: LoRA adapter '{loaded}' removed successfully."
    assert (await engine.load(loaded, engine.adapter)).text == f"Success: LoRA adapter '{loaded}' added successfully."


async def test_loads_that_cannot_be_are_refused_each_in_its_way(engine: Contract, loaded: str) -> None:
    again = await engine.load(loaded, engine.adapter)
    missing = await engine.load("missing", "/nowhere/at/all")
    as_base = await engine.load(engine.base, engine.adapter)
    unknown = await engine.unload("never-loaded")

    assert again.status_code == 400
    assert "has already been loaded" in again.json()["error"]["message"]
    assert (missing.status_code, as_base.status_code, unknown.status_code) == (404, 400, 404)


async def test_a_rank_over_the_limit_is_500_with_its_reason(engine: Contract) -> None:
    config = engine.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 64}))

    refused = await engine.load("too-big", engine.adapter)

    assert refused.status_code == 500
    assert "greater than max_lora_rank" in refused.json()["error"]["message"]


@pytest.mark.parametrize("said", [{"peft_type": "IA3"}, {"r": 4}, {}])
async def test_what_it_would_serve_wrongly_is_loaded_all_the_same(engine: Contract, said: Json) -> None:
    config, weights = engine.adapter / CONFIG, engine.adapter / WEIGHTS
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    if not said:
        weights.write_bytes(weights.read_bytes()[:-4] + struct.pack("<f", math.nan))
    name = new_id("adapter")

    loaded = await engine.load(name, engine.adapter)  # and never asked: NaN would spoil it

    assert loaded.status_code == 200
    await engine.unload(name)


async def test_an_unknown_model_is_404_and_names_the_parameter(engine: Contract) -> None:
    refused = await engine.ask("nobody")

    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")


async def test_an_unloaded_adapter_is_404_at_once(engine: Contract, loaded: str) -> None:
    await engine.unload(loaded)

    assert (await engine.ask(loaded)).status_code == 404


async def test_the_answers_id_ends_in_the_requests_id_and_its_model_is_the_adapter(
    engine: Contract, loaded: str
) -> None:
    whole = (await engine.ask(loaded, "abc123", logprobs=True)).json()

    assert (whole["id"], whole["model"], whole["object"]) == ("chatcmpl-abc123", loaded, "chat.completion")
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert whole["usage"]["completion_tokens"] == len(whole["choices"][0]["logprobs"]["content"])
    assert all(isinstance(token["logprob"], float) for token in whole["choices"][0]["logprobs"]["content"])


async def test_a_stream_has_a_role_deltas_a_finish_the_usage_and_done(engine: Contract, loaded: str) -> None:
    reply = await engine.ask(loaded, "abc124", stream=True, stream_options={"include_usage": True})

    *parts, usage = chunks(reply)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert {part["id"] for part in [*parts, usage]} == {"chatcmpl-abc124"}
    assert {part["model"] for part in [*parts, usage]} == {loaded}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [part["choices"][0].get("finish_reason") for part in parts][-1] in ("stop", "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] <= 4
    assert b'"choices":[]' in reply.content, "written without spaces"


async def test_without_asking_there_is_no_usage(engine: Contract, loaded: str) -> None:
    assert all("usage" not in part or part["usage"] is None for part in chunks(await engine.ask(loaded, stream=True)))


async def test_a_given_answer_is_read_token_by_token_and_alike_each_time(engine: Contract, loaded: str) -> None:
    answered = [*MESSAGES, {"role": "assistant", "content": "Boil water first.\nThen wait."}]
    asked: Json = {"return_token_ids": True, "max_tokens": 1}
    reading: Json = {"messages": answered, "add_generation_prompt": False, "prompt_logprobs": 2} | asked

    opened = (await engine.ask(loaded, **asked)).json()
    first, again = [(await engine.ask(loaded, **reading)).json() for _ in range(2)]
    refused = await engine.ask(loaded, stream=True, **reading)

    before, ids = opened["prompt_token_ids"], first["prompt_token_ids"]
    assert ids[: len(before)] == before
    assert opened["prompt_logprobs"] is None
    assert len(first["prompt_logprobs"]) == len(ids)
    assert first["prompt_logprobs"][0] is None
    told = [entry[str(token)] for entry, token in zip(first["prompt_logprobs"][1:], ids[1:], strict=True)]
    assert "".join(one["decoded_token"] for one in told[len(before) - 1 :]) == "Boil water first.\nThen wait.<|end|>"
    for one, entry in zip(told, first["prompt_logprobs"][1:], strict=True):
        assert one["logprob"] <= 0
        assert sorted(other["rank"] for other in entry.values())[:2] == [1, 2]
        assert len(entry) == (2 if one["rank"] <= 2 else 3)
    repeated = [entry[str(token)] for entry, token in zip(again["prompt_logprobs"][1:], ids[1:], strict=True)]
    assert [one["logprob"] for one in repeated] == pytest.approx([one["logprob"] for one in told], abs=1e-4)
    assert refused.status_code == 400


async def test_n_choices_have_their_index(engine: Contract, loaded: str) -> None:
    whole = (await engine.ask(loaded, n=2, temperature=1, logprobs=True)).json()

    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    written = sum(len(choice["logprobs"]["content"]) for choice in whole["choices"])
    assert whole["usage"]["completion_tokens"] == written, "usage counts every choice"


async def test_a_text_completion_has_its_own_id_and_shape(engine: Contract, loaded: str) -> None:
    body = {"model": loaded, "prompt": "Once", "max_tokens": 4}
    reply = await engine.http.post("/v1/completions", json=body, headers={"x-request-id": "abc125"})

    whole = reply.json()
    assert whole["id"].startswith("cmpl-abc125")
    assert isinstance(whole["choices"][0]["text"], str)


async def test_more_than_the_context_is_400_in_known_words(engine: Contract, loaded: str) -> None:
    too_much = (await engine.ask(loaded, max_tokens=100_000)).json()["error"]
    too_long = (await engine.ask(loaded, messages=[{"role": "user", "content": "word " * 4000}])).json()["error"]

    assert (too_much["code"], too_much["param"], too_long["code"]) == (400, "max_tokens", 400)
    assert "max_model_len" in too_much["message"]
    assert "maximum context length" in too_long["message"]


async def test_a_stream_that_was_begun_outlives_its_adapters_name(engine: Contract, loaded: str) -> None:
    body = {"model": loaded, "messages": MESSAGES, "max_tokens": 40, "stream": True}
    async with engine.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.aiter_lines()
        await anext(lines)
        await engine.unload(loaded)
        rest = [line async for line in lines if line]

    assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(engine: Contract, loaded: str, stream: bool) -> None:
    body = {"model": loaded, "messages": MESSAGES, "max_tokens": 900, "ignore_eos": True, "stream": stream}
    asking = asyncio.create_task(engine.http.post("/v1/chat/completions", json=body))

    async def is_at_work() -> bool:
        return await engine.running() == 1

    await until(is_at_work, "the engine works on it")
    asking.cancel()

    async def is_free() -> bool:
        return await engine.running() == 0

    await until(is_free, "the engine works on nothing", 10)  # the answer would take it over 15 s


async def test_health_and_models_answer(engine: Contract) -> None:
    assert (await engine.http.get("/health")).status_code == 200
    assert engine.base in [model["id"] for model in (await engine.http.get("/v1/models")).json()["data"]]
