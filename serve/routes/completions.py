"""Stored answers, read and deleted the way OpenAI's are."""

from typing import Any

from fastapi import APIRouter

from feedback import completions, votes
from feedback.errors import CompletionUnknown
from feedback.records import Completion
from serve.auth import Client
from serve.gateway import After, Here, Limit, Model, page
from serve.protocol import MetadataRequest

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

Json = dict[str, Any]


@router.get("")
async def list_stored(
    here: Here, _: Client, model: Model = None, after: After = None, limit: Limit = 20, order: str = "asc"
) -> Json:
    """`model` is a served model's name or a concrete one, which then filters each page."""
    served = model if model in here.ledgers else here.routing.resolve(model).served_model if model else None
    found, has_more = await completions.page(here.ledger(served), after, limit, newest_first=order == "desc")
    shown = [c for c in found if c.object == "chat.completion" and model in (None, c.served_model, c.adapter)]
    return page([_stored(c) for c in shown], has_more)


@router.get("/{completion_id}")
async def retrieve(completion_id: str, here: Here, _: Client) -> Json:
    return _stored(await here.where_known(lambda ledger: completions.get(ledger, completion_id), CompletionUnknown))


@router.post("/{completion_id}")
async def update(completion_id: str, body: MetadataRequest, here: Here, _: Client) -> Json:
    changed = await here.where_known(
        lambda ledger: completions.update_metadata(ledger, completion_id, body.metadata), CompletionUnknown
    )
    return _stored(changed)


@router.delete("/{completion_id}")
async def delete(completion_id: str, here: Here, _: Client) -> Json:
    """With every vote on it."""
    await here.where_known(lambda ledger: votes.forget_completion(ledger, completion_id), CompletionUnknown)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


def _stored(completion: Completion) -> Json:
    return {
        "id": completion.id,
        "object": completion.object,
        "created": int(completion.created),
        "model": completion.adapter,
        "request_id": completion.request_id,
        "messages": completion.messages,
        "tools": completion.tools,
        "choices": [choice.model_dump(exclude={"v"}) for choice in completion.choices],
        "usage": completion.usage,
        "metadata": completion.metadata or {},
        "user": completion.user,
        **completion.params,
    }
