"""The hot swap: which adapter answers, what the engine is made to hold, and what is refused."""

import asyncio
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feedback import adapters, completions
from feedback.connection import Ledger
from feedback.records import Golden
from serve.probe import distance
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine, write_adapter


def has_more_than(things: list[Any], number: int) -> bool:
    return len(things) > number


async def live(gateway: RunningGateway) -> str:
    return str((await gateway.chat()).json()["model"])


async def test_a_promoted_adapter_answers_and_the_one_before_stays_loaded(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")
    two = await gateway.register(2, b"two")

    first = await gateway.promote(one)
    second = await gateway.promote(two)

    assert (first.status_code, second.json()["state"], second.json()["live"]) == (200, "live", two)
    assert await live(gateway) == two
    assert set(gateway.engine.loaded) == {"heed-base", one, two}
    assert (await gateway.chat(model=one)).json()["model"] == one
    assert (await gateway.chat(model="heed-base")).json()["model"] == "heed-base"
    assert (await gateway.operator.get(f"/v1/adapters/{one}")).json()["state"] == "retired"


async def test_rolling_back_twice_goes_back_two_and_then_there_is_nothing(gateway: RunningGateway) -> None:
    one, two = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    await gateway.promote(one)
    await gateway.promote(two)
    back = [await gateway.operator.post("/v1/adapters/rollback", json={"reason": "worse"}) for _ in range(3)]

    assert [reply.status_code for reply in back] == [200, 200, 409]
    assert [reply.json().get("live") for reply in back[:2]] == [one, "heed-base"]
    assert back[2].json()["error"]["code"] == "nothing_to_roll_back_to"
    assert await live(gateway) == "heed-base"


async def test_a_stream_ends_on_the_adapter_it_began_on(gateway: RunningGateway, ledger: Ledger) -> None:
    one = await gateway.register(1, b"one")
    gate = asyncio.Semaphore(1)
    gateway.engine.scripts.append(Script(tokens=["a", "b", "c"], gate=gate))
    streaming = asyncio.create_task(gateway.stream())
    await until(lambda: gateway.engine.running, "the stream has begun")

    await gateway.promote(one)
    assert await live(gateway) == one
    gate.release()
    gate.release()
    events = [json.loads(event[6:]) for event in (await streaming)[:-1]]

    assert {event["model"] for event in events} == {"heed-base"}
    assert (await completions.get(ledger, events[0]["id"])).adapter == "heed-base"


async def test_what_nobody_is_answered_by_is_unloaded_and_its_files_stay(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine, spare_adapters=0) as gateway:
        ids = [await gateway.register(i, str(i).encode()) for i in (1, 2, 3)]
        await gateway.promote(ids[0])
        gate = asyncio.Semaphore(0)
        engine.scripts.append(Script(gate=gate))
        streaming = asyncio.create_task(gateway.stream())
        await until(lambda: engine.running, "the stream has begun")

        await gateway.promote(ids[1])
        await gateway.promote(ids[2])
        rounds = len(engine.loads)
        await gateway.promote(ids[1])
        await gateway.promote(ids[2])
        assert ids[0] in engine.loaded, "a stream is still being answered by it"
        assert len(engine.loads) == rounds
        for _ in range(3):
            gate.release()
        await streaming

        await until(lambda: ids[0] not in engine.loaded, "it is unloaded")
        assert (tmp_path / "adapters" / ids[0]).is_dir()


@pytest.mark.parametrize(
    ("weights", "rank", "words"),
    [
        (b"zero", 8, "every lora_B is zero"),
        (b"faint", 8, "answers exactly as heed-base does"),
        (b"nan", 8, "are not all finite numbers"),
        (b"overflow", 8, "Out of range float values"),
        (b"big", 64, "LoRA rank 64 is greater"),
    ],
)
async def test_an_unfit_adapter_is_rejected_in_words_and_never_answers(
    gateway: RunningGateway, weights: bytes, rank: int, words: str
) -> None:
    good, bad = await gateway.register(1, b"good"), await gateway.register(2, weights, rank=rank)
    await gateway.promote(good)

    refused = await gateway.promote(bad)
    again = await gateway.promote(bad)
    asked = await gateway.chat(model=bad)

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_not_servable")
    assert words in refused.json()["error"]["message"]
    assert again.status_code == 409
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
    assert await live(gateway) == good
    assert bad not in gateway.engine.loaded
    assert (await gateway.operator.get(f"/v1/adapters/{bad}")).json()["history"][-1]["state"] == "rejected"


async def test_an_adapter_goes_live_only_as_the_workshop_computed_it(gateway: RunningGateway) -> None:
    """The scripted engine says tokens 0, 1, 2, each at -0.5 less the number that stands for the weights."""
    number = int(hashlib.sha256(b"good").hexdigest()[:4], 16) / 0xFFFF
    trained = Golden(prompt="hi", tokens=[0, 1, 2], logprobs=[-0.5 - number + 0.01] * 3)
    elsewhere = Golden(prompt="hi", tokens=[0, 1, 2], logprobs=[-0.5] * 3)
    served = await gateway.register(1, b"good", golden=[trained])
    unlike = await gateway.register(2, b"good", golden=[trained, elsewhere])

    let_in = await gateway.promote(served)
    refused = await gateway.promote(unlike)

    assert let_in.status_code == 200, let_in.text
    assert refused.status_code == 409
    assert "is not what was trained" in refused.json()["error"]["message"]
    assert await live(gateway) == served


def test_after_a_token_that_differs_nothing_is_compared() -> None:
    golden = [Golden(prompt="hi", tokens=[5, 6, 7], logprobs=[-0.1, -0.7, -9.0])]
    said = [[{"token": f"token_id:{token}", "logprob": likely} for token, likely in ((5, -0.1), (8, -0.69), (9, -0.1))]]

    assert distance(golden, said) == pytest.approx(0.005)


async def test_an_adapter_whose_files_changed_is_rejected_unloaded(gateway: RunningGateway) -> None:
    changed = await gateway.register(1, b"one")
    (gateway.var / "adapters" / changed / "adapter_model.safetensors").write_bytes(b"other")

    refused = await gateway.promote(changed)

    assert "are not those that were registered" in refused.json()["error"]["message"]
    assert gateway.engine.loads == ["heed-base"]


async def test_a_restarted_engine_gets_its_adapters_back_before_traffic(gateway: RunningGateway) -> None:
    one, two = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    await gateway.promote(one)
    await gateway.promote(two)
    gateway.engine.log.clear()

    await gateway.engine.restart()
    replies = await asyncio.gather(*(gateway.chat(model=name) for name in ("heed", one, "heed-base")))

    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert [reply.json()["model"] for reply in replies] == [two, one, "heed-base"]
    for name in (two, one, "heed-base"):
        assert gateway.engine.log.index(f"probe {name}") < gateway.engine.log.index(f"answer {name}")


async def test_an_adapter_the_engine_forgot_is_loaded_again_and_the_request_retried(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")
    await gateway.promote(one)

    gateway.engine.loaded.pop(one)
    reply = await gateway.chat()

    assert (reply.status_code, reply.json()["model"]) == (200, one)


async def test_a_restart_of_the_gateway_changes_nothing(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        one = await gateway.register(1, b"one")
        await gateway.promote(one)
    loads = list(engine.loads)

    async with running_gateway(ledger, tmp_path, engine) as gateway:
        assert await live(gateway) == one
        assert engine.loads == loads
        assert (await gateway.operator.get("/v1/adapters")).json()["serving"]["generation"] == 1


async def test_eight_clients_stream_through_three_swaps_and_a_rollback(gateway: RunningGateway, ledger: Ledger) -> None:
    gateway.engine.pace_s = 0.005
    ids = [await gateway.register(i, str(i).encode()) for i in (1, 2, 3)]
    is_over = asyncio.Event()
    streams: list[list[str]] = []

    async def stream_on() -> None:
        while not is_over.is_set():
            streams.append(await gateway.stream())

    clients = [asyncio.create_task(stream_on()) for _ in range(8)]
    for adapter_id in ids:
        done = len(streams)
        assert (await gateway.promote(adapter_id)).status_code == 200
        await until(partial(has_more_than, streams, done + 16), "clients are answered by it")
    assert (await gateway.operator.post("/v1/adapters/rollback", json={"reason": "test"})).status_code == 200
    is_over.set()
    await asyncio.gather(*clients)

    seen: set[str] = set()
    for stream in streams:
        assert stream[-1] == "data: [DONE]"
        chunks: list[dict[str, Any]] = [json.loads(event[6:]) for event in stream[:-1]]
        assert len({chunk["model"] for chunk in chunks}) == 1
        assert (await completions.get(ledger, chunks[0]["id"])).adapter == chunks[0]["model"]
        seen.add(chunks[0]["model"])
    assert {*ids, "heed-base"} <= seen
    assert await live(gateway) == ids[1]


async def test_an_adapter_named_by_a_client_is_loaded_for_it(gateway: RunningGateway) -> None:
    candidate = await gateway.register(1, b"one")

    asked = await gateway.chat(model=candidate)
    unknown = await gateway.chat(model="heed-v9-00000000")

    assert (asked.status_code, asked.json()["model"]) == (200, candidate)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert await live(gateway) == "heed-base"


async def test_no_more_named_adapters_are_loaded_than_there_are_places(gateway: RunningGateway) -> None:
    ids = [await gateway.register(i, str(i).encode()) for i in (1, 2, 3)]

    replies = await asyncio.gather(*(gateway.chat(model=name) for name in ids))

    assert [reply.status_code for reply in replies] == [200, 200, 200]
    await until(lambda: len(set(gateway.engine.loaded) & set(ids)) <= 1, "the surplus is unloaded")


async def test_a_live_adapter_cannot_be_retired_and_an_idle_one_can(gateway: RunningGateway) -> None:
    one, two = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    await gateway.promote(one)

    refused = await gateway.operator.post(f"/v1/adapters/{one}/retire", json={"reason": "old"})
    retired = await gateway.operator.post(f"/v1/adapters/{two}/retire")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_is_live")
    assert retired.json()["state"] == "retired"


async def test_a_broken_live_adapter_can_be_rolled_back(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        one = await gateway.register(1, b"one")
        await gateway.promote(one)
    weights = tmp_path / "adapters" / one / "adapter_model.safetensors"
    weights.write_bytes(b"torn")
    engine.loaded.clear()

    async with running_gateway(ledger, tmp_path, engine, ready=False, engine_wait_s=0.3) as gateway:
        await until(lambda: "heed-base" in engine.loaded, "the base is served")
        assert (await gateway.chat()).json()["error"]["code"] == "adapter_not_loaded"
        assert "are not those" in (await gateway.http.get("/readyz")).text

        back = await gateway.operator.post("/v1/adapters/rollback", json={"reason": "its files are torn"})

        assert back.json()["live"] == "heed-base"
        assert await live(gateway) == "heed-base"
        assert (await gateway.http.get("/readyz")).status_code == 200


async def test_an_engine_that_serves_the_base_by_its_own_name_needs_no_zero_adapter(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with (
        scripted_engine(base_models=["heed-base"]) as engine,
        running_gateway(ledger, tmp_path, engine, base_adapter="") as gateway,
    ):
        assert await live(gateway) == "heed-base"
        assert engine.loads == []


async def test_an_engine_that_dies_of_an_adapter_gets_rid_of_it(gateway: RunningGateway) -> None:
    deadly = await gateway.register(1, b"deadly")
    engine = gateway.engine

    async def die_of_it() -> None:
        for _ in range(2):
            await until(lambda: f"probe {deadly}" in engine.log, "it is probed")
            engine.log.clear()
            await engine.stop()
            await engine.start()

    dying = asyncio.create_task(die_of_it())
    engine.deadly.add(deadly)
    refused = await gateway.promote(deadly)
    await dying

    assert refused.status_code == 409
    assert "died 2 times" in refused.json()["error"]["message"]
    assert await live(gateway) == "heed-base"


async def test_the_zero_adapter_alone_is_fit_for_the_base(tmp_path: Path, ledger: Ledger) -> None:
    write_adapter(tmp_path / "adapters" / "heed-base", b"overflow")
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, ready=False) as gateway:
        await until(lambda: engine.loads, "it was tried")

        assert (await gateway.http.get("/readyz")).status_code == 503
        assert (await adapters.serving(ledger)).live == "heed-base"
