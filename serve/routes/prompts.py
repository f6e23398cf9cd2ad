"""The queue of prompts for voters, honeypots among them. For operators."""

from typing import Any

from fastapi import APIRouter

from feedback import queue
from feedback.errors import PromptUnknown
from feedback.records import QueuedPrompt
from serve.auth import Operator
from serve.gateway import After, Here, Limit, Model, page
from serve.protocol import PromptRequest

router = APIRouter(prefix="/v1/prompts", tags=["comparisons"])

Json = dict[str, Any]


@router.post("")
async def add(body: PromptRequest, here: Here, _: Operator) -> Json:
    """With `good` and `bad` it is a honeypot: the two are shown as if models had said them. Adding it again changes
    nothing."""
    ledger = here.ledger(body.model)
    prompt = QueuedPrompt(
        messages=[message.model_dump(exclude_unset=True) for message in body.messages],
        tools=body.tools or None,
        good={"role": "assistant", "content": body.good} if body.good else None,
        bad={"role": "assistant", "content": body.bad} if body.bad else None,
        created=ledger.clock(),
    )
    kept, is_new = await queue.add(ledger, prompt)
    return {**_shown(kept), "changed": is_new}


@router.get("")
async def list_prompts(
    here: Here, _: Operator, honeypots: bool = False, model: Model = None, after: After = None, limit: Limit = 20
) -> Json:
    """In the order they came: the honeypots, or the others."""
    found, has_more = await queue.page(here.ledger(model), honeypots, after, limit)
    return page([_shown(prompt) for prompt in found], has_more)


@router.get("/{prompt_id}")
async def retrieve(prompt_id: str, here: Here, _: Operator) -> Json:
    return _shown(await here.where_known(lambda ledger: queue.get(ledger, prompt_id), PromptUnknown))


@router.delete("/{prompt_id}")
async def remove(prompt_id: str, here: Here, _: Operator) -> Json:
    """Nobody gets it any more; what was said of it stays."""
    await here.where_known(lambda ledger: queue.remove(ledger, prompt_id), PromptUnknown)
    return {"id": prompt_id, "object": "prompt.deleted", "deleted": True}


def _shown(prompt: QueuedPrompt) -> Json:
    texts = {name: said and said["content"] for name, said in (("good", prompt.good), ("bad", prompt.bad))}
    about = {"id": prompt.id, "object": "prompt", "created": int(prompt.created), "is_honeypot": prompt.is_honeypot}
    return {**about, "messages": prompt.messages, "tools": prompt.tools, **texts}
