from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_flip import FlipProcessor
from modeling_flip.training import samplers
from modeling_flip.training.samplers import InOrder, ShareOfBatches, Shuffled


def test_batches_hold_sentences_of_like_length_in_an_order_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 400)
    epochs = iter([0, 1, 0])
    sampler = Shuffled(400, 3, lambda: next(epochs), lengths, 8)
    first, second = list(sampler), list(sampler)
    assert list(sampler) == first != [index - 400 for index in second]
    assert sorted(first) == list(range(400)) and sorted(second) == list(range(400, 800))
    spread = [np.ptp([lengths[i] for i in first[k : k + 8]]) for k in range(0, 400, 8)]
    assert np.mean(spread) < 10  # 70 in a random order


@pytest.mark.parametrize("rows", [1, 7, 63, 64, 1000, 4003])
@pytest.mark.parametrize("longest", [1, 4, 1000])
def test_the_order_is_that_of_transformers(rows: int, longest: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, longest, rows)
    expected = get_length_grouped_indices(lengths.tolist(), 16, generator=torch.Generator().manual_seed(3))
    assert list(Shuffled(rows, 3, lambda: 0, lengths, 16)) == expected


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_order_without_lengths_is_that_of_accelerate(rows: int) -> None:
    """Runs of before, whose samplers it made, can be repeated."""
    theirs = SeedableRandomSampler(range(rows), data_seed=3)
    theirs.set_epoch(2)
    assert list(Shuffled(rows, 3, lambda: 2)) == [2 * rows + index for index in theirs]


def test_a_given_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "READ_AT_ONCE", 2)
    sampler = InOrder(np.array([3, 0, 2, 1, 4]))
    assert list(sampler) == list(sampler) == [3, 0, 2, 1, 4] and len(sampler) == 5
    assert list(InOrder(np.zeros(0, np.int64))) == []


@given(rows=st.integers(0, 60), batch_size=st.integers(1, 7), processes=st.integers(1, 5), drop_last=st.booleans())
def test_processes_share_each_batch_out(rows: int, batch_size: int, processes: int, drop_last: bool) -> None:
    """The last one too: together they see what one process would, and none has more than one row more than another."""
    whole = list(BatchSampler(range(rows), batch_size * processes, drop_last))
    shares = [ShareOfBatches(range(rows), batch_size, p, processes, drop_last) for p in range(processes)]
    assert [len(share) for share in shares] == [len(whole)] * processes
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [row for part in parts for row in part] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert max(map(len, parts)) <= batch_size


def test_a_resumed_epoch_goes_on_in_its_own_order() -> None:
    """Two processes, resumed after two batches of the third epoch: what is skipped and what is left are that epoch's rows."""
    lengths = np.random.default_rng(0).integers(5, 100, 63)
    rows: Any = range(63)
    epoch = 2
    whole = [index % 63 for index in Shuffled(63, 3, lambda: epoch, lengths, 16)]
    left: list[int] = []
    for process in range(2):
        batches = ShareOfBatches(Shuffled(63, 3, lambda: epoch, lengths, 16), 8, process, 2)
        loader = prepare_data_loader(DataLoader(rows, batch_sampler=batches), num_processes=1, process_index=0)
        rest = skip_first_batches(loader, 2)
        rest.set_epoch(epoch)
        left += [index % 63 for batch in rest.batch_sampler for index in batch]
    assert sorted(left) == sorted(whole[32:])


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_that_live_on_learn_of_the_next_epoch(workers: int) -> None:
    processor = FlipProcessor.fit({"user": ["a", "b", "c"]}, ["user"])
    epochs = iter(range(2))
    loader = DataLoader(
        processor.encode({"user": ["a", "b", "c"]}),
        batch_size=2,
        sampler=Shuffled(3, 0, lambda: next(epochs)),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=epoch_and_rows,
    )
    assert [[epoch for epoch, _ in loader] for _ in range(2)] == [[0, 0], [1, 1]]


def epoch_and_rows(rows: Any) -> tuple[int, list[int]]:
    return rows.epoch, rows.row_ids.tolist()
