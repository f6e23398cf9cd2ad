"""The demo: proof that the circle turns, made through the public HTTP API and nothing else.

A crowd with one taste chats and votes, a job trains on the votes, the adapter goes live, and prompts on topics that
nobody voted on are asked before and after. The pocket model's habits have an exact classifier, so no judge is needed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trainer.crowd import Crowd, Errand, Question, sample
from trainer.habits import BROKEN, UNSEEN_TOPICS, Verdict, classify
from trainer.shares import Shares, draw, table
from trainer.visitor import DemoStopped, Json, Visitor, each

LOOK_EVERY_S = 0.5
LIVE_WITHIN_S = 120.0
"""A swap takes about a second; a vLLM that is just being restarted takes a minute."""
PROBES = 8


@dataclass(frozen=True)
class Demo:
    crowd: Crowd
    votes: int
    measured: int
    model: str
    out: Path


class Report:
    """What the reader sees: a bar while something runs, then one line with its time."""

    def __init__(self, say: Callable[[str], None], bar: Progress) -> None:
        self._say, self._bar = say, bar
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        self._say(text)

    @contextmanager
    def stage(self, title: str, total: int | None) -> "Iterator[Stage]":
        task = self._bar.add_task(title, total=total)
        stage = Stage(self._bar, task)
        began = time.monotonic()
        try:
            yield stage
        finally:
            self._bar.remove_task(task)
        self._say(f"  {title:14}{time.monotonic() - began:6.1f} s   {stage.summary}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


class Stage:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.summary = ""
        self._bar, self._task = bar, task

    def advance(self) -> None:
        self._bar.advance(self._task)

    def at(self, done: float, total: float | None, note: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=note)


async def run(demo: Demo, visitor: Visitor, say: Callable[[str], None]) -> None:
    """Raises DemoStopped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        report = Report(say, bar)
        asked = sample(UNSEEN_TOPICS, demo.measured, demo.crowd.seed)
        live = await _expect_pocket_model(demo, visitor, asked[:PROBES])
        before = await _measure(demo, visitor, report, asked, "ask before")
        await _vote(demo, visitor, report, skip=_version(live) * (demo.votes // 2))
        adapter, margins = await _train(demo, visitor, report)
        await _await_live(demo, visitor, report, adapter)
        after = await _measure(demo, visitor, report, asked, "ask after")
    say(f"The circle took {report.seconds:.0f} s: {live} -> {adapter}")
    say("Share of each habit on topics nobody voted on, with its 95 % interval (Wilson):")
    for line in table(before, after, demo.crowd.taste):
        say(line)
    draw(before, after, demo.crowd.taste, margins, adapter, demo.out)
    say(f"Picture: {demo.out}")


async def _expect_pocket_model(demo: Demo, visitor: Visitor, asked: list[Question]) -> str:
    """Concrete name of what is live. Raises DemoStopped when the base's habits are none that the classifier knows."""
    base = f"{demo.model}-base"
    shown = [
        classify((await visitor.ask(base, question.prompt, is_kept=False)).text, question.topic) for question in asked
    ]
    if shown.count(BROKEN) > len(shown) // 2:
        raise DemoStopped(
            f"The base model behind {visitor.url} does not answer like the pocket model: {shown.count(BROKEN)} of "
            f"{len(shown)} answers show no habit that the demo can tell. Start the stack without HEED_BASE_MODEL, "
            "on CPU, and the pocket model is served."
        )
    return (await visitor.ask(demo.model, asked[0].prompt, is_kept=False)).model


async def _measure(demo: Demo, visitor: Visitor, report: Report, asked: list[Question], title: str) -> Shares:
    """These answers are not kept: they are a yardstick and no part of the circle."""
    with report.stage(title, len(asked)) as stage:

        async def show(question: Question) -> Verdict:
            return classify((await visitor.ask(demo.model, question.prompt, is_kept=False)).text, question.topic)

        shares = Shares(Counter(await each(asked, show, stage.advance)))
        stage.summary = f"{shares.n} prompts on {len({q.topic for q in asked})} topics: {_first(demo, shares)}"
    return shares


async def _vote(demo: Demo, visitor: Visitor, report: Report, skip: int) -> None:
    errands = demo.crowd.errands(demo.votes, (demo.model, f"{demo.model}-base"), skip)
    with report.stage("chat and vote", len(errands)) as stage:

        async def go(errand: Errand) -> str:
            answer = await visitor.ask(errand.model, errand.question.prompt, is_kept=True)
            rating = demo.crowd.thumb(errand, classify(answer.text, errand.question.topic))
            await visitor.vote(answer.completion_id, rating, errand.voter)
            return rating

        thumbs = Counter(await each(errands, go, stage.advance))
        prompts = len({errand.question.prompt for errand in errands})
        turned = sum(errand.is_noisy for errand in errands)
        stage.summary = (
            f"{thumbs['up']} up and {thumbs['down']} down by {demo.crowd.voters} voters on {prompts} prompts, "
            f"{turned} of them by mistake"
        )


async def _train(demo: Demo, visitor: Visitor, report: Report) -> tuple[str, list[tuple[int, float]]]:
    """Id of the adapter, and the reward margin over the steps. Raises DemoStopped when the job ends otherwise."""
    margins: list[tuple[int, float]] = []
    known: set[str] = set()
    took: dict[str, float] = {}
    with report.stage("train", None) as stage:
        job_id = await visitor.train(demo.model, demo.crowd.seed, {"by": "heed demo", "taste": demo.crowd.taste})
        while True:
            job = await visitor.job(job_id)
            for event in await visitor.events(job_id, known):
                known.add(event["id"])
                _follow(event, stage, margins, took)
            if job["status"] in ("succeeded", "failed", "cancelled"):
                break
            await asyncio.sleep(LOOK_EVERY_S)
        if job["status"] != "succeeded":
            why = (job.get("error") or {}).get("message") or "somebody cancelled it"
            raise DemoStopped(f"{job_id} {job['status']}: {why}")
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items() if name != "job")
        stage.summary = (
            f"{job['fine_tuned_model']} from {job['pairs']} pairs, {job['held_out_pairs']} held out ({parts})"
        )
    return job["fine_tuned_model"], margins


def _follow(event: Json, stage: Stage, margins: list[tuple[int, float]], took: dict[str, float]) -> None:
    data = event.get("data") or {}
    if event["type"] == "metrics":
        stage.at(data["step"], data["total_steps"], f"train: loss {data.get('loss', 0):.2f}")
        if "rewards/margins" in data:
            margins.append((data["step"], data["rewards/margins"]))
    elif "seconds" in data:
        took[data["stage"]] = data["seconds"]


async def _await_live(demo: Demo, visitor: Visitor, report: Report, adapter_id: str) -> None:
    with report.stage("go live", None) as stage:
        end = time.monotonic() + LIVE_WITHIN_S
        await _decide(visitor, adapter_id)
        while (adapter := await visitor.adapter(adapter_id))["state"] != "live":
            if adapter["state"] == "rejected":
                why = adapter["history"][-1]["reason"]
                raise DemoStopped(f"{adapter_id} was rejected and {demo.model} answers as before: {why}")
            if time.monotonic() > end:
                raise DemoStopped(
                    f"{adapter_id} is {adapter['state']} and not live after {LIVE_WITHIN_S:.0f} s. With "
                    f"HEED_PROMOTE=manual an operator promotes: heed promote {adapter_id}"
                )
            await asyncio.sleep(LOOK_EVERY_S)
        stage.summary = f"{demo.model} answers as {adapter_id}, {_learnt(adapter)}"


async def _decide(visitor: Visitor, adapter_id: str) -> None:
    """A second crowd with another taste turns round what the first one voted, which the gate leaves to an operator: the
    demo is one, and knows why. Raises DemoStopped when the gate waits for anything else."""
    adapter = await visitor.adapter(adapter_id)
    waits = [one for one in adapter["gate"]["criteria"] if one["outcome"] == "hold"]
    if adapter["state"] not in ("candidate", "canary") or adapter["gate"]["decision"] != "canary-only":
        return
    if [one["id"] for one in waits] != ["G1b"]:
        reasons = "; ".join(one["reason"] for one in waits)
        raise DemoStopped(f"{adapter_id} waits for an operator ({reasons}): heed promote {adapter_id}")
    await visitor.promote(adapter_id, "heed demo: another crowd has another taste")


def _learnt(adapter: Json) -> str:
    found = [one["reason"] for one in adapter["gate"]["criteria"] if one["id"] == "G1"]
    return str(found[0]).split(";")[0]


def _first(demo: Demo, shares: Shares) -> str:
    return f"{shares.counts[demo.crowd.taste]} show {demo.crowd.taste}"


def _version(concrete: str) -> int:
    """Of `heed-v3-1a2b3c4d`, 3; of the base, 0."""
    parts = concrete.rsplit("-", 2)
    return int(parts[1][1:]) if len(parts) == 3 and parts[1][1:].isdigit() else 0
