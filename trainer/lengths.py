"""Lengths: rows of like lengths in one batch, so that less of it is padding.

Shuffled anew in each epoch by seed and epoch alone, so that a run which goes on from a checkpoint sees the rows in the
order that it would have seen them in. transformers' own sampler asks the global generator, whose state differs then.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

LARGE_PRIME = 1_000_003


class LikeLengths(LengthGroupedSampler):
    def __init__(self, batch: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch, lengths=list(lengths))
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Accelerate's data loader says which epoch begins."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed * LARGE_PRIME + self._epoch)
        return iter(super().__iter__())
