"""Limits of a key over HTTP, on one gateway and on several."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway, until
from tests.integration.test_errors import expect_envelope
from tests.integration.test_keys import ASK, CHAT, asked, bearing, made
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

LEFT = "x-ratelimit-remaining-"
USAGE = 10
"""Tokens of the scripted engine's answer: 7 of the prompt and 3."""


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, require_keys=True, accord_every_s=0.05) as gateway:
        yield gateway


async def test_beyond_its_limit_a_key_is_refused_as_openai_refuses(gateway: RunningGateway) -> None:
    key, free = await made(gateway, requests_per_minute=3), await made(gateway)

    answered = [await asked(gateway, key) for _ in range(3)]
    refused = await asked(gateway, key)

    assert [reply.status_code for reply in answered] == [200] * 3
    assert [reply.headers[LEFT + "requests"] for reply in answered] == ["2", "1", "0"]
    expect_envelope(refused, 429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers[LEFT + "requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    unlimited = await asked(gateway, free)
    assert unlimited.status_code == 200
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]
    assert await gateway.count('heed_limited_total{kind="requests"}') == 1


async def test_the_official_client_knows_the_refusal(gateway: RunningGateway) -> None:
    key = await made(gateway, requests_per_minute=1)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key["key"], max_retries=0) as client:
        told = await client.chat.completions.with_raw_response.create(**ASK)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ASK)  # type: ignore[call-overload]

    assert told.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_tokens_are_charged_as_the_engine_counted_them(gateway: RunningGateway, is_stream: bool) -> None:
    key = await made(gateway, tokens_per_minute=1_000_000)
    body = {**ASK, "stream": is_stream, "messages": [{"role": "user", "content": "x" * 4000}]}

    first = await gateway.http.post(CHAT, json=body, headers=bearing(key))
    second = await asked(gateway, key)

    assert int(first.headers[LEFT + "tokens"]) == 1_000_000 - 1000, "an estimate of four characters a token"
    settled = 1_000_000 - USAGE - 5 - int(second.headers[LEFT + "tokens"])
    assert -1_000_000 / 60 < settled <= 1, "the estimate was taken back, and some of it has run out since"


async def test_an_answer_that_failed_costs_no_tokens(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    key = await made(gateway, tokens_per_minute=100)
    engine.scripts.append(Script(status=500))
    body = {**ASK, "messages": [{"role": "user", "content": "x" * 400}]}

    failed = await gateway.http.post(CHAT, json=body, headers=bearing(key))
    again = await gateway.http.post(CHAT, json=body, headers=bearing(key))

    assert (failed.status_code, again.status_code) == (502, 200)


async def test_who_leaves_within_a_stream_is_charged_for_what_was_sent(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    key = await made(gateway, tokens_per_minute=100)
    gate = asyncio.Semaphore(40)
    engine.scripts.append(Script(tokens=["word "] * 60, gate=gate))

    async with gateway.http.stream("POST", CHAT, json={**ASK, "stream": True}, headers=bearing(key)) as reply:
        lines = reply.aiter_lines()
        while "word" not in await anext(lines):
            pass
        await until(lambda: gate.locked(), "40 tokens were sent")
        for _ in range(60):
            await anext(lines)
    await until(lambda: engine.aborted, "the engine was told")

    async def left() -> int:
        return int((await asked(gateway, key)).headers[LEFT + "tokens"])

    assert await left() < 100 - 5 - 5 - 20


async def test_a_comparison_is_two_requests(gateway: RunningGateway) -> None:
    key = await made(gateway, requests_per_minute=3)

    compared = await gateway.http.post("/v1/comparisons", json=ASK, headers=bearing(key))
    streamed = await gateway.http.post("/v1/comparisons", json={**ASK, "stream": True}, headers=bearing(key))

    assert (compared.status_code, compared.headers[LEFT + "requests"]) == (200, "1")
    expect_envelope(streamed, 429, "rate_limit_exceeded")


async def test_who_is_refused_has_not_used_up_a_prompt_of_the_queue(gateway: RunningGateway) -> None:
    await gateway.operator.post("/v1/prompts", json={"messages": ASK["messages"]})
    short, long = await made(gateway, requests_per_minute=1), await made(gateway)

    refused = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"}, headers=bearing(short))
    drawn = await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"}, headers=bearing(long))

    expect_envelope(refused, 429, "rate_limit_exceeded")
    assert drawn.status_code == 200


async def test_gateways_share_a_keys_limit_and_what_was_taken_too_much_is_waited_for(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    per_minute = 30
    key = await made(gateway, requests_per_minute=per_minute)
    async with running_gateway(ledger, tmp_path, engine, require_keys=True, accord_every_s=0.05) as other:
        admitted = 0

        async def is_used_up(of: RunningGateway) -> bool:
            nonlocal admitted
            reply = await asked(of, key)
            admitted += reply.status_code == 200
            return reply.status_code == 429

        async def ask_on(of: RunningGateway) -> None:
            await until(lambda: is_used_up(of), "it is refused")

        await asyncio.gather(ask_on(gateway), ask_on(other))
        refused = [await asked(each, key) for each in (gateway, other)]

        assert per_minute <= admitted <= 2 * per_minute, "at worst each admits all, within one interval"
        waits = [float(reply.headers["retry-after-ms"]) for reply in refused]
        assert max(waits) > (admitted - per_minute) * 60_000 / per_minute - 10_000


async def test_limits_outlive_a_gateway(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    key = await made(gateway, requests_per_minute=2)
    await asked(gateway, key)
    await asked(gateway, key)
    taken = ledger.keys.credentials_taken(f"{key['id']}:requests")

    async def is_told() -> bool:
        return float(await ledger.redis.pttl(taken)) > 40_000

    await until(is_told, "the ledger knows")
    async with running_gateway(ledger, tmp_path, engine, require_keys=True, accord_every_s=0.05) as late:
        first = await asked(late, key)

        async def is_refused() -> bool:
            return (await asked(late, key)).status_code == 429

        await until(is_refused, "what was taken elsewhere is known")
        assert first.status_code == 200, "until then it counts by itself"
