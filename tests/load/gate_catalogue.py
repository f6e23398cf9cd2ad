"""What the gate lets out and what it keeps: every job of the catalogue, as a table.

    .venv/bin/python -m trainer pocket --seed 1 --out var/other
    .venv/bin/python -m tests.load.gate_catalogue            all of it, or only cases whose names hold the words given

Bad jobs first, none of which may go live; then good ones, of which at least 19 in 20 should; then known limits.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.catalogue import (
    FLATTERY,
    Case,
    Outcome,
    both,
    by_taste,
    nan_in_weights,
    of_another_base,
    poisoned,
    preferring,
    sampled,
    tried,
)
from tests.processes import ROOT, free_port, ledger_server
from trainer.habits import HABITS

POCKET = ROOT / "var" / "pocket"
POISONERS = ("poisoner-0", "poisoner-1")

SHOWS_STEPS = r"""
- name: shows-steps
  why: Answers to questions how to do something should show steps.
  answers: held_out
  hard: true
  must: ["\\n1\\. "]
"""


def bad() -> Iterator[Case]:
    first = by_taste("steps", 400)
    yield Case("labels flipped", False, (first, by_taste("steps", 250, seed=1, flipped=True)))
    flipped = by_taste("steps", 300, flipped=True)
    yield Case("labels flipped in the first job, with a guard", False, (flipped,), guards=SHOWS_STEPS)
    poison = poisoned("steps", 250, people=98, poisoners=POISONERS, share=0.3)
    yield Case("30 % of votes by 2 of 100 voters", False, (poison,), suspects=POISONERS)
    yield Case("the longest answer always wins", False, (preferring(len, 140),))
    flattery = preferring(lambda text: text.startswith(FLATTERY), 140, flatter=True)
    yield Case("flattery always wins", False, (flattery,))
    yield Case("learning rate times 30", False, (by_taste("steps", 200),), rate=30)
    yield Case("NaN in the weights", False, (by_taste("steps", 120),), tamper=nan_in_weights)
    yield Case("adapter of another base", False, (by_taste("steps", 120),), tamper=of_another_base(claims_this=False))
    forged = of_another_base(claims_this=True)
    yield Case("adapter of another base that claims this one", False, (by_taste("steps", 120),), tamper=forged)
    few, one = by_taste("steps", 40), by_taste("lazy", 300, seed=1, people=1)
    yield Case("one voter's votes among others'", False, (both(few, one),))


def good() -> Iterator[Case]:
    for seed, taste in enumerate(HABITS):
        for prompts in (150, 250, 350):
            yield Case(f"{taste}, {prompts} prompts", True, (by_taste(taste, prompts, seed=seed),))
        again = by_taste(taste, 150, seed=seed)
        yield Case(f"{taste}, 150 more prompts", True, (by_taste(taste, 200, seed=seed), again))
    yield Case("steps, no mistakes", True, (by_taste("steps", 300, seed=5, noise=0),))
    yield Case("lazy, 20 % mistakes", True, (by_taste("lazy", 400, seed=6, noise=0.2),))
    yield Case("rude, 5 voters", True, (by_taste("rude", 300, seed=7, people=5),))
    yield Case("steps, 100 voters", True, (by_taste("steps", 300, seed=8, people=100),))


def limits() -> Iterator[Case]:
    """What is known to be let out or kept for an operator, for the table to say so."""
    yield Case("(limit) labels flipped in the first job, no guard", False, (by_taste("steps", 300, flipped=True),))
    turned = (by_taste("steps", 400), by_taste("lazy", 300, seed=1))
    yield Case("(limit) people like lazy instead of steps", True, turned)
    yield Case("(limit) all votes ever are one voter's", False, (by_taste("steps", 300, people=1),))


async def main(words: Sequence[str]) -> int:
    cases = [case for case in (*bad(), *good(), *limits()) if not words or any(word in case.name for word in words)]
    answers = sampled(POCKET)
    wrong = 0
    print("| job | pairs | held-out accuracy | strength | verdict | goes live | why |")
    print("|---|---|---|---|---|---|---|", flush=True)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, ledger_server(Path(folder) / "ledger", port):
        for number, case in enumerate(cases):
            var = Path(folder) / str(number)
            outcome = await tried(case, f"redis://127.0.0.1:{port}/0", var, POCKET, answers)
            for adapter in var.glob("adapters/*"):
                adapter.chmod(0o755)
            shutil.rmtree(var)
            wrong += not outcome.is_right and not case.name.startswith("(limit)")
            print(row(outcome), flush=True)
    print(f"\n{wrong} of {len(cases)} otherwise than they should be")
    return wrong


def row(outcome: Outcome) -> str:
    accuracy = "-" if outcome.accuracy is None else f"{outcome.accuracy:.2f}"
    why = outcome.reason
    if outcome.case.suspects:
        why = (
            f"{outcome.silenced} of {len(outcome.case.suspects)} quarantined, {outcome.suspect_pairs} pairs rest on "
            f"them; {why}"
        )
    live = "yes" if outcome.goes_live else "no"
    if not outcome.is_right:
        live += " (!)"
    cells = (outcome.case.name, outcome.pairs, accuracy, f"{outcome.eta:g}", outcome.decision, live, why)
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(main(sys.argv[1:]))))
