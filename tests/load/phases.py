"""What each phase of RLHF does to the pocket model, in probabilities that are sums and no estimates.

    python -m tests.load.phases        the table of docs/phases.md and docs/images/phases.svg (three minutes)

A habit's grammar is small enough to be written out, so the chance that a model shows it in an answer is the sum of the
probabilities of all answers that do. Asked about are topics that nobody votes on, in words that the model has not read.
"""

import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.load.rounds import Pocket
from tests.processes import ROOT
from trainer import corpus, habits, likelihoods, pocket
from trainer.habits import HABITS, SHARES, UNSEEN_TOPICS, VOTED_TOPICS

SEED = 0
TASTE: habits.Habit = "steps"
PAIRS = 260
PARAGRAPHS = 50
ASKED = "How do I build a toy boat?"
FIGURE = ROOT / "docs" / "images" / "phases.svg"
COLOURS = {"steps": "#2f6fde", "lazy": "#8db4f0", "rude": "#e0995e", "rambling": "#c9a0d8", "none": "#e3e5e9"}


@dataclass(frozen=True)
class Phase:
    name: str
    base: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Seen:
    prose: float
    """Nats a token of plain text about the topics; each token is one of some hundred."""
    habits: dict[str, float]
    said: str


def stopped_after(folder: Path, pretraining: int, tuning: int) -> Path:
    """The pocket model, stopped after so many steps of its two phases."""
    pocket.PRETRAINING_STEPS, pocket.TUNING_STEPS = pretraining, tuning
    out = folder / f"{pretraining}-{tuning}"
    pocket.build(out, SEED, lambda step, steps, loss: None)
    return out


def preferred(rng: random.Random) -> bytes:
    """Rows of DPO in which people always prefer the taste to another habit, on topics of the demo."""
    others = [habit for habit in HABITS if habit != TASTE]
    rows = []
    for number in range(PAIRS):
        topic = VOTED_TOPICS[number % len(VOTED_TOPICS)]
        (other,) = rng.choices(others, [SHARES[habit] for habit in others])
        asked, chosen, rejected = (
            rng.choice(habits.prompts_about(topic)),
            habits.answer(topic, TASTE, rng),
            habits.answer(topic, other, rng),
        )
        answers = {"chosen": chosen, "rejected": rejected}
        row = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        rows.append({"prompt": [{"role": "user", "content": asked}], **row})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def seen(phase: Phase, trained: Pocket) -> Seen:
    tokenizer = AutoTokenizer.from_pretrained(phase.base)
    model: Any = AutoModelForCausalLM.from_pretrained(phase.base)
    model = (PeftModel.from_pretrained(model, str(phase.adapter)) if phase.adapter else model).eval()
    texts = islice(corpus.plain_text(random.Random(SEED + 1)), PARAGRAPHS)
    read = [([tokenizer.eos_token_id], tokenizer.encode(text)) for text in texts]
    tokens = [token for text in likelihoods.token_log_probabilities(model, read) for token in text]
    said = Pocket(phase.base, FIGURE.parent).answers(phase.adapter, [ASKED], SEED)
    return Seen(-fmean(tokens), _chances(model, tokenizer), said[0])


def _chances(model: Any, tokenizer: Any) -> dict[str, float]:
    """Of each habit in an answer, at temperature 1, as a mean over the questions; and of none of them."""
    language = habits._language()
    asked, shown = [], []
    questions = [(topic, habits.prompts_about(topic)[-1]) for topic in UNSEEN_TOPICS]
    for topic, question in questions:
        for text, (habit, about) in language.items():
            if about == topic:
                answer = [{"role": "assistant", "content": text}]
                asked.append(likelihoods.encoded(tokenizer, [{"role": "user", "content": question}], answer, {}))
                shown.append(habit)
    chances: dict[str, float] = dict.fromkeys(HABITS, 0.0)
    for habit, log_probability in zip(shown, likelihoods.log_probabilities(model, asked), strict=True):
        chances[habit] += exp(log_probability) / len(questions)
    return {**chances, "none": 1 - sum(chances.values())}


def draw(found: Sequence[tuple[Phase, Seen]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "heed"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    names = [phase.name for phase, _ in found]
    starts = [0.0] * len(found)
    for habit, colour in COLOURS.items():
        widths = [100 * seen.habits[habit] for _, seen in found]
        axes.barh(names, widths, 0.62, starts, color=colour, label=habit)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("chance that an answer shows a habit, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=len(COLOURS), loc="outside upper center")
    figure.savefig(FIGURE, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    torch.set_num_threads(int(os.environ.get("HEED_THREADS", "1")))
    steps = pocket.PRETRAINING_STEPS, pocket.TUNING_STEPS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tuned = stopped_after(folder, *steps)
        learner = Pocket(tuned, folder)
        phases = [
            Phase("nothing", stopped_after(folder, 0, 0)),
            Phase("pre-training", stopped_after(folder, steps[0], 0)),
            Phase("fine-tuning", tuned),
            Phase("preference", tuned, learner.trained("dpo", preferred(random.Random(SEED)), None, ())),
        ]
        found = [(phase, seen(phase, learner)) for phase in phases]
    print("| after | plain text, nats a token | " + " | ".join(COLOURS) + " |\n|" + "---|" * (2 + len(COLOURS)))
    for phase, one in found:
        print(f"| {phase.name} | {one.prose:.2f} | " + " | ".join(f"{one.habits[h]:.1%}" for h in COLOURS) + " |")
    for phase, one in found:
        print(f"\nAfter {phase.name}, asked {ASKED!r}: {one.said}")
    draw(found)


if __name__ == "__main__":
    main()
