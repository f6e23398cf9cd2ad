"""The judge over real HTTP: a scripted server that likes what it is told to like."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer.judge import JudgeSilent, ModelJudge, ScoringJudge, duels

REQUEST = [{"role": "user", "content": "How do I fly a kite?"}]
Say = Callable[[str], str | int]


@contextmanager
def judging(say: Say, key: str = "") -> Iterator[tuple[str, list[str]]]:
    """Address of a judge that answers each prompt by `say`, or with the status it gives; and what it was asked."""
    asked: list[str] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = body["messages"][0]["content"]
            asked.append(prompt)
            said: str | int = 401 if key and self.headers["authorization"] != f"Bearer {key}" else say(prompt)
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            if isinstance(said, str):
                self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def judge() -> Iterator[Callable[..., ModelJudge]]:
    made: list[ModelJudge] = []

    def make(url: str, key: str = "") -> ModelJudge:
        made.append(ModelJudge(url, "some-model", key))
        return made[-1]

    yield make
    for each in made:
        each.close()


def answers(prompt: str) -> tuple[str, str]:
    found = re.findall(r"<answer_[ab]>\n(.*?)\n</answer_[ab]>", prompt, re.DOTALL)
    return found[0], found[1]


def likes_steps(prompt: str) -> str:
    a, b = answers(prompt)
    return "TIE" if ("1." in a) == ("1." in b) else "A" if "1." in a else "B"


def test_a_judge_with_an_opinion_has_it_in_both_orders(judge: Callable[..., ModelJudge]) -> None:
    with judging(likes_steps) as (url, asked):
        found = duels(judge(url), [REQUEST] * 3, ["1. run", "no", "1. run"], ["no", "1. run", "1. walk"])

    assert [duel.score for duel in found] == [1.0, 0.0, 0.5]
    assert len(asked) == 6
    assert all("How do I fly a kite?" in prompt for prompt in asked)


def test_a_judge_that_always_likes_the_first_answer_says_nothing(judge: Callable[..., ModelJudge]) -> None:
    with judging(lambda prompt: "A") as (url, _):
        (found,) = duels(judge(url), [REQUEST], ["long answer"], ["short"])

    assert (found.first, found.second, found.score) == (1.0, 0.0, 0.5)
    assert found.longer == 6


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(judge: Callable[..., ModelJudge]) -> None:
    with judging(lambda prompt: "A") as (url, asked):
        (found,) = duels(judge(url), [REQUEST], ["same"], ["same"])

    assert found.score == 0.5
    assert asked == []


def test_its_first_word_counts_however_it_is_written(judge: Callable[..., ModelJudge]) -> None:
    with judging(lambda prompt: "**b**, because it is kind.") as (url, _):
        assert judge(url).prefers(REQUEST, "one", "two") == 0.0


@pytest.mark.parametrize(
    ("said", "words"), [("Neither, I think.", "it said 'Neither"), (500, "status 500"), (429, "status 429")]
)
def test_a_judge_without_a_verdict_is_silent_in_words(
    judge: Callable[..., ModelJudge], said: str | int, words: str
) -> None:
    with judging(lambda prompt: said) as (url, asked), pytest.raises(JudgeSilent) as silent:
        judge(url).prefers(REQUEST, "one", "two")

    assert words in str(silent.value)
    assert len(asked) == 2


def test_a_judge_that_is_not_there_is_silent(judge: Callable[..., ModelJudge]) -> None:
    with judging(lambda prompt: "A") as (url, _):
        pass

    with pytest.raises(JudgeSilent, match="did not answer"):
        judge(url).prefers(REQUEST, "one", "two")


def test_the_key_goes_along(judge: Callable[..., ModelJudge]) -> None:
    with judging(lambda prompt: "YES", key="secret") as (url, _):
        assert judge(url, "secret").affirms("Is it kind?", REQUEST, "yes dear")
        with pytest.raises(JudgeSilent, match="401"):
            judge(url, "wrong").affirms("Is it kind?", REQUEST, "yes dear")


def test_what_gives_scores_judges_too_and_answers_no_questions() -> None:
    by_length = ScoringJudge("reward", lambda request, answer: float(len(answer)))

    assert by_length.prefers(REQUEST, "longer", "short") == 1.0
    assert by_length.prefers(REQUEST, "same", "size") == 0.5
    with pytest.raises(JudgeSilent, match="no questions"):
        by_length.affirms("Is it kind?", REQUEST, "yes")
