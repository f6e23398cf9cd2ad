"""Stored answers, read and deleted the way OpenAI's are."""

from typing import Any

from fastapi import APIRouter

from feedback import completions, votes
from feedback.errors import CompletionUnknown
from feedback.records import Completion
from serve.attribution import withhold
from serve.auth import Client, SeesAll
from serve.gateway import After, Here, Limit, Model, page
from serve.protocol import MetadataRequest

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

Json = dict[str, Any]


@router.get("")
async def list_stored(
    here: Here,
    _: Client,
    sees_all: SeesAll,
    model: Model = None,
    after: After = None,
    limit: Limit = 20,
    order: str = "asc",
) -> Json:
    """`model` is a served model's name or a concrete one.

    The sides of blind comparisons are listed for operators only: an answer says which adapter gave it.
    """
    served = model if model in here.ledgers else here.routing.resolve(model).served_model if model else None
    shown: list[Completion] = []
    while True:
        found, has_more = await completions.page(here.ledger(served), after, limit, newest_first=order == "desc")
        listed = [c for c in found if c.object == "chat.completion" and (sees_all or c.comparison is None)]
        shown += [c for c in listed if model in (None, c.served_model, c.adapter)]
        if len(shown) >= limit or not has_more or not found:
            return page([_stored(c) for c in shown[:limit]], has_more or len(shown) > limit)
        after = found[-1].id


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
    choices = [choice.model_dump(exclude={"v"}) for choice in completion.choices]
    return {
        "id": completion.id,
        "object": completion.object,
        "created": int(completion.created),
        "model": completion.adapter,
        "request_id": completion.request_id,
        "messages": completion.messages,
        "tools": completion.tools,
        "choices": withhold({"choices": choices}, completion.params)["choices"],
        "usage": completion.usage,
        "metadata": completion.metadata or {},
        "user": completion.user,
        "adapter_digest": completion.adapter_digest,
        "template": completion.template,
        **completion.params,
    }
