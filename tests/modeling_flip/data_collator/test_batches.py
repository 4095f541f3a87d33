"""Arguments, and what a batch holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modeling_flip import FlipDataCollator, FlipDataset, FlipProcessor, PretrainingCollator
from tests.modeling_flip.data_collator.batches import FIELDS, collate, make_rows


@pytest.mark.parametrize("name", ["text_mask_ratio", "tabular_mask_ratio"])
@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_zero_to_one_is_refused(processors: dict[str, FlipProcessor], name: str, ratio: float) -> None:
    arguments: dict[str, Any] = {name: ratio}
    with pytest.raises(ValueError, match=f"{name} is {ratio}"):
        PretrainingCollator(processors["wordpiece"], **arguments)


def test_another_text_masking_is_refused(processors: dict[str, FlipProcessor]) -> None:
    with pytest.raises(ValueError, match="text_masking is 'word'; it must be 'field' or 'token'"):
        PretrainingCollator(processors["wordpiece"], text_masking="word")


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("text_masking", ["field", "token"])
def test_batches_of_no_row_and_of_one(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], text_masking: str, size: int
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], num_noise_features=7, text_masking=text_masking)
    batch = collate(collator, datasets["wordpiece"], list(range(size)))
    assert batch["masked_feature_ids"].shape == batch["mtm_labels"].shape == (size, 5)
    assert batch["noise_feature_ids"].shape == (size, 1, 7)  # one field of five is masked
    two = PretrainingCollator(processors["wordpiece"], tabular_mask_ratio=0.4, num_noise_features=7)
    assert collate(two, datasets["wordpiece"], list(range(size)))["noise_feature_ids"].shape == (size, 2, 7)
    assert batch["masked_input_ids"].shape == batch["mlm_labels"].shape == batch["input_ids"].shape
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("inputs", "keys"),
    [
        (("feature_ids", "sentence"), {"feature_ids", "input_ids", "attention_mask", "labels"}),
        (("feature_ids",), {"feature_ids", "labels"}),
        (("sentence",), {"input_ids", "attention_mask", "labels"}),
    ],
)
def test_a_batch_holds_what_its_model_reads(
    processors: dict[str, FlipProcessor], inputs: tuple[str, ...], keys: set[str]
) -> None:
    processor = processors["wordpiece"]
    rows = make_rows(6)
    batch = FlipDataCollator(processor, inputs)(processor.encode(rows, "click").__getitems__([3, 1]))
    assert set(batch) == keys
    expected = processor({field: [rows[field][3], rows[field][1]] for field in FIELDS})
    for key in keys - {"labels"}:
        assert torch.equal(batch[key], expected[key]), key
    assert torch.equal(batch["labels"], torch.tensor([1.0, 0.0]))


def test_rows_without_labels_give_a_batch_without(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    assert "labels" not in FlipDataCollator(processor)(processor.encode(make_rows(2)))
