"""Calibration against rows whose click rates are known."""

from __future__ import annotations

import numpy as np
import pytest

from modeling_flip.training.calibration import platt, sampling_shift, sampling_weights
from modeling_flip.training.metrics import ctr_metrics, sigmoid


def draw(logits: np.ndarray) -> np.ndarray:
    return (np.random.default_rng(1).random(len(logits)) < sigmoid(logits)).astype(np.float32)


def test_platt_finds_the_scale_and_shift_that_were_lost() -> None:
    right = np.random.default_rng(0).normal(-1, 1.5, 40_000)
    clicks, overconfident = draw(right), 3 * right + 2
    scale, shift = platt(overconfident, clicks)
    assert (scale, shift) == pytest.approx((1 / 3, -2 / 3), abs=0.02)
    before, after = ctr_metrics(overconfident, clicks), ctr_metrics(scale * overconfident + shift, clicks)
    assert after["ece"] < 0.01 < 0.1 < before["ece"]
    assert after["logloss"] < before["logloss"]
    assert after["auc"] == pytest.approx(before["auc"])


def test_platt_of_a_constant_logit_is_the_click_rate() -> None:
    clicks = np.array([1, 0, 0, 0] * 500)
    scale, shift = platt(np.zeros(2000) + 1e-6 * clicks, clicks)
    assert sigmoid(np.array([shift])) == pytest.approx(0.25, abs=1e-3)
    assert scale > 0


def test_platt_makes_nothing_certain_of_a_model_that_is_never_wrong() -> None:
    logits, clicks = np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    scale, shift = platt(logits, clicks)
    # Both sides have two rows: their targets are 3/4 and 1/4, and the mean of each side's probabilities is that.
    probabilities = sigmoid(scale * logits + shift)
    assert probabilities[2:].mean() == pytest.approx(0.75, abs=0.01)
    assert shift == pytest.approx(0, abs=1e-3)


def test_logits_that_rank_worse_than_chance_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    assert platt(np.array([2.0, 1.0, -1.0, -2.0] * 9), np.array([0, 0, 1, 1] * 9)) == (1.0, 0.0)
    assert "not calibrated: on the validation rows, higher logits do not mean more clicks" in caplog.text


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 1.0])
def test_the_shift_is_the_formula_of_he_et_al(rate: float) -> None:
    p = np.array([0.001, 0.2, 0.5, 0.97])
    expected = p / (p + (1 - p) / rate)
    assert sigmoid(np.log(p / (1 - p)) + sampling_shift(rate)) == pytest.approx(expected)
    assert sampling_shift(None) == 0.0


def test_weights_undo_the_sampling() -> None:
    assert sampling_weights(np.array([1, 0]), None) is None
    weights = sampling_weights(np.array([1.0, 0.0, 0.0]), 0.1)
    assert weights is not None and weights.tolist() == [1, 10, 10]


def test_figures_of_a_downsampled_log_estimate_those_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(-2, 1, 100_000)
    clicks = draw(logits)
    kept = (clicks == 1) | (rng.random(len(clicks)) < 0.1)
    wrong = logits + 0.5  # so that there is something to estimate
    whole = ctr_metrics(wrong, clicks)
    estimated = ctr_metrics(wrong[kept], clicks[kept], weights=sampling_weights(clicks[kept], 0.1))
    for name in ("auc", "logloss", "ne", "ece"):
        assert estimated[name] == pytest.approx(whole[name], rel=0.03), name
