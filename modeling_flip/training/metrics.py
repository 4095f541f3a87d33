"""How well click probabilities rank, and how well they are calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score

from .grouped_auc import gauc

CALIBRATION_BINS = 20
METRICS = ("auc", "logloss", "ece")


class CtrMetrics(evaluate.Metric):
    """AUC, logloss and expected calibration error of click probabilities.

    `compute(predictions=probabilities, references=clicks)` → `auc`, `logloss` (natural logarithm) and `ece`: the mean
    distance between click rate and mean probability over 20 bins of equal width, weighted by their rows.

    Raises:
        ValueError: a prediction is no probability, or the clicks are all the same, so that AUC is not defined.
    """

    def __init__(self, **kwargs: Any):
        # In memory: nothing is written to a cache folder that other processes share.
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="AUC, logloss and expected calibration error of click probabilities.",
            citation="",
            inputs_description="predictions: click probabilities in [0, 1]; references: clicks, 0 or 1.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        probabilities, clicks = np.asarray(predictions, np.float64), np.asarray(references, np.int64)
        if len(np.unique(clicks)) < 2:
            raise ValueError(f"AUC needs clicks and non-clicks, but all {len(clicks)} labels are {clicks[:1]}")
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1))][0]
            raise ValueError(f"predictions hold {wrong}; they must be probabilities, between 0 and 1")
        return {
            "auc": float(roc_auc_score(clicks, probabilities)),
            "logloss": float(log_loss(clicks, probabilities, labels=[0, 1])),
            "ece": calibration_error(probabilities, clicks),
        }


def calibration_error(probabilities: np.ndarray, clicks: np.ndarray) -> float:
    """The ECE of (N,) probabilities against (N,) clicks."""
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=clicks - probabilities, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(clicks))


def ctr_metrics(
    logits: np.ndarray | Iterable[np.ndarray], labels: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of a prediction: `auc`, `logloss`, `ece`, and for two towers also `tabular_auc`, `text_auc`, …

    AUC and logloss are those of the logits: the probabilities of two logits of 40 are the same number.

    Args:
        logits: (N,) of the click, or three of these: the model's, the tabular tower's and the text tower's.
        labels: (N,) clicks.
        groups: (N,) integers, such as users, negative for none: then also `gauc`, and the share of rows that it is of,
            `gauc_rows`.

    Raises:
        ValueError: a logit is not finite, or the clicks are all the same.
    """
    named = (
        {"": logits} if isinstance(logits, np.ndarray) else dict(zip(("", "tabular_", "text_"), logits, strict=True))
    )
    clicks = labels.astype(np.float64)
    if len(np.unique(clicks)) < 2:
        raise ValueError(f"AUC needs clicks and non-clicks, but all {len(clicks)} labels are {clicks[:1]}")
    metrics: dict[str, float] = {}
    for prefix, tower_logits in named.items():
        z = np.asarray(tower_logits, np.float64)
        if not np.isfinite(z).all():
            raise ValueError(f"predictions hold {z[~np.isfinite(z)][0]}; lower learning_rate or text_learning_rate")
        probabilities = torch.from_numpy(z).sigmoid().numpy()
        metrics[f"{prefix}auc"] = float(roc_auc_score(clicks, z))
        metrics[f"{prefix}logloss"] = float(np.mean(np.logaddexp(0, z) - clicks * z))
        metrics[f"{prefix}ece"] = calibration_error(probabilities, clicks)
        if groups is not None:
            metrics[f"{prefix}gauc"], metrics[f"{prefix}gauc_rows"] = gauc(z, labels, groups)
    return metrics
