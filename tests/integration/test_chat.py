"""Chat through the gateway: what the client gets, what the ledger has, and what the engine is told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import completions
from feedback.connection import Ledger, open_ledger
from feedback.errors import CompletionUnknown
from feedback.records import prompt_digest
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.processes import free_port, ledger_server
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine


def data(event: str) -> dict[str, Any]:
    return dict(json.loads(event.removeprefix("data: ")))


async def test_an_answer_is_in_the_ledger_when_the_client_has_it(gateway: RunningGateway, ledger: Ledger) -> None:
    reply = await gateway.chat("How do I fly a kite?", temperature=0.5, seed=3, user="ann", metadata={"a": "b"})

    answer = reply.json()
    kept = await completions.get(ledger, answer["id"])
    assert answer["model"] == kept.adapter == "heed-base"
    assert answer["id"] == "chatcmpl-" + reply.headers["x-request-id"].removeprefix("req-")
    assert kept.choices[0].message == {"role": "assistant", "content": "a scripted answer"}
    assert kept.prompt_hash == prompt_digest([{"role": "user", "content": "How do I fly a kite?"}])
    assert kept.params == {"temperature": 0.5, "seed": 3}
    assert (kept.user, kept.metadata, kept.request_id) == ("ann", {"a": "b"}, reply.headers["x-request-id"])
    assert kept.usage is not None
    assert "x-heed-recorded" not in reply.headers


async def test_a_stream_is_in_the_ledger_before_its_done(gateway: RunningGateway, ledger: Ledger) -> None:
    body = {"model": "heed", "stream": True, "n": 2, "messages": [{"role": "user", "content": "q"}]}
    completion_id = ""
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                kept = await completions.get(ledger, completion_id)
            elif line:
                completion_id = data(line)["id"]

    assert [choice.message["content"] for choice in kept.choices] == ["a scripted answer"] * 2
    assert kept.choices[0].finish_reason == "stop"
    assert kept.usage == {"prompt_tokens": 7, "total_tokens": 13, "completion_tokens": 6}


async def test_a_client_sees_usage_only_if_it_asked_and_the_record_always(gateway: RunningGateway) -> None:
    without = await gateway.stream()
    with_usage = await gateway.stream(stream_options={"include_usage": True})

    assert [event for event in without if '"usage"' in event] == []
    assert data(with_usage[-2])["usage"]["prompt_tokens"] == 7
    assert with_usage[-2:][1] == without[-1] == "data: [DONE]"
    assert all(body["stream_options"] == {"include_usage": True} for body in gateway.engine.bodies[-2:])


async def test_store_false_is_not_recorded(gateway: RunningGateway, ledger: Ledger) -> None:
    reply = await gateway.chat(store=False)

    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, reply.json()["id"])
    voted = await gateway.http.post("/v1/votes", json={"completion_id": reply.json()["id"], "rating": "up"})
    assert voted.json()["error"]["code"] == "completion_not_found"
    assert "store" not in gateway.engine.bodies[-1]


async def test_a_text_completion_is_recorded_and_cannot_be_voted_on(gateway: RunningGateway) -> None:
    answer = (await gateway.http.post("/v1/completions", json={"model": "heed", "prompt": "Once"})).json()
    streamed = await gateway.openai.completions.create(model="heed", prompt="Once", stream=True)
    text = "".join([chunk.choices[0].text async for chunk in streamed])

    voted = await gateway.http.post("/v1/votes", json={"completion_id": answer["id"], "rating": "up"})

    assert answer["choices"][0]["text"] == text == "a scripted answer"
    assert voted.json()["error"]["code"] == "completion_not_chat"


async def test_streamed_tool_calls_are_put_together(gateway: RunningGateway, ledger: Ledger) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    gateway.engine.scripts.append(Script(tokens=("x",), finish="tool_calls", tool_calls=[call]))
    tools = [{"type": "function", "function": {"name": "look"}}]

    events = await gateway.stream(tools=tools)

    kept = await completions.get(ledger, data(events[0])["id"])
    assert kept.choices[0].message["tool_calls"] == [call]
    assert kept.tools == tools


async def test_a_client_that_leaves_a_stream_ends_the_engines_work(gateway: RunningGateway) -> None:
    gate = asyncio.Semaphore(1)
    gateway.engine.scripts.append(Script(tokens=["word "] * 50, gate=gate))
    body = {"model": "heed", "stream": True, "messages": [{"role": "user", "content": "q"}]}

    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        await anext(reply.aiter_lines())
        assert len(gateway.engine.running) == 1

    await until(lambda: gateway.engine.aborted and not gateway.engine.running, "the engine stopped")
    await until(
        lambda: _counted(gateway, 'heed_answers_total{model="heed",outcome="left",slot="live"}'), "it was counted"
    )


async def test_a_client_that_leaves_a_whole_answer_ends_the_engines_work(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(Script(gate=asyncio.Semaphore(0)))
    asking = asyncio.create_task(gateway.chat())
    await until(lambda: gateway.engine.running, "the engine works")

    asking.cancel()

    await until(lambda: gateway.engine.aborted and not gateway.engine.running, "the engine stopped")


@pytest.mark.parametrize("script", [Script(error_after=2), Script(breaks_after=2), Script(finish="abort")])
async def test_a_failure_after_the_first_byte_is_one_error_and_no_done(
    gateway: RunningGateway, ledger: Ledger, script: Script
) -> None:
    gateway.engine.scripts.append(script)

    events = await gateway.stream()

    assert [event for event in events if '"error"' in event] == events[-1:]
    assert data(events[-1])["error"]["code"] == "engine_failed"
    assert "data: [DONE]" not in events
    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, data(events[0])["id"])


async def test_a_whole_answer_is_asked_for_again_when_the_engine_breaks(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(Script(breaks_after=0))

    reply = await gateway.chat()

    assert reply.status_code == 200
    assert await gateway.count("heed_retries_total") == 1


async def test_an_aborted_whole_answer_is_a_failure_and_is_asked_for_again(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(Script(finish="abort"))
    once = await gateway.chat()
    gateway.engine.scripts.extend([Script(finish="abort")] * 3)
    thrice = await gateway.chat()

    assert once.json()["choices"][0]["finish_reason"] == "stop"
    assert (thrice.status_code, thrice.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_the_engines_refusals_reach_the_client_in_the_envelope(gateway: RunningGateway) -> None:
    too_long = await gateway.chat(max_tokens=5000)
    gateway.engine.scripts.append(Script(status=500, message="CUDA error in /opt/vllm"))
    failed = await gateway.chat()

    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "engine_failed")
    assert "/opt" not in failed.text


async def test_requests_wait_for_a_restarting_engine(gateway: RunningGateway) -> None:
    await gateway.engine.stop()
    asking = [asyncio.create_task(gateway.chat()), asyncio.create_task(gateway.chat(stream=True))]
    await until(lambda: _counted(gateway, 'heed_in_flight{model="heed",slot="live"}'), "requests wait")

    await gateway.engine.start()

    assert [reply.status_code for reply in await asyncio.gather(*asking)] == [200, 200]


async def test_an_engine_that_stays_away_is_503_with_retry_after(ledger: Ledger, tmp_path: Path) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, engine_wait_s=0.2) as gateway:
        await engine.stop()

        reply = await gateway.chat()

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert (await gateway.http.get("/readyz")).status_code == 503
        assert (await gateway.http.get("/readyz?chat=true")).status_code == 503
        assert (await gateway.http.get("/healthz")).status_code == 200


async def test_without_its_ledger_the_gateway_answers_and_says_so(tmp_path: Path, engine: ScriptedEngine) -> None:
    port = free_port()
    ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", ledger_timeout_s=2))
    with ledger_server(tmp_path / "ledger", port) as server:
        async with running_gateway(ledger, tmp_path, engine) as gateway:
            server.kill()
            server.wait()

            whole = await gateway.chat()
            events = await gateway.stream()
            voted = await gateway.http.post("/v1/votes", json={"completion_id": whole.json()["id"], "rating": "up"})

            assert (whole.status_code, whole.headers["x-heed-recorded"]) == (200, "no")
            assert events[-2:] == [": x-heed-recorded: no", "data: [DONE]"]
            assert (voted.status_code, voted.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert await gateway.count("heed_unrecorded_total") == 2
            assert (await gateway.http.get("/readyz")).status_code == 503
            await until(lambda: _is_told(gateway, "ledger"), "those who swap have seen it too")
            assert (await gateway.http.get("/readyz?chat=true")).status_code == 200
    await ledger.close()


async def _is_told(gateway: RunningGateway, trouble: str) -> bool:
    return trouble in (await gateway.http.get("/readyz?chat=true")).json()["trouble"]


async def test_only_known_parameters_reach_the_engine(gateway: RunningGateway) -> None:
    passed = await gateway.chat(top_k=5, response_format={"type": "text"}, service_tier="auto", user="ann")
    refused = await gateway.chat(cache_salt="x")

    sent = gateway.engine.bodies[-1]
    assert passed.status_code == 200
    assert (sent["top_k"], sent["response_format"], sent["model"]) == (5, {"type": "text"}, "heed-base")
    assert not {"service_tier", "user"} & sent.keys()
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


async def _counted(gateway: RunningGateway, sample: str) -> bool:
    return await gateway.count(sample) > 0


async def test_eight_clients_at_once_are_all_recorded(gateway: RunningGateway, ledger: Ledger) -> None:
    replies: list[httpx.Response] = await asyncio.gather(*(gateway.chat(f"q{i}") for i in range(64)))

    ids = [reply.json()["id"] for reply in replies]
    assert len(await completions.get_many(ledger, ids)) == 64
