"""How many gateways, engines and trainer GPUs a load takes, by the two simulations."""

import math
from dataclasses import dataclass

from tests.load.retraining import Ages, Training, retrain
from tests.load.simulation import Costs, Fleet, Outcome

RATES = (10, 1_000, 100_000)
"""Requests a second."""

VOTED, PAIRED = 0.01, 0.5
"""Votes for each answer, and pairs for each vote."""


def capacity(costs: Costs, tokens: float) -> float:
    """Answers a second of an engine that is full."""
    step_s = costs.step_s + costs.answer_s * (costs.most - 1)
    return costs.most / (tokens * step_s + costs.most * costs.prompt_s)


@dataclass(frozen=True)
class Size:
    per_s: float
    gateways: int
    engines: int
    outcome: Outcome
    """Of its cell: the eighth engine and those gateways that belong to it are like the ninth."""


CELL = 8
"""Engines that are simulated together; a larger fleet is so many cells. Least-loaded routing over all of them is no
worse than over each cell for itself."""

FULLEST = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of what an engine can do: the first at which people do not wait too long."""

GATEWAY_BUSY = 0.6
"""Of a gateway's CPU: above, the wait for it grows faster than the load."""


def sized(costs: Costs, per_s: float, tokens: tuple[int, int], first_s: float) -> Size:
    """So few machines that 95 of 100 first tokens come within `first_s`. Raises ValueError if none are enough."""
    mean = sum(tokens) / 2
    for fullness in FULLEST:
        engines = math.ceil(per_s / (fullness * capacity(costs, mean)))
        gateways = math.ceil(per_s * (costs.request_s + mean * costs.token_s) / GATEWAY_BUSY)
        share = min(1.0, CELL / engines)
        cell = Fleet(costs, max(1, round(gateways * share)), max(1, round(engines * share)))
        outcome = cell.run(per_s * share, tokens, max(60.0, 10 * mean * costs.step_s))
        if outcome.unfinished < len(outcome.first_s) and outcome.first(95) <= first_s:
            return Size(per_s, gateways, engines, outcome)
    raise ValueError(f"no number of engines gives 95 of 100 first tokens within {first_s:g} s")


def fleet_table(name: str, costs: Costs, tokens: tuple[int, int], first_s: float) -> str:
    lines = [
        f"{name}: {costs.step_s * 1e3:.2f} ms a step, {costs.answer_s * 1e3:.3f} ms for each further answer, "
        f"{costs.prompt_s * 1e3:.1f} ms a prompt, {costs.around_s * 1e3:.0f} ms around it, {costs.most} answers at "
        f"once; gateway {costs.request_s * 1e6:.0f} µs a request and {costs.token_s * 1e6:.0f} µs a token; answers of "
        f"{tokens[0]} to {tokens[1]} tokens, 95 of 100 "
        f"first tokens within {first_s:g} s.",
        "",
        "| requests/s | gateway processes | engines | answers at once, each engine | first token, median, p95 |",
        "|---|---|---|---|---|",
    ]
    for per_s in RATES:
        size = sized(costs, per_s, tokens, first_s)
        seen = size.outcome
        lines.append(
            f"| {per_s:,} | {size.gateways:,} | {size.engines:,} | {seen.at_once:.0f} of {costs.most} "
            f"| {seen.first(50) * 1e3:.0f}, {seen.first(95) * 1e3:.0f} ms |"
        )
    return "\n".join(lines)


MOST_GPUS = 64


def trainers(training: Training, per_s: float, live_s: float) -> tuple[int, Ages]:
    """So few GPUs of one served model that half of its votes are live within `live_s`, and what they then wait.

    Raises ValueError if no number up to MOST_GPUS is enough.
    """
    pairs_per_s = per_s * VOTED * PAIRED
    gpus = 1
    while gpus <= MOST_GPUS:
        seconds = 20 * (training.job_s(training.most_pairs, gpus) + training.every_pairs / pairs_per_s)
        ages = retrain(training, pairs_per_s, gpus, seconds, standing=training.most_pairs)
        if ages.live(50) <= live_s:
            return gpus, ages
        gpus *= 2
    raise ValueError(f"{MOST_GPUS} GPUs don't bring half of the votes live within {live_s:g} s")


def trainer_table(name: str, training: Training, live_s: float) -> str:
    lines = [
        f"{name}: {training.pair_s * 1e3:.0f} ms for a pair, {training.epochs} epochs, at most {training.most_pairs:,} "
        f"pairs a job, {training.around_s:.0f} s around it; half of the votes live within {live_s / 3600:g} h, or as "
        f"soon as one GPU can where the votes for a job ({training.every_pairs} pairs) come more slowly.",
        "",
        "| requests/s | votes a day | pairs a day | trainer GPUs | they train | from vote to live, median, p95 "
        "| pairs drawn, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for per_s in RATES:
        votes = per_s * VOTED
        gathers_s = training.every_pairs / (votes * PAIRED)
        gpus, ages = trainers(training, per_s, max(live_s, gathers_s + training.job_s(training.most_pairs, 1)))
        lines.append(
            f"| {per_s:,} | {votes * 86_400:,.0f} | {votes * PAIRED * 86_400:,.0f} | {gpus} "
            f"| {ages.busy:.0%} of the time | {ages.live(50) / 3600:.1f}, {ages.live(95) / 3600:.1f} h "
            f"| {ages.drawn:.2%} |"
        )
    return "\n".join(lines)
