"""Several gateway processes: one swaps at a time, all answer by the same, and any of them may end at any moment."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest

from feedback import adapters, gateways
from feedback.connection import Ledger, open_ledger
from feedback.errors import LeadLost
from feedback.gateways import Board, Telling
from feedback.settings import LedgerSettings
from tests.fleet import GatewayProcess, children, gateway_process, is_alive, leader_of, led_first
from tests.gateways import registered, running_gateway, until
from tests.processes import free_port, ledger_server
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine


@pytest.fixture
async def engines() -> AsyncIterator[list[ScriptedEngine]]:
    async with scripted_engine() as one, scripted_engine() as two:
        yield [one, two]


@pytest.fixture
async def fleet(ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]) -> AsyncIterator[list[GatewayProcess]]:
    """Two processes, the leader first."""
    async with AsyncExitStack() as stack:
        starting = [gateway_process(ledger, tmp_path, engines, f"gateway-{n}") for n in range(2)]
        started = [await stack.enter_async_context(one) for one in starting]
        yield await led_first(ledger, started)


async def test_a_token_that_is_not_the_last_changes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    adapter = await registered(ledger, tmp_path, 1, b"one")
    await adapters.want(ledger, adapter, "better")
    slept = await beat(ledger, "slept")
    await ledger.redis.delete(ledger.keys.gateways_lease)  # as when it runs out
    leads = await beat(ledger, "leads")
    assert slept is not None
    assert leads is not None
    assert leads > slept

    with pytest.raises(LeadLost):
        await adapters.flip(ledger, adapter, "heed-base", "late", slept)
    with pytest.raises(LeadLost):
        await adapters.reject(ledger, adapter, "late", slept)
    with pytest.raises(LeadLost):
        await gateways.publish(ledger, slept, Board())

    assert (await adapters.serving(ledger)).live == "heed-base"
    assert (await adapters.get(ledger, adapter)).state == "candidate"
    assert (await adapters.flip(ledger, adapter, "heed-base", "in time", leads)).live == adapter


async def beat(ledger: Ledger, name: str, patience_s: float = 60) -> int | None:
    return (await gateways.beat(ledger, name, Telling(), patience_s, 0, would_lead=True)).token


async def test_what_a_gateway_told_is_gone_when_it_has_been_silent(ledger: Ledger) -> None:
    await gateways.beat(ledger, "dies", Telling(in_flight=["heed-v1-00000000"]), 0.2, 0, would_lead=True)

    async def heard() -> gateways.Heard:
        return await gateways.beat(ledger, "lives", Telling(), 60, 0, would_lead=True)

    assert set((await heard()).told) == {"dies", "lives"}
    async with asyncio.timeout(10):
        while "dies" in (found := await heard()).told or found.token is None:  # noqa: ASYNC110 (polled: it is in Redis)
            await asyncio.sleep(0.01)
    assert found.token == 2


async def test_one_gives_the_lead_back_when_it_goes(ledger: Ledger) -> None:
    await beat(ledger, "goes")
    assert await beat(ledger, "waits") is None

    gone = await gateways.beat(ledger, "goes", Telling(), 60, 0, would_lead=False)

    assert gone.token is None
    assert await beat(ledger, "waits") == 2


async def test_one_process_loads_and_all_answer_by_it_when_the_promotion_is_told(
    fleet: list[GatewayProcess], ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    one, two = [await registered(ledger, tmp_path, n, b"%d" % n) for n in (1, 2)]
    leader, follower = fleet

    promoted = [await leader.promote(one), await follower.promote(two)]
    seen = [await gateway.live() for gateway in fleet]
    back = await follower.roll_back()
    seen += [await gateway.live() for gateway in fleet]

    assert [reply.status_code for reply in (*promoted, back)] == [200, 200, 200]
    assert seen == [two, two, one, one]
    for engine in engines:
        assert engine.loads == ["heed-base", one, two]  # each once, whoever asked


async def test_the_leader_loads_what_clients_of_another_process_name(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    sound, unfit = await registered(ledger, tmp_path, 1, b"one"), await registered(ledger, tmp_path, 2, b"nan")
    async with AsyncExitStack() as stack:
        starting = [gateway_process(ledger, tmp_path, engines, f"gateway-{n}", spare_adapters=2) for n in range(2)]
        _, follower = await led_first(ledger, [await stack.enter_async_context(one) for one in starting])

        answered, refused = await follower.chat(sound), await follower.chat(unfit)

    assert answered.json()["model"] == sound
    assert refused.json()["error"]["code"] == "adapter_not_loaded"
    assert "not all finite" in refused.json()["error"]["message"]


async def test_a_leader_killed_within_a_swap_is_replaced_and_the_swap_ends_well(
    fleet: list[GatewayProcess], ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    adapter = await registered(ledger, tmp_path, 1, b"one")
    leader, follower = fleet
    for engine in engines:
        engine.deadly.add(adapter)  # its probe is not answered
    promoting = asyncio.create_task(follower.promote(adapter))
    await until(lambda: any(f"probe {adapter}" in engine.log for engine in engines), "it is being probed")

    leader.process.kill()
    for engine in engines:
        engine.deadly.clear()
    answers = []
    while not promoting.done():
        answers.append(await follower.chat())

    assert (await promoting).json()["live"] == adapter
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} <= {"heed-base", adapter}
    assert await follower.live() == adapter
    assert f"-{follower.process.pid}-" in await leader_of(ledger)


async def test_a_leader_that_slept_through_its_lease_undoes_nothing(
    fleet: list[GatewayProcess], ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    one, two = [await registered(ledger, tmp_path, n, b"%d" % n) for n in (1, 2)]
    sleeper, other = fleet
    for engine in engines:
        engine.deadly.add(one)
    promoting = asyncio.create_task(sleeper.promote(one))
    await until(lambda: any(f"probe {one}" in engine.log for engine in engines), "it is being probed")
    sleeper.send(signal.SIGSTOP)
    for engine in engines:
        engine.deadly.clear()
    await until(lambda: leads(ledger, other), "the other leads")

    assert (await other.promote(two)).json()["live"] == two
    sleeper.send(signal.SIGCONT)
    late = await promoting

    assert late.status_code in (200, 409)  # it was live for a moment, or was passed over
    assert await until_both_say(fleet, two)
    assert await leads(ledger, other)
    assert (await adapters.serving(ledger)).live == two
    for engine in engines:
        assert engine.loaded.keys() >= {"heed-base", two}


async def leads(ledger: Ledger, gateway: GatewayProcess) -> bool:
    return f"-{gateway.process.pid}-" in await leader_of(ledger)


async def until_both_say(fleet: list[GatewayProcess], adapter: str) -> bool:
    for gateway in fleet:
        await until(partial(answers_as, gateway, adapter), f"it answers as {adapter}")
    return True


async def answers_as(gateway: GatewayProcess, adapter: str) -> bool:
    return await gateway.live() == adapter


async def test_an_adapter_stays_loaded_while_any_process_answers_with_it_and_not_for_one_that_died(
    fleet: list[GatewayProcess], ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    one, two, three = [await registered(ledger, tmp_path, n, b"%d" % n) for n in (1, 2, 3)]
    leader, follower = fleet
    await leader.promote(one)
    gate = asyncio.Semaphore(0)
    for engine in engines:
        engine.habits[one] = Script(gate=gate)
    streaming = asyncio.create_task(follower.chat(stream=True))
    await until(lambda: any(engine.running for engine in engines), "the stream has begun")

    for adapter in (two, three, two, three):
        assert (await leader.promote(adapter)).status_code == 200
    assert all(one in engine.loaded for engine in engines), "the other process answers with it"

    follower.process.kill()
    with pytest.raises(httpx.TransportError):
        await streaming
    await until(lambda: all(one not in engine.loaded for engine in engines), "it is unloaded")
    assert await leader.live() == three


async def test_a_stream_of_another_process_ends_before_its_adapter_is_unloaded(
    fleet: list[GatewayProcess], ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    one, two, three = [await registered(ledger, tmp_path, n, b"%d" % n) for n in (1, 2, 3)]
    leader, follower = fleet
    await leader.promote(one)
    gate = asyncio.Semaphore(0)
    for engine in engines:
        engine.habits[one] = Script(gate=gate)
    streaming = asyncio.create_task(follower.chat(stream=True))
    await until(lambda: any(engine.running for engine in engines), "the stream has begun")
    for adapter in (two, three):
        await leader.promote(adapter)

    assert all(one in engine.loaded for engine in engines)
    for _ in range(3):
        gate.release()

    assert (await streaming).text.endswith("data: [DONE]\n\n")
    await until(lambda: all(one not in engine.loaded for engine in engines), "it is unloaded")


async def test_gateways_go_on_without_their_ledger_and_heal_an_engine_meanwhile(
    tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    port = free_port()
    ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", var=tmp_path))
    async with AsyncExitStack() as stack:
        with ledger_server(tmp_path / "ledger", port):
            adapter = await registered(ledger, tmp_path, 1, b"one")
            starting = [gateway_process(ledger, tmp_path, engines, f"gateway-{n}") for n in range(2)]
            fleet = await led_first(ledger, [await stack.enter_async_context(one) for one in starting])
            await fleet[0].promote(adapter)
        await engines[0].restart()

        for gateway in fleet:
            answers = [await gateway.chat() for _ in range(10)]
            assert {(answer.status_code, answer.json()["model"]) for answer in answers} == {(200, adapter)}
            assert answers[-1].headers["x-heed-recorded"] == "no"
        await until(lambda: adapter in engines[0].loaded, "the last leader gives it back")

        with ledger_server(tmp_path / "ledger", port):
            await until(lambda: comes_back(fleet), "they have their ledger again")
            assert (await fleet[1].roll_back()).json()["live"] == "heed-base"
            assert [await gateway.live() for gateway in fleet] == ["heed-base"] * 2
            await stack.aclose()
    await ledger.close()


async def comes_back(fleet: list[GatewayProcess]) -> bool:
    return all([await gateway.is_ready() for gateway in fleet])


async def test_a_rollback_waits_for_no_load_that_is_under_way(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with running_gateway(ledger, tmp_path, *engines) as gateway:
        one, stuck = await gateway.register(1, b"one"), await gateway.register(2, b"two")
        await gateway.promote(one)
        for engine in engines:
            engine.deadly.add(stuck)
        named = asyncio.create_task(gateway.chat(model=stuck))
        await until(lambda: any(f"probe {stuck}" in engine.log for engine in engines), "it is being probed")

        back = await gateway.operator.post("/v1/adapters/rollback", json={"reason": "worse"})

        assert back.json()["live"] == "heed-base"
        assert not named.done()
        for engine in engines:
            engine.deadly.clear()
        named.cancel()


async def test_a_gateway_that_is_going_says_so_and_ends_what_it_has_begun(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with (
        gateway_process(ledger, tmp_path, engines) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as newcomer,
        httpx.AsyncClient(base_url=gateway.url, limits=httpx.Limits(max_connections=1)) as busy,
    ):
        gate = asyncio.Semaphore(0)
        for engine in engines:
            engine.habits["heed-base"] = Script(gate=gate)
        body = {"model": "heed", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        streaming = asyncio.create_task(busy.post("/v1/chat/completions", json=body))
        await until(lambda: any(engine.running for engine in engines), "the stream has begun")
        assert await gateway.is_ready()
        gateway.send(signal.SIGTERM)

        said = await until_going(gateway)
        with pytest.raises(httpx.ConnectError):
            await newcomer.get("/healthz")
        for _ in range(3):
            gate.release()
        streamed = await streaming
        # Nobody told this client, whose answer had begun before: its connection still answers, and no other is taken.
        after = await busy.get("/healthz")

        assert "it is going" in said.json()["trouble"]["gateway"]
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert [reply.headers.get("connection") for reply in (said, streamed, after)] == ["close", None, "close"]
        await until(lambda: gateway.process.poll() is not None, "it ends")


async def until_going(gateway: GatewayProcess) -> httpx.Response:
    """On the connection that is open already, for no other is taken."""
    while (reply := await gateway.http.get("/readyz")).status_code == 200:
        pass
    return reply


async def test_two_workers_are_replaced_under_load_and_no_request_fails(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    for engine in engines:
        engine.pace_s = 0.005
    async with gateway_process(ledger, tmp_path, engines, workers=2) as gateway:
        await until(lambda: len(children(gateway.process)) == 2, "both workers run")
        before = children(gateway.process)
        is_over = asyncio.Event()
        done: list[str] = []

        async def ask_on(is_stream: bool) -> None:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:  # it keeps its connection
                while not is_over.is_set():
                    body = {
                        "model": "heed",
                        "messages": [{"role": "user", "content": "Hello"}],
                        "stream": is_stream,
                    }
                    reply = await http.post("/v1/chat/completions", json=body)
                    is_whole = reply.text.endswith("data: [DONE]\n\n") if is_stream else "choices" in reply.json()
                    done.append("answered" if reply.status_code == 200 and is_whole else reply.text)

        async with asyncio.TaskGroup() as clients:
            for number in range(12):
                clients.create_task(ask_on(number % 2 == 0))
            await until(lambda: len(done) > 50, "there is load")
            gateway.send(signal.SIGHUP)
            await until(lambda: not any(map(is_alive, before)), "both are gone", 60)
            so_far = len(done)
            await until(lambda: len(done) > so_far + 50, "their successors answer")
            is_over.set()

        assert set(done) == {"answered"}
        assert len(children(gateway.process)) == 2
        assert not children(gateway.process) & before


async def test_a_worker_that_dies_is_started_again_and_all_end_with_their_parent(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with gateway_process(ledger, tmp_path, engines, workers=2) as gateway:
        await until(lambda: len(children(gateway.process)) == 2, "both workers run")
        killed, left = sorted(children(gateway.process))
        os.kill(killed, signal.SIGKILL)

        await until(lambda: len(children(gateway.process) - {killed}) == 2, "another one runs")
        replacing = children(gateway.process)
        gateway.process.kill()

        assert left in replacing
        await until(lambda: not any(map(is_alive, replacing)), "they end with their parent")


async def test_what_all_workers_count_is_told_by_any(
    ledger: Ledger, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    async with gateway_process(ledger, tmp_path, engines, workers=2) as gateway:
        for _ in range(20):
            async with httpx.AsyncClient(base_url=gateway.url) as http:  # each on a connection of its own
                body = {"model": "heed", "messages": [{"role": "user", "content": "Hello"}]}
                assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        await until(lambda: both_tell(gateway), "both workers are told of")

        text = (await gateway.http.get("/metrics")).text

    counted = [line for line in text.splitlines() if line.startswith("heed_answers_total{") and "answered" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == 20
    assert text.count("# TYPE heed_answers_total counter") == 1


async def both_tell(gateway: GatewayProcess) -> bool:
    text = (await gateway.http.get("/metrics")).text
    return 'worker="1"' in text and 'worker="2"' in text


def test_settings_that_are_wrong_are_told_once_and_end_all(tmp_path: Path) -> None:
    env = os.environ | {"HEED_WORKERS": "3", "HEED_PORT": "0", "HEED_HOST": "0.0.0.0", "HEED_VAR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", "serve"], env=env, capture_output=True, text=True, timeout=120)

    assert ended.returncode == 1
    assert ended.stderr.count("HEED_CLIENT_KEYS") == 1
