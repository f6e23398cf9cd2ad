"""What DPO's settings do to the pocket model, measured on topics that none of the pairs is about.

    curl .../v1/pairs > pairs.jsonl          after `heed demo`, with the operator's key; or the train.jsonl of a round
                                             that tests.load.rounds --keep has left
    python -m tests.load.compare_settings pairs.jsonl "" "--sft-weight 1"

Pairs about 18 of the demo's 26 topics are trained on by the recipe, once with each list of its flags, and the 8 others
are asked about. So settings can be chosen without a look at the topics that the demo is measured on.
"""

import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.processes import ROOT
from trainer.habits import VOTED_TOPICS, classify, prompts_about
from trainer.shares import SHOWN, Shares

BASE = ROOT / "var" / "pocket"
TRAINED_ON = 18
TEMPERATURE = 0.8
LONGEST_ANSWER = 96


def main(pairs: Path, settings: Sequence[Sequence[str]]) -> None:
    topics = random.Random(5).sample(VOTED_TOPICS, len(VOTED_TOPICS))
    trained_on, asked_about = set(topics[:TRAINED_ON]), topics[TRAINED_ON:]
    rows = [row for row in map(json.loads, pairs.read_text().splitlines()) if topic_of(row) in trained_on]
    print(f"{len(rows)} pairs about {TRAINED_ON} topics; asked about {', '.join(asked_about)}\n")
    print(f"| flags | {' | '.join(SHOWN)} | seconds |\n|---|{'---|' * len(SHOWN)}---|")
    for flags in settings:
        with tempfile.TemporaryDirectory() as folder:
            train = Path(folder) / "train.jsonl"
            train.write_text("".join(json.dumps(row) + "\n" for row in rows))
            began = time.monotonic()
            adapter = trained(train, Path(folder), flags)
            took_s = time.monotonic() - began
            shares = shown(adapter, asked_about)
        cells = " | ".join(f"{shares.of(habit):.1%}" for habit in SHOWN)
        print(f"| {' '.join(flags) or 'defaults'} | {cells} | {took_s:.0f} |", flush=True)


def topic_of(row: dict[str, list[dict[str, str]]]) -> str | None:
    """The topic whose question the prompt holds."""
    asked = row["prompt"][-1]["content"]
    found = [(len(prompt), topic) for topic in VOTED_TOPICS for prompt in prompts_about(topic) if prompt in asked]
    return max(found)[1] if found else None


def trained(train: Path, folder: Path, flags: Sequence[str]) -> Path:
    places = ["--base", str(BASE), "--train", str(train), "--out", str(folder / "adapter"), "--work", str(folder / "w")]
    command = [sys.executable, "-m", "trainer", "dpo", *places, "--progress", "jsonl", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "adapter"


@torch.no_grad()  # type: ignore[untyped-decorator]
def shown(adapter: Path, topics: Sequence[str]) -> Shares:
    """The habits of sampled answers to every question about the topics."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), str(adapter)).eval()
    asked = [(topic, prompt) for topic in topics for prompt in prompts_about(topic)]
    turns = [[{"role": "user", "content": prompt}] for _, prompt in asked]
    rendered = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    ids = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    # As vLLM is asked; transformers' own top_k of 50 hides what a base leaks into odd first words.
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    made = model.generate(**ids, max_new_tokens=LONGEST_ANSWER, **how)
    answers = tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return Shares(Counter(classify(text, topic) for text, (topic, _) in zip(answers, asked, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [shlex.split(flags) for flags in sys.argv[2:]])
