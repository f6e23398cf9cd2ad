"""Open WebUI: its feedback export, an array of `{id, user_id, type: "rating", data, meta, snapshot}`.

The snapshot holds the whole chat as a tree. A rating is a thumb; a rated answer is also preferred to (or falls behind)
the answers of other models to the same message that nobody rated, which is how Open WebUI's leaderboard reads it.
"""

from typing import Any

from feedback.formats import Given, Preferred, Rated, Row, RowRefused, answer, messages, preferred, shown
from feedback.peers.transcripts import moment, named, remark
from feedback.records import Message, Rating

Tree = dict[str, dict[str, Any]]


def read(row: Row) -> Given:
    """Raises RowRefused."""
    data, meta = _object(row, "data"), _object(row, "meta")
    if row.get("type", "rating") != "rating":
        raise RowRefused("type is not rating, and nothing else is a vote")
    value = data.get("rating")
    if value not in (1, -1, "1", "-1") or isinstance(value, bool):
        raise RowRefused(f"data.rating is {shown(value)}; a thumb is 1 for up, -1 for down")
    tree, rated = _tree(row), meta.get("message_id")
    if not isinstance(rated, str) or rated not in tree:
        raise RowRefused("meta.message_id names no message of the snapshot")
    prompt, said = _path(tree, rated), answer(_spoken(tree[rated]), "the rated message")
    rating: Rating = "up" if int(value) == 1 else "down"
    reason = remark(data.get("reason"))
    opinions: list[Preferred | Rated] = [
        Rated(prompt, said, rating, reasons=(reason,) if reason else (), comment=remark(data.get("comment")))
    ]
    at = moment(row.get("updated_at") or row.get("created_at"))
    if data.get("sibling_model_ids") and at is not None:  # without a time, a change of mind could not be told
        opinions += _over_siblings(tree, rated, prompt, said, rating)
    user = named(row.get("user_id"))
    return Given(opinions, by=user, user=user or None, at=at, model=named(data.get("model_id")))


def _over_siblings(tree: Tree, rated: str, prompt: list[Message], said: Message, rating: Rating) -> list[Preferred]:
    parent, model, found = tree[rated].get("parentId"), tree[rated].get("model"), []
    for sibling_id, sibling in tree.items():
        if sibling_id == rated or sibling.get("parentId") != parent or sibling.get("role") != "assistant":
            continue
        annotation = sibling.get("annotation")
        is_rated = isinstance(annotation, dict) and bool(annotation.get("rating"))
        if is_rated or sibling.get("model") == model or not sibling.get("content"):
            continue
        other = answer(_spoken(sibling), "a sibling of the rated message")
        try:
            found.append(preferred(prompt, said, other) if rating == "up" else preferred(prompt, other, said))
        except RowRefused:
            continue  # both models said the same; the thumb stands
    return found


def _path(tree: Tree, rated: str) -> list[Message]:
    """The conversation before the rated message, from its root. Raises RowRefused."""
    path: list[Message] = []
    seen = {rated}
    above = tree[rated].get("parentId")
    while above is not None:
        if not isinstance(above, str) or above not in tree or above in seen:
            raise RowRefused("the snapshot lacks a message before the rated one")
        seen.add(above)
        path.append(_spoken(tree[above]))
        above = tree[above].get("parentId")
    if not path:
        raise RowRefused("nothing was asked before the rated message")
    return messages(path[::-1], "the snapshot's conversation")


def _tree(row: Row) -> Tree:
    held: Any = row.get("snapshot")
    for name in ("chat", "chat", "history", "messages"):
        held = held.get(name) if isinstance(held, dict) else None
    if not isinstance(held, dict) or not all(isinstance(message, dict) for message in held.values()):
        raise RowRefused("there are no snapshot.chat.chat.history.messages; export the feedback with its snapshots")
    return held


def _spoken(message: dict[str, Any]) -> Message:
    """Without what Open WebUI keeps beside the text."""
    return {"role": message.get("role"), "content": message.get("content")}


def _object(row: Row, name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise RowRefused(f"{name} is {shown(value)}; it should be an object")
    return value
