"""Calls of vLLM beyond OpenAI's, only those that HEED_EXTRA_ROUTES names.

Which can be named at all is a closed list: calls that compute something of the body they get and nothing else. The rest
of vLLM loads weights, pauses engines or answers without a record, and no setting opens it. A path is never passed on as
it came; a route here stands for one address there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.answer import MESSAGE_CHARACTERS
from serve.auth import Asker
from serve.engine import failure_of
from serve.errors import QUOTED_CHARACTERS, Refused, unavailable
from serve.gateway import Gateway, Here
from serve.limits import estimated
from serve.protocol import BEHIND, ExtraRequest
from serve.routes.chat import documented, expect_servable, read
from serve.upstream import EngineUnreachable


def router_of(paths: tuple[str, ...]) -> APIRouter:
    router = APIRouter(tags=["extras"])
    for path in paths:
        router.add_api_route(
            path, _passing(path), methods=["POST"], openapi_extra=documented(ExtraRequest), response_model=None
        )
    return router


def _passing(path: str) -> Callable[..., Awaitable[Response]]:
    async def passed(request: Request, here: Here, asker: Asker) -> Response:
        sent = read(await request.body(), ExtraRequest, None)
        for name in sent.keys() & BEHIND:
            raise Refused(400, "unknown_parameter", f"{name} reaches behind the gateway and never passes", name)
        target = here.routing.resolve(sent["model"])
        here.limits.admit(asker, estimated(sent))
        await expect_servable(here, target)
        return await _ask(here, path, sent | {"model": target.adapter}, request.state.number)

    passed.__name__ = path.strip("/").replace("/", "_")
    passed.__doc__ = f"vLLM's own {path}: not recorded, and not to be voted on."
    return passed


async def _ask(here: Gateway, path: str, body: dict[str, Any], number: str) -> Response:
    """Raises Refused."""
    deadline = asyncio.get_running_loop().time() + here.settings.engine_wait_s
    async with here.routing.borrow(body["model"], deadline) as replica:
        try:
            async with replica.engine.ask(path, orjson.dumps(body), number) as upstream:
                answer = await upstream.read()
        except EngineUnreachable as error:
            raise unavailable("engine_unavailable", "the engine broke within the request; try again") from error
    if upstream.status == 200:
        return Response(answer, media_type="application/json")
    if upstream.status == 404:
        raise Refused(404, "route_not_found", f"the engine does not offer {path} for this model")
    if upstream.status >= 500:
        raise Refused(502, "engine_failed", "the engine failed on this request; ask again, or ask less of it")
    message, param = failure_of(answer)
    raise Refused(upstream.status, "invalid_request", message[:MESSAGE_CHARACTERS], param and param[:QUOTED_CHARACTERS])
