"""Failures: one envelope, a status and a stable code for each, an id on every response, and nothing private told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.connection import Ledger
from feedback.errors import FeedbackError
from serve.errors import REFUSALS
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "heed", "messages": [{"role": "user", "content": "my secret"}]}


def test_every_refusal_of_the_ledger_has_an_http_meaning() -> None:
    assert set(FeedbackError.__subclasses__()) == set(REFUSALS)


def expect_envelope(reply: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = reply.json()["error"]
    assert reply.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert reply.headers["x-request-id"].startswith("req-")
    assert "my secret" not in reply.text
    assert "Traceback" not in reply.text
    assert "heed:{" not in reply.text


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "my secret"}, "invalid_type", "messages"),
        ({"messages": [{"role": "user", "content": {"my secret": 1}}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"content": "my secret"}]}, "missing_required_parameter", "messages[0].role"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 1000}, "invalid_value", "n"),
        ({"stop": 5}, "invalid_type", "stop"),
        ({"model": None}, "invalid_type", "model"),
        ({"stream_options": {"include_usage": 1}}, "invalid_type", "stream_options.include_usage"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"lora_path": "/x"}, "unknown_parameter", "lora_path"),
    ],
)
async def test_a_chat_of_the_wrong_shape_names_the_parameter(
    gateway: RunningGateway, fields: dict[str, Any], code: str, param: str
) -> None:
    reply = await gateway.http.post(CHAT, json=ASK | fields)

    expect_envelope(reply, 400, code, param)


async def test_bad_bodies_unknown_routes_and_wrong_methods_are_told_apart(gateway: RunningGateway) -> None:
    json_type = {"content-type": "application/json"}
    http = gateway.http

    expect_envelope(await http.post(CHAT, content=b"{my secret", headers=json_type), 400, "invalid_json")
    expect_envelope(await http.post(CHAT, content=b"[]", headers=json_type), 400, "invalid_type")
    expect_envelope(await http.post("/v1/votes", content=b"{my secret", headers=json_type), 400, "invalid_json")
    expect_envelope(
        await http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type"
    )
    expect_envelope(await http.post(CHAT, data={"a": "b"}), 415, "unsupported_media_type")
    expect_envelope(await http.get("/v1/nothing"), 404, "route_not_found")
    expect_envelope(await http.put("/v1/votes", json={}), 405, "method_not_allowed")
    expect_envelope(await http.post(CHAT, json=ASK | {"model": "gpt-9"}), 404, "model_not_found", "model")
    vote = {"completion_id": "chatcmpl-none", "rating": "up"}
    expect_envelope(await http.post("/v1/votes", json=vote), 404, "completion_not_found", "completion_id")
    expect_envelope(await http.post("/v1/votes", json=vote | {"rating": "ok"}), 400, "invalid_value", "rating")
    expect_envelope(await http.post("/v1/votes", json=vote | {"colour": 1}), 400, "unknown_parameter", "colour")
    expect_envelope(await http.get("/v1/votes", params={"limit": "x"}), 400, "invalid_type", "limit")


@pytest.mark.parametrize("path", ["/v1/votes", "/v1/preferences"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_required_parameter"),
        (b"{my secret", "invalid_json"),
        (b'["my secret"]', "invalid_type"),
        (b"{}", "missing_required_parameter"),
    ],
)
async def test_a_vote_without_fastapis_reading_is_refused_as_one_with_it(
    gateway: RunningGateway, path: str, body: bytes, code: str
) -> None:
    reply = await gateway.http.post(path, content=body, headers={"content-type": "application/json"})

    assert reply.json()["error"]["param"] in (None, "completion_id", "chosen")
    expect_envelope(reply, 400, code, reply.json()["error"]["param"])


async def test_a_body_over_the_limit_is_refused_however_it_comes(ledger: Ledger, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 1024

    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, body_limit_mb=0.002) as gateway:
        whole = await gateway.http.post(CHAT, json=ASK | {"user": "x" * 4096})
        headers = {"content-type": "application/json"}
        chunked = await gateway.http.post(CHAT, content=chunks(), headers=headers)
        vote = await gateway.http.post("/v1/votes", content=chunks(), headers=headers)

        for reply in (whole, chunked, vote):
            expect_envelope(reply, 413, "body_too_large")


async def test_keys_decide_who_may_do_what(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, client_keys=("ann-key",)) as gateway,
    ):
        ann, wrong = {"authorization": "Bearer ann-key"}, {"authorization": "Bearer other"}

        expect_envelope(await gateway.http.post(CHAT, json=ASK), 401, "missing_api_key")
        expect_envelope(await gateway.http.post(CHAT, json=ASK, headers=wrong), 401, "invalid_api_key")
        expect_envelope(await gateway.http.get("/v1/adapters"), 401, "missing_api_key")
        expect_envelope(await gateway.http.get("/v1/adapters", headers=ann), 403, "operator_key_required")
        answered = await gateway.http.post(CHAT, json=ASK, headers=ann)
        vote = {"completion_id": answered.json()["id"], "rating": "up"}
        voted = await gateway.http.post("/v1/votes", json=vote, headers=ann)
        assert (answered.status_code, voted.status_code) == (200, 200)
        assert voted.json()["voter"].startswith("key-")
        assert (await gateway.operator.post(CHAT, json=ASK)).status_code == 200
        assert (await gateway.operator.get("/v1/adapters")).status_code == 200


async def test_a_clients_key_finds_what_it_asked_for_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, client_keys=("ann-key", "bob-key")) as gateway,
    ):
        ann, bob = ({"authorization": f"Bearer {name}-key"} for name in ("ann", "bob"))
        address = f"{CHAT}/{(await gateway.http.post(CHAT, json=ASK, headers=ann)).json()['id']}"

        expect_envelope(await gateway.http.get(address, headers=bob), 404, "completion_not_found", "completion_id")
        expect_envelope(await gateway.http.delete(address, headers=bob), 404, "completion_not_found", "completion_id")
        expect_envelope(await gateway.http.get(CHAT, headers=ann), 403, "operator_key_required")
        expect_envelope(await gateway.http.get("/v1/votes", headers=ann), 403, "operator_key_required")
        assert (await gateway.http.get(address, headers=ann)).status_code == 200
        assert (await gateway.operator.get(address)).status_code == 200
        assert len((await gateway.operator.get(CHAT)).json()["data"]) == 1
        assert (await gateway.http.delete(address, headers=ann)).status_code == 200


async def test_without_keys_only_names_of_this_machine_are_answered(gateway: RunningGateway) -> None:
    rebound = await gateway.http.get("/v1/models", headers={"host": "evil.example:8000"})
    local = await gateway.http.get("/v1/models", headers={"host": "LOCALHOST:8000"})

    expect_envelope(rebound, 403, "host_not_allowed")
    assert local.status_code == 200


async def test_operator_calls_need_the_key_even_on_loopback(gateway: RunningGateway) -> None:
    for method, path in (
        ("GET", "/v1/adapters"),
        ("POST", "/v1/adapters/rollback"),
        ("POST", "/v1/adapters/heed-base/promote"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/pairs"),
        ("GET", "/v1/stats"),
        ("POST", "/v1/import?format=trl"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("DELETE", "/v1/files/file-1"),
        ("DELETE", "/v1/voters/ann"),
        ("DELETE", "/v1/users/ann"),
    ):
        expect_envelope(await gateway.http.request(method, path), 401, "missing_api_key")


async def test_a_bug_is_told_without_a_traceback(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("my secret")

    monkeypatch.setattr("serve.routes.models._model", fail)

    reply = await gateway.http.get("/v1/models")

    expect_envelope(reply, 500, "internal_error")


async def test_every_response_has_an_id_of_its_own(gateway: RunningGateway) -> None:
    replies = await asyncio.gather(*(gateway.http.get("/healthz") for _ in range(10)))

    assert len({reply.headers["x-request-id"] for reply in replies}) == 10
