"""`Idempotency-Key`, for any route: `return await once(act)`.

The same key and body of one caller on one route get the same answer again, marked `idempotent-replayed`. The same key
with another body is 409 `idempotency_conflict`; of two at the same moment one acts and the other gets 409
`idempotency_in_progress`. Answers that invite another try (409, 429, 5xx) are forgotten, so that the try can succeed.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request
from starlette.responses import Response

from feedback import idempotency
from feedback.errors import FeedbackError, LedgerUnavailable
from feedback.idempotency import Claim
from feedback.records import canonical, digest
from serve.auth import Voting
from serve.errors import Refused, envelope_of
from serve.gateway import Gateway, Here

log = logging.getLogger("heed.gateway")

HEADER = "Idempotency-Key"
LONGEST = 255
"""Characters; Stripe's limit, so keys made for it fit."""

Json = dict[str, Any]


class Once:
    """One request, which acts at most once if it came with a key."""

    def __init__(self, request: Request, here: Gateway, client: str, key: str | None) -> None:
        self._request = request
        self._ledger = here.ledger()
        self._client = client
        self._key = key

    async def __call__(self, act: Callable[[], Awaitable[Json]]) -> Response:
        """Raises what `act` raises, and Refused (400), IdempotencyConflict, IdempotencyInProgress."""
        if self._key is None:
            return _response(200, await act())
        if not 1 <= len(self._key) <= LONGEST:
            raise Refused(
                400, "idempotency_key_invalid", f"the key has {len(self._key)} characters; send 1 to {LONGEST}", HEADER
            )
        sent = orjson.loads(await self._request.body())
        route = f"{self._request.method} {self._request.url.path}"
        body = digest(canonical(sent))
        claim = await idempotency.claim(self._ledger, caller=self._client, route=route, key=self._key, body=body)
        if claim.answer is not None:
            return _replayed(claim.answer, sent)
        response = None
        try:
            try:
                status, answer = 200, await act()
                response = _response(status, answer)
            except FeedbackError as refusal:
                response = envelope_of(refusal)
                status, answer = response.status_code, orjson.loads(response.body)
        finally:
            if response is None:
                await self._end(claim, None)
        is_final = status < 500 and status not in (409, 429)
        await self._end(claim, _kept(status, answer, sent) if is_final else None)
        return response

    async def _end(self, claim: Claim, answer: str | None) -> None:
        """What was acted on stays so if the ledger cannot be told the answer; the claim then runs out by itself."""
        try:
            if answer is None:
                await idempotency.free(self._ledger, claim)
            else:
                await idempotency.keep(self._ledger, claim, answer)
        except LedgerUnavailable as error:
            log.warning("an idempotency key's answer was not kept: %s", error)


def _kept(status: int, answer: Json, sent: Json) -> str:
    """Fields in order; of those that repeat what was sent, the name alone, for who sends it again sends it again."""
    fields = [
        name if name in sent and sent[name] is not None and sent[name] == value else [name, value]
        for name, value in answer.items()
    ]
    return orjson.dumps([status, fields]).decode()


def _replayed(kept: str, sent: Json) -> Response:
    status, fields = orjson.loads(kept)
    answer = dict([field, sent[field]] if isinstance(field, str) else field for field in fields)
    return _response(status, answer, {"idempotent-replayed": "true"})


def _response(status: int, answer: Json, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(answer), status, dict(headers or {}), "application/json")


async def _once(
    request: Request,
    here: Here,
    voting: Voting,
    key: Annotated[
        str | None, Header(alias=HEADER, description="Send the same key with a retry: it is acted on once.")
    ] = None,
) -> Once:
    return Once(request, here, voting.caller, key)


OnceOnly = Annotated[Once, Depends(_once)]
