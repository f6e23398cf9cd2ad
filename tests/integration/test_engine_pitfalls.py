"""What vLLM does that a gateway must not be caught by, each by its number.

Where a number is covered by the test of something else, this says by which; the others are below, from P11 on in
test_engine_swap_pitfalls.py.

P1   adapter files are gone, and the engine dies
P2   `load_inplace` stays in force
P3   a name and path with other weights answer from the old ones' cache
P4   404 between the choice of an adapter and the request for it: here, and test_hotswap.py (a forgotten adapter),
     test_gateways.py (a stream of another process)
P5   requests of more adapters than there are slots starve
P6   adapters that are served wrongly are loaded: here through the gateway; each fault in test_adapter_weights.py
P7   one request on NaN weights spoils the answers of all
P8   the base beside adapters answers with another's weights (CPU)
P9   an aborted answer looks whole: test_chat.py (an aborted whole answer, a failure after the first byte)
P10  success is no JSON: test_engine_contract.py (a loaded adapter is listed), and every load here
P11  a load that is repeated is refused
P12  the API key leaves calls open: test_unreachable.py
P13  names of adapters that are paths
P14  a restart forgets every adapter: test_hotswap.py and test_replicas.py (a restarted engine)
P15  a paused engine seems well
P16  the first log-probabilities take seconds
P17  vLLM's own numbers of adapters cannot be used
P18  several API servers or data-parallel ranks of one engine
P19  `vllm serve` is broken on CPU
P20  an adapter that is listed need not be there
P22  the engine goes on a while with what its client has left: as P1, for no count decides about files
P23  adapters of `lm_head` and embeddings: as P6
P24  external KV connectors: none is started (P18), and clients cannot name one

P21, the base's name in an adapter's config, matters to vLLM's resolver, which is not used. P25, a conversation whose
cache is cold after a swap, costs time and is no failure; docs/serving.md says which engine a conversation goes back to.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feedback.adapter_files import WEIGHTS, text_config
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from serve import stack as embedded
from serve.engine import Engine
from serve.stack import Stack, StackSettings
from tests.gateways import RunningGateway, registered, running_gateway, until
from tests.scripted_engine import TINY, Script, ScriptedEngine, scripted_engine, write_adapter
from tests.stack import Stack as WholeStack


async def live(gateway: RunningGateway) -> str:
    reply = await gateway.chat()
    assert reply.status_code == 200, reply.text
    return str(reply.json()["model"])


async def told(gateway: RunningGateway, model: str = "heed") -> float:
    """The log-probability of the answer's first token, by which the weights are told that it was computed with."""
    reply = await gateway.chat(model=model, logprobs=True)
    assert reply.status_code == 200, reply.text
    return float(reply.json()["choices"][0]["logprobs"]["content"][0]["logprob"])


def overwrite(gateway: RunningGateway, adapter: str, label: bytes) -> None:
    """The files of `adapter` hold other weights from now on."""
    other = write_adapter(gateway.var / f"other-{adapter}-{label.decode()}", label)
    (gateway.var / "adapters" / adapter / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())


async def test_p01_an_adapter_that_was_unloaded_is_still_on_disk_for_whatever_the_engine_has_begun(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with (
        scripted_engine(room=1) as engine,  # all but the last used are read again
        running_gateway(ledger, tmp_path, engine, spare_adapters=0) as gateway,
    ):
        ids = [await gateway.register(version, str(version).encode()) for version in (1, 2, 3)]
        for adapter in ids:
            await gateway.promote(adapter)
        await until(lambda: ids[0] not in engine.loaded, "the oldest is unloaded")
        engine.loaded[ids[0]] = str(gateway.var / "adapters" / ids[0])  # as a request that was begun still knows it

        direct = Engine(engine.url)
        answer = await direct.complete({"model": ids[0], "messages": [{"role": "user", "content": "hi"}]})
        await direct.close()

        assert answer["model"] == ids[0]
        assert engine.is_alive


async def test_p01_an_engine_that_died_of_missing_files_is_not_given_them_again(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine(room=1) as engine,
        running_gateway(ledger, tmp_path, engine, engine_wait_s=0.3) as gateway,
    ):
        one = await gateway.register(1, b"one")
        await gateway.promote(one)
        (gateway.var / "adapters" / one / WEIGHTS).unlink()
        assert (await gateway.chat(model="heed-base")).status_code == 200

        died = await gateway.chat()
        await until(lambda: not engine.is_alive, "the engine is dead")
        engine.loads.clear()
        await engine.start()
        await until(partial(says, gateway, f"the files of {one}"), "it is told why")
        back = await gateway.operator.post("/v1/adapters/rollback", json={"reason": "its files are gone"})

        assert died.status_code == 503
        assert back.json()["live"] == "heed-base"
        await until(lambda: "heed-base" in engine.loaded, "the base is back")
        assert await live(gateway) == "heed-base"
        assert set(engine.loads) == {"heed-base"}


async def test_p02_a_stream_goes_on_with_the_weights_it_began_with(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")
    await gateway.promote(one)
    gate = asyncio.Semaphore(1)
    gateway.engine.scripts.append(Script(gate=gate))
    streaming = asyncio.create_task(gateway.stream(logprobs=True))
    await until(lambda: gateway.engine.running, "the stream has begun")
    overwrite(gateway, one, b"two")
    for _ in range(2):
        gate.release()

    choices = [json.loads(event[6:])["choices"][0] for event in (await streaming)[:-1]]

    said = [choice["logprobs"]["content"][0]["logprob"] for choice in choices if choice["logprobs"]]
    assert len(said) == 3
    assert len(set(said)) == 1


async def test_p03_a_name_never_means_other_weights(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine, spare_adapters=0) as gateway:
        one, two, three = [await gateway.register(version, str(version).encode()) for version in (1, 2, 3)]
        for adapter in (one, two, three):
            await gateway.promote(adapter)
        await until(lambda: one not in engine.loaded, "it is unloaded")
        loads = len(engine.loads)
        overwrite(gateway, one, b"other")

        refused = await gateway.promote(one)

        assert refused.status_code == 409
        assert "are not those that were registered" in refused.json()["error"]["message"]
        assert len(engine.loads) == loads
        assert await live(gateway) == three


@pytest.mark.parametrize("stream", [False, True])
async def test_p04_an_adapter_that_went_between_choice_and_request_is_brought_back(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, stream: bool
) -> None:
    async with running_gateway(ledger, tmp_path, engine, reconcile_every_s=30) as gateway:
        one = await gateway.register(1, b"one")
        await gateway.promote(one)
        engine.loaded.pop(one)

        reply = await gateway.chat(stream=stream)

        assert reply.status_code == 200
        assert f'"model":"{one}"' in reply.text
        assert reply.text.endswith("data: [DONE]\n\n") == stream
        assert engine.loads.count(one) == 2


async def test_p05_the_next_adapter_finds_a_slot_while_all_others_are_in_use(ledger: Ledger, tmp_path: Path) -> None:
    flags = embedded.engine(Stack(StackSettings(var=tmp_path), "cpu", 1, (2,)), key="k").command
    slots = int(flags[flags.index("--max-loras") + 1])
    async with (
        scripted_engine(slots=slots) as engine,
        running_gateway(ledger, tmp_path, engine, promote_wait_s=5) as gateway,
    ):
        previous, running, tried, named, new = [await gateway.register(n, str(n).encode()) for n in (1, 2, 3, 4, 5)]
        await gateway.promote(previous)
        await gateway.promote(running)
        canary = await gateway.operator.post(f"/v1/adapters/{tried}/canary", json={"percent": 1})
        assert canary.status_code == 200, canary.text
        gate = asyncio.Semaphore(0)
        used = ("heed-base", previous, running, tried, named)
        engine.habits |= {name: Script(gate=gate) for name in used}
        streams = [asyncio.create_task(gateway.chat(model=name, stream=True)) for name in used]
        await until(lambda: len(engine.running) == len(used), "each is answering somebody")

        promoted = await gateway.promote(new)

        assert promoted.json().get("live") == new, promoted.text
        engine.habits.clear()
        for _ in range(100):
            gate.release()
        assert all(reply.text.endswith("data: [DONE]\n\n") for reply in await asyncio.gather(*streams))


async def test_p05_an_engine_that_has_no_slot_free_keeps_its_traffic(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        scripted_engine(slots=2) as engine,
        running_gateway(ledger, tmp_path, engine, promote_wait_s=0.5) as gateway,
    ):
        monkeypatch.setattr("serve.engine.CONTROL_TIMEOUT_S", 2)
        one, two = await gateway.register(1, b"one"), await gateway.register(2, b"two")
        await gateway.promote(one)
        await until(lambda: is_live(gateway, one), "it is live")
        gate = asyncio.Semaphore(0)
        engine.habits["heed-base"] = engine.habits[one] = Script(gate=gate)
        streams = [asyncio.create_task(gateway.chat(model=name, stream=True)) for name in ("heed-base", one)]
        await until(lambda: len(engine.running) == 2, "both slots are taken")

        await gateway.promote(two)
        await until(partial(says, gateway, "--max-loras"), "it is told that it waits")

        assert (await gateway.operator.get("/v1/engines")).json()["data"][0]["state"] == "up"
        engine.habits.clear()
        for _ in range(100):
            gate.release()
        await asyncio.gather(*streams)
        await until(lambda: is_live(gateway, two), "it found a slot and is live")


async def says(gateway: RunningGateway, words: str) -> bool:
    return words in (await gateway.http.get("/readyz")).text


async def is_live(gateway: RunningGateway, adapter: str) -> bool:
    return bool((await gateway.operator.get("/v1/adapters")).json()["serving"]["live"] == adapter)


WIDER = TINY | {"hidden_size": 4}
DEEPER = TINY | {"num_hidden_layers": 2}


@pytest.fixture
async def on_tiny(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    """A gateway that knows its base model."""
    base = tmp_path / "tiny"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(TINY))
    async with running_gateway(ledger, tmp_path, engine, base_model=str(base)) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("label", "shapes", "config", "words"),
    [
        (b"one", WIDER, {}, "must have shape"),
        (b"one", DEEPER, {}, "does not belong to this base"),
        (b"one", TINY, {"r": 4, "lora_alpha": 8}, "must have shape"),
        (b"one", TINY, {"lora_alpha": 1e5}, "lora_alpha must be"),
        (b"one", TINY, {"peft_type": "IA3"}, "peft_type must be"),
        (b"one", TINY, {"target_modules": ["lm_head", "embed_tokens"]}, "target_modules must be"),
        (b"one", TINY, {"modules_to_save": ["lm_head"]}, "modules_to_save must be"),
        (b"nan", TINY, {}, "not all finite"),
        (b"zero", TINY, {}, "changes nothing"),
    ],
)
async def test_p06_what_vllm_would_serve_wrongly_is_refused_in_words_and_never_loaded(
    on_tiny: RunningGateway, label: bytes, shapes: dict[str, Any], config: dict[str, Any], words: str
) -> None:
    bad = await on_tiny.register(1, label, base=shapes, config=config)
    engine = on_tiny.engine

    refused = await on_tiny.promote(bad)

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_not_servable")
    assert words in refused.json()["error"]["message"]
    assert engine.loads == ["heed-base"]
    assert await live(on_tiny) == "heed-base"
    direct = Engine(engine.url)
    await direct.load(bad, str(on_tiny.var / "adapters" / bad))  # it would have been
    await direct.close()


async def test_p07_an_engine_that_an_overflow_spoiled_answers_nobody_until_it_is_well(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        sound = await told(gateway)
        bad = await gateway.register(1, b"overflow")

        refused = await gateway.promote(bad)
        answers = [await told(gateway) for _ in range(3)]

        assert "Out of range float values" in refused.json()["error"]["message"]
        assert answers == [sound] * 3
        assert engine.log.count(f"probe {bad}") > 0


async def test_p08_the_base_answers_as_itself_beside_adapters(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")
    await gateway.promote(one)
    alone, adapted = await told(gateway, "heed-base"), await told(gateway, one)
    gate = asyncio.Semaphore(0)
    gateway.engine.scripts.append(Script(gate=gate))
    beside = asyncio.create_task(gateway.stream(model=one))
    await until(lambda: gateway.engine.running, "an adapter is at work")

    base = await told(gateway, "heed-base")

    assert base == alone != adapted
    for _ in range(3):
        gate.release()
    await beside


@pytest.mark.parametrize(
    ("version", "label", "words"),
    [(9001, b"nan", "not all finite"), (9002, b"faint", "answers exactly as garden-base does")],
)
async def test_p06_p07_the_real_engine_is_kept_from_adapters_that_are_unfit_and_stays_well(
    stack: WholeStack, version: int, label: bytes, words: str
) -> None:
    where = LedgerSettings(ledger_url=f"redis://127.0.0.1:{stack.ledger_port}/0", var=stack.var)
    ask = {"model": "garden", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "temperature": 0}
    ledger = open_ledger(where)
    base = text_config(stack.var / "pocket")
    bad = await registered(ledger, stack.var, version, label, base=base, model="garden")
    await ledger.close()
    with stack.http() as http:
        before = http.post("/chat/completions", json=ask)

        refused = http.post(f"/adapters/{bad}/promote")
        after = http.post("/chat/completions", json=ask)

    assert refused.status_code == 409, refused.text
    assert words in refused.json()["error"]["message"]
    assert (before.status_code, after.status_code) == (200, 200)
    said = [[t["logprob"] for t in r.json()["choices"][0]["logprobs"]["content"]] for r in (before, after)]
    assert said[0] == pytest.approx(said[1], abs=0.01)
    assert all(math.isfinite(value) for value in said[1])


async def test_p04_the_real_engine_is_given_back_what_it_forgot_and_the_request_is_answered(
    stack: WholeStack,
) -> None:
    ask = {"model": "heed-base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    direct = Engine(f"http://127.0.0.1:{stack.engine_port}", stack.engine_key)
    await direct.unload("heed-base")

    with stack.http() as http:
        reply = http.post("/chat/completions", json=ask)

    assert (reply.status_code, reply.json()["model"]) == (200, "heed-base")
    assert "heed-base" in await direct.models()
    await direct.close()
