"""What is masked depends on the seed, the epoch and the row alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip import FlipDataset, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import uniforms
from tests.modeling_flip.data_collator.batches import by_row, collate, seeds


@pytest.mark.parametrize("text_masking", ["field", "token"])
@given(order=st.permutations(range(16)), seed=seeds)
def test_what_a_row_gets_does_not_depend_on_its_batch(
    processors: dict[str, FlipProcessor],
    datasets: dict[str, FlipDataset],
    text_masking: str,
    order: list[int],
    seed: int,
) -> None:
    collator = PretrainingCollator(processors["wordpiece"], 0.4, 0.4, text_masking=text_masking, seed=seed)
    dataset, rows = datasets["wordpiece"], list(range(16))
    whole = by_row([collate(collator, dataset, rows)], rows)
    halves = by_row([collate(collator, dataset, rows[:8]), collate(collator, dataset, rows[8:])], rows)
    assert whole == halves == by_row([collate(collator, dataset, order)], order)


@pytest.mark.parametrize("text_masking", ["field", "token"])
@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_chooses_anew(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], text_masking: str, change: str
) -> None:
    dataset, rows = replace(datasets["wordpiece"]), list(range(16))
    collator = PretrainingCollator(processors["wordpiece"], 0.3, 0.3, text_masking=text_masking)
    first = collate(collator, dataset, rows)
    if change == "epoch":
        dataset.epoch = 1
    else:
        collator.seed = 1
    second = collate(collator, dataset, rows)
    for key in ("mlm_labels", "mtm_labels", "noise_feature_ids"):
        assert (first[key] != second[key]).any(), key
    for key in ("input_ids", "feature_ids"):
        assert (first[key] == second[key]).all(), key


# ---- random numbers


@pytest.mark.parametrize("first_row", [0, 2**40])
def test_uniforms_are_uniform(first_row: int) -> None:
    drawn = uniforms(0, 0, 0, first_row + np.arange(4000), 25)
    assert drawn.shape == (4000, 25)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    tenths = np.bincount((drawn * 10).astype(int).ravel(), minlength=10) / drawn.size
    assert tenths == pytest.approx(np.full(10, 0.1), abs=0.006)  # six standard deviations


def test_uniforms_of_other_rows_columns_streams_epochs_and_seeds_are_uncorrelated() -> None:
    rows = np.arange(4000)
    drawn = uniforms(0, 0, 0, rows, 25)
    pairs = {
        "rows": (drawn[1:], drawn[:-1]),
        "columns": (drawn[:, 1:], drawn[:, :-1]),
        "stream": (drawn, uniforms(0, 0, 1, rows, 25)),
        "epoch": (drawn, uniforms(0, 1, 0, rows, 25)),
        "seed": (drawn, uniforms(1, 0, 0, rows, 25)),
    }
    correlation = {name: float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for name, (a, b) in pairs.items()}
    assert correlation == pytest.approx(dict.fromkeys(pairs, 0.0), abs=0.02)  # six standard deviations
