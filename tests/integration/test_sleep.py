"""Under HEED_GPU_POLICY=sleep engines give their memory up for a while, and are looked at when they wake."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from feedback import gpu
from feedback.connection import Ledger
from feedback.gpu import Grant
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

STALL_S = 30.0
TOKEN = "of-a-test"


@asynccontextmanager
async def sleepy(
    ledger: Ledger, var: Path, engine: ScriptedEngine, stall_s: float = STALL_S, **settings: Any
) -> AsyncIterator[RunningGateway]:
    given: dict[str, Any] = {"gpu_policy": "sleep", "gpu_stall_s": stall_s, "engine_wait_s": stall_s + 15}
    async with running_gateway(ledger, var, engine, **(given | settings)) as gateway:
        yield gateway


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as scripted:
        yield scripted


async def wished(ledger: Ledger) -> Grant:
    """What became of a wish, which lasts five seconds."""
    assert await gpu.wish(ledger, TOKEN)

    async def is_answered() -> bool:
        found = await gpu.granted(ledger)
        return found is not None and found.token == TOKEN

    await until(is_answered, "the wish is answered")
    found = await gpu.granted(ledger)
    assert found is not None
    return found


async def is_over(ledger: Ledger) -> bool:
    return await gpu.granted(ledger) is None


async def is_answering(gateway: RunningGateway) -> bool:
    return (await gateway.http.get("/readyz")).status_code == 200


async def test_answers_stand_still_while_the_engine_sleeps_and_go_on_after_it_was_probed(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with sleepy(ledger, tmp_path, engine) as gateway:
        usual = (await gateway.chat(temperature=0, logprobs=True)).json()["choices"]
        gate = asyncio.Semaphore(1)
        engine.scripts.append(Script(tokens=("a", " stream", " goes", " on"), gate=gate))
        stream = asyncio.create_task(gateway.stream())
        await until(lambda: gate.locked(), "the stream has its first token")

        granted = await wished(ledger)
        for _ in range(3):
            gate.release()
        late = asyncio.create_task(gateway.chat(temperature=0, logprobs=True))
        await until(lambda: gateway.count("heed_queue"), "the request waits in the gateway's queue")
        seen = len(engine.log)
        state = (await gateway.http.get("/readyz")).json()["trouble"]["gpu"]
        is_still = not stream.done() and not late.done() and not engine.awake.is_set()
        await gpu.end(ledger, TOKEN)
        events, answer = await stream, await late
        await until(lambda: is_over(ledger), "the grant is taken back")

        assert granted.refusal is None
        assert 0 < granted.until - time.time() < STALL_S
        assert state == "the engines sleep while the workshop trains, 30 s at most"
        assert is_still
        assert events[-1] == "data: [DONE]"
        assert [token for token in ("a", " stream", " goes", " on") if f'"content":"{token}"' in "".join(events)] == [
            "a",
            " stream",
            " goes",
            " on",
        ]
        assert engine.log[seen].startswith("probe")
        assert answer.json()["choices"] == usual
        assert engine.naps == 1
        await until(lambda: is_answering(gateway), "the gateway is ready again")
        assert "gpu" not in (await gateway.http.get("/readyz")).json()["trouble"]


async def test_the_engine_wakes_after_the_longest_stall_though_the_worker_wishes_on(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with sleepy(ledger, tmp_path, engine, stall_s=1) as gateway:
        began = time.monotonic()
        granted = await wished(ledger)
        answer = await gateway.chat()
        took = time.monotonic() - began
        is_wished = await gpu.wished(ledger)

        assert answer.status_code == 200
        assert time.time() >= granted.until
        assert 1 <= took < 1 + 5
        assert is_wished == TOKEN
        assert engine.naps == 1


async def test_a_worker_that_died_keeps_nobody_asleep(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with sleepy(ledger, tmp_path, engine) as gateway:
        await wished(ledger)

        await ledger.redis.pexpire(ledger.keys.gpu_wish, 1)
        answer = await gateway.chat()

        assert answer.status_code == 200
        assert engine.awake.is_set()


async def test_a_gateway_that_comes_in_the_place_of_another_keeps_its_deadline(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with sleepy(ledger, tmp_path, engine, stall_s=4):
        granted = await wished(ledger)
    async with sleepy(ledger, tmp_path, engine, stall_s=4, ready=False) as gateway:
        await gpu.wish(ledger, TOKEN)
        answer = await gateway.chat()

        assert answer.status_code == 200
        assert time.time() >= granted.until
        assert engine.naps == 1
        await until(lambda: is_over(ledger), "the grant is taken back")


async def test_an_engine_that_woke_as_another_takes_no_traffic_until_it_was_restarted(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.drift = 0.6
    async with sleepy(ledger, tmp_path, engine, stall_s=1, engine_wait_s=16) as gateway:
        await wished(ledger)
        await gpu.end(ledger, TOKEN)
        await until(lambda: is_over(ledger), "the engine is awake")
        probed = len(engine.log)
        await until(lambda: len(engine.log) >= probed + 4, "it is probed again and again")
        told = (await gateway.http.get("/readyz")).json()
        asked = asyncio.create_task(gateway.chat())
        await until(lambda: gateway.count("heed_queue"), "the request waits")
        said = [line for line in engine.log if line.startswith("answer")]
        await engine.restart()
        answer = await asked

        assert told["status"] == "not ready"
        assert "heed-base answers differently (by 0.6 in log-probability)" in told["trouble"]["gpu"]
        assert said == []
        assert answer.status_code == 200
        await until(lambda: is_answering(gateway), "the gateway is ready again")


async def test_an_engine_that_cannot_wake_is_told_again_until_it_does(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.wakes = False
    async with sleepy(ledger, tmp_path, engine) as gateway:
        await wished(ledger)
        await gpu.end(ledger, TOKEN)
        asked = asyncio.create_task(gateway.chat())

        async def is_told() -> bool:
            return "cannot be woken" in (await gateway.http.get("/readyz")).json()["trouble"].get("gpu", "")

        await until(is_told, "it is told that it does not wake")
        engine.wakes = True

        assert (await asked).status_code == 200


async def test_an_engine_without_sleep_mode_goes_on_answering_and_the_wish_is_refused_in_words(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with scripted_engine(can_sleep=False) as engine, sleepy(ledger, tmp_path, engine) as gateway:
        granted = await wished(ledger)
        answer = await gateway.chat()

        assert "--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1" in str(granted.refusal)
        assert answer.status_code == 200
