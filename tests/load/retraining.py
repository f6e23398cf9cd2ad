"""How old a vote is when the adapter that it taught goes live, and how many trainer GPUs that takes, as a simulation.

Pairs come by chance; a job starts when enough are waiting and none runs (HEED_TRAIN_EVERY_PAIRS), learns from all
standing pairs up to a bound (HEED_DATASET_PAIRS) and takes with it those that waited. A job of several GPUs is data
parallel: what they hand each other costs a share of each.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import simpy

KEPT = 0.9
"""Of a GPU's work that is left at each doubling of their number: what data-parallel LoRA loses to gradients and unequal
batches. Assumed."""


@dataclass(frozen=True)
class Training:
    pair_s: float
    """Of one GPU for one pair in one epoch."""
    around_s: float
    """Start, freezing, export, gate and swap; no number of GPUs shortens it."""
    epochs: int = 1
    every_pairs: int = 500
    most_pairs: int = 20_000

    def job_s(self, pairs: int, gpus: int) -> float:
        speed = gpus * KEPT ** (gpus.bit_length() - 1)
        return self.around_s + min(pairs, self.most_pairs) * self.epochs * self.pair_s / speed


@dataclass(frozen=True)
class Ages:
    live_s: list[float]
    """From each pair's vote until its adapter is live, of those whose job ended."""
    busy: float
    """Share of the time in which the GPUs trained."""
    jobs: int
    drawn: float
    """Share of the pairs, at most, that a job has drawn: where more come than it may take, others never are."""

    def live(self, percent: int) -> float:
        return quantiles(self.live_s, n=100)[percent - 1]


MOST_ARRIVALS = 50_000
"""That are simulated one by one; of more, so many come together that there are no more arrivals than these."""


def retrain(training: Training, pairs_per_s: float, gpus: int, seconds: float, standing: int, seed: int = 0) -> Ages:
    """`standing`: pairs of before the simulation."""
    env, dice = simpy.Environment(), random.Random(seed)
    together = max(1, round(pairs_per_s * seconds / MOST_ARRIVALS))
    waiting: list[float] = []
    ages: list[float] = []
    come = env.event()
    known, busy_s, jobs = standing, 0.0, 0

    def votes() -> Generator[simpy.Event, Any, None]:
        nonlocal come
        while True:
            yield env.timeout(dice.expovariate(pairs_per_s / together))
            waiting.append(env.now)
            come.succeed()
            come = env.event()

    def work() -> Generator[simpy.Event, Any, None]:
        nonlocal known, busy_s, jobs
        while True:
            while len(waiting) * together < training.every_pairs:
                yield come
            taken = waiting.copy()
            waiting.clear()
            known += len(taken) * together
            took_s = training.job_s(known, gpus)
            yield env.timeout(took_s)
            busy_s, jobs = busy_s + took_s - training.around_s, jobs + 1
            ages.extend(env.now - voted for voted in taken)

    env.process(votes())
    env.process(work())
    env.run(until=seconds)
    drawn = min(1.0, jobs * training.most_pairs / (len(ages) * together))
    return Ages(ages, busy_s / seconds, jobs, drawn)
