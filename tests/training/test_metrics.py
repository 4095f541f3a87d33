"""CtrMetrics against counts and sums by hand."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch

from modeling_flip.training.metrics import CtrMetrics, ctr_metrics


def compute(predictions: list[float], references: list[int]) -> dict[str, float]:
    metrics = CtrMetrics().compute(predictions=predictions, references=references)
    assert metrics is not None
    return metrics


def test_auc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half() -> None:
    predictions, references = [0.9, 0.5, 0.5, 0.5, 0.2, 0.1], [1, 1, 0, 1, 0, 1]
    pairs = [
        1.0 if click > no_click else 0.5 if click == no_click else 0.0
        for click, is_click in zip(predictions, references, strict=True)
        for no_click, other_is_click in zip(predictions, references, strict=True)
        if is_click and not other_is_click
    ]
    assert compute(predictions, references)["auc"] == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(("references", "auc"), [([0, 0, 1, 1], 1.0), ([1, 1, 0, 0], 0.0)], ids=["perfect", "inverse"])
def test_auc_of_a_perfect_and_of_an_inverse_ranking(references: list[int], auc: float) -> None:
    assert compute([0.1, 0.2, 0.3, 0.4], references)["auc"] == auc


def test_logloss_is_the_mean_negative_natural_logarithm() -> None:
    expected = -(math.log(0.9) + math.log(1 - 0.2) + math.log(0.6)) / 3
    assert compute([0.9, 0.2, 0.6], [1, 0, 1])["logloss"] == pytest.approx(expected)


@pytest.mark.parametrize(("predictions", "bounded"), [([1.0, 0.0], True), ([0.0, 1.0], False)])
def test_logloss_of_certain_predictions_is_finite(predictions: list[float], bounded: bool) -> None:
    logloss = compute(predictions, [1, 0])["logloss"]
    assert math.isfinite(logloss)
    assert (logloss < 1e-6) is bounded


def test_ece_weighs_the_gap_of_each_bin_by_its_rows() -> None:
    # Bins are 0.05 wide: two rows in [0.10, 0.15), one in [0.15, 0.20), three in [0.60, 0.65), two in [0.95, 1].
    predictions = [0.11, 0.13, 0.16, 0.60, 0.62, 0.64, 0.96, 1.0]
    references = [1, 0, 0, 0, 1, 0, 1, 0]
    gaps = [abs(1 / 2 - 0.24 / 2) * 2, 0.16, abs(1 / 3 - 1.86 / 3) * 3, abs(1 / 2 - 1.96 / 2) * 2]
    assert compute(predictions, references)["ece"] == pytest.approx(sum(gaps) / 8)


def test_ece_of_the_click_rate_itself_is_zero_and_knows_nothing_of_ranking() -> None:
    metrics = compute([0.25] * 4, [0, 1, 0, 0])
    assert metrics["ece"] == pytest.approx(0)
    assert metrics["auc"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_labels_that_are_all_the_same_are_an_error_that_shows_them(label: int) -> None:
    with pytest.raises(ValueError, match=rf"all 3 labels are \[{label}\]"):
        compute([0.1, 0.2, 0.3], [label] * 3)


def test_it_is_an_evaluate_metric_that_gathers_batches_without_network_or_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("CtrMetrics reached for the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    metric = CtrMetrics()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=np.array([0.9, 0.2]), references=np.array([1, 0]))
    metric.add_batch(predictions=np.array([0.6]), references=np.array([0]))
    assert metric.compute() == pytest.approx(compute([0.9, 0.2, 0.6], [1, 0, 0]))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_metrics_of_one_and_of_two_towers() -> None:
    labels, good, bad = (
        np.array([0.0, 0.0, 1.0, 1.0]),
        np.array([-2.0, -1.0, 1.0, 2.0]),
        np.array([2.0, 1.0, -1.0, -2.0]),
    )
    assert set(ctr_metrics(good, labels)) == {"auc", "logloss", "ne", "ece"}
    both = ctr_metrics((good, good, bad), labels)
    assert (both["auc"], both["tabular_auc"], both["text_auc"]) == (1.0, 1.0, 0.0)
    sure = np.log1p(np.exp([-2.0, -1.0])).mean()
    assert both["logloss"] == pytest.approx(sure)


def test_large_logits_are_told_apart() -> None:
    """Their probabilities are all 1: sigmoids would give an AUC of one half, and a logloss of 0 or infinity."""
    logits, clicks = np.array([50.0, 60.0, 70.0, -800.0]), np.array([0, 1, 1, 0])
    assert torch.from_numpy(logits[:3]).sigmoid().tolist() == [1.0, 1.0, 1.0]
    metrics = ctr_metrics(logits, clicks)
    assert metrics["auc"] == 1.0
    # -log(1 - σ(50)) = 50; the others cost next to nothing.
    assert metrics["logloss"] == pytest.approx(50 / 4)


def test_a_logit_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match=r"predictions hold nan; lower learning_rate"):
        ctr_metrics(np.array([0.0, np.nan]), np.array([0, 1]))


def test_groups_add_their_auc() -> None:
    logits, clicks, groups = np.array([0.1, 0.9, 0.7, 0.3, 0.5]), np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    metrics = ctr_metrics((logits, logits, -logits), clicks, groups)
    # Of the first group 1, of the second 0; the third has no AUC.
    assert metrics["gauc"] == metrics["tabular_gauc"] == 0.5 and metrics["gauc_rows"] == 0.8
    assert metrics["text_gauc"] == 0.5
    assert "gauc" not in ctr_metrics(logits, clicks)


def test_where_no_group_has_both_labels_there_is_no_auc_of_groups() -> None:
    logits, clicks = np.array([0.1, 0.9, 0.7, 0.3]), np.array([0, 1, 0, 1])
    for groups in (np.array([0, 1, 2, 3]), np.array([-1, -1, -1, -1])):
        metrics = ctr_metrics((logits, logits, logits), clicks, groups)
        assert not {"gauc", "tabular_gauc", "text_gauc"} & metrics.keys()
        assert metrics["gauc_rows"] == metrics["tabular_gauc_rows"] == metrics["text_gauc_rows"] == 0.0
        json.dumps(metrics, allow_nan=False)


def test_normalised_entropy_is_the_logloss_as_a_share_of_what_the_click_rate_alone_would_give() -> None:
    logits, clicks = np.log([9.0, 1 / 9, 1 / 4, 1.0]), np.array([1, 0, 0, 0])  # probabilities 0.9, 0.1, 0.2, 0.5
    logloss = -(math.log(0.9) + math.log(0.9) + math.log(0.8) + math.log(0.5)) / 4
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    metrics = ctr_metrics((logits, logits, np.full(4, math.log(1 / 3))), clicks)
    assert metrics["ne"] == metrics["tabular_ne"] == pytest.approx(logloss / entropy)
    assert metrics["text_ne"] == pytest.approx(1)  # the rate itself
    assert compute([0.9, 0.1, 0.2, 0.5], [1, 0, 0, 0])["ne"] == pytest.approx(logloss / entropy)


def test_a_row_of_weight_three_counts_as_three_rows_but_not_for_the_ranking() -> None:
    rng = np.random.default_rng(0)
    logits, clicks = rng.normal(size=60), rng.integers(0, 2, 60)
    weights = np.where(clicks == 1, 1, 3)
    repeated = np.repeat(np.arange(60), weights)
    weighted, whole = ctr_metrics(logits, clicks, weights=weights), ctr_metrics(logits[repeated], clicks[repeated])
    assert weighted == pytest.approx(whole)
    plain = ctr_metrics(logits, clicks)
    assert plain["auc"] == pytest.approx(weighted["auc"])
    assert all(abs(plain[name] - weighted[name]) > 0.01 for name in ("logloss", "ne", "ece"))
