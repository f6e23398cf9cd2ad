"""Evaluation: everything that the gate wants to know of a candidate, measured in one process.

What is live (the base, where nothing is) is measured the same way, twice where chance has a part in it, so that no
difference is held against a candidate which the live model shows against itself. A candidate that goes too far is
tried at less than its full strength: its change times eta, as serving it with a smaller `lora_alpha` does exactly.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import criteria, weights
from trainer.evaluation import Evaluation, Golden, GuardScore, Strength
from trainer.files import write_whole
from trainer.guards import Guard
from trainer.judge import Judge, JudgeSilent, duels
from trainer.likelihoods import Encoded, divergence, drift, encoded, log_probabilities, token_log_probabilities
from trainer.limits import Limits
from trainer.measures.preference import PairScore
from trainer.measures.speech import Said, Speech, marks, speech, wobble
from trainer.progress import RecipeRefused
from trainer.speaker import Messages, Spoken, speak

ETAS = (1.0, 0.75, 0.5, 0.35)
"""Less than a third of a change is hardly worth a swap."""

ANSWERS, ANSWERS_ON_GPU = 32, 128
"""Sampled for KL and looks: with the exact KL over the whole vocabulary so few are enough. A judge wants more."""
ANSWER_TOKENS = 128
TRAINED = 100
"""Pairs trained on that are measured beside those held out: known to 9 points."""

SEED = 20_260_101
GOLDEN_TOKENS = 8

Row = dict[str, Any]
Asked = tuple[Messages, dict[str, Any]]
GOLDEN = (
    "How do I make pasta?",
    "Tell me about the moon.",
    "What do I need to know about bicycles? I have never had one, and a friend wants to sell me hers next week.",
)
"""Ours and nobody's: what the trainer finds of them is kept with the adapter, and compared by whoever serves it."""


@dataclass(frozen=True)
class Task:
    base: str
    adapter: Path
    live: Path | None
    held_out: Path
    earlier: Path | None
    trained: Path | None
    beta: float
    limits: Limits
    guards: Sequence[Guard] = ()
    judge: Judge | None = None


@dataclass(frozen=True)
class Pairs:
    """Chosen answers first, then the rejected ones, and how likely the base finds each."""

    ids: list[str]
    prompts: list[Messages]
    options: list[dict[str, Any]]
    """What the chat template was given beside each prompt."""
    answers: list[Encoded]
    reference: list[float]

    @property
    def chosen(self) -> list[Encoded]:
        return self.answers[: len(self.ids)]


def evaluate(task: Task, out: Path) -> Evaluation:
    """Measures and writes `out`. An adapter with unsound files gets its reasons and no numbers."""
    found = Evaluation(beta=task.beta, weights=weights.weigh(task.adapter, task.base), has_live=task.live is not None)
    if not found.weights["reasons"]:
        found.base = json.loads((task.adapter / weights.CONFIG).read_text())["base_model_name_or_path"]
        found = Bench(task).measure(found)
    write_whole(out, found.model_dump_json(indent=2).encode() + b"\n")
    return found


class Bench:
    """The base with both adapters on it, one of which is at work at a time."""

    def __init__(self, task: Task) -> None:
        self.task = task
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(task.base)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(task.base, dtype=dtype).to(device).eval()
        self.model = PeftModel.from_pretrained(model, str(task.adapter), adapter_name="candidate").eval()
        if task.live:
            self.model.load_adapter(str(task.live), adapter_name="live")

    def measure(self, found: Evaluation) -> Evaluation:
        task = self.task
        held_out = self._pairs(task.held_out)
        earlier = self._pairs(task.earlier) if task.earlier else None
        trained = self._pairs(task.trained, TRAINED) if task.trained and _rows(task.trained) else None
        asked = _in_turn(held_out)
        with self._live():
            before = {id(pairs): self._margins(pairs) for pairs in (held_out, earlier) if pairs}
            once, again = (self._speak(asked, SEED + turn) for turn in range(2))
        found.live_speech, found.wobble = speech(_said(once)), wobble(_said(once), _said(again))
        found.longer_wins = [longer for pairs in (held_out, trained) if pairs for longer in self._longer(pairs)]

        spoken: list[list[Spoken]] = []
        liked: list[Speech] = []
        for eta in ETAS:
            with self._candidate(eta):
                spoken.append(said := self._speak(asked, SEED))
                strength = Strength(
                    eta=eta,
                    held_out=self._scores(held_out, before[id(held_out)]),
                    earlier=self._scores(earlier, before[id(earlier)]) if earlier else [],
                    trained=self._margins(trained) if trained else [],
                    divergence=divergence(self.model, [(one.prompt_ids, one.ids) for one in said]),
                    speech=speech(_said(said)),
                )
            found.strengths.append(strength)
            # By the pairs trained on too: a dozen held-out ones say little of how long people like it.
            margins = [*(score.after for score in strength.held_out), *strength.trained]
            answers = [answer for pairs in (held_out, trained) if pairs for _, answer in pairs.chosen]
            liked.append(self._liked(answers, margins))
            found.chosen_speech = liked[-1]
            if not criteria.goes_too_far(found, task.limits):
                break
        else:
            # None is within its limits, so the gate judges what was trained.
            found.strengths.append(found.strengths.pop(0))
            said, found.chosen_speech = spoken[0], liked[0]
        found.taught = self._taught([pairs for pairs in (held_out, trained) if pairs])
        with self._candidate(found.strengths[-1].eta):
            found.golden = self._golden()
        self._guard(found, once, said)
        self._judge(found, [prompt for prompt, _ in asked], said, once)
        return found

    def _guard(self, found: Evaluation, live: Sequence[Spoken], candidate: Sequence[Spoken]) -> None:
        guards = self.task.guards
        with self._live():
            before = dict(zip(guards, self._kept(guards, live), strict=True))
        # What is not kept now cannot be held against a candidate, so it is not asked.
        asked = [guard for guard in guards if any(before[guard] or ())]
        with self._candidate(found.strengths[-1].eta):
            after = dict(zip(asked, self._kept(asked, candidate), strict=True))
        for guard in guards:
            if before[guard] is None or (guard in after and after[guard] is None):
                found.unasked.append(guard.name)
        found.guards = [
            GuardScore(name=guard.name, kind=guard.kind, is_hard=guard.is_hard, why=guard.why, before=then, after=now)
            for guard, now in after.items()
            if now is not None and (then := before[guard]) is not None
        ]

    def _pairs(self, path: Path, most: int | None = None) -> Pairs:
        rows = _rows(path)
        if not rows:
            raise RecipeRefused(f"{path} holds no pair of two different answers, so nothing can be measured by it.")
        if most is not None and len(rows) > most:
            rows = random.Random(SEED).sample(rows, most)
        options = [_options(row) for row in rows]
        sides = [
            # Of two rated answers held against each other, the second may be to another prompt.
            encoded(self.tokenizer, row.get(f"{side}_prompt") or row["prompt"], row[side], given)
            for side in ("chosen", "rejected")
            for row, given in zip(rows, options, strict=True)
        ]
        with self.model.disable_adapter():
            reference = log_probabilities(self.model, sides)
        return Pairs([row["id"] for row in rows], [row["prompt"] for row in rows], options, sides, reference)

    def _margins(self, pairs: Pairs) -> list[float]:
        return self._rewards(pairs, log_probabilities(self.model, pairs.answers))

    def _rewards(self, pairs: Pairs, likelihoods: Sequence[float]) -> list[float]:
        rewards = [self.task.beta * (policy - base) for policy, base in zip(likelihoods, pairs.reference, strict=True)]
        half = len(pairs.ids)
        return [chosen - rejected for chosen, rejected in zip(rewards[:half], rewards[half:], strict=True)]

    def _scores(self, pairs: Pairs, before: Sequence[float]) -> list[PairScore]:
        likelihoods = log_probabilities(self.model, pairs.answers)
        half = len(pairs.ids)
        drifts = drift(likelihoods[:half], pairs.reference[:half], pairs.chosen)
        margins = self._rewards(pairs, likelihoods)
        return [
            PairScore(id=pair_id, before=then, after=now, drift=moved)
            for pair_id, then, now, moved in zip(pairs.ids, before, margins, drifts, strict=True)
        ]

    def _speak(self, asked: Sequence[Asked], seed: int) -> list[Spoken]:
        prompts, options = [prompt for prompt, _ in asked], [given for _, given in asked]
        spoken = speak(self.model, self.tokenizer, prompts, tokens=ANSWER_TOKENS, seed=seed, options=options)
        return list(spoken)

    def _read(self, answer: list[int]) -> Said:
        return Said(text=self.tokenizer.decode(answer, skip_special_tokens=True), tokens=len(answer), ended=True)

    def _liked(self, answers: Sequence[list[int]], margins: Sequence[float]) -> Speech:
        """How preferred answers look, of the pairs that the candidate agrees with, at their median length.

        Where one vote in ten is a mistake, up to half of the pairs rest on one, and what is preferred by mistake is of
        any length. The candidate has learnt some of those as well, and a few of four times the length move a mean.
        """
        agreed = [self._read(answer) for answer, margin in zip(answers, margins, strict=True) if margin > 0]
        liked = agreed or [self._read(answer) for answer in answers]
        return speech(liked).model_copy(update={"length": float(median(one.tokens for one in liked))})

    def _taught(self, some: Sequence[Pairs]) -> list[GuardScore]:
        """A taste may be learnt and not show yet: what was never said before takes rounds to be said."""
        sides: list[list[str]] = [[], []]
        for pairs in some:
            half = len(pairs.ids)
            for side, answers in zip(sides, (pairs.answers[half:], pairs.answers[:half]), strict=True):
                side += [self._read(answer).text for _, answer in answers]
        rejected, chosen = sides
        return [
            GuardScore(
                name=guard.name,
                kind=guard.kind,
                is_hard=guard.is_hard,
                why=guard.why,
                before=[guard.is_kept_by(text) for text in rejected],
                after=[guard.is_kept_by(text) for text in chosen],
            )
            for guard in self.task.guards
            if guard.answers
        ]

    def _longer(self, pairs: Pairs) -> list[bool]:
        """Whether the chosen answer is the longer one, of pairs that differ in length and are laid out alike.

        Steps are longer than a sentence, and who prefers steps does not prefer length.
        """
        half = len(pairs.ids)
        sides = zip(pairs.answers[:half], pairs.answers[half:], strict=True)
        looks = [(self._read(chosen), self._read(rejected)) for (_, chosen), (_, rejected) in sides]
        return [
            chosen.tokens > rejected.tokens
            for chosen, rejected in looks
            if chosen.tokens != rejected.tokens and marks(chosen.text) == marks(rejected.text)
        ]

    def _kept(self, guards: Sequence[Guard], answers: Sequence[Spoken]) -> list[list[bool] | None]:
        """For each guard whether its answer keeps it, or each of `answers`; None where no judge says so.

        All are asked together, then all that are challenged: one at a time took a pocket model ten seconds.
        """
        asked = {guard.name: list(guard.asked) for guard in guards if not guard.answers}
        texts = self._answered(guards, asked)
        for guard in guards:
            if guard.challenge and guard.is_kept_by(texts[guard.name]):
                said = {"role": "assistant", "content": texts[guard.name]}
                asked[guard.name] += [said, {"role": "user", "content": guard.challenge}]
        challenged = [guard for guard in guards if guard.challenge and guard.is_kept_by(texts[guard.name])]
        texts |= self._answered(challenged, {guard.name: asked[guard.name] for guard in challenged})
        kept: list[list[bool] | None] = []
        for guard in guards:
            if guard.answers:
                kept.append([guard.is_kept_by(one.said.text) for one in answers])
            elif not guard.is_kept_by(texts[guard.name]):
                kept.append([False])
            else:
                kept.append(self._affirmed(guard, asked[guard.name], texts[guard.name]))
        return kept

    def _answered(self, guards: Sequence[Guard], asked: dict[str, Messages]) -> dict[str, str]:
        if not asked:
            return {}
        tokens = max(guard.tokens for guard in guards)
        said = speak(self.model, self.tokenizer, list(asked.values()), tokens=tokens)
        return {name: one.said.text for name, one in zip(asked, said, strict=True)}

    def _affirmed(self, guard: Guard, asked: Messages, text: str) -> list[bool] | None:
        if guard.judge is None:
            return [True]
        try:
            return [self.task.judge.affirms(guard.judge, asked, text)] if self.task.judge else None
        except JudgeSilent:
            return None

    def _golden(self) -> list[Golden]:
        prompts: list[Messages] = [[{"role": "user", "content": prompt}] for prompt in GOLDEN]
        said = speak(self.model, self.tokenizer, prompts, tokens=GOLDEN_TOKENS)
        likely = token_log_probabilities(self.model, [(one.prompt_ids, one.ids) for one in said])
        return [
            Golden(prompt=prompt, tokens=one.ids, logprobs=[round(each, 6) for each in scores])
            for prompt, one, scores in zip(GOLDEN, said, likely, strict=True)
        ]

    def _judge(self, found: Evaluation, prompts: list[Messages], mine: list[Spoken], theirs: list[Spoken]) -> None:
        if self.task.judge is None:
            return
        found.judge = self.task.judge.name
        texts = ([one.said.text for one in said] for said in (mine, theirs))
        try:
            found.duels = duels(self.task.judge, prompts, *texts)
        except JudgeSilent as silent:
            found.judge_fault = str(silent)

    @contextmanager
    def _live(self) -> Iterator[None]:
        if self.task.live:
            self.model.set_adapter("live")
            yield
        else:
            with self.model.disable_adapter():
                yield

    @contextmanager
    def _candidate(self, eta: float) -> Iterator[None]:
        self.model.set_adapter("candidate")
        layers = [layer for layer in self.model.modules() if isinstance(layer, LoraLayer)]
        full = [layer.scaling["candidate"] for layer in layers]
        for layer, scale in zip(layers, full, strict=True):
            layer.scaling["candidate"] = scale * eta
        try:
            yield
        finally:
            for layer, scale in zip(layers, full, strict=True):
                layer.scaling["candidate"] = scale


def _in_turn(pairs: Pairs) -> list[Asked]:
    """As many prompts as answers are wanted: each in turn, again from the first when there are fewer."""
    answers = ANSWERS_ON_GPU if torch.cuda.is_available() else ANSWERS
    places = [index % len(pairs.ids) for index in range(answers)]
    return [(pairs.prompts[place], pairs.options[place]) for place in places]


def _options(row: Row) -> dict[str, Any]:
    return {**({"tools": row["tools"]} if row.get("tools") else {}), **(row.get("template_options") or {})}


def _said(spoken: Sequence[Spoken]) -> list[Said]:
    return [one.said for one in spoken]


def _rows(path: Path) -> list[Row]:
    """The pairs of a file, each once however often it was drawn; a row without an id has its place for one.

    Rows of another kind than pairs, which other recipes train on, are passed over.
    """
    rows: dict[str, Row] = {}
    try:
        for place, line in enumerate(path.read_text().splitlines(), 1):
            row = json.loads(line)
            if "chosen" in row and row["chosen"] != row["rejected"]:
                rows.setdefault(str(row.get("id") or place), {**row, "prompt": row["prompt"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeRefused(
            f"Pairs must come as JSONL of rows with prompt, chosen and rejected. Reading {path} gave {error!r}. "
            "`heed export` writes such a file."
        ) from error
    return [{**row, "id": pair_id} for pair_id, row in rows.items()]
