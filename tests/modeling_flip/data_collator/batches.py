"""Rows, what a collator makes of them, and what must have been masked."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from modeling_flip import FlipDataset, PretrainingCollator
from modeling_flip.data_collator import IGNORE

FIELDS = ["user_id", "gender", "age", "title", "genre"]
FAMILIES = ["wordpiece", "byte_level_bpe", "unigram"]
TITLES = [
    "Toy Story (1995)",
    "東京物語",
    "It's a Wonderful Life",
    "is",
    "gender is male.",
    "Amélie",
    "x",
    "a.b-c/d & e?",
]


def make_rows(size: int) -> dict[str, list[Any]]:
    """Rows of five fields whose sentences differ in length; no value is empty."""
    return {
        "user_id": [i % 5 for i in range(size)],
        "gender": [["female", "male", None][i % 3] for i in range(size)],
        "age": [20 + i % 4 for i in range(size)],
        "title": [TITLES[i % 8] for i in range(size)],
        "genre": [["Action", "Drama and romance"][i % 2] for i in range(size)],
        "click": [int(i % 3 == 0) for i in range(size)],
    }


def collate(collator: PretrainingCollator, dataset: FlipDataset, indices: list[int]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in collator(dataset.__getitems__(indices)).items()}


def by_row(batches: list[dict[str, np.ndarray]], indices: list[int]) -> dict[int, dict[str, list[int]]]:
    """What each row got, padding aside."""
    rows: list[dict[str, list[int]]] = []
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        for r in range(len(lengths)):
            text = {"input_ids", "masked_input_ids", "attention_mask", "mlm_labels"}
            rows.append({k: (v[r, : lengths[r]] if k in text else v[r]).tolist() for k, v in batch.items()})
    return dict(zip(indices, rows, strict=True))


def assert_masked_exactly(batch: dict[str, np.ndarray], name: str, labels: str, masked: np.ndarray, mask: int) -> None:
    """Where `masked`, the mask stands in the copy and the original in the labels; elsewhere the original and -100."""
    original = batch[name]
    np.testing.assert_array_equal(batch[f"masked_{name}"], np.where(masked, mask, original))
    np.testing.assert_array_equal(batch[labels], np.where(masked, original, IGNORE))


ratios = st.floats(0, 1, exclude_min=True)
seeds = st.integers(0, 2**32 - 1)
