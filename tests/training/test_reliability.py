from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modeling_flip.training.metrics import sigmoid
from modeling_flip.training.reliability import reliability, write_reliability


def test_a_bin_has_its_mean_probability_and_its_click_rate() -> None:
    logits = np.log([1 / 9, 1 / 4, 1.0, 9.0])  # probabilities 0.1, 0.2, 0.5, 0.9
    found = reliability(logits, np.array([0, 1, 1, 1]), num_bins=2)
    assert found.rows.tolist() == [2, 2]
    assert found.probability == pytest.approx([0.15, 0.7])
    assert found.click_rate.tolist() == [0.5, 1]
    assert found.error == pytest.approx([(0.5 * 0.5 / 2) ** 0.5, 0])


def test_rows_of_the_same_logit_share_a_bin_whatever_their_order() -> None:
    logits, labels = np.array([0.0] * 50 + [1.0] * 50 + [2.0] * 2), np.array([1] * 25 + [0] * 75 + [1] * 2)
    found = reliability(logits, labels)
    assert found.rows.tolist() == [50, 50, 2]
    assert found.click_rate.tolist() == [0.5, 0, 1]


@pytest.mark.parametrize("size", [1, 19, 20, 21, 1000])
def test_bins_are_of_as_many_rows_each_and_lose_none(size: int) -> None:
    logits = np.random.default_rng(0).normal(size=size)
    found = reliability(logits, np.zeros(size))
    assert found.rows.sum() == size
    assert np.ptp(found.rows) <= 1
    assert (np.diff(found.probability) > 0).all()


def test_a_weight_is_so_many_rows() -> None:
    rng = np.random.default_rng(0)
    logits, labels = np.repeat(rng.normal(size=5), 20), rng.integers(0, 2, 100)
    weights = np.where(labels == 1, 1, 4)
    weighted, whole = (
        reliability(logits, labels, weights),
        reliability(np.repeat(logits, weights), np.repeat(labels, weights)),
    )
    assert weighted.click_rate == pytest.approx(whole.click_rate)
    assert weighted.probability == pytest.approx(whole.probability)


def test_of_true_probabilities_all_bins_are_near_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1, 50_000)
    found = reliability(logits, (rng.random(50_000) < sigmoid(logits)).astype(int))
    assert (np.abs(found.click_rate - found.probability) < 4 * found.error).all()


@pytest.mark.parametrize("towers", [1, 3])
def test_the_plot_is_written(towers: int, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(towers, 30))
    write_reliability(tmp_path / "plot.png", tuple(logits) if towers > 1 else logits[0], np.arange(30) % 2)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
