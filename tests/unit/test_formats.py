"""Formats: pairs as rows and back, and what a row that cannot be read is told."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from feedback.formats import Format, Preferred, Rated, RowRefused, parse, read, read_preference, rows
from feedback.records import Message, Pair, prompt_digest

# What JSON can carry: no lone surrogates, which no client can send either.
TEXTS = some.text(alphabet=some.characters(exclude_categories=["Cs"]))
PROMPTS = some.lists(
    some.builds(lambda role, text: {"role": role, "content": text}, some.sampled_from(["system", "user"]), TEXTS),
    min_size=1,
    max_size=4,
)


def pair(prompt: list[Message], chosen: str, rejected: str, tools: list[Any] | None = None) -> Pair:
    return Pair(
        id="pair-1",
        prompt_hash=prompt_digest(prompt, tools),
        prompt=prompt,
        tools=tools,
        chosen={"role": "assistant", "content": chosen},
        rejected={"role": "assistant", "content": rejected},
        source="preference",
        split="train",
        opinions=["pref-1"],
        completions=["chatcmpl-1", "chatcmpl-2"],
        adapters=["heed-base"],
        created=1000.0,
    )


def carried(made: Pair, format: Format) -> list[Preferred | Rated]:
    """Through the bytes of a file."""
    return [read(parse(orjson.dumps(row)), format) for row in rows(made, format)]


@given(prompt=PROMPTS, chosen=TEXTS, rejected=TEXTS)
def test_a_pair_comes_back_as_it_went_whatever_its_texts(prompt: list[Message], chosen: str, rejected: str) -> None:
    made = pair(prompt, chosen, rejected)
    if chosen.strip() == rejected.strip():
        for format in ("trl", "openai"):
            with pytest.raises(RowRefused, match="say the same"):
                carried(made, format)
        return

    wanted = Preferred(prompt, made.chosen, made.rejected)
    assert carried(made, "trl") == [wanted]
    assert carried(made, "openai") == [wanted]
    assert carried(made, "kto") == [Rated(prompt, made.chosen, "up"), Rated(prompt, made.rejected, "down")]


@pytest.mark.parametrize("format", ["trl", "openai", "kto"])
def test_tools_and_calls_of_tools_come_back_too(format: Format) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    made = pair([{"role": "user", "content": "q"}], "", "no", tools)
    made.chosen["tool_calls"] = [call]

    first = carried(made, format)[0]

    assert first.tools == tools
    assert (first.chosen if isinstance(first, Preferred) else first.answer)["tool_calls"] == [call]


def test_plain_strings_and_an_implicit_prompt_are_read_as_trl_reads_them() -> None:
    asked: list[Message] = [{"role": "user", "content": "q"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("good", "bad"))
    wanted = Preferred(asked, good, bad)

    assert read({"prompt": "q", "chosen": "good", "rejected": "bad"}, "trl") == wanted
    assert read({"chosen": [*asked, good], "rejected": [*asked, bad]}, "trl") == wanted
    assert read({"prompt": "q", "completion": "good", "label": True}, "kto") == Rated(asked, good, "up")


def test_the_nulls_that_arrow_puts_into_messages_are_no_part_of_a_prompt() -> None:
    asked = [{"role": "user", "content": "q", "tool_calls": None, "name": None}]

    assert read({"prompt": asked, "chosen": "a", "rejected": "b"}, "trl").prompt == [{"role": "user", "content": "q"}]


def test_a_training_file_may_hold_rows_of_both_kinds() -> None:
    made = pair([{"role": "user", "content": "q"}], "good", "bad")

    assert read_preference(rows(made, "trl")[0]) == read_preference(rows(made, "openai")[0])


SECRET = "my secret"


@pytest.mark.parametrize(
    ("format", "row", "said"),
    [
        ("trl", {"chosen": SECRET, "rejected": "b"}, "prompt is missing"),
        ("trl", {"prompt": "q", "chosen": SECRET}, "rejected is missing; it should be a message"),
        ("trl", {"prompt": [], "chosen": SECRET, "rejected": "b"}, "prompt is an empty list"),
        ("trl", {"prompt": [{"role": SECRET}], "chosen": "a", "rejected": "b"}, r"prompt\[0\].role is a string"),
        ("trl", {"prompt": [{"role": ["x"]}], "chosen": "a", "rejected": "b"}, r"prompt\[0\].role is a list"),
        ("trl", {"prompt": "q", "chosen": [], "rejected": "b"}, "chosen has 0 messages"),
        ("trl", {"prompt": "q", "chosen": {"role": "user", "content": SECRET}, "rejected": "b"}, "role user"),
        ("trl", {"prompt": "q", "chosen": SECRET + " ", "rejected": SECRET}, "say the same"),
        ("trl", {"prompt": "q", "chosen": "a", "rejected": "b", "tools": SECRET}, "tools is a string"),
        ("trl", {"chosen": [{"role": "user", "content": SECRET}], "rejected": [SECRET]}, "do not begin with the same"),
        ("openai", {"input": SECRET}, "input is a string; it should be an object"),
        ("openai", {"input": {"messages": "q"}, "preferred_output": [1]}, "preferred_output is a number"),
        ("kto", {"prompt": "q", "completion": SECRET, "label": 1}, "label is a number; it should be true or false"),
    ],
)
def test_a_row_that_cannot_be_read_names_its_field_and_quotes_nothing(
    format: Format, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(RowRefused, match=said) as refused:
        read(row, format)

    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "said"), [(b"{", "not valid JSON"), (b"[]", "an empty list"), (b'{"a": "\xff"}', "not valid JSON")]
)
def test_a_line_that_is_no_object_is_refused(line: bytes, said: str) -> None:
    with pytest.raises(RowRefused, match=said):
        parse(line)
