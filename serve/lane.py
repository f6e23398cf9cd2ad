"""The way of a request for an answer: from the door straight to its endpoint, past FastAPI.

FastAPI's way there (its layers of middleware, matching routes, solving dependencies, exit stacks) takes some 55 of the
120 µs that an empty request costs (docs/benchmarks.md, Votes). The routes stay FastAPI's: from their signature it makes
the entry in /openapi.json, and what is asked with another method meets it.
"""

from collections.abc import Sequence

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from feedback.errors import FeedbackError
from serve.auth import caller
from serve.errors import envelope_of
from serve.gateway import Gateway


class Lane:
    """ASGI middleware, inside of the door, which answers what is refused.

    For POSTs whose endpoints take (request, here, asker), in this order, and refuse before anything is sent.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._gateway = gateway
        self._routes = {route.path: route for route in routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request, endpoint = Request(scope, receive), route.endpoint
        try:
            response: Response = await endpoint(request, self._gateway, await caller(request))
            await response(scope, receive, send)
        except FeedbackError as refusal:
            await envelope_of(refusal)(scope, receive, send)
