"""Messages as text: what of an answer can be compared, and what cannot be taught by it here."""

from typing import Literal

from feedback.records import Message, Pair, canonical

Fault = Literal["identical", "empty", "not text"]


def text_of(message: Message) -> str | None:
    """The message as text; None where it is not only that: an image, a call of a tool, which DPO cannot score here."""
    if message.get("tool_calls"):
        return None
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return None


def sameness(message: Message) -> str:
    """Two answers say the same when this is equal."""
    text = text_of(message)
    return canonical([message.get("content"), message.get("tool_calls")]) if text is None else text.strip()


def fault_of(pair: Pair) -> Fault | None:
    """Why no job here can learn from the pair; None if one can."""
    chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
    if chosen is None or rejected is None or any(text_of(message) is None for message in pair.prompt):
        return "not text"
    if not chosen.strip() or not rejected.strip():
        return "empty"
    if chosen.strip() == rejected.strip():
        return "identical"
    return None
