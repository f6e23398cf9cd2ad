"""Every failure in one envelope: {"error": {"message", "type", "param", "code"}}.

A message says what was wrong, what was received and what would work. It never holds a traceback, a Redis key or
somebody's prompt: what people wrote is named by its place, not quoted.
"""

import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feedback import errors as ledger

PRIVATE = {
    "messages",
    "prompt",
    "input",
    "instructions",
    "correction",
    "comment",
    "chosen",
    "rejected",
    "metadata",
    "user",
    "voter",
}
"""Fields that hold what people wrote."""

UNION_MEMBERS = {"str", "int", "float", "bool", "dict", "list", "bytes"}

QUOTED_CHARACTERS = 40
"""Enough to recognise a mistyped value, too little to carry a text."""


class Meaning(NamedTuple):
    status: int
    code: str
    param: str | None = None


REFUSALS: dict[type[ledger.FeedbackError], Meaning] = {
    ledger.LedgerUnavailable: Meaning(503, "ledger_unavailable"),
    ledger.ArchiveUnavailable: Meaning(503, "archive_unavailable"),
    ledger.CompletionUnknown: Meaning(404, "completion_not_found", "completion_id"),
    ledger.CompletionNotChat: Meaning(400, "completion_not_chat", "completion_id"),
    ledger.ChoiceUnknown: Meaning(400, "choice_not_found", "choice"),
    ledger.VoteUnknown: Meaning(404, "vote_not_found"),
    ledger.VoteEmpty: Meaning(400, "vote_empty", "correction"),
    ledger.PromptsDiffer: Meaning(400, "prompts_differ"),
    ledger.SameAnswer: Meaning(400, "same_answer"),
    ledger.VoterUnknown: Meaning(404, "voter_not_found", "voter"),
    ledger.VoterBanned: Meaning(403, "voter_banned", "voter"),
    ledger.VotesTooFast: Meaning(429, "vote_rate_limited"),
    ledger.ComparisonUnknown: Meaning(404, "comparison_not_found"),
    ledger.PromptUnknown: Meaning(404, "prompt_not_found"),
    ledger.JobUnknown: Meaning(404, "job_not_found"),
    ledger.JobAlreadyClaimed: Meaning(409, "job_already_claimed"),
    ledger.JobLeaseLost: Meaning(409, "job_lease_lost"),
    ledger.JobFinished: Meaning(409, "job_finished"),
    ledger.TooFewPairs: Meaning(400, "too_few_pairs", "training_file"),
    ledger.AdapterUnknown: Meaning(404, "adapter_not_found"),
    ledger.AdapterNotServable: Meaning(409, "adapter_not_servable"),
    ledger.AdapterIsLive: Meaning(409, "adapter_is_live"),
    ledger.LeadLost: Meaning(503, "lead_lost"),
    ledger.CanaryUnknown: Meaning(404, "canary_not_found"),
    ledger.CanaryRunning: Meaning(409, "canary_running"),
    ledger.NothingToRollBackTo: Meaning(409, "nothing_to_roll_back_to"),
    ledger.FileUnknown: Meaning(404, "file_not_found"),
    ledger.UploadInvalid: Meaning(400, "invalid_file", "file"),
    ledger.IdempotencyConflict: Meaning(409, "idempotency_conflict", "Idempotency-Key"),
    ledger.IdempotencyInProgress: Meaning(409, "idempotency_in_progress", "Idempotency-Key"),
    ledger.CredentialUnknown: Meaning(404, "key_not_found"),
    ledger.TextTooLong: Meaning(413, "text_too_long"),
    ledger.RecordConflict: Meaning(409, "record_conflict"),
}

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(HTTPException):
    """The gateway's own refusal."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.param = param


def model_not_found(name: str) -> Refused:
    shown = name[:QUOTED_CHARACTERS]
    return Refused(
        404, "model_not_found", f"the model {shown!r} does not exist; see /v1/models for those that do", "model"
    )


def unavailable(code: str, message: str, retry_after_s: float = 5) -> Refused:
    return Refused(503, code, message, headers={"retry-after": str(max(1, round(retry_after_s)))})


def envelope(
    status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = {"error": {"message": message, "type": type_of(status), "param": param, "code": code}}
    return Response(orjson.dumps(body), status, dict(headers or {}), "application/json")


def envelope_of(refusal: ledger.FeedbackError) -> Response:
    meaning = REFUSALS[type(refusal)]
    wait_s = refusal.retry_after_s
    headers = None if wait_s is None else {"retry-after": str(max(1, math.ceil(wait_s)))}
    return envelope(meaning.status, meaning.code, str(refusal), meaning.param, headers)


def type_of(status: int) -> str:
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def explain(errors: Sequence[Mapping[str, Any]], skip: int = 0) -> Refused:
    """The first of pydantic's errors in the envelope's words; the first `skip` parts of its place are FastAPI's."""
    first = errors[0]
    kind, param = str(first["type"]), _param(first["loc"][skip:])
    if kind == "json_invalid":
        return Refused(400, "invalid_json", "the body is not valid JSON; send one JSON object")
    if kind == "missing":
        return Refused(400, "missing_required_parameter", f"{param or 'the body'} is missing and required", param)
    if kind == "extra_forbidden":
        return Refused(400, "unknown_parameter", f"{param} is not a parameter of this call", param)
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    received = _shown(first.get("input"), is_private=param is not None and re.split(r"[.[]", param)[0] in PRIVATE)
    # A union gives an error for each of its members.
    alternatives = dict.fromkeys(_words(error["msg"]) for error in errors if _param(error["loc"][skip:]) == param)
    wanted = " or ".join(alternatives)
    return Refused(400, code, f"{param or 'the body'} should be {wanted}; got {received}", param)


def _param(loc: Sequence[int | str]) -> str | None:
    """The place as a client writes it: without pydantic's names for the members of a union."""
    place = [part for part in loc if isinstance(part, int) or (part.isidentifier() and part not in UNION_MEMBERS)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or None


def _words(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _shown(value: object, is_private: bool) -> str:
    if isinstance(value, str):
        return "a string" if is_private else repr(value[:QUOTED_CHARACTERS])
    if value is None or isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    return "an array" if isinstance(value, list) else "an object"


def install(app: FastAPI) -> None:
    """Give every exception that can reach the app its envelope; the last resort is in door.py, outside of the app."""
    app.add_exception_handler(ledger.FeedbackError, _on_feedback_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_feedback_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ledger.FeedbackError)
    return envelope_of(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_http(request, explain(error.errors(), skip=1))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return envelope(error.status_code, error.code, error.detail, error.param, error.headers)
    asked = f"{request.method} {request.url.path[:100]}"
    if error.status_code == 404:
        return envelope(404, "route_not_found", f"there is no {asked}; see /docs for what there is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return envelope(405, "method_not_allowed", f"{asked} is not offered; use {allowed}", headers=error.headers)
    phrase = HTTPStatus(error.status_code).phrase
    return envelope(error.status_code, phrase.lower().replace(" ", "_"), str(error.detail), headers=error.headers)
