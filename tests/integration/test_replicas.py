"""Several engines behind one gateway: which one answers, and what one that fails costs."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

QUICK: dict[str, Any] = {"engine_rest_s": 0.05, "engine_rest_max_s": 0.2}


@pytest.fixture
async def engines() -> AsyncIterator[list[ScriptedEngine]]:
    async with scripted_engine() as one, scripted_engine() as two:
        yield [one, two]


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, *engines, **QUICK) as gateway:
        await until(lambda: both_hold(gateway, "heed-base"), "both engines take traffic")
        yield gateway


async def states(gateway: RunningGateway) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await gateway.operator.get("/v1/engines")).json()["data"]
    return data


async def both_hold(gateway: RunningGateway, adapter: str) -> bool:
    return all(adapter in engine.get("holds", ()) for engine in await states(gateway))


def answered(engine: ScriptedEngine) -> int:
    return sum(line.startswith("answer") for line in engine.log)


def said(engine: ScriptedEngine) -> set[str]:
    """The first words of the conversations that it answered."""
    asked = [body["messages"][0]["content"] for body in engine.bodies if body.get("temperature") != 0]
    return {text for text in asked if text.startswith("Topic")}


async def turn(gateway: RunningGateway, topic: int, turns: int, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": f"Topic {topic}"}]
    for number in range(turns):
        messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"And {number}?"}]
    return await gateway.http.post("/v1/chat/completions", json={"model": "heed", "messages": messages, **fields})


async def test_a_conversation_goes_back_to_its_engine_and_many_are_spread(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    for turns in range(3):
        for topic in range(20):
            assert (await turn(gateway, topic, turns)).status_code == 200

    one, two = map(said, engines)
    assert one
    assert two
    assert not one & two


async def test_requests_with_one_cache_key_go_to_one_engine(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    for topic in range(12):
        await turn(gateway, topic, 0, prompt_cache_key="the long prompt of our shop")

    assert sorted(map(answered, engines)) == [0, 12]
    assert all("prompt_cache_key" not in body for engine in engines for body in engine.bodies)


async def test_a_conversation_leaves_an_engine_that_is_busier_by_more_than_the_slack(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    gate = asyncio.Semaphore(0)
    for engine in engines:
        engine.habits["heed-base"] = Script(gate=gate)
    streams = [asyncio.create_task(turn(gateway, 1, 0, stream=True)) for _ in range(9)]
    await until(lambda: sum(len(engine.running) for engine in engines) == 9, "all are being answered")

    # Five on its own engine, four more than the other has; the rest in turns.
    assert sorted(len(engine.running) for engine in engines) in ([2, 7], [3, 6])
    for _ in range(100):
        gate.release()
    assert all(reply.status_code == 200 for reply in await asyncio.gather(*streams))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_before_the_first_byte_costs_no_request(
    gateway: RunningGateway, engines: list[ScriptedEngine], stream: bool
) -> None:
    engines[0].answers.clear()
    asking = [asyncio.create_task(turn(gateway, topic, 0, stream=stream)) for topic in range(8)]
    await until(lambda: is_busy(gateway, 0), "some are asked of it")
    await engines[0].stop()

    replies = await asyncio.gather(*asking)

    assert [reply.status_code for reply in replies] == [200] * 8
    assert all(reply.text.endswith("data: [DONE]\n\n") == stream for reply in replies)


async def is_busy(gateway: RunningGateway, index: int) -> bool:
    return int((await states(gateway))[index]["in_flight"]) > 0


async def test_only_the_streams_of_a_killed_engine_break_and_each_says_so(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    gate = asyncio.Semaphore(0)
    for engine in engines:
        engine.habits["heed-base"] = Script(gate=gate)
    begun: list[int] = []
    streams = [asyncio.create_task(streamed(gateway, topic, begun)) for topic in range(8)]
    await until(lambda: len(begun) == 8, "each has begun")
    on_it = len(engines[0].running)
    await engines[0].stop()
    for _ in range(100):
        gate.release()

    texts = await asyncio.gather(*streams)

    assert sum('"engine_failed"' in text for text in texts) == on_it > 0
    assert sum(text.endswith("data: [DONE]\n\n") for text in texts) == 8 - on_it


async def streamed(gateway: RunningGateway, topic: int, begun: list[int]) -> str:
    body = {"model": "heed", "stream": True, "messages": [{"role": "user", "content": f"Topic {topic}"}]}
    text = ""
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for part in reply.aiter_text():
            if not text:
                begun.append(topic)
            text += part
    return text


async def test_an_engine_that_hangs_is_left_out_and_holds_up_no_swap(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with running_gateway(ledger, tmp_path, *engines, engine_check_s=0.3, **QUICK) as gateway:
        await until(lambda: both_hold(gateway, "heed-base"), "both engines take traffic")
        engines[0].answers.clear()
        await until(lambda: is_state(gateway, 0, "down"), "it is found out")
        adapter = await gateway.register(1, b"one")

        promoted = await gateway.promote(adapter)

        assert promoted.json()["live"] == adapter
        assert (await gateway.chat()).json()["model"] == adapter
        ready = (await gateway.http.get("/readyz")).json()
        assert ready["status"] == "ready"
        assert ready["engines"] == {"engine 1": "did not say within 0.3 s what it lists", "engine 2": "up"}
        engines[0].answers.set()
        await until(lambda: both_hold(gateway, adapter), "it has caught up")


async def test_an_engine_whose_name_leads_nowhere_yet_holds_up_neither_the_start_nor_a_swap(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    named = f"{engines[0].url},http://engine-1.invalid:8000"
    async with running_gateway(ledger, tmp_path, engines[0], engines=named, **QUICK) as gateway:
        adapter = await gateway.register(1, b"one")

        promoted = await gateway.promote(adapter)

        assert promoted.json()["live"] == adapter
        assert (await gateway.chat()).json()["model"] == adapter
        assert await is_state(gateway, 1, "down")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_that_hangs_has_not_begun_to_answer_another_answers(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine], stream: bool
) -> None:
    patience = QUICK | {"engine_check_s": 0.3, "engine_wait_s": 0.1}
    async with running_gateway(ledger, tmp_path, *engines, **patience) as gateway:
        await until(lambda: both_hold(gateway, "heed-base"), "both engines take traffic")
        engines[0].answers.clear()

        replies = await asyncio.gather(*(turn(gateway, topic, 0, stream=stream) for topic in range(8)))

        assert [reply.status_code for reply in replies] == [200] * 8
        assert answered(engines[0]) == 0
        assert answered(engines[1]) == 8
        assert await gateway.count("heed_retries_total") > 0
        assert (await states(gateway))[0]["in_flight"] == 0


async def test_what_an_engine_has_begun_before_it_hangs_it_may_end(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with running_gateway(ledger, tmp_path, *engines, engine_check_s=0.3, **QUICK) as gateway:
        await until(lambda: both_hold(gateway, "heed-base"), "both engines take traffic")
        gate = asyncio.Semaphore(1)
        for engine in engines:
            engine.habits["heed-base"] = Script(gate=gate)
        begun: list[int] = []
        stream = asyncio.create_task(streamed(gateway, 1, begun))
        await until(lambda: begun, "the stream has begun")
        hanging = 0 if engines[0].running else 1
        engines[hanging].answers.clear()
        await until(lambda: is_state(gateway, hanging, "down"), "it is found out")
        for _ in range(9):
            gate.release()
        engines[hanging].answers.set()

        assert (await stream).endswith("data: [DONE]\n\n")


async def test_the_only_engine_keeps_its_requests_though_it_hangs(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, engine_check_s=0.3, **QUICK) as gateway,
    ):
        engine.answers.clear()
        asking = asyncio.create_task(turn(gateway, 1, 0))
        await until(lambda: is_busy(gateway, 0), "it is asked")
        await until(lambda: is_state(gateway, 0, "down"), "it is found out")
        engine.answers.set()

        assert (await asking).status_code == 200
        assert answered(engine) == 1
        assert await gateway.count("heed_retries_total") == 0


async def is_state(gateway: RunningGateway, index: int, state: str) -> bool:
    return bool((await states(gateway))[index]["state"] == state)


async def test_one_that_breaks_every_request_rests_longer_each_time_though_it_lists_its_adapters(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    engines[0].habits["heed-base"] = Script(breaks_after=0)
    async with running_gateway(ledger, tmp_path, *engines, engine_rest_s=30) as gateway:
        await until(lambda: both_hold(gateway, "heed-base"), "both engines take traffic")
        for topic in range(200):
            assert (await turn(gateway, topic, 0)).status_code == 200
            if await is_state(gateway, 0, "resting"):
                break
        assert (await states(gateway))[0]["why"] == "broke within a request (the connection was closed)"
        before = answered(engines[0])
        for topic in range(20):
            assert (await turn(gateway, topic, 0)).status_code == 200

    assert answered(engines[0]) == before == 2


async def test_a_restarted_engine_gets_its_adapters_back_before_it_gets_traffic(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    adapter = await gateway.register(1, b"one")
    await gateway.promote(adapter)
    await engines[1].restart()
    replies = [await turn(gateway, topic, 0) for topic in range(20)]
    await until(lambda: both_hold(gateway, adapter), "it has them again")

    assert {reply.json()["model"] for reply in replies} == {adapter}


async def test_an_adapter_that_one_engine_cannot_take_up_goes_live_on_none(
    gateway: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    adapter = await gateway.register(1, b"one")
    engines[1].unloadable.add(adapter)

    refused = await gateway.promote(adapter)

    assert refused.status_code == 409
    assert (await gateway.chat()).json()["model"] == "heed-base"
    assert all(adapter not in engine.loaded for engine in engines)
    assert (await gateway.operator.get(f"/v1/adapters/{adapter}")).json()["state"] == "rejected"


async def test_a_queue_has_an_end_and_whoever_waits_gets_an_answer_after_all(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, queue_limit=1, **QUICK) as gateway,
    ):
        await engine.stop()
        await until(lambda: is_state(gateway, 0, "down"), "it is missed")
        waiting = asyncio.create_task(gateway.chat())
        await until(lambda: is_waiting(gateway), "it waits")
        refused = await gateway.chat()
        await engine.start()

        assert (await waiting).status_code == 200

    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) > 0


async def is_waiting(gateway: RunningGateway) -> bool:
    return await gateway.count("heed_queue") == 1


async def test_nobody_is_kept_longer_than_their_client_waits(ledger: Ledger, tmp_path: Path) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, **QUICK) as gateway:
        await engine.stop()
        await until(lambda: is_state(gateway, 0, "down"), "it is missed")
        patient = gateway.openai.with_options(timeout=1)
        loop = asyncio.get_running_loop()
        began = loop.time()

        with pytest.raises(Exception, match="every engine is down or starting"):
            await patient.chat.completions.create(
                model="heed",
                messages=[{"role": "user", "content": "Hello"}],
                extra_headers={"x-stainless-read-timeout": "0.1"},
            )

    assert loop.time() - began < 10  # engine_wait_s


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_takes_too_long_is_ended_and_frees_its_engine(
    ledger: Ledger, tmp_path: Path, stream: bool
) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, answer_timeout_s=0.3) as gateway,
    ):
        engine.habits["heed-base"] = Script(gate=asyncio.Semaphore(1))
        reply = await gateway.chat(stream=stream)
        await until(lambda: not engine.running, "the engine works on it no more")

    error = json.loads(reply.text.split("\n\n")[-2][6:]) if stream else reply.json()
    assert error["error"]["code"] == "answer_timeout"
    assert reply.status_code == (200 if stream else 504)
    assert "[DONE]" not in reply.text
