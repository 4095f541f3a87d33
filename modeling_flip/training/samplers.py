"""Orders in which rows are read, as arrays: a list of a split's rows takes four times the memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

READ_AT_ONCE = 1 << 16
MOST_BATCHES_SORTED = 50  # together, as transformers has it; fewer where there are few rows


class InOrder(Sampler[int]):
    """Rows in a given order (N,)."""

    def __init__(self, order: np.ndarray):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return one_by_one(self.order)


class LengthBuckets(LengthGroupedSampler):
    """Batches of like length in an order that depends on seed and epoch alone, so that all processes, and a resumed run,
    see the same: that of transformers' `LengthGroupedSampler`. `lengths` is (N,)."""

    def __init__(self, batch_size: int, lengths: np.ndarray, seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        lengths = self.lengths
        order = torch.randperm(len(lengths), generator=self.generator).numpy()
        size = self.batch_size * max(1, min(len(lengths) // (4 * self.batch_size), MOST_BATCHES_SORTED))
        starts = np.arange(0, len(order), size)
        for start in starts:
            part = order[start : start + size]
            part[:] = part[np.argsort(-lengths[part], kind="stable")]
        # The longest sentence of all comes first: where memory is short, it shows at once.
        longest = starts[np.argmax(lengths[order[starts]])]
        order[[0, longest]] = order[[longest, 0]]
        return one_by_one(order)


def one_by_one(order: np.ndarray) -> Iterator[int]:
    for first in range(0, len(order), READ_AT_ONCE):
        yield from order[first : first + READ_AT_ONCE].tolist()
