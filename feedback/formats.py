"""Formats: a preference pair as the rows other tools read, and such rows read back.

    trl     {"prompt", "chosen", "rejected"}   message lists; strings, and an implicit prompt, are read too
    openai  {"input": {"messages", "tools"?}, "preferred_output": [message], "non_preferred_output": [message]}
    kto     {"prompt", "completion", "label"}  a pair is two rows, an unpaired answer one; each is read as a thumb

Pure functions. A row that cannot be read is refused in words that name its fields and never quote them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from feedback.records import Message, Pair, Rating, canonical

Format = Literal["trl", "openai", "kto"]
Row = dict[str, Any]

LINE_BYTES = 10 * 2**20
"""As large as a request of a chat may be."""

DEPTH = 64
"""Far more than any conversation needs, far less than what brings a JSON writer to its limits (pydantic: 255)."""

ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


class RowRefused(Exception):
    """The row cannot be taken; the message says what it lacks or has too much of."""


@dataclass(frozen=True)
class Preferred:
    """Of two answers to one prompt the better one."""

    prompt: list[Message]
    chosen: Message
    rejected: Message
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Rated:
    """An answer, and what somebody thought of it."""

    prompt: list[Message]
    answer: Message
    rating: Rating
    tools: list[Any] | None = None
    reasons: tuple[str, ...] = ()
    comment: str | None = None
    correction: str | None = None


@dataclass(frozen=True)
class Given:
    """What one line of a file says: opinions of one person. What it does not tell is empty."""

    opinions: list[Preferred | Rated]
    by: str = ""
    user: str | None = None
    at: float | None = None
    model: str = ""


def rows(pair: Pair, format: Format) -> list[Row]:
    tools = {"tools": pair.tools} if pair.tools else {}
    if format == "openai":
        row = {"input": {"messages": pair.prompt, **tools}}
        return [row | {"preferred_output": [pair.chosen], "non_preferred_output": [pair.rejected]}]
    if format == "kto":
        return [
            row_of_answer(Rated(pair.prompt, pair.chosen, "up", pair.tools)),
            row_of_answer(Rated(pair.prompt, pair.rejected, "down", pair.tools)),
        ]
    return [{"id": pair.id, "prompt": pair.prompt, "chosen": [pair.chosen], "rejected": [pair.rejected], **tools}]


def row_of_answer(rated: Rated) -> Row:
    """In `kto`, the one format for answers without another to compare them with."""
    tools = {"tools": rated.tools} if rated.tools else {}
    return {"prompt": rated.prompt, "completion": [rated.answer], "label": rated.rating == "up", **tools}


def parse(line: bytes) -> Row:
    """One line of JSON Lines. Raises RowRefused."""
    if len(line) > LINE_BYTES:
        raise RowRefused(f"it is longer than {LINE_BYTES // 2**20} MB")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise RowRefused("it is not valid JSON") from None
    if not isinstance(row, dict):
        raise RowRefused(f"it is {shown(row)}; it should be an object")
    if _is_deeper(row, DEPTH):
        raise RowRefused(f"it is nested more than {DEPTH} deep")
    return row


def read(row: Row, format: Format) -> Preferred | Rated:
    """Raises RowRefused."""
    return READERS[format](row)


def read_preference(row: Row) -> Preferred:
    """A row of `openai` or of `trl`, told apart by its fields. Raises RowRefused."""
    return _openai(row) if "input" in row else _trl(row)


def messages(value: object, name: str) -> list[Message]:
    """A conversation; a string is one message of the user. Raises RowRefused."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise RowRefused(f"{name} is {shown(value)}; it should be a string or a list of messages")
    return [_message(part, f"{name}[{place}]") for place, part in enumerate(value)]


def answer(value: object, name: str) -> Message:
    """One message of the assistant, alone in a list, bare, or as a string. Raises RowRefused."""
    if isinstance(value, list):
        if len(value) != 1:
            raise RowRefused(f"{name} has {len(value)} messages; it should have one, the assistant's answer")
        value = value[0]
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    said = _message(value, name)
    if said["role"] != "assistant":
        raise RowRefused(f"{name} is a message of role {said['role']}; it should be the assistant's")
    return said


def preferred(prompt: list[Message], chosen: Message, rejected: Message, tools: list[Any] | None = None) -> Preferred:
    """Raises RowRefused when there is nothing to prefer."""
    if _said(chosen) == _said(rejected):
        raise RowRefused("the chosen and the rejected answer say the same, so they teach nothing")
    return Preferred(prompt, chosen, rejected, tools)


def shown(value: object) -> str:
    """What came, by its kind and not by its content."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    return "an object"


def _openai(row: Row) -> Preferred:
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise RowRefused(f"input is {shown(asked)}; it should be an object with messages")
    return preferred(
        messages(asked.get("messages"), "input.messages"),
        answer(row.get("preferred_output"), "preferred_output"),
        answer(row.get("non_preferred_output"), "non_preferred_output"),
        _tools(asked, "input.tools"),
    )


def _trl(row: Row) -> Preferred:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "prompt" in row:
        prompt = messages(row["prompt"], "prompt")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _implicit(chosen, rejected)
    else:
        raise RowRefused("prompt is missing; only lists of messages may share it as their beginning")
    return preferred(prompt, answer(chosen, "chosen"), answer(rejected, "rejected"), _tools(row, "tools"))


def _implicit(chosen: list[Any], rejected: list[Any]) -> tuple[list[Message], list[Any], list[Any]]:
    """TRL's implicit prompt: what both conversations begin with, as far as each still has an answer left."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise RowRefused("prompt is missing, and chosen and rejected do not begin with the same message")
    return messages(chosen[:shared], "chosen"), chosen[shared:], rejected[shared:]


def _kto(row: Row) -> Rated:
    label = row.get("label")
    if not isinstance(label, bool):
        raise RowRefused(f"label is {shown(label)}; it should be true or false")
    said = answer(row.get("completion"), "completion")
    return Rated(messages(row.get("prompt"), "prompt"), said, "up" if label else "down", _tools(row, "tools"))


READERS: Mapping[Format, Callable[[Row], Preferred | Rated]] = {"trl": _trl, "openai": _openai, "kto": _kto}


def _tools(row: Row, name: str) -> list[Any] | None:
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowRefused(f"{name} is {shown(tools)}; it should be a list of objects")
    return tools or None


def _message(value: object, name: str) -> Message:
    if not isinstance(value, dict):
        raise RowRefused(f"{name} is {shown(value)}; it should be a message with role and content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RowRefused(f"{name}.role is {shown(role)} that names no role; one of {', '.join(sorted(ROLES))} does")
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not (content is None or isinstance(content, str) or is_parts):
        raise RowRefused(f"{name}.content is {shown(content)}; it should be a string or a list of parts")
    # Arrow fills the fields that other messages have with nulls; a null content is what a call of a tool has.
    return {field: held for field, held in value.items() if held is not None or field == "content"}


def _is_deeper(value: object, than: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return than < 0 or any(_is_deeper(held, than - 1) for held in inner)


def _said(message: Message) -> str:
    content = message.get("content") or ""
    return (content.strip() if isinstance(content, str) else canonical(content)) + canonical(message.get("tool_calls"))
