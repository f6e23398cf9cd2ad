"""Branches: both answers of a pair in one row, so that their prompt is computed once.

TRL puts a prompt into a batch twice, with the chosen and with the rejected answer, both padded to the longest. Here a
row is the prompt and then both answers, of which neither sees the other: each token attends to what it attended to
before and stands where it stood, so losses and gradients are the same up to the order of additions. Measured on a CPU
(docs/benchmarks.md), a step takes 1.1 times less where prompts are short and answers alike, 1.5 times where answers
differ in length, and 1.8 times where prompts are long.

Assumptions
- A model that takes `position_ids` and a mask of four dimensions (transformers' sdpa attention does).
- TRL's layout: all chosen rows, then all rejected ones, padded on the right, each with its prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOTrainer

from trainer.lengths import LikeLengths

IGNORED = -100


class BranchingTrainer(DPOTrainer):
    """TRL's DPO, on a CPU with rows of branches; the loss itself is TRL's own code.

    On a GPU a pair has its two rows: FlashAttention takes no such mask, and what branches would bring is not measured.
    """

    _is_reference = False

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(self._branching(model), inputs, return_outputs)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The base alone answers until the end: for many small batches of references.

        TRL takes the adapter off and puts it on again for each batch, and asks what kind of model it has: two thirds of
        the time of a pass over the pocket model's pairs, one by one.
        """
        with self.model.disable_adapter(), torch.no_grad(), self.accelerator.autocast():
            self._is_reference = True
            try:
                yield
            finally:
                self._is_reference = False

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        if not self._is_reference or self.accelerator.device.type != "cpu" or self.ld_alpha is not None:
            return super().compute_ref_log_probs(self._branching(model), inputs)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        told = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        scored = Branching(model)(**told, labels=labels, use_cache=False, fused_lm_head=True)
        return scored.log_probs.sum(dim=1).chunk(2, dim=0)

    def _branching(self, model: Any) -> Any:
        return Branching(model) if self.accelerator.device.type == "cpu" else model

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """On a GPU, rows of like lengths: there the longer answer and the longest row decide what is computed."""
        if self.accelerator.device.type == "cpu":
            return super()._get_train_sampler(train_dataset)
        rows = train_dataset or self.train_dataset
        lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
        return LikeLengths(self.args.train_batch_size, lengths, self.args.seed)


@dataclass(frozen=True)
class Scored:
    """Per token and in TRL's layout (2 x pairs, length - 1), zero where nothing is scored."""

    log_probs: torch.Tensor
    entropy: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None


class Branching:
    """Called as TRL calls a model with a fused LM head."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **how: Any
    ) -> Scored:
        row = branched(input_ids, attention_mask, labels)
        found = self._model(
            input_ids=row.ids,
            attention_mask=row.may_see,
            position_ids=row.positions,
            shift_labels=row.targets,
            **how,
        )
        scored = labels[:, 1:] != IGNORED
        parts = (found.log_probs, found.entropy, found.mean_logits, found.is_top1)
        return Scored(*(part if part is None else _unbranched(part, row.branch, scored) for part in parts))


@dataclass(frozen=True)
class Row:
    ids: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    """0 the prompt, 1 the chosen and 2 the rejected answer, 3 padding."""
    targets: torch.Tensor
    may_see: torch.Tensor
    """(pairs, 1, width, width): what is before, in the prompt or in one's own branch."""


def branched(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Row:
    """Each branch begins with the prompt's last token, which predicts a first token of its own in each."""
    pairs, width = len(input_ids) // 2, input_ids.shape[1]
    answers = (labels != IGNORED).sum(-1, keepdim=True)
    chosen, rejected = answers[:pairs], answers[pairs:]
    prompt = attention_mask[:pairs].sum(-1, keepdim=True) - chosen - 1
    column = torch.arange(int((prompt + chosen + rejected).max()), device=input_ids.device).expand(pairs, -1)
    branch = (column >= prompt).long() + (column >= prompt + chosen) + (column >= prompt + chosen + rejected)
    positions = torch.where(branch >= 2, column - chosen, column).clamp(0, width - 1)
    following = (positions + 1).clamp(max=width - 1)

    def taken(at: torch.Tensor) -> torch.Tensor:
        return torch.where(branch >= 2, input_ids[pairs:].gather(1, at), input_ids[:pairs].gather(1, at))

    targets = taken(following).masked_fill((branch == 0) | (branch == 3), IGNORED)
    before = column[:1, :, None] >= column[:1, None, :]
    own = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return Row(taken(positions), positions, branch, targets, (before & own)[:, None])


def _unbranched(part: torch.Tensor, branch: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    found = torch.cat([part[branch == 1], part[branch == 2]])
    return part.new_zeros(scored.shape).masked_scatter(scored, found)
