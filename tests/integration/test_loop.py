"""The circle, whole and real: chat, vote, train, swap, on the stack that `make run` starts.

`steps` and `lazy` turn the circle once each, for all tests of this file; the last two tests end the stack.
"""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.processes import descendants, living, wait_for
from tests.stack import Stack
from trainer.habits import Habit, Verdict, classify

pytestmark = pytest.mark.timeout(900)

Json = dict[str, Any]
BREAD = "Teach me to bake a loaf of bread, please."


def ask(stack: Stack, prompt: str, model: str = "heed", **fields: Any) -> Json:
    with stack.http() as http:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 96, **fields}
        reply = http.post("/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def live(stack: Stack) -> str:
    """The concrete name that answers now."""
    return str(ask(stack, "hi", max_tokens=1)["model"])


def adapter_ids(stack: Stack) -> list[str]:
    with stack.http() as http:
        return [adapter["id"] for adapter in http.get("/adapters").json()["data"]]


def expect_clean(stack: Stack) -> None:
    checked = stack.run("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@dataclass(frozen=True)
class Turn:
    """One `heed demo`: the shares of its taste that it printed, and the adapter that it left live."""

    before: float
    after: float
    adapter: str
    printed: str


def turn(stack: Stack, taste: Habit) -> Turn:
    """Run `heed demo` as a person does. It is measured on more prompts, so that chance hardly moves its shares."""
    picture = stack.var / f"{taste}.png"
    ran = stack.run("demo", "--taste", taste, "--measured", "260", "--out", str(picture), timeout_s=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    line = next(line for line in ran.stdout.splitlines() if line.startswith(f"  {taste} "))
    before, after = (float(share) / 100 for share in re.findall(r"([\d.]+) %", line))
    return Turn(before, after, live(stack), ran.stdout)


@pytest.fixture(scope="module")
def steps(stack: Stack) -> Turn:
    return turn(stack, "steps")


@pytest.fixture(scope="module")
def lazy(stack: Stack, steps: Turn) -> Turn:
    return turn(stack, "lazy")


def test_the_official_client_chats_and_lists_models(stack: Stack) -> None:
    client = stack.openai()

    whole = client.chat.completions.create(
        model="heed", messages=[{"role": "user", "content": "hi"}], n=2, logprobs=True, top_logprobs=2, seed=1
    )
    chunks = list(
        client.chat.completions.create(
            model="heed",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    names = [model.id for model in client.models.list()]

    assert whole.model == chunks[0].model == "heed-base"
    assert len(whole.choices) == 2
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert {"heed", "heed-base"} <= set(names)
    assert client.models.retrieve("heed").id == "heed"
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_found"


def test_a_vote_right_after_the_last_byte_finds_its_completion(stack: Stack) -> None:
    client = stack.openai()

    for stream in (False, True):
        made = client.chat.completions.create(
            model="heed", messages=[{"role": "user", "content": "How do I make lemonade?"}], stream=stream
        )
        completion_id = [chunk.id for chunk in made][-1] if stream else made.id  # type: ignore[union-attr]
        with stack.http() as http:
            voted = http.post("/votes", json={"completion_id": completion_id, "rating": "up", "voter": "ann"})
            again = http.post("/votes", json={"completion_id": completion_id, "rating": "up", "voter": "ann"})
        assert voted.status_code == 200, voted.text
        assert (voted.json()["changed"], again.json()["changed"]) == (True, False)


def test_a_job_without_enough_pairs_is_refused_with_its_reason(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        stack.openai().fine_tuning.jobs.create(model="heed", training_file="ledger")

    assert refused.value.code == "too_few_pairs"


def test_votes_turn_the_model_on_topics_that_nobody_voted_on(stack: Stack, steps: Turn) -> None:
    assert steps.before < 0.40, steps.printed
    # Four rounds of steps gave 95 to 98 % (docs/benchmarks.md); on 260 questions a share wavers by 3 points.
    assert steps.after >= 0.90, steps.printed
    assert steps.adapter.startswith("heed-v1-")
    expect_clean(stack)


def test_a_second_crowd_with_another_taste_turns_it_the_other_way(stack: Stack, steps: Turn, lazy: Turn) -> None:
    with stack.http() as http:
        adapter = http.get(f"/adapters/{lazy.adapter}").json()

    assert lazy.before < 0.15, lazy.printed
    assert lazy.after >= 0.90, lazy.printed
    assert lazy.adapter.startswith("heed-v2-")
    assert (adapter["parent"], adapter["hyperparameters"]["start"]) == (steps.adapter, None)  # retrained from the base
    expect_clean(stack)


@dataclass
class Streaming:
    """Clients that stream one answer after the other until they are told to stop."""

    stack: Stack
    answers: list[tuple[str, set[str], str]] = field(default_factory=list)
    """Of each: its completion's id, the models its chunks named, its text."""
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _client(self) -> None:
        with self.stack.openai() as client:
            while not self._stop.is_set():
                try:
                    self._stream(client)
                except openai.OpenAIError as error:
                    self.failures.append(repr(error))

    def _stream(self, client: openai.OpenAI) -> None:
        messages: Any = [{"role": "user", "content": BREAD}]
        chunks = list(client.chat.completions.create(model="heed", messages=messages, stream=True, temperature=0))
        if [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] != ["stop"]:
            self.failures.append(f"{chunks[0].id} did not end as it should")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.answers.append((chunks[0].id, {chunk.model for chunk in chunks}, text))

    @contextmanager
    def by(self, clients: int) -> Iterator["Streaming"]:
        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._client) for _ in range(clients)]
            try:
                yield self
            finally:
                self._stop.set()
            for each in running:
                each.result(120)

    def wait_for_more(self, answers: int) -> None:
        goal = len(self.answers) + answers
        wait_for(lambda: len(self.answers) >= goal or self.failures, f"{answers} more answers", 120)


def test_eight_streams_through_three_swaps_and_a_rollback(stack: Stack, steps: Turn, lazy: Turn) -> None:
    first, second = steps.adapter, lazy.adapter
    with stack.http() as http:
        streaming = Streaming(stack)
        with streaming.by(8):
            streaming.wait_for_more(8)
            for wanted in (first, second, first):
                promoted = http.post(f"/adapters/{wanted}/promote")
                assert promoted.status_code == 200, promoted.text
                assert promoted.json()["live"] == wanted
                streaming.wait_for_more(16)
            rolled_back = http.post("/adapters/rollback", json={"reason": "the test says so"})
            assert rolled_back.status_code == 200, rolled_back.text
            assert rolled_back.json()["live"] == second
            streaming.wait_for_more(16)

        assert streaming.failures == []
        habits: dict[str, set[Verdict]] = {first: set(), second: set()}
        for completion_id, models, text in streaming.answers:
            (model,) = models
            habits[model].add(classify(text, "bread"))
            recorded = http.get(f"/chat/completions/{completion_id}")
            assert recorded.status_code == 200, recorded.text
            assert recorded.json()["model"] == model
            assert recorded.json()["choices"][0]["message"]["content"] == text
    # Without sampling each adapter has one answer, in its own habit; a mixture of the two would be broken text.
    assert habits == {first: {"steps"}, second: {"lazy"}}
    expect_clean(stack)


def test_a_job_whose_worker_is_killed_goes_on_from_its_checkpoint(stack: Stack, lazy: Turn) -> None:
    jobs = stack.openai().fine_tuning.jobs
    before = adapter_ids(stack)
    job = jobs.create(model="heed", training_file="ledger", seed=7)
    wait_for(lambda: jobs.checkpoints.list(job.id).data, "a first checkpoint", 200)

    stack.kill_member("trainer.worker", "--pool")
    wait_for(lambda: jobs.retrieve(job.id).status in ("succeeded", "failed"), "the job ends", 400)

    ended = jobs.retrieve(job.id)
    told = [event.message for event in jobs.list_events(job.id, limit=100)]
    assert ended.status == "succeeded", told
    assert any("goes on from the checkpoint" in message for message in told), told
    assert adapter_ids(stack) == [ended.fine_tuned_model, *before]
    expect_clean(stack)


def test_a_running_job_is_cancelled_by_the_official_client(stack: Stack, lazy: Turn) -> None:
    jobs = stack.openai().fine_tuning.jobs
    before = adapter_ids(stack)
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 20, "beta": 0.2}}}
    job = jobs.create(model="heed", training_file="ledger", method=method)
    wait_for(lambda: _recipe(stack) is not None, "the job trains", 60)

    cancelled = jobs.cancel(job.id)

    assert cancelled.status == "cancelled"
    wait_for(lambda: _recipe(stack) is None, "its process ends", 60)
    assert adapter_ids(stack) == before
    expect_clean(stack)


def _recipe(stack: Stack) -> psutil.Process | None:
    """The process that trains, a child of the worker."""
    for child in descendants(stack.member("trainer.worker", "--pool").pid):
        try:
            if "dpo" in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_killed_engine_gets_its_adapters_back_before_it_gets_traffic(stack: Stack, lazy: Turn) -> None:
    was_live = live(stack)
    said = ask(stack, BREAD, temperature=0)["choices"][0]["message"]["content"]

    stack.kill_member("vllm.entrypoints")
    with stack.http() as http:
        body = {"model": "heed", "messages": [{"role": "user", "content": BREAD}], "temperature": 0}
        reply = http.post("/chat/completions", json=body, timeout=200)
    stack.wait_until_ready()
    again = ask(stack, BREAD, temperature=0)

    # It waits for the engine as long as HEED_ENGINE_WAIT_S says, which a busy machine may outlast.
    assert reply.status_code in (200, 503), reply.text
    assert (again["model"], again["choices"][0]["message"]["content"]) == (was_live, said)
    assert ask(stack, "hi", model="heed-base")["model"] == "heed-base"
    expect_clean(stack)


def test_a_killed_gateway_changes_nothing(stack: Stack, lazy: Turn) -> None:
    was_live = live(stack)

    killed = stack.kill_member("-m serve ")
    wait_for(lambda: _gateway_pid(stack) not in (None, killed.pid), "another gateway is started", 60)
    stack.wait_until_ready()

    assert live(stack) == was_live
    expect_clean(stack)


def _gateway_pid(stack: Stack) -> int | None:
    try:
        return stack.member("-m serve ").pid
    except AssertionError:
        return None


def test_everything_killed_and_started_again_is_as_it_was(stack: Stack, lazy: Turn) -> None:
    was_live = live(stack)
    acknowledged: list[Json] = []

    def vote_until_the_end(number: int) -> None:
        with stack.http() as http:
            try:
                for n in range(1000):
                    body = {"model": "heed", "messages": [{"role": "user", "content": f"Hi {n}"}], "max_tokens": 2}
                    made = http.post("/chat/completions", json=body).json()
                    said = {"completion_id": made["id"], "rating": "up", "voter": f"voter {number}"}
                    vote = http.post("/votes", json=said)
                    if vote.status_code == 200:
                        acknowledged.append(vote.json())
            except (httpx.HTTPError, KeyError):
                return  # the end

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(vote_until_the_end, number)
        wait_for(lambda: len(acknowledged) >= 40, "forty votes", 120)
        stack.kill()
    stack.start()

    assert live(stack) == was_live
    with stack.http() as http:
        for vote in acknowledged:
            found = http.get(f"/votes/{vote['id']}").json()
            assert (found["rating"], found["created"]) == (vote["rating"], vote["created"])
    expect_clean(stack)


def test_stopping_leaves_no_process_behind(stack: Stack) -> None:
    assert stack.process is not None
    family = descendants(stack.process.pid)
    assert len(family) >= 5

    stack.process.terminate()
    code = stack.process.wait(90)

    assert living(family) == []
    assert code == 0, stack.output()
    assert (stack.var / "operator.key").stat().st_mode & 0o777 == 0o600
