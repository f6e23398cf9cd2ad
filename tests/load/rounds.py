"""What becomes of a model whose users change their minds: rounds of crowd, pairs, recipe and shares, without a server.

    python -m tests.load.rounds --tastes steps,lazy --seeds 0,1,2 --how 50,100,200,warm

In each round the demo's crowd votes on answers of the live adapter and of the base, the ledger's own rules make pairs
of the thumbs, sampling draws from all pairs so far, the recipe trains, and the topics that nobody votes on are asked
about. `--how` names half-lives in pairs to start from the base with, or `warm`: the live adapter's weights and replay.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from feedback import caps
from feedback.lessons import derive
from feedback.records import Choice, Completion, Method, Pair, Vote, digest, prompt_digest
from feedback.settings import LedgerSettings
from tests.processes import ROOT
from trainer import dataset
from trainer.crowd import Crowd, Question, sample
from trainer.habits import UNSEEN_TOPICS, Habit, classify
from trainer.sampling import Least, Recent, Replay, choose
from trainer.shares import SHOWN, Shares

LEDGER = LedgerSettings()
TEMPERATURE = 0.8
LONGEST_ANSWER = 96
AT_ONCE = 64
NOISE, VOTERS = 0.1, 20
MOST = 20_000


@dataclass
class History:
    """One service's life: its pairs, when its rounds ended, and what is live."""

    seed: int
    pairs: dict[str, Pair] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    live: Path | None = None


class Pocket:
    """The model and what was trained from it; the same rows with the same start are trained once."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self._folder = base, folder
        self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def answers(self, adapter: Path | None, prompts: Sequence[str], seed: int) -> list[str]:
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_pretrained(self.base)
        model = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()
        found: list[str] = []
        for start in range(0, len(prompts), AT_ONCE):
            turns = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + AT_ONCE]]
            texts = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            ids = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            made = model.generate(**ids, max_new_tokens=LONGEST_ANSWER, do_sample=True, temperature=TEMPERATURE)
            found += self._tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return found

    def trained(self, method: str, rows: bytes, init: Path | None, flags: Sequence[str]) -> Path:
        place = self._folder / digest(method, rows.decode(), str(init), *flags)[:16]
        train = place / "train.jsonl"
        if not (place / "adapter").is_dir():
            place.mkdir(parents=True, exist_ok=True)
            train.write_bytes(rows)
            named = {"--base": self.base, "--train": train, "--out": place / "adapter", "--work": place / "work"}
            if init:
                named["--init"] = init
            options = [part for name, value in named.items() for part in (name, str(value))]
            command = [sys.executable, "-m", "trainer", method, *options, "--progress", "jsonl", *flags]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return place / "adapter"


def voted(pocket: Pocket, crowd: Crowd, live: Path | None, votes: int, nth: int) -> list[Pair]:
    """What the crowd's thumbs in the round amount to, as `heed demo` gives them."""
    errands = crowd.errands(votes, ("live", "base"), skip=nth * (votes // 2))
    said: dict[int, str] = {}
    for number, (model, adapter) in enumerate((("live", live), ("base", None))):
        at = [i for i, errand in enumerate(errands) if errand.model == model]
        texts = pocket.answers(adapter, [errands[i].question.prompt for i in at], 1000 * crowd.seed + 2 * nth + number)
        said |= dict(zip(at, texts, strict=True))
    asked: dict[str, Completion] = {}
    thumbs: dict[str, list[Vote]] = defaultdict(list)
    for i, errand in enumerate(errands):
        messages = [{"role": "user", "content": errand.question.prompt}]
        asking, when = f"chatcmpl-{nth}-{i}", 1e6 * (nth + 1) + i
        asked[asking] = Completion(
            id=asking,
            served_model="heed",
            adapter=errand.model,
            created=when,
            messages=messages,
            prompt_hash=prompt_digest(messages),
            choices=[Choice(index=0, message={"role": "assistant", "content": said[i]})],
        )
        vote = Vote(
            id=Vote.id_of(asking, 0, errand.voter),
            completion_id=asking,
            prompt_hash=asked[asking].prompt_hash,
            rating=crowd.thumb(errand, classify(said[i], errand.question.topic)),
            voter=errand.voter,
            model=errand.model,
            created=when,
            updated=when,
        )
        thumbs[vote.prompt_hash].append(vote)
    return [pair for some in thumbs.values() for pair in derive(some, asked, LEDGER.held_out_share).pairs]


def turn(
    pocket: Pocket, history: History, taste: Habit, how: str, votes: int, method: Method, flags: Sequence[str]
) -> tuple[int, int]:
    """One round; returns how many rows were trained on and how many of those are of earlier rounds."""
    nth = len(history.rounds)
    fresh = {p.id: p for p in voted(pocket, Crowd(taste, NOISE, VOTERS, history.seed), history.live, votes, nth)}
    history.pairs |= fresh
    standing = sorted(history.pairs.values(), key=lambda pair: pair.created)
    half_life = float(how) if how != "warm" else 0.0
    drawn = choose(
        standing,
        list(fresh),
        Recent(half_life, MOST, tuple(history.rounds)) if half_life else Replay(0.1),
        history.seed,
        Least(LEDGER.min_pairs, LEDGER.min_held_out_pairs),
        caps.of(LEDGER),
    )
    rows = dataset.build(drawn.ids, standing, method)
    history.rounds.append(1e6 * (nth + 2) - 1)
    history.live = pocket.trained(method, rows.train_bytes, None if half_life else history.live, flags)
    return len(rows.train), sum(pair.id not in fresh for pair in rows.train)


def shown(pocket: Pocket, adapter: Path | None, asked: Sequence[Question], seed: int) -> Shares:
    said = pocket.answers(adapter, [question.prompt for question in asked], seed)
    return Shares(Counter(classify(text, one.topic) for text, one in zip(said, asked, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "var" / "pocket")
    parser.add_argument("--tastes", default="steps,lazy")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--how", default="50,100,200,warm")
    parser.add_argument("--votes", type=int, default=1400)
    parser.add_argument("--measured", type=int, default=260)
    methods = ("dpo", "unpaired", "supervised")
    parser.add_argument("--method", choices=methods, default="dpo", help="unpaired: both answers of each pair, apart")
    parser.add_argument("--flags", default="")
    parser.add_argument("--keep", type=Path, help="Where what was trained stays; default nowhere")
    told = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("HEED_THREADS", "1")))
    print(f"| how | seed | round | rows | old | {' | '.join(SHOWN)} |\n|---|---|---|---|---|{'---|' * len(SHOWN)}")
    with tempfile.TemporaryDirectory() as folder:
        pocket = Pocket(told.base.resolve(), told.keep or Path(folder))
        for seed in map(int, told.seeds.split(",")):
            asked = sample(UNSEEN_TOPICS, told.measured, seed)
            for how in told.how.split(","):
                history = History(seed)
                for taste in told.tastes.split(","):
                    rows, old = turn(pocket, history, taste, how, told.votes, told.method, told.flags.split())
                    shares = shown(pocket, history.live, asked, seed)
                    cells = " | ".join(f"{shares.of(habit):.1%}" for habit in SHOWN)
                    print(f"| {how} | {seed} | {taste} | {rows} | {old} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
