"""Unpaired: teach an adapter from lone thumbs, liked answers up and disliked ones down.

`apo_zero_unpaired` (Anchored Preference Optimization, arXiv 2408.06266, in TRL's KTOTrainer): it needs no estimate of
the KL divergence, which KTO makes of wrong answers in a fixed order, and learnt as much from the same thumbs for a
quarter less work.

Assumptions
- A row is one answer and whether people liked it; the two kinds need not be about the same prompts.
- The reference model is the base model with the adapter switched off.
"""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl.trainer import kto_trainer

from trainer import references, training
from trainer.progress import RecipeRefused, Reporter
from trainer.references import References
from trainer.training import Recipe, Run


@dataclass(frozen=True)
class Hyperparameters(training.Hyperparameters):
    beta: float = 0.5


def train(run: Run, reporter: Reporter) -> int:
    """Exit code: 0 with an adapter, 75 after SIGTERM (a checkpoint was saved), 76 when cancelled."""
    recipe = Recipe("unpaired", ("completion",), build_trainer, training.write_adapter, has_labels=True)
    return training.conduct(run, recipe, reporter)


class ThumbTrainer(KTOTrainer):
    """TRL's, with rows that are encoded already and references that may be known."""

    def __init__(self, *given: Any, known: References | None, **named: Any) -> None:
        self._known = known
        super().__init__(*given, **named)

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return references.scored(self, dataset, ("ref_logps",), batch_size, self._known)


def build_trainer(run: Run, thumbs: Dataset) -> ThumbTrainer:
    settings = run.settings
    assert isinstance(settings, Hyperparameters)
    liked = sum(thumbs["label"])
    disliked = len(thumbs) - liked
    if not liked or not disliked or len(thumbs) < settings.batch_size:
        raise RecipeRefused(
            f"--train must hold liked and disliked answers, and at least a batch of {settings.batch_size}. {run.train} "
            f"holds {liked} liked and {disliked} disliked ones that fit. Collect votes of both kinds first."
        )
    training.spare_work(kto_trainer)
    plan = training.plan(run)
    config = KTOConfig(
        **training.arguments(run, plan),
        loss_type="apo_zero_unpaired",
        beta=settings.beta,
        # The rarer kind weighs as much in all as the other: at five to one it was hardly learnt at all without.
        desirable_weight=max(1.0, disliked / liked),
        undesirable_weight=max(1.0, liked / disliked),
        # TRL keeps the order of the file for KTO's own loss; in it all that was liked may come first.
        train_sampling_strategy="random",
        # The last rows, fewer than a batch, may all be of one kind.
        dataloader_drop_last=True,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=4 * plan.pairs_at_once,
    )
    trainer = ThumbTrainer(
        model=plan.load(run.base),
        args=config,
        train_dataset=thumbs,
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=training.lora(run),
        known=run.known(),
    )
    assert set(trainer.model.peft_config) == {"default"}
    return trainer
