"""Redaction: what is found and what is left alone, and how it is named. Texts of tests/personal.py."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from feedback.errors import TextTooLong
from feedback.records import Choice, Comparison, Completion, Message, prompt_digest
from feedback.redaction import CannotRedact, Names, Redaction
from feedback.settings import LedgerSettings
from tests.load.bench_redaction import ALL, Found, measured
from tests.personal import samples


@pytest.fixture(scope="module")
def redaction() -> Iterator[Redaction]:
    redaction = of(redact=ALL)
    yield redaction
    redaction.close()


@pytest.fixture(scope="module")
def found(redaction: Redaction) -> Found:
    return measured(redaction, samples(seed=1, each=60))


def of(**settings: object) -> Redaction:
    return Redaction(LedgerSettings.model_validate(settings))


def completion(prompt: object, *answers: Message, **fields: object) -> Completion:
    messages = [{"role": "user", "content": prompt}]
    given = {
        "id": "chatcmpl-1",
        "served_model": "heed",
        "adapter": "heed-base",
        "created": 1.0,
        "messages": messages,
        "prompt_hash": prompt_digest(messages),
        "choices": [Choice(index=i, message=answer) for i, answer in enumerate(answers)],
    }
    return Completion.model_validate(given | fields)


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "form",
    [
        "email",
        "email, inside a company",
        "phone, US",
        "phone, GB",
        "phone, DE",
        "phone, FR",
        "phone, grouped in another way",
        "phone, elsewhere, with +",
        "card",
        "IBAN",
        "IP address",
    ],
)
def test_personal_data_is_found(found: Found, form: str) -> None:
    assert found.recall(form) >= 0.98


@pytest.mark.parametrize(
    "form", ["date", "version", "number", "unix time", "UUID, hash", "code", "package, host", "coordinates"]
)
def test_what_only_looks_like_it_is_left_alone(found: Found, form: str) -> None:
    assert found.recall(form) >= 0.95


@pytest.mark.parametrize("kind", ["email", "card", "iban"])
def test_what_is_replaced_was_personal(found: Found, kind: str) -> None:
    assert found.precision(kind) >= 0.9


async def test_a_value_has_one_name_in_a_record_and_prompts_stay_comparable(redaction: Redaction) -> None:
    prompt = "I am ann@x.org, +49 30 901820. Write to bob@y.org."

    one = await redaction.completion(completion(prompt, said("Dear BOB@Y.org, ask eve@z.org. From ann@x.org")))
    other = await redaction.completion(completion(prompt, said("No.")))

    assert one.messages[0]["content"] == "I am <EMAIL_1>, <PHONE_1>. Write to <EMAIL_2>."
    assert one.choices[0].message["content"] == "Dear <EMAIL_2>, ask <EMAIL_3>. From <EMAIL_1>"
    assert one.redacted == {"email": 5, "phone": 1}
    assert (other.messages, other.prompt_hash) == (one.messages, one.prompt_hash)
    assert one.prompt_hash == prompt_digest(one.messages)


async def test_the_next_turn_names_what_came_before_as_it_was_named(redaction: Redaction) -> None:
    first = completion("I am ann@x.org.", said("Ask bob@y.org."))
    second = completion("", said("Yes."))
    turns = [*first.messages, first.choices[0].message, {"role": "user", "content": "eve@z.org, too?"}]

    one = await redaction.completion(first)
    two = await redaction.completion(second.model_copy(update={"messages": turns}))

    assert two.messages[:2] == [*one.messages, one.choices[0].message]
    assert two.messages[2]["content"] == "<EMAIL_3>, too?"


async def test_a_comparison_has_the_prompt_of_its_answers(redaction: Redaction) -> None:
    answer = await redaction.completion(completion("I am ann@x.org", said("a@b.org")))
    given = completion("I am ann@x.org", said("Hi"))
    comparison = Comparison.model_validate(
        given.model_dump(include={"id", "served_model", "created", "messages", "prompt_hash"})
        | {"a": {"completion_id": "1"}, "b": {"completion_id": "2"}, "adapter_a": "x", "adapter_b": "x"}
    )

    kept = await redaction.comparison(comparison)

    assert (kept.messages, kept.prompt_hash) == (answer.messages, answer.prompt_hash)


async def test_everything_that_tells_the_text_again_is_redacted_or_dropped(redaction: Redaction) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "mail", "arguments": '{"to": "ann@x.org"}'}}
    given = completion(
        [
            {"type": "text", "text": "ann@x.org"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,A@b.org"}},
        ],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        tools=[{"function": {"name": "mail", "description": "as ann@x.org"}}],
        params={"stop": ["ann@x.org"], "seed": 4111111111111111},
        metadata={"from": "ann@x.org"},
        user="ann@x.org",
        prompt_token_ids=[1, 2],
    )
    choice = given.choices[0].model_copy(update={"logprobs": {"content": [{"token": "ann@x.org"}]}, "token_ids": [3]})

    kept = await redaction.completion(given.model_copy(update={"choices": [choice]}))

    assert kept.user == "ann@x.org"  # whom an erasure would name
    assert kept.messages[0]["content"][1] == given.messages[0]["content"][1]
    text = kept.model_copy(update={"user": None}).model_dump_json()
    assert "ann@x.org" not in text
    assert text.count("<EMAIL_1>") == 5
    assert kept.params["seed"] == 4111111111111111
    assert (kept.prompt_token_ids, kept.choices[0].token_ids, kept.choices[0].logprobs) == (None, None, None)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('{"to":"ann@x.org","n":3}', '{"to": "<EMAIL_1>", "n": 3}'),
        ('{"card": 4111111111111111, "yes": true}', '{"card": "<CARD_1>", "yes": true}'),
        ('{"to":   "nobody"}', '{"to":   "nobody"}'),
        ('{"to": "ann@x.org', '{"to": "<EMAIL_1>'),
    ],
)
def test_arguments_of_a_tool_stay_json(redaction: Redaction, written: str, kept: str) -> None:
    assert Names(redaction).tree({"arguments": written}) == {"arguments": kept}


async def test_a_prompt_of_token_ids_cannot_be_read_and_is_not_kept(redaction: Redaction) -> None:
    kept = await redaction.completion(completion([12, 13, 14], said("Hi"), object="text_completion"))

    assert kept.messages == [{"role": "user", "content": "<TOKENS>"}]


async def test_a_correction_takes_the_names_of_the_answer_in_its_order(redaction: Redaction) -> None:
    asked = completion("From ann@x.org and bob@y.org", said("To eve@z.org, then dan@z.org, not bob@y.org"))
    about = await redaction.completion(asked)

    kept = await redaction.said(
        about,
        0,
        "First eve@z.org, then dan@z.org, bob@y.org and ann@x.org, then me@z.org",
        "me@z.org <EMAIL_9>",
        ["me@z.org"],
    )

    assert kept == (
        "First <EMAIL_3>, then <EMAIL_4>, <EMAIL_2> and <EMAIL_1>, then <EMAIL_5>",
        "<EMAIL_5> <EMAIL_9>",
        ["<EMAIL_5>"],
    )


async def test_redacting_again_changes_nothing(redaction: Redaction) -> None:
    once = await redaction.completion(completion("I am ann@x.org", said("eve@z.org")))

    twice = await redaction.completion(once)
    more = await redaction.completion(completion("<EMAIL_1>, too", said("bob@y.org")))

    assert (twice.messages, twice.choices, twice.redacted) == (once.messages, once.choices, None)
    assert more.choices[0].message["content"] == "<EMAIL_2>"


async def test_where_two_kinds_claim_the_same_characters_a_checksum_decides(redaction: Redaction) -> None:
    kept = await redaction.completion(completion("DE89 3704 0044 0532 0130 00 or 4111 1111 1111 1111", said("Hi")))

    assert kept.messages[0]["content"] == "<IBAN_1> or <CARD_1>"


async def test_only_the_kinds_asked_for_are_replaced() -> None:
    redaction = of(redact="email")

    kept = await redaction.completion(completion("ann@x.org +49 30 901820", said("10.0.0.1")))

    redaction.close()
    assert (kept.messages[0]["content"], kept.choices[0].message["content"]) == ("<EMAIL_1> +49 30 901820", "10.0.0.1")


async def test_without_redaction_a_record_is_the_same_object() -> None:
    given = completion("ann@x.org", said("Hi"))

    assert await of(redact="off").completion(given) is given


async def test_what_is_too_long_to_look_through_is_refused_and_what_needs_no_look_is_not() -> None:
    redaction = of(redact="email", redact_characters=1000)

    kept = await redaction.completion(completion("a" * 5000, said("Hi")))
    with pytest.raises(TextTooLong, match="1000 characters"):
        await redaction.completion(completion("ann@x.org " + "a" * 991, said("Hi")))

    redaction.close()
    assert kept.redacted is None


def test_the_time_an_address_takes_does_not_grow_by_the_square(redaction: Redaction) -> None:
    """Presidio's own pattern takes hours for this, which is what the test would take."""
    text = "a." * 40_000 + "@"

    assert redaction.spans(text, redaction.kinds) == []


def test_a_country_nobody_knows_is_named() -> None:
    with pytest.raises(CannotRedact, match="XX"):
        of(redact="phone", redact_regions="US,XX").load()


def test_without_the_extra_the_start_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['presidio_analyzer'] = None; "
    start = "from serve.__main__ import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", hidden + start],
        env={"HEED_REDACT": "email", "HEED_OPERATOR_KEY": "k"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("HEED_REDACT is email and presidio_analyzer is not installed; install the extra")


def test_torch_is_not_loaded_for_it() -> None:
    load = "from feedback.redaction import Redaction; from feedback.settings import LedgerSettings; import sys; "
    load += "Redaction(LedgerSettings()).load(); print('presidio_analyzer' in sys.modules, 'torch' in sys.modules); "

    done = subprocess.run(
        [sys.executable, "-c", load + "import torch"], env={"HEED_REDACT": "email"}, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr, done.returncode) == ("True False\n", "", 0)


def test_a_kind_that_cannot_be_found_is_named_with_those_that_can() -> None:
    settings = {"HEED_REDACT": "email,name", "HEED_OPERATOR_KEY": "k"}

    done = subprocess.run([sys.executable, "-m", "serve"], env=settings, capture_output=True, text=True)

    assert done.stderr == ("HEED_REDACT: Input should be 'email', 'phone', 'card', 'iban' or 'ip'; got 'name'\n")


def test_recorded_tokens_and_redaction_exclude_each_other() -> None:
    settings = {"HEED_REDACT": "email", "HEED_RECORD_TOKENS": "1", "HEED_OPERATOR_KEY": "k"}

    done = subprocess.run([sys.executable, "-m", "serve"], env=settings, capture_output=True, text=True)

    assert done.returncode == 1
    assert "HEED_RECORD_TOKENS keeps every token" in done.stderr


def test_arguments_that_are_not_an_object_stay_as_they_are(redaction: Redaction) -> None:
    assert json.loads(Names(redaction).tree({"arguments": "[1, 2]"})["arguments"]) == [1, 2]
