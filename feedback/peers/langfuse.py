"""Langfuse: scores, `{id, traceId, name, value, dataType, comment, …}`.

A score refers to a trace by id, so each line must carry the trace's `input` and `output` too, beside the score's own
fields or in a `trace` or `observation`.
"""

from feedback.formats import Given, Rated, Row, RowRefused
from feedback.peers.transcripts import answered, asked, expect_a_persons, moment, named, part, rating, remark

HOLDERS = ("observation", "trace")


def read(row: Row, score: str | None = None) -> Given:
    """Raises RowRefused."""
    if row.get("source") == "EVAL":
        raise RowRefused("the score is an evaluator's, not a person's")
    expect_a_persons(row.get("name"), score, "score")
    value = row.get("stringValue") if row.get("dataType") == "CATEGORICAL" else row.get("value")
    opinion = Rated(
        prompt=asked(part(row, "input", *HOLDERS), "input"),
        answer=answered(part(row, "output", *HOLDERS), "output"),
        rating=rating(row.get("value") if value is None else value, "value"),
        comment=remark(row.get("comment")),
    )
    trace = row["trace"] if isinstance(row.get("trace"), dict) else {}
    user = named(row.get("userId") or trace.get("userId"))
    return Given(
        [opinion],
        by=user or named(row.get("authorUserId")),
        user=user or None,
        at=moment(row.get("timestamp") or row.get("createdAt")),
    )
