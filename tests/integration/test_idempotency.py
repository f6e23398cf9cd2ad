"""Idempotency keys over HTTP: a retry gets the same answer, and nothing happens twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback import idempotency, votes
from feedback.connection import Ledger, open_ledger
from feedback.errors import IdempotencyConflict, IdempotencyInProgress, LedgerUnavailable
from feedback.records import Vote
from tests.gateways import RunningGateway, running_gateway
from tests.integration.test_ledger import recorded
from tests.processes import free_port
from tests.scripted_engine import scripted_engine

KEY = "5b0c4d9e-retry"
Json = dict[str, Any]


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, ready=False) as gateway:
        yield gateway


async def post(gateway: RunningGateway, body: Json, key: str | None = KEY, path: str = "/v1/votes") -> httpx.Response:
    return await gateway.http.post(path, json=body, headers={} if key is None else {"Idempotency-Key": key})


async def ballot(ledger: Ledger, **fields: Any) -> Json:
    asked = await recorded(ledger, "q", "one", "two")
    return {"completion_id": asked.id, "rating": "up", "voter": "ann", **fields}


async def stored(ledger: Ledger) -> list[str]:
    """Everything idempotency keeps, names and values."""
    names = [name async for name in ledger.redis.scan_iter(ledger.keys.idempotency("*"))]
    return [*names, *[str(await ledger.redis.get(name)) for name in names]]


async def test_the_same_key_and_body_get_the_same_answer_without_acting_again(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    body = await ballot(ledger, comment="fine", reasons=["short"])
    first = await post(gateway, body)
    # In between the voter has changed their mind: a late retry must not undo that.
    await post(gateway, body | {"rating": "down"}, key=None)

    again = await post(gateway, body)

    assert (first.status_code, first.json()["changed"]) == (200, True)
    assert (again.status_code, again.content) == (200, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    ((standing,), _) = await votes.page(ledger)
    assert isinstance(standing, Vote)
    assert standing.rating == "down"
    assert await gateway.count('heed_votes_total{kind="up"}') == 1


async def test_spaces_and_the_order_of_fields_do_not_make_another_body(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger)
    headers = {"Idempotency-Key": KEY, "content-type": "application/json"}
    text = "{ " + ", ".join(f'"{name}": "{body[name]}"' for name in reversed(body)) + " }"

    first = await post(gateway, body)
    again = await gateway.http.post("/v1/votes", content=text, headers=headers)

    assert again.content == first.content


async def test_the_same_key_with_another_body_is_a_conflict(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger)
    await post(gateway, body)

    other = await post(gateway, body | {"rating": "down"})

    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (409, "idempotency_conflict", "Idempotency-Key")
    ((standing,), _) = await votes.page(ledger)
    assert isinstance(standing, Vote)
    assert standing.rating == "up"


async def test_a_key_belongs_to_one_caller_and_one_route(ledger: Ledger, tmp_path: Path) -> None:
    body = await ballot(ledger, voter=None)
    del body["voter"]
    between = {"chosen": {"completion_id": body["completion_id"]}}
    between["rejected"] = {"completion_id": body["completion_id"], "choice": 1}
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine, ready=False, client_keys=("ann", "bob")) as gateway,
    ):
        ann, bob = ({"authorization": f"Bearer {name}", "Idempotency-Key": KEY} for name in ("ann", "bob"))
        replies = [
            await gateway.http.post("/v1/votes", json=body, headers=ann),
            await gateway.http.post("/v1/votes", json=body | {"rating": "down"}, headers=bob),
            await gateway.http.post("/v1/preferences", json=between, headers=ann),
            await gateway.http.post("/v1/preferences", json=between, headers=ann),
        ]

    assert [reply.status_code for reply in replies] == [200] * 4
    assert replies[2].content == replies[3].content
    assert [opinion.voter for opinion in (await votes.page(ledger))[0]].count(replies[0].json()["voter"]) == 2


async def test_of_many_requests_at_one_moment_one_acts(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger)

    replies = await asyncio.gather(*(post(gateway, body) for _ in range(16)))

    answered = [reply for reply in replies if reply.status_code == 200]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len({reply.content for reply in answered}) == 1
    assert {(reply.status_code, reply.json()["error"]["code"]) for reply in refused} <= {
        (409, "idempotency_in_progress")
    }
    assert await gateway.count('heed_votes_total{kind="up"}') == 1
    assert (await post(gateway, body)).content == answered[0].content


async def test_who_comes_while_the_first_is_being_answered_is_told_so(ledger: Ledger) -> None:
    asked = {"caller": "ann", "route": "POST /v1/votes", "key": KEY, "body": "digest"}
    first = await idempotency.claim(ledger, **asked)

    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(ledger, **asked)
    assert 0 < await ledger.redis.ttl(first.key) <= idempotency.CLAIM_TIMEOUTS * ledger.settings.ledger_timeout_s

    await idempotency.free(ledger, first)
    second = await idempotency.claim(ledger, **asked)
    await idempotency.keep(ledger, first, "too late: the claim was lost")
    await idempotency.keep(ledger, second, "the answer")
    assert (await idempotency.claim(ledger, **asked)).answer == "the answer"
    assert 86_000 < await ledger.redis.ttl(first.key) <= 86_400


async def test_a_retry_need_not_wait_for_a_request_whose_end_the_ledger_was_not_told(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"caller": "ann", "route": "POST /v1/votes", "key": KEY, "body": "digest"}
    left = await idempotency.claim(ledger, **asked)
    nowhere = open_ledger(ledger.settings.model_copy(update={"ledger_url": f"redis://127.0.0.1:{free_port()}/0"}))
    with pytest.raises(LedgerUnavailable):
        await idempotency.free(nowhere, left)
    await nowhere.close()

    with pytest.raises(IdempotencyConflict):
        await idempotency.claim(ledger, **asked | {"body": "another"})
    again = await idempotency.claim(ledger, **asked)
    with pytest.raises(IdempotencyInProgress):
        await idempotency.claim(ledger, **asked)
    await idempotency.keep(ledger, left, "too late: the key was taken over")
    await idempotency.free(ledger, again)

    assert again.answer is None
    await idempotency.claim(ledger, **asked)
    monkeypatch.setattr(idempotency, "_PROCESS", "another process")
    with pytest.raises(IdempotencyInProgress):  # what others are at work on cannot be known
        await idempotency.claim(ledger, **asked)


async def test_a_refusal_is_the_answer_too(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger, choice=7)

    first, again = await post(gateway, body), await post(gateway, body)

    assert (first.status_code, first.json()["error"]["code"]) == (400, "choice_not_found")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"


async def test_an_answer_that_invites_another_try_is_forgotten(
    gateway: RunningGateway, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    body = await ballot(ledger)
    with monkeypatch.context() as broken:
        broken.setattr("feedback.votes.cast", fail)
        failed = await post(gateway, body)
    again = await post(gateway, body)

    assert (failed.status_code, again.status_code) == (500, 200)
    assert again.json()["changed"]


async def test_a_key_has_1_to_255_characters(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger)

    longest, too_long, empty = [await post(gateway, body, key) for key in ("k" * 255, "k" * 256, "")]

    assert longest.status_code == 200
    for reply in (too_long, empty):
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "idempotency_key_invalid")


async def test_neither_key_nor_body_are_stored(gateway: RunningGateway, ledger: Ledger) -> None:
    body = await ballot(ledger, comment="my secret", reasons=["my secret"], correction="my secret", voter="my secret")

    first, again = await post(gateway, body, "my secret"), await post(gateway, body, "my secret")

    assert (first.status_code, again.content) == (200, first.content)
    kept = await stored(ledger)
    assert len(kept) == 2
    assert "my secret" not in "".join(kept)


async def test_the_key_is_in_the_description_of_the_api(gateway: RunningGateway) -> None:
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]

    for path in ("/v1/votes", "/v1/preferences"):
        assert "Idempotency-Key" in [parameter["name"] for parameter in paths[path]["post"]["parameters"]]
        assert paths[path]["post"]["requestBody"]["content"].keys() == {"application/json"}
