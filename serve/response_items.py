"""Items of the Responses API and the chat messages they stand for, both ways.

A response is a chat completion told in other words: what is recorded, trained on and sent to the engine are the
messages, and the items are made of them again when somebody reads. Developer messages become system messages, which is
the name that chat templates know. Reasoning items are taken and left out, as templates leave out earlier reasoning.
"""

from typing import Any

from feedback.records import Choice, Message
from serve.errors import QUOTED_CHARACTERS, Refused

Json = dict[str, Any]

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and the field it is in."""


def messages_of(given: str | list[Json]) -> list[Message]:
    """Raises Refused (400) for what the engine could not be told."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    for index, item in enumerate(given):
        place = f"input[{index}]"
        match item.get("type") or "message":
            case "message":
                messages.append(_message(item, place))
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(item, place))
            case "function_call_output":
                content = _content(item.get("output"), f"{place}.output")
                messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": content})
            case "reasoning":
                pass
            case kind:
                raise _unsupported(
                    kind, f"{place}.type", "message, function_call, function_call_output and reasoning items"
                )
    if not messages:
        raise Refused(400, "invalid_value", "input holds nothing to answer; send text or at least one message", "input")
    return messages


def items_of(messages: list[Message], number: str) -> list[Json]:
    """The same messages as items, in their order; their ids follow from the response's number."""
    items: list[Json] = []
    for message in messages:
        if message["role"] == "tool":
            called = {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
            items.append(called)
            continue
        if message.get("content") is not None:
            items.append({"type": "message", "role": message["role"], "content": _parts_of(message)})
        items += [_called(call) for call in message.get("tool_calls") or ()]
    return [{"id": f"item-{number}-{index}", "status": "completed", **item} for index, item in enumerate(items)]


def output_of(choice: Choice, number: str, has_logprobs: bool) -> list[Json]:
    """An answer as output items: its reasoning, its words, its calls."""
    message, items = choice.message, list[Json]()
    status = "incomplete" if choice.finish_reason in ("length", "content_filter") else "completed"
    if reasoning := message.get("reasoning"):
        items.append(reasoning_item(number, status, reasoning))
    calls = message.get("tool_calls") or []
    if message.get("content") or not (calls or reasoning):
        told = text_logprobs(choice.logprobs) if has_logprobs else []
        items.append(message_item(number, status, message.get("content") or "", told))
    items += [call_item(number, index, status, call) for index, call in enumerate(calls)]
    return items


def reasoning_item(number: str, status: str, text: str | None = None) -> Json:
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs-{number}", "type": "reasoning", "status": status, "summary": [], "content": content}


def message_item(number: str, status: str, text: str | None = None, logprobs: list[Json] | None = None) -> Json:
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": f"msg-{number}", "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: list[Json] | None = None) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def call_item(number: str, index: int, status: str, call: Json) -> Json:
    return {"id": f"fc-{number}-{index}", "status": status, **_called(call)}


def text_logprobs(logprobs: Json | None) -> list[Json]:
    """Of a chat choice, in the Responses API's shape, which has no nulls."""
    return [
        {
            "token": told["token"],
            "logprob": told["logprob"],
            "bytes": told.get("bytes") or [],
            "top_logprobs": [top | {"bytes": top.get("bytes") or []} for top in told.get("top_logprobs") or ()],
        }
        for told in (logprobs or {}).get("content") or ()
    ]


def _message(item: Json, place: str) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused(400, "invalid_value", f"{place}.role should be one of {', '.join(ROLES)}", f"{place}.role")
    content = _content(item.get("content"), f"{place}.content")
    if ROLES[role] == "assistant" and isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return {"role": ROLES[role], "content": content}


def _content(content: object, place: str) -> str | list[Json]:
    """One text alone is a string, so that the same prompt is the same prompt however it came."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, "invalid_type", f"{place} should be a string or an array of parts", place)
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: object, place: str) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in TEXTS:
        return {"type": "text", "text": _text(part, TEXTS[kind], place)}
    if isinstance(part, dict) and kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    raise _unsupported(kind, f"{place}.type", "input_text, output_text, refusal and input_image with an image_url")


def _call(item: Json, place: str) -> Json:
    function = {"name": _text(item, "name", place), "arguments": _text(item, "arguments", place)}
    return {"id": _text(item, "call_id", place), "type": "function", "function": function}


def _called(call: Json) -> Json:
    function = call["function"]
    return {
        "type": "function_call",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function.get("arguments") or "",
    }


def _parts_of(message: Message) -> list[Json]:
    content, is_answer = message["content"], message["role"] == "assistant"
    parts: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown: list[Json] = []
    for part in parts:
        if part["type"] == "image_url":
            url = part["image_url"]
            image = {"type": "input_image", "image_url": url["url"], "detail": url.get("detail", "auto")}
            shown.append(image)
        else:
            shown.append(text_part(part["text"]) if is_answer else {"type": "input_text", "text": part["text"]})
    return shown


def _text(item: Json, name: str, place: str) -> str:
    value = item.get(name)
    if isinstance(value, str):
        return value
    code = "missing_required_parameter" if value is None else "invalid_type"
    raise Refused(400, code, f"{place}.{name} should be a string", f"{place}.{name}")


def _unsupported(kind: object, place: str, wanted: str) -> Refused:
    shown = repr(kind[:QUOTED_CHARACTERS]) if isinstance(kind, str) else "none"
    return Refused(400, "unsupported_value", f"{place} is {shown}; this gateway takes {wanted}", place)
