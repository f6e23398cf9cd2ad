"""What an answer is attributed to beyond its adapter's name, and the tokens kept for the record alone.

With HEED_RECORD_TOKENS the engine is asked for token ids and log-probabilities of every chat answer, so that they need
not be computed again; a client that did not ask for them does not get them.
"""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from serve.sse import DONE

Json = dict[str, Any]


def template_of(base_model: str) -> str | None:
    """sha256 of the base's chat template, as the trainer's manifests have it.

    None when the base is not a folder here, or keeps its template elsewhere than in chat_template.jinja.
    """
    path = Path(base_model) / "chat_template.jinja"
    return hashlib.sha256(path.read_bytes()).hexdigest() if base_model and path.is_file() else None


def with_tokens(forwarded: Json) -> Json:
    """The request as it goes to an engine that shall tell its tokens."""
    return forwarded | {"return_token_ids": True, "logprobs": True}


def withhold(data: Json, sent: Json) -> Json:
    """An answer, or a chunk of one, without the tokens that its client did not ask for."""
    kept = dict(data)
    if not sent.get("return_token_ids"):
        kept.pop("prompt_token_ids", None)
    kept["choices"] = [_withhold(choice, sent) for choice in data["choices"]]
    return kept


def withhold_events(events: bytes, sent: Json) -> bytes:
    """The same for whole events of a stream."""
    return b"".join(_withhold_event(event, sent) + b"\n\n" for event in events.split(b"\n\n")[:-1])


def _withhold_event(event: bytes, sent: Json) -> bytes:
    if not event.startswith(b"data: ") or event == DONE.strip():
        return event
    return b"data: " + orjson.dumps(withhold(orjson.loads(event[6:]), sent))


def _withhold(choice: Json, sent: Json) -> Json:
    kept = dict(choice)
    if not sent.get("return_token_ids"):
        kept.pop("token_ids", None)
    if not sent.get("logprobs"):
        kept["logprobs"] = None
    return kept
