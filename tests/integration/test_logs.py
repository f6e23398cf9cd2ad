"""The log: which request, how it ended, and never what anybody wrote."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from feedback.connection import Ledger
from serve.logs import JsonLines, Lines, access
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

PROMPT = "my-secret-prompt"


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture(params=[JsonLines, Lines])
def log(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(request.param())
    # Not the root's: the clients of the test log in this process too, and the addresses they ask.
    loggers = [logging.getLogger(name) for name in ("heed", "uvicorn")]
    levels = [(logger, logger.level) for logger in (*loggers, access)]
    for logger, _ in levels:
        logger.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    yield written
    for logger in loggers:
        logger.removeHandler(handler)
    for logger, level in levels:
        logger.setLevel(level)


async def provoke(gateway: RunningGateway, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All sorts of ends, each with the prompt in it; the requests' ids."""
    answer = await gateway.chat(PROMPT)
    engine.scripts.append(Script(breaks_after=1))
    broken = await gateway.chat(PROMPT, stream=True)
    invalid = await gateway.chat(PROMPT, temperature=PROMPT)
    vote = {"completion_id": answer.json()["id"], "rating": "down", "voter": PROMPT, "correction": PROMPT}
    voted = await gateway.http.post("/v1/votes", json=vote, headers={"authorization": f"Bearer {OPERATOR}"})

    def fail(*_: object) -> None:
        try:
            raise ValueError(PROMPT)
        except ValueError as error:
            raise RuntimeError(f"about {PROMPT}") from error

    monkeypatch.setattr("serve.routes.models._model", fail)
    failed = await gateway.http.get("/v1/models")
    erased = await gateway.operator.delete(f"/v1/voters/{PROMPT}")
    replies = [answer, broken, invalid, voted, failed, erased]
    assert [reply.status_code for reply in replies] == [200, 200, 400, 200, 500, 200]
    return [reply.headers["x-request-id"] for reply in replies]


async def test_no_line_holds_what_anybody_wrote_or_a_key(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        ids = await provoke(gateway, engine, monkeypatch)

    written = log.getvalue()
    assert all(request_id in written for request_id in ids)
    assert "builtins.RuntimeError" in written, "a failure is told by its kind"
    assert "builtins.ValueError" in written, "and by what it came of"
    assert "routes/models.py" in written, "and by its place"
    assert PROMPT not in written
    assert OPERATOR not in written


async def test_json_lines_are_one_object_each_with_the_end_of_every_request(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine, log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        ids = await provoke(gateway, engine, monkeypatch)

    if not log.getvalue().startswith("{"):
        assert "POST /v1/chat/completions 200 in " in log.getvalue()
        return
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.getvalue().splitlines()]
    ends = {line["request_id"]: line for line in lines if line["logger"] == "heed.access"}
    told = [(ends[each]["method"], ends[each]["route"], ends[each]["status"]) for each in ids]
    assert told == [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 400),
        ("POST", "/v1/votes", 200),
        ("GET", "/v1/models", 500),
        ("DELETE", "/v1/voters/{voter:path}", 200),
    ]
    assert all(end["duration_ms"] > 0 for end in ends.values())
    assert ends[ids[3]]["key"].startswith("key-")
    assert any(line["level"] == "error" and line["request_id"] == ids[4] for line in lines)
