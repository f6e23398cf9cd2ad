"""Stored answers, read and deleted the way OpenAI's are. A client's key finds what it asked for, and nothing else."""

import re
from typing import Any

from fastapi import APIRouter, Request

from feedback import completions, erasure
from feedback.connection import Ledger
from feedback.errors import CompletionUnknown
from feedback.records import Completion
from serve.attribution import withhold
from serve.auth import Owner, Reader, ReaderOfAll, SeesAll
from serve.gateway import After, Gateway, Here, Limit, Model, Order, page, page_within
from serve.protocol import MetadataRequest

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

Json = dict[str, Any]


@router.get("")
async def list_stored(
    request: Request,
    here: Here,
    _: ReaderOfAll,
    sees_all: SeesAll,
    model: Model = None,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Json:
    """`model` is a served model's name or a concrete one, `metadata[KEY]=VALUE` what an answer's metadata must hold.

    The sides of blind comparisons are listed for operators only: an answer says which adapter gave it.
    """
    served = model if model in here.ledgers else here.routing.resolve(model).served_model if model else None
    wanted = _metadata(request)
    shown: list[Completion] = []
    while True:
        found, has_more = await completions.page(here.ledger(served), after, limit, newest_first=order == "desc")
        listed = [c for c in found if c.object == "chat.completion" and (sees_all or c.comparison is None)]
        listed = [c for c in listed if wanted.items() <= (c.metadata or {}).items()]
        shown += [c for c in listed if model in (None, c.served_model, c.adapter)]
        if len(shown) >= limit or not has_more or not found:
            return page([_stored(here, c) for c in shown[:limit]], has_more or len(shown) > limit)
        after = found[-1].id


@router.get("/{completion_id}")
async def retrieve(completion_id: str, here: Here, reader: Reader) -> Json:
    return _stored(here, await _found(here, completion_id, reader))


@router.get("/{completion_id}/messages")
async def list_messages(
    completion_id: str, here: Here, reader: Reader, after: After = None, limit: Limit = 20, order: Order = "asc"
) -> Json:
    """What was asked, a message an entry."""
    found = await _found(here, completion_id, reader)
    messages = [{"id": f"{completion_id}-{i}", **message} for i, message in enumerate(found.messages)]
    return page_within(messages, after, limit, order)


@router.post("/{completion_id}")
async def update(completion_id: str, body: MetadataRequest, here: Here, owner: Owner) -> Json:
    found = await _found(here, completion_id, owner)
    return _stored(
        here, await completions.update_metadata(here.ledger(found.served_model), completion_id, body.metadata)
    )


@router.delete("/{completion_id}")
async def delete(completion_id: str, here: Here, owner: Owner) -> Json:
    """With every vote on it, and out of the archive."""
    ledger = await here.where_known(lambda ledger: _with_owned(ledger, completion_id, owner), CompletionUnknown)
    await erasure.of_completion(ledger, completion_id)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


def _metadata(request: Request) -> dict[str, str]:
    """As OpenAI's clients write it: metadata[KEY]=VALUE."""
    given = ((re.fullmatch(r"metadata\[(.+)\]", name), value) for name, value in request.query_params.items())
    return {name[1]: value for name, value in given if name}


async def _found(here: Gateway, completion_id: str, reader: str | None) -> Completion:
    return await here.where_known(lambda ledger: completions.get(ledger, completion_id, reader), CompletionUnknown)


async def _with_owned(ledger: Ledger, completion_id: str, owner: str | None) -> Ledger:
    """The ledger, if it has it for this owner; needs no archive."""
    await completions.expect(ledger, completion_id, owner)
    return ledger


def _stored(here: Gateway, completion: Completion) -> Json:
    is_votable = completion.object == "chat.completion" and completion.comparison is None
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
        "vote_token": here.tokens.sign(completion.id, completion.client, completion.user) if is_votable else None,
        "best_of": completion.best_of.model_dump(exclude={"v"}) if completion.best_of else None,
        **completion.params,
    }
