"""The noise of MTM follows the frequencies of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipDataset, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import FrequencySampler
from tests.modeling_flip.data_collator.batches import collate


def draw_noise(processor: FlipProcessor, rows: dict[str, list[Any]], copies: int) -> np.ndarray:
    """(N, 1, 25) noise features of the rows, repeated; of two fields one is masked."""
    dataset = processor.encode({field: values * copies for field, values in rows.items()})
    return PretrainingCollator(processor)(dataset)["noise_feature_ids"].numpy()


def test_noise_follows_the_training_frequency(wordpiece: PreTrainedTokenizerFast) -> None:
    rows: dict[str, list[Any]] = {"gender": ["f"] * 6 + ["m"] * 3 + [None], "city": ["x"] * 5 + ["y"] * 4 + ["rare"]}
    processor = FlipProcessor.fit(rows, ["gender", "city"], wordpiece, min_count=2)
    # gender: one null, f, m; city: "rare" is unknown, x, y; <MASK> never
    assert processor.vocabulary.feature_counts.tolist() == [1, 6, 3, 1, 5, 4, 0]
    drawn = draw_noise(processor, rows, copies=200)
    assert drawn.shape == (2000, 1, 25)
    share = np.bincount(drawn.ravel(), minlength=7) / drawn.size
    assert share[:6] == pytest.approx(np.array([1, 6, 3, 1, 5, 4]) / 20, abs=0.012)  # six standard deviations
    assert share[6] == 0


def test_noise_is_never_a_feature_that_training_did_not_see(wordpiece: PreTrainedTokenizerFast) -> None:
    rows: dict[str, list[Any]] = {"gender": ["f", "m"], "city": ["x", "x"]}
    processor = FlipProcessor.fit(rows, ["gender", "city"], wordpiece)
    # unknown, f, m, unknown, x, <MASK>
    assert set(draw_noise(processor, rows, copies=100).ravel().tolist()) == {1, 2, 4}


@pytest.mark.parametrize(
    "counts", [[1], [0, 3, 0], [1, 1, 1], [5, 0, 0, 1, 2, 0, 900, 0], [2**30, *range(1000), 0], [1] * 4097]
)
def test_a_draw_is_the_first_whose_cumulative_share_is_above_the_uniform(counts: list[int]) -> None:
    shares = np.cumsum(counts) / sum(counts)
    edges = np.concatenate([shares, np.nextafter(shares, 0), np.arange(64) / 64])  # between two, and on the guide's own
    edges = edges[edges < 1]
    uniforms = np.concatenate([np.random.default_rng(0).random(2000), edges, [0, 1 - 2**-53]]).reshape(1, -1)
    drawn = FrequencySampler(np.array(counts))(uniforms)
    assert drawn.dtype == np.int64
    assert (drawn == np.searchsorted(shares, uniforms, side="right")).all()
    assert (np.array(counts)[drawn] > 0).all()


def test_each_masked_field_has_noise_of_its_own(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset]
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], tabular_mask_ratio=0.6, num_noise_features=50)
    noise = collate(collator, datasets["wordpiece"], list(range(16)))["noise_feature_ids"]
    assert noise.shape == (16, 3, 50)
    flat = noise.reshape(48, 50)
    assert len(np.unique(flat, axis=0)) == 48  # not one draw for a row, or for a batch
