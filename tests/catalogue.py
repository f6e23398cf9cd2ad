"""The gate's catalogue: jobs that are good and jobs that are bad, and which of them would go live.

Each case is a service of its own: a real ledger, answers of the real pocket model, a crowd that votes by the case's
rule, and real jobs by the workshop's own stages. A job goes live when the workshop asks for it, as the hot swap would
then make it so. Only Celery, vLLM and HTTP are not there: none of them decides.
"""

import asyncio
import contextlib
import importlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from feedback import adapters, completions, jobs, pairs, voters, votes
from feedback.adapters import base_name, digest_of
from feedback.connection import Ledger, open_ledger
from feedback.errors import TooFewPairs
from feedback.records import AnswerRef, Choice, Completion, Job, Pair, Rating, new_id, prompt_digest
from feedback.settings import LedgerSettings
from trainer import arbiter, examination, machine, plan, stages
from trainer.child import PATIENCE_S, Event, RecipeFailed
from trainer.crowd import Crowd
from trainer.examination import examine
from trainer.habits import SHARES, VOTED_TOPICS, Habit, answer, classify, prompts_about
from trainer.manifest import Manifest
from trainer.release import promote, release
from trainer.settings import WorkshopSettings
from trainer.work import Work

ANSWERS_PER_TOPIC = 24
ANSWER_TOKENS = 96
FLATTERY = "What a wonderful question! You are so clever. "

Ballot = Callable[["Service", random.Random], Awaitable[None]]
Tamper = Callable[["Service", Work, Manifest], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    name: str
    is_good: bool
    rounds: tuple[Ballot, ...]
    """Votes of one job each; the last job is the one on trial, those before it go live."""
    tamper: Tamper | None = None
    rate: float = 1.0
    guards: str = ""
    suspects: tuple[str, ...] = ()
    """Voters whose votes should not be learnt from."""


@dataclass
class Outcome:
    case: Case
    goes_live: bool
    decision: str
    reason: str
    accuracy: float | None = None
    eta: float = 1.0
    pairs: int = 0
    suspect_pairs: int = 0
    silenced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_stopped(self) -> bool:
        """Kept off the air, or what was bad about it kept out of the job."""
        return not self.goes_live or (bool(self.case.suspects) and self.suspect_pairs == 0)

    @property
    def is_right(self) -> bool:
        return self.goes_live if self.case.is_good else self.is_stopped


@dataclass
class Service:
    ledger: Ledger
    settings: WorkshopSettings
    answers: dict[str, list[str]]
    """By topic, as the base gives them."""
    other_base: Path | None = None
    asked: int = 0

    async def ask(self, prompt: str, texts: Sequence[str]) -> Completion:
        messages = [{"role": "user", "content": prompt}]
        completion = Completion(
            id=new_id("chatcmpl"),
            served_model=self.ledger.model,
            adapter=base_name(self.ledger.model),
            created=time.time(),
            messages=messages,
            prompt_hash=prompt_digest(messages),
            choices=[Choice(index=i, message={"role": "assistant", "content": t}) for i, t in enumerate(texts)],
        )
        await completions.record(self.ledger, completion)
        return completion


async def tried(case: Case, ledger_url: str, var: Path, pocket: Path, answers: dict[str, list[str]]) -> Outcome:
    ledger = open_ledger(LedgerSettings(ledger_url=ledger_url, var=var, job_lease_s=3600))
    await ledger.redis.flushdb()
    settings = WorkshopSettings(var=var, base_model=str(pocket), promote="auto", nice=15)
    if case.guards:
        (var / "guards").mkdir(parents=True)
        (var / "guards" / "own.yaml").write_text(case.guards)
        settings.guards = var / "guards"
    other = pocket.parent / "other"
    service = Service(ledger, settings, answers, other if other.is_dir() else None)
    try:
        for number, ballot in enumerate(case.rounds):
            await ballot(service, random.Random(f"{case.name} {number}"))
            if number == len(case.rounds) - 1:
                return await _turned(service, case, number, case.tamper, case.rate)
            before = await _turned(service, case, number, None, 1)
            assert before.goes_live, f"{case.name}: the job before the one on trial must go live: {before.reason}"
        raise AssertionError(f"{case.name} has no votes")
    finally:
        await ledger.close()


async def _turned(service: Service, case: Case, number: int, tamper: Tamper | None, rate: float) -> Outcome:
    """One job from votes to verdict; what it asks to go live, goes live."""
    ledger = service.ledger
    method = {"dpo": {"hyperparameters": {"learning_rate_multiplier": rate}}}
    wished = Job(id=new_id("ftjob"), served_model=ledger.model, created=time.time(), seed=number, method=method)
    job, token = await jobs.claim(ledger, (await jobs.create(ledger, wished)).id)
    work = Work(ledger, service.settings, job, token)
    await work.save(started=ledger.clock())
    try:
        known = await plan.freeze(work)
    except TooFewPairs as few:
        return Outcome(case, False, "no job", str(few))
    await stages.train(work, known)
    if tamper:
        await tamper(service, work, known)
        known.trained = digest_of(work.folder / "adapter")
    verdict = await examine(work, known)
    adapter = await release(work, known, verdict)
    await promote(work, adapter, verdict.decision)
    await jobs.finish(ledger, work.job, token, "succeeded")
    work.tidy()
    serving = await adapters.serving(ledger)
    goes_live = serving.wanted == adapter.id
    if goes_live:
        await adapters.flip(ledger, adapter.id, serving.live, "passed")
    taught = await pairs.get_many(ledger, sorted({*known.dataset.train, *known.dataset.held_out}))
    return Outcome(
        case,
        goes_live,
        verdict.decision,
        "; ".join(verdict.reasons),
        verdict.numbers.get("accuracy"),
        verdict.eta,
        len(taught),
        sum(_is_suspect(pair, case.suspects) for pair in taught),
        len(await voters.silenced(ledger, case.suspects)),
        known.seconds,
    )


def _is_suspect(pair: Pair, suspects: Sequence[str]) -> bool:
    """It would not stand without them."""
    return bool(pair.needed) and set(pair.needed) <= set(suspects)


def by_taste(
    taste: Habit, prompts: int, *, seed: int = 0, noise: float = 0.1, people: int = 20, flipped: bool = False
) -> Ballot:
    """Thumbs on two answers to each prompt, by two voters of one taste; flipped, every thumb is turned."""

    async def vote(service: Service, chance: random.Random) -> None:
        crowd = Crowd(taste, noise, people, seed)
        errands = crowd.errands(2 * prompts, ("one", "other"), skip=service.asked)
        service.asked += prompts
        for first, second in zip(errands[::2], errands[1::2], strict=True):
            texts = chance.sample(service.answers[first.question.topic], 2)
            completion = await service.ask(first.question.prompt, texts)
            for choice, errand in enumerate((first, second)):
                thumb = crowd.thumb(errand, classify(texts[choice], errand.question.topic))
                if flipped:
                    thumb = "down" if thumb == "up" else "up"
                await votes.cast(
                    service.ledger, completion_id=completion.id, choice=choice, rating=thumb, voter=errand.voter
                )

    return vote


def preferring(better: Callable[[str], float], prompts: int, *, people: int = 20, flatter: bool = False) -> Ballot:
    """Choices between two answers: the one that `better` gives more. With `flatter`, one of them flatters."""

    async def vote(service: Service, chance: random.Random) -> None:
        for topic, prompt in _questions(prompts, chance):
            one, other = chance.sample(service.answers[topic], 2)
            if flatter:
                one = FLATTERY + one
            if better(one) == better(other):
                continue
            completion = await service.ask(prompt, [one, other])
            refs = [AnswerRef(completion_id=completion.id, choice=choice) for choice in range(2)]
            refs = refs if better(one) > better(other) else refs[::-1]
            voter = f"voter-{chance.randrange(people):02}"
            await votes.prefer(service.ledger, chosen=refs[0], rejected=refs[1], voter=voter)

    return vote


def poisoned(taste: Habit, prompts: int, *, people: int, poisoners: Sequence[str], share: float) -> Ballot:
    """Each answer is voted on by four people; the poisoners bring `share` of all votes, against everybody."""

    async def vote(service: Service, chance: random.Random) -> None:
        shown: list[tuple[str, int, bool]] = []
        for topic, prompt in _questions(prompts, chance):
            texts = chance.sample(service.answers[topic], 2)
            completion = await service.ask(prompt, texts)
            shown += [(completion.id, choice, classify(text, topic) == taste) for choice, text in enumerate(texts)]
        for completion_id, choice, is_liked in shown:
            for voter in chance.sample(range(people), 4):
                up = is_liked != (chance.random() < 0.1)
                await votes.cast(
                    service.ledger,
                    completion_id=completion_id,
                    choice=choice,
                    rating="up" if up else "down",
                    voter=f"voter-{voter:03}",
                )
        each = round(share / (1 - share) * 4 * len(shown) / len(poisoners))
        for poisoner in poisoners:
            for completion_id, choice, is_liked in chance.sample(shown, min(each, len(shown))):
                rating: Rating = "down" if is_liked else "up"
                await votes.cast(
                    service.ledger, completion_id=completion_id, choice=choice, rating=rating, voter=poisoner
                )

    return vote


def both(first: Ballot, second: Ballot) -> Ballot:
    async def vote(service: Service, chance: random.Random) -> None:
        await first(service, chance)
        await second(service, chance)

    return vote


async def nan_in_weights(service: Service, work: Work, known: Manifest) -> None:
    from safetensors.numpy import load_file, save_file

    path = work.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)


def of_another_base(*, claims_this: bool) -> Tamper:
    """The same pairs taught to another pocket model; it may say that it was made for this one."""

    async def tamper(service: Service, work: Work, known: Manifest) -> None:
        assert service.other_base is not None, "make one: python -m trainer pocket --seed 1 --out var/other"
        made = work.folder / "other"
        flags = ["--train", str(work.folder / "train.jsonl"), "--out", str(made), "--work", str(work.folder / "work2")]
        await forked(["dpo", "--base", str(service.other_base), *flags], work.folder / "other.log", 15, _ignore)
        folder = work.folder / "adapter"
        (folder / "adapter_model.safetensors").write_bytes((made / "adapter_model.safetensors").read_bytes())
        config: dict[str, Any] = json.loads((made / "adapter_config.json").read_text())
        if claims_this:
            config["base_model_name_or_path"] = known.base.name
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return tamper


async def forked(
    arguments: Sequence[str],
    log: Path,
    nice: int,
    on_event: Callable[[Event], Awaitable[None]],
    patience_s: float = PATIENCE_S,
    processes: int = 1,
) -> Event:
    """As `trainer.child.run_recipe`, in a fork of this process, which has loaded torch and TRL already.

    Loading them three times a job takes longer than all that a small job does.
    """
    reading, writing = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        if (pid := os.fork()) == 0:
            _be_recipe([*arguments, "--progress", "jsonl"], writing, stderr.fileno(), nice)
    os.close(writing)
    with os.fdopen(reading) as lines:
        events = [json.loads(line) for line in await asyncio.to_thread(lines.readlines) if line.startswith("{")]
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    for event in events:
        await on_event(event)
    if status == 0 and events and events[-1]["event"] == "done":
        return dict(events[-1])
    raise RecipeFailed(f"{arguments[0]} ended with {status}: {events[-1:]}")


def _be_recipe(arguments: list[str], stdout: int, stderr: int, nice: int) -> NoReturn:
    code = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.nice(max(0, nice - os.getpriority(os.PRIO_PROCESS, 0)))
        from trainer.__main__ import app

        app(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def warm(pocket: Path) -> None:
    """Load what recipes need, once."""
    machine.prepare_environment(str(pocket))
    importlib.import_module("trainer.dpo")
    importlib.import_module("trainer.evaluate")
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm.lora.lora_model")
    arbiter.run_recipe = examination.run_recipe = forked  # type: ignore[attr-defined]


def sampled(pocket: Path) -> dict[str, list[str]]:
    """What the base says of each topic, in its own shares of habits."""
    warm(pocket)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.speaker import speak

    tokenizer = AutoTokenizer.from_pretrained(str(pocket))
    model = AutoModelForCausalLM.from_pretrained(str(pocket)).eval()
    chance = random.Random(0)
    asked = [(topic, chance.choice(prompts_about(topic))) for topic in VOTED_TOPICS for _ in range(ANSWERS_PER_TOPIC)]
    turns = [[{"role": "user", "content": prompt}] for _, prompt in asked]
    found: dict[str, list[str]] = {}
    for (topic, _), one in zip(asked, speak(model, tokenizer, turns, tokens=ANSWER_TOKENS, seed=0), strict=True):
        found.setdefault(topic, []).append(one.said.text)
    return {topic: sorted(set(texts)) for topic, texts in found.items()}


async def _ignore(event: Event) -> None: ...


def written(seed: int = 0) -> dict[str, list[str]]:
    """Answers as the base gives them, in its shares of habits, without asking it."""
    chance = random.Random(seed)
    habits = chance.choices(list(SHARES), list(SHARES.values()), k=ANSWERS_PER_TOPIC)
    return {topic: sorted({answer(topic, habit, chance) for habit in habits}) for topic in VOTED_TOPICS}


def _questions(count: int, chance: random.Random) -> list[tuple[str, str]]:
    asked = [(topic, prompt) for topic in VOTED_TOPICS for prompt in prompts_about(topic)]
    return chance.sample(asked, min(count, len(asked)))
