"""A route that gives its endpoint what it asks for by hand; for the one call that must be cheap.

FastAPI's way to an endpoint (the dependency solver, JSON to Python to model, and back through its encoder) takes some
55 of the 120 µs that an empty request costs the gateway (docs/benchmarks.md). Here the endpoint keeps its ordinary
signature, from which FastAPI still makes the entry in /openapi.json, and is called with the same four things, made by
the same functions.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from serve.auth import Standing, standing
from serve.errors import Refused, explain
from serve.gateway import Gateway
from serve.idempotency import HEADER, Once

Endpoint = Callable[[Any, Gateway, Standing, Once], Awaitable[Response]]


class Direct(APIRoute):
    """For endpoints of (body, here, standing, once), in this order."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Endpoint = self.endpoint
        shape: type[BaseModel] = self.endpoint.__annotations__["body"]

        async def answer(request: Request) -> Response:
            here: Gateway = request.app.state.gateway
            voting = await standing(request)
            body = read(await request.body(), shape)
            once = Once(request, here, voting.caller, request.headers.get(HEADER))
            return await endpoint(body, here, voting, once)

        return answer


def read(sent: bytes, shape: type[BaseModel]) -> BaseModel:
    """Raises Refused (400), in the same words as FastAPI's own reading does."""
    if not sent:
        raise Refused(400, "missing_required_parameter", "the body is missing and required")
    try:
        return shape.model_validate_json(sent)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from None
