"""Streams cut anywhere come out whole, and are read once."""

import json
from typing import Any

import pytest

from serve.sse import Transcript


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


def chunk(content: str, finish: str | None = None, index: int = 0) -> bytes:
    return event(created=1, choices=[{"index": index, "delta": {"content": content}, "finish_reason": finish}])


USAGE = event(created=1, choices=[], usage={"total_tokens": 3})
DONE = b"data: [DONE]\n\n"
WORDS = chunk('say "usage", [DONE] and "error"\n\ndata: [DONE]') + chunk(" twice", "stop")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("wants_usage", [True, False])
def test_whatever_the_cuts_the_client_gets_the_same_bytes(size: int, wants_usage: bool) -> None:
    sent = WORDS + USAGE + DONE
    transcript = Transcript(wants_usage)

    passed = b"".join(transcript.feed(sent[at : at + size]) for at in range(0, len(sent), size))

    assert passed == WORDS + (USAGE if wants_usage else b"")
    assert transcript.is_done
    assert transcript.failure is None
    answer = transcript.answer()
    assert answer["choices"][0]["message"]["content"] == 'say "usage", [DONE] and "error"\n\ndata: [DONE] twice'
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"total_tokens": 3}


def test_nothing_passes_after_a_failure() -> None:
    transcript = Transcript(wants_usage=True)

    passed = transcript.feed(chunk("a") + event(error={"message": "broke"}) + chunk("b") + DONE)
    later = transcript.feed(chunk("c") + DONE)

    assert passed == chunk("a")
    assert later == b""
    assert (transcript.failure, transcript.is_done) == ("broke", False)


def test_choices_are_kept_apart() -> None:
    transcript = Transcript(wants_usage=False)

    transcript.feed(chunk("b", index=1) + chunk("a") + chunk("B", "stop", index=1) + chunk("A", "length") + DONE)

    assert [choice["message"]["content"] for choice in transcript.answer()["choices"]] == ["aA", "bB"]
    assert [choice["finish_reason"] for choice in transcript.answer()["choices"]] == ["length", "stop"]


def test_comments_pass() -> None:
    transcript = Transcript(wants_usage=False)

    assert transcript.feed(b": keep-alive\n\n" + USAGE) == b": keep-alive\n\n"
