"""The Responses API, told as chat: the request in messages, the recorded answer as a response.

vLLM has a /v1/responses of its own. It is not used, for it keeps its conversations in the memory of one engine, where
they are lost in a restart, unknown to other replicas and never deleted; here the ledger has them. The response
resp-N is the chat completion chatcmpl-N: voted on, trained on, read and deleted by either id.
"""

from typing import Any

from feedback.records import Completion, Message, ResponseOf
from serve.errors import QUOTED_CHARACTERS, Refused
from serve.protocol import RESPONSES_EXTRAS
from serve.response_items import messages_of, output_of

Json = dict[str, Any]

RESPONSE, CHAT_ID = "resp-", "chatcmpl-"

SAME = frozenset({"model", "stream", "store", "metadata", "user", "temperature", "top_p", "parallel_tool_calls"})
"""Fields that are called and mean the same in chat."""

UNSUPPORTED = {
    "background": "answers are given while the client waits; send stream instead",
    "conversation": "there are no conversation objects; go on by previous_response_id, or send the items",
    "prompt": "there are no stored prompts; send input and instructions",
    "context_management": "nothing is left out of a conversation; send fewer items",
}
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = {LOGPROBS, "reasoning.encrypted_content"}
"""The second is what SDKs ask for by habit; there is none, and without it nothing is missing."""


def expect_supported(sent: Json) -> None:
    """Raises Refused (400)."""
    for name, instead in UNSUPPORTED.items():
        if sent.get(name):
            raise Refused(400, "unsupported_parameter", f"{name} is not supported here: {instead}", name)
    if sent.get("truncation") not in (None, "disabled"):
        words = "truncation should be 'disabled': nothing is left out of a conversation; send fewer items"
        raise Refused(400, "unsupported_value", words, "truncation")
    for index, name in enumerate(sent.get("include") or ()):
        if name not in INCLUDABLE:
            words = f"include[{index}] is {name[:QUOTED_CHARACTERS]!r}; there is {' and '.join(sorted(INCLUDABLE))}"
            raise Refused(400, "unsupported_value", words, f"include[{index}]")


def chat_of(sent: Json, previous: Completion | None, extra: frozenset[str]) -> tuple[Json, ResponseOf]:
    """The chat that stands for a request, after the one it goes on from, and what the chat does not tell of it.

    `extra`: parameters of the engine that pass as they are. Raises Refused (400).
    """
    chat: Json = {name: sent[name] for name in sent if name in SAME or name in RESPONSES_EXTRAS | extra}
    instructions = sent.get("instructions")
    chat["messages"] = [{"role": "system", "content": instructions}] if instructions else []
    chat["messages"] += [*_conversation(previous), *messages_of(sent["input"])]
    if sent.get("tools"):
        chat["tools"] = [_chat_tool(tool, index) for index, tool in enumerate(sent["tools"])]
    if (choice := sent.get("tool_choice")) is not None and (sent.get("tools") or choice != "auto"):
        chat["tool_choice"] = _chat_tool_choice(choice)
    if (form := _chat_format((sent.get("text") or {}).get("format"))) is not None:
        chat["response_format"] = form
    if (most := sent.get("max_output_tokens")) is not None:
        chat["max_completion_tokens"] = most
    if effort := (sent.get("reasoning") or {}).get("effort"):
        chat["reasoning_effort"] = effort
    if LOGPROBS in (sent.get("include") or ()):
        chat |= {"logprobs": True, "top_logprobs": sent.get("top_logprobs") or 0}
    if sent.get("stream"):
        chat["stream_options"] = {"include_usage": True}  # a response tells its usage whether asked or not
    return chat, ResponseOf(previous=sent.get("previous_response_id"), has_instructions=bool(instructions))


def response_of(completion: Completion, is_stored: bool = True) -> Json:
    """A recorded answer as the Responses API shows it; without choices, one that is still to be given."""
    told, params = completion.response or ResponseOf(), completion.params
    number = completion.id.removeprefix(CHAT_ID)
    choice = completion.choices[0] if completion.choices else None
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(str(choice and choice.finish_reason))
    return {
        "id": RESPONSE + number,
        "object": "response",
        "created_at": int(completion.created),
        "status": "incomplete" if cut else "completed" if choice else "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": cut} if cut else None,
        "instructions": completion.messages[0]["content"] if told.has_instructions else None,
        "max_output_tokens": params.get("max_completion_tokens"),
        "metadata": completion.metadata or {},
        "model": completion.adapter,
        "output": output_of(choice, number, bool(params.get("logprobs"))) if choice else [],
        "parallel_tool_calls": params.get("parallel_tool_calls") is not False,
        "previous_response_id": told.previous,
        "reasoning": {"effort": params.get("reasoning_effort"), "summary": None},
        "request_id": completion.request_id,
        "store": is_stored,
        "temperature": params.get("temperature"),
        "text": {"format": _response_format(params.get("response_format"))},
        "tool_choice": _response_tool_choice(params.get("tool_choice")),
        "tools": [_response_tool(tool) for tool in completion.tools or ()],
        "top_logprobs": params.get("top_logprobs") or 0,
        "top_p": params.get("top_p"),
        "truncation": "disabled",
        "usage": _usage(completion.usage) if choice else None,
        "user": completion.user,
    }


def _conversation(previous: Completion | None) -> list[Message]:
    """What was said so far; instructions are given anew with each response, as at OpenAI."""
    if previous is None:
        return []
    assert previous.response is not None
    return [*previous.messages[previous.response.has_instructions :], previous.choices[0].message]


def _chat_tool(tool: Json, index: int) -> Json:
    place = f"tools[{index}]"
    if tool.get("type") != "function":
        shown = str(tool.get("type"))[:QUOTED_CHARACTERS]
        words = f"{place}.type is {shown!r}; this gateway runs no tools of its own and takes functions only"
        raise Refused(400, "unsupported_tool", words, f"{place}.type")
    if not isinstance(tool.get("name"), str):
        raise Refused(400, "missing_required_parameter", f"{place}.name is missing and required", f"{place}.name")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _response_tool(tool: Json) -> Json:
    return {"type": "function", "parameters": {}, "strict": False, **tool["function"]}


def _chat_tool_choice(choice: str | Json) -> str | Json:
    if choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    words = "tool_choice should be 'auto', 'none', 'required' or {\"type\": \"function\", \"name\": NAME}"
    raise Refused(400, "unsupported_value", words, "tool_choice")


def _response_tool_choice(choice: str | Json | None) -> str | Json:
    return {"type": "function", "name": choice["function"]["name"]} if isinstance(choice, dict) else choice or "auto"


def _chat_format(form: Json | None) -> Json | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "name": str(), "schema": dict()}:
            return {"type": "json_schema", "json_schema": {n: form[n] for n in form if n != "type"}}
    words = "text.format should be of type text, json_object, or json_schema with a name and a schema"
    raise Refused(400, "invalid_value", words, "text.format")


def _response_format(form: Json | None) -> Json:
    if form is None:
        return {"type": "text"}
    return {"type": form["type"], **form.get("json_schema", {})}


def _usage(usage: Json | None) -> Json | None:
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
