"""LangSmith: feedback, `{run_id, key, score, value, correction, comment, feedback_source, …}`.

Feedback refers to a run by id, so each line must carry the run's `inputs` and `outputs` too, beside the feedback's own
fields or in a `run`. A correction without a score is a thumb down.
"""

from feedback.formats import Given, Rated, Row, RowRefused
from feedback.peers.transcripts import answered, asked, expect_a_persons, moment, named, part, rating, remark


def read(row: Row, score: str | None = None) -> Given:
    """Raises RowRefused."""
    source = row["feedback_source"] if isinstance(row.get("feedback_source"), dict) else {}
    if source.get("type") == "model":
        raise RowRefused("the feedback is a model's, not a person's")
    correction = _correction(row.get("correction"))
    if correction is None:  # who corrects an answer is a person, whatever they call it
        expect_a_persons(row.get("key"), score, "score")
    value = row.get("score") if row.get("score") is not None else row.get("value")
    opinion = Rated(
        prompt=asked(part(row, "inputs", "run"), "inputs"),
        answer=answered(part(row, "outputs", "run"), "outputs"),
        rating="down" if value is None and correction else rating(value, "score"),
        comment=remark(row.get("comment")),
        correction=correction,
    )
    by = named(row.get("user_id") or source.get("user_id"))
    return Given([opinion], by=by, at=moment(row.get("modified_at") or row.get("created_at")))


def _correction(value: object) -> str | None:
    """Raises RowRefused."""
    if value is None or value in ("", {}):
        return None
    content = answered(value, "correction").get("content")
    if not isinstance(content, str):
        raise RowRefused("the correction is not text; only a text can be learnt from here")
    return content
