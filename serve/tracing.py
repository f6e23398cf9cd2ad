"""OpenTelemetry's traces, by its standard environment variables: a span for each request, for each try of an engine
and for each record in the ledger. What people wrote is in none of them.

Off unless OTEL_TRACES_EXPORTER or an OTLP endpoint is set, and then it needs the extra [otel]. Off, a span is one
function call that returns a constant.
"""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.routing import Target

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console", "none")
PROTOCOL = "http/protobuf"

Headers = dict[str, str]

NOTHING: nullcontext[Headers] = nullcontext({})


class CannotTrace(Exception):
    """The environment asks for traces that cannot be sent."""


class Tracing:
    def __init__(self, provider: Any = None) -> None:
        """`provider` is an opentelemetry.sdk.trace.TracerProvider; without one, tracing is off."""
        self._provider = provider
        self._tracer = provider.get_tracer("heed") if provider else None

    @property
    def is_on(self) -> bool:
        return self._tracer is not None

    def asking(self, target: Target) -> AbstractAsyncContextManager[Headers]:
        """A try of an engine, to the end of its answer; gives the headers that make the engine's spans its children."""
        return NOTHING if self._tracer is None else self._asking(target)

    @asynccontextmanager
    async def _asking(self, target: Target) -> AsyncIterator[Headers]:
        from opentelemetry import propagate

        about = {"heed.model": target.served_model, "gen_ai.request.model": target.adapter}
        with self._span("ask engine", "CLIENT", about):
            carried: Headers = {}
            propagate.inject(carried)
            yield carried

    def recording(self) -> AbstractContextManager[Any]:
        return NOTHING if self._tracer is None else self._span("record", "CLIENT", {"db.system.name": "redis"})

    def serving(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
        """The request itself, as a child of its sender's span if `headers` name one; gives the span."""
        from opentelemetry import propagate

        return self._span(method, "SERVER", {"http.request.method": method}, propagate.extract(headers))

    @contextmanager
    def _span(self, name: str, kind: str, about: Mapping[str, str], context: Any = None) -> Iterator[Any]:
        from opentelemetry.trace import SpanKind, StatusCode

        assert self._tracer is not None, "asked for where tracing is on"
        # Failures by their kind alone: their words may quote what somebody sent.
        silent = {"record_exception": False, "set_status_on_exception": False}
        with self._tracer.start_as_current_span(name, context, SpanKind[kind], about, **silent) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(StatusCode.ERROR)
                raise

    def close(self) -> None:
        """Sends what has not been sent; waits for the collector."""
        if self._provider is not None:
            self._provider.shutdown()


class Traced:
    """ASGI middleware, outermost where tracing is on."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import StatusCode

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracing.serving(scope["method"], headers) as span:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, send_traced)
            route = route_of(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
            span.set_attribute("heed.request_id", f"req-{scope['state']['number']}")


def route_of(scope: Scope) -> str:
    """The pattern of a request's path, of which there are few and in which nobody is named."""
    return getattr(scope.get("route"), "path", "unknown")


def trace_id() -> str:
    """Of the span that is current, if tracing is on."""
    trace = sys.modules.get("opentelemetry.trace")  # loaded where tracing is on, and it only
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return str(trace.format_trace_id(context.trace_id)) if context.is_valid else ""


def open_tracing(environment: Mapping[str, str]) -> Tracing:
    """Raises CannotTrace."""
    if not _is_asked_for(environment):
        return Tracing()
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    protocol = environment.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", PROTOCOL)
    )
    if exporter not in EXPORTERS:
        raise CannotTrace(f"OTEL_TRACES_EXPORTER is {exporter!r}; one of {', '.join(EXPORTERS)} works")
    if exporter == "otlp" and protocol != PROTOCOL:
        raise CannotTrace(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; only {PROTOCOL} is spoken")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise CannotTrace(
            f"the environment asks for traces (OTEL_…) and {error.name} is missing: install heed[otel]"
        ) from error
    named = {} if "OTEL_SERVICE_NAME" in environment else {"service.name": "heed"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    return Tracing(provider)


def _is_asked_for(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in ENDPOINTS))
