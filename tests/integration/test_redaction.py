"""Redaction, from the requests to what lies in Redis and on disk: no value gets there, and clients see their own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feedback import comparisons, completions, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.records import Vote
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import Script, ScriptedEngine

Json = dict[str, Any]
ASK = "I am ann@x.org, call +49 30 901820"
VALUES = ("ann@x.org", "eve@z.org", "901820", "4111")


@pytest.fixture
async def redacting(ledger: Ledger, tmp_path: Path) -> AsyncIterator[Ledger]:
    settings = LedgerSettings.model_validate(ledger.settings.model_dump() | {"redact": "email,phone,card"})
    redacting = open_ledger(settings)
    yield redacting
    await redacting.close()


@pytest.fixture
async def gateway(redacting: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(redacting, tmp_path, engine) as gateway:
        yield gateway


def answers(gateway: RunningGateway, *texts: str) -> None:
    gateway.engine.scripts.extend(Script(tokens=(text,)) for text in texts)


async def dump(ledger: Ledger) -> str:
    """Everything that is in Redis."""
    found: list[str] = []
    async for key in ledger.redis.scan_iter():
        match await ledger.redis.type(key):
            case "string":
                found.append(str(await ledger.redis.get(key)))
            case "hash":
                found.append(str(await ledger.redis.hgetall(key)))
            case "set":
                found.append(str(await ledger.redis.smembers(key)))
            case "list":
                found.append(str(await ledger.redis.lrange(key, 0, -1)))
            case "zset":
                found.append(str(await ledger.redis.zrange(key, 0, -1)))
        found.append(key)
    return "\n".join(found)


async def is_clean(ledger: Ledger) -> bool:
    text = await dump(ledger)
    return not [value for value in VALUES if value in text] and not [broken async for broken in violations(ledger)]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_sees_what_the_ledger_does_not_keep(
    gateway: RunningGateway, redacting: Ledger, stream: bool
) -> None:
    answers(gateway, "Hi ann@x.org and eve@z.org")

    reply = await gateway.chat(ASK, stream=stream, logprobs=True, metadata={"from": "ann@x.org"})

    (kept,), _ = await completions.page(redacting)
    assert "eve@z.org" in reply.text
    assert gateway.engine.bodies[-1]["messages"][0]["content"] == ASK
    assert kept.messages[0]["content"] == "I am <EMAIL_1>, call <PHONE_1>"
    assert "<EMAIL_2>" in kept.choices[0].message["content"]
    assert kept.choices[0].logprobs is None
    assert kept.redacted == {"email": 4, "phone": 1}
    assert await is_clean(redacting)
    assert await gateway.count('heed_redacted_total{kind="email"}') == 4


async def test_two_answers_to_one_prompt_become_a_pair_of_the_redacted_texts(
    gateway: RunningGateway, redacting: Ledger
) -> None:
    answers(gateway, "Dear ann@x.org", "Dear eve@z.org")
    good, bad = [(await gateway.chat(ASK)).json()["id"] for _ in range(2)]

    body = {"chosen": {"completion_id": good}, "rejected": {"completion_id": bad}}
    reply = await gateway.http.post("/v1/preferences", json=body)
    await pairs.settle(redacting)

    (pair,) = await pairs.get_many(redacting, await pairs.ids(redacting))
    assert reply.status_code == 200, reply.text
    assert pair.prompt[0]["content"] == "I am <EMAIL_1>, call <PHONE_1>"
    assert (pair.chosen["content"], pair.rejected["content"]) == ("Dear <EMAIL_1>", "Dear <EMAIL_2>")
    assert await is_clean(redacting)


async def test_what_a_voter_writes_is_redacted_and_voting_the_same_again_changes_nothing(
    gateway: RunningGateway, redacting: Ledger
) -> None:
    answers(gateway, "Write to eve@z.org")
    completion_id = (await gateway.chat(ASK)).json()["id"]
    body = {
        "completion_id": completion_id,
        "rating": "down",
        "voter": "ann",
        "reasons": ["not eve@z.org"],
        "comment": "4111 1111 1111 1111 is mine",
        "correction": "Please write to eve@z.org",
    }
    key = {"idempotency-key": "once"}

    first = await gateway.http.post("/v1/votes", json=body, headers=key)
    again = await gateway.http.post("/v1/votes", json=body)

    (vote,), _ = await votes.page(redacting)
    assert isinstance(vote, Vote)
    assert (vote.correction, vote.comment) == ("Please write to <EMAIL_2>", "<CARD_1> is mine")
    assert vote.reasons == ["not <EMAIL_2>"]
    assert (first.json()["changed"], again.json()["changed"]) == (True, False)
    assert first.json()["correction"] == vote.correction
    assert await is_clean(redacting)


async def test_a_correction_of_nothing_but_a_value_teaches_nothing(gateway: RunningGateway) -> None:
    answers(gateway, "eve@z.org")
    completion_id = (await gateway.chat("Who?")).json()["id"]

    reply = await gateway.http.post(
        "/v1/votes", json={"completion_id": completion_id, "rating": "down", "correction": "eva@z.org"}
    )

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "vote_empty")
    assert "personal data" in reply.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_comparison_shows_the_answers_and_keeps_them_redacted(
    gateway: RunningGateway, redacting: Ledger, stream: bool
) -> None:
    answers(gateway, "ann@x.org", "eve@z.org")
    body = {"messages": [{"role": "user", "content": ASK}], "stream": stream}

    reply = await gateway.http.post("/v1/comparisons", json=body)

    shown = json.loads(reply.text.split("\n\n")[-3][6:]) if stream else reply.json()
    kept = await comparisons.get(redacting, shown["id"])
    answered = await completions.get_many(redacting, [kept.a.completion_id, kept.b.completion_id])
    assert {shown[side]["message"]["content"] for side in "ab"} == {"ann@x.org", "eve@z.org"}
    assert {one.choices[0].message["content"] for one in answered.values()} == {"<EMAIL_1>", "<EMAIL_2>"}
    assert {one.prompt_hash for one in answered.values()} == {kept.prompt_hash}
    vote = await gateway.http.post(f"/v1/comparisons/{kept.id}/vote", json={"preferred": "a"})
    assert vote.status_code == 200
    assert await is_clean(redacting)


async def test_an_import_is_redacted_and_its_second_run_finds_it_there(
    gateway: RunningGateway, redacting: Ledger
) -> None:
    rows = [
        {"prompt": "From ann@x.org", "completion": "To eve@z.org", "label": True},
        {"prompt": "From ann@x.org", "completion": "To ann@x.org", "label": False},
    ]
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    headers = {"content-type": "application/jsonl"}

    first = await gateway.operator.post("/v1/import?format=kto", content=lines, headers=headers)
    again = await gateway.operator.post("/v1/import?format=kto", content=lines, headers=headers)

    assert (first.json()["imported"], first.json()["rejected"]) == (2, 0)
    assert (again.json()["duplicates"], again.json()["rejected"]) == (2, 0)
    assert await pairs.count(redacting) == 1
    assert await is_clean(redacting)


async def test_an_imported_comment_is_the_same_on_a_second_run(gateway: RunningGateway, redacting: Ledger) -> None:
    score = {
        "id": "s",
        "name": "user-feedback",
        "value": 0,
        "comment": "write to eve@z.org",
        "trace": {"id": "t", "input": "From ann@x.org", "output": "No"},
    }
    headers = {"content-type": "application/jsonl"}

    first, again = [
        (await gateway.operator.post("/v1/import?format=langfuse", content=json.dumps(score), headers=headers)).json()
        for _ in range(2)
    ]

    assert (first["imported"], first["rejects"]) == (1, [])
    assert (again["duplicates"], again["rejects"]) == (1, [])
    assert await is_clean(redacting)


async def test_an_uploaded_file_is_redacted_on_disk_and_its_other_lines_stay_as_they_came(
    gateway: RunningGateway, redacting: Ledger
) -> None:
    plain = b'{"prompt":  "Hi", "chosen": "yes", "rejected": "no"}\n'
    row = {"chosen": "Dear ann@x.org", "rejected": "eve@z.org", "prompt": "I am ann@x.org"}

    files = {"file": ("rows.jsonl", plain + json.dumps(row).encode() + b"\n")}
    reply = await gateway.operator.post("/v1/files", files=files, data={"purpose": "fine-tune"})

    kept = (await gateway.operator.get(f"/v1/files/{reply.json()['id']}/content")).content
    assert kept.startswith(plain)
    assert json.loads(kept.splitlines()[1]) == {
        "prompt": "I am <EMAIL_1>",
        "chosen": "Dear <EMAIL_1>",
        "rejected": "<EMAIL_2>",
    }
    assert reply.json()["bytes"] == len(kept)


async def test_metadata_given_later_is_redacted(gateway: RunningGateway, redacting: Ledger) -> None:
    completion_id = (await gateway.chat("Hi")).json()["id"]

    reply = await gateway.http.post(f"/v1/chat/completions/{completion_id}", json={"metadata": {"by": "ann@x.org"}})

    assert reply.json()["metadata"] == {"by": "<EMAIL_1>"}
    assert await is_clean(redacting)


async def test_the_queue_of_prompts_is_redacted_too(gateway: RunningGateway, redacting: Ledger) -> None:
    body = {"messages": [{"role": "user", "content": ASK}], "good": "Dear ann@x.org", "bad": "eve@z.org"}

    added = (await gateway.operator.post("/v1/prompts", json=body)).json()
    again = (await gateway.operator.post("/v1/prompts", json=body)).json()

    assert (added["good"], added["bad"]) == ("Dear <EMAIL_1>", "<EMAIL_2>")
    assert (again["id"], again["changed"]) == (added["id"], False)
    assert await is_clean(redacting)


async def test_an_answer_too_long_to_look_through_is_given_and_not_recorded(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    few = open_ledger(ledger.settings.model_copy(update={"redact": ("email",), "redact_characters": 20}))
    async with running_gateway(few, tmp_path, engine) as gateway:
        short = await gateway.chat("ann@x.org")
        long = await gateway.chat("I am ann@x.org, and I write more")
        comment = {"completion_id": short.json()["id"], "rating": "up", "comment": "I am ann@x.org, and I write more"}
        refused = await gateway.http.post("/v1/votes", json=comment)
    await few.close()

    assert "x-heed-recorded" not in short.headers
    assert (long.status_code, long.headers["x-heed-recorded"]) == (200, "no")
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "text_too_long")
    assert await is_clean(ledger)
