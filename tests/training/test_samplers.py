from __future__ import annotations

import numpy as np

from modeling_flip.training.samplers import LengthBuckets


def test_batches_hold_sentences_of_like_length_in_an_order_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 400).tolist()
    sampler = LengthBuckets(8, lengths, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert sorted(first) == list(range(400))
    spread = [np.ptp([lengths[i] for i in first[k : k + 8]]) for k in range(0, 400, 8)]
    assert np.mean(spread) < 10  # 70 in a random order
