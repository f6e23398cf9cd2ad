"""x-heed-best-of: what the client gets of several samples, what the ledger keeps, and what a broken scorer costs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import completions, votes
from feedback.connection import Ledger
from feedback.errors import ChoiceUnknown
from serve.settings import GatewaySettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine
from tests.scripted_scorer import ScriptedScorer, scripted_scorer

MESSAGES = [{"role": "user", "content": "How do I fly a kite?"}]
SAMPLES = Script(samples=(("No", "."), ("With", " wind", "."), ("Run", ".")))


@pytest.fixture
async def scorer() -> AsyncIterator[ScriptedScorer]:
    async with scripted_scorer(key="of-a-proxy", likes={"No.": -3.0, "With wind.": 4.5, "Run.": 1.0}) as scorer:
        yield scorer


@pytest.fixture
async def gateway(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, scorer: ScriptedScorer
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, reward_url=scorer.url, reward_key=scorer.key) as gateway:
        yield gateway


async def best_of(gateway: RunningGateway, wanted: str, fields: dict[str, Any] | None = None) -> httpx.Response:
    body = {"model": "heed", "messages": MESSAGES} | (fields or {})
    return await gateway.http.post("/v1/chat/completions", json=body, headers={b"x-heed-best-of": wanted.encode()})


async def test_the_best_liked_of_the_samples_is_the_answer(gateway: RunningGateway, scorer: ScriptedScorer) -> None:
    gateway.engine.scripts.append(SAMPLES)

    reply = await best_of(gateway, "3", {"seed": 7})

    (choice,) = reply.json()["choices"]
    assert (choice["index"], choice["message"]["content"]) == (0, "With wind.")
    assert reply.headers["x-heed-best-of"] == "3"
    assert reply.json()["usage"]["completion_tokens"] == 7, "the samples that nobody saw were written too"
    assert (gateway.engine.bodies[-1]["n"], gateway.engine.bodies[-1]["seed"]) == (3, 7)
    assert [body["messages"][:-1] for body in scorer.bodies] == [MESSAGES] * 3
    assert await gateway.count('heed_best_of_total{outcome="chosen"}') == 1


async def test_the_record_tells_how_the_answer_was_chosen_and_holds_no_other(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    gateway.engine.scripts.append(SAMPLES)

    answer = (await best_of(gateway, "3", {"temperature": 0.8})).json()

    kept = await completions.get(ledger, answer["id"])
    shown = (await gateway.http.get(f"/v1/chat/completions/{answer['id']}")).json()
    assert [(choice.index, choice.message["content"]) for choice in kept.choices] == [(0, "With wind.")]
    assert kept.params == {"temperature": 0.8}
    assert shown["best_of"] == {"samples": 3, "chosen": 1, "rewards": [-3.0, 4.5, 1.0], "reward_model": "reward"}
    await votes.cast(ledger, completion_id=answer["id"], choice=0, rating="up", voter="ann")
    with pytest.raises(ChoiceUnknown):
        await votes.cast(ledger, completion_id=answer["id"], choice=1, rating="up", voter="ann")


async def test_an_ordinary_answer_is_not_scored(gateway: RunningGateway, scorer: ScriptedScorer) -> None:
    reply = await gateway.chat()

    shown = (await gateway.http.get(f"/v1/chat/completions/{reply.json()['id']}")).json()
    assert shown["best_of"] is None
    assert "x-heed-best-of" not in reply.headers
    assert "n" not in gateway.engine.bodies[-1]
    assert scorer.bodies == []


async def test_what_was_asked_of_the_best_answer_comes_with_it(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, scorer: ScriptedScorer
) -> None:
    async with running_gateway(
        ledger, tmp_path, engine, record_tokens=True, reward_url=scorer.url, reward_key=scorer.key
    ) as gateway:
        engine.scripts.extend([SAMPLES] * 2)

        with_logprobs = (await best_of(gateway, "3", {"logprobs": True})).json()
        without = (await best_of(gateway, "3")).json()

    kept = await completions.get(ledger, without["id"])
    assert [token["token"] for token in with_logprobs["choices"][0]["logprobs"]["content"]] == ["With", " wind", "."]
    assert without["choices"][0]["logprobs"] is None
    assert kept.choices[0].token_ids == [0, 1, 2]


async def test_what_is_not_stored_is_chosen_all_the_same(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(SAMPLES)

    reply = await best_of(gateway, "3", {"store": False})

    assert reply.json()["choices"][0]["message"]["content"] == "With wind."
    assert (await gateway.http.get(f"/v1/chat/completions/{reply.json()['id']}")).status_code == 404


@pytest.mark.parametrize("trouble", ["down", "failing", "locked", "forgetful", "a classifier", "slow"])
async def test_a_scorer_in_trouble_costs_the_choice_and_never_the_answer(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, scorer: ScriptedScorer, trouble: str
) -> None:
    settings: dict[str, Any] = {"reward_url": scorer.url, "reward_key": scorer.key}
    if trouble == "down":
        await scorer.stop()
    elif trouble == "failing":
        scorer.status = 500
    elif trouble == "locked":
        settings["reward_key"] = ""
    elif trouble == "forgetful":
        settings["reward_model"] = "another"
    elif trouble == "a classifier":
        scorer.numbers = 2
    else:
        settings["reward_timeout_s"] = 0.2
        scorer.gate = asyncio.Semaphore(2)  # the third is waited for
    async with running_gateway(ledger, tmp_path, engine, **settings) as gateway:
        engine.scripts.append(SAMPLES)

        reply = await best_of(gateway, "3")

        kept = await completions.get(ledger, reply.json()["id"])
        (choice,) = reply.json()["choices"]
        assert (reply.status_code, choice["message"]["content"]) == (200, "No.")
        assert reply.headers["x-heed-best-of"] == "1"
        assert kept.best_of is not None
        assert (kept.best_of.samples, kept.best_of.chosen, kept.best_of.rewards) == (3, 0, [])
        assert await gateway.count('heed_best_of_total{outcome="unscored"}') == 1
        assert await gateway.count("heed_retries_total") == 0, "the engine is not blamed"
    await until(lambda: scorer.waiting == 0, "the scorer is left alone")


async def test_a_client_that_leaves_ends_the_scoring(gateway: RunningGateway, scorer: ScriptedScorer) -> None:
    gateway.engine.scripts.append(SAMPLES)
    scorer.gate = asyncio.Semaphore(0)
    asking = asyncio.create_task(best_of(gateway, "3"))
    await until(lambda: scorer.waiting == 3, "the samples are being scored")

    asking.cancel()

    await until(lambda: scorer.left == 3, "the scorer is left alone")


@pytest.mark.parametrize("wanted", ["1", "0", "-2", "9", "2.5", "two", "", "٣", "9" * 5000])
async def test_a_number_that_cannot_be_is_refused(gateway: RunningGateway, wanted: str) -> None:
    reply = await best_of(gateway, wanted)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_best_of", "x-heed-best-of")
    assert "2 to 8" in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("param", "value"),
    [("stream", True), ("n", 2), ("temperature", 0), ("tools", [{"type": "function", "function": {"name": "look"}}])],
)
async def test_what_leaves_nothing_to_choose_is_refused_by_its_name(
    gateway: RunningGateway, param: str, value: object
) -> None:
    reply = await best_of(gateway, "2", {param: value})

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "best_of_unsupported", param)
    assert [body for body in gateway.engine.bodies if "n" in body] == []


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/completions", {"model": "heed", "prompt": "Once"}), ("/v1/comparisons", {"messages": MESSAGES})],
)
async def test_other_calls_refuse_it_rather_than_pass_over_it(
    gateway: RunningGateway, path: str, asked: dict[str, Any]
) -> None:
    reply = await gateway.http.post(path, json=asked, headers={"x-heed-best-of": "2"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "best_of_unsupported")


async def test_without_a_reward_model_it_is_refused_with_what_would_work(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        reply = await best_of(gateway, "2")

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "best_of_unavailable")
    assert "HEED_REWARD_URL" in reply.json()["error"]["message"]


async def test_the_page_of_the_api_names_the_header(gateway: RunningGateway) -> None:
    described = (await gateway.http.get("/openapi.json")).json()["paths"]["/v1/chat/completions"]["post"]

    assert [parameter["name"] for parameter in described["parameters"]] == ["x-heed-best-of"]


def test_the_most_samples_are_within_what_an_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_BEST_OF_MAX", "129")

    with pytest.raises(ValueError, match="less than or equal to 128"):
        GatewaySettings()
