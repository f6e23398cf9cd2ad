"""Traces: by the standard environment variables, to a real collector's address, and nothing anybody wrote in them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from feedback.connection import Ledger
from serve.tracing import CannotTrace, open_tracing
from tests.gateways import RunningGateway, running_gateway
from tests.processes import free_port
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

PROMPT = "my-secret-prompt"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes spans as OTLP over HTTP has them."""

    def __init__(self) -> None:
        self.port = free_port()
        self.spans: list[Span] = []
        self.services: set[str] = set()

    async def take(self, request: web.Request) -> web.Response:
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def of(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def collecting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", collector.port).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    try:
        yield collector
    finally:
        await runner.cleanup()


class SeeingEngine(ScriptedEngine):
    """Keeps what it was sent of traces."""

    parents: list[str]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if parent := request.headers.get("traceparent"):
            self.parents.append(parent)
        return await super()._complete(request)


@pytest.fixture
async def engine() -> AsyncIterator[SeeingEngine]:
    engine = SeeingEngine()
    engine.parents = []
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(autouse=True)
def no_traces_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def ask(gateway: RunningGateway, is_stream: bool) -> str:
    """The request's id."""
    body = {"model": "heed", "messages": [{"role": "user", "content": PROMPT}], "stream": is_stream}
    reply = await gateway.http.post("/v1/chat/completions", json=body, headers={"traceparent": PARENT})
    return str(reply.headers["x-request-id"])


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_its_engine_and_its_record_are_one_trace(
    ledger: Ledger, tmp_path: Path, engine: SeeingEngine, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    async with collecting(monkeypatch) as collector:
        async with running_gateway(ledger, tmp_path, engine) as gateway:
            request_id = await ask(gateway, is_stream)

        (whole,) = collector.of("POST /v1/chat/completions")
        (asked,), (recorded,) = collector.of("ask engine"), collector.of("record")
        trace, parent = PARENT.split("-")[1:3]
        assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (trace, parent)
        assert (asked.trace_id, asked.parent_span_id) == (whole.trace_id, whole.span_id)
        assert recorded.trace_id == whole.trace_id
        assert engine.parents[-1] == f"00-{trace}-{asked.span_id.hex()}-01", "vLLM's spans are this one's children"
        told = {"http.route": "/v1/chat/completions", "http.response.status_code": 200, "heed.request_id": request_id}
        assert attributes(whole).items() >= told.items()
        assert attributes(asked)["gen_ai.request.model"] == "heed-base"
        assert asked.end_time_unix_nano >= recorded.end_time_unix_nano
        assert collector.services == {"heed"}
        assert PROMPT not in str(collector.spans)


async def test_each_try_of_an_engine_is_a_span_and_failures_are_told_by_their_kind(
    ledger: Ledger, tmp_path: Path, engine: SeeingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "support-chat")
    async with collecting(monkeypatch) as collector:
        async with running_gateway(ledger, tmp_path, engine) as gateway:
            engine.scripts.append(Script(breaks_after=0))
            await ask(gateway, is_stream=False)
            engine.scripts.append(Script(status=500, message=PROMPT))
            await ask(gateway, is_stream=False)
            await gateway.http.get("/v1/voters/ann")

        first, second, refused = collector.of("ask engine")
        assert attributes(first)["error.type"] == "EngineUnreachable"
        assert "error.type" not in attributes(second)
        assert attributes(refused)["error.type"] == "Refused"
        ended = collector.of("POST /v1/chat/completions")
        (failed,) = [span for span in ended if attributes(span)["http.response.status_code"] == 502]
        assert failed.status.code == 2
        assert collector.services == {"support-chat"}
        assert PROMPT not in str(collector.spans)
        assert "ann" not in str([attributes(span) for span in collector.spans]), "a path may name a voter"


async def test_without_the_variables_nothing_is_traced(ledger: Ledger, tmp_path: Path, engine: SeeingEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        await ask(gateway, is_stream=True)

    assert engine.parents == []


@pytest.mark.parametrize(
    ("environment", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "heed"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], is_on: bool) -> None:
    tracing = open_tracing(environment)

    assert tracing.is_on is is_on
    tracing.close()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp, console, none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "only http/protobuf"),
    ],
)
def test_what_cannot_be_spoken_is_refused_at_the_start(environment: dict[str, str], words: str) -> None:
    with pytest.raises(CannotTrace, match=words):
        open_tracing(environment)


async def test_a_collector_that_is_away_costs_no_answer(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        assert (await gateway.chat()).status_code == 200
