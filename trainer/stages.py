"""Stages of a job: freeze, train, examine, release. Each can be repeated and gives the same.

What a stage made is noted in the job's manifest when it is finished, so a worker that takes the job up goes on with
the next one; training itself goes on from its last whole checkpoint. One number is given to a job once, and its
adapter's name follows from number and bytes: however often a job is taken up, one adapter comes out.
"""

import asyncio
import hashlib
import time
from pathlib import Path

from feedback.adapters import digest_of
from trainer import hyperparameters, manifest, plan
from trainer.appraisal import appraise
from trainer.arbiter import Arbiter
from trainer.child import Event
from trainer.examination import examine, expect_guards
from trainer.manifest import Manifest
from trainer.release import promote, release
from trainer.settings import WorkshopSettings
from trainer.work import Work

METRICS_EVERY_S = 1.0
"""A pocket model makes several steps a second; a person reads one line."""


async def run(work: Work) -> str:
    """All stages up to a registered adapter, or a reward model in its folder; the job is then ready to be finished.

    Returns what came of it, in words. Raises TooFewPairs, TrainingFileUnknown, RecipeFailed, PublishedOtherwise,
    JobLeaseLost, JobFinished, OSError.
    """
    await asyncio.to_thread(expect_guards, work)
    known = await plan.freeze(work)
    await train(work, known)
    if known.dataset.method == "reward":
        made = await appraise(work, known)
        await work.save(seconds=known.seconds)
        return made
    verdict = await examine(work, known)
    adapter = await release(work, known, verdict)
    await work.save(seconds=known.seconds)
    await promote(work, adapter, verdict.decision)
    return f"{adapter.id}, {adapter.state}"


async def train(work: Work, known: Manifest) -> None:
    made = work.folder / "adapter"
    if known.trained and made.is_dir() and digest_of(made) == known.trained:
        return
    await work.tell(f"Training starts from {known.start or 'the base model'}", data={"stage": "train"})
    method, told = known.dataset.method, flags(known, work.settings, work.folder)
    async with work.stage(known, "train"):
        relay, arbiter = Relay(work, known), Arbiter(work)
        done = await arbiter.run([method, *told], relay.take, work.folder / "work", known.computing.processes)
        known.trained = digest_of(made)
    if arbiter.waited_s:
        known.seconds["paused"] = round(arbiter.waited_s, 3)
        known.seconds["train"] = round(known.seconds["train"] - arbiter.waited_s, 3)
        known.write(work.folder)
    if done.get("trained_tokens"):
        await work.save(trained_tokens=int(done["trained_tokens"]))
    await work.tell("Training done", data={"stage": "train", "seconds": known.seconds["train"]})


def flags(known: Manifest, settings: WorkshopSettings, folder: Path) -> list[str]:
    """Of the recipe that the manifest asks for, at work in `folder`."""
    told = ["--base", known.base.name, "--train", str(folder / "train.jsonl"), "--out", str(folder / "adapter")]
    told += ["--work", str(folder / "work"), "--seed", str(known.seed)]
    told += hyperparameters.as_flags(known.hyperparameters)
    told += ["--precision", known.computing.precision, "--report-to", known.computing.report_to]
    if known.dataset.method != "reward":
        told += ["--qlora" if known.computing.qlora else "--no-qlora"]
    if known.dataset.method in ("dpo", "unpaired") and settings.references_most:
        told += ["--references", str(settings.references), "--references-most", str(settings.references_most)]
    if settings.gpu_policy in ("shared", "idle"):
        told += ["--engine-share", str(settings.gpu_share)]
    if known.start:
        told += ["--init", str(settings.adapters / known.start)]
    return told


class Relay:
    """Turns what the recipe says into the job's events, metrics under TRL's names."""

    def __init__(self, work: Work, known: Manifest) -> None:
        self._work, self._known = work, known
        self._told_at = 0.0
        self._metrics: dict[str, float] = {}

    async def take(self, event: Event) -> None:
        if event["event"] == "step":
            await self._step(event)
        elif event["event"] == "checkpoint":
            await self._checkpoint(int(event["step"]))
        elif event["event"] == "fitted":
            await self._fitted(event)
        elif event["event"] == "resumed":
            data = {"stage": "train", "step": event["step"]}
            await self._work.tell(f"Training goes on from the checkpoint at step {event['step']}", data=data)

    async def _step(self, event: Event) -> None:
        step, steps = event["step"], event["steps"]
        self._metrics = metrics = event["metrics"]
        if time.monotonic() - self._told_at < METRICS_EVERY_S and step not in (1, steps):
            return
        self._told_at = time.monotonic()
        speed = {name: event.get(name) for name in ("tokens_per_second", "seconds_left")}
        data = {"step": step, "total_steps": steps, **speed, **metrics}
        await self._work.tell(f"Step {step}/{steps}: loss {metrics.get('loss', 0):.4f}", type="metrics", data=data)

    async def _fitted(self, event: Event) -> None:
        """What the recipe could not fit to the base joins what the dataset had dropped."""
        dropped = {reason: int(count) for reason, count in event["dropped"].items()}
        self._known.dataset.dropped |= dropped
        self._known.dataset.shortened = int(event["shortened"])
        self._known.computing.precision = event["precision"]
        self._known.write(self._work.folder)
        if dropped or event["shortened"]:
            lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
            words = (
                f"{event['rows']} rows fit the base: {lost} dropped, {event['shortened']} without their oldest turns"
            )
            data = {"stage": "train", "dropped": dropped, "shortened": event["shortened"]}
            await self._work.tell(words, level="warn" if dropped else "info", data=data)

    async def _checkpoint(self, step: int) -> None:
        seal = self._work.folder / "work" / f"checkpoint-{step}" / "seal.json"
        digest = hashlib.sha256(seal.read_bytes()).hexdigest() if seal.is_file() else None
        others = [checkpoint for checkpoint in self._known.checkpoints if checkpoint.step != step]
        self._known.checkpoints = [*others, manifest.Checkpoint(step=step, digest=digest)]
        self._known.write(self._work.folder)
        data = {"step": step, "metrics": self._metrics}
        await self._work.tell(f"Checkpoint at step {step}", type="checkpoint", data=data)
