"""API keys: made, used, revoked, by several gateways and without their ledger."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import credentials
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway, running_gateway, until
from tests.integration.test_commands import heed
from tests.integration.test_errors import expect_envelope
from tests.processes import free_port, ledger_server
from tests.scripted_engine import ScriptedEngine, scripted_engine

CHAT = "/v1/chat/completions"
ASK = {"model": "heed", "messages": [{"role": "user", "content": "How do I fly a kite?"}]}
UNKNOWN = "heed-00000000-" + "x" * 43
Json = dict[str, Any]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, require_keys=True) as gateway:
        yield gateway


async def made(gateway: RunningGateway, role: str = "client", **fields: Any) -> Json:
    reply = await gateway.operator.post("/v1/keys", json={"name": "the web shop", "role": role, **fields})
    assert reply.status_code == 200, reply.text
    key: Json = reply.json()
    return key


def bearing(key: str | Json) -> dict[str, str]:
    return {"authorization": f"Bearer {key if isinstance(key, str) else key['key']}"}


async def asked(gateway: RunningGateway, key: str | Json) -> httpx.Response:
    return await gateway.http.post(CHAT, json=ASK, headers=bearing(key))


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(gateway: RunningGateway, ledger: Ledger) -> None:
    expect_envelope(await gateway.http.post(CHAT, json=ASK), 401, "missing_api_key")

    key = await made(gateway)
    answered = await asked(gateway, key)
    (listed,) = (await gateway.operator.get("/v1/keys")).json()["data"]
    gone = await gateway.operator.delete(f"/v1/keys/{key['id']}")
    refused = await asked(gateway, key)

    assert answered.status_code == 200
    assert listed.items() >= {"role": "client", "name": "the web shop", "revoked": None}.items()
    assert key["key"].startswith(listed["prefix"] + "-")
    assert "key" not in listed
    assert gone.json() == {"id": key["id"], "object": "api_key.deleted", "deleted": True}
    expect_envelope(refused, 401, "invalid_api_key")
    assert (await gateway.operator.get(f"/v1/keys/{key['id']}")).json()["revoked"] >= key["created"]
    (kept,) = await ledger.redis.hvals(ledger.keys.credentials)
    assert key["key"].split("-", 2)[2] not in kept


async def test_when_a_key_was_last_used_is_told(gateway: RunningGateway) -> None:
    key, idle = await made(gateway), await made(gateway)
    began = int(time.time())

    await asked(gateway, key)

    async def used() -> object:
        listed = (await gateway.operator.get("/v1/keys")).json()["data"]
        return {each["id"]: each["last_used"] for each in listed}

    await until(lambda: _is_true(used, lambda times: times[key["id"]]), "its use was told")
    times: Any = await used()
    assert times[key["id"]] >= began
    assert times[idle["id"]] is None


async def test_a_key_that_differs_in_its_last_letter_is_not_known(gateway: RunningGateway) -> None:
    key = (await made(gateway))["key"]

    expect_envelope(await asked(gateway, key[:-1] + ("a" if key[-1] != "a" else "b")), 401, "invalid_api_key")
    expect_envelope(await asked(gateway, UNKNOWN), 401, "invalid_api_key")


async def test_a_key_made_or_revoked_on_one_gateway_counts_on_the_other_within_a_second(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine, require_keys=True) as other:
        key = await made(gateway)
        there = await asked(other, key)

        await gateway.operator.delete(f"/v1/keys/{key['id']}")
        began = time.monotonic()
        await until(
            lambda: _is_true(lambda: asked(other, key), lambda reply: reply.status_code == 401), "it is refused"
        )

        assert there.status_code == 200, "the first request with it asks the ledger at once"
        assert time.monotonic() - began < 1


async def test_roles_decide_what_is_read(gateway: RunningGateway) -> None:
    client, other, annotator = await made(gateway), await made(gateway), await made(gateway, "annotator")
    operator = await made(gateway, "operator")
    answer = (await asked(gateway, client)).json()["id"]
    await gateway.http.post(
        "/v1/votes", json={"completion_id": answer, "rating": "up", "voter": "ann"}, headers=bearing(annotator)
    )

    async def status(key: Json, path: str, method: str = "GET") -> int:
        return (await gateway.http.request(method, path, headers=bearing(key))).status_code

    seen = {
        path: [await status(key, path) for key in (client, other, annotator, operator)]
        for path in (
            f"{CHAT}/{answer}",
            CHAT,
            "/v1/votes",
            f"/v1/votes?completion_id={answer}",
            "/v1/prompts",
            "/v1/keys",
        )
    }

    assert seen == {
        f"{CHAT}/{answer}": [200, 404, 200, 200],
        CHAT: [403, 403, 200, 200],
        "/v1/votes": [403, 403, 200, 200],
        f"/v1/votes?completion_id={answer}": [200, 200, 200, 200],
        "/v1/prompts": [403, 403, 403, 200],
        "/v1/keys": [403, 403, 403, 200],
    }
    assert await status(annotator, f"{CHAT}/{answer}", "DELETE") == 404, "reading is not owning"
    assert await status(client, f"{CHAT}/{answer}", "DELETE") == 200


async def test_an_annotator_judges_for_others_without_learning_who_was_who(gateway: RunningGateway) -> None:
    await gateway.operator.post("/v1/prompts", json={"messages": ASK["messages"]})
    annotator = bearing(await made(gateway, "annotator"))

    drawn = (await gateway.http.post("/v1/comparisons/next", json={"voter": "ann"}, headers=annotator)).json()
    listed = (await gateway.http.get(CHAT, headers=annotator)).json()["data"]
    vote = {"preferred": "a", "voter": "ann"}
    voted = await gateway.http.post(f"/v1/comparisons/{drawn['id']}/vote", json=vote, headers=annotator)

    assert drawn["a"].keys() == {"message", "finish_reason"}
    assert listed == [], "the sides of a blind comparison are not listed"
    assert voted.json()["voter"] == "ann"


async def test_known_keys_go_on_working_while_the_ledger_is_down(tmp_path: Path, engine: ScriptedEngine) -> None:
    port = free_port()
    ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", ledger_timeout_s=2))
    with ledger_server(tmp_path / "ledger", port) as server:
        async with running_gateway(ledger, tmp_path, engine, require_keys=True) as gateway:
            key, revoked = await made(gateway), await made(gateway)
            await gateway.operator.delete(f"/v1/keys/{revoked['id']}")
            assert (await asked(gateway, key)).status_code == 200
            server.kill()
            server.wait()

            answered = await asked(gateway, key)

            assert (answered.status_code, answered.headers["x-heed-recorded"]) == (200, "no")
            expect_envelope(await asked(gateway, revoked), 401, "invalid_api_key")
            expect_envelope(await asked(gateway, UNKNOWN), 401, "invalid_api_key")
            refused = await gateway.operator.post("/v1/keys", json={"name": "ann"})
            expect_envelope(refused, 503, "ledger_unavailable")
    await ledger.close()


async def test_where_no_key_is_asked_for_a_revoked_one_is_still_refused(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        key = await made(gateway)
        before = await asked(gateway, key)
        await gateway.operator.delete(f"/v1/keys/{key['id']}")

        assert (before.status_code, (await gateway.chat()).status_code) == (200, 200)
        assert (await asked(gateway, "whatever a client sends by habit")).status_code == 200
        expect_envelope(await asked(gateway, key), 401, "invalid_api_key")


async def test_what_cannot_be_a_key_is_refused_in_words(gateway: RunningGateway) -> None:
    nameless = await gateway.operator.post("/v1/keys", json={"role": "client"})
    odd = await gateway.operator.post("/v1/keys", json={"name": "ann", "role": "king"})

    expect_envelope(nameless, 400, "missing_required_parameter", "name")
    expect_envelope(odd, 400, "invalid_value", "role")
    expect_envelope(await gateway.operator.get("/v1/keys/key-1"), 404, "key_not_found")
    expect_envelope(await gateway.operator.delete("/v1/keys/key-1"), 404, "key_not_found")
    expect_envelope(await gateway.http.post("/v1/keys", json={"name": "ann"}), 401, "missing_api_key")


async def test_the_command_makes_lists_limits_and_revokes(gateway: RunningGateway, ledger: Ledger) -> None:
    code, shown = await heed(gateway, "keys", "create", "the web shop", "--requests-per-minute", "60")
    key = shown.split()[-1]
    ((credential, _),) = await credentials.listed(ledger)
    answered = await asked(gateway, key)
    limited = await heed(gateway, "keys", "limit", credential.id, "--tokens-per-minute", "9000")
    listed = await heed(gateway, "keys")
    revoked = await heed(gateway, "keys", "revoke", credential.id)

    assert (code, answered.status_code) == (0, 200)
    assert answered.headers["x-ratelimit-limit-requests"] == "60"
    assert limited == (0, f"{credential.id}: default requests and 9,000 tokens a minute.\n")
    assert credential.id in listed[1]
    assert "the web shop" in listed[1]
    assert key not in listed[1]
    assert revoked == (0, f"{credential.id} is revoked.\n")
    expect_envelope(await asked(gateway, key), 401, "invalid_api_key")
    assert (await heed(gateway, "keys", "list"))[1].count(credential.id) == 1
    code, shown = await heed(gateway, "keys", "revoke", "key-1")
    assert (code, "no key has the id" in shown) == (1, True)


async def _is_true(ask: Any, holds: Any) -> bool:
    return bool(holds(await ask()))
