"""Costs: how long a job like this one takes here, by what the jobs before it took.

Seconds for a row and a pass are the median of recent jobs of the same served model; what hardly grows with the rows
(freezing, judging, publishing) is the median of their sums. Before the first job nobody knows, and it says so.
"""

import math
from statistics import median

from pydantic import BaseModel, Field

from feedback import adapters, jobs
from feedback.connection import Ledger
from feedback.errors import AdapterUnknown
from trainer.manifest import Manifest

RECENT = 20
"""Jobs looked at: enough for a median, few enough to be from the same machine."""


class Cost(BaseModel):
    steps: int
    seconds: float | None = Field(None, description="From the worker taking it up to the adapter; none if unknown.")
    tokens: int | None = Field(None, description="Passed through the model in training.")
    from_jobs: int = Field(0, description="How many earlier jobs the estimate rests on.")


async def estimate(ledger: Ledger, known: Manifest) -> Cost:
    passes = len(known.dataset.train) * known.hyperparameters["epochs"]
    steps = math.ceil(len(known.dataset.train) / known.hyperparameters["batch_size"])
    cost = Cost(steps=math.ceil(steps * known.hyperparameters["epochs"]))
    seconds, tokens, rest = [], [], []
    before, _ = await jobs.page(ledger, limit=RECENT)
    for job in before:
        if job.adapter is None or not job.rows or "train" not in job.seconds:
            continue
        try:
            epochs = (await adapters.get(ledger, job.adapter)).hyperparameters["epochs"]
        except (AdapterUnknown, KeyError):
            continue
        seconds.append(job.seconds["train"] / (job.rows * epochs))
        rest.append(sum(job.seconds.values()) - job.seconds["train"] - job.seconds.get("paused", 0))
        tokens += [job.trained_tokens / (job.rows * epochs)] if job.trained_tokens else []
    if seconds:
        cost.seconds = round(passes * median(seconds) + median(rest), 1)
        cost.from_jobs = len(seconds)
    if tokens:
        cost.tokens = round(passes * median(tokens))
    return cost
