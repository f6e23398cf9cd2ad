"""Pitfalls of vLLM beyond adapters' files and weights; test_engine_pitfalls.py has those, and a table of all."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feedback.connection import Ledger
from serve import stack
from serve.engine import Engine, EngineRefused
from serve.stack import Stack, StackSettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import ScriptedEngine, scripted_engine, write_adapter


async def live(gateway: RunningGateway) -> str:
    return str((await gateway.chat()).json()["model"])


def command(device: stack.Device = "cpu", **given: Any) -> list[str]:
    return list(stack.engine(Stack(StackSettings(var=Path("var"), **given), device, 1, (2,)), key="k").command)


async def test_p11_a_load_that_was_done_already_is_no_failure_and_any_other_refusal_is(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    direct, files = Engine(engine.url), str(write_adapter(tmp_path / "one", b"one"))

    for _ in range(2):
        await direct.load("one", files)
    with pytest.raises(EngineRefused, match="conflicts"):
        await direct.load("base", files)

    assert await direct.models() == {"base": None, "one": files}
    await direct.close()


async def test_p11_a_name_that_was_loaded_from_elsewhere_is_not_taken_for_it(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    one = await gateway.register(1, b"one")
    elsewhere = write_adapter(tmp_path / "elsewhere", b"other")
    gateway.engine.loaded[one] = str(elsewhere)

    refused = await gateway.promote(one)

    assert refused.status_code == 409
    assert f"serves {one} from {elsewhere}" in refused.json()["error"]["message"]
    assert await live(gateway) == "heed-base"


@pytest.mark.parametrize("name", ["../heed-base", "/etc", "heed-v1-../../x", "heed-v1-00000000/../x", "base", "."])
async def test_p13_no_name_that_is_a_path_reaches_the_engine(gateway: RunningGateway, name: str) -> None:
    asked = len(gateway.engine.bodies)

    refused = await gateway.chat(model=name)

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert len(gateway.engine.bodies) == asked


async def test_p15_what_a_paused_engine_does_not_answer_another_does(ledger: Ledger, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"engine_silence_s": 2, "engine_wait_s": 0.1, "engine_rest_s": 30}
    async with (
        scripted_engine() as paused,
        scripted_engine() as well,
        running_gateway(ledger, tmp_path, paused, well, **limits) as gateway,
    ):
        await until(partial(all_hold, gateway, "heed-base"), "both take traffic")
        paused.works.clear()

        replies = await asyncio.gather(*(gateway.chat(f"Topic {topic}") for topic in range(12)))

        assert paused.is_healthy
        assert [reply.status_code for reply in replies] == [200] * 12
        assert await gateway.count("heed_retries_total") > 0
        paused.works.set()


async def all_hold(gateway: RunningGateway, adapter: str) -> bool:
    engines = (await gateway.operator.get("/v1/engines")).json()["data"]
    return all(adapter in engine.get("holds", ()) for engine in engines)


async def test_p16_an_engine_has_computed_logprobs_before_its_first_client(gateway: RunningGateway) -> None:
    engine = gateway.engine
    engine.log.clear()
    await engine.restart()

    await gateway.chat()

    assert engine.log == ["probe heed-base", "probe heed-base", "answer heed-base"]
    assert all(body["logprobs"] for body in engine.bodies if body.get("temperature") == 0)


async def test_p17_what_is_in_use_is_counted_here_and_not_asked_of_the_engine(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine, spare_adapters=0) as gateway:
        ids = [await gateway.register(version, str(version).encode()) for version in (1, 2, 3)]
        for adapter in ids:
            await gateway.promote(adapter)
            await gateway.chat()
        await until(lambda: ids[0] not in engine.loaded, "what nobody uses is unloaded")

        assert "GET /metrics" not in engine.targets


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_p18_an_engine_is_one_server_of_one_rank_without_connectors(device: stack.Device) -> None:
    flags = {part for part in command(device, replicas=2) if part.startswith("-")}

    assert "--enable-lora" in flags
    assert not flags & {"--api-server-count", "--data-parallel-size", "-dp", "--kv-transfer-config", "--lora-modules"}


def test_p19_on_cpu_the_server_is_started_as_a_module() -> None:
    words = command()

    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "serve" not in words


async def test_p20_an_adapter_that_is_only_listed_is_looked_at_before_it_answers(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")
    gateway.engine.loaded[one] = str(gateway.var / "adapters" / one)

    await gateway.promote(one)

    assert await live(gateway) == one
    assert one not in gateway.engine.loads
    assert gateway.engine.log.index(f"probe {one}") < gateway.engine.log.index(f"answer {one}")


async def test_p24_clients_name_no_connector(gateway: RunningGateway) -> None:
    refused = await gateway.chat(kv_transfer_params={"do_remote_prefill": True})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "kv_transfer_params")
