"""Ask for an answer in the words of OpenAI's newer API: /v1/responses. Read and deleted by who asked for it."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from feedback import completions, erasure
from feedback.errors import CompletionUnknown
from feedback.records import Completion
from serve.auth import Asker, Owner, Reader
from serve.errors import QUOTED_CHARACTERS, Refused
from serve.gateway import After, Gateway, Here, Limit, Order, page_within
from serve.protocol import RESPONSES, ResponseRequest
from serve.response_events import ResponseAnswer
from serve.response_items import items_of
from serve.responses import CHAT_ID, RESPONSE, chat_of, expect_supported, response_of
from serve.routes.chat import admitted, documented, read

router = APIRouter(prefix="/v1/responses", tags=["responses"])

Json = dict[str, Any]


@router.post("", openapi_extra=documented(ResponseRequest), response_model=None)
async def respond(request: Request, here: Here, asker: Asker, reader: Reader) -> ResponseAnswer:
    extra = frozenset(here.settings.extra_parameters)
    sent = read(await request.body(), ResponseRequest, RESPONSES | extra)
    expect_supported(sent)
    previous = None
    if (before := sent.get("previous_response_id")) is not None:
        previous = await _previous(here, before, reader)
    chat, told = chat_of(sent, previous, extra)
    asked = await admitted(request, here, asker, "chat.completion", chat)
    return ResponseAnswer(here, replace(asked, response=told))


@router.get("/{response_id}")
async def retrieve(response_id: str, here: Here, reader: Reader, stream: bool = False) -> Json:
    if stream:
        raise Refused(
            400, "unsupported_parameter", "a stored response is not streamed again; leave stream out", "stream"
        )
    return response_of(await _found(here, response_id, reader))


@router.delete("/{response_id}")
async def delete(response_id: str, here: Here, owner: Owner) -> Json:
    """With every vote on it, and out of the archive."""
    found = await _found(here, response_id, owner)
    await erasure.of_completion(here.ledger(found.served_model), found.id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    here: Here,
    reader: Reader,
    after: After = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Json:
    """All that was answered, with what came before by previous_response_id."""
    found = await _found(here, response_id, reader)
    assert found.response is not None
    items = items_of(found.messages[found.response.has_instructions :], found.id.removeprefix(CHAT_ID))
    return page_within(items, after, limit, order)


async def _previous(here: Gateway, response_id: str, reader: str | None) -> Completion:
    try:
        return await _found(here, response_id, reader)
    except Refused as refused:
        raise Refused(400, "previous_response_not_found", refused.detail, "previous_response_id") from None


async def _found(here: Gateway, response_id: str, reader: str | None) -> Completion:
    """Raises Refused (404)."""
    if response_id.startswith(RESPONSE):
        chat_id = CHAT_ID + response_id.removeprefix(RESPONSE)
        try:
            found = await here.where_known(lambda ledger: completions.get(ledger, chat_id, reader), CompletionUnknown)
        except CompletionUnknown:
            found = None
        if found is not None and found.response is not None:
            return found
    raise Refused(
        404,
        "response_not_found",
        f"no response {response_id[:QUOTED_CHARACTERS]!r}: it was not stored, was deleted, or expired without a vote",
        "response_id",
    )
