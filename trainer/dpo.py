"""DPO: teach an adapter to prefer what people preferred.

Assumptions
- Both completions answer the same prompt.
- The reference model is the base model with the adapter switched off, in every round: chained references
  doubled the distance from the base per round.
- Some answers were preferred by mistake. The sigmoid term holds pairs against each other and so hears that; a
  likelihood term takes every chosen answer for a good one. So it counts an answer by what the policy makes of it:
  `2 sigmoid(sft_doubt * reward)`: 1 at first, 2 where pairs speak for the answer, 0 where they speak against it.
- The sigmoid term adds up a whole answer's tokens. So does the likelihood term with a `sft_length` (as in Liu et al.,
  2405.16436); the mean over a batch's tokens (TRL's) leaves of it a quarter where answers are four times as long.
"""

from dataclasses import dataclass
from typing import Any

import torch
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
    sft_weight: float = 4.0
    sft_doubt: float = 2.0
    """0: every choice is believed, as by TRL."""
    sft_length: float = 25.0
    """Tokens of an answer for which the weight is meant; 0: those of the batch, as TRL has it."""


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    return training.conduct(run, Recipe("dpo", ANSWERS, build_trainer, training.write_adapter), reporter)


class Heard:
    """A model as TRL calls it, and what it said last: TRL hands on the loss alone."""

    log_probs: torch.Tensor

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **asked: Any) -> Any:
        said = self._model(**asked)
        self.log_probs = said.log_probs
        return said


class PairTrainer(BranchingTrainer):
    """With rows that are encoded already and references that may be known."""

    def __init__(self, *given: Any, known: References | None, told: Hyperparameters, **named: Any) -> None:
        self._known, self._told = known, told
        super().__init__(*given, **named)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self._told.sft_weight:
            return loss
        assert not return_outputs, "outputs are for evaluations, which a run has none of"
        is_said = inputs["completion_mask"][:, 1:].bool()
        chosen, _ = (self._heard.log_probs * is_said).chunk(2)
        return loss + self._told.sft_weight * self._unlikelihood(chosen, is_said, inputs["ref_chosen_logps"])

    def _unlikelihood(self, chosen: torch.Tensor, is_said: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Of the chosen answers, nats a token, each answer as far as it is believed."""
        likely = chosen.sum(1)
        believed = 2 * torch.sigmoid(self._told.sft_doubt * self.beta * (likely - reference).detach())
        tokens = self._told.sft_length * len(chosen) or is_said.chunk(2)[0].sum()
        return -(believed * likely).sum() / tokens

    def _branching(self, model: Any) -> Heard:
        self._heard = Heard(super()._branching(model))
        return self._heard

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
        loss_type=["sigmoid"],
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
        told=settings,
    )
    assert set(trainer.model.peft_config) == {"default"}
    return trainer
