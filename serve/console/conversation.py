"""A conversation as the console remembers it: what was said, by which adapter, and what this browser thought of it.

A list of plain dicts, for it travels to the browser and back. A user's turn has `content`; an answer has also `model`
(the concrete adapter), `id` (its completion; none while it streams and when it was stopped: the ledger does not know
it), `rating`, `vote`, `comment`, `correction`, and `older`, the answer that it was asked to better.
"""

from typing import Any

from serve.console.prose import prose

Turn = dict[str, Any]

VOTES_KEPT = 50
"""The newest of this browser's votes; each costs the page "Your votes" one request."""


def question(text: str) -> Turn:
    return {"role": "user", "content": text}


def answer(older: Turn | None = None) -> Turn:
    return {"role": "assistant", "content": "", "model": "", "id": None, "rating": None, "vote": None, "older": older}


def messages(turns: list[Turn]) -> list[Turn]:
    """What the gateway is sent."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def shown(turns: list[Turn]) -> list[Turn]:
    """What the chat shows: one message a turn, the adapter's name as a part of its own under each answer."""
    return [{"role": turn["role"], "content": _parts(turn)} for turn in turns]


def _parts(turn: Turn) -> list[Turn]:
    parts = [{"type": "text", "text": prose(turn["content"])}]
    if turn.get("model"):
        parts.append({"type": "text", "text": f"`{turn['model']}`"})
    return parts


def thumbs(turns: list[Turn]) -> list[str | None]:
    """The state of the thumbs, one for each answer."""
    names = {"up": "Like", "down": "Dislike"}
    return [names.get(turn["rating"]) for turn in turns if turn["role"] == "assistant"]


def last_answer(turns: list[Turn]) -> Turn | None:
    return turns[-1] if turns and turns[-1]["role"] == "assistant" else None


def is_comparable(turns: list[Turn]) -> bool:
    """Whether the last answer was asked for again and both are in the ledger."""
    last = last_answer(turns)
    return bool(last and last["id"] and last.get("older") and last["older"]["id"])


def with_vote(memory: dict[str, Any], vote: str, before: list[Turn], said: str) -> dict[str, Any]:
    """The browser's memory with this vote in front; `before` are the turns that the answer was given to."""
    about = before[-1]["content"][:80] if before else ""
    others = [one for one in memory.get("votes", []) if one["id"] != vote]
    return {**memory, "votes": [{"id": vote, "about": about, "said": said}, *others][:VOTES_KEPT]}
