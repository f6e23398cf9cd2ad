"""What a model thinks of a given answer, and what an adapter made of it: the arithmetic, and how it is drawn."""

import math
import re
from typing import Any

import pytest

from serve.console import ribbon
from serve.console.reading import Reading, Token, log_ratios, reading, stored
from tests.browser.payloads import PAYLOADS

Json = dict[str, Any]


def replied(*tokens: str, model: str = "heed-base") -> Json:
    """A prompt as vLLM tells it: each token the second likeliest in its place."""
    entries = [
        {
            str(at): {"logprob": -1.0 - at, "rank": 2, "decoded_token": text},
            "99": {"logprob": -0.5, "rank": 1, "decoded_token": " other"},
        }
        for at, text in enumerate(tokens)
    ]
    return {"model": model, "prompt_token_ids": list(range(len(tokens))), "prompt_logprobs": [None, *entries[1:]]}


def opened(count: int) -> Json:
    return {"prompt_token_ids": list(range(count))}


def read_by(model: str, *logprobs: float, text: str = "x") -> Reading:
    tokens = [Token(text, logprob, 1, {text: logprob, " other": -3.0}) for logprob in logprobs]
    return Reading(model, tuple(tokens))


def test_only_the_answers_tokens_are_read_with_the_one_that_ends_it() -> None:
    whole = replied("<|user|>", "Hi", "<|end|>", "<|assistant|>", "Fly", " it", "<|end|>", "\n")

    found = reading(opened(4), whole, "Fly it")

    assert found.model == "heed-base"
    assert [token.text for token in found.tokens] == ["Fly", " it", "<|end|>"]
    assert [token.logprob for token in found.tokens] == [-5.0, -6.0, -7.0]
    assert found.tokens[0].rank == 2
    assert found.tokens[0].likeliest == {"Fly": -5.0, " other": -0.5}


@pytest.mark.parametrize("text", ["", "something that the template wrote otherwise"])
def test_an_answer_whose_text_is_not_found_is_read_to_the_end(text: str) -> None:
    found = reading(opened(1), replied("<|assistant|>", "Fly", "<|end|>", "\n"), text)

    assert [token.text for token in found.tokens] == ["Fly", "<|end|>", "\n"]


def test_where_a_template_writes_an_answered_conversation_otherwise_the_answer_begins_where_they_part() -> None:
    told = {"prompt_token_ids": [0, 1, 70, 71]}

    found = reading(told, replied("<|user|>", "Hi", "<|assistant|>", "Fly"), "Fly")

    assert [token.text for token in found.tokens] == ["<|assistant|>", "Fly"]


def test_a_character_of_several_tokens_is_found_as_well() -> None:
    found = reading(opened(1), replied("<|assistant|>", "Go ", "", "🪁", "<|end|>", "\n"), "Go 🪁")

    assert [token.text for token in found.tokens] == ["Go ", "", "🪁", "<|end|>"]


def test_the_sum_of_log_ratios_is_the_difference_of_the_answers_log_probabilities() -> None:
    base, policy = read_by("heed-base", -2.0, -1.0, -0.5), read_by("heed-v1-00000000", -0.5, -1.25, -0.5)

    ratios = log_ratios(policy, base)

    assert ratios == [1.5, -0.25, 0.0]
    assert sum(ratios) == pytest.approx(sum(t.logprob for t in policy.tokens) - sum(t.logprob for t in base.tokens))


def test_by_the_sums_the_preferred_of_two_answers_is_told_as_dpo_tells_it() -> None:
    """Rafailov et al. 2023, equation 6: the term that both rewards share cancels."""
    beta, base = 0.5, read_by("base", -1.0, -1.0)
    good, bad = (sum(log_ratios(read_by("v1", *logprobs), base)) for logprobs in ((-0.5, -0.5), (-2.0, -1.5)))

    preferred = 1 / (1 + math.exp(beta * bad - beta * good))

    assert preferred == pytest.approx(1 / (1 + math.exp(-beta * (1.0 + 1.5))))


def test_a_reading_is_asked_for_without_a_record_and_with_all_that_shapes_the_text() -> None:
    completion = {
        "messages": [{"role": "user", "content": "Hi"}],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Ho"}}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.7,
    }

    answered = stored(completion)

    for asked in (answered.opened("heed-base"), answered.whole("heed-base")):
        assert asked["store"] is False
        assert (asked["tools"], asked["chat_template_kwargs"]) == ([{"type": "function"}], {"enable_thinking": False})
        assert "temperature" not in asked
    assert answered.whole("heed-base")["messages"][-1] == {"role": "assistant", "content": "Ho"}
    assert answered.whole("heed-base")["add_generation_prompt"] is False


@pytest.mark.parametrize(
    ("probability", "told"),
    [(1.0, "100 %"), (0.5, "50 %"), (0.1, "10 %"), (0.0123, "1.2 %"), (0.001, "0.1 %"), (0.0, "under 0.1 %")],
)
def test_probabilities_are_told_as_precisely_as_they_matter(probability: float, told: str) -> None:
    assert ribbon.percent(probability) == told


def test_a_tokens_colour_is_its_probability_and_its_line_tells_it_too() -> None:
    page = ribbon.drawn(read_by("base", *map(math.log, (0.9, 0.3, 0.05, 0.001))), read_by("v1", -1, -1, -1, -1))

    levels = re.findall(r'class="heed-token (heed-\w+)"', page)[:4]
    assert levels == ["heed-sure", "heed-open", "heed-rare", "heed-odd"]
    for level in levels[1:]:
        assert re.search(rf"\.{level} {{.*border-bottom", ribbon.CSS)


def test_a_change_has_a_sign_a_number_and_a_strength() -> None:
    base, policy = read_by("base", -1.0, -1.0, -1.0), read_by("v1", -0.5, -4.0, -1.01)

    changed = ribbon.drawn(base, policy).split("<section>")[-1]

    assert re.findall(r'heed-token (heed-\w+|)"', changed) == ["heed-up", "heed-down", ""]
    assert re.findall(r"<sup[^>]*>([^<]+)", changed) == ["+0.50", "−3.00"]
    assert re.findall(r"--heed-by: ([\d.]+)\"><bdi", changed) == ["0.11", "0.45"]
    assert "Sum of the log-ratios: −2.51 nats" in changed


def test_the_number_of_a_line_break_stands_before_it() -> None:
    changed = ribbon.drawn(read_by("base", -1.0, text=".\n"), read_by("v1", -0.5, text=".\n")).split("<section>")[-1]

    assert '<bdi>.⏎</bdi><sup aria-hidden="true">+0.50</sup>\n</span>' in changed


def test_of_a_token_all_alternatives_are_told_with_both_probabilities() -> None:
    base = Reading("base", (Token(" a", -2.0, 4, {" the": -0.5, " a": -2.0}),))
    policy = Reading("v1", (Token(" a", -0.25, 1, {" a": -0.25, " no": -3.0}),))

    told = ribbon.drawn(base, policy).split('data-at="0" hidden')[-1]

    rows = re.findall(r"<tr><td><bdi>(.*?)</bdi></td><td>(.*?)</td><td>(.*?)</td></tr>", told)
    assert rows == [
        ("␣a", "14 %", "78 %"),
        ("␣the", "61 %", "under 5.0 %"),
        ("␣no", "under 14 %", "5.0 %"),
    ]
    assert "log-ratio +1.75: made 5.8 times as likely. Place 4 and 1 among all tokens" in told


def test_what_cannot_be_seen_of_a_token_is_told() -> None:
    assert [ribbon.shown(text) for text in (" a", "\n\n", "\t", "")] == ["␣a", "⏎⏎", "⇥", "(part of a character)"]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_what_a_model_wrote_is_no_html(payload: str) -> None:
    readings = [Reading(payload, (Token(payload, -1.0, 1, {payload: -1.0}),))] * 2

    page = ribbon.drawn(*readings)

    tags = set(re.findall(r"<(\w+)", page))
    ours = "div section h3 p span bdi strong table caption tr th td sup"
    assert tags <= set(ours.split())
    assert re.fullmatch(r'(<[a-z0-9]+( [a-z-]+(="[^"<>]*")?)*>|</[a-z0-9]+>|[^<])*', page)


def test_a_long_answer_is_drawn_in_part_and_summed_whole() -> None:
    count = ribbon.DRAWN + 5
    page = ribbon.drawn(read_by("base", *[-1.0] * count), read_by("v1", *[-0.5] * count))

    assert page.count('role="option"') == 3 * ribbon.DRAWN
    assert f"the sums are of all {count}" in page
    assert f"Sum of the log-ratios: +{count / 2:.2f} nats" in page
