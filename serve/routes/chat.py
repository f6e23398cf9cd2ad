"""Ask for an answer: POST /v1/chat/completions and, for old clients, POST /v1/completions."""

import math
import re
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError

from feedback import adapters
from feedback.errors import AdapterUnknown
from serve.answer import Answer
from serve.attribution import with_tokens
from serve.auth import Asker
from serve.best_of import HEADER, sampled
from serve.errors import Refused, explain, model_not_found
from serve.gateway import Gateway, Here
from serve.keyring import Caller
from serve.limits import UNLIMITED, Allowance, estimated
from serve.protocol import CHAT, OURS, TEXT, WITHOUT_EFFECT, ChatRequest, Sampling, TextRequest
from serve.recorder import PREFIXES, Asked, Kind
from serve.routing import Target

router = APIRouter(prefix="/v1", tags=["chat"])


def documented(shape: type[BaseModel]) -> dict[str, Any]:
    """For bodies that FastAPI does not read, and whose parts are therefore not among its components."""
    schema = shape.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.get("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(part: Any, named: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_inlined(each, named) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(named[part["$ref"].removeprefix("#/$defs/")], named)
    return {name: _inlined(each, named) for name, each in part.items() if name != "$defs"}


PATIENCE = "x-stainless-read-timeout"
"""How long OpenAI's official clients wait for something to come, in seconds; they send it with each request."""

BEST_OF = {
    "name": HEADER,
    "in": "header",
    "schema": {"type": "integer", "minimum": 2},
    "description": "Sample so many answers and give the one that the reward model scores highest (HEED_REWARD_URL). "
    "The answer's header of this name says among how many was chosen: 1 where the reward model did not tell.",
}


@router.post(
    "/chat/completions", openapi_extra=documented(ChatRequest) | {"parameters": [BEST_OF]}, response_model=None
)
async def chat(request: Request, here: Here, asker: Asker) -> Answer:
    return await _ask(request, here, asker, "chat.completion", ChatRequest, CHAT)


@router.post("/completions", openapi_extra=documented(TextRequest), response_model=None)
async def text(request: Request, here: Here, asker: Asker) -> Answer:
    """Recorded, and not to be voted on: there is no conversation to learn from."""
    return await _ask(request, here, asker, "text_completion", TextRequest, TEXT)


async def _ask(
    request: Request, here: Gateway, asker: Caller, kind: Kind, shape: type[Sampling], passing: frozenset[str]
) -> Answer:
    sent = read(await request.body(), shape, passing | set(here.settings.extra_parameters))
    return Answer(here, await admitted(request, here, asker, kind, sent))


async def admitted(request: Request, here: Gateway, asker: Caller, kind: Kind, sent: dict[str, Any]) -> Asked:
    """Who answers, and what is left of the asker's limits. Raises Refused (400, 404, 429), LedgerUnavailable."""
    expect_readable(sent, here.settings.reading_limit)
    target, mark = here.routing.resolve(sent["model"]), None
    if sent["model"] == target.served_model:
        target, mark = here.canaries.assign(target, sent, asker.name)
    allowance = here.limits.admit(asker, estimated(sent))
    await expect_servable(here, target)
    asked = asked_of(here, kind, target, request.state.number, asker.name, sent, allowance=allowance)
    if mark is not None or PATIENCE in request.headers:
        asked = replace(asked, mark=mark, patience_s=_patience(request.headers.get(PATIENCE)))
    if (wanted := request.headers.get(HEADER)) is not None:
        asked = sampled(asked, wanted, here)
    return asked


def expect_readable(sent: dict[str, Any], limit: int) -> None:
    """Whoever asks what the model thinks of a prompt asks for no longer one than can be told. Raises Refused (400)."""
    given = {name: sent.get(name) for name in ("prompt_logprobs", "echo")}
    asked = next((name for name, value in given.items() if value is not None and value is not False), None)
    if asked and (length := estimated(sent)) > limit:
        words = f"{asked} is for prompts of at most {limit} tokens (HEED_READING_LIMIT); this one has about {length}"
        raise Refused(400, "prompt_too_long", words, asked)


def _patience(said: str | None) -> float:
    """Seconds; from whoever says something else we hear nothing."""
    return float(said) if said and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", said) else math.inf


def asked_of(
    here: Gateway,
    kind: Kind,
    target: Target,
    number: str,
    client: str,
    sent: dict[str, Any],
    comparison: str | None = None,
    allowance: Allowance = UNLIMITED,
) -> Asked:
    """The request as it will be recorded, and what the engine gets of it."""
    forwarded = {name: sent[name] for name in sent if name not in OURS and name not in WITHOUT_EFFECT}
    forwarded["model"] = target.adapter
    if sent.get("stream"):
        # The record wants the usage, so it is always asked for, and withheld from clients that did not.
        wants_usage = (sent.get("stream_options") or {}).get("include_usage")
        forwarded["stream_options"] = sent["stream_options"] if wants_usage else {"include_usage": True}
    path = "/v1/chat/completions" if kind == "chat.completion" else "/v1/completions"
    records_tokens = here.settings.record_tokens and kind == "chat.completion"
    if records_tokens:
        forwarded = with_tokens(forwarded)
    ledger = here.ledgers[target.served_model]
    headers = allowance.headers
    if kind == "chat.completion" and comparison is None and sent.get("store") is not False:
        headers = headers + here.tokens.headers(PREFIXES[kind] + number, client, sent.get("user"))
    return Asked(
        kind,
        path,
        target,
        ledger,
        number,
        client,
        sent,
        forwarded,
        comparison,
        records_tokens,
        allowance=allowance,
        headers=headers,
    )


def read(body: bytes, shape: type[BaseModel], passing: frozenset[str] | None) -> dict[str, Any]:
    """The request as it was sent, once its types are known to be right; None passes all names. Raises Refused (400)."""
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "invalid_json", "the body is not valid JSON; send one JSON object") from error
    try:
        shape.model_validate(sent)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from None
    asked: dict[str, Any] = sent
    if passing is None:
        return asked
    for name in asked:
        if name not in passing and name not in OURS and name not in WITHOUT_EFFECT:
            shown = name[:40]
            raise Refused(
                400,
                "unknown_parameter",
                f"{shown} is not a parameter that clients may send; the operator can allow it in HEED_EXTRA_PARAMETERS",
                shown,
            )
    return asked


async def expect_servable(here: Gateway, target: Target) -> None:
    """A versioned name that no engine holds may be loaded for this request, if it is an adapter that passed its gate.

    Raises Refused (404), LedgerUnavailable.
    """
    if here.routing.is_held(target.adapter) or here.routing.model_of(target.adapter) is None:
        return
    try:
        adapter = await adapters.get(here.ledgers[target.served_model], target.adapter)
    except AdapterUnknown:
        raise model_not_found(target.adapter) from None
    if adapter.state == "rejected":
        raise Refused(
            404, "model_not_found", f"{target.adapter} was rejected and is not served; see /v1/models", "model"
        )
