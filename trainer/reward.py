"""Reward: a model that says how much people would like an answer, to judge adapters and to choose among answers.

A LoRA and a head of one number on the base, trained on the same pairs as DPO by the Bradley-Terry loss (InstructGPT,
equation 1). It never answers: it judges in the gate (docs/gate.md) or chooses among samples (docs/best-of.md), and has
a folder of its own with a manifest.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from trainer import manifest, rows, training, weights
from trainer.progress import RecipeRefused, Reporter
from trainer.rows import Row
from trainer.training import Recipe, Run

HEAD = "score"
SIDES = ("chosen", "rejected")
AT_ONCE = 16


@dataclass(frozen=True)
class Hyperparameters(training.Hyperparameters):
    centre: float = 0.01
    """Keeps the mean reward near zero, so that answers to different prompts can be compared (arXiv 2312.09244; TRL's
    recommended value)."""


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with a reward model, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    if run.init:
        raise RecipeRefused(
            f"--init is for adapters that answer. A reward model has another head than {run.init}. Leave it away."
        )
    recipe = Recipe("reward", SIDES, build_trainer, write_reward_model)
    return training.conduct(run, recipe, reporter)


def build_trainer(run: Run, pairs: Dataset) -> RewardTrainer:
    settings = run.settings
    assert isinstance(settings, Hyperparameters)
    ids = [Value("int32")]
    texts = [
        {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")} for row in pairs
    ]
    set_seed(settings.seed)  # the head begins at random
    told = {key: value for key, value in _adapter_config(run).items() if key not in ("peft_type", "inference_mode")}
    return RewardTrainer(
        model=_classifier(run.base),
        args=RewardConfig(
            **training.arguments(run, training.plan(run)), center_rewards_coefficient=settings.centre or None
        ),
        train_dataset=Dataset.from_list(texts, features=Features(chosen_ids=ids, rejected_ids=ids)),
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=LoraConfig(**told),
    )


def write_reward_model(run: Run, trainer: Any) -> None:
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        for name, tensor in get_peft_model_state_dict(trainer.model).items()
    }
    made_from = {
        "base": run.base,
        "base_revision": manifest.describe_base(run.base).revision,
        "rows": run.fingerprint("reward")["rows"],
        "hyperparameters": asdict(run.settings) | {"precision": run.precision},  # what auto came to
        "versions": manifest.versions(),
    }
    about = {manifest.REWARD: json.dumps(made_from, indent=2, sort_keys=True).encode() + b"\n"}
    weights.write_adapter(run.out, tensors, _adapter_config(run), about)


def score(base: str, reward_dir: Path, rows: Sequence[Row]) -> list[float]:
    """See Scorer.score."""
    found: list[float] = Scorer(base, reward_dir).score(rows)
    return found


def appraise(base: str, folder: Path, held_out: Path) -> tuple[int, int]:
    """Of how many pairs that it was not trained on the chosen answer scores higher, and how many there are.

    One that does not fit the base is in neither. Raises RecipeRefused.
    """
    tokenizer, scorer = AutoTokenizer.from_pretrained(base), Scorer(base, folder)
    pairs = [row for row in rows.read(held_out, SIDES) if rows.fit([row], SIDES, tokenizer, scorer.longest).rows]
    asked = [{**row, "completion": row[side]} for row in pairs for side in SIDES]
    scores = scorer.score(asked)
    return sum(scores[at] > scores[at + 1] for at in range(0, len(scores), 2)), len(pairs)


class Scorer:
    """A reward model in memory. Raises RecipeRefused for one that belongs to another base."""

    def __init__(self, base: str, folder: Path) -> None:
        made_from = json.loads((folder / manifest.REWARD).read_bytes())
        if made_from["base_revision"] != (revision := manifest.describe_base(base).revision):
            raise RecipeRefused(
                f"the reward model must be of this base. {folder} was trained on {made_from['base_revision'][:12]} and "
                f"{base} is {revision[:12]}. Train one with `python -m trainer reward`."
            )
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = _classifier(base)
        model.config.get_text_config().pad_token_id = self._pad = self._tokenizer.pad_token_id or 0
        self._model = PeftModel.from_pretrained(model, str(folder)).to(self._device).eval()
        self.longest = int(made_from["hyperparameters"]["max_length"])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, answered: Sequence[Row]) -> list[float]:
        """For rows of `prompt` and `completion` (both lists of messages), how much each answer would be liked.

        Only differences mean something: those of two answers to one prompt are log-odds of being preferred. Raises
        RecipeRefused when a row is not rendered as a prompt and its answer, or longer than what was trained on.
        """
        encoded: list[list[int]] = []
        for row in answered:
            fitted = rows.fit([row], ("completion",), self._tokenizer, self.longest)
            if not fitted.rows:
                raise RecipeRefused(f"the row cannot be scored: {', '.join(fitted.dropped)}")
            encoded.append(fitted.rows[0]["prompt_ids"] + fitted.rows[0]["completion_ids"])
        found = [0.0] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            width = max(len(encoded[index]) for index in some)
            ids = torch.tensor([encoded[index] + [self._pad] * (width - len(encoded[index])) for index in some])
            mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in some])
            told = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False)
            for index, reward in zip(some, told.logits.squeeze(-1).tolist(), strict=True):
                found[index] = reward
        return found


def _classifier(base: str) -> Any:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return AutoModelForSequenceClassification.from_pretrained(base, dtype=dtype, num_labels=1)


def _adapter_config(run: Run) -> dict[str, Any]:
    told = weights.adapter_config(run.base, run.settings.lora_rank)
    return told | {"task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
