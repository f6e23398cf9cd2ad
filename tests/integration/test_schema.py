"""Random requests for everything that /openapi.json describes: whatever comes is answered, in the words of this API.

HEED_EXAMPLES says how many for each call (default 4, half of them against the description); with
HEED_SEED=N others than the usual ones.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.core.result import Ok

from feedback.connection import Ledger
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.scripted_engine import ScriptedEngine

EXAMPLES = int(os.environ.get("HEED_EXAMPLES", "4"))
SEED = int(os.environ.get("HEED_SEED", "0"))
NOT_WAITED_FOR: Any = {"promote_wait_s": 0.1, "dry_run_wait_s": 0.1, "engine_wait_s": 5}
LONGEST_S = 30


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, **NOT_WAITED_FOR) as gateway:
        yield gateway


async def described(gateway: RunningGateway) -> Any:
    return (await gateway.http.get("/openapi.json")).json()


async def test_every_reference_of_the_description_leads_somewhere(gateway: RunningGateway) -> None:
    description = await described(gateway)

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(reference := part.get("$ref"), str):
                found = description
                for step in reference.removeprefix("#/").split("/"):
                    found = found[step]
            for each in part.values():
                look(each)
        elif isinstance(part, list):
            for each in part:
                look(each)

    look(description["paths"])
    look(description["components"])


@pytest.mark.timeout(120 + EXAMPLES * 60)
async def test_random_requests_are_answered_or_refused_in_the_envelope(gateway: RunningGateway) -> None:
    schema = schemathesis.openapi.from_dict(await described(gateway))
    wrong: list[str] = []
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            asked += await asyncio.to_thread(try_out, operation, mode, gateway.url, wrong)

    assert wrong == []
    assert asked > 50 * EXAMPLES / 2
    assert (await gateway.chat()).status_code == 200


def try_out(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, url: str, wrong: list[str]) -> int:
    """How many were sent; what was answered wrongly goes to `wrong`, the smallest of it that was found."""
    sent = 0

    @seed(SEED)
    @settings(
        max_examples=max(1, EXAMPLES // 2),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if EXAMPLES > 20 else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        nonlocal sent
        sent += 1
        reply = case.call(base_url=url, headers={"authorization": f"Bearer {OPERATOR}"}, timeout=LONGEST_S)
        if fault := fault_of(reply.status_code, reply.headers, reply.content):
            raise AssertionError(f"{fault}\n{case.as_curl_command()}")

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # a call without parameters cannot be called wrongly
    except AssertionError as error:
        wrong.append(str(error))
    return sent


def fault_of(status: int, headers: Any, content: bytes) -> str | None:
    if status >= 500:
        return f"{status} {content[:300]!r}"
    if "x-request-id" not in headers:
        return f"{status} without x-request-id"
    if status < 400:
        return None
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without an envelope: {content[:300]!r}"
    is_whole = error.keys() == {"message", "type", "param", "code"} and error["message"] and error["code"]
    return None if is_whole else f"{status} with half an envelope: {content[:300]!r}"
