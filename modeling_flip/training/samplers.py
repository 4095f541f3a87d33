"""Row orders as arrays: a list of a split's rows would take four times the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import BatchSampler, Sampler

READ_AT_ONCE = 1 << 16
MOST_BATCHES_SORTED = 50  # batches per chunk, as in transformers; fewer if there are few rows


class InOrder(Sampler[int]):
    """Rows in a given order (N,)."""

    def __init__(self, order: np.ndarray):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return one_by_one(self.order)


class Shuffled(Sampler[int]):
    """All rows, in an order that depends on seed and epoch alone: every process, a resumed run and any wrapper of the sampler
    see the same order.

    Row r of epoch e has index e * N + r, which tells a `FlipDataset` the epoch of its masks in every worker.

    Args:
        num_rows: N.
        seed: seed of the order.
        epoch: returns the epoch, and is called whenever an order begins, because not every wrapper of accelerate passes
            `set_epoch` on.
        lengths: (N,) tokens of each sentence; then sentences of like length share a batch, in the order of transformers'
            `LengthGroupedSampler`.
        batch_size: rows of a batch, of all processes together.

    Example:
        >>> list(Shuffled(3, seed=0, epoch=lambda: 2))  # rows 0, 2 and 1
        [6, 8, 7]
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        epoch: Callable[[], int],
        lengths: np.ndarray | None = None,
        batch_size: int = 1,
    ):
        self.num_rows, self.seed, self.epoch, self.lengths, self.batch_size = num_rows, seed, epoch, lengths, batch_size

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + epoch)).numpy()
        if self.lengths is not None:
            group_by_length(order, self.lengths, self.batch_size)
        return one_by_one(order + epoch * self.num_rows)


class ShareOfBatches(Sampler[list[int]]):
    """This process's rows of each batch, which all processes together see. The last batch is shared out as well: each process
    gets equally many of its rows, or one more or less, and none where there are fewer rows than processes.

    Args:
        order: the rows, the same on all processes.
        batch_size: rows of a process in a whole batch.
        process: which process this is, of so many.

    Example:
        >>> [list(ShareOfBatches(range(5), 2, process, 2)) for process in range(2)]
        [[[0, 1], []], [[2, 3], [4]]]
    """

    def __init__(
        self,
        order: Sampler[int] | Sequence[int],
        batch_size: int,
        process: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ):
        self.batches = BatchSampler(order, batch_size * processes, drop_last)
        self.batch_size, self.drop_last, self.process, self.processes = batch_size, drop_last, process, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            first, end = (len(batch) * part // self.processes for part in (self.process, self.process + 1))
            yield batch[first:end]


def group_by_length(order: np.ndarray, lengths: np.ndarray, batch_size: int) -> None:
    """Sort an order (N,) by length (N,), in place, within chunks of some batches."""
    size = batch_size * max(1, min(len(order) // (4 * batch_size), MOST_BATCHES_SORTED))
    starts = np.arange(0, len(order), size)
    for start in starts:
        part = order[start : start + size]
        part[:] = part[np.argsort(-lengths[part], kind="stable")]
    # The longest sentence of all comes first, so that running out of memory shows at once.
    longest = starts[np.argmax(lengths[order[starts]])]
    order[[0, longest]] = order[[longest, 0]]


def one_by_one(order: np.ndarray) -> Iterator[int]:
    for first in range(0, len(order), READ_AT_ONCE):
        yield from order[first : first + READ_AT_ONCE].tolist()
