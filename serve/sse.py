"""Server-sent events of an answer: passed on as the bytes they are, kept, and read once when the answer is complete.

Whole events pass unparsed, but for the few that may hold one of MARKS. `[DONE]` is held back, for the client must not
see it before the answer is in the ledger; vLLM sends it after an error too, where it must not be seen at all.
"""

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
UNRECORDED = b": x-heed-recorded: no\n\n"

MARKS = (b"[DONE]", b'"error"', b'"abort"', b'"usage"')
"""Only an event with one of these can be the end, a failure, an abort or the usage; anything else is not looked at."""

Json = dict[str, Any]


class Transcript:
    """Feed it the engine's bytes; it gives back what the client may have of them now."""

    def __init__(self, wants_usage: bool) -> None:
        self.failure: str | None = None
        self.is_done = False
        self._wants_usage = wants_usage
        self._rest = b""
        self._kept: list[bytes] = []

    def feed(self, received: bytes) -> bytes:
        if self._rest:
            received = self._rest + received
        if received.endswith(b"\n\n"):  # as engines send them, whole
            whole, self._rest = received, b""
        else:
            end = received.rfind(b"\n\n") + 2
            if end < 2:
                self._rest = received
                return b""
            whole, self._rest = received[:end], received[end:]
        self._kept.append(whole)
        for mark in MARKS:  # any() costs more than what it looks at
            if mark in whole:
                return b"".join(event + b"\n\n" for event in whole.split(b"\n\n")[:-1] if self._passes(event))
        return b"" if self.failure else whole

    def _passes(self, event: bytes) -> bool:
        if self.failure or not event.startswith(b"data: "):
            return not self.failure
        if event == DONE.strip():
            self.is_done = True
            return False
        data = orjson.loads(event[6:])
        if "error" in data:
            self.failure = str((data["error"] or {}).get("message") or "no reason was given")
        elif any(choice.get("finish_reason") == "abort" for choice in data["choices"]):
            # vLLM ends a paused or sleeping engine's answers as if they were whole.
            self.failure = "the engine aborted the answer"
        else:
            return bool(data["choices"]) or self._wants_usage
        return False

    def answer(self) -> Json:
        """The stream in the shape of an answer that was not streamed."""
        whole: Json = {"choices": [], "usage": None}
        choices: dict[int, Json] = {}
        for data in self._events():
            whole["created"] = data["created"]
            whole["usage"] = data.get("usage") or whole["usage"]
            if data.get("prompt_token_ids"):
                whole["prompt_token_ids"] = data["prompt_token_ids"]
            for delta in data["choices"]:
                _add(choices.setdefault(delta["index"], {"index": delta["index"], "logprobs": None}), delta)
        whole["choices"] = [choices[index] for index in sorted(choices)]
        return whole

    def _events(self) -> list[Json]:
        events = b"".join(self._kept).split(b"\n\n")
        return [orjson.loads(e[6:]) for e in events if e.startswith(b"data: ") and e != DONE.strip()]


def failure_event(status: int, code: str, message: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return (
        b"data: " + orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}) + b"\n\n"
    )


def _add(choice: Json, delta: Json) -> None:
    """Add one chunk's choice to what there is of it."""
    if delta.get("finish_reason"):
        choice["finish_reason"] = delta["finish_reason"]
    if delta.get("logprobs"):
        _add_logprobs(choice, delta["logprobs"])
    if delta.get("token_ids"):
        choice.setdefault("token_ids", []).extend(delta["token_ids"])
    if "text" in delta:
        choice["text"] = choice.get("text", "") + delta["text"]
        return
    message = choice.setdefault("message", {"role": "assistant", "content": None})
    for name, part in delta["delta"].items():
        if name == "tool_calls":
            for call in part or ():
                _add_tool_call(message.setdefault("tool_calls", []), call)
        elif isinstance(part, str) and name != "role":
            message[name] = (message.get(name) or "") + part


def _add_logprobs(choice: Json, logprobs: Json) -> None:
    """Chat and text completions differ in the fields and agree that each is a list that grows."""
    kept = choice["logprobs"] = choice["logprobs"] or {}
    for name, part in logprobs.items():
        if isinstance(part, list):
            kept.setdefault(name, []).extend(part)


def _add_tool_call(calls: list[Json], delta: Json) -> None:
    index = delta.get("index", 0)
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    call["id"] = delta.get("id") or call["id"]
    function = delta.get("function") or {}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
