"""FastChat: the log of its arena and chat, `{tstamp, type, models, states, ip}` or with one `model` and `state`.

A battle's vote is a preference when both sides were asked the same. Ties and both-bad teach nothing here, as in a
comparison of Heed's own. The voter is known by a digest of the address, which is itself not kept.
"""

from typing import Any

from feedback.formats import Given, Preferred, Rated, Row, RowRefused, answer, messages, preferred, shown
from feedback.peers.transcripts import moment, named
from feedback.records import Message, Rating, digest

THUMBS: dict[str, Rating] = {"upvote": "up", "downvote": "down"}
LEFT, RIGHT = "leftvote", "rightvote"
WITHOUT_LESSON = {"tievote": "a tie", "bothbad_vote": "a vote that both are bad"}


def read(row: Row) -> Given:
    """Raises RowRefused."""
    kind = row.get("type")
    if not isinstance(kind, str) or not (kind in THUMBS or kind in (LEFT, RIGHT)):
        what = WITHOUT_LESSON.get(kind, "no vote") if isinstance(kind, str) else "no vote"
        raise RowRefused(f"the line is {what}; votes for one side, up and down are imported")
    opinion = _thumb(row, THUMBS[kind]) if kind in THUMBS else _battle(row, kind)
    address = named(row.get("ip"))
    by = named(row.get("judge")) or (digest("ip", address)[:12] if address else "")
    models = row.get("models") if isinstance(row.get("models"), list) else [row.get("model")]
    return Given([opinion], by=by, at=moment(row.get("tstamp")), model=" ".join(map(named, models or [])).strip())


def _thumb(row: Row, rating: Rating) -> Rated:
    asked, said = _conversation(row.get("state"), "state")
    return Rated(asked, said, rating)


def _battle(row: Row, kind: str) -> Preferred:
    states = row.get("states")
    if not isinstance(states, list) or len(states) != 2:
        raise RowRefused(f"states is {shown(states)}; a battle has two")
    (asked, left), (also_asked, right) = (_conversation(state, f"states[{i}]") for i, state in enumerate(states))
    if asked != also_asked:
        raise RowRefused("the two sides went different ways before their last answers, so these cannot be compared")
    return preferred(asked, *((left, right) if kind == LEFT else (right, left)))


def _conversation(state: Any, name: str) -> tuple[list[Message], Message]:
    """What was asked, and the last answer. Raises RowRefused."""
    if not isinstance(state, dict) or not isinstance(state.get("messages"), list):
        raise RowRefused(f"{name} is {shown(state)}; it should be an object with messages")
    first = state.get("offset")
    turns = state["messages"][first if isinstance(first, int) and first >= 0 else 0 :]
    if not all(isinstance(turn, list) and len(turn) == 2 and isinstance(turn[1], str) for turn in turns):
        raise RowRefused(f"{name}.messages should be pairs of a role and a text")
    if len(turns) < 2 or len(turns) % 2:
        raise RowRefused(f"{name}.messages has {len(turns)} turns; it should alternate and end with an answer")
    system = state.get("system_message") or state.get("system")
    said: list[Message] = [{"role": "system", "content": system}] if system else []
    said += [{"role": ("user", "assistant")[place % 2], "content": text} for place, (_, text) in enumerate(turns)]
    return messages(said[:-1], name), answer(said[-1], name)
