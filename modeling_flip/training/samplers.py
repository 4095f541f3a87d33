"""Orders in which training rows are read."""

from __future__ import annotations

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthBuckets(LengthGroupedSampler):
    """Batches of like length in an order that depends on seed and epoch alone, so that all processes, and a resumed run,
    see the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)
