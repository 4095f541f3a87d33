"""Metrics of click probabilities: ranking and calibration."""

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
METRICS = ("auc", "logloss", "ne", "ece")


class CtrMetrics(evaluate.Metric):
    """AUC, logloss, normalised entropy and expected calibration error of click probabilities.

    `compute(predictions=probabilities, references=clicks)` → `auc`, `logloss` (natural logarithm), `ne`: the logloss divided by
    that of always predicting the click rate, and `ece`: the mean distance between click rate and mean probability over 20 bins
    of equal width, weighted by their rows.

    Raises:
        ValueError: a prediction is not a probability, or the clicks are all the same, so that AUC is not defined.
    """

    def __init__(self, **kwargs: Any):
        # In memory: nothing is written to a cache folder that other processes share.
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="AUC, logloss, normalised entropy and expected calibration error of click probabilities.",
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
        logloss = float(log_loss(clicks, probabilities, labels=[0, 1]))
        return {
            "auc": float(roc_auc_score(clicks, probabilities)),
            "logloss": logloss,
            "ne": normalised_entropy(logloss, clicks),
            "ece": calibration_error(probabilities, clicks),
        }


def normalised_entropy(logloss: float, clicks: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Logloss divided by the entropy of the click rate of (N,) clicks: below 1 if a model is better than predicting that rate
    (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD '14, §3).

    Example:
        >>> round(normalised_entropy(0.5, np.array([0, 1])), 4)  # a rate of one half: ln 2
        0.7213
    """
    rate = np.average(clicks, weights=weights)
    return float(-logloss / (rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration_error(probabilities: np.ndarray, clicks: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The ECE of (N,) probabilities against (N,) clicks, each row weighted."""
    weights = np.ones(len(clicks)) if weights is None else weights
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=weights * (clicks - probabilities), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def named_logits(logits: np.ndarray | Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Logits by the prefix of their metrics, "" for the model, "tabular_" and "text_" for its towers, (N,) float64 each."""
    parts = [logits] if isinstance(logits, np.ndarray) else list(logits)
    prefixes = ("", "tabular_", "text_")[: len(parts)]
    return {prefix: np.asarray(z, np.float64) for prefix, z in zip(prefixes, parts, strict=True)}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()


def ctr_metrics(
    logits: np.ndarray | Iterable[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics of a prediction: `auc`, `logloss`, `ne` (normalised entropy), `ece`, and for two towers also `tabular_auc`,
    `text_auc`, …

    AUC and logloss are computed from logits: as probabilities, large logits would be equal.

    Args:
        logits: (N,) of the click, or three of these: the model's, the tabular tower's and the text tower's.
        labels: (N,) clicks.
        groups: (N,) integers, such as users, negative for none: then also `gauc_rows`, the share of rows whose group has
            both labels, and `gauc`, left out where there are none.
        weights: (N,) how many rows of the whole log each row stands for, if non-clicks were downsampled; used by logloss, NE
            and ECE. AUC does not depend on the share of non-clicks kept.

    Raises:
        ValueError: a logit is not finite, or the clicks are all the same.
    """
    clicks = labels.astype(np.float64)
    if len(np.unique(clicks)) < 2:
        raise ValueError(f"AUC needs clicks and non-clicks, but all {len(clicks)} labels are {clicks[:1]}")
    metrics: dict[str, float] = {}
    for prefix, z in named_logits(logits).items():
        if not np.isfinite(z).all():
            raise ValueError(f"predictions hold {z[~np.isfinite(z)][0]}; lower learning_rate or text_learning_rate")
        metrics[f"{prefix}auc"] = float(roc_auc_score(clicks, z))
        logloss = float(np.average(np.logaddexp(0, z) - clicks * z, weights=weights))
        metrics[f"{prefix}logloss"] = logloss
        metrics[f"{prefix}ne"] = normalised_entropy(logloss, clicks, weights)
        metrics[f"{prefix}ece"] = calibration_error(sigmoid(z), clicks, weights)
        if groups is not None:
            within, share = gauc(z, labels, groups)
            # Without a group of both labels it is undefined, and JSON has no nan.
            metrics |= {f"{prefix}gauc": within} if np.isfinite(within) else {}
            metrics[f"{prefix}gauc_rows"] = share
    return metrics
