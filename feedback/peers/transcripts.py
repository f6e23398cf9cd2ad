"""Transcripts: what was asked and answered, in the many shapes that tracing tools keep it in."""

from datetime import UTC, datetime
from typing import Any

from feedback.formats import Row, RowRefused, answer, messages, shown
from feedback.records import Message, Rating

ASKED = ("messages", "input", "inputs", "question", "query", "prompt")
ANSWERED = (
    "message",
    "messages",
    "output",
    "outputs",
    "answer",
    "response",
    "content",
    "text",
    "choices",
    "generations",
)
"""Where a prompt or an answer is looked for in an object, in this order."""

TYPES = {"human": "user", "ai": "assistant"}
"""LangChain's names for two roles; `system` and `tool` are called the same."""

PEOPLES_NAMES = {
    "feedback",
    "rating",
    "thumb",
    "thumbs",
    "thumbs_up",
    "user_feedback",
    "user_rating",
    "user_score",
    "user_thumbs",
    "vote",
}
"""Names of scores that stand for a person's thumb by custom; a score of another name must be asked for."""

UP = {"up", "thumbs_up", "thumbs-up", "positive", "good", "like", "true", "yes"}
DOWN = {"down", "thumbs_down", "thumbs-down", "negative", "bad", "dislike", "false", "no"}

MILLISECONDS_FROM = 1e11
"""A larger number of seconds would be in the year 5138."""


def asked(value: object, name: str) -> list[Message]:
    """Raises RowRefused."""
    if isinstance(value, dict) and "role" not in value:
        field = next((field for field in ASKED if value.get(field) is not None), None)
        if field is None:
            raise RowRefused(f"{name} has none of the fields that may hold a prompt: {', '.join(ASKED)}")
        return asked(value[field], f"{name}.{field}")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # a batch of one
    if isinstance(value, dict):
        value = [value]
    return messages([_plain(part) for part in value] if isinstance(value, list) else value, name)


def answered(value: object, name: str) -> Message:
    """Raises RowRefused."""
    value = _plain(value)
    if isinstance(value, dict) and "role" not in value:
        field = next((field for field in ANSWERED if value.get(field) is not None), None)
        if field is None:
            raise RowRefused(f"{name} has none of the fields that may hold an answer: {', '.join(ANSWERED)}")
        return answered(value[field], f"{name}.{field}")
    if isinstance(value, list):
        if not value:
            raise RowRefused(f"{name} is an empty list; it should hold the answer")
        return answered(value[-1], name)
    return answer(value, name)


def part(row: Row, name: str, *holders: str) -> object:
    """A field of the row, or of the object in it that holds the trace. Raises RowRefused."""
    for place in (row, *(row[holder] for holder in holders if isinstance(row.get(holder), dict))):
        if place.get(name) is not None:
            return place[name]
    within = " or ".join([name, *(f"{holder}.{name}" for holder in holders)])
    raise RowRefused(f"there is no {within}: a score only refers to its trace, so join the trace's texts to it")


def rating(value: object, name: str) -> Rating:
    """A thumb, as numbers or words say it. Raises RowRefused."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in UP | DOWN:
            return "up" if word in UP else "down"
        raise RowRefused(f"{name} is a word that says neither up nor down")
    if isinstance(value, bool | int | float) and value in (1, 0, -1):
        return "up" if value == 1 else "down"
    if isinstance(value, int | float):
        raise RowRefused(f"{name} is {value:g}; a thumb is 1 for up, 0 or -1 for down")
    raise RowRefused(f"{name} is {shown(value)}; a thumb is 1 for up, 0 or -1 for down")


def expect_a_persons(score: object, wanted: str | None, option: str) -> None:
    """Refuses scores that are not somebody's thumb: a `hallucination` of 0 is no vote. Raises RowRefused."""
    named = score[:40] if isinstance(score, str) else ""
    if wanted is None and named.lower().replace("-", "_").replace(" ", "_") in PEOPLES_NAMES:
        return
    if wanted is None or named != wanted:
        raise RowRefused(f"the score is named {named!r}; to import such scores ask for {option}={named or 'NAME'}")


def moment(value: object) -> float | None:
    """Unix seconds of an ISO time, of seconds or of milliseconds; None where there is no time."""
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return None
        value = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e15:
        return None
    return value / 1000 if value > MILLISECONDS_FROM else float(value)


def named(value: object) -> str:
    """A name or an id, as text; empty where there is none."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def remark(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _plain(value: Any) -> Any:
    """A message of LangChain as one of OpenAI's; anything else as it is."""
    if not isinstance(value, dict) or "role" in value:
        return value
    if isinstance(value.get("kwargs"), dict):  # serialised by LangChain: {"id": [..., "HumanMessage"], "kwargs": {…}}
        value = value["kwargs"]
    if isinstance(value.get("data"), dict) and isinstance(value.get("type"), str):
        value = {"type": value["type"], **value["data"]}
    kind = value.get("type")
    if isinstance(kind, str) and "content" in value:
        return {"role": TYPES.get(kind, kind), "content": value["content"]}
    return value
