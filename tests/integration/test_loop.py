"""The circle, whole and real: chat, vote, train, swap, on the stack that `make run` starts.

The tests run in the order they stand in: each turn of the circle makes the adapters that the next tests swap.
"""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.processes import wait_for
from tests.stack import Stack
from trainer.habits import UNSEEN_TOPICS, classify, prompts_about

pytestmark = pytest.mark.timeout(900)


def ask(stack: Stack, prompt: str, model: str = "heed", **sampling: Any) -> dict[str, Any]:
    with stack.http() as http:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 80, **sampling}
        reply = http.post("/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def live(stack: Stack) -> str:
    """The concrete name that answers now."""
    return str(ask(stack, "hi", max_tokens=1)["model"])


def share(stack: Stack, habit: str, model: str = "heed", asked: int = 120) -> float:
    """How often unseen topics are answered with this habit."""
    prompts = [(topic, prompt) for topic in UNSEEN_TOPICS for prompt in prompts_about(topic)[-6:]][:asked]
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda each: ask(stack, each[1], model), prompts)
        verdicts = [
            classify(answer["choices"][0]["message"]["content"], topic)
            for (topic, _), answer in zip(prompts, answers, strict=True)
        ]
    return verdicts.count(habit) / len(verdicts)  # type: ignore[arg-type]


def check_is_clean(stack: Stack) -> None:
    checked = stack.run("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


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


def demo(stack: Stack, taste: str) -> tuple[float, float, str]:
    """Run `heed demo`; the shares before and after as it printed them, and all it printed."""
    picture = stack.var / f"demo-{taste}.png"
    ran = stack.run("demo", "--taste", taste, "--out", str(picture), timeout_s=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert picture.stat().st_size > 10_000
    shares = [float(found) for found in re.findall(r"(\d+(?:\.\d+)?) ?%", result_line(ran.stdout, taste))]
    return shares[0] / 100, shares[1] / 100, ran.stdout


def result_line(printed: str, taste: str) -> str:
    return next(line for line in printed.splitlines() if taste in line and line.count("%") >= 2)


def test_the_demo_turns_the_circle(stack: Stack) -> None:
    before, after, printed = demo(stack, "steps")

    assert before < 0.40, printed
    assert after >= 0.85, printed
    assert live(stack).startswith("heed-v1-")
    assert share(stack, "steps") >= 0.80
    check_is_clean(stack)


def test_a_second_crowd_with_another_taste_turns_it_the_other_way(stack: Stack) -> None:
    _, after, printed = demo(stack, "lazy")

    assert after >= 0.80, printed
    assert live(stack).startswith("heed-v2-")
    assert share(stack, "steps") < 0.20
    with stack.http() as http:
        adapter = http.get(f"/adapters/{live(stack)}").json()
    assert str(adapter["parent"]).startswith("heed-v1-")
    check_is_clean(stack)


@dataclass
class Streaming:
    """Clients that stream one answer after the other until they are told to stop."""

    stack: Stack
    models: list[tuple[str, set[str]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _client(self) -> None:
        client = self.stack.openai()
        while not self._stop.is_set():
            try:
                chunks = list(
                    client.chat.completions.create(
                        model="heed",
                        messages=[{"role": "user", "content": "Teach me to bake bread, please."}],
                        stream=True,
                    )
                )
            except openai.OpenAIError as error:
                self.failures.append(repr(error))
                continue
            if not any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks):
                self.failures.append(f"{chunks[0].id} ended without a reason")
            self.models.append((chunks[0].id, {chunk.model for chunk in chunks}))

    @contextmanager
    def by(self, clients: int) -> Iterator["Streaming"]:
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(120)

    def wait_for_more(self, answers: int) -> None:
        goal = len(self.models) + answers
        wait_for(lambda: len(self.models) >= goal or self.failures, f"{answers} more answers", 120)


def test_eight_streams_through_three_swaps_and_a_rollback(stack: Stack) -> None:
    with stack.http() as http:
        first, second = sorted(adapter["id"] for adapter in http.get("/adapters").json()["data"])[:2]
        streaming = Streaming(stack)
        with streaming.by(8):
            streaming.wait_for_more(8)
            for wanted in (first, second, first):
                promoted = http.post(f"/adapters/{wanted}/promote")
                assert promoted.status_code == 200, promoted.text
                assert live(stack) == wanted
                streaming.wait_for_more(8)
            rolled_back = http.post("/adapters/rollback", json={"reason": "the test says so"})
            assert rolled_back.status_code == 200, rolled_back.text
            assert live(stack) == second
            streaming.wait_for_more(8)

        assert streaming.failures == []
        assert [names for _, names in streaming.models if len(names) != 1] == []
        assert {name for _, names in streaming.models for name in names} == {first, second}
        for completion_id, (model,) in streaming.models:
            recorded = http.get(f"/chat/completions/{completion_id}")
            assert recorded.status_code == 200, recorded.text
            assert recorded.json()["model"] == model
    check_is_clean(stack)


def job_events(stack: Stack, job_id: str) -> list[Any]:
    return list(stack.openai().fine_tuning.jobs.list_events(job_id, limit=100))


def test_a_job_whose_worker_is_killed_goes_on_from_its_checkpoint(stack: Stack) -> None:
    jobs = stack.openai().fine_tuning.jobs
    before = {adapter["id"] for adapter in stack.http().get("/adapters").json()["data"]}
    job = jobs.create(model="heed", training_file="ledger", seed=7)
    wait_for(lambda: list(jobs.checkpoints.list(job.id)), "a first checkpoint", 200)

    stack.kill_member("celery", "worker")
    wait_for(lambda: jobs.retrieve(job.id).status in ("succeeded", "failed"), "the job ends", 400)

    ended = jobs.retrieve(job.id)
    told = [event.message for event in job_events(stack, job.id)]
    assert ended.status == "succeeded", told
    assert any("checkpoint" in message.lower() and "resum" in message.lower() for message in told), told
    after = {adapter["id"] for adapter in stack.http().get("/adapters").json()["data"]}
    assert after - before == {ended.fine_tuned_model}
    check_is_clean(stack)


def test_a_running_job_can_be_cancelled_with_the_official_client(stack: Stack) -> None:
    jobs = stack.openai().fine_tuning.jobs
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 20, "beta": 0.2}}}
    job = jobs.create(model="heed", training_file="ledger", method=method)
    wait_for(lambda: jobs.retrieve(job.id).status == "running", "the job runs", 60)

    cancelled = jobs.cancel(job.id)

    assert cancelled.status == "cancelled"
    worker = stack.member("celery", "worker")
    wait_for(
        lambda: not any("dpo" in child.cmdline() for child in worker.children(recursive=True)), "the child ends", 60
    )
    check_is_clean(stack)


def test_a_killed_engine_gets_its_adapters_back_before_it_gets_traffic(stack: Stack) -> None:
    was_live = live(stack)

    stack.kill_member("vllm.entrypoints")
    with stack.http() as http:
        body = {"model": "heed", "messages": [{"role": "user", "content": "hi"}]}
        reply = http.post("/chat/completions", json=body, timeout=200)

    assert reply.status_code in (200, 503), reply.text
    stack.wait_until_ready()
    assert live(stack) == was_live
    assert ask(stack, "hi", model="heed-base")["model"] == "heed-base"


def test_a_killed_gateway_changes_nothing(stack: Stack) -> None:
    was_live = live(stack)

    stack.kill_member("-m", "serve")
    wait_for(lambda: _is_up(stack), "the gateway is back", 60)
    stack.wait_until_ready()

    assert live(stack) == was_live


def _is_up(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_everything_killed_and_started_again_is_as_it_was(stack: Stack) -> None:
    was_live = live(stack)
    acknowledged = []
    with stack.http() as http:
        for n in range(20):
            made = ask(stack, f"Teach me to bake bread, please. ({n})", max_tokens=8)
            vote = http.post("/votes", json={"completion_id": made["id"], "rating": "up", "voter": f"voter {n}"})
            acknowledged.append(vote.json())

    stack.kill()
    stack.start()

    assert live(stack) == was_live
    with stack.http() as http:
        for vote in acknowledged:
            found = http.get(f"/votes/{vote['id']}").json()
            assert (found["rating"], found["created"]) == (vote["rating"], vote["created"])
    check_is_clean(stack)


def test_stopping_leaves_no_process_behind(stack: Stack) -> None:
    from tests.processes import descendants

    assert stack.process is not None
    family = descendants(stack.process.pid)
    assert len(family) >= 5

    stack.process.terminate()
    stack.process.wait(90)

    assert [each for each in family if each.is_running()] == []
    assert Path(stack.var / "operator.key").stat().st_mode & 0o777 == 0o600
    assert json.loads(json.dumps(stack.process.returncode)) in (0, 130, 143)
