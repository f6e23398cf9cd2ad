"""Files of feedback, line by line: what each neighbour's shape amounts to, and why a line is refused."""

import io
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from feedback.errors import UploadInvalid
from feedback.formats import LINE_BYTES, Given, Preferred, Rated
from feedback.imports import Source, lines, read
from feedback.records import Message

Json = dict[str, Any]

ASKED: list[Message] = [{"role": "user", "content": "How do I fly a kite?"}]
GOOD: Message = {"role": "assistant", "content": "Run into the wind."}
BAD: Message = {"role": "assistant", "content": "No idea."}


def taken(row: object, source: Source, score: str | None = None) -> Given | str:
    ((number, outcome),) = read([(7, orjson.dumps(row))], source, score)
    assert number == 7
    return outcome


def understood(row: object, source: Source, score: str | None = None) -> Given:
    outcome = taken(row, source, score)
    assert isinstance(outcome, Given), outcome
    return outcome


def open_webui(rating: object = 1, siblings: list[str] | None = None, sibling_rating: int | None = None) -> Json:
    """Two models answered one question; the first answer was rated."""
    question = {"id": "m1", "parentId": None, "childrenIds": ["m2", "m3"], "role": "user", **ASKED[0]}
    first = {"id": "m2", "parentId": "m1", "childrenIds": [], "role": "assistant", "model": "small", **GOOD}
    other = {"id": "m3", "parentId": "m1", "childrenIds": [], "role": "assistant", "model": "large", **BAD}
    if sibling_rating:
        other["annotation"] = {"rating": sibling_rating}
    return {
        "id": "f1",
        "user_id": "ann",
        "type": "rating",
        "data": {
            "rating": rating,
            "model_id": "small",
            "sibling_model_ids": siblings,
            "reason": "accurate_information",
            "comment": "nice",
        },
        "meta": {"model_id": "small", "message_id": "m2", "message_index": 1, "chat_id": "c1"},
        "snapshot": {
            "chat": {"id": "c1", "chat": {"history": {"messages": {"m1": question, "m2": first, "m3": other}}}}
        },
        "created_at": 1700000000,
        "updated_at": 1700000100,
    }


def test_a_rating_of_open_webui_is_a_thumb_of_its_user() -> None:
    said = understood(open_webui(), "openwebui")

    thumb = Rated(ASKED, GOOD, "up", reasons=("accurate_information",), comment="nice")
    assert said == Given([thumb], by="ann", user="ann", at=1700000100, model="small")


def test_a_rating_beside_an_unrated_answer_of_another_model_is_a_preference_too() -> None:
    up = understood(open_webui(1, ["large"]), "openwebui")
    down = understood(open_webui(-1, ["large"]), "openwebui")
    both = understood(open_webui(1, ["large"], sibling_rating=1), "openwebui")

    assert up.opinions[1:] == [Preferred(ASKED, GOOD, BAD)]
    assert down.opinions[1:] == [Preferred(ASKED, BAD, GOOD)]
    assert len(both.opinions) == 1


def test_what_open_webui_did_not_snapshot_is_refused() -> None:
    bare, lost, torn = open_webui(), open_webui(), open_webui()
    del bare["snapshot"]
    lost["meta"]["message_id"] = "gone"
    torn["snapshot"]["chat"]["chat"]["history"]["messages"]["m1"]["parentId"] = "gone"

    assert "export the feedback with its snapshots" in str(taken(bare, "openwebui"))
    assert "meta.message_id names no message" in str(taken(lost, "openwebui"))
    assert "lacks a message before" in str(taken(torn, "openwebui"))
    assert "data.rating is missing" in str(taken(open_webui(None), "openwebui"))


def langfuse(**fields: Any) -> Json:
    score = {"id": "s1", "traceId": "t1", "name": "user-feedback", "value": 1, "dataType": "NUMERIC", "comment": "nice"}
    score |= {"timestamp": "2026-01-02T03:04:05.000Z", "input": ASKED, "output": GOOD["content"]}
    return score | fields


@pytest.mark.parametrize(
    ("fields", "rating"),
    [
        ({}, "up"),
        ({"value": 0}, "down"),
        ({"value": -1}, "down"),
        ({"dataType": "BOOLEAN", "value": True}, "up"),
        ({"dataType": "CATEGORICAL", "value": None, "stringValue": "thumbs_down"}, "down"),
        ({"input": {"messages": ASKED}, "output": {"choices": [{"message": GOOD}]}}, "up"),
        ({"input": "How do I fly a kite?", "output": GOOD}, "up"),
    ],
)
def test_a_score_of_langfuse_with_its_trace_is_a_thumb(fields: Json, rating: str) -> None:
    (thumb,) = understood(langfuse(**fields), "langfuse").opinions

    assert isinstance(thumb, Rated)
    assert (thumb.prompt, thumb.answer, thumb.rating, thumb.comment) == (ASKED, GOOD, rating, "nice")


def test_the_trace_may_be_within_and_its_user_is_the_voter() -> None:
    score = langfuse(trace={"input": "How do I fly a kite?", "output": GOOD, "userId": "ann"})
    del score["input"], score["output"]

    said = understood(score, "langfuse")

    assert (said.by, said.user, said.at) == ("ann", "ann", 1767323045)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"value": 0.7}, "value is 0.7; a thumb is 1"),
        ({"name": "hallucination", "value": 0}, "named 'hallucination'; to import such scores ask for score="),
        ({"source": "EVAL"}, "an evaluator's, not a person's"),
        ({"input": None}, "there is no input or observation.input or trace.input: a score only refers to its trace"),
        ({"output": {"tokens": 3}}, "output has none of the fields that may hold an answer"),
    ],
)
def test_a_score_that_is_no_vote_is_refused(fields: Json, said: str) -> None:
    assert said in str(taken(langfuse(**fields), "langfuse"))


def test_a_score_of_another_name_is_taken_when_asked_for() -> None:
    assert understood(langfuse(name="liked"), "langfuse", "liked").opinions
    assert "named 'user-feedback'" in str(taken(langfuse(), "langfuse", "liked"))


def langsmith(**fields: Any) -> Json:
    feedback = {
        "run_id": "r1",
        "key": "user_score",
        "score": 1,
        "comment": None,
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    serialised = {"id": ["langchain", "HumanMessage"], "kwargs": {"type": "human", "content": "How do I fly a kite?"}}
    run = {"inputs": {"messages": [[serialised]]}, "outputs": {"generations": [[{"text": "Run into the wind."}]]}}
    return feedback | {"run": run} | fields


def test_feedback_of_langsmith_with_its_run_is_a_thumb() -> None:
    (thumb,) = understood(langsmith(), "langsmith").opinions

    assert thumb == Rated(ASKED, GOOD, "up")


def test_a_correction_needs_no_score() -> None:
    said = langsmith(score=None, key="edit", correction={"output": "Run faster."}, outputs={"output": "No idea."})

    assert understood(said, "langsmith").opinions == [Rated(ASKED, BAD, "down", correction="Run faster.")]


def test_what_a_model_thought_is_no_vote() -> None:
    assert "a model's" in str(taken(langsmith(feedback_source={"type": "model"}), "langsmith"))
    assert "there is no inputs or run.inputs" in str(taken(langsmith(run=None), "langsmith"))


def fastchat(kind: str = "leftvote", **fields: Any) -> Json:
    def side(answer: Message) -> Json:
        messages = [["USER", "How do I fly a kite?"], ["ASSISTANT", answer["content"]]]
        return {"template_name": "one_shot", "system_message": "", "messages": messages, "offset": 0, "model_name": "m"}

    vote = {
        "tstamp": 1700000000.5,
        "type": kind,
        "models": ["", ""],
        "states": [side(GOOD), side(BAD)],
        "ip": "10.0.0.1",
    }
    return vote | {"state": side(GOOD)} | fields


def test_a_battle_of_fastchat_is_a_preference_of_somebody_at_an_address_that_is_not_kept() -> None:
    left, right = (understood(fastchat(kind), "fastchat") for kind in ("leftvote", "rightvote"))

    assert left.opinions == [Preferred(ASKED, GOOD, BAD)]
    assert right.opinions == [Preferred(ASKED, BAD, GOOD)]
    assert (left.at, left.by) == (1700000000.5, right.by)
    assert "10.0.0.1" not in repr(left)


def test_a_thumb_in_fastchats_single_chat_is_a_thumb() -> None:
    assert understood(fastchat("downvote"), "fastchat").opinions == [Rated(ASKED, GOOD, "down")]


def test_what_teaches_nothing_in_fastchats_log_is_named() -> None:
    went_on = fastchat()
    went_on["states"][1]["messages"] = [["USER", "q"], ["ASSISTANT", "a"], *went_on["states"][0]["messages"]]

    assert "a tie" in str(taken(fastchat("tievote"), "fastchat"))
    assert "both are bad" in str(taken(fastchat("bothbad_vote"), "fastchat"))
    assert "no vote" in str(taken(fastchat("chat"), "fastchat"))
    assert "different ways" in str(taken(went_on, "fastchat"))


JSON_VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-2, 2)
    | some.floats(allow_nan=False)
    | some.sampled_from(["up", "m2"]),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(data=some.data(), source=some.sampled_from(get_args(Source)))
def test_no_shape_of_a_line_breaks_the_reader(data: some.DataObject, source: Source) -> None:
    """A good line with any of its values replaced by something else is taken, or refused in words."""
    row: Json = {
        "openwebui": open_webui(1, ["large"]),
        "langfuse": langfuse(),
        "langsmith": langsmith(correction={"output": "x"}),
        "fastchat": fastchat(),
        "openai": {"input": {"messages": ASKED}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "trl": {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
        "kto": {"prompt": ASKED, "completion": [GOOD], "label": True},
    }[source]
    row = orjson.loads(orjson.dumps(row))  # a copy of its own: it is about to be damaged
    holder: Any = row
    while True:
        place = data.draw(some.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        inner = holder[place]
        if not (isinstance(inner, dict | list) and inner) or data.draw(some.booleans()):
            break
        holder = inner
    holder[place] = data.draw(JSON_VALUES)

    outcome = taken(row, source)

    assert isinstance(outcome, str) or outcome.opinions


def test_a_line_that_is_nested_deeply_is_refused() -> None:
    deep = b'{"prompt": "q", "output": ' + b'{"output": ' * 900 + b"1" + b"}" * 901
    fields = {"name": "user-feedback", "value": 1, "input": "q"}
    line = orjson.dumps(fields)[:-1] + b"," + deep[1:]

    ((_, outcome),) = read([(1, line)], "langfuse")

    assert outcome == "it is nested more than 64 deep"


def test_lines_keep_their_numbers_and_blank_ones_count() -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": 2}\r\n{"c": 3}')

    assert [(number, orjson.loads(line)) for number, line in lines(file)] == [
        (1, {"a": 1}),
        (4, {"b": 2}),
        (5, {"c": 3}),
    ]


def test_an_array_is_its_items_and_a_line_that_begins_like_one_is_a_line_where_only_lines_come() -> None:
    array = b'\n [{"a": 1},\n {"b": 2}]'

    assert [(number, orjson.loads(item)) for number, item in lines(io.BytesIO(array))] == [(1, {"a": 1}), (2, {"b": 2})]
    assert [number for number, _ in lines(io.BytesIO(b'[1]\n{"a": 1}'), array_bytes=0)] == [1, 2]
    with pytest.raises(UploadInvalid, match="is not valid JSON"):
        list(lines(io.BytesIO(b"[1, 2")))
    with pytest.raises(UploadInvalid, match="send one object a line"):
        list(lines(io.BytesIO(b"[1, 2, 3, 4]"), array_bytes=5))


def test_an_overlong_line_is_refused_and_the_next_one_is_read() -> None:
    file = io.BytesIO(b'{"a": "' + b"x" * (2 * LINE_BYTES) + b'"}\n{"prompt": "q", "chosen": "a", "rejected": "b"}\n')

    (first, why), (second, taken) = read(lines(file), "trl")

    assert (first, second) == (1, 2)
    assert why == "it is longer than 10 MB"
    assert isinstance(taken, Given)
