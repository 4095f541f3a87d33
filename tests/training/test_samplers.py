from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_flip.training import samplers
from modeling_flip.training.samplers import InOrder, LengthBuckets


def test_batches_hold_sentences_of_like_length_in_an_order_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 400)
    sampler = LengthBuckets(8, lengths, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert sorted(first) == list(range(400))
    spread = [np.ptp([lengths[i] for i in first[k : k + 8]]) for k in range(0, 400, 8)]
    assert np.mean(spread) < 10  # 70 in a random order


@pytest.mark.parametrize("rows", [1, 7, 63, 64, 1000, 4003])
@pytest.mark.parametrize("longest", [1, 4, 1000])
def test_the_order_is_that_of_transformers(rows: int, longest: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, longest, rows)
    expected = get_length_grouped_indices(lengths.tolist(), 16, generator=torch.Generator().manual_seed(3))
    assert list(LengthBuckets(16, lengths, seed=3)) == expected


def test_a_given_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "READ_AT_ONCE", 2)
    sampler = InOrder(np.array([3, 0, 2, 1, 4]))
    assert list(sampler) == list(sampler) == [3, 0, 2, 1, 4] and len(sampler) == 5
    assert list(InOrder(np.zeros(0, np.int64))) == []
