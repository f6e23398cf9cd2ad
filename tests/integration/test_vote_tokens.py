"""Vote tokens: a browser votes on the one answer it was given, and on nothing else."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import votes
from feedback.connection import Ledger
from feedback.records import Vote
from serve.errors import Refused
from serve.vote_tokens import HEADER, VoteTokens
from tests.gateways import RunningGateway, running_gateway
from tests.integration.test_errors import expect_envelope
from tests.integration.test_keys import ASK, CHAT, bearing, made
from tests.scripted_engine import ScriptedEngine, scripted_engine

PAGE = "https://chat.example.org"
Json = dict[str, Any]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, require_keys=True, cors_origins=(PAGE,)) as gateway:
        yield gateway


@pytest.fixture
async def server(gateway: RunningGateway) -> dict[str, str]:
    """Headers of the product's server, which has a key."""
    return bearing(await made(gateway))


async def answered(gateway: RunningGateway, server: dict[str, str], **fields: Any) -> tuple[str, str]:
    """An answer's id and its token."""
    reply = await gateway.http.post(CHAT, json=ASK | fields, headers=server)
    return "chatcmpl-" + reply.headers["x-request-id"].removeprefix("req-"), reply.headers[HEADER]


async def voted(gateway: RunningGateway, token: str, answer: str, **fields: Any) -> httpx.Response:
    body = {"completion_id": answer, "rating": "up", **fields}
    return await gateway.http.post("/v1/votes", json=body, headers={HEADER: token})


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_token_comes_with_an_answer_and_votes_changes_and_withdraws(
    gateway: RunningGateway, server: dict[str, str], ledger: Ledger, is_stream: bool
) -> None:
    answer, token = await answered(gateway, server, stream=is_stream)
    own = {HEADER: token}

    first = await voted(gateway, token, answer)
    second = await voted(gateway, token, answer, rating="down", correction="run faster")
    read = await gateway.http.get(f"/v1/votes/{first.json()['id']}", headers=own)
    ((kept,), _) = await votes.page(ledger)
    gone = await gateway.http.delete(f"/v1/votes/{first.json()['id']}", headers=own)

    assert (first.status_code, second.status_code, read.status_code) == (200, 200, 200)
    assert first.json()["voter"] == answer.replace("chatcmpl-", "reader-")
    assert isinstance(kept, Vote)
    assert (kept.id, kept.rating, kept.correction) == (first.json()["id"], "down", "run faster")
    assert kept.key == (await gateway.operator.get("/v1/keys")).json()["data"][0]["id"], "as the key that asked counts"
    assert gone.json()["deleted"] is True
    assert (await votes.page(ledger))[0] == []


async def test_the_stored_answer_has_one_too(gateway: RunningGateway, server: dict[str, str]) -> None:
    answer, _ = await answered(gateway, server)

    stored = (await gateway.http.get(f"{CHAT}/{answer}", headers=server)).json()

    assert (await voted(gateway, stored["vote_token"], answer)).status_code == 200


async def test_the_users_name_is_the_voters_and_no_other_is_taken(
    gateway: RunningGateway, server: dict[str, str]
) -> None:
    answer, token = await answered(gateway, server, user="ann")

    own = await voted(gateway, token, answer)
    named = await voted(gateway, token, answer, voter="ann")
    other = await voted(gateway, token, answer, voter="bob")

    assert own.json()["voter"] == "ann"
    assert named.json()["id"] == own.json()["id"]
    expect_envelope(other, 403, "vote_token_mismatch", "voter")


async def test_a_token_is_for_one_answer_and_one_voter(gateway: RunningGateway, server: dict[str, str]) -> None:
    first, token = await answered(gateway, server)
    second, _ = await answered(gateway, server)
    body = {"completion_id": first, "rating": "up", "voter": "ann"}
    anns = (await gateway.http.post("/v1/votes", json=body, headers=server)).json()["id"]

    refused = await voted(gateway, token, second)

    expect_envelope(refused, 403, "vote_token_mismatch", "completion_id")
    expect_envelope(await gateway.http.get(f"/v1/votes/{anns}", headers={HEADER: token}), 404, "vote_not_found")
    expect_envelope(await gateway.http.delete(f"/v1/votes/{anns}", headers={HEADER: token}), 404, "vote_not_found")
    preference = {"chosen": {"completion_id": first}, "rejected": {"completion_id": second}}
    for method, path, sent in (
        ("POST", CHAT, ASK),
        ("GET", f"{CHAT}/{first}", None),
        ("POST", "/v1/preferences", preference),
        ("GET", "/v1/votes", None),
        ("GET", f"/v1/votes/{anns}/lineage", None),
    ):
        reply = await gateway.http.request(method, path, json=sent, headers={HEADER: token})
        expect_envelope(reply, 401, "missing_api_key")


@pytest.mark.parametrize("forged", ["", ".", "x", "x.y", "a.b.c", "e30.e30", "é", "=" * 3000])
async def test_what_was_not_signed_here_is_refused(gateway: RunningGateway, forged: str) -> None:
    reply = await gateway.http.post(
        "/v1/votes", json={"completion_id": "chatcmpl-1", "rating": "up"}, headers={HEADER.encode(): forged.encode()}
    )

    expect_envelope(reply, 401, "invalid_vote_token")


async def test_another_answer_cannot_be_written_into_a_token(gateway: RunningGateway, server: dict[str, str]) -> None:
    first, token = await answered(gateway, server)
    second, _ = await answered(gateway, server)
    payload, mac = token.split(".")
    changed = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).replace(first.encode(), second.encode())

    reply = await voted(gateway, f"{base64.urlsafe_b64encode(changed).decode().rstrip('=')}.{mac}", second)

    expect_envelope(reply, 401, "invalid_vote_token")


async def test_a_retry_with_an_idempotency_key_acts_once(gateway: RunningGateway, server: dict[str, str]) -> None:
    answer, token = await answered(gateway, server)
    headers = {HEADER: token, "idempotency-key": "retry-1"}
    body = {"completion_id": answer, "rating": "up"}

    first = await gateway.http.post("/v1/votes", json=body, headers=headers)
    again = await gateway.http.post("/v1/votes", json=body, headers=headers)

    assert (first.content, again.headers["idempotent-replayed"]) == (again.content, "true")


async def test_gateways_know_each_others_tokens(
    gateway: RunningGateway, server: dict[str, str], ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    answer, token = await answered(gateway, server)

    async with running_gateway(ledger, tmp_path, engine, require_keys=True) as other:
        assert (await voted(other, token, answer)).status_code == 200


async def test_what_cannot_be_voted_on_has_no_token(gateway: RunningGateway, server: dict[str, str]) -> None:
    unstored = await gateway.http.post(CHAT, json=ASK | {"store": False}, headers=server)
    text = await gateway.http.post("/v1/completions", json={"model": "heed", "prompt": "q"}, headers=server)
    compared = await gateway.http.post("/v1/comparisons", json=ASK, headers=server)
    unnameable = await gateway.http.post(CHAT, json=ASK | {"user": "x" * 201}, headers=server)

    replies = (unstored, text, compared, unnameable)
    assert [(reply.status_code, HEADER in reply.headers) for reply in replies] == [(200, False)] * 4


async def test_without_a_lifetime_there_are_no_tokens(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine, vote_token_hours=0) as gateway:
        reply = await gateway.chat()
        stored = await gateway.http.get(f"{CHAT}/{reply.json()['id']}")

    assert HEADER not in reply.headers
    assert stored.json()["vote_token"] is None


def test_a_token_expires_and_the_secret_is_needed() -> None:
    now = 1000.0
    tokens = VoteTokens(1, lambda: now)
    assert tokens.sign("chatcmpl-1", "key-1", None) is None, "nothing is signed before the secret is known"
    tokens.secret = b"secret"
    token = tokens.sign("chatcmpl-1", "key-1", "ann")
    assert token is not None
    other = VoteTokens(1, lambda: now)
    other.secret = b"another"

    assert tokens.read(token)[:3] == ("chatcmpl-1", "ann", "key-1")
    with pytest.raises(Refused, match="not one that this gateway signed"):
        other.read(token)
    now += 3601
    with pytest.raises(Refused, match="expired"):
        tokens.read(token)


async def test_a_page_of_a_named_origin_may_vote_and_read_what_it_needs(
    gateway: RunningGateway, server: dict[str, str]
) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": f"content-type,{HEADER}"}
    allowed = await gateway.http.options("/v1/votes", headers={"origin": PAGE, **asks})
    stranger = await gateway.http.options("/v1/votes", headers={"origin": "https://evil.example", **asks})
    answer = await gateway.http.post(CHAT, json=ASK, headers={"origin": PAGE, **server})
    refused = await gateway.http.post("/v1/votes", json={}, headers={"origin": PAGE})
    elsewhere = await gateway.http.post(CHAT, json=ASK, headers={"origin": "https://evil.example", **server})

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert HEADER in allowed.headers["access-control-allow-headers"].lower()
    assert "x-request-id" in allowed.headers
    assert "access-control-allow-origin" not in stranger.headers
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert HEADER in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert refused.headers["access-control-allow-origin"] == PAGE, "a page may read why"
    assert "access-control-allow-origin" not in elsewhere.headers


async def test_without_the_setting_no_page_is_let_in(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        preflight = {"origin": PAGE, "access-control-request-method": "POST"}
        asked = await gateway.http.options("/v1/votes", headers=preflight)
        answer = await gateway.http.post(CHAT, json=ASK, headers={"origin": PAGE})

    assert asked.status_code == 405
    assert not [name for reply in (asked, answer) for name in reply.headers if name.startswith("access-control")]
