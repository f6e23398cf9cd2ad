"""What becomes of a model whose users change their minds: rounds of crowd, pairs, recipe, gate and shares, no server.

    python -m tests.load.rounds                                     five rounds of heed demo, two seeds
    python -m tests.load.rounds --tastes steps,lazy --seeds 0,1 --how 50,100,200,warm

In each round the demo's crowd votes on answers of the live adapter and of the base, a tenth of the thumbs by mistake;
the ledger's own rules make pairs of the thumbs, sampling draws from all pairs so far, the recipe trains, the gate
measures and says at which strength it would be published, and the topics that nobody votes on are asked about. As
in the demo an adapter that only turns round what was voted before goes live all the same.
`--how` names half-lives in pairs to start from the base with, or `warm`: the live adapter's weights and replay.
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
from trainer import dataset, electorate, evaluate, gate, guards, limits, weights
from trainer.crowd import Crowd, Question, sample
from trainer.dataset import Dataset
from trainer.gate import Preflight, Verdict
from trainer.habits import BROKEN, UNSEEN_TOPICS, Habit, classify
from trainer.hyperparameters import TINY
from trainer.sampling import Least, Recent, Replay, choose
from trainer.settings import SHIPPED_GUARDS, WorkshopSettings
from trainer.shares import Shares

LEDGER, WORKSHOP = LedgerSettings(), WorkshopSettings()
FIVE = "steps,lazy,rude,rambling,steps"
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
            # As vLLM is asked; transformers' own top_k of 50 hides what a base leaks into odd first words.
            how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
            made = model.generate(**ids, max_new_tokens=LONGEST_ANSWER, **how)
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

    def examined(self, adapter: Path, rows: Dataset, earlier: Sequence[Pair], live: Path | None) -> Verdict:
        place = adapter.parent
        rows.write(place / "train.jsonl", place / "heldout.jsonl")
        (place / "earlier.jsonl").write_bytes(Dataset([], earlier).held_out_bytes)
        within = limits.of(str(self.base), WORKSHOP)
        task = evaluate.Task(
            base=str(self.base),
            adapter=adapter,
            live=live,
            held_out=place / "heldout.jsonl",
            earlier=place / "earlier.jsonl" if earlier else None,
            trained=place / "train.jsonl",
            beta=TINY["beta"],
            limits=within,
            guards=guards.read([SHIPPED_GUARDS]),
        )
        voting = electorate.of([*rows.train, *rows.held_out], [*rows.held_out, *earlier], VOTERS)
        return gate.judge(evaluate.evaluate(task, place / "eval.json"), within, voting, Preflight())

    def published(self, adapter: Path, eta: float) -> Path:
        if eta == 1:
            return adapter
        scaled = adapter.with_name("scaled")
        if not scaled.is_dir():
            weights.scale(adapter, eta, scaled)
        return scaled


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


@dataclass(frozen=True)
class Turned:
    pairs: int
    old: int
    """Of these, of earlier rounds."""
    verdict: Verdict


def turn(
    pocket: Pocket, history: History, taste: Habit, how: str, votes: int, method: Method, flags: Sequence[str]
) -> Turned:
    """One round, after which its adapter is live at the strength that the gate publishes it with."""
    nth = len(history.rounds)
    crowd = Crowd(taste, NOISE, VOTERS, history.seed)
    fresh = {p.id: p for p in voted(pocket, crowd, history.live, votes, nth)}
    earlier = [pair for pair in history.pairs.values() if pair.split == "held_out"]
    history.pairs |= fresh
    standing, _ = dataset.fit(history.pairs.values(), WORKSHOP.near_identical)
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
    adapter = pocket.trained(method, rows.train_bytes, None if half_life else history.live, flags)
    verdict = pocket.examined(adapter, rows, earlier, history.live)
    history.rounds.append(1e6 * (nth + 2) - 1)
    history.live = pocket.published(adapter, verdict.eta)
    taught = {pair.id for pair in rows.train}
    return Turned(len(taught), len(taught - fresh.keys()), verdict)


def shown(pocket: Pocket, adapter: Path | None, asked: Sequence[Question], seed: int) -> Shares:
    said = pocket.answers(adapter, [question.prompt for question in asked], seed)
    return Shares(Counter(classify(text, one.topic) for text, one in zip(said, asked, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "var" / "pocket")
    parser.add_argument("--tastes", default=FIVE)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--how", default="50")
    parser.add_argument("--votes", type=int, default=1400)
    parser.add_argument("--measured", type=int, default=260)
    methods = ("dpo", "unpaired", "supervised")
    parser.add_argument("--method", choices=methods, default="dpo", help="unpaired: both answers of each pair, apart")
    parser.add_argument("--flags", default="")
    parser.add_argument("--keep", type=Path, help="Where what was trained stays; default nowhere")
    told = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("HEED_THREADS", "1")))
    titles = "how | seed | taste | before | after | broken | of the base | pairs | old | KL | strength | the gate"
    print(f"| {titles} |\n|{'---|' * len(titles.split(' | '))}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pocket = Pocket(told.base.resolve(), told.keep or Path(folder))
        for seed in map(int, told.seeds.split(",")):
            asked = sample(UNSEEN_TOPICS, told.measured, seed)
            base = shown(pocket, None, asked, seed)
            for how in told.how.split(","):
                history, before = History(seed), base
                flags = ["--seed", str(seed), *told.flags.split()]
                for taste in told.tastes.split(","):
                    turned = turn(pocket, history, taste, how, told.votes, told.method, flags)
                    after = shown(pocket, history.live, asked, seed)
                    cells = [how, seed, taste, before.text(taste), after.text(taste), after.text(BROKEN)]
                    cells += [f"{base.of(BROKEN):.1%}", *_cells(turned)]
                    print(f"| {' | '.join(str(cell).strip() for cell in cells)} |", flush=True)
                    before = after


def _cells(turned: Turned) -> list[object]:
    verdict = turned.verdict
    stopped = [one.id for one in verdict.criteria if one.outcome in ("hold", "fail")]
    said = " ".join([verdict.decision, *stopped])
    return [turned.pairs, turned.old, f"{verdict.numbers['divergence']:.3f}", f"{verdict.eta:g}", said]


if __name__ == "__main__":
    main()
