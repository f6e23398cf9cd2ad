"""What of vLLM clients cannot reach, whatever they write in the first line of a request."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feedback.connection import Ledger
from serve.settings import GatewaySettings
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import ScriptedEngine, scripted_engine

OWN = {"GET /v1/models", "GET /health"}
"""What the gateway asks an idle engine by itself."""

CONTROLS = [
    "/adapters",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/invocations",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pause",
    "/resume",
    "/abort_requests",
    "/collective_rpc",
    "/init_weight_transfer_engine",
    "/update_weights",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/scale_elastic_ep",
    "/server_info",
    "/load",
    "/inference/v1/generate",
    "/v1/messages",
    "/tokenize",
    "/tokenizer_info",
    "/v1/embeddings",
    "/v1/audio/transcriptions",
    "/start_profile",
]
"""Of vLLM 0.32, development mode included."""

TRICKS = [
    "/v1/chat/completions/../../load_lora_adapter",
    "/v1/chat/completions/..%2f..%2fload_lora_adapter",
    "/v1/chat/completions/%2e%2e/%2e%2e/v1/load_lora_adapter",
    "//v1/load_lora_adapter",
    "/v1//load_lora_adapter",
    "/v1/load_lora_adapter/",
    "/V1/LOAD_LORA_ADAPTER",
    "/v1%2fload_lora_adapter",
    "/%76%31/load_lora_adapter",
    "/v1/load_lora_adapter;x=1",
    "/v1/load_lora_adapter?x=/v1/chat/completions",
    "/v1/models/..%2f..%2finvocations",
    "/v1/models/../load_lora_adapter",
    "/tokenize/../v1/load_lora_adapter",
    "/tokenize%2f..%2finvocations",
    "/tokenize/",
    "/%2e/tokenize",
    "\\v1\\load_lora_adapter",
    "ENGINE/v1/load_lora_adapter",
    "ENGINE/invocations",
    "*",
]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine(key="secret") as engine:
        yield engine


@pytest.fixture
async def open_gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, extra_routes=("/tokenize",)) as gateway:
        yield gateway


async def raw(gateway: RunningGateway, method: str, target: str) -> tuple[int, bytes]:
    """A request whose target no client library has tidied up."""
    port = int(gateway.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "heed", "lora_name": "x", "lora_path": "x", "prompt": "x"}).encode()
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split(b" ")[1]), content


async def test_no_first_line_reaches_what_is_not_offered(open_gateway: RunningGateway) -> None:
    gateway = open_gateway
    gateway.engine.targets.clear()
    tried = [(method, target) for target in (*CONTROLS, *TRICKS) for method in ("POST", "GET", "PUT")]
    tried.remove(("POST", "/tokenize"))

    for method, target in tried:
        status, content = await raw(gateway, method, target.replace("ENGINE", gateway.engine.url))

        assert 400 <= status < 500, (method, target, content)
        if status != 400:  # else uvicorn could not read it as HTTP
            assert json.loads(content)["error"]["code"], (method, target)
    assert set(gateway.engine.targets) <= OWN
    assert gateway.engine.loaded.keys() == {"heed-base"}


async def test_metrics_are_the_gateways_and_never_the_engines(gateway: RunningGateway) -> None:
    for target in ("/metrics", f"{gateway.engine.url}/metrics"):
        status, content = await raw(gateway, "GET", target)

        assert status == 200
        assert b"heed_" in content
        assert b"vllm:" not in content


async def test_a_call_that_is_listed_passes_with_the_models_concrete_name(open_gateway: RunningGateway) -> None:
    told = await open_gateway.http.post("/tokenize", json={"model": "heed", "prompt": "x"})
    unknown = await open_gateway.http.post("/tokenize", json={"model": "gpt-9", "prompt": "x"})
    behind = await open_gateway.http.post("/tokenize", json={"model": "heed", "prompt": "x", "chat_template": "x"})
    wrong = await open_gateway.http.post("/tokenize", json={"model": "heed"})

    assert (told.status_code, told.json()["count"]) == (200, 7)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (behind.status_code, behind.json()["error"]["param"]) == (400, "chat_template")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_call_that_is_not_listed_is_unknown(gateway: RunningGateway) -> None:
    reply = await gateway.http.post("/tokenize", json={"model": "heed", "prompt": "x"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "route_not_found")


HARMFUL = [*CONTROLS, "/metrics", "tokenize", "/tokenize/", "/Tokenize", "/v1/chat/completions"]


@pytest.mark.parametrize("path", [path for path in HARMFUL if path not in ("/tokenize", "/v1/embeddings")])
def test_only_harmless_calls_can_be_listed(path: str) -> None:
    with pytest.raises(ValidationError, match="not a call that may be opened"):
        GatewaySettings(extra_routes=("/detokenize", path))


async def test_an_engine_with_a_key_answers_nobody_who_lacks_it(
    engine: ScriptedEngine, gateway: RunningGateway
) -> None:
    around: Any = await gateway.http.get(f"{engine.url}/v1/models")

    assert around.status_code == 401
    assert (await gateway.chat()).status_code == 200
