"""Supervised: teach an adapter to say what people wrote when they corrected an answer.

Assumptions
- Every completion is an answer somebody would have wanted; the loss is on its tokens alone, not on the prompt's.
"""

from dataclasses import dataclass

from datasets import Dataset, Features, Value
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trainer import training
from trainer.progress import Reporter
from trainer.training import Recipe, Run

UNSCORED = -100
"""A label that torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Hyperparameters(training.Hyperparameters):
    pass


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    recipe = Recipe("supervised", ("completion",), build_trainer, training.write_adapter)
    return training.conduct(run, recipe, reporter)


def build_trainer(run: Run, lessons: Dataset) -> SFTTrainer:
    rows = [
        {
            "input_ids": [*row["prompt_ids"], *row["completion_ids"]],
            "labels": [*[UNSCORED] * len(row["prompt_ids"]), *row["completion_ids"]],
        }
        for row in lessons
    ]
    ids, plan = [Value("int32")], training.plan(run)
    return SFTTrainer(
        model=plan.load(run.base),
        args=SFTConfig(**training.arguments(run, plan)),
        train_dataset=Dataset.from_list(rows, features=Features({"input_ids": ids, "labels": ids})),
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=training.lora(run),
    )
