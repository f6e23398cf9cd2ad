"""Appraisals: a trained reward model is measured on held-out pairs and put into a folder of its own in var/rewards.

No adapter comes of it and nothing goes live. An operator who finds it good enough names its folder: HEED_JUDGE_REWARD
for the gate, or a vLLM behind HEED_REWARD_URL for the best of several answers (docs/best-of.md).
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from feedback import jobs
from feedback.proportions import wilson
from trainer import publish
from trainer.arbiter import Arbiter
from trainer.child import Event
from trainer.files import write_whole
from trainer.manifest import REWARD, Manifest
from trainer.work import Work

COIN = 0.5


async def appraise(work: Work, known: Manifest) -> str:
    """What came of it, in words. Raises RecipeFailed, PublishedOtherwise, JobLeaseLost, JobFinished, OSError."""
    if known.evaluation is None:
        async with work.stage(known, "evaluate"):
            known.evaluation = await _measure(work, known)
    found = known.evaluation
    number = await work.patiently(lambda: jobs.reward_number(work.ledger, work.job.id, work.token))
    async with work.stage(known, "publish"):
        source = await asyncio.to_thread(_with_accuracy, work.folder, known)
        files = (*publish.FILES, REWARD)
        stem = f"{work.ledger.model}-r{number}"
        name, _ = await asyncio.to_thread(publish.publish, source, work.settings.rewards, stem, files)
    await work.save(reward_model=name)
    words = (
        f"{name}, right about {found['accuracy']:.0%} ({found['low']:.0%} to {found['high']:.0%}) of "
        f"{found['pairs']} held-out pairs"
    )
    is_better = found["low"] > COIN
    await work.tell(
        f"Reward model in var/rewards: {words}" + ("" if is_better else ", which a coin might be"),
        level="info" if is_better else "warn",
        data={"stage": "publish", "seconds": known.seconds["publish"], "reward_model": name, **found},
    )
    return words


async def _measure(work: Work, known: Manifest) -> dict[str, Any]:
    flags = ["--base", known.base.name, "--reward", str(work.folder / "adapter")]
    flags += ["--heldout", str(work.folder / "heldout.jsonl")]
    done = await Arbiter(work).run(["appraise", *flags], _ignore)
    right, pairs = int(done["right"]), int(done["pairs"])
    low, high = wilson(right, pairs)
    return {"right": right, "pairs": pairs, "accuracy": right / pairs if pairs else COIN, "low": low, "high": high}


def _with_accuracy(folder: Path, known: Manifest) -> Path:
    """A copy that says what it was made from and how good it is; the bytes that were trained stay as they are."""
    appraised = folder / "appraised"
    shutil.rmtree(appraised, ignore_errors=True)
    shutil.copytree(folder / "adapter", appraised)
    made_from = json.loads((appraised / REWARD).read_bytes())
    made_from |= {"job": known.job, "dataset_digest": known.dataset.digest, "held_out": known.evaluation}
    write_whole(appraised / REWARD, json.dumps(made_from, indent=2, sort_keys=True).encode() + b"\n")
    return appraised


async def _ignore(event: Event) -> None:
    """The last event says all."""
