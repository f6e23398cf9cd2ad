"""DPO: teach an adapter to prefer what people preferred.

Assumptions
- Both completions answer the same prompt.
- The reference model is the base model with the adapter switched off, in every round: chained references
  doubled the distance from the base per round.
"""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig
from trl.trainer import dpo_trainer

from trainer import references, training
from trainer.branches import BranchingTrainer
from trainer.progress import Reporter
from trainer.references import References
from trainer.training import Recipe, Run

ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True)
class Hyperparameters(training.Hyperparameters):
    beta: float = 0.5
    sft_weight: float = 2.0


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    return training.conduct(run, Recipe("dpo", ANSWERS, build_trainer, training.write_adapter), reporter)


class PairTrainer(BranchingTrainer):
    """With rows that are encoded already and references that may be known."""

    def __init__(self, *given: Any, known: References | None, **named: Any) -> None:
        self._known = known
        super().__init__(*given, **named)

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        columns = ("ref_chosen_logps", "ref_rejected_logps")
        return references.scored(self, dataset, columns, batch_size, self._known)


def build_trainer(run: Run, pairs: Dataset) -> PairTrainer:
    settings = run.settings
    assert isinstance(settings, Hyperparameters)
    training.spare_work(dpo_trainer)
    # One pass over the base beats one in every step from two epochs on, and from one where rows are known already.
    plan = training.plan(run)
    config = DPOConfig(
        **training.arguments(run, plan),
        loss_type=["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if settings.sft_weight else [1.0],
        beta=settings.beta,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=4 * plan.pairs_at_once,
    )
    trainer = PairTrainer(
        model=plan.load(run.base),
        args=config,
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=training.lora(run),
        known=run.known(),
    )
    assert set(trainer.model.peft_config) == {"default"}
    return trainer
