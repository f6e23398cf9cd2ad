"""The way of a request for an answer: from the door straight to its endpoint, past FastAPI.

FastAPI's way there (five layers of middleware, matching routes, solving dependencies, exit stacks) took a third of a
request's CPU time (docs/benchmarks.md). The routes stay FastAPI's: from their signature it makes the entry in
/openapi.json, and what is asked with another method meets it.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from feedback.errors import FeedbackError
from serve.auth import client
from serve.errors import envelope_of
from serve.gateway import Gateway

Endpoint = Callable[[Request, Gateway, str], Awaitable[Response]]
"""Of (request, here, client), in this order; it raises Refused and FeedbackError before anything is sent."""


class Lane:
    """ASGI middleware, inside of the door, which answers what is refused."""

    def __init__(self, app: ASGIApp, gateway: Gateway, posts: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._gateway = gateway
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request, self._gateway, await client(request))
            await response(scope, receive, send)
        except FeedbackError as refusal:
            await envelope_of(refusal)(scope, receive, send)
